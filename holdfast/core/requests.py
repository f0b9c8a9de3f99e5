"""Requests: what is asked of one message or command, the same on every transport and in process.

Layer: core.

HTTP bodies and WebSocket frames decode into these; `decide` answers them. Unknown fields are
ignored. New optional fields are welcome; names are part of the wire.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from holdfast.core.model import Json, Part, Role, Status
from holdfast.core.ops import Writer

# Browsers keep numbers as doubles: what is above 2**53 did not arrive as it was sent.
Count = Annotated[int, Meta(ge=0, le=2**53)]
Generation = Annotated[int, Meta(ge=1, le=2**53)]
LeaseSeconds = Annotated[float, Meta(ge=5, le=3600)]
ExpirySeconds = Annotated[float, Meta(ge=1, le=24 * 3600)]


class CreateMessage(Struct, frozen=True, kw_only=True):
    """`POST …/messages`. `parent` left out follows `reply_to` or the newest message; null follows none."""

    id: str | None = None
    role: Role = "user"
    text: str | None = None
    parts: list[Part] | None = None
    status: Status = "complete"
    meta: dict[str, Json] = {}
    parent: str | UnsetType | None = UNSET
    reply_to: str | None = None
    lease_s: LeaseSeconds = 15.0


class AppendText(Struct, frozen=True, kw_only=True, gc=False):
    """`POST …/append`. Without `at` the text goes to the end, and sending it again is not safe."""

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
    """`PATCH …/messages/{id}`: `meta` is merged at the top level, null removes a key."""

    text: str | None = None
    parts: list[Part] | None = None
    meta: dict[str, Json] = {}
    generation: Generation | None = None
    if_version: Count | None = None
    request: str | None = None


class FinishMessage(Struct, frozen=True, kw_only=True):
    """`POST …/finish`. `interrupted` is the server's alone."""

    status: Status = "complete"
    reason: str | None = None
    meta: dict[str, Json] = {}
    generation: Generation | None = None
    request: str | None = None


class TakeOver(Struct, frozen=True, kw_only=True):
    """`POST …/takeover`: go on where another writer ended. With `generation`, only as the successor of that one."""

    lease_s: LeaseSeconds = 15.0
    generation: Generation | None = None
    request: str | None = None


class DeleteMessage(Struct, frozen=True, kw_only=True):
    """`DELETE …/messages/{id}`."""


class RenewLease(Struct, frozen=True, kw_only=True):
    """`POST …/lease`: the writer is still there; its lease begins anew, with this term."""

    lease_s: LeaseSeconds = 15.0
    generation: Generation | None = None


class SendCommand(Struct, frozen=True, kw_only=True):
    """`POST …/commands`. Nobody answers within `expires_s`: the server does."""

    name: str
    id: str | None = None
    target: str | None = None
    data: Json = None
    expires_s: ExpirySeconds = 300.0


class ReplyCommand(Struct, frozen=True, kw_only=True):
    """`POST …/commands/{id}/reply`: the first one counts."""

    ok: bool = True
    data: Json = None
    error: Json = None
    request: str | None = None


class ClaimTurn(Struct, frozen=True, kw_only=True):
    """Take the turn that a message waits for, as the successor of attempt `generation` (0: nobody's). The server's."""

    generation: int
    lease_s: float = 0.0
    within: str | None = None  # for a turn that runs already: that of this message, …
    within_generation: int = 0  # … at this attempt


class EndTurn(Struct, frozen=True, kw_only=True):
    """The turn is over. With `failure`, an id, because no attempt came to an end: an answer says so. The server's."""

    generation: Generation
    state: Literal["done", "cancelled"] = "done"
    failure: str | None = None  # the id of that answer, which nobody else has


class SettleCommand(Struct, frozen=True, kw_only=True):
    """Nobody has answered: carry a `cancel` out, or, where it `is_expired`, say so. The server's."""

    is_expired: bool = False
    expires_ms: int | None = None  # of the one that is meant: its id may be used again in a later life


class EnterChannel(Struct, frozen=True, kw_only=True):
    """`PUT …/presence/{member}`: somebody is here, with a little data (None: as it was). Never stored."""

    data: dict[str, Json] | None = None
    lease_s: LeaseSeconds = 30.0


class SendSignal(Struct, frozen=True, kw_only=True):
    """`POST …/signals`: for those who are here now. Never stored."""

    name: str
    data: Json = None


AboutCommands = SendCommand | ReplyCommand | SettleCommand
AboutMessages = (
    AppendText | PutPart | UpdateMessage | FinishMessage | TakeOver | DeleteMessage | RenewLease | ClaimTurn | EndTurn
)
Request = CreateMessage | AboutMessages | AboutCommands


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks, as the server knows it; never taken from the request."""

    id: str | None = None  # the client id; becomes author and writer
    writer: Writer | None = None  # the writer this caller would be
    is_admin: bool = False  # may change and delete what others wrote
    may_read: bool = True  # may know what exists
    may_begin: bool = True  # may ask for what begins a channel: clients begin so many an hour
    may_write: bool = True  # holds `append`: may answer what is asked of writers
    brings_answer: bool = False  # a user message of theirs waits for no agent
    is_app: bool = False  # somebody in this process: what they may do is the app's business
    is_server: bool = False  # the hub itself: may interrupt, and take over what still streams


SERVER = Caller(is_server=True)  # where it asks in nobody's name
