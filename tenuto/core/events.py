"""Events: the messages that a transport sends to a client (`docs/protocol.md`, 3).

Layer: core.

This module is the one definition of events, on every transport. Field names never change.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from tenuto.core.model import Command, Json, Member, Message, Part


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
decode_event = msgspec.json.Decoder(ServerEvent).decode


def known_events(events: list[Any]) -> list[ServerEvent]:
    """Return the events of a decoded frame whose type is known here; the protocol requires clients to ignore others."""
    known = []
    for event in events:
        try:
            known.append(msgspec.convert(event, ServerEvent))
        except msgspec.ValidationError:
            continue
    return known
