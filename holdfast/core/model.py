"""Messages, parts, members, commands: the nouns of the wire (`docs/protocol.md`, 2).

Layer: core.

These types are what clients see: field names are for ever, new optional fields are welcome.
A part is a plain dict with a `type`: sources, files and data carry whatever the app puts there, and everything
inside stands as given. `check_part` is the only way in.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from holdfast.core.errors import InvalidRequest, InvalidText, TooLarge
from holdfast.core.limits import Limits

Json = Any  # what JSON can say; free-form by design wherever this stands
Part = dict[str, Json]
Role = Literal["user", "assistant", "system", "tool"]
Status = Literal["streaming", "complete", "cancelled", "interrupted", "failed"]
ROLES = get_args(Role)
STATUSES = get_args(Status)

# The key that appended text goes to, by part type; other parts cannot be appended to.
APPENDABLE = {"text": "text", "reasoning": "text", "tool": "input"}


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What folding the operations of one id yields. `created` and `version` are serials, times are ms since 1970."""

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
        """The text of all text parts, joined."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")


class Member(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Someone who is here now: a person or an agent."""

    id: str
    kind: Literal["user", "agent"]
    data: dict[str, Json] = {}
    connections: int


class Command(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored request to whoever can act."""

    id: str
    name: str
    target: str | None = None
    data: Json = None
    from_: str | None = msgspec.field(name="from", default=None)
    expires_at: int


class _Text(Struct, tag_field="type", tag="text"):
    text: str = ""


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


def check_part(part: object, limits: Limits) -> Part:
    """Return `part` in the form that is stored; raises InvalidRequest, InvalidText or TooLarge."""
    if not isinstance(part, dict):
        raise InvalidRequest("a part is an object with a type")
    check_json(part, limits.message_bytes, "a part", depth=limits.depth)
    kind = part.get("type")
    if isinstance(kind, str) and kind in _FIXED:
        return _fixed_part(part, _FIXED[kind])
    if kind in _FREE:
        return plain(part)
    raise InvalidRequest("a part's type is one of text, reasoning, tool, source, file, data")


def _fixed_part(part: dict[str, Json], kind: type[Struct]) -> Part:
    try:
        known = msgspec.convert(part, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"part: {error}") from None
    fields = plain(known)
    if fields["type"] == "tool":
        fields.setdefault("input", "")  # appendable text always stands
    return fields


def check_text(text: str) -> str:
    """Return `text`; raises InvalidText if it holds half a surrogate pair."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidText("text holds a lone surrogate: hold it back and join it to the next piece") from None
    return text


def check_json(value: Json, limit_bytes: int, what: str, *, depth: int) -> int:
    """Return the size in bytes of `value` as JSON; raises InvalidRequest, InvalidText or TooLarge."""
    _check_shape(value, what, depth)
    try:
        size = len(msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, UnicodeEncodeError):
            raise InvalidText(f"{what} holds a lone surrogate") from None
        raise InvalidRequest(f"{what} is not JSON: {error}") from None
    if size > limit_bytes:
        raise TooLarge(f"{what} has {size} bytes, the limit is {limit_bytes}", limit=limit_bytes)
    return size


def plain(value: Struct | dict[str, Json]) -> dict[str, Json]:
    """A deep copy in JSON's own types: what an app does to its objects later must not reach the log."""
    copy: dict[str, Json] = msgspec.to_builtins(value)
    return copy


def _check_shape(value: Json, what: str, depth: int) -> None:
    """Refuse what JSON, or a browser reading it, could not carry: deep nesting, non-finite and huge numbers."""
    if depth < 0:
        raise InvalidRequest(f"{what} is nested too deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InvalidRequest(f"{what} has a key that is not text")
            _check_shape(inner, what, depth - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_shape(inner, what, depth - 1)
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise InvalidRequest(f"{what} has a number that is not finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidRequest(f"{what} has an integer beyond 64 bits")
