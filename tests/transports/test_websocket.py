"""WebSocket (docs/protocol.md, 7), behind a real server, both ways of sending."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.core.limits import Limits
from tenuto.hub.channel import Channel
from tests.transports.conftest import PATIENCE_S, Served, new_hub, serving

Json = dict[str, Any]


class Peer:
    """A WebSocket client that keeps the received frames, by type."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[Json] = []
        self._refs = 100

    async def send(self, type: str, **fields: Any) -> int:
        """Send a frame with a new `ref`, which is returned."""
        self._refs += 1
        await self.socket.send(json.dumps({"type": type, "ref": self._refs, **fields}))
        return self._refs

    async def receive(self) -> Json:
        async with asyncio.timeout(PATIENCE_S):
            frame: Json = json.loads(await self.socket.recv())
        self.frames.append(frame)
        return frame

    async def reply(self, ref: object) -> Json:
        """Return the `ok` or `error` for this `ref`."""
        while True:
            for frame in self.frames:
                if frame["type"] in ("ok", "error") and frame["ref"] == ref:
                    return frame
            await self.receive()

    async def ask(self, type: str, **fields: Any) -> Json:
        """Send a frame and return the response."""
        return await self.reply(await self.send(type, **fields))

    async def until(self, type: str) -> Json:
        """Return the first frame of this type."""
        while True:
            for frame in self.frames:
                if frame["type"] == type:
                    return frame
            await self.receive()

    async def closed(self) -> tuple[int, Json]:
        """Read to the end; return the close code and the `bye` frame."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd is not None else 1006
            return code, next((frame for frame in self.frames if frame["type"] == "bye"), {})

    def events(self, channel: str) -> list[Json]:
        """Return all received events of a channel."""
        of_channel = [frame for frame in self.frames if frame["type"] == "events" and frame["channel"] == channel]
        return [event for frame in of_channel for event in frame["events"]]


@asynccontextmanager
async def dialled(served: Served, *, query: str = "", **options: Any) -> AsyncIterator[Peer]:
    options = {"subprotocols": [Subprotocol("tenuto.v1")], "proxy": None, "compression": None, **options}
    url = f"ws://localhost:{served.port}/v1/ws{query}"
    async with connect(url, host="127.0.0.1", max_size=None, **options) as socket:
        yield Peer(socket)


# The handshake


async def test_a_socket_is_refused_with_our_problem(served: Served) -> None:
    refusals: list[tuple[str, dict[str, Any], int, str]] = [
        ("/v1/ws", {"subprotocols": [Subprotocol("graphql-ws")]}, 400, "invalid_request"),
        ("/v1/ws", {"origin": "https://evil.example"}, 403, "no_verifier"),
        ("/v1/ws?client=a%20b", {}, 400, "invalid_name"),
        ("/v1/nothing", {}, 404, "not_found"),
    ]
    for path, options, status, code in refusals:
        options = {"subprotocols": [Subprotocol("tenuto.v1")], **options}
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"ws://localhost:{served.port}{path}", host="127.0.0.1", proxy=None, **options):
                pass
        response = refused.value.response
        assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
        assert json.loads(response.body or b"")["code"] == code


# Watching


async def test_a_batch_may_span_frames_and_only_the_last_has_the_cursor(served: Served) -> None:
    for number in range(6):
        await served.hub.create("c", id=f"m{number}", text=str(number) * 150_000)
    async with dialled(served) as peer:
        await peer.send("attach", channel="c")
        frames: list[Json] = []
        while not frames or "cursor" not in frames[-1]:
            frame = await peer.receive()
            if frame["type"] == "events":
                frames.append(frame)
        assert len(frames) > 2
        assert [event["type"] for frame in frames for event in frame["events"]] == [
            "channel.attached",
            *["message.update"] * 6,
        ]


async def test_token_is_ignored_where_the_hub_has_no_verifier(served: Served) -> None:
    """As in the header of a request. Each `auth` gets its response, also one that a client sends before all else."""
    async with dialled(served, query="?client=ada") as peer:
        for token in ("anything", "another"):
            reply = await peer.ask("auth", token=token)
            assert reply == {"type": "ok", "ref": reply["ref"], "you": {"id": "ada"}}
        assert (await peer.ask("attach", channel="c"))["you"]["id"] == "ada"
    headers = {"Authorization": "Bearer anything"}
    assert (await served.http.get("/v1/channels/c/messages", headers=headers)).status_code == 200


# Bad input

BAD_FRAMES = [
    ("", "invalid_request", None),
    ("{", "invalid_request", None),
    ("{}", "invalid_request", None),
    ('{"ref": 5}', "invalid_request", 5),
    ('{"type": "fly", "ref": "r"}', "invalid_request", "r"),
    ('{"type": "attach", "ref": 1}', "invalid_request", 1),
    ('{"type": "attach", "ref": 1, "channel": "a b"}', "invalid_name", 1),
    ('{"type": "attach", "ref": 1, "channel": "c", "history": 201}', "invalid_request", 1),
    ('{"type": "attach", "ref": 1, "channel": "c", "flush_ms": 1001}', "invalid_request", 1),
    ('{"type": "history", "ref": 1, "channel": "c", "limit": 201}', "invalid_request", 1),
    ('{"type": "history", "ref": 1, "channel": "c", "before": 1e999}', "invalid_request", 1),
    ('{"type": "create", "ref": 1, "channel": "c", "id": ""}', "invalid_name", 1),
    ('{"type": "append", "ref": 1, "channel": "c", "id": "m", "text": "x", "at": -1}', "invalid_request", 1),
    ('{"type": "append", "ref": 1, "channel": "c", "id": "m", "text": "x"}', "not_found", 1),
    ('{"type": "append", "ref": 1, "channel": "c", "id": "m", "text": "\\ud800"}', "invalid_text", 1),
    ('{"type": "append", "ref": 1, "channel": "c", "x": ' + "[" * 50_000 + "]" * 50_000 + "}", "invalid_request", None),
    *(
        (f'{{"type": "{type}", "ref": 1, "channel": "c"}}', "invalid_request", 1)
        for type in ("auth", "lease", "takeover", "command", "reply", "signal", "work", "turn.done")
    ),
]


async def test_invalid_frame_gets_an_error_and_the_socket_stays_open(served: Served) -> None:
    async with dialled(served) as peer:
        for frame, code, ref in BAD_FRAMES:
            peer.frames.clear()
            await peer.socket.send(frame)
            reply = await peer.reply(ref)  # after a ping, on a slow machine
            assert (reply["type"], reply["code"]) == ("error", code), frame[:60]
        assert (await peer.ask("attach", channel="c"))["type"] == "ok"


async def test_binary_or_too_large_frame_closes_the_socket(served: Served) -> None:
    large = json.dumps({"type": "create", "ref": 1, "channel": "c", "text": "x" * 1024 * 1024})
    binary = b'{"type": "detach", "ref": 1, "channel": "c"}'
    for frame, code, reason in ((binary, 4300, "invalid_request"), (large, 4301, "too_large")):
        async with dialled(served) as peer:
            await peer.ask("attach", channel="c")
            await peer.socket.send(frame)
            assert await peer.closed() == (code, {"type": "bye", "reason": reason})
        await served.until(lambda: served.hub.stats()["feeds"] == 0)
    assert (await served.http.get("/v1/channels/c/messages")).json()["messages"] == []


# Bounds


async def test_channels_of_a_socket_are_bounded() -> None:
    hub = new_hub(limits=Limits(socket_channels=3))
    async with serving(hub) as served, dialled(served) as peer:
        for type in ("presence", "attach"):
            for number in range(3):
                assert (await peer.ask(type, channel=f"c{number}"))["type"] == "ok"
            reply = await peer.ask(type, channel="c3")
            assert (reply["code"], reply["limit"]) == ("too_many", 3)
            assert (await peer.ask(type, channel="c2"))["type"] == "ok"
        await peer.ask("detach", channel="c0")
        assert (await peer.ask("attach", channel="c3"))["type"] == "ok"


# Slow, silent and vanished peers


async def test_store_failure_during_catch_up_closes_the_socket_for_a_retry(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with dialled(served) as peer:
        await peer.ask("attach", channel="c", flush_ms=1000)
        monkeypatch.setattr(Channel, "load_since", AsyncMock(side_effect=StoreUnavailable("the disk is gone")))
        for message_id in ("m1", "m2"):  # the second one is due at the end of the flush window
            await served.hub.create("c", id=message_id, text="x")
        served.hub.channel("c").trim(0)
        code, bye = await peer.closed()
        assert (code, bye["reason"]) == (4000, "store_unavailable")


async def test_channel_that_becomes_unreadable_is_detached_and_the_other_channels_of_the_socket_go_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with dialled(served) as peer:
        for channel in ("c", "d"):
            await peer.ask("attach", channel=channel, flush_ms=1000)
        with monkeypatch.context() as patch:
            patch.setattr(Channel, "load_since", AsyncMock(side_effect=StoreUnusable("its row is damaged")))
            for message_id in ("m1", "m2"):  # the second one is due at the end of the flush window
                await served.hub.create("c", id=message_id, text="x")
            served.hub.channel("c").trim(0)
            error = await peer.until("error")
        assert (error["ref"], error["channel"], error["code"]) == (None, "c", "store_unusable")
        await served.hub.create("d", id="m1", text="goes on")
        while not any("goes on" in str(event) for event in peer.events("d")):
            await peer.receive()
        assert served.hub.stats()["feeds"] == 1
        assert (await peer.ask("attach", channel="c"))["type"] == "ok"
        while not any(event["type"] == "message.update" for event in peer.events("c")):
            await peer.receive()


async def test_attach_to_a_channel_whose_messages_cannot_be_read_gets_an_error(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.hub.create("c", id="m1", text="x")
    await served.hub.close()
    await served.hub.start()
    monkeypatch.setattr(Channel, "load_history", AsyncMock(side_effect=StoreUnavailable("the disk is gone")))
    async with dialled(served) as peer:
        assert (await peer.ask("attach", channel="c"))["code"] == "store_unavailable"
        assert served.hub.stats()["feeds"] == 0
        monkeypatch.undo()
        assert (await peer.ask("attach", channel="c"))["type"] == "ok"
        assert (await peer.until("events"))["events"][-1]["message"]["id"] == "m1"
