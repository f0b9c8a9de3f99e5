"""Every error class, raised through its public path: the message shows the value, on one bounded line.

Layer: tests.

A new error class needs a case here: one test enumerates the classes. The wording of a message may change freely, as
long as it keeps the value.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import pkgutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tenuto
from tenuto import Hub, Identity
from tenuto.cli.tail import Refused, follow
from tenuto.client import Client, Timing
from tenuto.client.connection import NotTenuto, Refusal, UnknownProblem, Unreachable, error_of
from tenuto.core import errors
from tenuto.core.errors import LocalError, TenutoError, shown, shown_url
from tenuto.core.events import Batch, MessageAppend, MessageCreate
from tenuto.core.limits import Limits
from tenuto.core.model import Message
from tenuto.core.requests import (
    AppendText,
    Caller,
    CreateMessage,
    DeleteMessage,
    FinishMessage,
    Request,
    SendCommand,
    TakeOver,
    UpdateMessage,
)
from tenuto.core.view import View, ViewGap
from tenuto.demo.guests import Guests, NoInvite
from tenuto.hub.access.identity import Expired
from tenuto.hub.access.tokens import jwt_verifier
from tenuto.sources import UpstreamEnded, UpstreamError, pipe
from tenuto.stores.base import CommitUnknown, StoreReplaced, head_of
from tenuto.stores.postgres.life import StoreLife
from tenuto.stores.sqlite import store as sqlite
from tenuto.stores.sqlite.store import SqliteStore
from tests.transports.conftest import asking, listening, new_hub, serving

SERVER = Caller(is_server=True)
ANN = Caller(id="ann")
BOB = Caller(id="bob")
SMALL = Limits(
    append_bytes=10, message_bytes=2_000, meta_bytes=20, parts=2, depth=8, open_commands=1, history_bytes=10_000
)
C, M = "chat:1", "m1"
QUICK = Timing(open_s=0.05, response_s=0.05, request_s=0.1, backoff_s=0.001, backoff_cap_s=0.002, leave_s=0.1)


Provoke = Callable[["Place"], Awaitable[object]]


# The cases --------------------------------------------------------------------------------------------------------


class Place:
    """A hub with one streaming message `m1` of `ann`, and a folder for files."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub = hub
        self.folder = folder

    async def ask(self, request: Request, caller: Caller = ANN, message_id: str = M) -> object:
        return await self.hub.ask(C, message_id, request, caller)

    async def begin(self, **fields: Any) -> None:
        fields = {"role": "assistant", "status": "streaming", "text": "abc", **fields}
        await self.ask(CreateMessage(**fields))


class Case(NamedTuple):
    """One way to an error: its class, the values that its message must show, and the code that raises it."""

    error: type[Exception]
    values: tuple[object, ...]
    provoke: Provoke


def asked(
    error: type[TenutoError], values: tuple[object, ...], request: Request, caller: Caller = ANN, **create: Any
) -> Case:
    """Return the case of a request about the message `m1` in process."""

    async def provoke(place: Place) -> None:
        await place.begin(**create)
        await place.ask(request, caller)

    return Case(error, values, provoke)


def after(
    error: type[TenutoError], values: tuple[object, ...], first: Request, request: Request, caller: Caller = ANN
) -> Case:
    """Return the case of a request that is refused because `first` came before it."""

    async def provoke(place: Place) -> None:
        await place.begin()
        await place.ask(first, SERVER)
        await place.ask(request, caller)

    return Case(error, values, provoke)


def _name(case: Case) -> str:
    return case.error.__name__


def called(error: type[Exception], values: tuple[object, ...], call: Callable[[], object]) -> Case:
    """Return the case of a plain call."""

    async def provoke(_: Place) -> None:
        call()

    return Case(error, values, provoke)


def over_http(error: type[TenutoError], values: tuple[object, ...], method: str, path: str, **options: Any) -> Case:
    """Return the case of an HTTP request to the ASGI app; the problem comes back as the client's exception."""
    hub_options = options.pop("hub", {})
    address = options.pop("address", "127.0.0.1")

    async def provoke(place: Place) -> None:
        hub = new_hub(**hub_options)
        try:
            async with asking(hub, client=address) as http:
                raise_problem(error, await http.request(method, path, **options))
        finally:
            await hub.close()

    return Case(error, values, provoke)


def raise_problem(error: type[TenutoError], response: Any) -> None:
    """Raise the refusal in a response, as `error` if it has the code of that class."""
    problem = response.json()
    raise error(problem["detail"]) if problem["code"] == error.code else error_of(problem)


async def nobody(scope: Any) -> Identity | None:
    return None


async def expired(scope: Any) -> Identity | None:
    return Identity(client_id="ann", expires_at_ms=1)


async def busy(place: Place) -> None:
    hub = new_hub(limits=Limits(waiting_requests=0))
    try:
        await hub.create(C, text="x")
    finally:
        await hub.close()


async def draining(place: Place) -> None:
    await place.begin()
    await place.hub.drain()
    async with asking(place.hub) as http:
        raise_problem(errors.Draining, await http.get("/readyz"))


async def many_commands(place: Place) -> None:
    await place.begin()
    for number in range(3):
        await place.hub.ask(C, f"!k{number}", SendCommand(name="approve"), BOB)


async def full(place: Place) -> None:
    hub = Hub(f"sqlite:///{place.folder / 'full.db'}", max_bytes="10MB", hooks_signals=False)
    try:
        await hub.create(C, text="x")
        await hub.store.note({"filling": bytes(10**7)})
        await hub.create(C, text="x")
    finally:
        await hub.close()


async def unknown_code(place: Place) -> None:
    await read_over_http(418, {"code": "teapot", "detail": "the pot 'p1' is a teapot; use the kettle"})


async def invalid_response(place: Place) -> None:
    await read_over_http(200, {"message": 5, "cursor": ""})


async def read_over_http(status: int, body: object) -> None:
    """Read a message from a server that responds to each request with `body`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    async with listening(app, lifespan="off") as port, Client(f"http://127.0.0.1:{port}") as client:
        await client.read(C, M)


async def replied_twice(place: Place) -> None:
    await place.begin()
    sent = await place.hub.command(C, "approve")
    await place.hub.reply(C, sent.id, ok=True)
    await place.hub.reply(C, sent.id, ok=False)


async def store_missing(place: Place) -> None:
    await SqliteStore(place.folder / "nowhere" / "chat.db").open()


async def store_in_use(place: Place) -> None:
    first = SqliteStore(place.folder / "chat.db")
    await first.open()
    try:
        await SqliteStore(place.folder / "chat.db", lock_wait_s=0).open()
    finally:
        await first.close()


async def store_unusable(place: Place) -> None:
    (place.folder / "chat.db").write_bytes(b"not a database at all " * 500)
    await SqliteStore(place.folder / "chat.db").open()


async def damaged(place: Place) -> None:
    hub = Hub(f"sqlite:///{place.folder / 'chat.db'}", hooks_signals=False)
    await hub.create(C, id="m1", text="hello")
    await hub.close()
    with closing(sqlite3.connect(place.folder / "chat.db")) as db, db:
        db.execute("UPDATE documents SET crc = crc + 1")
    hub = Hub(f"sqlite:///{place.folder / 'chat.db'}", hooks_signals=False)
    try:
        await hub.update(C, "m1", text="x")
    finally:
        await hub.close()


async def store_not_open(place: Place) -> None:
    await head_of(SqliteStore(place.folder / "chat.db"), C)


def replaced_life() -> StoreLife:
    life = StoreLife("tenuto", "'postgresql://db/app'")
    life._is_over = True  # a server that was promoted: tests/stores/test_postgres_failover.py
    return life


async def commit_in_doubt(place: Place) -> None:
    store = SqliteStore(place.folder / "chat.db", busy_s=10)
    await store.open()
    patch = pytest.MonkeyPatch()
    try:
        with closing(sqlite3.connect(place.folder / "chat.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            patch.setattr(sqlite, "TIMEOUT_S", 0.5)  # in this time the thread must have begun the commit
            try:
                await store.note({"name": b"value"})
            finally:
                patch.undo()
                other.execute("ROLLBACK")
    finally:
        await store.close()


async def unreachable(place: Place) -> None:
    async def no_route(url: str, headers: dict[str, str]) -> Any:
        raise OSError("no route to host")

    async with Client("http://nowhere.example/", timing=QUICK, timeout_s=0.1, dial=no_route) as client:
        await client.create(C, text="x")


async def not_tenuto(place: Place) -> None:
    async def another_server(url: str, headers: dict[str, str]) -> Any:
        raise Refusal(404, {}, 0.0)

    async with Client("http://nowhere.example/", timing=QUICK, timeout_s=0.1, dial=another_server) as client:
        await client.create(C, text="x")


async def refused_tail(place: Place) -> None:
    hub = new_hub(authenticate=nobody)
    async with serving(hub) as served:
        await asyncio.to_thread(
            lambda: follow(
                f"http://127.0.0.1:{served.port}", C, since=None, history=1, out=io.StringIO(), notices=io.StringIO()
            )
        )


def piped(*items: object, source: str | None = None) -> Provoke:
    async def provoke(place: Place) -> None:
        async with place.hub.message(C) as message:
            await pipe(message, iter(items), source=source)

    return provoke


def gap_in_view() -> None:
    view = View()
    message = Message(
        id=M, role="assistant", status="streaming", parts=[], created=1, version=1, created_at=1, updated_at=1
    )
    view.receive(Batch(events=[MessageCreate(serial=1, message=message)]))
    view.receive(Batch(events=[MessageAppend(serial=2, id=M, part=3, at=0, text="x")]))


LONG = "x" * 5_000
CASES: list[Case] = [
    # in process: the core
    asked(errors.InvalidRequest, ("robot", "'assistant'"), CreateMessage(role="user"), role="robot"),
    asked(errors.InvalidText, (r"\ud83d", "offset 2"), AppendText(text="ab\ud83d", at=3)),
    Case(errors.InvalidName, ("'a b'",), lambda place: place.hub.create("a b", text="x")),
    Case(errors.TooLarge, ("meta", "5008", "20"), lambda place: place.hub.create(C, text="x", meta={"a": LONG})),
    asked(errors.Forbidden, ("'m1'", "'bob'", "'admin'"), DeleteMessage(), BOB),
    asked(errors.NotWriter, ("'m1'", "'bob'"), AppendText(text="x"), BOB),
    asked(errors.ForbiddenStatus, ("'interrupted'", "'failed'"), FinishMessage(status="interrupted")),
    Case(errors.NotFound, ("'m2'",), lambda place: place.ask(AppendText(text="x"), ANN, "m2")),
    after(errors.Deleted, ("'m1'",), DeleteMessage(), AppendText(text="x")),
    asked(errors.Gap, ("part 0", "'m1'", "3", "840"), AppendText(text="x", at=840)),
    asked(errors.Mismatch, ("part 0", "'m1'", "3", "offset 1"), AppendText(text="xyz", at=1)),
    after(errors.Finished, ("'m1'", "'complete'"), FinishMessage(), AppendText(text="x")),
    after(errors.Fenced, ("1 (the default)", "'m1'", "2", "stale"), TakeOver(), AppendText(text="x")),
    asked(errors.StillStreaming, ("'m1'", "1"), UpdateMessage(text="x")),
    asked(errors.IdConflict, ("'m1'",), CreateMessage(text="other")),
    after(errors.VersionConflict, ("'m1'", "2", "7"), FinishMessage(), UpdateMessage(text="x", if_version=7)),
    asked(errors.NoPart, ("'m1'", "1 parts", "part 5"), AppendText(text="x", part=5)),
    asked(
        errors.NotText, ("part 0", "'m1'", "'file'"), AppendText(text="x", part=0), text=None, parts=[{"type": "file"}]
    ),
    Case(errors.TooMany, ("1",), many_commands),
    Case(errors.StoreFull, ("10,000,000", "max_bytes", "retention"), full),
    Case(errors.AlreadyAnswered, ("command",), replied_twice),
    called(ViewGap, ("'m1'", "part 3", "0 parts"), gap_in_view),
    # over HTTP, and the end of a hub
    over_http(errors.MethodNotAllowed, ("PATCH", "POST"), "PATCH", "/v1/channels/c/messages"),
    over_http(
        errors.UnsupportedMediaType,
        ("application/json",),
        "POST",
        "/v1/channels/c/messages",
        content=b"x",
        headers={"content-type": "text/plain"},
    ),
    over_http(errors.NoVisitors, ("authenticate=visitors()",), "POST", "/v1/visitor"),
    over_http(
        errors.NoVerifier, ("'192.0.2.1'", "authenticate="), "GET", "/v1/channels/c/messages/m1", address="192.0.2.1"
    ),
    over_http(
        errors.Unauthenticated,
        ("'Basic'", "Bearer"),
        "GET",
        "/v1/channels/c/messages/m1",
        headers={"authorization": "Basic x"},
        hub={"authenticate": jwt_verifier(secret=LONG, audience="chat")},
    ),
    over_http(Expired, ("'ann'",), "GET", "/v1/channels/c/messages/m1", hub={"authenticate": expired}),
    Case(errors.Busy, ("0",), busy),
    Case(errors.Draining, ("this server", "connect to another"), draining),
    # the stores
    Case(errors.StoreUnavailable, ("nowhere",), store_missing),
    Case(errors.StoreInUse, ("chat.db", "process"), store_in_use),
    Case(errors.Damaged, ("m1", "delete it, or restore a backup"), damaged),
    Case(errors.StoreUnusable, ("chat.db", "SQLITE_NOTADB"), store_unusable),
    Case(CommitUnknown, ("chat.db", "s;"), commit_in_doubt),
    called(StoreReplaced, ("db/app",), replaced_life().require),
    Case(LocalError, ("chat.db", "open()"), store_not_open),
    # the sources
    Case(UpstreamError, ("int", "text"), piped("a", 5)),
    Case(UpstreamEnded, ("finish",), piped({"choices": []}, source="openai-chat")),
    # the client
    Case(Unreachable, ("nowhere.example",), unreachable),
    Case(NotTenuto, ("nowhere.example", "404", "path"), not_tenuto),
    Case(TenutoError, ("$.message", "`int`"), invalid_response),
    Case(UnknownProblem, ("'p1'", "teapot"), unknown_code),
    Case(Refused, ("unauthenticated",), refused_tail),
    # arguments
    # the demo
    called(NoInvite, ("10 minutes",), lambda: Guests("http://127.0.0.2", key="k", agent_token="t").join("x", "peer")),
]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    hub = new_hub(limits=SMALL)
    yield Place(hub, tmp_path)
    await hub.close()


@pytest.mark.parametrize("case", CASES, ids=_name)
async def test_message_of_an_error_shows_the_value(case: Case, place: Place) -> None:
    raised = await _raised(case, place)
    assert isinstance(raised, case.error)
    text = str(raised)
    assert case.values
    assert text.isprintable()
    assert len(text) <= 600
    assert [value for value in case.values if str(value) not in text] == [], text


async def _raised(case: Case, place: Place) -> Exception:
    async with asyncio.timeout(60):
        try:
            await case.provoke(place)
        except Exception as error:
            return error
    raise AssertionError("the call raised no error")


def _classes(base: type[TenutoError]) -> Iterator[type[TenutoError]]:
    yield base
    for one in base.__subclasses__():
        if one.__module__.partition(".")[0] == "tenuto":
            yield from _classes(one)


def test_every_error_class_has_a_case() -> None:
    for module in pkgutil.walk_packages(tenuto.__path__, "tenuto."):
        if not module.name.startswith("tenuto.__main__"):
            with suppress(ImportError):  # an optional dependency may be missing
                importlib.import_module(module.name)
    assert set(_classes(TenutoError)) - {case.error for case in CASES} == set()


# Values in messages -----------------------------------------------------------------------------------------------


class Strange:
    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("retry", "'retry'"),
        (None, "None"),
        (5, "5"),
        ([1, 2], "a list of 2 items"),
        ({"a": 1}, "an object of 1 keys"),
        (b"secret", "6 bytes"),
        ("\ud83d", r"'\ud83d'"),
        (Strange(), "<Strange>"),
    ],
)
def test_value_is_shown_by_its_repr(value: object, expected: str) -> None:
    assert shown(value) == expected


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, "\n" * 10_000, "👋" * 10_000, 10**4_000, 10**10_000],
    ids=["text", "line ends", "emoji", "large number", "number beyond repr"],
)
def test_shown_value_is_bounded(value: object) -> None:
    text = shown(value, 60)
    assert len(text) <= 60
    assert text.isprintable()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://host/path", "'https://host/path'"),
        ("sqlite:////data/a@b.db?synchronous=off", "'sqlite:////data/a@b.db'"),
        ("postgres://ann:geheim@db:5432/chat?password=geheim#geheim", "'postgres://db:5432/chat'"),
        ("postgres://ann:ge/he?i#m@db/chat", "'postgres://db/chat'"),
        ("ann:geheim@db", "'db'"),
        ("http:///ann:geheim@host", "'http://host'"),
    ],
)
def test_url_is_shown_without_credentials_and_query(url: str, expected: str) -> None:
    assert shown_url(url) == expected
