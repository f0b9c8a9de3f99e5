"""Every operation on every transport, with and without its needs, on own and on foreign messages (docs/security.md).

The table of operations is `permissions`; what an owner may is decided by the core, whose tables are in its tests. A
refusal has the same words whether or not the target exists. The tests below the table try to read, write, signal or
work as another caller.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, get_args

import pytest

from tenuto.app import Hub
from tenuto.core.requests import Caller, CreateMessage, DeleteMessage, FinishMessage, SendCommand, TakeOver
from tenuto.hub.access.identity import CAPABILITIES, Identity
from tenuto.hub.access.rates import ClientLimits
from tenuto.transports import operations
from tenuto.transports.operations import frame_decoder
from tests.core.harness import LogHarness
from tests.core.test_ownership import REQUESTS, outcome, prepare
from tests.transports.asgi import exchange
from tests.transports.conftest import PATIENCE_S, new_hub
from tests.transports.lines import LiveLine
from tests.transports.permissions import (
    EVERY_CHANNEL,
    LISTED,
    OF_OWNERS,
    OPEN_FRAMES,
    OPEN_PATHS,
    OPERATIONS,
    PAGE,
    STATES,
    TO_WORK,
    Operation,
    operation,
    page_with,
    tables,
)
from tests.transports.test_protocol import classes

Json = dict[str, Any]

CHANNEL, OTHER = "chat:1", "chat:2"
READ = ("subscribe", "history")
PLENTY = ClientLimits(client_connections=10**6, client_requests=10**6, client_signals=10**6, client_channels=10**6)
ANN = Caller(id="ann")
CAROL = Caller(id="carol")
SERVER = Caller(is_server=True)


class People:
    """An authenticator: each issued token names its caller."""

    def __init__(self) -> None:
        self.known: dict[str, Identity] = {}

    async def __call__(self, scope: Any) -> Identity | None:
        found = [value.decode() for name, value in scope["headers"] if name == b"authorization"]
        return await self.verify_token(found[0].removeprefix("Bearer ")) if found else None

    async def verify_token(self, token: str) -> Identity | None:
        return self.known.get(token)

    def token(self, client_id: str | None = "ann", *capabilities: str, on: str = "*") -> str:
        """Return a token of a caller with these capabilities."""
        token = f"token-{len(self.known)}"
        self.known[token] = Identity(client_id=client_id, grants={on: frozenset(capabilities)})
        return token


class Response(NamedTuple):
    """A response: a status, the code of a refusal or "ok", and its content."""

    status: int
    code: str
    body: Any

    @property
    def problem(self) -> str:
        """Return a refusal without the details of its transport."""
        return json.dumps({name: value for name, value in self.body.items() if name not in ("ref", "type")})


class Place:
    """A hub with the authenticator `People`, and its content."""

    def __init__(self, hub: Hub, people: People) -> None:
        self.hub = hub
        self.people = people
        self.token = people.token

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str
    ) -> Response:
        """Send one HTTP request from a remote address, without a network. Return the first batch of a stream."""
        path, _, query = path.partition("?")
        lines = {"host": "chat.example", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if token is not None:
            lines["authorization"] = f"Bearer {token}"
        if body is not None:
            lines["content-type"] = "application/json"
        sent = await exchange(
            self.hub,
            path,
            method=method,
            headers=[(name.encode(), value.encode()) for name, value in lines.items()],
            client=("192.0.2.1", 5),
            query=query.encode(),
            body=json.dumps(body).encode() if body is not None else b"",
            leaves=True,
        )
        status = sent[0]["status"]
        text = b"".join(message.get("body", b"") for message in sent[1:])
        if status < 400:
            return Response(status, "ok", text)
        body = json.loads(text) if text else {"code": "?"}
        return Response(status, body["code"], body)

    @asynccontextmanager
    async def socket(self, token: str | None, *, query: str = "", **headers: str) -> AsyncIterator[Wire]:
        """Open a socket of the real app, without a network."""
        lines = {"host": "chat.example", **headers, **({"authorization": f"Bearer {token}"} if token else {})}
        encoded = [(name.encode(), value.encode()) for name, value in lines.items()]
        wire = Wire(self.hub, headers=encoded, query=query.encode(), client=("192.0.2.1", 5))
        try:
            yield wire
        finally:
            await wire.cut()


class Wire(LiveLine):
    """The client's end of a socket."""

    async def ask(self, type: str, **fields: Any) -> Response:  # type: ignore[override]
        """Send a frame, and wait for its reply."""
        body = await super().ask(type, **fields)
        if body["type"] == "ok":
            return Response(200, "ok", body)
        return Response(body["status"], body["code"], body)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    people = People()
    hub = new_hub(authenticate=people, client_limits=PLENTY)
    await hub.start()
    yield Place(hub, people)
    await hub.close()


# The content of a place


async def put(hub: Hub, state: str, id: str, channel: str = CHANNEL) -> None:
    """Store a message of ann's with this id, in this state."""
    growing = CreateMessage(role="assistant", status="streaming", text="text", lease_s=3600)
    match state:
        case "growing":
            await hub.ask(channel, id, growing, ANN)
        case "done":
            await hub.ask(channel, id, CreateMessage(text="text"), ANN)
        case "interrupted":
            await hub.ask(channel, id, growing, ANN)
            await hub.ask(channel, id, FinishMessage(status="interrupted"), SERVER)
        case "taken":
            await put(hub, "interrupted", id, channel)
            await hub.ask(channel, id, TakeOver(lease_s=3600), CAROL)
        case "local":
            await hub.ask(channel, id, growing, hub.caller("ann"))
        case "app":
            await hub.create(channel, id=id, text="text")
        case "deleted":
            await put(hub, "done", id, channel)
            await hub.ask(channel, id, DeleteMessage(), ANN)
        case "command":
            await hub.ask(channel, f"!{id}", SendCommand(name="approve"), ANN)
        case "never" | "me" | "":
            pass
        case _:
            raise AssertionError(state)


def filled(value: Any, channel: str, id: str) -> Any:
    """Return `value` with its placeholders filled in."""
    if isinstance(value, str):
        return value.replace("{channel}", channel).replace("{id}", id)
    if isinstance(value, dict):
        return {name: filled(inner, channel, id) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, channel, id) for inner in value]
    return value


async def by_http(place: Place, one: Operation, token: str | None, channel: str, id: str, **more: Any) -> Response:
    assert one.http is not None
    method, path = filled(one.http, channel, id).split(" ")
    if "/poll" in path:
        path += "?wait_s=0"
    if method == "PUT" and "generation" in more:
        path += f"?generation={more.pop('generation')}"
    body = {**filled(one.body, channel, id), **more} if one.body is not None else None
    return await place.ask(method, path, body, token=token)


async def by_frame(wire: Wire, one: Operation, channel: str, id: str, **more: Any) -> Response:
    assert one.frame is not None
    fields = filled(one.fields if one.fields is not None else one.body or {}, channel, id)
    if one.http is not None:
        fields["channel"] = channel
        if "{id}" in one.http and one.frame != "presence":
            fields["id"] = id
    return await wire.ask(one.frame, **{**fields, **more})


# Capabilities


def insufficient(place: Place, one: Operation) -> Iterable[str]:
    """Yield tokens that are insufficient for the operation."""
    yield place.token("ann")
    for needed in one.needs:
        yield place.token("ann", *(CAPABILITIES - {needed}))
        yield place.token("ann", needed, on="chat:10")
    yield place.token("ann", *CAPABILITIES, on="other:*")
    yield place.token("ann", *CAPABILITIES, on="chat:1:*")
    if one.needs != ("admin",):
        yield place.token("ann", "admin")
    if one.whose == EVERY_CHANNEL:
        yield place.token("ann", *CAPABILITIES, on=CHANNEL)
        yield place.token("ann", *CAPABILITIES, on="chat:*")


# Operations that a missing capability on the channel refuses; a list shows fewer channels instead.
ON_ONE_CHANNEL = [one for one in OPERATIONS if one.http is not None and one.whose != LISTED]

# Targets that exist, never existed, or were deleted, in a channel that exists and in one that does not.
SOMEWHERE = ((CHANNEL, "m1"), (CHANNEL, "none"), (CHANNEL, "gone"), ("chat:none", "none"))


def without_channels(responses: Iterable[Any]) -> set[str]:
    """Return the different problems of refused requests, without the name of the channel that each request gave."""
    return {one.problem.replace("'chat:none'", "CHANNEL").replace(repr(CHANNEL), "CHANNEL") for one in responses}


@pytest.mark.parametrize("one", ON_ONE_CHANNEL, ids=lambda one: one.name)
async def test_missing_capability_is_refused_over_http_and_reveals_no_state(place: Place, one: Operation) -> None:
    await put(place.hub, "deleted", "gone")
    await put(place.hub, one.about, "m1")
    before = (await place.hub.info(CHANNEL)).serial
    for token in insufficient(place, one):
        responses = [await by_http(place, one, token, channel, id) for channel, id in SOMEWHERE]
        assert {(response.status, response.code) for response in responses} == {(403, one.refused)}
        assert len(without_channels(responses)) == 1
        assert "m1" not in responses[0].problem
    for unknown in (None, "no token"):
        nobody = [await by_http(place, one, unknown, channel, id) for channel, id in SOMEWHERE]
        assert {(response.status, response.code) for response in nobody} == {(401, "unauthenticated")}
        assert len({response.problem for response in nobody}) == 1
    assert (await place.hub.info(CHANNEL)).serial == before


@pytest.mark.parametrize("one", [one for one in OPERATIONS if one.frame is not None], ids=lambda one: one.name)
async def test_missing_capability_is_refused_on_a_socket_and_reveals_no_state(place: Place, one: Operation) -> None:
    await put(place.hub, one.about if not one.has_turn else "done", "m1")
    await put(place.hub, "deleted", "gone")
    before = (await place.hub.info(CHANNEL)).serial
    for token in insufficient(place, one):
        async with place.socket(token) as wire:
            responses = [await by_frame(wire, one, channel, id) for channel, id in SOMEWHERE]
            assert {response.code for response in responses} == {one.refused}
            assert len(without_channels(responses)) == 1
            assert "m1" not in responses[0].problem
    async with place.socket(None) as wire:
        assert (await by_frame(wire, one, CHANNEL, "m1")).code == "unauthenticated"
        await wire.until(lambda: wire.code == 4201)
    async with place.socket("no token") as wire:
        assert (await wire.until(lambda: wire.refused))["code"] == "unauthenticated"
    assert (await place.hub.info(CHANNEL)).serial == before


@pytest.mark.parametrize("one", [one for one in OPERATIONS if not one.has_turn], ids=lambda one: one.name)
async def test_needed_capabilities_are_sufficient(place: Place, one: Operation) -> None:
    id = "ann" if one.about == "me" else "m1"
    if one.http is not None:
        await put(place.hub, one.about, id)
        response = await by_http(place, one, place.token("ann", *one.needs), CHANNEL, id)
        assert (response.status < 300, response.code) == (one.allowed == "ok", one.allowed), response
    if one.frame is not None:
        await put(place.hub, one.about, id, OTHER)
        async with place.socket(place.token("ann", *one.needs, on=OTHER)) as wire:
            assert (await by_frame(wire, one, OTHER, id)).code == one.allowed


@pytest.mark.parametrize("one", [one for one in OPERATIONS if one.http is not None], ids=lambda one: one.name)
async def test_head_is_authorised_as_get_and_options_reveals_no_state(place: Place, one: Operation) -> None:
    assert one.http is not None
    method, path = filled(one.http, CHANNEL, "m1").split(" ")
    asked = await place.ask("OPTIONS", path)
    assert (asked.status, asked.body) == (204, b"")
    if method == "GET":
        assert (await place.ask("HEAD", path, token=place.token("ann"))).status == 403
        assert (await place.ask("HEAD", path)).status == 401


def test_every_path_and_every_frame_is_in_the_table() -> None:
    named = {tuple(one.http.replace("/parts/0", "/parts/{n}").split(" ")) for one in OPERATIONS if one.http}
    offered = {(one.method, one.path) for one in operations.OPERATIONS if one.path and one.path not in OPEN_PATHS}
    assert named == offered
    types = {one.__struct_config__.tag for one in get_args(frame_decoder.type)} | {"auth"}
    assert {one.frame for one in OPERATIONS if one.frame} | set(OPEN_FRAMES) == types


def test_security_page_contains_the_tables() -> None:
    assert PAGE.read_text() == page_with(tables())


# Ownership

# The owner created the message; a reader may read the channel; an admin also holds `admin`; a blind caller created it,
# but may not read. A stranger may not read and did not create it.
HELD = {"owner": (*READ, "append"), "reader": READ, "admin": (*READ, "admin"), "stranger": (), "blind": ("append",)}
NAMES = {"owner": "ann", "reader": "bob", "admin": "root", "stranger": "eve", "blind": "ann"}
ROOT = {"author": "root", "from": "root", "by": "root", "client_id": "root", "sub": "root", "id_": "root"}
FORGED: Json = {**ROOT, "writer": {"by": "root", "node": "n"}, "node": "n", "created": 1, "version": 7, "caller": ROOT}
FORGED |= dict.fromkeys(("is_admin", "is_app", "is_server", "may_read", "may_write", "admin"), True)
FORGED["capabilities"] = sorted(CAPABILITIES)


def decided(name: str, state: str, id: str, held: frozenset[str]) -> str:
    """Return what the core decides if a client with these capabilities asks for an operation on a message."""
    harness = LogHarness()
    prepare(STATES[state], harness)
    may_read = not held.isdisjoint(READ)
    caller = Caller(id=id, is_admin="admin" in held, may_read=may_read, may_write="append" in held)
    return outcome(harness, REQUESTS[OF_OWNERS[name]], caller)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", OF_OWNERS)
async def test_ownership_is_the_same_on_every_transport(place: Place, name: str, state: str) -> None:
    """Also for requests that claim to be of another sender."""
    one = operation(name)
    found, expected, received = {}, {}, set()
    for caller in HELD:
        held = frozenset((*HELD[caller], *one.needs, *one.also))
        token = place.token(NAMES[caller], *held)
        ids = [f"{caller}-{way}" for way in ("http", "frame")]
        for id in ids:
            await put(place.hub, state, id)
        responses = [await by_http(place, one, token, CHANNEL, ids[0], **FORGED)]
        async with place.socket(token) as wire:
            responses.append(await by_frame(wire, one, CHANNEL, ids[1], **FORGED))
        for id, response in zip(ids, responses, strict=True):
            found[id], expected[id] = response.code, decided(name, state, NAMES[caller], held)
            if response.code != "ok":
                received.add((caller, response.problem.replace(id, "ID")))
                assert response.status == HTTP_STATUS[response.code]
    assert found == expected
    # HTTP and the socket must send the same words.
    assert len(received) == len({caller for caller, _ in received})


HTTP_STATUS = {error.code: error.status for error in classes()}


@pytest.mark.parametrize("name", OF_OWNERS)
async def test_stranger_gets_the_same_refusal_for_every_message(place: Place, name: str) -> None:
    one = operation(name)
    token = place.token("eve", *one.needs, *one.also)
    received = set()
    for state in STATES:
        await put(place.hub, state, f"m-{state}")
        response = await by_http(place, one, token, CHANNEL, f"m-{state}")
        received.add(response.problem.replace(f"m-{state}", "ID"))
        async with place.socket(token) as wire:
            received.add((await by_frame(wire, one, CHANNEL, f"m-{state}")).problem.replace(f"m-{state}", "ID"))
    response = await by_http(place, one, token, "chat:none", "m-none")
    received.add(response.problem.replace("m-none", "ID"))
    assert len(received) == 1


# Impersonation


async def test_server_sets_author_and_sender(place: Place) -> None:
    await put(place.hub, "growing", "m1")
    token = place.token("bob", *READ, "publish", "command", "presence")
    async with place.socket(token) as wire, place.socket(place.token("eve", "subscribe")) as watcher:
        await watcher.ask("attach", channel=CHANNEL, flush_ms=0)
        created = await place.ask("POST", f"/v1/channels/{CHANNEL}/messages", {"text": "x", **FORGED}, token=token)
        framed = await wire.ask("create", channel=CHANNEL, text="x", **FORGED)
        changed = await wire.ask("update", channel=CHANNEL, id=framed.body["message"]["id"], text="y", **FORGED)
        for message in (json.loads(created.body)["message"], framed.body["message"], changed.body["message"]):
            assert (message["author"], message["role"]) == ("bob", "user")
            assert "writer" not in message
            assert message["created"] > 1
        sent = await wire.ask("command", channel=CHANNEL, id="q", name="approve", **FORGED)
        assert sent.body["command"]["from"] == "bob"
        path = f"/v1/channels/{CHANNEL}/commands"
        over_http = await place.ask("POST", path, {"name": "approve", **FORGED}, token=token)
        assert json.loads(over_http.body)["command"]["from"] == "bob"
        await wire.ask("reply", channel=CHANNEL, id="q", **FORGED)
        await wire.ask("signal", channel=CHANNEL, name="typing", **FORGED)
        await place.ask("POST", f"/v1/channels/{CHANNEL}/signals", {"name": "busy", **FORGED}, token=token)
        reply = await watcher.until(lambda: received(watcher, "command.reply"))
        signals = await watcher.until(lambda: len(received(watcher, "signal")) == 2 and received(watcher, "signal"))
        assert [event["from"] for event in (*reply, *signals)] == ["bob"] * 3


def received(wire: Wire, kind: str) -> list[Json]:
    """Return the events of a kind that a socket has received."""
    batches = [frame["events"] for frame in wire.frames if frame["type"] == "events"]
    return [event for batch in batches for event in batch if event["type"] == kind]


async def test_anonymous_client_changes_a_streaming_message_only_with_append(place: Place) -> None:
    writer, device = place.token(None, "publish", "append"), place.token(None, "publish", *READ)
    async with place.socket(writer) as wire, place.socket(device) as other:
        await wire.ask("create", channel=CHANNEL, id="m1", role="assistant", status="streaming", text="text")
        assert (await other.ask("update", channel=CHANNEL, id="m1", text="x", generation=1)).code == "forbidden"
        assert (await other.ask("delete", channel=CHANNEL, id="m1")).code == "forbidden"


@pytest.mark.parametrize(
    ("member", "code"),
    [
        *((member, "ok") for member in ("ann", "ann~phone", "ann~")),
        *((member, "forbidden") for member in ("annie", "an", "bob", "bob~ann", "anonymous", "~ann")),
    ],
)
async def test_member_id_is_the_clients_own(place: Place, member: str, code: str) -> None:
    token = place.token("ann", "presence", *TO_WORK)
    path = f"/v1/channels/{CHANNEL}/presence/{member}"
    assert (await place.ask("PUT", path, {}, token=token)).code == code
    assert (await place.ask("DELETE", path, token=token)).code == code
    async with place.socket(token) as wire:
        assert (await wire.ask("presence", channel=CHANNEL, member=member)).code == code
        assert (await wire.ask("presence", channel=CHANNEL, member=member, leave=True)).code == code
        assert (await wire.ask("work", pattern=CHANNEL, name=member)).code == code


@pytest.mark.parametrize("client_id", ["ann~phone", "~", "a b", "", "."])
async def test_client_id_cannot_equal_the_member_id_of_another_client(place: Place, client_id: str) -> None:
    token = place.token(client_id, *CAPABILITIES)
    assert (await place.ask("GET", f"/v1/channels/{CHANNEL}", token=token)).code == "invalid_name"
    assert (await place.ask("GET", f"/v1/channels/{CHANNEL}/events", token=token)).code == "invalid_name"
    async with place.socket(token) as wire:
        assert (await wire.until(lambda: wire.refused))["code"] == "invalid_name"
    async with place.socket(None) as wire:
        assert (await wire.ask("auth", token=token)).code == "invalid_name"
        await wire.until(lambda: wire.code is not None)


# Replies, and results of other callers


@pytest.mark.parametrize(
    ("who", "held", "command", "code"),
    [
        ("bob", READ, "approve", "ok"),
        ("bob", (*READ, "append", "agent"), "steer", "forbidden"),  # another caller's message
        ("root", (*READ, "admin"), "cancel", "ok"),
        ("root", ("admin",), "steer", "not_found"),
        ("eve", ("append",), "steer", "not_found"),
        ("eve", (), "never was", "not_found"),
        ("sam", (), "approve", "ok"),  # the sender of the command
        ("sam", ("append",), "cancel", "forbidden"),
        ("ann", ("append",), "cancel", "ok"),  # the writer of the target, without the right to read
        ("ann", READ, "cancel", "forbidden"),  # on a device of the writer without `append`
    ],
)
async def test_reply_to_a_command_needs_the_right_to_reply(
    place: Place, who: str, held: tuple[str, ...], command: str, code: str
) -> None:
    for way in ("http", "frame"):
        await put(place.hub, "growing", f"m-{way}")
        if command != "never was":
            await place.hub.command(CHANNEL, command, target=f"m-{way}", by="sam", id=f"q-{way}")
    token = place.token(who, *held, "command")
    over_http = await place.ask("POST", f"/v1/channels/{CHANNEL}/commands/q-http/reply", {}, token=token)
    async with place.socket(token) as wire:
        framed = await wire.ask("reply", channel=CHANNEL, id="q-frame")
    assert (over_http.code, framed.code) == (code, code)


async def test_stored_result_of_one_caller_is_not_returned_to_another(place: Place) -> None:
    await put(place.hub, "interrupted", "m1")
    await place.hub.command(CHANNEL, "approve", id="q", by="ann")
    first = place.token("bob", *READ, "append", "command", "publish")
    other = place.token("eve", *READ, "append", "command", "publish")
    async with place.socket(first) as bob, place.socket(other) as eve:
        taken = await bob.ask("takeover", channel=CHANNEL, id="m1", request="1", lease_s=3600)
        assert taken.body["generation"] == 2
        assert (await bob.ask("takeover", channel=CHANNEL, id="m1", request="1")).body["generation"] == 2
        assert (await eve.ask("takeover", channel=CHANNEL, id="m1", request="1")).code == "streaming"
        for type, fields in (("part", {"part": 0, "value": {"type": "text", "text": "x"}}), ("finish", {})):
            assert (await bob.ask(type, channel=CHANNEL, id="m1", request="2", generation=2, **fields)).code == "ok"
            refused = await eve.ask(type, channel=CHANNEL, id="m1", request="2", generation=2, **fields)
            assert refused.code == "not_writer"
        assert (await bob.ask("reply", channel=CHANNEL, id="q", request="1")).code == "ok"
        assert (await bob.ask("reply", channel=CHANNEL, id="q", request="1")).code == "ok"
        assert (await eve.ask("reply", channel=CHANNEL, id="q", request="1")).code == "already_answered"
        for caller, code in ((bob, "ok"), (bob, "ok"), (eve, "id_conflict")):
            assert (await caller.ask("command", channel=CHANNEL, id="same", name="approve")).code == code


async def test_taken_id_reveals_no_more_to_a_caller_without_read_access(place: Place) -> None:
    for state in STATES:
        await put(place.hub, state, f"m-{state}")
    token = place.token("eve", "publish")
    codes, problems = {}, set()
    async with place.socket(token) as wire:
        for state in STATES:
            body = {"id": f"m-{state}", "text": "x"}
            over_http = await place.ask("POST", f"/v1/channels/{CHANNEL}/messages", body, token=token)
            framed = await wire.ask("create", channel=CHANNEL, **body)
            codes[state] = {over_http.code, framed.code}
            if state != "never":
                problems |= {one.problem.replace(f"m-{state}", "ID") for one in (over_http, framed)}
    assert codes == {state: {"ok" if state == "never" else "id_conflict"} for state in STATES}
    assert len(problems) == 1, problems


# Turns


@pytest.mark.parametrize("held", [(), READ, ("publish", "command", "admin", *READ)])
async def test_turn_is_renewed_and_ended_only_by_its_agent(place: Place, held: tuple[str, ...]) -> None:
    async with (
        place.socket(place.token("bot", *TO_WORK)) as bot,
        place.socket(place.token("eve", *TO_WORK, *held)) as eve,
    ):
        assert (await bot.ask("work", pattern=CHANNEL)).code == "ok"
        async with asyncio.timeout(PATIENCE_S):
            while not place.hub.runtime.scheduler.workers.serves(CHANNEL):  # noqa: ASYNC110 - no event is set for it
                await asyncio.sleep(0)
        await put(place.hub, "done", "u1")
        turn = await bot.frame(lambda frame: frame["type"] == "turn")
        await put(place.hub, "app", "m1")
        assert (await eve.ask("work", pattern=CHANNEL)).code == "ok"
        about = {"channel": CHANNEL, "message": "u1", "generation": turn["generation"]}
        for type in ("turn.renew", "turn.done"):
            refusals = [
                await eve.ask(type, **{**about, **other})
                for other in ({}, {"generation": 2}, {"message": "m1"}, {"message": "none"}, {"state": FORGED})
                if not (type == "turn.done" and "state" in other)
            ]
            assert {refused.code for refused in refusals} == {"fenced"}
            assert len({refused.problem for refused in refusals}) == 1
        await put(place.hub, "done", "u2")  # its turn waits, because one turn runs at a time
        for message in ("u1", "u2", "m1", "none"):
            assert (await eve.ask("turn.take", channel=CHANNEL, message=message)).body["taken"] is False
        assert (await bot.ask("turn.renew", **about)).code == "ok"
        assert (await bot.ask("turn.take", channel=CHANNEL, message="u2")).body["taken"] is True
        assert (await bot.ask("turn.done", **about)).code == "ok"
        assert (await bot.ask("turn.done", **about)).code == "ok"
        assert (await eve.ask("turn.done", **about)).code == "fenced"


# History


def batch(text: bytes) -> tuple[list[Json], str]:
    """Return the events of a stream's or poll's first response, and its cursor."""
    if text.startswith(b"{"):
        body = json.loads(text)
        return body["events"], body["cursor"]
    lines = text.decode().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    return events, next(line.removeprefix("id: ") for line in lines if line.startswith("id: "))


async def looked(
    place: Place, token: str, way: str, since: str | None, channel: str = CHANNEL
) -> tuple[list[Json], str]:
    """Return the events for a viewer that resumes from a cursor."""
    if way == "attach":
        async with place.socket(token) as wire:
            await wire.ask("attach", channel=channel, since=since)
            frame = await wire.frame(lambda frame: frame["type"] == "events" and "cursor" in frame)
            return frame["events"], frame["cursor"]
    query = "" if since is None else f"&since={since}"
    path = f"/v1/channels/{channel}/{'poll?wait_s=0' if way == 'poll' else 'events?flush_ms=0'}{query}"
    return batch((await place.ask("GET", path, token=token)).body)


WAYS = ("events", "poll", "attach")


@pytest.mark.parametrize("way", WAYS)
async def test_subscriber_without_history_sees_no_past_with_any_cursor(place: Place, way: str) -> None:
    await place.hub.create(CHANNEL, id="m1", text="secret")
    await place.hub.create("chat:2", id="m1", text="x")
    token, other = place.token("eve", "subscribe"), place.token("bob", "subscribe")
    reader = place.token("ann", *READ)
    epoch = (await place.hub.info(CHANNEL)).epoch
    _, theirs = await looked(place, other, way, None)
    _, elsewhere = await looked(place, token, way, None, "chat:2")
    _, empty = await looked(place, token, way, None, "chat:empty")  # the cursor of an empty channel resumes in any log
    _, own = await looked(place, token, way, None)
    _, plain = await looked(place, reader, way, None)
    of_log, at, of_presence = own.partition("@")  # a poll's cursor has one, with a mark of its own
    mark, cut = of_log.split(":", 2)[2], f"{of_log[:-1]}{at}{of_presence}"
    await place.hub.create(CHANNEL, id="m2", text="secret too")
    forged = [f"{epoch}:0", f"{epoch}:0:{mark}", f"-:0:{mark}", "-:0", "-:0:h", f"{epoch}:0:hhh", plain]
    for since in (None, *forged, theirs, elsewhere, empty, cut, own.replace(":h", ":k")):
        events, _ = await looked(place, token, way, since)
        attached, *rest = events
        assert (attached["type"], attached["resumed"]) == ("channel.attached", False)
        assert {event["type"] for event in rest} <= {"presence.sync"}  # presence events are not part of the history


@pytest.mark.parametrize("way", WAYS)
async def test_subscriber_without_history_misses_no_event_after_attaching(place: Place, way: str) -> None:
    token = place.token("eve", "subscribe")
    for since in (None, (await looked(place, token, "poll", None))[1]):  # of a new viewer, and of one with a cursor
        _, cursor = await looked(place, token, way, since)
        for number, again in enumerate((way, *WAYS)):  # the cursor of one transport is valid on the others
            await place.hub.create(CHANNEL, text=f"new {number}")
            events, cursor = await looked(place, token, again, cursor)
            shown = [event["message"]["parts"][0]["text"] for event in events if event["type"] == "message.create"]
            assert shown == [f"new {number}"]
            assert all(event["resumed"] for event in events if event["type"] == "channel.attached")


# Tickets


async def ticket_of(place: Place, *capabilities: str, channel: str = CHANNEL) -> str:
    response = await place.ask("POST", "/v1/tickets", {"channel": channel}, token=place.token("ann", *capabilities))
    return str(json.loads(response.body)["ticket"])


async def test_ticket_opens_only_the_streams_of_its_channel(place: Place) -> None:
    await put(place.hub, "done", "m1")
    ticket = await ticket_of(place, *CAPABILITIES)
    for one in OPERATIONS:
        if one.http is None:
            continue
        method, path = filled(one.http, CHANNEL, "m1").split(" ")
        if path.endswith("/events"):
            continue
        for name in ("ticket", "token", "access_token"):
            response = await place.ask(method, f"{path}?{name}={ticket}", filled(one.body, CHANNEL, "m1"))
            assert (response.status, response.code) == (401, "unauthenticated")
        response = await place.ask(method, path, filled(one.body, CHANNEL, "m1"), token=ticket)
        assert (response.status, response.code) == (401, "unauthenticated")
    assert (await place.ask("GET", f"/v1/channels/{CHANNEL}/events?ticket={ticket}")).status == 200
    assert (await place.ask("GET", f"/v1/channels/{CHANNEL}/messages/m1/events?ticket={ticket}")).status == 200
    for channel in ("chat:2", "chat:10", "chat"):
        refused = await place.ask("GET", f"/v1/channels/{channel}/events?ticket={ticket}")
        assert (refused.status, refused.code) == (403, "forbidden")
    for first in ({"type": "auth", "token": ticket}, {"type": "attach", "channel": CHANNEL}):
        async with place.socket(None, query=f"ticket={ticket}") as wire:
            assert (await wire.ask(**first)).code == "unauthenticated"
            await wire.until(lambda: wire.code == 4201)


async def test_ticket_grants_no_more_than_its_owner_has(place: Place) -> None:
    await put(place.hub, "done", "m1")
    ticket = await ticket_of(place, "subscribe", "publish", "admin")
    for since in ("", "&since=-:0"):
        shown, cursor = batch((await place.ask("GET", f"/v1/channels/{CHANNEL}/events?ticket={ticket}{since}")).body)
        assert [event["type"] for event in shown] == ["channel.attached"]
    refused = await place.ask("GET", f"/v1/channels/{CHANNEL}/messages/m1/events?ticket={ticket}")
    assert refused.code == "forbidden"
    await place.hub.create(CHANNEL, id="m2", text="new")
    path = f"/v1/channels/{CHANNEL}/events?ticket={ticket}"
    events, _ = batch((await place.ask("GET", path, last_event_id=cursor)).body)
    assert [event["type"] for event in events] == ["channel.attached", "message.create"]
