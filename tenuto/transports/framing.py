"""Framers: the deltas of one message as the bytes of a wire format, and the cursor that lets a reader resume.

Layer: transports.

`core.deltas` computes the news for a reader; a framer determines how it looks on the wire. A new wire format is a new
class with the method of `Framer`. The bytes of the two formats here are public (`docs/protocol.md`, 5.3;
`docs/agents.md`).

The id of an event is a cursor of the channel with a field of ours: how much of each part the reader was sent
(`m0.12.340`: it has 12 code points of part 0 and 340 of part 1; with `d` instead of `m` it was sent the end, too).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from tenuto.core.deltas import (
    ALL_SENT,
    COUNTED,
    Delta,
    MessageReplaced,
    PartOpened,
    PartReplaced,
    Sent,
    TextAdded,
)
from tenuto.core.errors import LocalError, shown
from tenuto.core.events import Cursor, encode_json
from tenuto.core.model import Part
from tenuto.hub.access.tickets import split_seal

_SENT = re.compile(r"([md])([0-9]{1,3})((?:\.[0-9]{1,8})*)\Z")
# limit of the field about the sent text: a cursor's extra field has 300 characters, and a ticket's seal or an answer's
# name may need some of them
_SENT_CHARACTERS = 255


class Position(NamedTuple):
    """A reader's position after a frame: the channel's cursor, a seal or name, and the length of the sent text."""

    cursor: str
    seal: str
    sent: Sent

    def id(self, *, is_finished: bool) -> str:
        """Return the id of an event: a cursor from which `sent_by` reads the position.

        `is_finished`: the frame is the last.
        """
        return f"{self.cursor}:{self.seal}{sent_field(self.sent.lengths, is_finished=is_finished)}"


class Framer(Protocol):
    """Turns deltas into the bytes of one wire format. An instance belongs to one reader."""

    def frame(self, deltas: Sequence[Delta], status: str | None, position: Position) -> bytes:
        """Return the bytes for `deltas`; they may be empty. `status` is the final status once the message has ended."""


class NamedEvents:
    """The format of Server-Sent Events named `thinking`, `answer` and `done` (`docs/protocol.md`, 5.3)."""

    def frame(self, deltas: Sequence[Delta], status: str | None, position: Position) -> bytes:
        """Return the bytes for `deltas` (`Framer.frame`).

        Only the last event has an id, because the id covers all of them.
        """
        events = [b"event: " + _EVENTS[kind] + b"\ndata: " + encode_json(text) for kind, text in added_texts(deltas)]
        if status is not None:
            events.append(b"event: done\ndata: " + encode_json(_Done(status)))
        if not events:
            return b""
        id = position.id(is_finished=position.sent.is_finished)
        return b"\n\n".join(events) + b"\nid: " + id.encode() + b"\n\n"


class PlainData:
    """The format of unnamed Server-Sent Events with the text of the answer, and `[DONE]` at the end."""

    def __init__(self, *, has_ids: bool) -> None:
        self._has_ids = has_ids  # False: leave out the ids, which only an EventSource uses

    def frame(self, deltas: Sequence[Delta], status: str | None, position: Position) -> bytes:
        """Return the bytes for `deltas` (`Framer.frame`).

        The text and the end have separate ids, because the connection may break between them.
        """
        events: list[str] = []
        text = "".join(text for kind, text in added_texts(deltas) if kind == "text")
        if text:
            events.append(_data(text) + self._id(position, is_finished=False))
        if status not in ("complete", None):
            # An extra event for clients that listen for it; to other clients it is an empty piece of text.
            events.append(f"event: {status}\ndata: \n")
        if status is not None:
            events.append("data: [DONE]\n" + self._id(position, is_finished=True))
        return "".join(f"{event}\n" for event in events).encode()

    def _id(self, position: Position, *, is_finished: bool) -> str:
        return f"id: {position.id(is_finished=is_finished)}\n" if self._has_ids else ""


class OwnFrames:
    """The format of an app's existing endpoint: `make_frame(text)` for the answer's text, `end_frame` at its end."""

    def __init__(self, make_frame: Callable[[str], str | bytes], end_frame: EndFrame | None, *, has_ids: bool) -> None:
        self._make_frame = make_frame
        self._end_frame = end_frame
        self._has_ids = has_ids  # False: leave out the ids, which only an EventSource uses

    def frame(self, deltas: Sequence[Delta], status: str | None, position: Position) -> bytes:
        """Return the bytes for `deltas` (`Framer.frame`).

        If the reader is slower than the model, several pieces of text come as one.
        """
        frames: list[bytes] = []
        text = "".join(text for kind, text in added_texts(deltas) if kind == "text")
        if text:
            frames.append(self._with_id(_bytes_of(self._make_frame(text), "style"), position, is_finished=False))
        if status is not None:
            frames.append(self._with_id(self._end(status), position, is_finished=True))
        return b"".join(frames)

    def _end(self, status: str) -> bytes:
        if callable(self._end_frame):
            return _bytes_of(self._end_frame(status), "end_frame")
        return _bytes_of(self._end_frame, "end_frame") if self._end_frame is not None and status == "complete" else b""

    def _with_id(self, frame: bytes, position: Position, *, is_finished: bool) -> bytes:
        """Return `frame` with an id from which an EventSource can resume.

        The field `id` alone does not make an event; it changes the position only.
        """
        if not self._has_ids or not (frame.endswith(b"\n\n") or (is_finished and not frame)):
            return frame
        return frame.removesuffix(b"\n") + b"id: " + position.id(is_finished=is_finished).encode() + b"\n\n"


EndFrame = str | bytes | Callable[[str], str | bytes]


def _bytes_of(frame: object, option: str) -> bytes:
    if isinstance(frame, str):
        return frame.encode()
    if isinstance(frame, bytes):
        return frame
    raise LocalError(
        f"{option} of stream_response must return a frame as str or bytes, got {shown(frame)}; return a str from the "
        "function, with `return`"
    )


_EVENTS = {"text": b"answer", "reasoning": b"thinking"}


class _Done(Struct):
    status: str


def added_texts(deltas: Sequence[Delta]) -> Iterator[tuple[str, str]]:
    """Yield part type and new text, for formats whose readers only append text.

    Of a replaced text only the end is sent, from the length that the reader has, because the reader cannot remove text.
    """
    for delta in deltas:
        match delta:
            case TextAdded(kind=kind, text=text) if kind in COUNTED:
                yield kind, text
            case PartOpened(part=part, sent=sent) | PartReplaced(part=part, sent=sent):
                yield from _rest(part, sent)
            case MessageReplaced(message=message, sent=lengths):
                for index, part in enumerate(message.parts):
                    yield from _rest(part, lengths[index] if index < len(lengths) else 0)


def _rest(part: Part, sent: int) -> Iterator[tuple[str, str]]:
    kind = part["type"]
    if kind in COUNTED and (rest := part["text"][sent:]):
        yield kind, rest


def _data(text: str) -> str:
    """Return `text` as the data of one event: SSE requires one `data` field per line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(f"data: {line}\n" for line in lines)


def sent_field(lengths: Sequence[int], *, is_finished: bool) -> str:
    """Return the cursor's extra field for `lengths`; if there is not enough room, only for the last parts."""
    pieces: list[str] = []
    room = _SENT_CHARACTERS
    for length in reversed(lengths):
        piece = f".{length}"
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    first = len(lengths) - len(pieces)
    return f"{'d' if is_finished else 'm'}{first}" + "".join(reversed(pieces))


def sent_by(cursor: Cursor | None) -> Sent:
    """Return how much text the reader with `cursor` was sent; none for a cursor of another kind of stream."""
    found = _SENT.match(split_seal(cursor.extra)[1]) if cursor is not None else None
    if found is None:
        return Sent()
    kind, first, lengths = found.groups()
    # The parts before `first` did not fit into the cursor. They no longer grow.
    whole = [ALL_SENT] * int(first)
    return Sent([*whole, *(int(length) for length in lengths.split(".")[1:])], kind == "d")
