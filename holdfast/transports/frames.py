"""The frames of clients (`docs/protocol.md`, 7.2): what each may say.

Layer: transports.

Names of types and fields are part of the wire; new optional fields are welcome. What frames
do is `session`'s.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from holdfast.core.model import Json, Part
from holdfast.core.requests import (
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
from holdfast.hub.turns import WhenBusy

Ref = Annotated[str, Meta(max_length=64)] | Annotated[int, Meta(ge=-(2**53), le=2**53)]


class AttachFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="attach"):
    ref: Ref
    channel: str
    since: Json = None  # what is not a cursor is no cursor
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
    member: str | None = None  # the client's own id, unless it says which of its
    data: dict[str, Json] | None = None
    leave: bool = False


class SignalFrame(SendSignal, frozen=True, kw_only=True, tag_field="type", tag="signal"):
    ref: Ref
    channel: str


class WorkFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="work"):
    ref: Ref
    pattern: str
    slots: Annotated[int, Meta(ge=0, le=1_000)] = 1  # 0: no more
    when_busy: WhenBusy = "queue"
    name: str | None = None  # how it is seen; the client's own id, or that with a suffix


class TurnRenewFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="turn.renew"):
    ref: Ref
    channel: str
    message: str
    generation: Generation
    state: dict[str, Json] | None = None  # what the agent does now, for those who look on


class TurnTakeFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="turn.take"):
    ref: Ref
    channel: str
    message: str
    turn: str | None = None  # the message of the turn that takes it in: so a repeat is known again


class TurnDoneFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="turn.done"):
    ref: Ref
    channel: str
    message: str
    generation: Generation
    state: Literal["done", "cancelled"] = "done"


Asking = (
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
OfWork = WorkFrame | TurnRenewFrame | TurnTakeFrame | TurnDoneFrame
decoder = msgspec.json.Decoder(
    AttachFrame | DetachFrame | HistoryFrame | PongFrame | PresenceFrame | SignalFrame | OfWork | Asking
)

# The capability that a request needs, by its kind; `publish` where it is none of these.
NEEDED: dict[type, str] = {
    **dict.fromkeys((AppendFrame, PartFrame, FinishFrame, LeaseFrame, TakeOverFrame), "append"),
    **dict.fromkeys((CommandFrame, ReplyFrame), "command"),
}
