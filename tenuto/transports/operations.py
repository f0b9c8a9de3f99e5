"""The frames of clients, and the table of operations: requests, frames, the capabilities they need, and the status.

Layer: transports.

The HTTP router (`http`, `app`) and the frame decoder (`session`) are built from this one table, and `access` reads the
capabilities from it. Methods, paths, frame types, fields, capabilities and statuses are part of the protocol; new
optional fields are welcome.
`tests/transports/permissions.py` states the capabilities a second time, on purpose: it is the oracle.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from tenuto.core.model import Json, Part
from tenuto.core.requests import (
    AppendText,
    Count,
    CreateMessage,
    DeleteMessage,
    EnterChannel,
    FinishMessage,
    Generation,
    PutPart,
    RenewLease,
    ReplyCommand,
    SendCommand,
    SendSignal,
    TakeOver,
    UpdateMessage,
)
from tenuto.core.turns import MOST_UNHEARD, WhenBusy

Ref = Annotated[str, Meta(max_length=64)] | Annotated[int, Meta(ge=-(2**53), le=2**53)]


class _Frame(Struct, frozen=True, kw_only=True, tag_field="type"):
    """The fields that nearly all frames have."""

    ref: Ref
    channel: str


class AttachFrame(_Frame, frozen=True, kw_only=True, tag="attach"):
    since: Json = None  # a cursor; an invalid one is treated as no cursor
    history: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    flush_ms: Annotated[int, Meta(ge=0, le=1000)] | None = None


class DetachFrame(_Frame, frozen=True, kw_only=True, tag="detach"):
    """The end of an attachment."""


class HistoryFrame(_Frame, frozen=True, kw_only=True, tag="history"):
    before: Count | None = None
    limit: Annotated[int, Meta(ge=1, le=2**53)] | None = None


class PongFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="pong"):
    n: Json = None


class PartFrame(_Frame, frozen=True, kw_only=True, tag="part"):
    id: str
    part: Count
    value: Part
    generation: Generation | None = None
    request: str | None = None


class PresenceFrame(_Frame, frozen=True, kw_only=True, tag="presence"):
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


class TurnRenewFrame(_Frame, frozen=True, kw_only=True, tag="turn.renew"):
    message: str
    generation: Generation
    state: dict[str, Json] | None = None  # state that the agent shows to viewers


class TurnTakeFrame(_Frame, frozen=True, kw_only=True, tag="turn.take"):
    message: str
    turn: str | None = None  # id of the message whose turn takes this message in; lets the server recognise a repeat


class TurnDoneFrame(_Frame, frozen=True, kw_only=True, tag="turn.done"):
    message: str
    generation: Generation
    state: Literal["done", "cancelled", "lost", "handed_over"] = "done"
    unheard: Annotated[list[str], Meta(max_length=MOST_UNHEARD)] = []  # messages taken in that no handler got


class AuthFrame(Struct, frozen=True, kw_only=True, tag_field="type", tag="auth"):
    """A token: the first frame of a socket whose caller is not known yet; later tokens renew the identity."""

    ref: Ref
    token: str


class CreateTicket(Struct, frozen=True, kw_only=True):
    """A request for a ticket that opens one stream of `channel`."""

    channel: str


class ForgetClient(Struct, frozen=True, kw_only=True):
    """The removal of a person; with `channels` also of the channels in which no other person wrote."""

    client_id: str
    channels: bool = False


class BackupFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backup into the new file `path`, at most `mb_per_s` MB in a second."""

    path: str
    mb_per_s: float = 50


class ImportFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An import of the file `path` (`Archive.import_file`)."""

    path: str
    channel: str | None = None
    damaged: bool = False


class NoFields(Struct, frozen=True):
    """A request without fields."""


SOCKET_PATH = "/v1/ws"
CHANNEL = "/v1/channels/{channel}"
MESSAGE = CHANNEL + "/messages/{id}"

# The kind of the HTTP response: at once, a stream or long poll, or at once for callers without an identity.
Kind = Literal["call", "stream", "open"]


class Operation(NamedTuple):
    """One thing that a client can request.

    `needs` lists capabilities on the channel, or on the pattern in the frame. One in `instead` replaces all of them.
    """

    name: str
    needs: tuple[str, ...] = ()
    method: str = ""  # HTTP method; empty if only sockets have this operation
    path: str = ""
    request: type[Struct] | None = None  # type of the request, and of the body that brings it
    frame: type[Struct] | None = None  # type of the WebSocket frame; None if only HTTP has this operation
    status: int = 200  # HTTP status of success; 201 stands for 201, or 200 for a repeat
    kind: Kind = "call"
    is_for_all: bool = False  # True: the caller needs the capabilities on all channels
    instead: tuple[str, ...] = ()


def _stored(name: str, capability: str, method: str, path: str, request: type[Struct], status: int = 200) -> Operation:
    """Return an operation that is stored. Its frame is the request, with the fields that nearly all frames have."""
    fields = [("ref", Ref), ("channel", str), *([("id", str)] if "{id}" in path else [])]
    frame = msgspec.defstruct(
        f"{request.__name__}Frame", fields, bases=(request,), frozen=True, kw_only=True, tag_field="type", tag=name
    )
    return Operation(name, (capability,), method, path, request, frame, status)


OPERATIONS = (
    Operation("history", ("history",), "GET", f"{CHANNEL}/messages", frame=HistoryFrame),
    _stored("create", "publish", "POST", f"{CHANNEL}/messages", CreateMessage, 201),
    Operation("read", ("history",), "GET", MESSAGE),
    _stored("append", "append", "POST", f"{MESSAGE}/append", AppendText),
    Operation("part", ("append",), "PUT", f"{MESSAGE}/parts/{{n}}", PutPart, PartFrame),
    _stored("update", "publish", "PATCH", MESSAGE, UpdateMessage),
    _stored("finish", "append", "POST", f"{MESSAGE}/finish", FinishMessage),
    _stored("lease", "append", "POST", f"{MESSAGE}/lease", RenewLease),
    _stored("takeover", "append", "POST", f"{MESSAGE}/takeover", TakeOver),
    _stored("delete", "publish", "DELETE", MESSAGE, DeleteMessage, 204),
    _stored("command", "command", "POST", f"{CHANNEL}/commands", SendCommand, 201),
    _stored("reply", "command", "POST", f"{CHANNEL}/commands/{{id}}/reply", ReplyCommand),
    Operation("members", ("subscribe",), "GET", f"{CHANNEL}/presence"),
    Operation("enter", ("presence",), "PUT", f"{CHANNEL}/presence/{{id}}", EnterChannel, PresenceFrame, 204),
    Operation("leave", ("presence",), "DELETE", f"{CHANNEL}/presence/{{id}}", None, PresenceFrame, 204),
    Operation("signal", ("presence",), "POST", f"{CHANNEL}/signals", SendSignal, SignalFrame, 202),
    # Returns the channels on which the caller has one of the two, and needs one of them on one pattern at least.
    Operation("channels", ("history",), "GET", "/v1/channels", instead=("admin",)),
    Operation("read_channel", ("history",), "GET", CHANNEL),
    Operation("export", ("history", "admin"), "GET", f"{CHANNEL}/export"),
    Operation("delete_channel", ("admin",), "DELETE", CHANNEL, status=204),
    Operation("forget", ("admin",), "POST", "/v1/forget", ForgetClient, is_for_all=True),
    Operation("verify", ("admin",), "POST", "/v1/verify", NoFields, is_for_all=True),
    Operation("inspect", ("admin",), "GET", "/v1/inspect", is_for_all=True),
    Operation("ticket", ("subscribe",), "POST", "/v1/tickets", CreateTicket, status=201),
    Operation("events", ("subscribe",), "GET", f"{CHANNEL}/events", frame=AttachFrame, kind="stream"),
    Operation("poll", ("subscribe",), "GET", f"{CHANNEL}/poll", kind="stream"),
    Operation("message_events", ("subscribe", "history"), "GET", f"{MESSAGE}/events", kind="stream"),
    Operation("detach", frame=DetachFrame),
    # A worker needs all three: if it could take turns without following the channel and writing answers, it would take
    # them from workers that can.
    Operation("work", ("agent", "subscribe", "append"), frame=WorkFrame),
    # These three are accepted only from a worker of the socket, whose `work` frame was checked for `agent`.
    Operation("renew_turn", ("agent",), frame=TurnRenewFrame),
    Operation("take_turn", ("agent",), frame=TurnTakeFrame),
    Operation("end_turn", ("agent",), frame=TurnDoneFrame),
    Operation("pong", frame=PongFrame),
    # Makes a caller without an identity a visitor; without `visitors()` there is none.
    Operation("visitor", (), "POST", "/v1/visitor", kind="open"),
    Operation("version", (), "GET", "/v1", kind="open"),
    Operation("health", (), "GET", "/healthz", kind="open"),
    Operation("ready", (), "GET", "/readyz", kind="open"),
    # Checked only if the hub has a verifier (`http.metrics`).
    Operation("metrics", ("admin",), "GET", "/metrics", kind="open", is_for_all=True),
)

# These name files of the server's machine, so they are on the control socket only, and elsewhere no path of the server.
OF_FILES = (
    Operation("backup", ("admin",), "POST", "/v1/backup", BackupFile, is_for_all=True),
    Operation("import", ("admin",), "POST", "/v1/import", ImportFile, is_for_all=True),
)

BY_NAME = {one.name: one for one in OPERATIONS}
BY_FRAME = {one.frame: one for one in OPERATIONS if one.frame is not None}

# All frames but `auth`, which concerns the connection itself (`websocket`).
frame_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(reduce(or_, BY_FRAME))
