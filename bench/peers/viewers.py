"""Viewers of the peers: their wire formats as sessions, and one check for all of them, the text.

Layer: bench.peers.

The sessions have the interface of those in `wirecheck`, so the same load client drives them. A peer's message is one
token and no more: the smallest message that does the work, to the peer's advantage. A viewer joins tokens in order of
arrival. A lost, doubled, moved or changed token makes a text that differs from the sent one, and `bench.common.check`
then voids the run. Tokens also carry their send time, so they give the latency.
"""

import base64
import os
from array import array
from collections.abc import Callable, Iterable
from typing import ClassVar
from urllib.parse import quote

import msgspec
from wsproto.events import CloseConnection, Ping, TextMessage

from bench import tokens
from bench.reader import LoadFrames, LoadResponse
from proof.wirecheck import Json, Session, SseEvent, SseParser, Violation, get_request, upgrade_headers


class TextChecker:
    """One channel as one viewer sees it, over any number of connections.

    It has the attributes that `bench.load` reads from a checker. `batches` counts tokens: Tenuto delivers batches.
    """

    def __init__(self, channel: str, latencies: "array[float] | None" = None) -> None:
        self.channel = channel
        self.violations: list[Violation] = []
        self.batches = 0
        self.payload_bytes = 0  # size of bodies without chunking, and of payloads of frames
        self.is_done = False
        self.position: str | None = None  # the position to resume from, in the peer's own format
        self.pieces: list[str] = []
        self._latencies = latencies

    @property
    def whole(self) -> str:
        return "".join(self.pieces)

    def text(self, _message_id: str) -> str:
        """Return all received text: a channel of a peer carries one answer."""
        return self.whole

    def differences(self, _message: Json) -> list[str]:
        return []

    def end(self) -> None:
        """End a connection, of which this checker keeps no state."""

    def violate(self, kind: str, detail: str) -> None:
        self.violations.append(Violation(kind, detail))

    def take(self, text: str, position: str | None, now_s: float) -> None:
        """Take one message, which is one token."""
        if self.is_done:
            self.violate("after the end", repr(text))
        self.batches += 1
        self.pieces.append(text)
        if position is not None:
            self.position = position
        if self._latencies is not None:
            self._latencies.extend(tokens.latencies_ms(text, 0, 0, now_s))


class TextSession(Session):
    """One connection without its socket: the common part of all formats. `resume` is the position to continue from."""

    new_response = LoadResponse

    def __init__(self, checker: TextChecker, request: bytes) -> None:
        super().__init__()
        self.checker = checker
        self._to_send = request

    @property
    def has_attached(self) -> bool:
        return bool(self.response.status == self.status)

    def _checkers(self) -> Iterable[TextChecker]:
        return (self.checker,)

    def _receive(self, data: bytes, now_s: float) -> None:
        payload = data if self.response.status == 101 else self.response.receive(data)
        if self.has_attached:
            self._take_payload(payload, now_s)
        elif self.response.status:
            self.body += payload
            if not self.checker.violations:
                self.violate("refused", f"{self.response.status}: {self.body[:300]!r}")

    def _take_payload(self, payload: bytes, now_s: float) -> None:
        raise NotImplementedError


class NchanSse(TextSession):
    """An EventSource location of nchan: the data is the token."""

    path: ClassVar[str] = "/subscribe/{channel}"

    def __init__(self, checker: TextChecker, *, host: str, resume: str | None = None) -> None:
        headers = {"Host": host, "Accept": "text/event-stream"}
        if resume is not None:
            headers["Last-Event-ID"] = resume
        channel = checker.channel
        path = self.path.format(channel=quote(channel), chat=quote(channel.rpartition(":")[2]))
        super().__init__(checker, get_request(path, headers))
        self._parser = SseParser()

    def _take_payload(self, payload: bytes, now_s: float) -> None:
        self.checker.payload_bytes += len(payload)
        for event in self._parser.receive(payload):
            self._take(event, now_s)
        if self.response.is_complete and not self.checker.is_done:
            self.checker.violate("ended", "the stream ended before the answer was complete")

    def _take(self, event: SseEvent, now_s: float) -> None:
        if event.event == "done":
            self.checker.is_done = True
        else:
            self.checker.take(self._text(event.data), event.id, now_s)

    def _text(self, data: bytes) -> str:
        return data.decode()


class XaddSse(NchanSse):
    """The usual SSE endpoint: the token as a JSON string, because a token can contain a line end."""

    path = "/channels/{channel}/events"

    def _text(self, data: bytes) -> str:
        return msgspec.json.decode(data, type=str)


class AiSdkSse(NchanSse):
    """A page with the AI SDK that resumes: the deltas of the texts. The id of its chat is the end of the channel's."""

    path = "/api/chat/{chat}/stream"

    def _take(self, event: SseEvent, now_s: float) -> None:
        if event.data == b"[DONE]":
            self.checker.is_done = True
        elif (chunk := msgspec.json.decode(event.data))["type"] == "text-delta":
            self.checker.take(chunk["delta"], None, now_s)


class NchanWs(TextSession):
    """A WebSocket location of nchan: a frame is a token. It has no position, so it cannot resume."""

    status = 101

    def __init__(self, checker: TextChecker, *, host: str, resume: str | None = None) -> None:
        assert resume is None
        headers = upgrade_headers(host, base64.b64encode(os.urandom(16)))
        super().__init__(checker, get_request(f"/subscribe/{quote(checker.channel)}", headers))
        self._frames = LoadFrames()

    def _take_payload(self, payload: bytes, now_s: float) -> None:
        for event in self._frames.receive(payload):
            if isinstance(event, Ping):
                self._to_send += self._frames.encode(event.response())
            elif isinstance(event, CloseConnection):
                self.checker.violate("ended", f"closed by the server: {event.code} {event.reason!r}")
                self.receive_end()
            elif isinstance(event, TextMessage):
                self.checker.payload_bytes += len(event.data.encode())
                self.checker.take(event.data, None, now_s)


KINDS: dict[str, Callable[..., TextSession]] = {
    "ai-sdk": AiSdkSse,
    "nchan-sse": NchanSse,
    "nchan-ws": NchanWs,
    "xadd-sse": XaddSse,
}
