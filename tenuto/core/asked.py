"""The wishes of a client beside a message, `asked`: small values in its `meta`, others in messages of their own.

Layer: core.

Tools and instructions may be large, and most clients send them with each question. So each large value is a message of
the role `asked`, which viewers never get: its id is made from its content, so the same value is stored once for each
person in a channel. `meta.asked` of the question has the small values, and in `kept` the ids of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from tenuto.core.errors import InvalidRequest, TooLarge
from tenuto.core.limits import Limits
from tenuto.core.model import ASKED, Json, Message, check_json, plain
from tenuto.core.ops import Create

INLINE_BYTES = 512  # largest value that is in `meta`, which all viewers get
ALWAYS_KEPT = ("tools",)  # may hold the key of a tool's server
KEPT = "kept"
NAME_CHARS = 64
MOST_KEPT = 64  # values of one message that a reader looks for


class Kept(NamedTuple):
    """A value that is stored in a message of its own."""

    id: str
    name: str
    value: Json


def kept_ids(asked: Mapping[str, Json], by: str | None) -> tuple[str, ...]:
    """Return the ids of the messages that keep large values of `asked`, which client `by` sends.

    There are none if it is no JSON, which `split` refuses.
    """
    try:
        return tuple(one.id for one in _kept(asked, by))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return ()


def split(
    asked: Mapping[str, Json], by: str | None, now_ms: int, limits: Limits
) -> tuple[dict[str, Json], list[Create]]:
    """Return the value of `meta.asked`, and the messages of the large values. Raises InvalidRequest, TooLarge."""
    limit = limits.asked_bytes
    try:
        check_json(asked, limit, "asked", depth=limits.depth)
    except TooLarge:
        raise TooLarge(
            f"the tools, instructions and other wishes of the request have {len(msgspec.json.encode(asked))} bytes as "
            f"JSON, the limit is {limit} (Limits.asked_bytes); send fewer tools",
            limit=limit,
        ) from None
    if KEPT in asked or any(not 0 < len(name) <= NAME_CHARS for name in asked):
        raise InvalidRequest(f"asked must have names of 1 to {NAME_CHARS} characters, and none may be {KEPT!r}")
    creates: list[Create] = []
    inline = dict(asked)
    for one in _kept(asked, by):
        del inline[one.name]
        inline.setdefault(KEPT, {})[one.name] = one.id
        creates.append(_create(one, by, now_ms))
    return plain(inline), creates


def _create(one: Kept, by: str | None, now_ms: int) -> Create:
    return Create(
        id=one.id,
        role=ASKED,
        author=by,
        status="complete",
        parts=[plain({"type": "data", "name": one.name, "data": one.value})],
        meta={},
        parent=None,
        reply_to=None,
        at_ms=now_ms,
        digest=b"",
    )


def _kept(asked: Mapping[str, Json], by: str | None) -> Iterator[Kept]:
    for name, value in asked.items():
        data = msgspec.json.encode(value, order="deterministic")
        if name in ALWAYS_KEPT or len(data) > INLINE_BYTES:
            content = hashlib.blake2b(msgspec.json.encode([by, name]) + data, digest_size=20).hexdigest()
            yield Kept(f"asked-{content}", name, value)


def references(meta: Mapping[str, Json]) -> dict[str, str]:
    """Return the ids in `meta.asked.kept` by the names of the values. Other forms have none: a client may send them."""
    asked = meta.get(ASKED)
    kept = asked.get(KEPT) if isinstance(asked, dict) else None
    found = list(kept.items())[:MOST_KEPT] if isinstance(kept, dict) else ()
    return {name: id for name, id in found if isinstance(id, str)}


def whole(meta: Mapping[str, Json], kept: Iterable[Message]) -> dict[str, Json]:
    """Return the wishes of a client beside a message: the values in its `meta`, and those in the messages `kept`."""
    asked = meta.get(ASKED)
    found = {name: value for name, value in asked.items() if name != KEPT} if isinstance(asked, dict) else {}
    by_id = {one.id: one for one in kept if one.role == ASKED and one.parts}
    for name, id in references(meta).items():
        if id in by_id:
            found[name] = by_id[id].parts[0].get("data")
    return found
