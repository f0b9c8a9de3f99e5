"""Permissions on long connections: expiring tokens, renewals, tickets, rates (docs/security.md)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from websockets.exceptions import InvalidStatus

from proof.simulation.clock import START_MS
from tenuto.app import Hub
from tenuto.cli.main import main
from tenuto.core.errors import LocalError
from tenuto.hub.access.identity import Identity
from tenuto.hub.access.rates import ClientLimits, Rates
from tenuto.hub.access.tickets import Tickets
from tenuto.hub.access.tokens import jwt_verifier
from tenuto.server.bounded_http import BoundedHttpProtocol
from tenuto.server.bounded_websocket import BoundedWebSocketProtocol
from tenuto.server.connections import Connections
from tenuto.server.serving import check_guarded
from tenuto.transports import access, websocket
from tests.transports.conftest import WAYS, Served, asking, new_hub, serving
from tests.transports.test_sse import heartbeats
from tests.transports.test_websocket import Peer, dialled
from tests.transports.watching import Stream
from tests.virtual import Watch, virtual_clock, virtually

SECRET = "a secret that only tests know, of at least thirty-two bytes"
EVENTS = "/v1/channels/chat:1/events"
READER = ("subscribe", "history")
PERSON = (*READER, "publish", "presence", "command")
LEFT_S = 600.0  # life of a token


class Verified(Served):
    """A served hub that verifies tokens."""

    watch: Watch

    def token(self, *capabilities: str, sub: str = "ada", left_s: float = LEFT_S, channel: str = "chat:*") -> str:
        claims = {
            "sub": sub,
            "aud": "chat",
            "exp": self.watch.now_s() + left_s,
            "tenuto": {channel: list(capabilities or PERSON)},
        }
        return jwt.encode(claims, SECRET, algorithm="HS256")

    def bearer(self, *capabilities: str, **options: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(*capabilities, **options)}"}

    def expire(self) -> None:
        """Let the tokens expire that were made so far."""
        self.watch.ahead_ms += round(LEFT_S * 1000)

    async def post(self, path: str, body: object, headers: dict[str, str]) -> Any:
        return await self.http.post(path, json=body, headers=headers)

    async def ticket(self, *capabilities: str, channel: str = "chat:1", **options: Any) -> str:
        response = await self.post("/v1/tickets", {"channel": channel}, self.bearer(*capabilities, **options))
        assert response.status_code == 201, response.text
        assert response.json()["expires_s"] == 60
        return str(response.json()["ticket"])


@asynccontextmanager
async def verifying(hub: Hub, watch: Watch, **options: Any) -> AsyncIterator[Verified]:
    async with serving(hub, **options) as plain:
        served = Verified(plain.hub, plain.port, plain.http)
        served.watch = watch
        yield served
        served.close()


def verifying_hub(watch: Watch, url: str = "memory://", **options: Any) -> Hub:
    verifier = jwt_verifier(secret=SECRET, audience="chat", cookie="session", leeway_s=0, now_s=watch.now_s)
    return new_hub(url, **{"authenticate": verifier, "clock": watch, **options})


@pytest.fixture(params=WAYS)
async def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Verified]:
    """A hub that verifies tokens, behind a server. It looks at the clock again and again, as the clock may jump."""
    monkeypatch.setattr(access, "_MAX_TIMER_S", 0.02)
    watch = Watch()
    hub = verifying_hub(watch)
    hub.drive_by_hand = request.param == "hand"
    async with verifying(hub, watch) as one:
        yield one


def header(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# Streams that end with their identity


@pytest.mark.parametrize(
    ("path", "begin"), [(EVENTS, "channel.attached"), ("/v1/channels/chat:1/messages/m1/events", "answer")]
)
async def test_eventsource_gets_bye_when_its_identity_expires(served: Verified, path: str, begin: str) -> None:
    async with served.hub.message("chat:1", id="m1") as message:
        await message.append("some")
        await message.flush()
        stream = await Stream.open(served, path, **served.bearer(*READER))
        await stream.until_event(begin)
        served.expire()
        assert (await stream.until_event("bye")).data == b'"unauthenticated"'
        assert not await stream.until_over()
    assert 15_000 <= (stream.parser.retry_ms or 0) <= 45_000
    await served.until(lambda: served.hub.stats()["feeds"] == 0)


async def test_own_client_is_broken_off_when_its_identity_expires(served: Verified) -> None:
    token = served.token(*READER)
    stream = await Stream.open(served, EVENTS, Tenuto_Client="test", **header(token))
    await stream.until_event("channel.attached")
    served.expire()
    assert not await stream.until_over()
    assert [event.event for event in stream.events if event.event == "bye"] == []
    stream = await Stream.open(served, EVENTS, Tenuto_Client="test", **header(token))
    assert stream.response.status == 401


async def test_eventsource_with_an_expired_token_gets_bye_with_200(served: Verified) -> None:
    stream = await Stream.open(served, EVENTS, **served.bearer(*READER, left_s=-5))
    assert stream.response.status == 200
    assert (await stream.until_event("bye")).data == b'"unauthenticated"'
    assert await stream.until_over()


async def test_expired_stream_of_a_suspended_machine_ends_at_its_heartbeat(
    served: Verified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_MAX_TIMER_S", 3600.0)
    stream = await Stream.open(served, f"{EVENTS}?ping_s=2", **served.bearer(*READER))
    await stream.until_event("channel.attached")
    served.expire()
    for _ in range(2):
        heartbeats(served).tick()
    assert (await stream.until_event("bye")).data == b'"unauthenticated"'


@virtually
async def test_waiting_poll_is_refused_when_its_identity_expires() -> None:
    loop, clock = asyncio.get_running_loop(), virtual_clock()
    assert clock is not None

    async def reader(scope: Any) -> Identity | None:
        return Identity(client_id="ada", capabilities=frozenset(READER), expires_at_ms=START_MS + 20_000)

    hub = new_hub(authenticate=reader, clock=clock)
    async with asking(hub) as http:
        cursor = (await http.get("/v1/channels/c/poll")).json()["cursor"]
        response = await http.get(f"/v1/channels/c/poll?wait_s=60&since={cursor}", timeout=None)
    assert (response.status_code, response.json()["code"], loop.time()) == (401, "unauthenticated", 20.0)
    await hub.close()


async def test_the_callback_has_ended_before_the_stream_begins() -> None:
    held, calls = 0, 0

    async def authenticate(scope: Any) -> Identity | None:
        nonlocal held, calls
        held += 1  # stands for a session of a database
        calls += 1
        try:
            await asyncio.sleep(0)
            return Identity(client_id="ada", capabilities=frozenset(READER))
        finally:
            held -= 1

    async with serving(new_hub(authenticate=authenticate)) as served:
        stream = await Stream.open(served, EVENTS)
        await stream.until_event("channel.attached")
        assert (held, calls) == (0, 1)
        async with dialled(served) as peer:
            assert (await peer.ask("attach", channel="chat:1"))["type"] == "ok"
            assert (held, calls) == (0, 2)


# Sockets


async def closed_with(peer: Peer) -> tuple[int, str]:
    code, bye = await peer.closed()
    return code, bye.get("reason", "")


SESSIONS = {"expired": {"left_s": -5}, "of another person": {"sub": "eve"}, "with more rights": {"channel": "*"}}


@pytest.mark.parametrize("session", SESSIONS.values(), ids=SESSIONS)
async def test_token_in_the_first_frame_counts_and_no_session_of_a_cookie(
    served: Verified, session: dict[str, Any]
) -> None:
    browser: dict[str, Any] = {"origin": f"http://localhost:{served.port}"}
    browser["additional_headers"] = {"Cookie": f"session={served.token(**session)}"}
    async with dialled(served, **browser) as peer:
        asked = await peer.send("auth", token=served.token("publish"))
        created = await peer.send("create", channel="chat:1", text="x")  # waits until the token is verified
        assert (await peer.reply(asked))["you"]["id"] == "ada"
        assert (await peer.reply(created))["message"]["author"] == "ada"
        assert (await peer.ask("auth", token=served.token("publish", sub="eve")))["code"] == "forbidden"
    async with dialled(served, **browser) as peer:
        assert (await peer.ask("auth", token="garbage"))["code"] == "unauthenticated"
        assert await closed_with(peer) == (4201, "unauthenticated")


async def test_without_a_token_the_session_of_a_cookie_counts(served: Verified) -> None:
    browser: dict[str, Any] = {"origin": f"http://localhost:{served.port}"}
    async with dialled(served, **browser, additional_headers={"Cookie": f"session={served.token()}"}) as peer:
        assert (await peer.ask("create", channel="chat:1", text="x"))["message"]["author"] == "ada"
        assert (await peer.ask("auth", token=served.token(sub="eve")))["code"] == "forbidden"  # it is Ada's by now
    served.expire()
    ended = {"Cookie": f"session={served.token(left_s=-5)}"}
    async with dialled(served, **browser, additional_headers=ended) as peer:
        assert (await peer.ask("create", channel="chat:1", text="y"))["code"] == "unauthenticated"
        assert await closed_with(peer) == (4201, "unauthenticated")
    assert (await served.hub.info("chat:1")).serial == 1


async def test_page_that_only_a_star_allows_has_its_token_and_no_cookies(served: Verified) -> None:
    served.hub.allowed_origins = ("*",)
    page: dict[str, Any] = {"origin": "https://page.example"}
    for added in ({"Cookie": f"session={served.token(sub='eve')}"}, {"Authorization": "Basic eDp5"}):
        async with dialled(served, **page, additional_headers=added) as peer:
            assert (await peer.ask("auth", token=served.token()))["you"]["id"] == "ada"
        async with dialled(served, **page, additional_headers=added) as peer:
            assert (await peer.ask("create", channel="chat:1", text="x"))["code"] == "unauthenticated"
            assert await closed_with(peer) == (4201, "unauthenticated")
    assert (await served.hub.info("chat:1")).serial == 0


async def test_each_transport_sends_a_client_its_identity_capabilities_and_time_left(served: Verified) -> None:
    headers = {**served.bearer("subscribe", "history"), "Tenuto-Client": "test/1"}
    polled = await served.http.get("/v1/channels/chat:1/poll?wait_s=0", headers=headers)
    stream = await Stream.open(served, EVENTS, Tenuto_Client="test/1", **served.bearer(*READER))
    await stream.until_event("channel.attached")
    async with dialled(served) as peer:
        await peer.ask("auth", token=served.token("subscribe", "history"))
        attached = (await peer.ask("attach", channel="chat:1"))["you"]
    for you in (polled.json()["you"], json.loads(stream.events[0].data), attached):
        assert (you["id"], you["can"]) == ("ada", ["history", "subscribe"])
        assert 500 < you["expires_s"] <= 600


async def test_unauthenticated_socket_is_closed_after_any_other_frame(served: Verified) -> None:
    for frame in (
        {"type": "attach", "channel": "chat:1"},
        {"type": "create", "channel": "chat:1", "text": "x"},
        {"type": "auth"},
        *({"type": "auth", "token": one} for one in (7, "garbage", "", "\ud800", "a\r\nX-Evil: 1")),
        {},
        {"token": served.token("subscribe")},
    ):
        async with dialled(served) as peer:
            await peer.socket.send(json.dumps({"ref": 1, **frame}))
            refused = await peer.receive()
            assert (refused["type"], refused["code"], refused["ref"]) == ("error", "unauthenticated", 1), frame
            assert await closed_with(peer) == (4201, "unauthenticated"), frame
    assert (await served.hub.info("chat:1")).serial == 0


async def test_invalid_first_frame_closes_the_socket(served: Verified) -> None:
    large = json.dumps({"type": "auth", "ref": 1, "token": "x" * 8200})  # above 8 KiB
    for frame, code, reason in (
        *((text, 4201, "unauthenticated") for text in ("", "x", "[]", "null", '{"type":"auth"', "5")),
        (large, 4301, "too_large"),
        (b"\x00", 4300, "invalid_request"),
    ):
        async with dialled(served) as peer:
            await peer.socket.send(frame)
            assert await closed_with(peer) == (code, reason), frame


async def test_silent_unauthenticated_socket_is_closed(served: Verified, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "AUTH_TIMEOUT_S", 0.05)
    async with dialled(served) as peer:
        assert await closed_with(peer) == (4201, "unauthenticated")


async def test_unauthenticated_socket_gets_bye_when_the_hub_drains(served: Verified) -> None:
    async with dialled(served) as peer:
        await served.until(lambda: unknown(served) == 1)
        await served.hub.drain()
        code, bye = await peer.closed()
        assert (code, bye["reason"]) == (1012, "draining")
        assert 1000 <= bye["retry_ms"] <= 3000


def unknown(served: Served) -> int:
    return len(served.hub._asgi._sockets._unauthenticated)


async def test_unauthenticated_sockets_are_bounded(served: Verified, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_UNAUTHENTICATED", 1)
    async with dialled(served) as waiting:
        await served.until(lambda: unknown(served) == 1)
        with pytest.raises(InvalidStatus) as refused:
            async with dialled(served):
                pass
        assert refused.value.response.status_code == 503
        async with dialled(served, additional_headers=served.bearer()) as known:
            assert (await known.ask("detach", channel="c"))["type"] == "ok"
        assert (await waiting.ask("auth", token=served.token()))["type"] == "ok"
        await served.until(lambda: unknown(served) == 0)


async def test_token_sent_in_time_renews_the_socket(served: Verified) -> None:
    async with dialled(served, additional_headers=served.bearer(left_s=60)) as peer:
        assert (await peer.ask("attach", channel="chat:1"))["type"] == "ok"
        assert (await peer.ask("auth", token=served.token(left_s=600)))["type"] == "ok"
        served.watch.ahead_ms += 61_000
        assert (await peer.ask("create", channel="chat:1", id="m1", text="still here"))["type"] == "ok"
        served.watch.ahead_ms += 600_000
        await peer.send("create", channel="chat:1", id="m2", text="too late")
        assert await closed_with(peer) == (4200, "unauthenticated")
    assert (await served.hub.info("chat:1")).serial == 1
    await served.until(lambda: served.hub.stats()["feeds"] == 0)


@pytest.mark.parametrize("is_of_serve", [False, True], ids=["uvicorn", "tenuto serve"])
async def test_close_codes_of_an_identity_arrive_under_each_server(is_of_serve: bool) -> None:
    """The fixture `served` lets uvicorn choose its implementation of WebSockets; here it is named."""
    options: dict[str, Any] = {"ws": "websockets-sansio"}
    if is_of_serve:
        http = partial(BoundedHttpProtocol, Connections(max_open=100))
        options = {"http": http, "ws": BoundedWebSocketProtocol}
    watch = Watch()
    async with verifying(verifying_hub(watch), watch, **options) as served:
        async with dialled(served, additional_headers=served.bearer()) as peer:
            assert (await peer.ask("attach", channel="chat:1"))["type"] == "ok"
            assert (await peer.ask("auth", token=served.token("publish")))["type"] == "ok"
            assert await closed_with(peer) == (4003, "forbidden")
        await served.until(lambda: served.hub.stats()["feeds"] == 0)
        async with dialled(served) as peer:
            assert (await peer.ask("auth", token=served.token(left_s=60)))["type"] == "ok"
            served.watch.ahead_ms += 61_000
            await peer.send("create", channel="chat:1", text="too late")
            assert await closed_with(peer) == (4200, "unauthenticated")


async def test_apps_own_verifier_receives_the_token_of_a_frame() -> None:
    seen: list[dict[bytes, bytes]] = []

    async def authenticate(scope: Any) -> Identity | None:
        headers = dict(scope["headers"])
        seen.append(headers)
        token = headers.get(b"authorization", b"").decode()
        return Identity(client_id=token.removeprefix("Bearer ")) if token.startswith("Bearer u-") else None

    async with serving(new_hub(authenticate=authenticate)) as served:
        page = f"http://localhost:{served.port}"
        async with dialled(served, additional_headers={"Cookie": "a=b"}, origin=page) as peer:
            assert (await peer.ask("auth", token="u-ada"))["type"] == "ok"
            assert (await peer.ask("auth", token="x"))["code"] == "unauthenticated"
            assert (await peer.ask("auth", token="u-eve"))["code"] == "forbidden"
            assert (await peer.ask("create", channel="c", text="x"))["message"]["author"] == "u-ada"
    assert b"cookie" in seen[0]
    assert all(b"cookie" not in headers for headers in seen[1:])


# Tickets


async def test_a_ticket_alone_opens_nothing_after_its_minute(served: Verified) -> None:
    ticket = await served.ticket()
    stream = await Stream.open(served, f"{EVENTS}?ticket={ticket}")
    await stream.until_event("channel.attached")
    cursor = next(event.id for event in stream.events if event.id)
    served.watch.ahead_ms += 60_000
    for last in ({}, {"Last_Event_ID": "e:1"}, {"Last_Event_ID": cursor.rpartition(":")[0]}):
        refused = await Stream.open(served, f"{EVENTS}?ticket={ticket}", Tenuto_Client="t", **last)
        assert refused.response.status == 401
        stream = await Stream.open(served, f"{EVENTS}?ticket={ticket}", **last)
        assert (await stream.until_event("bye")).data == b'"unauthenticated"'
    again = await Stream.open(served, f"{EVENTS}?ticket={ticket}", Last_Event_ID=cursor)
    await again.until_event("channel.attached")


async def test_one_stream_of_a_ticket_is_open_at_a_time(served: Verified) -> None:
    ticket = await served.ticket()
    older = await Stream.open(served, f"{EVENTS}?ticket={ticket}")
    await older.until_event("channel.attached")
    newer = await Stream.open(served, f"{EVENTS}?ticket={ticket}")
    await newer.until_event("channel.attached")
    assert not await older.until_over()
    await served.hub.create("chat:1", id="m1", text="x")
    await newer.until_event("message.create")
    newer.close()
    await served.until(lambda: repr(served.hub.tickets) == "Tickets(1 keys, 0 open)")


async def test_a_ticket_outlives_the_server_where_the_verifier_has_a_secret(tmp_path: Path) -> None:
    watch, url = Watch(), f"sqlite:///{tmp_path}/hub.db"
    async with verifying(verifying_hub(watch, url), watch) as before:
        await before.hub.create("chat:1", id="m1", text="x")
        path = f"{EVENTS}?ticket={await before.ticket()}"
        stream = await Stream.open(before, path)
        await stream.until(lambda: any(event.id for event in stream.events))
        cursor = next(event.id for event in stream.events if event.id)
    watch.ahead_ms += 61_000
    async with verifying(verifying_hub(watch, url), watch) as after:
        again = await Stream.open(after, path, Last_Event_ID=cursor)
        attached = await again.until_event("channel.attached")
        assert json.loads(attached.data)["resumed"] is True
        # tickets of a hub whose verifier has only a public key, and so no key for tickets
        after.hub.tickets = Tickets(now_ms=watch.now_ms)
        assert (await Stream.open(after, path, Last_Event_ID=cursor)).response.status == 401


@pytest.mark.parametrize(
    ("other", "cookie_status"),
    [
        ({"audience": "other"}, 401),
        ({"audience": ["chat", "other"]}, 200),  # a token of one of its audiences is its own
        ({"issuer": "https://issuer.example"}, 401),
    ],
    ids=["audience", "one more audience", "issuer"],
)
async def test_cookie_ticket_and_mark_of_a_hub_are_refused_by_one_with_another_audience_or_issuer(
    tmp_path: Path, other: dict[str, Any], cookie_status: int
) -> None:
    """The hubs serve one store after each other: the cursor names the same log at both."""

    def token(**claims: Any) -> str:
        return jwt.encode({"sub": "ada", "tenuto": {"c": ["subscribe"]}, **claims}, SECRET, algorithm="HS256")

    def hub(**settings: Any) -> Hub:
        verifier = jwt_verifier(secret=SECRET, cookie="session", **{"audience": "chat", **settings})
        return new_hub(f"sqlite:///{tmp_path}/hub.db", authenticate=verifier)

    anywhere = header(token(aud=["chat", "other"], iss="https://issuer.example", exp=4e9))
    cookie = {"Cookie": f"session={token(aud='chat', exp=4e9)}"}
    poll = "/v1/channels/c/poll?wait_s=0"
    async with serving(hub()) as own:
        cursor = (await own.http.get(poll, headers=cookie)).json()["cursor"]
        ticket = (await own.http.post("/v1/tickets", json={"channel": "c"}, headers=anywhere)).json()["ticket"]
        await own.hub.create("c", text="not for a client that begins here")

    async def accepted(served: Served) -> tuple[int, int, bool]:
        """Return the statuses of the cookie and the ticket, and whether the cursor's mark counts."""
        batch = (await served.http.get(f"{poll}&since={cursor}", headers=anywhere)).json()["events"]
        return (
            (await served.http.get(poll, headers=cookie)).status_code,
            (await served.http.head(f"/v1/channels/c/events?ticket={ticket}")).status_code,
            any(event["type"] == "message.create" for event in batch),
        )

    async with serving(hub(**other)) as served:
        assert await accepted(served) == (cookie_status, 401, False)
    async with serving(hub()) as served:
        assert await accepted(served) == (200, 200, True)


# Rates


def still(served: Served, **limits: int) -> None:
    """Rates on a clock that stands still."""
    served.hub.rates = Rates(ClientLimits(**limits), now_s=lambda: 0.0)


async def test_client_above_its_request_rate_is_refused(served: Verified) -> None:
    still(served, client_requests=2)
    headers = served.bearer()
    for _ in range(4):
        assert (await served.http.get("/v1/channels/chat:1", headers=headers)).status_code == 200
    response = await served.http.get("/v1/channels/chat:1", headers=headers)
    assert (response.status_code, response.json()["code"], response.json()["limit"]) == (429, "too_many", 2)
    assert 1 <= int(response.headers["retry-after"]) <= 3
    assert (await served.http.get("/v1/channels/chat:1", headers=served.bearer(sub="eve"))).status_code == 200
    for capability in ("append", "agent", "admin"):
        headers = served.bearer("history", capability, sub="bot")
        for _ in range(6):
            assert (await served.http.get("/v1/channels/chat:1", headers=headers)).status_code == 200


async def test_frames_count_as_requests(served: Verified) -> None:
    still(served, client_requests=3)
    async with dialled(served, additional_headers=served.bearer()) as peer:
        for _ in range(5):  # the upgrade request was the first of six requests
            assert (await peer.ask("detach", channel="c"))["type"] == "ok"
        refused = await peer.ask("create", channel="chat:1", text="x")
        assert (refused["code"], refused["status"]) == ("too_many", 429)
    assert (await served.hub.info("chat:1")).serial == 0


async def test_connections_of_a_client_are_bounded_over_all_transports(served: Verified) -> None:
    still(served, client_connections=2)
    headers = served.bearer()
    stream = await Stream.open(served, EVENTS, **headers)
    async with dialled(served) as peer:
        assert (await peer.ask("auth", token=served.token()))["type"] == "ok"
        stream = await Stream.open(served, EVENTS, **headers)
        assert stream.response.status == 200
        assert (await stream.until_event("bye")).data == b'"too_many"'
        assert (stream.parser.retry_ms or 0) >= 15_000
        refused = await Stream.open(served, EVENTS, Tenuto_Client="t", **headers)
        assert refused.response.status == 429
        assert "retry-after" in refused.response.headers
        assert (await served.http.get("/v1/channels/chat:1/poll", headers=headers)).status_code == 429
        ticketed = await Stream.open(served, f"{EVENTS}?ticket={await served.ticket()}", Tenuto_Client="t")
        assert ticketed.response.status == 429
        with pytest.raises(InvalidStatus) as upgrade:
            async with dialled(served, additional_headers=headers):
                pass
        assert upgrade.value.response.status_code == 429
        async with dialled(served) as crowded:
            assert (await crowded.ask("auth", token=served.token()))["code"] == "too_many"
            assert await closed_with(crowded) == (4002, "too_many")
    stream.close()
    await served.until(lambda: can_connect(served))


@pytest.mark.parametrize("limits", [{"client_connections": 1}, {"client_requests": 1}], ids=["slots", "rate"])
async def test_token_counts_although_the_person_of_a_cookie_is_beyond_a_limit(
    served: Verified, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    still(served, **limits)
    page: dict[str, Any] = {"origin": f"http://localhost:{served.port}"}
    page["additional_headers"] = {"Cookie": f"session={served.token(sub='eve')}"}
    async with dialled(served, **page), dialled(served, **page):  # with two requests, a burst is over
        async with dialled(served, **page) as peer:
            assert (await peer.ask("auth", token=served.token()))["you"]["id"] == "ada"
            assert (await peer.ask("attach", channel="chat:1"))["type"] == "ok"
        async with dialled(served, **page) as peer:
            assert (await peer.ask("attach", channel="chat:1"))["code"] == "too_many"
            assert await closed_with(peer) == (4002, "too_many")
        monkeypatch.setattr(websocket, "AUTH_TIMEOUT_S", 0.05)
        async with dialled(served, **page) as peer:
            assert await closed_with(peer) == (4002, "too_many")


def can_connect(served: Verified) -> bool:
    """Return whether the client has a free connection slot."""
    identity = Identity(client_id="ada", grants={})
    try:
        served.hub.rates.connect(identity).leave()
    except Exception:
        return False
    return True


async def test_connection_slots_are_given_back_after_every_outcome(served: Verified) -> None:
    still(served, client_connections=1)
    headers = served.bearer(*READER)
    for path in (
        f"{EVENTS}?history=9999",
        f"{EVENTS}?flush_ms=x",
        "/v1/channels/chat:1/messages/none/events",
        "/v1/channels/chat:1/poll?wait_s=x",
        "/v1/channels/other/events",
    ):
        assert (await Stream.open(served, path, **headers)).response.status >= 400
    assert (await served.http.head(EVENTS, headers=headers)).status_code == 200
    assert (await served.http.get("/v1/channels/chat:1/poll", headers=headers)).status_code == 200
    async with dialled(served, additional_headers=headers):
        assert not can_connect(served)
    await served.until(lambda: can_connect(served))


async def test_on_this_machine_without_a_verifier_nothing_is_counted() -> None:
    async with serving(new_hub()) as served:
        still(served, client_requests=1, client_connections=1)
        for _ in range(5):
            assert (await served.http.get("/v1/channels/c")).status_code == 200
        streams = [await Stream.open(served, "/v1/channels/c/events") for _ in range(3)]
        assert [stream.response.status for stream in streams] == [200, 200, 200]
        ticket = (await served.http.post("/v1/tickets", json={"channel": "c"})).json()["ticket"]
        for _ in range(3):
            assert (await Stream.open(served, f"/v1/channels/c/events?ticket={ticket}")).response.status == 200


# Secrets


async def test_exception_in_a_verifier_is_not_sent() -> None:
    class Broken:
        async def __call__(self, scope: Any) -> Identity | None:
            raise HTTPException(403 if "403" in scope["path"] else 401)  # as a dependency of the app's routes does

        async def verify_token(self, token: str) -> Identity:
            raise ZeroDivisionError(token)

    hub = new_hub(authenticate=Broken())
    async with serving(hub) as served, dialled(served) as peer:
        for status in (401, 403):
            assert (await served.http.get(f"/v1/channels/c{status}")).status_code == status
        refused = await peer.ask("auth", token="very-secret")
        assert refused["code"] == "internal"
        assert "very-secret" not in json.dumps(refused)
        assert await closed_with(peer) == (4000, "internal")


# `tenuto serve`


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jwt-secret-file", "{secret}"], "--jwt-audience"),
        (["--jwt-audience", "chat"], "--jwt-secret-file or --jwks"),
        (["--jwt-secret-file", "{short}", "--jwt-audience", "chat"], "32 bytes"),
        (["--jwt-secret-file", "{none}", "--jwt-audience", "chat"], "does not exist"),
        (["--jwks", "http://issuer.example/keys", "--jwt-audience", "chat"], "https"),
        (["--allow-everyone", "--jwt-secret-file", "{secret}"], "--allow-everyone verifies no token"),
        (["--host", "0.0.0.0"], "--visitors"),
        (["--allow-everyone", "--visitors"], "cannot be used with"),
        (["--app", "x:y", "--visitors"], "--visitors, --retention"),
        (["--allowed-origin", "https://app.example/"], "origin"),
        (["--app", "x:y", "--jwks", "https://issuer.example/keys", "--jwt-audience", "chat"], "--app brings"),
        (["--max-bytes", "10GB"], "max_bytes needs a store in a file"),
        (["--app", "x:y", "--max-bytes", "10GB"], "--max-bytes and the options"),
        (["--retention", "chat:*"], "--retention must be PATTERN=AGE"),
    ],
)
def test_serve_refuses_conflicting_options(tmp_path: Path, options: list[str], message: str) -> None:
    paths = {name: tmp_path / name for name in ("secret", "short", "none")}
    paths["secret"].write_text(SECRET + "\n")
    paths["secret"].chmod(0o640)
    paths["short"].write_text("short")
    given = [option.format(**paths) for option in options]
    store = [] if "--app" in options else ["--store", "memory://"]
    ran = CliRunner().invoke(main, ["serve", *store, *given])
    assert ran.exit_code != 0
    assert message in ran.output
    assert "Traceback" not in ran.output
    assert SECRET not in ran.output


def test_non_loopback_address_needs_a_verifier() -> None:
    closed, guarded = new_hub(), new_hub(authenticate=jwt_verifier(secret=SECRET, audience="chat"))
    inner = Starlette(routes=[Mount("/deep", app=Starlette(routes=[Mount("/hub", app=guarded)]))])
    leaky = Starlette(routes=[Mount("/hub", app=guarded), Mount("/other", app=closed)])
    good: list[Any] = [guarded, inner]
    for app in good:
        check_guarded("0.0.0.0", app)
    bad: list[Any] = [closed, leaky, Starlette(), object()]
    for app in bad:
        check_guarded("127.0.0.1", app)
        with pytest.raises(LocalError, match=r"no verifier|no hub"):
            check_guarded("0.0.0.0", app)


# docs/security.md


async def test_new_channels_of_a_client_are_bounded_per_hour(served: Verified) -> None:
    still(served, client_channels=2)
    headers = served.bearer()
    for channel, status in (("chat:1", 201), ("chat:2", 201), ("chat:3", 429), ("chat:1", 201)):
        asked = {"text": "x", "options": {"tools": [{"name": channel}]}}
        response = await served.post(f"/v1/channels/{channel}/messages", asked, headers)
        assert response.status_code == status, response.text
    async with dialled(served, additional_headers=headers) as peer:
        assert (await peer.ask("create", channel="chat:4", text="x"))["code"] == "too_many"
        assert (await peer.ask("create", channel="chat:2", text="x"))["type"] == "ok"
    other = await served.post("/v1/channels/chat:3/messages", {"text": "x"}, served.bearer(sub="eve"))
    assert other.status_code == 201


async def test_signals_are_counted_apart(served: Verified) -> None:
    still(served, client_signals=2)
    headers = served.bearer()
    for status in (202, 202, 429):
        response = await served.post("/v1/channels/chat:1/signals", {"name": "typing", "data": {}}, headers)
        assert response.status_code == status, response.text
    async with dialled(served, additional_headers=headers) as peer:
        assert (await peer.ask("signal", channel="chat:1", name="typing"))["code"] == "too_many"
        assert (await peer.ask("create", channel="chat:1", text="x"))["type"] == "ok"
