"""Requests: what clients ask of one message, the same on every transport and in process.

You are in `core`. HTTP bodies and WebSocket frames decode into these; `decide` answers them. Unknown fields are
ignored. New optional fields are welcome; names are part of the wire.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from holdfast.core.model import Json, Part, Role, Status
from holdfast.core.ops import Writer

# Browsers keep numbers as doubles: what is above 2**53 did not arrive as it was sent.
Count = Annotated[int, Meta(ge=0, le=2**53)]
Generation = Annotated[int, Meta(ge=1, le=2**53)]
LeaseSeconds = Annotated[float, Meta(ge=5, le=3600)]


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


class AppendText(Struct, frozen=True, kw_only=True):
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


Request = CreateMessage | AppendText | PutPart | UpdateMessage | FinishMessage | TakeOver | DeleteMessage


class Asker(Struct, frozen=True, kw_only=True):
    """Who asks, as the server knows it; never taken from the request."""

    id: str | None = None  # the client id; becomes author and writer
    writer: Writer | None = None  # the writer this asker would be
    is_server: bool = False  # the hub itself: may interrupt, and take over what still streams
