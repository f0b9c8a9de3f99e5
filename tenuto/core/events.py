"""Events and cursors: the messages that a transport sends to a client, and a client's position (`docs/protocol.md`, 3).

Layer: core.

This module is the one definition of events, on every transport. Field names never change.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from tenuto.core.model import Command, Json, Member, Message, Part

NO_EPOCH = "-"
MAX_SERIAL = 10**16 - 1
_PRESENCE = "@"
_FOLLOWING = re.compile(r"[^_]+_([^_]+)_([0-9]{1,16})\Z")
# At most 16 digits: browsers keep serials as doubles, exact up to 2**53, and we never wrote a higher one.
_FORM = re.compile(r"([A-Za-z0-9_-]{1,32}):(0|[1-9][0-9]{0,15})(?::([\x21-\x7e]{0,300}))?\Z")


class Cursor(NamedTuple):
    """The last entry that a client has seen: its `serial`, in the log's `epoch`."""

    epoch: str
    serial: int
    extra: str = ""  # further fields that a transport adds to its cursors

    def __str__(self) -> str:
        text = f"{self.epoch}:{self.serial}"
        return f"{text}:{self.extra}" if self.extra else text

    @property
    def presence(self) -> Cursor | None:
        """Return the client's position in the channel's presence; None if the cursor holds none, or an invalid one."""
        return parse_cursor(self.extra.partition(_PRESENCE)[2])

    def with_presence(self, position: Cursor) -> Cursor:
        """Return this cursor with `position` as the client's position in the channel's presence."""
        return self._replace(extra=f"{self.extra.partition(_PRESENCE)[0]}{_PRESENCE}{position}")


EMPTY = Cursor(NO_EPOCH, 0)


def kept_serial(epoch: str, current: str) -> int:
    """Return the highest serial of `epoch` that a log in the epoch `current` has; -1 if `current` follows another one.

    When a store goes on from an earlier state of itself, for example after a failover, another epoch follows each one:
    `name_former_serial`, its own name, that of the epoch before, and the last serial of it that is left.
    """
    if epoch == current:
        return MAX_SERIAL
    found, known = _FOLLOWING.match(current), _FOLLOWING.match(epoch)
    if found is None:
        return -1
    if known is not None and known[1] == found[1]:  # both follow it: an epoch is stored with its first entry
        return min(int(known[2]), int(found[2]))
    return int(found[2]) if found[1] == epoch.partition("_")[0] else -1


def parse_cursor(text: str | None) -> Cursor | None:
    """Return the cursor in `text`, or None: an invalid cursor counts as no cursor and is never an error."""
    found = _FORM.match(text) if text else None
    if not found:
        return None
    epoch, serial, extra = found.groups()
    return Cursor(epoch, int(serial), extra or "")


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Base of all events; each has the field `type`."""


class Presence(Struct, frozen=True, kw_only=True):
    """The members in `channel.attached`: at most 100 of them, and the number of all."""

    members: list[Member]
    count: int


class ChannelAttached(Event, frozen=True, kw_only=True, tag="channel.attached"):
    """The start of a view or, if `resumed` is true, its continuation."""

    channel: str
    epoch: str
    serial: int
    resumed: bool
    more: bool | None = None  # whether older messages exist; set on a new start only
    before: int | None = None  # cursor from which to request older messages; set on a new start only
    presence: Presence | None = None
    commands: list[Command] = []


class MessageCreate(Event, frozen=True, kw_only=True, tag="message.create"):
    """A new message, with all changes that it has had by the end of the batch."""

    serial: int
    message: Message


class MessageUpdate(Event, frozen=True, kw_only=True, tag="message.update"):
    """A whole message that replaces the earlier one; `serial` is its version."""

    serial: int
    message: Message


class MessageAppend(Event, frozen=True, kw_only=True, tag="message.append"):
    """More text for a part that has `at` code points so far."""

    serial: int
    id: str
    part: int
    at: int
    text: str


class MessagePart(Event, frozen=True, kw_only=True, tag="message.part"):
    """A new part, or the new value of a part."""

    serial: int
    id: str
    index: int
    updated_at: int
    part: Part


class MessageFinish(Event, frozen=True, kw_only=True, tag="message.finish"):
    """The end of a message's stream, with its final status and meta."""

    serial: int
    id: str
    status: str
    reason: str | None = None
    meta: dict[str, Json] = {}
    updated_at: int


class MessageTakeover(Event, frozen=True, kw_only=True, tag="message.takeover"):
    """A message that had ended streams again."""

    serial: int
    id: str


class MessageDelete(Event, frozen=True, kw_only=True, tag="message.delete"):
    """The message was deleted."""

    serial: int
    id: str


class CommandSent(Event, frozen=True, kw_only=True, tag="command"):
    """A command was sent to the workers and writers of the channel."""

    serial: int
    command: Command


class CommandReply(Event, frozen=True, kw_only=True, tag="command.reply"):
    """The one reply to a command."""

    serial: int
    id: str
    ok: bool
    data: Json = None
    error: Json = None
    from_: str | None = msgspec.field(name="from", default=None)


class PresenceEnter(Event, frozen=True, kw_only=True, tag="presence.enter"):
    """A member entered the channel."""

    member: Member


class PresenceUpdate(Event, frozen=True, kw_only=True, tag="presence.update"):
    """A present member changed its data."""

    member: Member


class PresenceLeave(Event, frozen=True, kw_only=True, tag="presence.leave"):
    """A member left the channel."""

    id: str


class PresenceSync(Event, frozen=True, kw_only=True, tag="presence.sync"):
    """The members now: at most 100 of them, and the number of all. They replace the members known before."""

    members: list[Member]
    count: int | None = None  # number of all members; set if `members` does not list all


class Signal(Event, frozen=True, kw_only=True, tag="signal"):
    """A signal to the present viewers; never stored, and dropped if a reader is slow."""

    name: str
    data: Json = None
    from_: str | None = msgspec.field(name="from", default=None)


MessageEvent = (
    MessageCreate | MessageUpdate | MessageAppend | MessagePart | MessageFinish | MessageTakeover | MessageDelete
)
CommandEvent = CommandSent | CommandReply
PresenceEvent = PresenceEnter | PresenceUpdate | PresenceLeave | PresenceSync
StoredEvent = MessageEvent | CommandEvent
EphemeralEvent = PresenceEvent | Signal  # these events are not stored in the log, so their batches carry no cursor
ServerEvent = ChannelAttached | StoredEvent | EphemeralEvent


class Batch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Events that belong together. The batch is complete only if it has a cursor."""

    events: list[ServerEvent]
    cursor: str | None = None


class Page(Struct, frozen=True, kw_only=True):
    """A page of history, newest message first. A client that attaches from `cursor` misses no event after the page."""

    messages: list[Message]
    more: bool
    cursor: str


encode_json = msgspec.json.Encoder().encode


def known_events(events: list[Any]) -> list[ServerEvent]:
    """Return the events of a decoded frame whose type is known here; the protocol requires clients to ignore others."""
    known: list[ServerEvent] = []
    for event in events:
        try:  # in a batch: msgspec prepares a type that is no Struct again for each conversion, which takes far longer
            known += msgspec.convert({"events": [event]}, Batch).events
        except msgspec.ValidationError:
            continue
    return known
