"""Requests about one message or command, the same on every transport and in process.

Layer: core.

HTTP bodies and WebSocket frames decode into these; `decide` accepts or refuses them. Unknown fields are
ignored. New optional fields are welcome; names are part of the wire.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from tenuto.core.errors import InvalidRequest, TenutoError, TooLarge
from tenuto.core.limits import Limits
from tenuto.core.model import OPTIONS, OPTIONS_KEY, OPTIONS_MARK, Json, Message, Part, Role, Status, check_json, plain
from tenuto.core.names import is_id
from tenuto.core.ops import Create, WriterIdentity, fingerprint
from tenuto.core.turns import reply_ids, rules_of

# Browsers keep numbers as doubles: an integer above 2**53 did not arrive as it was sent.
Count = Annotated[int, Meta(ge=0, le=2**53)]
Generation = Annotated[int, Meta(ge=1, le=2**53)]
LeaseSeconds = Annotated[float, Meta(ge=5, le=3600)]
ExpirySeconds = Annotated[float, Meta(ge=1, le=24 * 3600)]


class CreateMessage(Struct, frozen=True, kw_only=True):
    """`POST …/messages`. Without `parent` the message follows `reply_to`, else the newest message; null: no message.

    `options` has what the client asks beside the message, such as tools (`stored_options`).
    """

    id: str | None = None
    if_author: str | None = None  # who the client believes to be; never stored, and another caller is refused
    role: Role = "user"
    text: str | None = None
    parts: list[Part] | None = None
    status: Status = "complete"
    meta: dict[str, Json] = {}
    parent: str | UnsetType | None = UNSET
    reply_to: str | None = None
    lease_s: LeaseSeconds = 15.0
    options: dict[str, Json] = {}

    def fingerprint(self, by: str | None) -> tuple[bytes, int]:
        """Return the digest of the message that client `by` sends, and its size. Raises InvalidText, InvalidRequest."""
        parent: Json = "default" if self.parent is UNSET else [self.parent]  # a list, which differs from any text
        content = (self.role, self.text, self.parts, self.status, self.meta, parent, self.reply_to, self.options)
        return fingerprint("the new message", by, *content)


class AppendText(Struct, frozen=True, kw_only=True, gc=False):
    """`POST …/append`. Without `at` the text goes to the end of the part, and it is not safe to repeat the request."""

    text: str
    at: Count | None = None
    part: Count | None = None
    generation: Generation | None = None


class PutPart(Struct, frozen=True, kw_only=True):
    """`PUT …/parts/{n}`: opens part `index` or replaces it."""

    index: Count
    part: Part
    generation: Generation | None = None
    request: str | None = None


class UpdateMessage(Struct, frozen=True, kw_only=True):
    """`PATCH …/messages/{id}`: merges `meta` at the top level, null removes a key.

    With `supersede` the parts from that index on become one part of type `attempt`, and count no longer, but for those
    with the indexes `beside`, which follow it; `text` or `parts` follow them, in the same entry.
    """

    text: str | None = None
    parts: list[Part] | None = None
    meta: dict[str, Json] = {}
    generation: Generation | None = None
    if_version: Count | None = None
    request: str | None = None
    supersede: Count | None = None
    beside: list[Count] = []


class FinishMessage(Struct, frozen=True, kw_only=True):
    """`POST …/finish`. Only the server may send `interrupted`."""

    status: Status = "complete"
    reason: str | None = None
    meta: dict[str, Json] = {}
    generation: Generation | None = None
    request: str | None = None


class TakeOver(Struct, frozen=True, kw_only=True):
    """`POST …/takeover`: continue where another writer ended. With `generation`, only as its direct successor."""

    lease_s: LeaseSeconds = 15.0
    generation: Generation | None = None
    request: str | None = None


class DeleteMessage(Struct, frozen=True, kw_only=True):
    """`DELETE …/messages/{id}`."""


class RenewLease(Struct, frozen=True, kw_only=True):
    """`POST …/lease`: the writer is alive; its lease begins anew, with this term."""

    lease_s: LeaseSeconds = 15.0
    generation: Generation | None = None


class ExpireLease(Struct, frozen=True, kw_only=True):
    """End the message, unless entries after serial `last` show that its writer lives. Sent by the server."""

    end: FinishMessage
    last: int


class SendCommand(Struct, frozen=True, kw_only=True):
    """`POST …/commands`. Without a reply within `expires_s` the server replies.

    `options` of a `regenerate` has what the client asks for the new answers, as in `CreateMessage`.
    """

    name: str
    id: str | None = None
    target: str | None = None
    data: Json = None
    expires_s: ExpirySeconds = 300.0
    options: dict[str, Json] = {}
    generation: Generation | None = None  # the attempt that has the turn of the target: for its steps and questions


class ReplyCommand(Struct, frozen=True, kw_only=True):
    """`POST …/commands/{id}/reply`: the first reply counts."""

    ok: bool = True
    data: Json = None
    error: Json = None
    request: str | None = None
    generation: Generation | None = None  # the attempt that has the turn of the target: for its steps


class ClaimTurn(Struct, frozen=True, kw_only=True):
    """Take the turn that a message waits for, after attempt `generation` (0: the first attempt). Sent by the server."""

    generation: int
    confirmed: int = 0  # the confirmations of attempt `generation` that the server knows
    # True: no handler has begun attempt `generation`, which is this node's; the claim confirms it and begins no other
    confirms: bool = False
    renews: bool = False  # True: renew the lease of attempt `generation`, which a remote worker has begun
    gives_back: bool = False  # with `renews`, True: that worker has lost the attempt, so the lease ends at once
    # the new attempt gets a number in a later round than this one, the highest that a worker of a deleted message with
    # the same id may still use
    above: int = 0
    lease_s: float = 0.0
    within: str | None = None  # id of the message whose running turn takes this message in
    within_generation: int = 0  # the attempt of the turn that takes this message in
    # None: other turns of the channel may run meanwhile; else no attempt may run but these, which are lost: each with
    # the id of its message and its confirmations
    lost: tuple[tuple[str, int, int], ...] | None = None


class EndTurn(Struct, frozen=True, kw_only=True):
    """End a turn, or with `pending` its attempt: it is handed over to another one, and costs none.

    With `failure`, because no attempt completed, its answer fails, too. Sent by the server.
    """

    generation: Generation
    confirmed: int | None = None  # the confirmations of the attempt that the server knows; None: it has begun
    state: Literal["done", "cancelled", "pending"] = "done"
    failure: str | None = None  # id of the failed answer if no attempt has begun one; no other message has this id
    unheard: tuple[str, ...] = ()  # ids of messages that the attempt may have taken in, and its handler did not get


class SettleCommand(Struct, frozen=True, kw_only=True):
    """Settle a command without a reply: carry out a `cancel`, or reply that it `is_expired`. Sent by the server."""

    is_expired: bool = False
    # expiry of the command to settle, because another command may have the same id after its channel was deleted
    expires_ms: int | None = None


class EnterChannel(Struct, frozen=True, kw_only=True):
    """`PUT …/presence/{member}`: a member is present, with a little data (None: unchanged). Never stored."""

    data: dict[str, Json] | None = None
    lease_s: LeaseSeconds = 30.0


class SendSignal(Struct, frozen=True, kw_only=True):
    """`POST …/signals`: a signal to the present viewers. Never stored."""

    name: str
    data: Json = None


Request = (
    CreateMessage
    | AppendText
    | PutPart
    | UpdateMessage
    | FinishMessage
    | ExpireLease
    | TakeOver
    | DeleteMessage
    | RenewLease
    | ClaimTurn
    | EndTurn
    | SendCommand
    | ReplyCommand
    | SettleCommand
)


class Caller(Struct, frozen=True, kw_only=True):
    """The identity behind a request, as the server knows it; never taken from the request."""

    id: str | None = None  # client id; becomes the author and the writer of messages
    writer: WriterIdentity | None = None  # the writer that this caller becomes by creating or taking over a message
    is_admin: bool = False  # may change and delete messages of other authors
    may_read: bool = True  # may learn which messages exist
    may_begin: bool = True  # may create a channel by its first entry; clients may create a limited number per hour
    may_write: bool = True  # has the capability `append`, so it may reply to commands for writers
    brings_answer: bool = False  # the caller answers its user messages itself, so that they wait for no agent
    is_app: bool = False  # code in this process; the app itself checks the rights
    is_server: bool = False  # the hub itself; may interrupt and take over streaming messages
    peer: str | None = None  # address of the connection, if it is known: the questions of its visitors are limited
    # why the caller may store no new question or command now; a repeat gets its result
    refusal: TenutoError | None = None
    # the agent's attempt at the turn of the message that its new message answers; refused if there is a later attempt
    attempt: int | None = None


SERVER = Caller(is_server=True)  # the caller of the hub's own requests


def needs(key: str, request: Request, caller: Caller) -> tuple[str, ...]:
    """Return the ids of the messages and commands that must be in memory before `request` about `key` is decided."""
    target = request.target if isinstance(request, SendCommand) else None
    further: tuple[str, ...] = ()
    if isinstance(request, SendCommand) and rules_of(request.name).restarts:
        if target is not None and is_id(target):
            further = (regenerate_options_id(target), *kept_ids(request.options, caller.id, is_hidden=True))
    elif isinstance(request, CreateMessage):
        target = request.reply_to  # its claim shows whether the new answer is of an earlier attempt, and refused
        # large options are messages of their own, also those of an earlier message that `meta` repeats
        repeated = (one for one in references(request.meta).values() if one.startswith(OPTIONS_MARK))
        further = (*kept_ids(request.options, caller.id), *repeated)
    elif isinstance(request, EndTurn) and request.failure is not None:  # the answers, which fail with the turn
        further = tuple(reply_ids(key, request.generation))
    # `decide` refuses an invalid id later
    return (key, target, *further) if target is not None and is_id(target) else (key, *further)


INLINE_BYTES = 512  # largest value that is in `meta`, which all viewers get
ALWAYS_KEPT = ("tools",)  # options that are never in `meta`: they may hold the key of a tool's server
KEPT = "kept"  # key, beside the small values in `meta`, of the ids of the messages with the other values, by name
SMALL = ""  # name of the value that has all small ones, which no viewer gets; no client can send a value of this name
NAME_CHARS = 64  # limit for the name of an option
MOST_KEPT = 64  # values of one message that a reader looks for


def regenerate_options_id(message_id: str) -> str:
    """Return the id of the message that refers to the options of the last `regenerate` of a message."""
    return _options_id(message_id.encode())


def kept_ids(options: Mapping[str, Json], by: str | None, *, is_hidden: bool = False) -> tuple[str, ...]:
    """Return the ids of the messages that keep values of `options`, which client `by` sends, as `split_options` does.

    The result is () if it is no JSON, which `split_options` refuses.
    """
    try:
        return tuple(id for id, _, _ in _values_apart(options, by, is_hidden=is_hidden))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return ()


def split_options(
    options: Mapping[str, Json], by: str | None, now_ms: int, limits: Limits, *, is_hidden: bool = False
) -> tuple[dict[str, Json], list[Create]]:
    """Return the value of `OPTIONS_KEY`, and the messages of the large values. Raises InvalidRequest, TooLarge.

    With `is_hidden` a further message has all small values, and the value of the key only refers to messages.
    """
    limit = limits.options_bytes
    try:
        check_json(options, limit, "options", depth=limits.depth)
    except TooLarge:
        largest = max(options, key=lambda name: len(msgspec.json.encode(options[name])))[:NAME_CHARS]
        raise TooLarge(
            f"the options of the request have {len(msgspec.json.encode(options))} bytes as JSON, the limit is {limit} "
            f"(Limits.options_bytes); make {largest!r} smaller, the largest of them",
            limit=limit,
        ) from None
    if KEPT in options or any(not 0 < len(name) <= NAME_CHARS for name in options):
        raise InvalidRequest(f"options must have names of 1 to {NAME_CHARS} characters, and none may be {KEPT!r}")
    creates: list[Create] = []
    inline = {} if is_hidden else dict(options)
    for id, name, value in _values_apart(options, by, is_hidden=is_hidden):
        inline.pop(name, None)
        inline.setdefault(KEPT, {})[name] = id
        create = Create(
            id=id,
            role=OPTIONS,
            author=by,
            status="complete",
            parts=[plain({"type": "data", "name": name, "data": value})],
            at_ms=now_ms,
        )
        creates.append(create)
    return plain(inline), creates


def _values_apart(options: Mapping[str, Json], by: str | None, *, is_hidden: bool) -> Iterator[tuple[str, str, Json]]:
    """Yield the message id, name and value of each option in a message of its own; `is_hidden`: `split_options`."""
    encoded = {name: msgspec.json.encode(value, order="deterministic") for name, value in options.items()}
    small = {
        name: value for name, value in options.items() if name not in ALWAYS_KEPT and len(encoded[name]) <= INLINE_BYTES
    }
    if is_hidden and small:  # they come first, because a reader looks for the first `MOST_KEPT` values only
        encoded = {SMALL: msgspec.json.encode(small, order="deterministic"), **encoded}
    for name, data in encoded.items():
        if name not in small:
            value = small if name == SMALL else options[name]
            yield _options_id(msgspec.json.encode([by, name]) + data), name, value


def _options_id(content: bytes) -> str:
    return OPTIONS_MARK + hashlib.blake2b(content, digest_size=20).hexdigest()


def references(meta: Mapping[str, Json]) -> dict[str, str]:
    """Return the ids of the large values beside `meta` by their names; damaged ones are left out."""
    options = meta.get(OPTIONS_KEY) if isinstance(meta, Mapping) else None  # `decide` refuses any other `meta` later
    kept = options.get(KEPT) if isinstance(options, dict) else None
    found = list(kept.items())[:MOST_KEPT] if isinstance(kept, dict) else ()
    return {name: id for name, id in found if isinstance(id, str) and is_id(id)}


def stored_options(meta: Mapping[str, Json], kept: Iterable[Message]) -> dict[str, Json]:
    """Return the options beside a message: the small values in its `meta`, and those in the messages `kept`."""
    options = meta.get(OPTIONS_KEY)
    found = {name: value for name, value in options.items() if name != KEPT} if isinstance(options, dict) else {}
    by_id = {one.id: one for one in kept if one.role == OPTIONS and one.parts}
    for name, id in references(meta).items():
        if id in by_id:
            found[name] = by_id[id].parts[0].get("data")
    small = found.pop(SMALL, None)  # those of a regenerate, which one message has
    return {**small, **found} if isinstance(small, dict) else found
