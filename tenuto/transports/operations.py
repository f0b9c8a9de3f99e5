"""The table of operations: the requests and frames of clients, the capabilities they need, and the status of success.

Layer: transports.

The HTTP router (`http`, `app`) and the frame decoder (`session`) are built from this one table, and `access` reads the
capabilities from it. Methods, paths, frame types, capabilities and statuses are part of the protocol.
`tests/transports/permissions.py` states the capabilities a second time, on purpose: it is the oracle.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from tenuto.core.requests import (
    AppendText,
    CreateMessage,
    DeleteMessage,
    EnterChannel,
    FinishMessage,
    PutPart,
    RenewLease,
    ReplyCommand,
    SendCommand,
    SendSignal,
    TakeOver,
    UpdateMessage,
)
from tenuto.transports.codec import (
    AttachFrame,
    DetachFrame,
    HistoryFrame,
    PartFrame,
    PongFrame,
    PresenceFrame,
    Ref,
    SignalFrame,
    TurnDoneFrame,
    TurnRenewFrame,
    TurnTakeFrame,
    WorkFrame,
)

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
    request: type[Struct] | None = None  # type of the request that the hub receives
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
    Operation("forget", ("admin",), "POST", "/v1/forget", is_for_all=True),
    Operation("verify", ("admin",), "POST", "/v1/verify", is_for_all=True),
    Operation("inspect", ("admin",), "GET", "/v1/inspect", is_for_all=True),
    Operation("ticket", ("subscribe",), "POST", "/v1/tickets", status=201),
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
    Operation("backup", ("admin",), "POST", "/v1/backup", is_for_all=True),
    Operation("import", ("admin",), "POST", "/v1/import", is_for_all=True),
)

BY_NAME = {one.name: one for one in OPERATIONS}
BY_FRAME = {one.frame: one for one in OPERATIONS if one.frame is not None}

# All frames but `auth`, which concerns the connection itself (`websocket`).
frame_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(reduce(or_, BY_FRAME))
