"""Messages, parts, members, commands: the nouns of the wire (`docs/protocol.md`, 2).

Layer: core.

Clients receive these types: field names never change, new optional fields are welcome.
A part is a plain dict with a `type`: sources, files and data carry the app's own fields, which are kept as given.
Each part passes `check_part` before it is stored.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tenuto.core.errors import InvalidRequest, InvalidText, TooLarge, shown
from tenuto.core.limits import Limits

Json = Any  # any JSON value; the places that use this type accept all of JSON on purpose
Part = dict[str, Json]
Role = Literal["user", "assistant", "system", "tool"]
Status = Literal["streaming", "complete", "cancelled", "interrupted", "failed"]
ROLES = get_args(Role)
STATUSES = get_args(Status)
OPTIONS = "options"  # role of a message that keeps a value beside the `meta` of others (`options`)
OPTIONS_MARK = "options-"  # the ids of these messages begin with it, and no others
# key of `meta` that clients can only repeat: the small values of `options`, and the ids of the messages with others
OPTIONS_KEY = "$options"
# name of the commands that keep the steps of a turn: only the attempt that has the turn sends, answers and gets them
STEP_NAME = "turn.step"

ATTEMPT = "attempt"  # type of a part with those that an earlier attempt at the answer wrote; `supersede` makes it
# Key of `meta` for the provider's responses that a later attempt can attach to; the end of the message removes it.
RESPONSES = "$responses"
# Key of `meta` for the streams that have ended, so that a later attempt does not ask the model for them again.
PIPED = "$piped"
# Key of `meta` for the indexes of parts of open or failed attempts, which the next writer's next attempt supersedes.
TRIED = "$attempt"
# Keys of `meta` that `pipe` and attempts write.
STREAMED = frozenset((RESPONSES, PIPED, TRIED, "model", "finish_reason", "usage"))

# The key that appended text goes to, by part type; other types accept no appended text.
APPENDABLE = {"text": "text", "reasoning": "text", "tool": "input"}


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of folding the operations of one id.

    `created` and `version` are serials; times are in ms since 1970.
    """

    id: str
    role: str
    author: str | None = None
    status: str
    reason: str | None = None
    parts: list[Part] = []
    meta: dict[str, Json] = {}
    parent: str | None = None
    reply_to: str | None = None
    created: int
    version: int
    created_at: int
    updated_at: int

    @property
    def text(self) -> str:
        """Return the text of all text parts, joined; that of superseded attempts does not count."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")


def app_meta(meta: dict[str, Json]) -> dict[str, Json]:
    """Return `meta` without the keys that are Tenuto's own."""
    return {name: value for name, value in meta.items() if name not in (OPTIONS_KEY, RESPONSES, PIPED, TRIED)}


class Member(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A member of a channel's presence: a person or an agent that is here now."""

    id: str
    kind: Literal["user", "agent"]
    data: dict[str, Json] = {}
    connections: int


class Command(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored request to the workers and writers of a channel."""

    id: str
    name: str
    target: str | None = None
    data: Json = None
    from_: str | None = msgspec.field(name="from", default=None)
    expires_at: int


class Approval(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The reply to the question about a tool call: the field `approval` of its part."""

    id: str
    approved: bool
    reason: str | None = None


class ChannelSummary(Struct, frozen=True, kw_only=True):
    """A channel in a list of channels. `messages` and `size_bytes` count the messages that are not deleted.

    Text that streams counts in `size_bytes` once it is in a document. `updated_ms` is the time of the last change apart
    from text.
    """

    channel: str
    created_ms: int
    updated_ms: int
    messages: int
    size_bytes: int


class _Text(Struct, tag_field="type", tag="text"):
    text: str = ""
    joins: list[int] | UnsetType = UNSET  # offsets at which the text broke off, and was continued


class _Reasoning(Struct, tag_field="type", tag="reasoning"):
    text: str = ""


class _Tool(Struct, tag_field="type", tag="tool", omit_defaults=True):
    call: str
    name: str
    input: str = ""
    output: Json = None
    state: str | None = None


class _Data(Struct, tag_field="type", tag="data"):
    name: str
    data: Json = None


_FIXED: dict[str, type[Struct]] = {"text": _Text, "reasoning": _Reasoning, "tool": _Tool, "data": _Data}
_FREE = ("source", "file")


MAX_REASON = 300  # limit of characters of a decoder's error that a response shows


def check_part(part: object, limits: Limits, most_bytes: int = 0) -> Part:
    """Return `part` in its stored form; raises InvalidRequest, InvalidText or TooLarge.

    `most_bytes`: the size of a larger value that has the part, if it was encoded as JSON; otherwise 0.
    """
    if not isinstance(part, dict):
        raise InvalidRequest(f"part must be an object with a type, got {shown(part)}")
    if 0 < most_bytes <= limits.message_bytes:
        _check_shape(part, "part", limits.depth, limits.depth)
    else:
        check_json(part, limits.message_bytes, "part", depth=limits.depth)
    kind = part.get("type")
    if isinstance(kind, str) and kind in _FIXED:
        return _fixed_part(part, _FIXED[kind])
    if kind in _FREE:
        return plain(part)
    if kind == ATTEMPT:
        raise InvalidRequest(
            "part type 'attempt' is made by the server only; supersede the parts of an attempt with an update that has "
            "`supersede`, the index of its first part"
        )
    raise InvalidRequest(
        f"part type must be 'text', 'reasoning', 'tool', 'source', 'file' or 'data', got {shown(kind)}"
    )


def _fixed_part(part: dict[str, Json], kind: type[Struct]) -> Part:
    try:
        known = msgspec.convert(part, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"part of type {shown(part['type'])} is invalid: {lowered(error)}") from None
    fields = plain(known)
    if fields["type"] == "tool":
        fields.setdefault("input", "")  # a part that accepts appends always has a text to append to
    return fields


def check_text(text: str) -> str:
    """Return `text`; raises InvalidText if it holds half a surrogate pair."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(f"the text holds {lone_surrogate(error)}") from None
    return text


def lone_surrogate(error: UnicodeEncodeError) -> str:
    """Return the sentence about the half of a surrogate pair that `error` found, with its remedy."""
    half = error.object[error.start : error.start + 1]
    return f"the lone surrogate {half!r} at offset {error.start}; hold it back and join it to the next piece"


def lowered(error: Exception) -> str:
    """Return the text of a msgspec error, to follow a colon: its first letter is made small, but not that of "JSON".

    The text may contain a value of the peer, whatever its size; its middle is left out.
    """
    text = str(error)
    if len(text) > MAX_REASON:
        text = f"{text[: MAX_REASON // 2]}...{text[-MAX_REASON // 2 :]}"
    return text if text[:2].isupper() else f"{text[:1].lower()}{text[1:]}"


def check_json(value: Json, limit_bytes: int, what: str, *, depth: int) -> int:
    """Return the size in bytes of `value` as JSON; raises InvalidRequest, InvalidText or TooLarge."""
    _check_shape(value, what, depth, depth)
    size = len(encoded(value, what))
    if size > limit_bytes:
        raise TooLarge(f"{what} has {size} bytes as JSON, the limit is {limit_bytes}; shorten it", limit=limit_bytes)
    return size


def encoded(value: Json, what: str, order: Literal["deterministic"] | None = None) -> bytes:
    """Return `value` as JSON; raises InvalidText or InvalidRequest, which call it `what`."""
    try:
        return msgspec.json.encode(value, order=order)
    except UnicodeEncodeError as error:
        raise InvalidText(f"{what} holds {lone_surrogate(error)}") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"{what} cannot be stored as JSON ({error}); send JSON, such as str(value)") from None


def plain(value: Struct | dict[str, Json]) -> dict[str, Json]:
    """Return a deep copy in JSON's own types, because an app may change its objects later, and the log must not."""
    copy: dict[str, Json] = msgspec.to_builtins(value)
    return copy


def _check_shape(value: Json, what: str, left: int, depth: int) -> None:
    """Raise InvalidRequest for values that JSON, or a browser, cannot carry: deep nesting, NaN, huge numbers.

    `left` of the `depth` levels that are allowed may follow.
    """
    if left < 0:
        raise InvalidRequest(f"{what} is nested deeper than {depth} levels, which is the limit; flatten it")
    if isinstance(value, dict | list | tuple):
        for inner in value:
            if isinstance(value, dict):
                if not isinstance(inner, str):
                    raise InvalidRequest(f"{what} has the key {shown(inner)}, but keys must be text")
                inner = value[inner]
            if type(inner) is not str or not left:  # of a text only the level is checked
                _check_shape(inner, what, left - 1, depth)
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise InvalidRequest(f"{what} has the number {value}, but numbers must be finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidRequest(
            f"{what} has an integer of {value.bit_length()} bits, the limit is 64 bits with the sign; send it as text"
        )
