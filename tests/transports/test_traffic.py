"""The bytes that a client's requests cause, counted alike on each transport (docs/security.md, "Rates")."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from tenuto.hub.access.identity import Identity
from tenuto.hub.access.rates import FREE_BYTES, ClientLimits, Rates
from tenuto.transports import http
from tests.transports.conftest import PATIENCE_S
from tests.transports.test_identity import EVENTS, Verified, served
from tests.transports.test_websocket import dialled
from tests.transports.watching import Stream

__all__ = ["served"]  # the fixture `served`, which pytest finds in this module

CHANNEL = "/v1/channels/chat:1"
TEXT = "x" * 150_000
MAX_BYTES = 100_000


@pytest.fixture
async def counted(served: Verified) -> Verified:
    """A hub with a large message of ada's, whose clients may cause few bytes in an hour that does not pass."""
    await served.hub.create("chat:1", id="m1", author="ada", text=TEXT)
    served.hub.rates = Rates(ClientLimits(client_bytes=MAX_BYTES), now_s=lambda: 0.0)
    return served


def charged_bytes(served: Verified, sub: str = "ada") -> float:
    """Return the bytes that a client has caused."""
    client = served.hub.rates._clients.get(sub)
    return MAX_BYTES - client.bytes.level if client is not None else 0


async def get(served: Verified, path: str) -> None:
    assert (await served.http.get(f"{CHANNEL}/{path}", headers=served.bearer())).status_code == 200


async def publish(served: Verified) -> None:
    response = await served.post(f"{CHANNEL}/messages", {"text": TEXT}, served.bearer())
    assert response.status_code == 201, response.text


async def body_begun(
    served: Verified, *, length: int | None = None, text: str = TEXT
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request whose body does not end: of `length` bytes, or in chunks. The server reads all that was sent."""
    reader, writer = await served.connect()
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    head = f"POST {CHANNEL}/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{size}\r\n"
    writer.write(f"{head}Authorization: {served.bearer()['Authorization']}\r\n\r\n".encode())
    writer.write(text.encode() if length is not None else f"{len(text):x}\r\n{text}\r\n".encode())
    return reader, writer


def open_bytes(served: Verified) -> int:
    """Return the bytes of ada's bodies that have not ended."""
    client = served.hub.rates._clients.get("ada")
    return client.body_bytes if client is not None else 0


async def aborted_body(served: Verified, length: int | None = 1_000_000) -> None:
    _, writer = await body_begun(served, length=length)
    await served.until(lambda: open_bytes(served) == len(TEXT))
    writer.close()
    await served.until(lambda: open_bytes(served) == 0)


async def late_chunks(served: Verified) -> None:
    reader, _ = await body_begun(served)
    assert b"did not end within" in await reader.readuntil(b"}")


async def follow(served: Verified, path: str, until: str) -> None:
    stream = await Stream.open(served, f"{CHANNEL}/{path}", **served.bearer())
    await stream.until_event(until)


async def stream_by_ticket(served: Verified) -> None:
    stream = await Stream.open(served, f"{EVENTS}?ticket={await served.ticket()}")
    await stream.until_event("message.update")


async def send(served: Verified, type: str, until: str = "ok", **fields: str) -> None:
    async with dialled(served, additional_headers=served.bearer()) as peer:
        assert (await peer.ask(type, channel="chat:1", **fields))["type"] == "ok"
        await peer.until(until)


async def publish_to_a_viewer(served: Verified) -> None:
    async with dialled(served, additional_headers=served.bearer()) as peer:
        await peer.ask("attach", channel="chat:1", history=0)
        assert (await peer.ask("create", channel="chat:1", text=TEXT))["type"] == "ok"


# Each with the number of times that the text is in its traffic: a response to a new message holds it, too.
ACTS: dict[str, tuple[Callable[[Verified], Awaitable[None]], float]] = {
    "page": (partial(get, path="messages"), 1),
    "message": (partial(get, path="messages/m1"), 1),
    "long poll": (partial(get, path="poll?history=5"), 1),
    "publish": (publish, 2),
    "aborted body": (aborted_body, 1),
    "aborted chunks": (partial(aborted_body, length=None), 1),
    "late chunks": (late_chunks, 1),
    "event stream": (partial(follow, path="events", until="message.update"), 1),
    "stream by ticket": (stream_by_ticket, 1),
    "message stream": (partial(follow, path="messages/m1/events", until="done"), 1),
    "page by socket": (partial(send, type="history"), 1),
    "attached socket": (partial(send, type="attach", until="events"), 1),
    "publish by socket": (publish_to_a_viewer, 3 - FREE_BYTES / len(TEXT)),
}


@pytest.mark.parametrize("name", ACTS)
async def test_large_traffic_counts_on_each_transport(
    counted: Verified, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "late chunks":
        monkeypatch.setattr(http, "BODY_TIMEOUT_S", 1.5)  # in this time the server must have read the chunk
    act, times = ACTS[name]
    await act(counted)
    expected = len(TEXT) * times
    assert expected <= charged_bytes(counted) < expected + 3_000
    refused = await counted.http.get(CHANNEL, headers=counted.bearer())
    assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (429, "too_many", MAX_BYTES)
    wait_s = refused.json()["retry_after_s"]
    assert wait_s > 1_500
    assert wait_s <= int(refused.headers["retry-after"]) <= wait_s + 2
    ada = Identity(client_id="ada", grants={"chat:*": frozenset({"subscribe", "history"})})
    ticket = counted.hub.tickets.issue(ada, "chat:1")  # without a request
    ticketed = await Stream.open(counted, f"{EVENTS}?ticket={ticket}", Tenuto_Client="t")
    assert ticketed.response.status == 429
    assert (await counted.http.get(CHANNEL, headers=counted.bearer(sub="eve"))).status_code == 200


async def test_body_in_chunks_above_the_limit_is_refused_and_counts_what_has_arrived(counted: Verified) -> None:
    limit = counted.hub.limits.request_bytes
    reader, _ = await body_begun(counted, text="x" * (limit + 1))
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413 ")
    assert b'"code":"too_large"' in await reader.readuntil(b"}")
    assert limit < charged_bytes(counted) < limit + 5_000
    assert open_bytes(counted) == 0


async def test_body_of_an_announced_length_above_the_limit_is_refused_before_it_arrives(served: Verified) -> None:
    reader, _ = await body_begun(served, length=served.hub.limits.request_bytes + 1, text="x")
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413 ")


async def test_open_bodies_of_a_client_are_bounded_in_bytes(served: Verified) -> None:
    """They hold as much as eight of the largest, and then one more is refused while it arrives."""
    limit = served.hub.limits.request_bytes
    writers = [(await body_begun(served, length=limit, text="x" * (limit - 1)))[1] for _ in range(8)]
    await served.until(lambda: open_bytes(served) == 8 * (limit - 1))
    reader, _ = await body_begun(served, length=limit, text="x" * (limit - 1))
    refused = await reader.readuntil(b"}")
    assert refused.startswith(b"HTTP/1.1 429 ")
    assert f"have {8 * (limit - 1)} bytes together".encode() in refused
    await served.until(lambda: open_bytes(served) == 8 * (limit - 1))
    other = await served.post(f"{CHANNEL}/messages", {"text": "hello"}, served.bearer(sub="eve"))
    assert other.status_code == 201, other.text
    for writer in writers:
        writer.close()
    await served.until(lambda: open_bytes(served) == 0)


async def test_agent_is_not_counted_and_its_text_counts_for_no_viewer(counted: Verified) -> None:
    stream = await Stream.open(counted, f"{EVENTS}?history=0", **counted.bearer())
    await stream.until_event("channel.attached")
    before = charged_bytes(counted)
    bot = counted.bearer("history", "publish", "append", sub="bot")
    for _ in range(3):
        response = await counted.post(f"{CHANNEL}/messages", {"role": "assistant", "text": TEXT}, bot)
        assert response.status_code == 201, response.text
    await stream.until(lambda: sum(TEXT in event.data.decode() for event in stream.events) == 3)
    assert (charged_bytes(counted), charged_bytes(counted, "bot")) == (before, 0)


async def test_few_large_pages_are_read_at_once(served: Verified) -> None:
    """Their bytes are not known before they are read, so each counts half a MiB until then."""
    served.hub.rates = Rates(now_s=lambda: 0.0)
    await served.hub.create("chat:1", id="m1", text="x")
    read, begun, release = served.hub.history, 0, asyncio.Event()

    async def slow(*args: object, **options: object) -> object:
        nonlocal begun
        begun += 1
        await release.wait()
        return await read(*args, **options)  # type: ignore[arg-type]

    served.hub.history = slow  # type: ignore[method-assign, assignment]
    headers = served.bearer()
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        pages = [tasks.create_task(served.http.get(f"{CHANNEL}/messages", headers=headers)) for _ in range(25)]
        await served.until(lambda: begun + sum(one.done() for one in pages) == 25)
        release.set()
    assert (begun, sorted({one.result().status_code for one in pages})) == (20, [200, 429])
    for _ in range(80):  # each of the 20 pages has cost one request, and no more
        assert (await served.http.get(CHANNEL, headers=headers)).status_code == 200
    assert (await served.http.get(CHANNEL, headers=headers)).status_code == 429
