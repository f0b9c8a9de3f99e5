"""Operations: the changes that the entries of a channel's log hold.

Layer: core.

This module is the one definition of the data that stores keep. Safe to change: wording, new fields with defaults at the
end. Not safe: renaming or reordering a field, or giving an old tag a new meaning, because old logs must decode for
ever. A reader that meets an unknown tag refuses the file (`StoreUnusable`): it is newer than the code.

An entry belongs to a message or to a command. Stores keep both alike, by the id in the operation; a command's id has
the prefix `!`, which no message id can have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec
from msgspec import Struct

from tenuto.core.model import Json, Part, encoded


class WriterIdentity(Struct, frozen=True, array_like=True):
    """The identity that may append to a streaming message."""

    by: str | None = None  # client id of the writer; None: anonymous
    # random id of the process if the writer lives in a hub's process: if the process ends, so does the writer
    node: str | None = None
    lease_ms: int = 0  # length of a remote writer's lease; 0 for a writer in a hub's process


class BaseOp(Struct, frozen=True, kw_only=True, array_like=True):
    """Base of all operations: the id of the message or command, unique in the channel."""

    id: str


class Create(BaseOp, frozen=True, kw_only=True, array_like=True, tag=1):
    """A new message. `digest` is a hash of the fields as sent; it distinguishes a repeated request from a conflict."""

    role: str
    author: str | None = None
    status: str
    parts: list[Part] = []
    meta: dict[str, Json] = {}
    parent: str | None = None
    reply_to: str | None = None
    at_ms: int
    digest: bytes = b""
    writer: WriterIdentity | None = None
    is_pending: bool = False  # the message waits for an agent


class Append(BaseOp, frozen=True, kw_only=True, array_like=True, tag=2, gc=False):
    """More text for a part that had `at` code points before."""

    part: int
    at: int
    text: str
    at_ms: int = 0  # the time of a remote writer's text, which renews its lease; a store of one process may drop it


class SetPart(BaseOp, frozen=True, kw_only=True, array_like=True, tag=3):
    """Open the part at `index`, or replace it."""

    index: int
    part: Part
    at_ms: int
    request: str | None = None


class Update(BaseOp, frozen=True, kw_only=True, array_like=True, tag=4):
    """New parts (None: unchanged), and the whole meta after the update."""

    parts: list[Part] | None
    meta: dict[str, Json]
    at_ms: int
    request: str | None = None


class Finish(BaseOp, frozen=True, kw_only=True, array_like=True, tag=5):
    """The end of a message's writing."""

    status: str
    reason: str | None
    meta: dict[str, Json]
    at_ms: int
    request: str | None = None


class Takeover(BaseOp, frozen=True, kw_only=True, array_like=True, tag=6):
    """Another writer continues the message; the earlier writer is fenced off."""

    generation: int
    writer: WriterIdentity
    request: str | None = None
    at_ms: int = 0


class Delete(BaseOp, frozen=True, kw_only=True, array_like=True, tag=7):
    """The message is deleted. Its id is not used again until retention removes the message."""

    at_ms: int = 0


class Claim(BaseOp, frozen=True, kw_only=True, array_like=True, tag=8):
    """An agent takes the turn that a message waits for, the turn ends, or the message waits again.

    Viewers get no event for it.
    """

    state: str  # taken, done or cancelled; pending after a `regenerate`
    generation: int  # number of the attempt; an attempt with a lower number is over
    by: str | None = None
    node: str | None = None  # random id of the hub's process if the worker lives there
    lease_ms: int = 0  # length of a remote worker's lease; 0 for a worker in a hub's process
    at_ms: int = 0
    within: str | None = None  # id of the message whose turn has taken this message in; the end of a turn keeps it
    within_generation: int = 0  # the attempt of that turn
    # number of times that the node has claimed this attempt again before a handler began it, or, on a shared store,
    # that its remote worker has renewed its lease
    confirmed: int = 0
    spared: int = 0  # number of attempts of this round that were handed over, and do not count


class Command(BaseOp, frozen=True, kw_only=True, array_like=True, tag=9):
    """A request to the workers and writers of the channel; its `id` has the prefix `!`."""

    name: str
    target: str | None = None
    data: Json = None
    by: str | None = None
    at_ms: int
    expires_ms: int
    digest: bytes


class Reply(BaseOp, frozen=True, kw_only=True, array_like=True, tag=10):
    """The reply to a command; its `id` is that of the command, with the prefix `!`."""

    ok: bool
    data: Json = None
    error: Json = None
    by: str | None = None
    request: str | None = None
    at_ms: int = 0


class Lease(BaseOp, frozen=True, kw_only=True, array_like=True, tag=11):
    """A new length of the writer's lease; on a shared store each renewal. Viewers get no event for it."""

    lease_ms: int
    at_ms: int = 0


Op = Create | Append | SetPart | Update | Finish | Takeover | Delete | Claim | Command | Reply | Lease


class Entry(Struct, frozen=True, array_like=True, gc=False):
    """A stored operation with its serial, its position in the channel."""

    serial: int
    op: Op


# Returns an operation in the compact binary form (MessagePack, fields by position) that stores keep.
encode_op: Callable[[Op], bytes] = msgspec.msgpack.Encoder().encode
_decode_op = msgspec.msgpack.Decoder(Op).decode


def decode_op(data: bytes) -> Op:
    """Return the operation in `data`; raises msgspec.DecodeError or msgspec.ValidationError."""
    try:
        op: Op = _decode_op(data)
    except UnicodeDecodeError as error:  # msgspec does not turn this error into its own
        raise msgspec.DecodeError(f"the operation's text is not UTF-8: {error}") from None
    return op


def digest(*fields: Json) -> bytes:
    """Return a hash of fields as sent: equal for equal JSON, regardless of the order of its keys."""
    return _hashed(msgspec.json.encode(fields, order="deterministic"))


def fingerprint(what: str, *fields: Json) -> tuple[bytes, int]:
    """Return the `digest` of a request, which errors call `what`, and its size. Raises InvalidText, InvalidRequest."""
    data = encoded(fields, what, "deterministic")
    return _hashed(data), len(data)


def _hashed(data: bytes) -> bytes:
    # SHA-256, because most CPUs have instructions for it: a photo's is computed in half of the time of BLAKE2
    return hashlib.sha256(data).digest()[:16]
