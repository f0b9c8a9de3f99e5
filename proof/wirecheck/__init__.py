"""The wire checker: an independent client that notes each violation of the protocol.

Layer: wirecheck.

Tests, `chaos`, `fuzz` and `bench` use it; the product does not import it, and the wheel does not contain it. It uses no
SDK and no part of the product. Three layers, each usable by itself:

- `parsers`: HTTP by h11, WebSocket frames by wsproto, and an own parser of event streams;
- `checker`: follows the client rules of `docs/protocol.md` and notes each violation, also of presence and commands;
- `sessions`: a parser and a checker for one connection, without I/O, and viewers on real sockets, for asyncio.
"""

from proof.wirecheck.checker import Checker, Json, Notices, SeenMessage, SeenPart, Violation
from proof.wirecheck.parsers import Frames, Response, SseEvent, SseParser, WireError, encode_frame, get_request
from proof.wirecheck.sessions import Received, Session, SseSession, SseViewer, WsSession, WsViewer, upgrade_headers

__all__ = [
    "Checker",
    "Frames",
    "Json",
    "Notices",
    "Received",
    "Response",
    "SeenMessage",
    "SeenPart",
    "Session",
    "SseEvent",
    "SseParser",
    "SseSession",
    "SseViewer",
    "Violation",
    "WireError",
    "WsSession",
    "WsViewer",
    "encode_frame",
    "get_request",
    "upgrade_headers",
]
