"""Limits: all bounds on data that a peer controls, with their defaults (`docs/protocol.md`, 11).

Layer: core.

Values may be changed freely; a name is a public setting (`Hub(limits=Limits(...))`).
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds in bytes and counts; sizes of text are in bytes of UTF-8."""

    request_bytes: int = 1 * MIB
    append_bytes: int = 256 * KIB
    message_bytes: int = 8 * MIB
    parts: int = 256
    meta_bytes: int = 16 * KIB  # of the fields that `pipe` and attempts have not written
    options_bytes: int = 512 * KIB  # options of a client beside a message: tools, instructions and the like
    data_bytes: int = 4 * KIB  # largest data of a member or a signal
    open_commands: int = 100  # commands without a reply per channel; one sender may have a quarter of them
    steps: int = 1_000  # steps of one turn
    step_bytes: int = 256 * KIB  # result of one step, as JSON
    turn_bytes: int = 8 * MIB  # results of all steps of one turn
    pending_messages: int = 1_000  # messages that wait for an agent, per channel
    pending_bytes: int = 8 * MIB  # size of the messages that wait for an agent; further ones are refused
    members: int = 10_000  # members of a channel at the same time
    depth: int = 64  # limit of nested levels in JSON
    socket_channels: int = 100
    socket_requests: int = 1_000  # requests without a response, per WebSocket
    socket_request_bytes: int = 4 * MIB
    waiting_requests: int = 10_000  # requests in the hub that are not stored yet
    waiting_bytes: int = 64 * MIB
    writer_bytes: int = 1 * MIB  # content that one in-process writer may hold unstored; beyond this `append` waits
    history: int = 200  # messages in one page of history
    history_bytes: int = 2 * MIB
    default_history: int = 50
    catch_up_messages: int = 200  # changed messages since a cursor; if there are more, the client gets a new start
    channel_idle_s: float = 60.0  # a channel without viewers and writers leaves memory after this time
    channel_bytes: int = 16 * MIB  # size of one active channel in memory; beyond it, finished messages leave memory
    memory_bytes: int = 256 * MIB  # size of all channels in memory; beyond it idle channels leave memory at once
