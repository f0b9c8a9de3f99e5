"""Leftovers: at the end of a run, hubs must be empty, and no message of a dead writer may stream.

Layer: simulation.
"""

from __future__ import annotations

from collections.abc import Container

from proof.oracle.log import EpochLog
from proof.oracle.violation import Violation
from tenuto.app import Hub
from tenuto.core.events import Presence
from tenuto.hub.hub import HubCore
from tenuto.transports.app import App


def members_of(hub: HubCore, channel: str) -> Presence:
    """Return the members of `channel`, as `hub` knows them."""
    live = hub.runtime.channels.get(channel) if hub.is_running else None
    return live.presence_state.presence() if live is not None else Presence(members=[], count=0)


def check_writers(log: EpochLog, node: str) -> None:
    """Check that each streaming message has a writer that can be alive; `node` is the id of the one hub that runs."""
    for message in log.messages(log.serial):
        _, writer = log.writers[message.id][-1]
        if message.status == "streaming" and writer is not None and writer.node not in (None, node):
            raise Violation(f"{log.channel}: {message.id} still streams, though its writer died with {writer.node}")


def check_abandoned(log: EpochLog, hub: HubCore, abandoned: Container[tuple[str, str]]) -> None:
    """Check, after all writers have ended, that no message streams without a writer in `hub`, except `abandoned`
    ones."""
    for message in log.messages(log.serial):
        _, writer = log.writers[message.id][-1]
        if message.status != "streaming" or writer is None or writer.node != hub.node or not hub.is_running:
            continue
        place = (log.channel, message.id)
        if place not in hub.runtime.writers and place not in abandoned:
            raise Violation(f"{log.channel}: {message.id} streams for ever: its writer has ended")


def check_empty(hub: Hub, who: str) -> None:
    """Check that a hub holds no object for clients that have left."""
    app = hub._asgi
    if isinstance(app, App):
        _check_none(who, "sockets are left", len(app._sockets))
        _check_none(who, "heartbeats are left", len(app.heartbeats))
    if not hub.is_running:
        return
    runtime = hub.runtime
    for name in ("channels", "feeds", "writers", "waiting", "members", "turns_running", "turns_waiting"):
        _check_none(who, f"{name} are left", hub.stats()[name])
    _check_none(who, "channels have parked items", len(runtime.committer._loader.parked))
    _check_none(who, "bytes wait", runtime.committer._waiting_bytes)
    _check_none(who, "commits are unclear", len(runtime.committer._loader._unclear))
    _check_none(who, "ticks are due", len(runtime.ticks._due))


def _check_none(who: str, what: str, count: int) -> None:
    if count:
        raise Violation(f"{who}: {count} {what}, 0 at most")
