"""Deltas: the progress of one message, as plain data that any wire format can be made of.

Layer: core.

A `MessageProgress` follows one message for one reader. It knows how much of each part the reader was sent, takes the
message as it is and then the channel's events, and yields the deltas that bring the reader up to date. A framer
(`transports.framing`) turns deltas into the bytes of its format. Folding the deltas again gives the message
(`tests/core/test_deltas.py`). New kinds of deltas are welcome: framers leave out the kinds that they do not know.

The progress holds lengths and no text, so a reader costs the same for every length of the message. It therefore cannot
tell a text that grew from a text that was replaced, nor a part from one of another type: a whole message that arrives
later is always `MessageReplaced`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.events import (
    ChannelAttached,
    MessageAppend,
    MessageCreate,
    MessageDelete,
    MessageFinish,
    MessagePart,
    MessageTakeover,
    MessageUpdate,
    ServerEvent,
)
from tenuto.core.model import APPENDABLE, Json, Message, Part

# Types of parts whose text grows by `TextAdded`. The input of a tool is sent again as a whole to a reader that resumes.
COUNTED = frozenset(("text", "reasoning"))
ALL_SENT = 2**53  # stands for the length of a part that the reader already has completely


class Sent(NamedTuple):
    """A reader's position in one message: the code points sent of each part, and whether the end was sent."""

    lengths: Sequence[int] = ()
    is_finished: bool = False


class MessageOpened(Struct, frozen=True):
    """The first delta for this reader: the message without its parts, which follow."""

    message: Message


class PartOpened(Struct, frozen=True):
    """A new part for the reader.

    `sent` is the number of code points that it has of a removed part with the same index.
    """

    index: int
    part: Part
    sent: int = 0


class TextAdded(Struct, frozen=True):
    """More text for a part of type `kind`; the reader has `at` code points of it."""

    index: int
    kind: str
    at: int
    text: str


class PartReplaced(Struct, frozen=True):
    """A new value of a part; the reader had `sent` code points of the old one."""

    index: int
    part: Part
    sent: int


class PartFinished(Struct, frozen=True):
    """The message has ended, so no more text comes for this part."""

    index: int


class MessageReplaced(Struct, frozen=True):
    """The whole message, which replaces all that was sent; `sent` has the code points sent of each earlier part."""

    message: Message
    sent: Sequence[int]


class MessageFinished(Struct, frozen=True):
    """The end of the message, with its final status and meta."""

    status: str
    reason: str | None
    meta: dict[str, Json]


class MessageContinued(Struct, frozen=True):
    """A message that had ended streams again, because another writer has taken it over."""


class MessageDeleted(Struct, frozen=True):
    """The message was deleted."""


Delta = (
    MessageOpened
    | PartOpened
    | TextAdded
    | PartReplaced
    | PartFinished
    | MessageReplaced
    | MessageFinished
    | MessageContinued
    | MessageDeleted
)


class MessageProgress:
    """The progress of one reader in one message. Call `begin` once, then `receive` for each batch; it does no I/O."""

    __slots__ = ("_id", "_inputs", "_kinds", "_lengths", "_was_finished", "is_broken", "status")

    def __init__(self, message_id: str, sent: Sent | None = None) -> None:
        self._id = message_id
        sent = sent or Sent()
        self._lengths = list(sent.lengths)  # this list never shrinks: the length of a removed part stays
        self._kinds: list[str] = []  # types of the parts that the message has now
        self._inputs: dict[int, int] = {}  # for each tool part the length of its input
        self._was_finished = sent.is_finished
        self.status: str | None = None  # final status of the message, or `deleted`; None while it streams
        self.is_broken = False  # True if events are missing, so that the reader has to begin again

    def sent(self) -> Sent:
        """Return the reader's position after the deltas that were returned last."""
        return Sent(self._lengths, self.status is not None)

    def begin(self, message: Message) -> list[Delta]:
        """Return the deltas that bring the reader to `message`."""
        before, known = self._was_finished, len(self._lengths)
        deltas: list[Delta] = []
        # the message has fewer parts than the reader was sent: a part was removed meanwhile
        if known > len(message.parts):
            deltas.append(self._replace(message))
        else:
            if not known:
                deltas.append(MessageOpened(replace(message, parts=[])))
            for index, part in enumerate(message.parts):
                deltas += self._continue(index, part) if index < known else self._open(index, part)
        return deltas + self._change_status(message, was_finished=before)

    def receive(self, events: Sequence[ServerEvent]) -> list[Delta]:
        """Return the deltas of a batch of the channel's events; events of other messages have none."""
        deltas: list[Delta] = []
        for event in events:
            match event:
                case MessageAppend() if event.id == self._id:
                    deltas += self.append(event)
                case MessagePart() if event.id == self._id:
                    deltas += self._put(event.index, event.part)
                case MessageCreate() | MessageUpdate() if event.message.id == self._id:
                    was_finished = self.status is not None
                    deltas.append(self._replace(event.message))
                    deltas += self._change_status(event.message, was_finished=was_finished)
                case MessageFinish() if event.id == self._id:
                    deltas += self._finish(event.status, event.reason, event.meta)
                case MessageTakeover() if event.id == self._id:
                    self.status = None
                    deltas.append(MessageContinued())
                case MessageDelete() if event.id == self._id:
                    self.status = "deleted"
                    deltas.append(MessageDeleted())
                case ChannelAttached():
                    self.is_broken = self.is_broken or not event.resumed
        return deltas

    def append(self, event: MessageAppend) -> list[Delta]:
        """Return the delta of an append to this message, if it has one. Hot path: `receive` without the other kinds."""
        index, at = event.part, event.at
        kind = self._kinds[index] if index < len(self._kinds) else None
        if kind is None or kind not in APPENDABLE:
            return []
        known = self._lengths[index] if kind in COUNTED else self._inputs[index]
        if at > known:
            self.is_broken = True
            return []
        text = event.text[known - at :]
        if not text:
            return []
        if kind in COUNTED:
            self._lengths[index] = known + len(text)
        else:
            self._inputs[index] = known + len(text)
        return [TextAdded(index, kind, known, text)]

    def _put(self, index: int, part: Part) -> list[Delta]:
        if index >= len(self._kinds):
            return self._open(index, part)
        sent = self._lengths[index]
        self._note(index, part)
        return [PartReplaced(index, part, sent)]

    def _open(self, index: int, part: Part) -> list[Delta]:
        sent = self._lengths[index] if index < len(self._lengths) else 0
        self._note(index, part)
        return [PartOpened(index, part, sent)]

    def _continue(self, index: int, part: Part) -> list[Delta]:
        """Return the delta with the rest of a part, for a reader that resumes and has the part's beginning."""
        kind, sent = part["type"], self._lengths[index]
        self._note(index, part)
        if kind in COUNTED and (sent == ALL_SENT or sent <= len(part["text"])):
            rest = part["text"][sent:]
            return [TextAdded(index, kind, sent, rest)] if rest else []
        return [PartReplaced(index, part, sent)]

    def _replace(self, message: Message) -> MessageReplaced:
        sent = tuple(self._lengths)
        del self._kinds[len(message.parts) :]
        for index, part in enumerate(message.parts):
            self._note(index, part)
        return MessageReplaced(message, sent)

    def _note(self, index: int, part: Part) -> None:
        """Record `part` as completely sent."""
        kind = part["type"]
        while len(self._kinds) <= index:
            self._kinds.append("")
        while len(self._lengths) <= index:
            self._lengths.append(0)
        self._kinds[index] = kind
        self._lengths[index] = len(part["text"]) if kind in COUNTED else 0
        if kind == "tool":
            self._inputs[index] = len(part.get("input", ""))

    def _change_status(self, message: Message, *, was_finished: bool) -> list[Delta]:
        if message.status != "streaming":
            return self._finish(message.status, message.reason, message.meta)
        self.status = None
        return [MessageContinued()] if was_finished else []

    def _finish(self, status: str, reason: str | None, meta: dict[str, Json]) -> list[Delta]:
        self.status = status
        finished = [PartFinished(index) for index, kind in enumerate(self._kinds) if kind in APPENDABLE]
        return [*finished, MessageFinished(status, reason, meta)]
