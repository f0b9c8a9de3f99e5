"""Reconnecting: the ends of connections, the requests that are repeated, and the errors that are final.

Layer: tests.

The other side is a script, since a real server sends most of this rarely.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import sys
from random import Random
from typing import Any
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.client import Client, Timing, UnknownProblem, Unreachable
from tenuto.client.connection import Refusal, websocket_dial
from tenuto.client.link import PENDING_REQUESTS
from tenuto.core import errors
from tenuto.core.errors import LocalError, TenutoError
from tenuto.core.limits import Limits
from tests.client.script import Script, ScriptedSocket, client_of
from tests.client.wire import QUICK
from tests.virtual import virtually


@pytest.fixture
def script() -> Script:
    return Script()


async def deleting(client: Client, message_id: str) -> asyncio.Task[None]:
    """Start a `delete` request."""
    task = asyncio.create_task(client.delete("c", message_id))
    await asyncio.sleep(0)
    return task


async def check_answered(client: Client, socket: ScriptedSocket) -> None:
    """Check that a request gets its response on this connection."""
    asked = await deleting(client, "m")
    frame = await socket.frame()
    assert (frame["type"], frame["id"]) == ("delete", "m")
    socket.say(type="ok", ref=frame["ref"], more=1)
    await asked


async def ended(client: Client) -> TenutoError:
    """Return the error that calls raise after the link has stopped."""
    with pytest.raises(TenutoError) as caught:
        await client.delete("c", "m")
    assert client.error is caught.value
    return caught.value


# Requests that are sent again ------------------------------------------------------------------------------------


async def test_requests_without_a_response_are_sent_again_in_order(script: Script) -> None:
    async with client_of(script) as client:
        asked = [await deleting(client, name) for name in ("a", "b", "c")]
        first = await script.socket()
        frames = [await first.frame() for _ in asked]
        first.say(type="ok", ref=frames[1]["ref"])
        await asked[1]
        first.bye(None)
        second = await script.socket()
        assert [await second.frame(), await second.frame()] == [frames[0], frames[2]]
        for frame in (frames[0], frames[2]):
            second.say(type="ok", ref=frame["ref"])
        await asyncio.gather(*asked)


async def test_a_signal_is_lost_with_its_connection(script: Script) -> None:
    async with client_of(script) as client:
        first = await script.socket()
        sent = asyncio.create_task(client.signal("c", "typing"))
        assert (await first.frame())["name"] == "typing"
        first.bye(None)
        await sent
        await check_answered(client, await script.socket())


@virtually
async def test_request_without_a_response_times_out_and_is_not_sent_again() -> None:
    script = Script()
    async with client_of(script, timing=Timing(silence_s=1000.0, response_s=1000.0)) as client:
        first = await script.socket()
        with pytest.raises(Unreachable):
            await client.delete("c", "gone")
        first.bye(None)
        await check_answered(client, await script.socket())


@pytest.mark.parametrize(("data", "count"), [("", PENDING_REQUESTS), ("x" * 60_000, 18)], ids=["count", "bytes"])
async def test_calls_wait_while_too_many_requests_have_no_response(script: Script, data: str, count: int) -> None:
    async with client_of(script, limits=Limits(data_bytes=64 * 1024)) as client:
        asked = [asyncio.create_task(client.reply("c", f"m{number}", data=data)) for number in range(count + 1)]
        socket = await script.socket()
        frames = [await socket.frame() for _ in range(count)]
        socket.say(type="ping", n=1)
        assert await socket.frame() == {"type": "pong", "n": 1}
        socket.say(type="ok", ref=frames[0]["ref"])
        frames.append(await socket.frame())
        for frame in frames[1:]:
            socket.say(type="ok", ref=frame["ref"])
        await asyncio.gather(*asked)


async def test_too_large_request_is_refused_by_the_client_and_keeps_the_connection(script: Script) -> None:
    async with client_of(script) as client:
        socket = await script.socket()
        with pytest.raises(errors.TooLarge):
            await client.create("c", text="x" * 2_000_000)
        await check_answered(client, socket)


# The end of a connection -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1009, 4300, 4301, 4999])
async def test_close_codes_of_too_large_frames_and_from_4300_stop_the_client_with_the_reason(
    script: Script, code: int
) -> None:
    async with client_of(script) as client:
        (await script.socket()).bye(code, "too_large")
        assert isinstance(await ended(client), errors.TooLarge)
        assert len(script.urls) == 1


async def test_listeners_are_notified_that_the_link_has_stopped(script: Script) -> None:
    async with asyncio.timeout(60), client_of(script) as client:
        socket = await script.socket()
        entering = asyncio.create_task(client.presence("c").enter())
        socket.say(type="ok", ref=(await socket.frame("presence"))["ref"])
        here, watched = await entering, client.channel("c")
        working = asyncio.create_task(client.work("c", on_turn=lambda turn: asyncio.sleep(0)))
        await socket.frame("work")
        socket.bye(4300, "too_large")
        for call in (working, watched.live(), here.update({"at": 1})):
            with pytest.raises(errors.TooLarge):
                await call
        # Later listeners are notified, too.
        for call in (client.work("c", on_turn=lambda turn: asyncio.sleep(0)), client.channel("d").live()):
            with pytest.raises(errors.TooLarge):
                await call


@virtually
async def test_client_reconnects_after_the_delay_that_the_server_sets() -> None:
    loop, script = asyncio.get_running_loop(), Script()
    async with client_of(script):
        (await script.socket()).bye(1012, "draining", retry_ms=100)
        began_s = loop.time()
        await script.socket()
        assert loop.time() - began_s > 0.09  # its own delay is a millisecond


@virtually
async def test_silence_ends_a_connection() -> None:
    script = Script()
    async with client_of(script, timing=Timing()):
        first = await script.socket()
        await script.socket()
        assert first.is_closed


@pytest.mark.parametrize("text", ["", "[]", "x", '{"":' * 9999, '{"type":"events"}', '{"type":"events","channel":[]}'])
async def test_invalid_frame_ends_the_connection_and_not_the_client(script: Script, text: str) -> None:
    async with client_of(script):
        (await script.socket()).say_text(text)
        await script.socket()


async def test_frames_of_other_kinds_are_ignored(script: Script) -> None:
    async with client_of(script) as client:
        socket = await script.socket()
        socket.say(type="news", of="tomorrow")
        socket.say(type="ok", ref=99)
        socket.say(type="turn", channel="c")
        await check_answered(client, socket)


# Credentials -----------------------------------------------------------------------------------------------------


def token(expires: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "ada", "exp": expires}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2lnbmVk"


class Provider:
    """Returns a new token each time."""

    def __init__(self, lasts_s: float = 3600.0) -> None:
        self.given: list[str] = []
        self._lasts_s = lasts_s

    async def __call__(self) -> str:
        self.given.append(token(1_000.0 + len(self.given) + self._lasts_s))
        return self.given[-1]


async def test_a_token_travels_in_a_header_alone(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with client_of(script, token="secret-token", client_id="ada") as client:
        (await script.socket()).bye(4200, "expired")
        error = await ended(client)
        assert isinstance(error, errors.Unauthenticated)
        assert error.detail == "the token has expired and cannot be renewed; give Client(..., token_provider=...)"
    assert script.urls == ["wss://host.example/tenuto/v1/ws?client=ada"]
    assert script.headers == [{"Tenuto-Client": "python", "Authorization": "Bearer secret-token"}]
    assert "secret" not in caplog.text + str(error)


@pytest.mark.parametrize("code", [4200, 4299])
async def test_expired_token_is_renewed(script: Script, code: int) -> None:
    provider = Provider()
    async with client_of(script, token_provider=provider):
        (await script.socket()).bye(code)
        await script.socket()
    assert [headers["Authorization"] for headers in script.headers] == [f"Bearer {one}" for one in provider.given]
    assert len(provider.given) == 2


async def test_refused_token_is_renewed_a_limited_number_of_times(script: Script) -> None:
    provider = Provider()
    script.refusals.extend(Refusal(401, {"code": "unauthenticated"}, 0.0) for _ in range(9))
    async with client_of(script, token_provider=provider) as client:
        assert isinstance(await ended(client), errors.Unauthenticated)
    assert len(provider.given) == 4


async def test_a_provider_that_fails_is_asked_again(script: Script) -> None:
    provider = AsyncMock(side_effect=[ValueError("no luck"), "token"])
    async with client_of(script, token_provider=provider):
        await script.socket()


@virtually
async def test_a_token_is_renewed_on_the_live_connection_before_it_ends() -> None:
    script, provider = Script(), Provider(lasts_s=20.0)
    async with client_of(script, token_provider=provider, now=lambda: 1_000.0):
        socket = await script.socket()
        frame = await socket.frame()
        assert frame == {"type": "auth", "ref": frame["ref"], "token": provider.given[1]}
        socket.say(type="error", ref=frame["ref"], code="unauthenticated")
        await script.socket()  # access control of the next connection decides on a refused token


# Access control ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        OSError("no route"),
        Refusal(503, {"code": "draining"}, 0.0),
        Refusal(429, {"code": "too_many", "status": 429}, 0.0),
        Refusal(502, {}, 0.0),
        Refusal(500, {"code": "internal", "status": 500}, 0.0),
    ],
)
async def test_refusals_that_pass_are_tried_again(script: Script, refusal: Refusal | OSError) -> None:
    script.refusals.append(refusal)
    async with client_of(script):
        await script.socket()


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (Refusal(403, {"code": "forbidden"}, 0.0), "forbidden"),
        (Refusal(404, {}, 0.0), "not_tenuto"),
        (Refusal(403, {}, 0.0), "not_tenuto"),  # of uvicorn, for a path without sockets
        (Refusal(401, {}, 0.0), "unauthenticated"),
    ],
)
async def test_final_refusals_are_raised(script: Script, refusal: Refusal, code: str) -> None:
    script.refusals.append(refusal)
    async with client_of(script) as client:
        assert (await ended(client)).code == code


async def test_request_that_needs_a_token_names_the_missing_one(script: Script) -> None:
    async with client_of(script) as client:
        creating = asyncio.ensure_future(client.create("c", text="x"))
        socket = await script.socket()
        socket.say(type="error", ref=(await socket.frame("create"))["ref"], code="unauthenticated")
        with pytest.raises(errors.Unauthenticated, match="this client has none"):
            await creating


async def test_refusal_of_a_proxy_is_tried_again_after_an_earlier_connection(script: Script) -> None:
    async with client_of(script):
        first = await script.socket()
        script.refusals.append(Refusal(404, {}, 0.0))
        first.bye(None)
        await script.socket()


async def test_redirect_is_a_refusal_whatever_its_body_is() -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: https://x/\r\nContent-Length: 9999\r\n\r\n" + b"[" * 9999)
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Refusal, match="302"):
            await websocket_dial(frame_bytes=1000)(f"ws://127.0.0.1:{port}/v1/ws", {})


@pytest.mark.parametrize("proxy", ["socks5h://host", "ftp://name:secret@host"])
async def test_unusable_proxy_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setattr(os, "environ", {"wss_proxy": proxy})  # without `no_proxy`
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with pytest.raises(LocalError, match=r"^the proxy in the environment \(HTTPS_PROXY, …\) (?!.*secret)"):
        await websocket_dial(frame_bytes=1000)("wss://chat.example/v1/ws", {})


# Errors -----------------------------------------------------------------------------------------------------------


def codes() -> list[type[TenutoError]]:
    known = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, TenutoError)]
    return [one for one in known if one is not LocalError]


@pytest.mark.parametrize("kind", codes(), ids=lambda one: one.__name__)
async def test_refusal_is_raised_as_the_class_that_the_hub_raises(script: Script, kind: type[TenutoError]) -> None:
    async with client_of(script, token="a-token") as client:
        socket = await script.socket()
        asked = await deleting(client, "m")
        frame = await socket.frame()
        problem = kind("what went wrong", length=7).problem()
        socket.say(**{**problem, "type": "error", "ref": frame["ref"]})
        if kind is errors.Draining:
            socket.bye(1012)
            socket = await script.socket()
            socket.say(**{**errors.Busy("what went wrong", length=7).problem(), "type": "error", "ref": frame["ref"]})
        with pytest.raises(TenutoError) as caught:
            await asked
    assert type(caught.value) is (errors.Busy if kind is errors.Draining else kind)
    assert (caught.value.detail, caught.value.details) == ("what went wrong", {"length": 7})


async def test_unknown_code_stays_readable(script: Script) -> None:
    async with client_of(script) as client:
        socket = await script.socket()
        asked = await deleting(client, "m")
        frame = await socket.frame()
        socket.say(type="error", ref=frame["ref"], code="too_purple", title="Too purple", status=429, limit=3)
        with pytest.raises(UnknownProblem) as caught:
            await asked
    error = caught.value
    assert (error.code, error.title, error.status) == ("too_purple", "Too purple", 429)
    assert (error.retry, error.details) == (True, {"limit": 3})


async def test_closed_client_raises(script: Script) -> None:
    client = client_of(script)
    with pytest.raises(LocalError):
        await client.delete("c", "m")
    async with client:
        asked = await deleting(client, "m")
    with pytest.raises(LocalError):
        await asked
    with pytest.raises(LocalError):
        await client.delete("c", "m")


_FORM = "url must be like 'https://host/tenuto'"
_PORT = f"{_FORM}, with a port from 1 to 65535 or none"


@pytest.mark.parametrize(
    ("url", "detail"),
    [
        ("ftp://host", f"{_FORM}, got 'ftp://host'"),
        ("https://", f"{_FORM}, got 'https://'"),
        ("http://[::1", f"{_FORM}, got 'http://[::1'"),
        ("http://two words", f"{_FORM}, got 'http://two words'"),
        ("http://a..b", f"{_FORM}, got 'http://a..b'"),
        (8000, f"{_FORM}, got 8000"),
        ("http://host:0", f"{_PORT}, got 'http://host:0'"),
        ("http://host:port", f"{_PORT}, got 'http://host:port'"),
        ("http://user:pw@host:99999", f"{_PORT}, got 'http://host:99999'"),
        ("https://user:pw@host", "url must have a host and a path only, got 'https://host'"),
        ("https://host/?token=x", "url must have a host and a path only, got 'https://host/'"),
    ],
)
def test_an_address_is_a_host_and_a_path(url: Any, detail: str) -> None:
    with pytest.raises(LocalError) as refused:
        Client(url, dial=Script())
    assert refused.value.detail.startswith(detail)


def test_either_a_token_or_a_provider() -> None:
    with pytest.raises(LocalError):
        Client("https://host", token="a", token_provider=Provider(), dial=Script())


@given(st.integers(1, 200), st.integers(0, 1_000))
def test_back_off_is_between_zero_and_its_ceiling(failures: int, seed: int) -> None:
    delay_s = QUICK.backoff(failures, Random(seed))
    assert 0 <= delay_s <= min(QUICK.backoff_cap_s, QUICK.backoff_s * 2 ** min(failures - 1, 10))
    assert Timing().backoff(failures, Random(seed)) <= 15 / 3  # of the lease of a writer, which an outage has to leave
