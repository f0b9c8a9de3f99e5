"""Every error class, raised through its public path: the message shows the value and reads as a sentence.

Layer: tests.

The rule for a sentence is simple enough to check: the message begins with its subject (a noun phrase, so no leading
verb, no negation and no indefinite pronoun), a finite verb follows in the same clause, and the remedy is a statement
and not a question. One test applies the rule to each error text in the package, also to those that no case raises. A
new error class needs a case here: the last test enumerates the classes. The wording of a message may change freely, as
long as it keeps the value.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import io
import json
import pkgutil
import re
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
from tenuto.client.dial import Refusal
from tenuto.client.problems import NotTenuto, UnknownProblem, Unreachable, error_of
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
    PutPart,
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
from tenuto.stores import open_url
from tenuto.stores.base import CommitUnknown, StoreReplaced, head_of
from tenuto.stores.postgres.life import StoreLife
from tenuto.stores.sqlite import store as sqlite
from tenuto.stores.sqlite.store import SqliteStore
from tests.transports.conftest import asking, listening, new_hub, serving

APP = Caller(is_app=True)
SERVER = Caller(is_server=True)
ANN = Caller(id="ann")
BOB = Caller(id="bob")
SMALL = Limits(
    append_bytes=10, message_bytes=2_000, meta_bytes=20, parts=2, depth=8, open_commands=1, history_bytes=10_000
)
C, M = "chat:1", "m1"
QUICK = Timing(open_s=0.05, response_s=0.05, request_s=0.1, backoff_s=0.001, backoff_cap_s=0.002, leave_s=0.1)

PACKAGE = Path(tenuto.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

Provoke = Callable[["Place"], Awaitable[object]]


# The rule ---------------------------------------------------------------------------------------------------------

# Verbs, with which a message would begin without naming a thing, and pronouns, which name none.
LEADING_VERBS = """
add append are ask attach await be bring call cannot check could did do does draw enter expected failed find get
give got has have invalid is keep make may missing must name need needs open pass put raise read refused
register send set stop take tell try use wait was were write wrote
"""
PRONOUNS = """
anybody everybody he it nobody nothing she somebody something they what whatever who whoever whom
"""
OTHERS = "how invalid no none not stale there too when why"  # they begin no noun phrase
NO_SUBJECT = frozenset((LEADING_VERBS + PRONOUNS + OTHERS).split())
FINITE_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|does|do|did|must|may|can|cannot|could|would|will|needs?|holds|names|belongs|begins|"
    r"yielded|came|reported|sent|ended|broke|refused|failed|lacks|requires|differ|closed|serves|hears|waits?|runs|"
    r"accepts|blocks|brings|carries|contains|died|exceed(?:s|ed)|exists|expired|fetched|found|got|grants|matches|redirected"
    r"|responded|stopped|takes|timed|verifies|works)\b"
)
# The first clause ends here: its verb must not be one of the remedy's or of a relative clause.
_CLAUSE_END = re.compile(r"[;?]|: |, which |\bbecause\b")
_IN_QUOTES = re.compile(r"(?<!\w)'[^']*'|`[^`]*`|\([^()]*\)")
# A remedy follows the first clause, or the clause itself says what is expected.
REMEDY = re.compile(r"[;:.] |, got|\b(?:must|needs?|expected|limit|remedy|belongs|has only|so that|used? )\b")
WITHOUT_REMEDY = (UpstreamError, UpstreamEnded, errors.InvalidText)  # the provider's faults; `lone_surrogate` has one


def problem_with(text: str) -> str | None:
    """Return why `text` does not read as a sentence with a subject, or None."""
    text = re.sub(r"^[a-z_]+: (?=[a-z])", "", text)  # the code, which the command line puts first
    first = re.match(r"[\"'`]?([\w.:/~@-]+)", text)
    if first is None:
        return "it does not begin with a word"
    if first[1].lower() in NO_SUBJECT:
        return f"it begins with {first[1]!r}, which is not a subject"
    if not FINITE_VERB.search(_CLAUSE_END.split(_IN_QUOTES.sub("X", text))[0], 1):
        return "no finite verb follows the subject"
    if text.rstrip().endswith("?"):
        return "it ends with a question in place of a remedy"
    if len(text) > 600 or not text.isprintable():
        return "it is too long or not printable"
    return None


@pytest.mark.parametrize(
    "text",
    ["on_crash must be 'interrupt', got 'retry'", "part 0 of message 'm1' has 812 characters", "'x' is no source"],
)
def test_sentence_with_a_subject_passes_the_rule(text: str) -> None:
    assert problem_with(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "must be above 0", "give text or parts", "nobody is known here", "invalid part", "the disk full"),
        "no connection to http://host within 5 s (refused): is the server running there, and is the port right?",
        "grant of 'x' on 'chat:*': no such capability; there are admin, agent",
        "too many unauthenticated connections (limit 5)",
        "stale attempt 1 of the turn, current is 2",
    ],
)
def test_text_without_a_subject_or_a_verb_breaks_the_rule(text: str) -> None:
    assert problem_with(text) is not None


def texts_of_errors(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, class and text of each error that the module at `path` makes, with `'x'` for inserted values."""
    known = {one.__name__: one for one in _classes(TenutoError)}
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        text = node.args[0]
        if name in known and isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield node.lineno, name, text.value
        elif name in known and isinstance(text, ast.JoinedStr):
            parts = (one.value if isinstance(one, ast.Constant) else "'x'" for one in text.values)
            yield node.lineno, name, "".join(map(str, parts))


def is_assembled(text: str) -> bool:
    """Return whether a helper makes the subject or the whole of `text`, so that only a raised message can be judged."""
    return re.match(r"'x'(?:;| 'x'|, because)", text) is not None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_of_each_error_is_a_sentence_with_a_remedy(path: Path) -> None:
    known = {one.__name__: one for one in _classes(TenutoError)}
    wrong = []
    for line, name, text in texts_of_errors(path):
        problem = None if is_assembled(text) else problem_with(text)
        if problem is None and not REMEDY.search(text) and not issubclass(known[name], WITHOUT_REMEDY):
            problem = "it has no remedy"
        if problem is not None:
            wrong.append(f"{line}: {text}: {problem}")
    assert not wrong, "\n".join(wrong)


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


async def subscriber(scope: Any) -> Identity | None:
    return Identity(client_id="ann", capabilities=frozenset({"subscribe"}))


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


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


def agent(**options: Any) -> Callable[[], object]:
    async def handler(turn: Any) -> None: ...

    return lambda: new_hub().agent("chat:*", **options)(handler)


LONG = "x" * 5_000
FILE = {"type": "file"}
ROBOT = {"role": "robot", "text": "x"}
CASES: list[Case] = [
    # in process: the core
    asked(errors.InvalidRequest, ("robot", "'assistant'"), CreateMessage(role="user"), role="robot"),
    asked(errors.InvalidRequest, ("failed", "'complete'"), CreateMessage(), status="failed"),
    asked(errors.InvalidRequest, ("done", "'complete'"), FinishMessage(status="done")),
    asked(errors.InvalidRequest, ("-3", "at"), AppendText(text="x", at=-3)),
    asked(errors.InvalidRequest, ("hi", "1 parts"), UpdateMessage(text="hi", parts=[{}], generation=1)),
    asked(errors.InvalidRequest, ("'image'", "'text'"), PutPart(index=1, part={"type": "image"})),
    asked(errors.InvalidRequest, ("'text'", "$.text"), PutPart(index=1, part={"type": "text", "text": 5})),
    asked(errors.InvalidRequest, ("inf",), PutPart(index=1, part={"type": "source", "x": float("inf")})),
    asked(errors.InvalidRequest, ("8 levels",), PutPart(index=1, part={"type": "source", "x": nested(20)})),
    asked(errors.InvalidRequest, ("'no'",), UpdateMessage(meta="no", generation=1)),
    asked(errors.InvalidText, (r"\ud83d", "offset 2"), AppendText(text="ab\ud83d", at=3)),
    asked(errors.InvalidText, (r"\ud83d",), CreateMessage(), text="ab\ud83d"),
    Case(errors.InvalidName, ("'a b'",), lambda place: place.hub.create("a b", text="x")),
    Case(errors.InvalidName, ("'a b'", "parent"), lambda place: place.hub.create(C, text="x", parent="a b")),
    Case(errors.InvalidName, ("xxx...xxx",), lambda place: place.hub.create(C, text="x", id=LONG)),
    Case(
        errors.InvalidRequest, ("new message", "str keys"), lambda place: place.hub.create(C, text="x", meta={1: "x"})
    ),  # type: ignore[dict-item]
    Case(errors.TooLarge, ("meta", "5008", "20"), lambda place: place.hub.create(C, text="x", meta={"a": LONG})),
    Case(errors.InvalidRequest, ("'image'",), lambda place: place.hub.create(C, parts=[{"type": "image"}])),
    asked(errors.Forbidden, ("'m1'", "'bob'", "'admin'"), DeleteMessage(), BOB),
    asked(errors.Forbidden, ("'m1'", "anonymous", "'admin'"), DeleteMessage(), Caller()),
    asked(errors.NotWriter, ("'m1'", "'bob'"), AppendText(text="x"), BOB),
    asked(errors.ForbiddenStatus, ("'interrupted'", "'failed'"), FinishMessage(status="interrupted")),
    asked(errors.ForbiddenStatus, ("'interrupted'", "'streaming'"), CreateMessage(), status="interrupted"),
    Case(errors.NotFound, ("'m2'",), lambda place: place.ask(AppendText(text="x"), ANN, "m2")),
    after(errors.Deleted, ("'m1'",), DeleteMessage(), AppendText(text="x")),
    asked(errors.Gap, ("part 0", "'m1'", "3", "840"), AppendText(text="x", at=840)),
    asked(errors.Gap, ("'m1'", "840"), AppendText(text="x", at=840), text=None),
    asked(errors.Mismatch, ("part 0", "'m1'", "3", "offset 1"), AppendText(text="xyz", at=1)),
    after(errors.Finished, ("'m1'", "'complete'"), FinishMessage(), AppendText(text="x")),
    after(errors.Finished, ("'m1'", "'complete'"), FinishMessage(), TakeOver()),
    after(errors.Fenced, ("1 (the default)", "'m1'", "2", "stale"), TakeOver(), AppendText(text="x")),
    after(errors.Fenced, ("generation 1", "'m1'", "2", "stale"), TakeOver(), AppendText(text="x", generation=1)),
    asked(errors.Fenced, ("7", "'m1'", "1"), AppendText(text="x", generation=7)),
    asked(errors.Fenced, ("7", "'m1'", "1"), TakeOver(generation=7), APP),
    asked(errors.StillStreaming, ("'m1'", "1"), UpdateMessage(text="x")),
    asked(errors.StillStreaming, ("'m1'", "1"), TakeOver()),
    asked(errors.IdConflict, ("'m1'",), CreateMessage(text="other")),
    after(errors.VersionConflict, ("'m1'", "2", "7"), FinishMessage(), UpdateMessage(text="x", if_version=7)),
    asked(errors.NoPart, ("'m1'", "1 parts", "part 5"), AppendText(text="x", part=5)),
    asked(errors.NoPart, ("'m1'", "1 parts", "part 5"), PutPart(index=5, part={"type": "text"})),
    asked(
        errors.NotText, ("part 0", "'m1'", "'file'"), AppendText(text="x", part=0), text=None, parts=[{"type": "file"}]
    ),
    asked(errors.TooLarge, ("11", "10"), AppendText(text="x" * 11)),
    asked(errors.TooLarge, ("meta", "20"), UpdateMessage(meta={"a": "x" * 30}, generation=1)),
    asked(errors.TooLarge, ("3 parts", "2"), UpdateMessage(parts=[{"type": "text"}] * 3, generation=1)),
    asked(errors.TooLarge, ("'m1'", "2000"), PutPart(index=1, part={"type": "source", "x": "x" * 1_960})),
    Case(errors.TooMany, ("1",), many_commands),
    Case(errors.StoreFull, ("10,000,000", "max_bytes", "retention"), full),
    Case(errors.AlreadyAnswered, ("command",), replied_twice),
    called(ViewGap, ("'m1'", "part 3", "0 parts"), gap_in_view),
    # over HTTP, and the end of a hub
    over_http(errors.InvalidRequest, ("robot",), "POST", "/v1/channels/c/messages", json=ROBOT),
    over_http(errors.NotFound, ("'m2'",), "GET", "/v1/channels/c/messages/m2"),
    over_http(errors.NotFound, ("'/v1/nowhere'",), "GET", "/v1/nowhere"),
    over_http(errors.MethodNotAllowed, ("PATCH", "POST"), "PATCH", "/v1/channels/c/messages"),
    over_http(
        errors.UnsupportedMediaType,
        ("application/json",),
        "POST",
        "/v1/channels/c/messages",
        content=b"x",
        headers={"content-type": "text/plain"},
    ),
    over_http(
        errors.Forbidden,
        ("client 'ann'", "'publish'", "channel 'chat:1'"),
        "POST",
        "/v1/channels/chat:1/messages",
        json={"text": "x"},
        hub={"authenticate": subscriber},
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
    called(LocalError, ("redis://localhost", "memory://"), lambda: open_url("redis://localhost")),
    called(LocalError, ("'mode'",), lambda: open_url("sqlite:///chat.db?mode=ro")),
    called(LocalError, ("'off'", "'full'"), lambda: SqliteStore("chat.db", synchronous="off")),
    called(LocalError, ("':memory:'",), lambda: SqliteStore(":memory:")),
    # the sources
    Case(LocalError, ("'clippy'", "openai-chat"), piped(source="clippy")),
    Case(LocalError, ("object",), piped(object())),
    Case(UpstreamError, ("int", "text"), piped("a", 5)),
    Case(
        UpstreamError, ("'delta'", "int"), piped({"type": "text-start", "id": "1"}, {"type": "text-delta", "delta": 5})
    ),
    Case(UpstreamError, ("overloaded_error",), piped({"error": {"type": "overloaded_error"}}, source="openai-chat")),
    Case(UpstreamEnded, ("finish",), piped({"choices": []}, source="openai-chat")),
    # the client
    Case(Unreachable, ("nowhere.example",), unreachable),
    Case(NotTenuto, ("nowhere.example", "404", "path"), not_tenuto),
    Case(TenutoError, ("$.message", "`int`"), invalid_response),
    Case(UnknownProblem, ("'p1'", "teapot"), unknown_code),
    called(LocalError, ("ftp",), lambda: Client("ftp://nowhere")),
    called(LocalError, ("token_provider",), lambda: Client("http://nowhere", token="t", token_provider=nobody)),
    Case(Refused, ("unauthenticated",), refused_tail),
    # arguments
    called(LocalError, ("on_crash", "'retry'"), agent(on_crash="retry")),
    called(LocalError, ("timeout_s", "-1"), agent(timeout_s=-1)),
    called(LocalError, ("'chat:*x'",), lambda: new_hub().agent("chat:*x")),
    # the demo
    called(NoInvite, ("10 minutes",), lambda: Guests("http://127.0.0.2", key="k", agent_token="t").join("x", "peer")),
]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    hub = new_hub(limits=SMALL)
    yield Place(hub, tmp_path)
    await hub.close()


@pytest.mark.parametrize("case", CASES, ids=_name)
async def test_message_of_an_error_shows_the_value_in_a_sentence(case: Case, place: Place) -> None:
    raised = await _raised(case, place)
    assert isinstance(raised, case.error)
    text = str(raised)
    assert problem_with(text) is None, f"{text!r}: {problem_with(text)}"
    assert case.values
    assert [value for value in case.values if str(value) not in text] == [], text


async def _raised(case: Case, place: Place) -> Exception:
    async with asyncio.timeout(20):
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
