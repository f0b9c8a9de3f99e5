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
    meta_bytes: int = 16 * KIB
    data_bytes: int = 4 * KIB  # data of a member or a signal
    open_commands: int = 100  # waiting for a reply, per channel; a quarter of them from one sender
    pending_messages: int = 1_000  # waiting for an agent, per channel
    pending_bytes: int = 8 * MIB  # size of the pending messages; further ones are refused
    members: int = 10_000  # present in a channel at the same time
    depth: int = 64  # depth of nested JSON
    socket_channels: int = 100
    socket_requests: int = 1_000  # pending, per WebSocket
    socket_request_bytes: int = 4 * MIB
    waiting_requests: int = 10_000  # in the hub, not stored yet
    waiting_bytes: int = 64 * MIB
    writer_bytes: int = 1 * MIB  # accepted from one in-process writer and not stored yet; then `append` waits
    history: int = 200  # messages in a page
    history_bytes: int = 2 * MIB
    default_history: int = 50
    catch_up_messages: int = 200  # more changed messages than this cause a new start
    channel_idle_s: float = 60.0  # a channel without viewers and writers leaves memory after this long
    channel_bytes: int = 16 * MIB  # size of a live channel in memory; finished messages beyond it leave memory
    memory_bytes: int = 256 * MIB  # size of all channels in memory; beyond it idle channels leave memory at once
