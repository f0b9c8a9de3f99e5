"""Bounds: all that can grow in a hub has a bound, and the simulator checks it during a run.

Layer: simulation.

The loop calls `Bounds` after each step of a hub's process. After each step it checks the waiting requests;
after one step in `EVERY` all parts of the hub, and all that it holds for viewers. A container without a
bound does not shrink by itself, so a violation shows a few steps later. The checks take an eighth of the processor time
of a run; all checks after each step would take twice the rest of a run.

Most bounds are those of the product. Any other container may hold `SPARE` items in a world of three channels and a
dozen actors. All that belongs to one viewer may hold `HELD` items, and a feed holds none: it has a position, and no
queue. So `Bounds` also finds a new cache or queue, if one of the `_parts` refers to it.

At the end of a run, hubs must be empty, and no message of a dead writer may stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from proof.oracle import Violation
from proof.oracle.log import EpochLog
from tenuto.app import Hub
from tenuto.core.events import Presence
from tenuto.hub import channel as channels
from tenuto.hub.channel import Channel
from tenuto.hub.hub import HubCore
from tenuto.hub.people import presence_state as presence_limits
from tenuto.hub.runtime import Runtime
from tenuto.transports.app import App

EVERY = 16  # number of steps between two checks of all parts
SPARE = 200  # limit of items in a container; runs had at most 71
HELD = 16  # limit of items that belong to one viewer; a batch in transit counts as one
HELD_CHARACTERS = 1_000  # limit of the length of one text that belongs to a viewer
PATIENCE_S = 30.0  # time for housekeeping, without faults

# A part of the hub, the bound of its containers, and those of its containers that have bounds of their own.
Part = tuple[object, int, Mapping[str, int]]


class Bounds:
    """The bounds of one hub. `now_s` returns the time, `healthy_s` the time since when no fault has an effect."""

    def __init__(self, hub: HubCore, who: str, now_s: Callable[[], float], healthy_s: Callable[[], float]) -> None:
        self._hub = hub
        self._who = who
        self._now_s = now_s
        self._well_s = healthy_s
        self._left = EVERY
        self._too_much_s: dict[str, float] = {}  # channels in memory above their bound, and since when

    def stepped(self) -> None:
        """Check the hub after a step. Raises Violation."""
        if not self._hub.is_running:
            return
        runtime = self._hub.runtime
        committer, limits = runtime.committer, self._hub.limits
        # A writer in this process waits as one item with all its text, beside the limit.
        self._at_most("requests wait", committer.waiting, limits.waiting_requests + len(runtime.writers))
        self._at_most("bytes wait", committer._waiting_bytes, limits.waiting_bytes)
        self._left -= 1
        if self._left == 0:
            self._left = EVERY
            self._check_parts(runtime)

    def trimmed(self) -> None:
        """Check after a trim that memory is within its bounds. Raises Violation."""
        for channel in self._hub.runtime.channels.values():
            if channel.trim_bytes is None and self._has_too_much(channel):
                raise Violation(f"{self._who} {channel.name}: {channel.state.cost_bytes()} bytes are kept after a trim")

    def _check_parts(self, runtime: Runtime) -> None:
        for part, spare, own in self._parts(runtime):
            for name, value in _sized(part):
                if not isinstance(value, (str, bytes)):
                    if len(value) > own.get(name, spare):
                        what = f"things are in {type(part).__name__}.{name}"
                        self._at_most(what, len(value), own.get(name, spare))
                elif len(value) > HELD_CHARACTERS and spare <= HELD:
                    self._at_most(f"characters are in {type(part).__name__}.{name}", len(value), HELD_CHARACTERS)
        for name in self._too_much_s.keys() - runtime.channels.keys():
            del self._too_much_s[name]  # the channel has left memory, and a channel of that name was loaded just now
        for channel in runtime.channels.values():
            self._check_channel(channel)

    def _check_channel(self, channel: Channel) -> None:
        name, presence_state = channel.name, channel.presence_state
        kept = len(channel.batches.first) + len(channel.batches.live)
        self._at_most(f"encoded batches are kept for {name}", kept, channels.MAX_CACHED_BATCHES)
        self._at_most(
            f"bytes of signals are kept of {name}", presence_state._signal_bytes, presence_limits.KEPT_SIGNAL_BYTES
        )
        if not self._has_too_much(channel):
            self._too_much_s.pop(name, None)
        else:
            since_s = max(self._well_s(), self._too_much_s.setdefault(name, self._now_s()))
            if self._now_s() > since_s + PATIENCE_S:
                raise Violation(
                    f"{self._who} {name}: {channel.state.cost_bytes()} bytes are kept, and no trim frees them"
                )

    def _has_too_much(self, channel: Channel) -> bool:
        """Return whether memory above the bound holds a message or command that is over."""
        state = channel.state
        is_over = any(not message.is_open for message in state.messages.values())
        is_over = is_over or any(not command.is_open for command in state.commands.values())
        return is_over and state.cost_bytes() > self._hub.limits.channel_bytes

    def _parts(self, runtime: Runtime) -> Iterator[Part]:
        """Yield all parts of the hub, with the bounds of their containers."""
        committer, leases, scheduler = runtime.committer, runtime.leases, runtime.scheduler
        waiting = committer.waiting
        yield self._hub, SPARE, {}
        yield runtime.tasks, SPARE, {}
        yield runtime, SPARE, {}
        yield committer, SPARE, {}
        yield committer._queue, SPARE, dict.fromkeys(("_admitted", "_aside", "_behind", "_queue"), waiting)
        for parked in committer._parked.values():
            self._at_most("requests are parked", len(parked), waiting)
        yield runtime.deadlines, SPARE, {}
        yield runtime.ticks, SPARE, {}
        yield leases, SPARE, {}
        yield scheduler, SPARE, {}
        yield scheduler.workers, SPARE, {}
        for turns in scheduler._turns.values():
            self._at_most("turns are open in a channel", len(turns), SPARE)
        for runner in runtime.hooks:
            yield runner, SPARE, {}
        for channel in runtime.channels.values():
            yield from self._parts_of_channel(channel)
        app = vars(self._hub).get("_asgi")  # created at the first request
        if isinstance(app, App):
            running = sum(turn.is_taken for turns in scheduler._turns.values() for turn in turns.values())
            yield from self._parts_of_app(app, running)

    def _parts_of_channel(self, channel: Channel) -> Iterator[Part]:
        state, presence_state = channel.state, channel.presence_state
        yield channel, SPARE, {"_absent": channels.KEPT_ABSENT + 1_000}
        yield channel.batches, channels.MAX_CACHED_BATCHES, {}
        yield state, SPARE, {"messages": 1_000_000, "commands": 1_000_000}  # bounded by their bytes
        members = {
            "_members": self._hub.limits.members,
            "_signals": presence_limits.KEPT_SIGNALS,
            "_left": presence_limits.KEPT_LEFT,
            "_changes": len(presence_state) + len(presence_state._left),
            "_owned": len(presence_state),
        }
        yield presence_state, SPARE, members
        for group in channel._groups.values():
            yield group, SPARE, {}
            for feed in group.feeds:
                yield feed, 0, {}

    def _parts_of_app(self, app: App, turns: int) -> Iterator[Part]:
        yield app, SPARE, {}
        yield app._sockets, SPARE, {}
        yield app.heartbeats, SPARE, {}
        for socket in app._sockets._open:
            session = socket.session
            pending = session._pending + len(session._replies)
            # A turn and a bye are sent without a request.
            self._at_most("responses of a socket are due", pending, self._hub.limits.socket_requests + turns + 2)
            attached = session._attachments._by_channel
            yield socket, HELD, {"_tasks": session._pending + len(attached) + HELD}
            yield session, HELD, {"_replies": pending, "_present": self._hub.limits.socket_channels}
            yield socket.sender, HELD, {}
            yield session._attachments, HELD, {"_by_channel": self._hub.limits.socket_channels, "ready": len(attached)}
            for attachment in attached.values():
                yield attachment, HELD, {}
            if session._workers is not None:
                yield session._workers, HELD, {}
        for slot in app.heartbeats._slots.values():
            for member in slot:
                yield member, HELD, {}
                if (sender := getattr(member, "sender", None)) is not None:
                    yield sender, HELD, {}

    def _at_most(self, what: str, count: int, limit: int) -> None:
        if count > limit:
            raise Violation(f"{self._who}: {count} {what}, {limit} at most")


def _sized(part: Any) -> list[tuple[str, Any]]:
    """Return all attributes of an object that are containers or texts, and not empty, by name."""
    found = [one for one in getattr(part, "__dict__", {}).items() if _is_sized[type(one[1])] and one[1]]
    slots = _slots[type(part)]
    return found + [(name, one) for name in slots if _is_sized[type(one := getattr(part, name, None))] and one]


class _IsSized(dict[type, bool]):
    """By type, whether its values are containers or texts."""

    def __missing__(self, kind: type) -> bool:
        return self.setdefault(kind, issubclass(kind, dict | list | set | deque | str | bytes))


class _Slots(dict[type, list[str]]):
    """By type, the names of its slots."""

    def __missing__(self, kind: type) -> list[str]:
        found = [one.__dict__.get("__slots__", ()) for one in kind.__mro__]
        names = [name for slots in found for name in ((slots,) if isinstance(slots, str) else slots)]
        return self.setdefault(kind, [name for name in names if not name.startswith("__")])


_is_sized, _slots = _IsSized(), _Slots()


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
        _check_none(who, "sockets are left", len(app._sockets._open))
        _check_none(who, "heartbeats are left", len(app.heartbeats))
    if not hub.is_running:
        return
    runtime = hub.runtime
    for name in ("channels", "feeds", "writers", "waiting", "members", "turns_running", "turns_waiting"):
        _check_none(who, f"{name} are left", hub.stats()[name])
    _check_none(who, "channels have parked items", len(runtime.committer._parked))
    _check_none(who, "bytes wait", runtime.committer._waiting_bytes)
    _check_none(who, "commits are unclear", len(runtime.committer._in_doubt))
    _check_none(who, "ticks are due", len(runtime.ticks._due))


def _check_none(who: str, what: str, count: int) -> None:
    if count:
        raise Violation(f"{who}: {count} {what}, 0 at most")
