"""Events: what a transport tells a client (`docs/protocol.md`, 3).

Layer: core.

The one definition of what clients receive, on every transport. Field names are for ever.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from holdfast.core.model import Command, Json, Member, Message, Part


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Base of all events; `type` stands in every one of them."""


class Presence(Struct, frozen=True, kw_only=True):
    """Who is here, as `channel.attached` tells it: at most 100 members, and how many there are."""

    members: list[Member]
    count: int


class ChannelAttached(Event, frozen=True, kw_only=True, tag="channel.attached"):
    """The start of a view, or, when `resumed`, its continuation."""

    channel: str
    epoch: str
    serial: int
    resumed: bool
    more: bool | None = None  # are there older messages? on a new start only
    before: int | None = None  # page back from here; on a new start only
    presence: Presence | None = None
    commands: list[Command] = []


class MessageCreate(Event, frozen=True, kw_only=True, tag="message.create"):
    """A message that was not there; whole, as it is at the end of its batch."""

    serial: int
    message: Message


class MessageUpdate(Event, frozen=True, kw_only=True, tag="message.update"):
    """A message, whole; `serial` is the version it holds."""

    serial: int
    message: Message


class MessageAppend(Event, frozen=True, kw_only=True, tag="message.append"):
    """More text for a part that has `at` code points."""

    serial: int
    id: str
    part: int
    at: int
    text: str


class MessagePart(Event, frozen=True, kw_only=True, tag="message.part"):
    """A part opened, or its new value."""

    serial: int
    id: str
    index: int
    updated_at: int
    part: Part


class MessageFinish(Event, frozen=True, kw_only=True, tag="message.finish"):
    """The end of a message's writing, with the meta it ended with."""

    serial: int
    id: str
    status: str
    reason: str | None = None
    meta: dict[str, Json] = {}
    updated_at: int


class MessageTakeover(Event, frozen=True, kw_only=True, tag="message.takeover"):
    """The message streams again."""

    serial: int
    id: str


class MessageDelete(Event, frozen=True, kw_only=True, tag="message.delete"):
    """The message is gone."""

    serial: int
    id: str


class CommandSent(Event, frozen=True, kw_only=True, tag="command"):
    """Somebody asks whoever can act for something."""

    serial: int
    command: Command


class CommandReply(Event, frozen=True, kw_only=True, tag="command.reply"):
    """The one answer to a command."""

    serial: int
    id: str
    ok: bool
    data: Json = None
    error: Json = None
    from_: str | None = msgspec.field(name="from", default=None)


class PresenceEnter(Event, frozen=True, kw_only=True, tag="presence.enter"):
    """Somebody is here."""

    member: Member


class PresenceUpdate(Event, frozen=True, kw_only=True, tag="presence.update"):
    """Somebody who is here is so now."""

    member: Member


class PresenceLeave(Event, frozen=True, kw_only=True, tag="presence.leave"):
    """Somebody has left."""

    id: str


class PresenceSync(Event, frozen=True, kw_only=True, tag="presence.sync"):
    """Who is here: at most 100 members, and how many there are. Replaces what was known."""

    members: list[Member]
    count: int | None = None  # where not all are named


class Signal(Event, frozen=True, kw_only=True, tag="signal"):
    """Something for those who are here now; never stored, and lost where a reader is slow."""

    name: str
    data: Json = None
    from_: str | None = msgspec.field(name="from", default=None)


MessageEvent = (
    MessageCreate | MessageUpdate | MessageAppend | MessagePart | MessageFinish | MessageTakeover | MessageDelete
)
CommandEvent = CommandSent | CommandReply
PresenceEvent = PresenceEnter | PresenceUpdate | PresenceLeave | PresenceSync
StoredEvent = MessageEvent | CommandEvent
EphemeralEvent = PresenceEvent | Signal  # not in the log; their batches carry no cursor
ServerEvent = ChannelAttached | StoredEvent | EphemeralEvent


class Batch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Events that belong together; only a batch with a cursor is complete."""

    events: list[ServerEvent]
    cursor: str | None = None


class Page(Struct, frozen=True, kw_only=True):
    """A page of history, newest first; attach from `cursor` without a gap."""

    messages: list[Message]
    more: bool
    cursor: str


encode_json = msgspec.json.Encoder().encode
decode_event = msgspec.json.Decoder(ServerEvent).decode


def known_events(events: list[Any]) -> list[ServerEvent]:
    """The events of a decoded frame whose type is known here; others are ignored, as the protocol asks."""
    known = []
    for event in events:
        try:
            known.append(msgspec.convert(event, ServerEvent))
        except msgspec.ValidationError:
            continue
    return known
