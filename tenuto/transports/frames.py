"""The frames of clients and their fields (`docs/protocol.md`, 7.2).

Layer: transports.

Names of types and fields are part of the wire; new optional fields are welcome. `operations` lists the frames with the
capabilities they need, and `session` carries them out.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from tenuto.core.model import Json, Part
from tenuto.core.requests import (
    AppendText,
    Count,
    CreateMessage,
    DeleteMessage,
    FinishMessage,
    Generation,
    RenewLease,
    ReplyCommand,
    SendCommand,
    SendSignal,
    TakeOver,
    UpdateMessage,
)
from tenuto.hub.turns.workers import WhenBusy

DRAINED = 1012
FAILED = 4000
SILENT = 4001
CROWDED = 4002
NARROWED = 4003
EXPIRED = 4200
UNAUTHENTICATED = 4201
MISUSED = 4300
FRAME_TOO_LARGE = 4301


Ref = Annotated[str, Meta(max_length=64)] | Annotated[int, Meta(ge=-(2**53), le=2**53)]


class AttachFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="attach"):
    ref: Ref
    channel: str
    since: Json = None  # a cursor; an invalid one is treated as no cursor
    history: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    flush_ms: Annotated[int, Meta(ge=0, le=1000)] | None = None


class DetachFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="detach"):
    ref: Ref
    channel: str


class HistoryFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="history"):
    ref: Ref
    channel: str
    before: Count | None = None
    limit: Annotated[int, Meta(ge=1, le=2**53)] | None = None


class PongFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="pong"):
    n: Json = None


class CreateFrame(CreateMessage, frozen=True, kw_only=True, tag_field="type", tag="create"):
    ref: Ref
    channel: str


class AppendFrame(AppendText, frozen=True, kw_only=True, tag_field="type", tag="append"):
    ref: Ref
    channel: str
    id: str


class PartFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="part"):
    ref: Ref
    channel: str
    id: str
    part: Count
    value: Part
    generation: Generation | None = None
    request: str | None = None


class UpdateFrame(UpdateMessage, frozen=True, kw_only=True, tag_field="type", tag="update"):
    ref: Ref
    channel: str
    id: str


class FinishFrame(FinishMessage, frozen=True, kw_only=True, tag_field="type", tag="finish"):
    ref: Ref
    channel: str
    id: str


class DeleteFrame(DeleteMessage, frozen=True, kw_only=True, tag_field="type", tag="delete"):
    ref: Ref
    channel: str
    id: str


class LeaseFrame(RenewLease, frozen=True, kw_only=True, tag_field="type", tag="lease"):
    ref: Ref
    channel: str
    id: str


class TakeOverFrame(TakeOver, frozen=True, kw_only=True, tag_field="type", tag="takeover"):
    ref: Ref
    channel: str
    id: str


class CommandFrame(SendCommand, frozen=True, kw_only=True, tag_field="type", tag="command"):
    ref: Ref
    channel: str


class ReplyFrame(ReplyCommand, frozen=True, kw_only=True, tag_field="type", tag="reply"):
    ref: Ref
    channel: str
    id: str


class PresenceFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="presence"):
    ref: Ref
    channel: str
    member: str | None = None  # id of the member; by default the client's id
    data: dict[str, Json] | None = None
    leave: bool = False


class SignalFrame(SendSignal, frozen=True, kw_only=True, tag_field="type", tag="signal"):
    ref: Ref
    channel: str


class WorkFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="work"):
    ref: Ref
    pattern: str
    # turns that the worker can take at the same time; 0: no further ones
    slots: Annotated[int, Meta(ge=0, le=1_000)] = 1
    when_busy: WhenBusy = "queue"
    name: str | None = None  # name of the agent as a member: the client's id, alone or with `~` and a suffix


class TurnRenewFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="turn.renew"):
    ref: Ref
    channel: str
    message: str
    generation: Generation
    state: dict[str, Json] | None = None  # state that the agent shows to viewers


class TurnTakeFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="turn.take"):
    ref: Ref
    channel: str
    message: str
    turn: str | None = None  # id of the message whose turn takes this message in; lets the server recognise a repeat


class TurnDoneFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="turn.done"):
    ref: Ref
    channel: str
    message: str
    generation: Generation
    state: Literal["done", "cancelled", "lost"] = "done"


# Frames of requests: each one is decided and stored, and then gets its response.
RequestFrame = (
    CreateFrame
    | AppendFrame
    | PartFrame
    | UpdateFrame
    | FinishFrame
    | DeleteFrame
    | LeaseFrame
    | TakeOverFrame
    | CommandFrame
    | ReplyFrame
)


class AuthFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="auth"):
    """A token: the first frame of a socket whose caller is not known yet; later tokens renew the identity."""

    ref: Ref
    token: str


class _Ref(Struct):
    ref: Json = None


_ref = msgspec.json.Decoder(_Ref)


def ref_in(data: bytes) -> Json:
    """Return the `ref` of an invalid frame, if it has one that can be sent back."""
    try:
        ref = _ref.decode(data).ref
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        ref = _lenient_ref(data)
    if isinstance(ref, int) and not isinstance(ref, bool):
        return ref if abs(ref) <= 2**53 else None
    return ref if isinstance(ref, str) and len(ref) <= 64 and _is_text(ref) else None


def _is_text(ref: str) -> bool:
    """Return whether the text `ref` can be sent: half a surrogate pair cannot."""
    return ref.isascii() or not any("\ud800" <= one <= "\udfff" for one in ref)


def _lenient_ref(data: bytes) -> Json:
    """Return the `ref` of a frame that contains half a surrogate pair: browsers send it, strict JSON refuses it."""
    try:
        frame = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return frame.get("ref") if isinstance(frame, dict) else None
