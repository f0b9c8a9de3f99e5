"""Streams of text: plain text, and server-sent events that hold text. Layer: sources."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping

from tenuto.core.errors import LocalError, shown
from tenuto.sources.reading import Add, Edit, Source, codes_of, get, malformed, reported

# the beginning of a first item: a field of a server-sent event, or a complete comment
_BEGIN = re.compile(r"(?:data|event|id|retry):|:[^\n]*\n")
_FRAME = re.compile(r"(?:(?:data|event|id|retry)?:[^\n]*\n)+\r?\n")
_LINE = re.compile(r"(?::.*|(data|event|id|retry)(?:: ?(.*))?)", re.DOTALL)
_FIELDS = frozenset(("data", "raw_data", "event", "id", "retry", "comment", "sep"))
_TEXT_EVENTS = frozenset(("", "message", "token", "delta", "text", "answer", "chunk", "content"))
_REASONING_EVENTS = frozenset(("thinking", "reasoning"))
_END_EVENTS = frozenset(("done", "end"))
_IDLE_EVENTS = frozenset(("ping", "heartbeat"))
_FRAME_LIMIT = 8 * 1024 * 1024  # limit of one frame in characters: the limit of a message
_SHOWN_KEYS = 8
REMEDY = "yield the text itself, and let style= of stream_response make the frames"
_NO_JSON = object()


class NotAFrame(Exception):
    """A line is not a field of a server-sent event."""


class FrameReader:
    """Splits items of text into frames. An item may be cut anywhere, or be a line without its line end."""

    def __init__(self) -> None:
        self.has_frame = False  # True: a whole frame has come
        self._first: list[str] | None = []  # the items so far, until it is known whether they are lines
        self._line_end = ""  # the line end to add to each item
        self._rest = ""  # received text of an incomplete line
        self._event = ""  # name of the event of the incomplete frame
        self._data: list[str] = []  # lines of its data
        self._size = 0  # characters of the incomplete frame; 0: no frame has begun

    def read(self, item: str) -> Iterator[tuple[str, str | None]]:
        """Yield the event name and the data of each complete frame.

        Raises NotAFrame; UpstreamError for a frame over the limit.
        """
        if self._first is None:
            text = item + self._line_end
        else:
            self._first.append(item)
            if len(self._first) > 1 and "\n" not in item and (not item or _BEGIN.match(item)):
                self._line_end = "\n"  # the items are lines without line ends, as from `aiter_lines`
            elif "\n" not in item and len(item) <= _FRAME_LIMIT:
                return
            text = "".join(one + self._line_end for one in self._first)
            self._first = None
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            yield from self._take_line(line.removesuffix("\r"))
        if self._size + len(self._rest) > _FRAME_LIMIT:
            raise malformed(f"a frame is longer than {_FRAME_LIMIT} characters")

    def end(self) -> Iterator[tuple[str, str | None]]:
        """Yield the last frame if no blank line follows it."""
        rest = self._rest if self._first is None else "".join(self._first)
        for line in (rest, ""):
            yield from self._take_line(line.removesuffix("\r"))

    def _take_line(self, line: str) -> Iterator[tuple[str, str | None]]:
        if not line:  # it ends a frame
            if self._size:
                event, data = self._event, "\n".join(self._data) if self._data else None
                self._event, self._data, self._size = "", [], 0
                self.has_frame = True
                yield event, data
            return
        field = _LINE.fullmatch(line)
        if field is None:
            raise NotAFrame
        self._size += len(line)
        name, value = field[1], field[2] or ""
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value


class SSEText(Source):
    """Server-sent events that hold text: the frames of an existing endpoint, as text, bytes, lines or dicts.

    | frame | becomes |
    |---|---|
    | `data:` with a JSON string | that string: text of one text part |
    | `data:` with a JSON object | the text in the field of `text_field=`, if any; without `text_field=` a failure |
    | `data:` with other text, if the first frame holds no JSON | that text |
    | `data: [DONE]`, an event `done` or `end` | the end; later frames are ignored |
    | an event `thinking` or `reasoning` | reasoning |
    | an event `error`, an object with `error` in place of the text | UpstreamError |
    | an event `ping` or `heartbeat`, a comment, `id:`, `retry:` | ignored |
    | any other named event | LocalError, which names the remedy |
    | a line that is not a field, before the first whole frame | the stream is plain text, from its beginning |
    | the end of the iterator | the end: an iterator that fails must raise |
    """

    name = "sse"
    is_of_sdk = False

    def __init__(self, text_field: str | None = None, *, is_certain: bool = True, option: str = "source") -> None:
        """Read frames; `option` is the name of the caller's option for the kind of the stream."""
        self._option = option
        self._path = text_field.split(".") if text_field else None
        self._reader = FrameReader()
        # the items until the first complete frame; None: certain that these are frames
        self._before: list[str] | None = None if is_certain else []
        self._is_text = False  # True: the items were plain text after all
        self._is_json: bool | None = None  # whether the data of the first frame is JSON; None: not known yet
        self._keys = ""  # the keys of the first object that has no text, for the error message
        self._has_text = False  # True: an event had text
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def take(self, event: object) -> Iterator[Edit]:
        if isinstance(event, bytes | bytearray | memoryview):
            event = self._decode(bytes(event))
        if self._is_text:
            yield Add("text", self._checked(event))
        elif isinstance(event, str):
            # a piece of a line shows no life, unless it may be plain text; `_frame` notes that of a whole frame
            self.is_alive = not self._reader.has_frame and "\n" not in event
            if self._before is not None:
                self._before.append(event)
            yield from self._frames(self._reader.read(event))
        elif is_frame_object(event):
            self._before, self.is_alive = None, False
            raw = get(event, "raw_data")
            yield from self._frame(str(get(event, "event") or ""), get(event, "data") if raw is None else raw)
        else:
            self._checked(event)  # raises

    def end(self) -> Iterator[Edit]:
        if self._is_text:
            return
        if self._before is not None:
            yield Add("text", "".join(self._before))  # no whole frame came, so it was text
            return
        yield from self._frames(self._reader.end())
        if self._keys and not self._has_text:
            raise LocalError(
                f"text_field {self._shown_path()} is in no object of the stream, the first of which has the keys "
                f"{self._keys}; name the key that holds the text"
            )

    def _checked(self, event: object) -> str:
        if not isinstance(event, str):
            raise malformed(f"an iterator of server-sent events yielded a value of type {type(event).__name__}")
        return event

    def _frames(self, frames: Iterator[tuple[str, str | None]]) -> Iterator[Edit]:
        try:
            for event, data in frames:
                self._before = None
                yield from self._frame(event, data)
        except NotAFrame:
            if self._before is None:
                raise malformed(
                    "a line of the stream is not a field of a server-sent event such as `data:`; for plain text pass "
                    f"{self._option}='text'"
                ) from None
            self._is_text = self.is_alive = True
            yield Add("text", "".join(self._before))

    def _frame(self, event: str, data: object) -> Iterator[Edit]:
        if self._is_ended or event in _IDLE_EVENTS:
            return
        self.is_alive = self.is_alive or data is not None
        if event in _END_EVENTS or data == "[DONE]":
            self._is_ended = True
        elif event == "error":
            raise reported(*codes_of(_decoded(data) if isinstance(data, str) else data))
        elif data is None:
            return
        elif event in _REASONING_EVENTS:
            yield Add("reasoning", self._text_of(data), "reasoning")
        elif event in _TEXT_EVENTS:
            yield Add("text", self._text_of(data))
        else:
            raise LocalError(
                f"server-sent event has the name {shown(event)}, which is not known to hold text; {REMEDY}"
            )

    def _text_of(self, data: object) -> str:
        value = _decoded(data) if isinstance(data, str) else data
        if self._is_json is None:
            self._is_json = isinstance(value, str | Mapping)
        if not self._is_json and isinstance(data, str):  # then what looks like JSON is text
            value = data
        if isinstance(value, Mapping):
            value = self._field_of(value)
        if not isinstance(value, str):
            raise malformed("the data of a server-sent event is neither a JSON string nor an object, as the first was")
        self._has_text = self._has_text or bool(value)
        return value

    def _field_of(self, value: Mapping[str, object]) -> str:
        """Return the text in the field `text_field`; "" if the object lacks it: another one may have it (`end`)."""
        found: object = value if self._path else None
        for name in self._path or ():
            found = _item(found, name)
        if isinstance(found, str):
            return found
        if found is not None:
            raise LocalError(
                f"text_field {self._shown_path()} must name a string, it names a value of type "
                f"{type(found).__name__}; name the field that holds the text"
            )
        if value.get("error") is not None:
            raise reported(*codes_of(value))
        self._keys = self._keys or ", ".join(shown(str(key)) for key in [*value][:_SHOWN_KEYS])
        if self._path is None:
            raise LocalError(
                f"server-sent event holds a JSON object with the keys {self._keys}; name the one that holds the text, "
                f"as in text_field={shown(_path_of_text(value) or 'text')}, or {REMEDY}"
            )
        return ""

    def _shown_path(self) -> str:
        return shown(".".join(self._path or ()))


def _path_of_text(value: object, depth: int = 4) -> str:
    """Return the path of the field of an object that most likely holds the text, such as `choices.0.delta.content`."""
    if isinstance(value, list):
        value = dict(enumerate(value[:1]))
    if not isinstance(value, Mapping) or not depth:
        return ""
    fields = [str(name) for name, held in value.items() if isinstance(held, str)]
    if found := [name for name in fields if name in _TEXT_EVENTS]:
        return found[0]
    inner = ((name, _path_of_text(held, depth - 1)) for name, held in value.items() if not isinstance(held, str))
    return next((f"{name}.{path}" for name, path in inner if path), fields[0] if fields and depth == 4 else "")


def begins_frames(item: str) -> bool:
    """Return whether a stream whose first item is `item` may be one of server-sent events."""
    return _BEGIN.match(item) is not None


def is_whole_frame(item: str) -> bool:
    """Return whether `item` begins with a server-sent event that has data, and ends with the end of one."""
    if not item.endswith(("\n\n", "\r\n\r\n")):
        return False
    frame = _FRAME.match(item)
    return frame is not None and "\ndata:" in f"\n{frame[0]}"


def is_frame_object(event: object) -> bool:
    """Return whether `event` is a frame in a form that other packages use: a dict, or a `ServerSentEvent`."""
    if isinstance(event, Mapping):
        return "data" in event and event.keys() <= _FIELDS
    return type(event).__name__ == "ServerSentEvent"


def _decoded(data: str) -> object:
    """Return the string or object in `data` if it is JSON; `_NO_JSON` for other text."""
    if not data.startswith(("{", '"')):
        return _NO_JSON
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return _NO_JSON


def _item(value: object, name: str) -> object:
    """Return a field of an object, or an item of a list if `name` is a number."""
    if isinstance(value, list) and name.isdecimal():
        return value[int(name)] if int(name) < len(value) else None
    return get(value, name) if isinstance(value, Mapping) else None


class PlainText(Source):
    """Plain text: an (async) iterator of `str`.

    | item | becomes |
    |---|---|
    | a `str` | text of one text part |
    | a whole server-sent event, if the caller did not name the kind of the stream | LocalError with the remedy |
    | the end of the iterator | the end: an iterator that fails must raise |
    """

    name = "text"
    is_of_sdk = False
    _is_ended = True

    def __init__(self, unnamed: str | None = None) -> None:
        """Read text; `unnamed` is the name of the option for the kind of the stream, if the caller left it out."""
        self._unnamed = unnamed

    def take(self, event: object) -> Iterator[Edit]:
        if not isinstance(event, str):
            raise malformed(f"an iterator of text yielded a value of type {type(event).__name__}")
        if self._unnamed is not None and is_whole_frame(event):
            raise LocalError(
                f"the stream began with text, and a later item is a whole server-sent event; {REMEDY}, or pass "
                f"{self._unnamed}='text' to store such items as they are"
            )
        yield Add("text", event)
