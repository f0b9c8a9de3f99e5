"""Mutations of inputs: of JSON by its structure, of text and bytes by values that break parsers.

Layer: fuzz.

Every choice is drawn from the given `Random`, so a seed determines it. Targets pass words of their own; this module has
the values that are dangerous for every parser.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

Json = Any  # an input; free-form by design

NASTY_TEXTS = [
    *("", " ", "\x00", "\n", "\r\n\r\n", "a\nb", "\ud800", "\udc00", "\ud83d\ude00", "😀", "e\u0301", "\u2028"),
    *("\ufeff", "\xff\xfe", "..", ".", "/", "%2F", "%00", "+", "-:0", "-:1", "e:1", "null", "__proto__"),
    *("constructor", "0", "-1", "1e999", "NaN", "١", "x" * 65, "x" * 201, "x" * 2_500, "é" * 1_100, "{}", "[", '"'),
    *("\\", "\\ud800"),
]
NASTY_NUMBERS = [
    *(0, 1, -1, 2, 63, 64, 65, 255, 256, 999, 1000, 1001, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400),
    *(-(2**63) - 1, 0.5, 1.0, -0.0, 1e308, 5e-324),
]
NASTY_VALUES: list[Json] = [None, True, False, [], {}, [[]], [{}], {"": None}, {"type": []}, {"type": {}}]
MAX_TEXT = 20_000  # an input stays small enough to be read, and to be run often


def scalar(draw: Random, words: Sequence[Json]) -> Json:
    """Return a value for any position: mostly one of `words`."""
    kind = draw.random()
    if words and kind < 0.55:
        return draw.choice(words)
    if kind < 0.75:
        return draw.choice(NASTY_TEXTS)
    if kind < 0.9:
        return draw.choice(NASTY_NUMBERS)
    return copied(draw.choice(NASTY_VALUES))


def words_in(whole: Json) -> Iterator[Json]:
    """Yield each name, text and number in JSON, once."""
    seen: set[str] = set()
    for holder, key in positions([whole]):
        for word in (key, holder[key]) if isinstance(holder, dict) else (holder[key],):
            if not isinstance(word, list | dict) and (written := json.dumps(word)) not in seen:
                seen.add(written)
                yield word


def text(draw: Random, value: str, words: Sequence[Json] = ()) -> str:
    """Return `value`, changed at a few positions."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randint(0, len(value))
        until = min(len(value), at + draw.choice((0, 0, 1, 1, 2, 8)))
        match draw.randrange(8):
            case 0:
                piece = ""
            case 1:
                piece = draw.choice(NASTY_TEXTS)
            case 2:
                piece = chr(draw.randrange(256))
            case 3:
                piece = value[at:until] * draw.choice((2, 3, 50))
            case 4:
                known = [word for word in words if isinstance(word, str)] or NASTY_TEXTS
                piece = draw.choice(known)
            case 5:
                piece = chr(draw.choice((0x7F, 0x80, 0x7FF, 0xD800, 0xDFFF, 0xFFFF, 0x10FFFF)))
            case 6:
                piece = "".join(chr(ord(one) ^ (1 << draw.randrange(7))) for one in value[at:until])
            case _:
                piece = str(draw.choice(NASTY_NUMBERS))[:40]
        value = (value[:at] + piece + value[until:])[:MAX_TEXT]
    return value


def value(draw: Random, whole: Json, words: Sequence[Json]) -> Json:
    """Return a copy of `whole` with one change."""
    root = [copied(whole)]
    holder, key = draw.choice(positions(root))
    old = holder[key]
    choice = draw.random()
    if isinstance(old, str) and choice < 0.4:
        holder[key] = text(draw, old, words)
    elif isinstance(old, bool) or old is None:
        holder[key] = scalar(draw, words)
    elif isinstance(old, int) and choice < 0.5:
        holder[key] = old + draw.choice((-1, 1, 1, 2, 16, -(2**32), 2**53))
    elif isinstance(old, list) and choice < 0.75:
        _change_list(draw, old, words)
    elif isinstance(old, dict) and choice < 0.75:
        _change_dict(draw, old, words)
    elif choice < 0.8:
        holder[key] = _wrapped(draw, old)
    else:
        holder[key] = scalar(draw, words)
    return root[0]


def steps(
    draw: Random,
    old: Json,
    other: Json,
    new_step: Callable[[Random], Json],
    bounds: tuple[float, float, float],
    *,
    key: str = "steps",
    max_steps: int,
) -> tuple[Json, float | None]:
    """Return a copy of `old`, perhaps with one step inserted, taken from `other`, or removed, and the number drawn.

    Below each of `bounds` the number means one of the three, in this order. It is None if a step has changed;
    otherwise the caller makes a change of its own by the same number. An input without steps gets a new one.
    """
    new = copied(old)
    steps = new[key] = _dicts(new, key)[:max_steps]
    theirs = _dicts(other, key)
    number = draw.random()
    if not steps or number < bounds[0]:
        steps.insert(draw.randint(0, len(steps)), new_step(draw))
    elif number < bounds[1] and theirs:
        steps.insert(draw.randint(0, len(steps)), copied(draw.choice(theirs)))
    elif number < bounds[2]:
        steps.pop(draw.randrange(len(steps)))
    else:
        return new, number
    return new, None


def _dicts(whole: Json, key: str) -> list[dict[str, Json]]:
    items = whole.get(key) if isinstance(whole, dict) else None
    return [one for one in items if isinstance(one, dict)] if isinstance(items, list) else []


def _change_list(draw: Random, old: list[Json], words: Sequence[Json]) -> None:
    at = draw.randint(0, len(old))
    match draw.randrange(5):
        case 0 if old:
            del old[at % len(old)]
        case 1 if old:
            old.insert(at, copied(draw.choice(old)))
        case 2 if len(old) > 1:
            other = draw.randrange(len(old))
            here = at % len(old)
            old[here], old[other] = old[other], old[here]
        case 3 if old:
            old[at:at] = [copied(old[at % len(old)]) for _ in range(draw.choice((2, 5, 30)))]
        case _:
            old.insert(at, scalar(draw, words))


def _change_dict(draw: Random, old: dict[str, Json], words: Sequence[Json]) -> None:
    keys = list(old)
    names = [word for word in words if isinstance(word, str)] or ["x"]
    match draw.randrange(4):
        case 0 if keys:
            del old[draw.choice(keys)]
        case 1 if keys:
            old[draw.choice(names)] = copied(old[draw.choice(keys)])
        case 2 if keys:
            old[draw.choice(keys)] = scalar(draw, words)
        case _:
            old[draw.choice(names)] = scalar(draw, words)


def _wrapped(draw: Random, old: Json) -> Json:
    """Return `old`, nested: a few times, or far beyond every limit."""
    for _ in range(draw.choice((1, 1, 2, 7, 62, 63, 64, 65, 66))):
        old = [old] if draw.random() < 0.5 else {"x": old}
    return old


def positions(root: list[Json]) -> list[tuple[Any, Any]]:
    """Return every position in it: a list or dict, and the key in it."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        holder = waiting.pop()
        for key in range(len(holder)) if isinstance(holder, list) else list(holder):
            found.append((holder, key))
            if isinstance(holder[key], list | dict):
                waiting.append(holder[key])
    return found


def copied(whole: Json) -> Json:
    """Return a deep copy. Raises RecursionError if it is nested too deep to be written down."""
    return json.loads(json.dumps(whole))


def to_bytes(written: object) -> bytes:
    """Return the bytes for a text of an input: a character up to U+00FF is one byte, others are encoded in UTF-8."""
    if not isinstance(written, str):
        written = json.dumps(written)
    if written.isascii():
        return written.encode()
    return b"".join(bytes((ord(one),)) if ord(one) < 256 else one.encode("utf-8", "surrogatepass") for one in written)
