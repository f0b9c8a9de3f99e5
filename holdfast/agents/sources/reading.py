"""Reading what a provider sent without trusting it: fields may be missing, of another type, or huge.

Layer: agents.sources.

SDKs build their objects without validation, so a field holds whatever the JSON held.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from enum import Enum

import msgspec

from holdfast.agents.sources.errors import malformed
from holdfast.core.model import Json

WORD_CHARACTERS = 512  # of a name, an id, a model, a reason; URLs and titles are longer
LINE_CHARACTERS = 4096
_INTEGERS = 2**63


def get(thing: object, name: str) -> object:
    """A field of an SDK's object or of a plain dict; None when there is none."""
    if isinstance(thing, Mapping):
        return thing.get(name)
    return getattr(thing, name, None)


def text(thing: object, name: str) -> str:
    """A field of text, "" when there is none. Raises UpstreamError when it is something else."""
    value = get(thing, name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise malformed(f"a {name} that is no text")
    return value


def word(thing: object, name: str, limit: int = WORD_CHARACTERS) -> str | None:
    """A short field of text, cut if it is not; None when there is none or it is something else."""
    value = get(thing, name)
    if isinstance(value, Enum):
        value = value.value
    return whole(value[:limit]) if isinstance(value, str) and value else None


def needed(thing: object, name: str) -> str:
    """A short field that must be there. Raises UpstreamError."""
    found = word(thing, name)
    if found is None:
        raise malformed(f"a {name} is missing")
    return found


def items(thing: object, name: str) -> Iterator[object]:
    """The items of a field that is a list; none when it is anything else."""
    value = get(thing, name)
    if isinstance(value, list | tuple):
        yield from value


def index(thing: object, name: str) -> int:
    """A field that numbers something, 0 when there is none. Raises UpstreamError when it is no number."""
    value = get(thing, name)
    if value is None:
        return 0
    if not isinstance(value, int):
        raise malformed(f"an {name} that is no number")
    return value


def counts(thing: object, names: Mapping[str, str]) -> dict[str, int] | None:
    """Usage: our names for the numbers found under theirs (`a.b` is a field of a field); None when there are none."""
    found: dict[str, int] = {}
    for ours, theirs in names.items():
        value: object = thing
        for name in theirs.split("."):
            value = get(value, name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _INTEGERS // 2:
            found[ours] = value
    return found or None


def whole(value: str) -> str:
    """`value` with its surrogate pairs joined; halves become U+FFFD."""
    if value.isascii():
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def plain(value: object) -> Json:
    """`value` as JSON can say it: objects of SDKs and of apps by their fields, else by `str`. Raises UpstreamError."""
    try:
        return _sayable(msgspec.to_builtins(value, str_keys=True, enc_hook=_fields))
    except (RecursionError, ValueError, TypeError) as error:
        raise malformed("a value that JSON cannot say") from error


def as_json(value: object) -> str:
    """`value` as JSON text: the input of a tool whose provider sends it as an object."""
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))


def _fields(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", exclude_none=True, warnings=False) if callable(dump) else str(value)


def _sayable(value: Json) -> Json:
    match value:
        case str():
            return whole(value)
        case dict():
            return {whole(str(key)): _sayable(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_sayable(inner) for inner in value]
        case float() if not math.isfinite(value):
            return str(value)
        case int() if not -_INTEGERS <= value < _INTEGERS:
            return str(value)
    return value
