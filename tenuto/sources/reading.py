"""Reads a provider's data without trusting it: fields may be missing, of another type, or huge.

Layer: sources.

SDKs build their objects without validation, so a field may hold any JSON value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from enum import Enum

import msgspec

from tenuto.core.model import Json
from tenuto.sources.errors import malformed

WORD_CHARACTERS = 512  # limit of a name, id, model or reason; URLs and titles may be longer
LINE_CHARACTERS = 4096
_INTEGERS = 2**63


def get(thing: object, name: str) -> object:
    """Return a field of an SDK's object or of a plain dict; None if it is missing."""
    if isinstance(thing, Mapping):
        return thing.get(name)
    return getattr(thing, name, None)


def text(thing: object, name: str) -> str:
    """Return a field of text; "" if it is missing. Raises UpstreamError for another type."""
    value = get(thing, name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise malformed(f"field {name!r} must be text, got {type(value).__name__}")
    return value


def word(thing: object, name: str, limit: int = WORD_CHARACTERS) -> str | None:
    """Return a short field of text, cut to `limit`; None if it is missing or of another type."""
    value = get(thing, name)
    if isinstance(value, Enum):
        value = value.value
    return whole(value[:limit]) if isinstance(value, str) and value else None


def needed(thing: object, name: str) -> str:
    """Return a short field of text that is required. Raises UpstreamError if it is missing."""
    found = word(thing, name)
    if found is None:
        raise malformed(f"field {name!r} must be text, got {type(get(thing, name)).__name__}")
    return found


def items(thing: object, name: str) -> Iterator[object]:
    """Yield the items of a field that is a list; yield none if it has another type."""
    value = get(thing, name)
    if isinstance(value, list | tuple):
        yield from value


def index(thing: object, name: str) -> int:
    """Return a field that is an index; 0 if it is missing. Raises UpstreamError if it is not a number."""
    value = get(thing, name)
    if value is None:
        return 0
    if not isinstance(value, int):
        raise malformed(f"field {name!r} must be a number, got {type(value).__name__}")
    return value


def counts(thing: object, names: Mapping[str, str]) -> dict[str, int] | None:
    """Return the usage under Tenuto's names, read from the provider's; None if there is none.

    In a provider's name, `a.b` means the field `b` of the field `a`.
    """
    found: dict[str, int] = {}
    for ours, theirs in names.items():
        value: object = thing
        for name in theirs.split("."):
            value = get(value, name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _INTEGERS // 2:
            found[ours] = value
    return found or None


def whole(value: str) -> str:
    """Return `value` with its surrogate pairs joined; single halves become U+FFFD."""
    if value.isascii():
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def plain(value: object) -> Json:
    """Return `value` in JSON types: objects of SDKs and apps by their fields, else by `str`. Raises UpstreamError."""
    try:
        return _json_safe(msgspec.to_builtins(value, str_keys=True, enc_hook=_fields))
    except (RecursionError, ValueError, TypeError) as error:
        raise malformed(f"a value of type {type(value).__name__} is not JSON-serialisable") from error


def as_json(value: object) -> str:
    """Return `value` as JSON text: the input of a tool whose provider sends it as an object."""
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))


def _fields(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", exclude_none=True, warnings=False) if callable(dump) else str(value)


def _json_safe(value: Json) -> Json:
    match value:
        case str():
            return whole(value)
        case dict():
            return {whole(str(key)): _json_safe(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_json_safe(inner) for inner in value]
        case float() if not math.isfinite(value):
            return str(value)
        case int() if not -_INTEGERS <= value < _INTEGERS:
            return str(value)
    return value
