"""Responses over a WebSocket, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import openai
import pytest
import websockets

from tenuto import Identity, Turn
from tenuto.core.errors import StoreUnavailable
from tenuto.core.requests import CreateMessage
from tenuto.hub.access.rates import ClientLimits, Rates
from tenuto.interop import OpenAI
from tenuto.interop.openai_stream import Reference
from tenuto.transports.codec import decode
from tests.interop.scene import ASKED_PLACE, CALL, FULL, units, verifier, writes
from tests.interop.test_openai import ANSWER, PLACE, USER, ClientScene, channel_of, output_of, scene_of, text_of

LAST = ("response.completed", "response.incomplete", "response.failed", "response.steer.failed")


@pytest.fixture
async def scene() -> AsyncIterator[ClientScene]:
    async with scene_of() as scene:
        yield scene


@pytest.fixture
async def socket(scene: ClientScene) -> AsyncIterator[Any]:
    unbounded: Any = {"max_queue": None}  # else the end waits 10 s behind events that no test has read
    async with scene.client.responses.connect(websocket_connection_options=unbounded) as socket:
        yield socket


async def until(socket: Any, is_last: Callable[[Any], bool] = lambda event: event.type in LAST) -> list[Any]:
    events: list[Any] = []
    async with asyncio.timeout(60):
        while not events or not is_last(events[-1]):
            events.append(await socket.recv())
    return events


def is_text(event: Any) -> bool:
    return bool(event.type == "response.output_text.delta")


async def begun_on(socket: Any, text: Any = "you", **options: Any) -> list[Any]:
    """Ask for a response, and return its events up to its first text."""
    await socket.response.create(model="bot", input=text, **options)
    return await until(socket, is_text)


async def steer(socket: Any, response_id: str, given: Any) -> list[Any]:
    """Give a response further input, and return the events up to the one that accepts it."""
    await socket.response.steer(previous_response_id=response_id, input=given)
    return await until(socket, lambda event: event.type == "response.steer.accepted")


async def test_socket_has_the_events_of_a_stream_for_each_response(scene: ClientScene, socket: Any) -> None:
    scene.gate.set()
    await socket.response.create(model="bot", input="you")
    await socket.response.create(model="bot", input="me")  # waits
    first, second = [await until(socket) for _ in range(2)]
    assert [text_of(one) for one in (first, second)] == [ANSWER, ANSWER.replace("you", "me")]
    await socket.response.create(model="bot", input="us", previous_response_id=second[-1].response.id)
    assert channel_of((await until(socket))[0].response.id) == channel_of(second[0].response.id)
    id, known = first[0].response.id, first[-1].sequence_number
    assert [one[:2] for one in units(await scene.events(id))] == [one[:2] for one in units(first)]
    await scene.hub.command(channel_of(id), "regenerate", target=scene.turns[0].message.id)
    whole = await scene.events(id)
    for after, left in (known, whole), (whole[5].sequence_number, whole[6:]):  # of the earlier answer, and of this one
        assert [one[:2] for one in units(await resumed(scene.client, id, after))] == [one[:2] for one in units(left)]


@pytest.mark.parametrize("route", ["responses", "chat/completions", "socket"])
async def test_body_leaves_memory_while_its_turn_runs(
    scene: ClientScene, socket: Any, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Body(dict[str, Any]):
        """A body that can be watched."""

    bodies: list[weakref.ref[Body]] = []

    def watched(data: bytes, decoder: Any) -> Body:
        body = Body(decode(data, decoder))
        bodies.append(weakref.ref(body))
        return body

    monkeypatch.setattr("tenuto.routes.decode", watched)
    body = {"type": "response.create", "model": "bot", "input": "you", "messages": [USER], "junk": [[]]}
    if route == "socket":
        await socket.send_raw(json.dumps(body))
    asking = asyncio.ensure_future(until(socket) if route == "socket" else scene.http.post(f"/v1/{route}", json=body))
    await scene.served.until(lambda: scene.turns and scene.turns[0].replies)
    await scene.served.until(lambda: [one() for one in bodies] == [None])
    scene.gate.set()
    await asking


async def test_errors_of_stores_name_no_path(scene: ClientScene, socket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = await begun_on(socket)
    failing = AsyncMock(side_effect=StoreUnavailable("store file /srv/chat.db fails"))
    monkeypatch.setattr(scene.hub.store, "commit", failing)
    await socket.response.steer(previous_response_id=begun[0].response.id, input="me")
    steered = (await until(socket))[-1]
    await socket.response.create(model="bot", input="us", stream_id="b")
    for one in (steered, (await until(socket, lambda event: event.type == "error"))[-1]):
        assert "/srv" not in f"{one}", one
        assert "nothing of the request was stored" in f"{one}", one


async def test_lanes_run_at_the_same_time(scene: ClientScene, socket: Any) -> None:
    for lane in ("a" * 256, "b"):
        await socket.response.create(model="bot", input=lane, stream_id=lane)
    begun = await until(socket, lambda _: len(scene.turns) == 2)
    scene.gate.set()
    events = begun + await until(socket) + await until(socket)
    for lane in ("a" * 256, "b"):
        assert text_of([one for one in events if one.stream_id == lane]) == ANSWER.replace("you", lane)


# Further input


async def test_input_that_the_agent_takes_in_ends_a_response_at_its_next_item(scene: ClientScene, socket: Any) -> None:
    seen = asyncio.Event()

    async def listens(turn: Turn) -> None:
        async with turn.reply(meta={"usage": {"input_tokens": 3, "output_tokens": 2}}) as message:
            await scene.shows(message, {"type": "text", "text": "One. "})
            (steer,) = await turn.steered()
            await message.append("Rest. ")
            await message.flush()
            await seen.wait()
            await message.part({"type": "text", "text": f"Now {steer.text}."})

    scene.script = listens
    begun = await begun_on(socket)
    response_id = begun[0].response.id
    (accepted,) = await steer(socket, response_id, "shorter")
    assert accepted.steer.previous_response_id == response_id
    scene.gate.set()
    first = begun + await until(socket, is_text)
    seen.set()
    first += await until(socket)
    assert (first[-1].type, first[-1].response.incomplete_details.reason) == ("response.incomplete", "steered")
    assert (text_of(first), first[-1].response.output_text) == ("One. Rest. ", "One. Rest. ")
    second = await until(socket)
    assert [second[0].type, second[-1].type] == ["response.created", "response.completed"]
    assert (text_of(second), second[-1].response.output_text) == ("Now shorter.", "Now shorter.")
    assert second[0].response.id != response_id
    for one in (second[0].response, second[-1].response, await scene.client.responses.retrieve(second[0].response.id)):
        assert one.previous_response_id == response_id
    assert (first[-1].response.usage, second[-1].response.usage.total_tokens) == (None, 5)  # the answer ends there
    assert len(scene.turns) == 1
    # a client that was cut may resume both, each without a character twice
    assert text_of(await scene.events(response_id)) == "One. Rest. Now shorter."
    assert text_of(await scene.events(second[0].response.id)) == "Now shorter."
    scene.script = writes("Yes.")
    await scene.ask("me", previous_response_id=response_id)
    history = [one["content"] for one in await scene.turns[-1].history()]
    assert history == ["you", "One. Rest. Now shorter.", "shorter", "me"]


async def test_input_that_is_taken_in_just_before_the_end_has_later_items(scene: ClientScene, socket: Any) -> None:
    """The turn is over before the stream sees that its agent has taken the input in."""

    async def hurries(turn: Turn) -> None:
        async with turn.reply() as message:
            await scene.shows(message, {"type": "text", "text": "One. "})
            (steer,) = await turn.steered()
            await message.part({"type": "text", "text": f"Now {steer.text}."})

    scene.script = hurries
    await steer(socket, (await begun_on(socket))[0].response.id, "shorter")
    scene.gate.set()
    first, second = [(await until(socket))[-1] for _ in range(2)]
    assert (first.type, first.response.output_text) == ("response.incomplete", "One. ")
    assert (second.type, second.response.output_text) == ("response.completed", "Now shorter.")


async def test_input_in_a_conversation_follows_what_others_have_asked(scene: ClientScene, socket: Any) -> None:
    made = await scene.client.conversations.create()
    id = (await begun_on(socket, "a", conversation=made.id))[0].response.id
    await scene.ask("b", conversation=made.id, background=True)
    await steer(socket, id, "c")
    scene.gate.set()
    for _ in range(2):
        await until(socket)
    await scene.ask("d", conversation=made.id)
    asked = [[one["content"] for one in await turn.history() if one["role"] == "user"] for turn in scene.turns]
    assert asked == [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]]
    items: Any = [one async for one in scene.client.conversations.items.list(made.id, order="asc")]
    assert [one.content[0].text for one in items if getattr(one, "role", "") == "user"] == ["a", "b", "c", "d"]


async def test_input_for_one_of_two_branches_follows_it() -> None:
    async with scene_of(when_busy="parallel") as scene, scene.client.responses.connect() as socket:
        scene.gate.set()
        first = await scene.ask()
        scene.gate.clear()
        ids: dict[str, str] = {}
        for lane in ("a", "b"):
            ids[lane] = (await begun_on(socket, lane, previous_response_id=first.id, stream_id=lane))[0].response.id
        for text in ("x", "y"):
            await steer(socket, ids["a"], text)
        scene.gate.set()
        for _ in range(4):
            await until(socket)
        paths = {turn.text: [one["content"] for one in await turn.history()] for turn in scene.turns}
    begin = ["you", ANSWER]
    assert paths["b"] == [*begin, "b"]
    assert paths["x"] == [*begin, "a", ANSWER.replace("you", "a"), "x"]
    assert paths["y"] == [*paths["x"], ANSWER.replace("you", "x"), "y"]


@pytest.mark.parametrize("is_interrupted", [False, True], ids=["cancelled", "interrupted"])
async def test_response_that_is_cancelled_while_input_waits_is_not_steered(is_interrupted: bool) -> None:
    when_busy = "interrupt" if is_interrupted else "queue"
    async with scene_of(when_busy=when_busy) as scene, scene.client.responses.connect() as socket:
        begun = await begun_on(socket)
        given: Any = [{"role": "user", "content": text} for text in ("a", "b")]
        await socket.response.steer(previous_response_id=begun[0].response.id, input=given)
        if not is_interrupted:
            await until(socket, lambda event: event.type == "response.steer.accepted")
            await scene.client.responses.cancel(begun[0].response.id)
        (last,) = [one for one in await until(socket) if one.type == "response.incomplete"]
        scene.gate.set()
        successor = (await until(socket))[-1].response
    reason = last.response.incomplete_details and last.response.incomplete_details.reason
    assert (last.response.status, reason) == (("incomplete", "steered") if is_interrupted else ("cancelled", None))
    assert successor.output_text == ANSWER.replace("you", "a\n\nb")


async def test_input_stays_pending_while_the_turn_waits_for_the_caller(scene: ClientScene, socket: Any) -> None:
    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            await scene.shows(message, {"type": "text", "text": "Where? "})
            await message.part(ASKED_PLACE)
            reply = await turn.ask("where", {"call": "c1"})
            (steer,) = await turn.steered()
            await message.part({"type": "text", "text": f"{steer.text}: {reply.data}."})

    scene.script = asks
    response_id = (await begun_on(socket, tools=[PLACE]))[0].response.id
    await steer(socket, response_id, "shorter")
    scene.gate.set()
    events = await until(socket, lambda event: event.type == "response.steer.pending")
    assert (events[-2].type, events[-1].reason) == ("response.completed", "waiting_for_required_input")
    await socket.response.steer(previous_response_id=response_id, input="late")
    (failed,) = await until(socket)
    assert failed.error.code == "response_not_active"
    assert failed.error.message.endswith("waits for a reply; send it first")
    (stub,) = events[-1].required_input
    filled = [{**stub.model_dump(), "output": "Ulm"}]
    await socket.response.create(model="bot", input=filled, previous_response_id=response_id)
    last = await until(socket)
    assert text_of(last) == "shorter: Ulm."
    scene.script = writes("Good.")
    await socket.response.create(model="bot", input="next", previous_response_id=last[-1].response.id)
    assert text_of(await until(socket)) == "Good."


async def test_input_for_the_response_to_an_output_has_its_successor(scene: ClientScene, socket: Any) -> None:
    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.part(ASKED_PLACE)
            await scene.shows(message, {"type": "text", "text": (await turn.ask("where", {"call": "c1"})).data})
            await message.append(f", {(await turn.steered())[0].text}")

    scene.script = asks
    await socket.response.create(model="bot", input="you", tools=[PLACE])
    begun = await begun_on(socket, [output_of("c1")], previous_response_id=(await until(socket))[-1].response.id)
    await steer(socket, begun[0].response.id, "shorter")
    scene.gate.set()
    first, second = await until(socket), await until(socket)
    assert (first[-1].response.output_text, text_of(second)) == ("Ulm, shorter", "")
    assert second[-1].response.previous_response_id == begun[0].response.id


async def test_input_for_no_running_response_fails_with_the_input(scene: ClientScene, socket: Any) -> None:
    scene.gate.set()
    ended = await scene.ask()
    scene.gate.clear()
    elsewhere = await scene.begin()
    here = (await begun_on(socket))[0].response.id
    asked = {"role": "user", "content": "x"}
    await socket.response.steer(previous_response_id=None, input="x")
    assert (await until(socket, lambda event: event.type == "error"))[0].error.param == "previous_response_id"
    for id, given, code in (
        (ended.id, "x", "response_already_completed"),
        (elsewhere, "x", "response_not_active"),
        ("resp_x", "x", "response_not_found"),
        (Reference("chat:none", "u").id(), "x", "response_not_found"),
        (here, "", "invalid_input"),
        (here, [output_of("c1")], "invalid_input"),
        (here, [{"type": "item_reference", "id": "msg_1"}, asked], "invalid_input"),
        (here, [{"role": "system", "content": "Obey."}, asked], "invalid_input"),
    ):
        await socket.response.steer(previous_response_id=id, input=given)
        (failed,) = await until(socket)
        assert (failed.error.code, failed.steer.previous_response_id) == (code, id)
        assert failed.to_dict(warnings=False)["steer"]["input"] == given
    for _ in range(16):
        await steer(socket, here, "x")
    await socket.response.steer(previous_response_id=here, input="x")
    assert (await until(socket))[0].error.code == "too_many_pending_steers"


# Resuming a response that has further input


async def resumed(client: openai.AsyncOpenAI, response_id: str, after: int) -> list[Any]:
    """Return the events of a response and its successors after a number, on a new socket."""
    async with client.responses.connect() as socket:
        await socket.send({"type": "response.retrieve", "response_id": response_id, "starting_after": after})  # type: ignore[arg-type]
        await socket.send_raw('{"type": "response.retrieve"}')  # its error comes after them
        return (await until(socket, lambda event: event.type == "error"))[:-1]


def by_response(events: list[Any], id: str = "") -> list[tuple[str, Any]]:
    """Return the events of responses, each with the id of its response; those of response `id` come first."""
    found: list[tuple[str, Any]] = []
    for event in events:
        id = event.response.id if hasattr(event, "response") else id
        found += [(id, event)] if not event.type.startswith("response.steer.") else []
    return found


async def test_steered_response_that_is_cut_after_any_event_goes_on_to_its_successors(tmp_path: Path) -> None:
    """The agent takes an input into the turn, leaves one for a turn of its own, and takes three others into that."""
    gates = [asyncio.Event() for _ in range(5)]

    async def listens(turn: Turn) -> None:
        text = turn.text
        async with turn.reply() as message:
            for gate in gates[:2] if text == "you" else gates[2:]:
                await message.part({"type": "text", "text": f"To {text}. "})
                await message.flush()
                await gate.wait()
                if gate is not gates[1]:
                    text = (await turn.steered())[0].text
                await message.append("Rest 😀. ")
            if turn.text == "you":  # behind the last input of the other turn is no item
                await message.part({**CALL, "state": "done", "output": "7"})

    url, events, running = f"sqlite:///{tmp_path}/hub.db", list[Any](), list[asyncio.Task[list[Any]]]()
    async with scene_of(url) as scene, scene.client.responses.connect() as socket:
        scene.script = listens
        await socket.response.create(model="bot", input="you")
        for last, text, gate in zip(("you", *"abcd"), "abcde", gates, strict=True):
            events += await until(socket, lambda one, last=last: getattr(one, "delta", "") == f"To {last}. ")
            (id, _) = by_response(events)[-1]
            events += await steer(socket, id, text)
            if text == "a":
                cuts = [one.sequence_number for _, one in by_response(events)]
                running = [asyncio.create_task(resumed(scene.client, id, after)) for after in cuts]
                channel, count = scene.hub.channel(channel_of(id)), 1 + len(cuts)
                await scene.served.until(lambda channel=channel, count=count: len(channel.feeds) == count)
            gate.set()
        for _ in range(2):
            events += await until(socket)
        whole = by_response(events)
        steered, over = "response.incomplete", "response.completed"
        assert [one.type for _, one in whole if one.type in LAST] == [steered, over, steered, steered, over, over]
        assert text_of(events) == "".join(f"To {text}. Rest 😀. " for text in ("you", *"abcd"))
        of_turn = {id: None for id, _ in whole[: [one.type for _, one in whole].index(over)]}
        for number, task in enumerate(running, 1):  # these knew the first input alone when they began
            live = by_response(await task, whole[0][0])
            left = [one for id, one in whole[number:] if id in of_turn]
            assert units([one for id, one in live if id in of_turn]) == units(left)
            assert text_of([one for _, one in live]) == text_of([one for _, one in whole[number:]])
    async with scene_of(url) as scene:
        for number, (id, event) in enumerate(whole[:-1]):
            left = [one for _, one in whole[number + 1 :]]
            assert units(await resumed(scene.client, id, event.sequence_number)) == units(left)
        (again,) = await resumed(scene.client, whole[-1][0], whole[-1][1].sequence_number)
        assert again.type == over


async def test_input_of_another_person_is_no_successor_of_a_resumed_response() -> None:
    async with scene_of(authenticate=verifier()) as scene:
        ann, ben = (scene.client.copy(api_key=name) for name in ("ann", "ben"))
        async with ann.responses.connect() as theirs, ben.responses.connect() as socket:
            (id, _) = by_response(await begun_on(theirs))[-1]
            await socket.send({"type": "response.retrieve", "response_id": id})  # type: ignore[arg-type]
            await until(socket, is_text)
            for one, text in ((theirs, "ann"), (socket, "ben")):
                await steer(one, id, text)
            scene.gate.set()
            texts = [text_of(await until(one) + await until(one)) for one in (theirs, socket)]
        found = [text_of(await resumed(client, id, 0)) for client in (ann, ben)]
    assert [f"Hello {one}" for one in texts] == found
    assert found == [ANSWER + ANSWER.replace("you", name) for name in ("ann", "ben")]


@pytest.mark.parametrize("forged", [["x"], {}, "x"])
async def test_retrieved_question_with_other_options_of_a_client_has_its_answer(
    scene: ClientScene, socket: Any, forged: object
) -> None:
    scene.gate.set()
    await scene.hub.ask("chat:1", "q", CreateMessage(text="you", options={"steers": forged}), scene.hub.caller("ann"))
    nulls = {"stream": None, "starting_after": None, "stream_id": None}
    for _ in range(2):
        await socket.send({"type": "response.retrieve", "response_id": Reference("chat:1", "q").id(), **nulls})
        assert text_of(await until(socket, lambda event: event.type in (*LAST, "error"))) == ANSWER


async def test_response_that_was_interrupted_while_no_socket_was_open_has_its_successor() -> None:
    async with scene_of(when_busy="interrupt") as scene:
        async with scene.client.responses.connect() as socket:
            begun = await begun_on(socket)
            await steer(socket, id := begun[0].response.id, "me")
        scene.gate.set()
        rest = by_response(await resumed(scene.client, id, begun[-1].sequence_number), id)
    assert text_of(begun) + text_of([one for of, one in rest if of == id]) == "Hello "
    assert rest[-1][1].response.output_text == ANSWER.replace("you", "me")
    assert rest[-1][1].response.previous_response_id == id


async def test_input_that_waits_for_the_caller_has_its_successor_on_the_socket_that_replies(scene: ClientScene) -> None:
    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            await scene.shows(message, {"type": "text", "text": f"{turn.text}? "})
            if turn.text == "you":
                await message.part(ASKED_PLACE)
                await message.part({"type": "text", "text": f"{(await turn.ask('where', {'call': 'c1'})).data}."})

    scene.script = asks
    async with scene.client.responses.connect() as socket:
        begun = await begun_on(socket, tools=[PLACE])
        id = begun[0].response.id
        await steer(socket, id, "me")
    scene.gate.set()
    rest = await resumed(scene.client, id, begun[-1].sequence_number)
    assert [one.type for one in rest[-2:]] == ["response.completed", "response.steer.pending"]
    again = await resumed(scene.client, id, rest[-2].sequence_number)
    assert [one.type for one in again] == ["response.steer.pending"]
    output: Any = [{**again[0].required_input[0].model_dump(), "output": "Ulm"}]
    async with scene.client.responses.connect() as socket:
        await socket.response.create(model="bot", input=output, previous_response_id=id)
        first, second = await until(socket), await until(socket)
    assert (text_of(first), text_of(second)) == ("Ulm.", "me? ")
    assert second[-1].response.previous_response_id == id


# Access, bounds, ends


async def test_socket_keeps_the_rules_of_the_hub() -> None:
    async def verify(scope: dict[str, Any]) -> Identity | None:
        name = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
        return Identity(client_id=name, grants={f"user:{name}:*": FULL}) if name in ("ann", "ben") else None

    async with scene_of(authenticate=verify, channel="user:{client}:{id}", pattern="user:*") as scene:
        ann, ben, nobody = (scene.client.copy(api_key=name) for name in ("ann", "ben", "nobody"))
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with nobody.responses.connect():
                pass
        assert refused.value.response.status_code == 401
        async with ann.responses.connect() as theirs, ben.responses.connect() as socket:
            await theirs.response.create(model="bot", input="secret")
            response_id = (await theirs.recv()).response.id  # type: ignore[union-attr]
            for id in (response_id, Reference("user:ann:none", "u").id()):
                await socket.response.steer(previous_response_id=id, input="x")
                (failed,) = await until(socket)
                assert failed.error.code == "response_not_found"
                assert failed.error.message.startswith(f"response {id!r} does not exist;")
                for event in (
                    {"type": "response.retrieve", "response_id": id},
                    {"type": "response.create", "model": "bot", "input": "x", "previous_response_id": id},
                ):
                    await socket.send(event)  # type: ignore[arg-type]
                    error: Any = await socket.recv()
                    assert (error.type, error.status) == ("error", 403)
        hub = scene.hub
        await scene.served.until(lambda: not hub.rates._clients["ann"].connections)
        hub.rates = Rates(ClientLimits(client_connections=1, client_requests=2), now_s=lambda: 0.0)
        async with ann.responses.connect() as socket:
            with pytest.raises(websockets.InvalidStatus):
                await ann.responses.connect().enter()
            await socket.response.create(model="bot", input="x")
            errors = [await socket.recv()]
            for _ in range(2):
                await socket.send_raw("{}")
                errors.append(await socket.recv())
            assert [one.status for one in errors] == [429, 400, 429]  # type: ignore[union-attr]
            assert "; retrieve the response resp_" in errors[0].error.message  # type: ignore[union-attr]


BAD = [
    ("{", 400),
    ("[]", 400),
    ('{"type": "response.other"}', 400),
    ("", 400),
    ('{"type": "response.create", "model": "bot"}', 400),
    ('{"type": "response.create", "model": "bot", "input": "x", "background": true}', 400),
    ('{"type": "response.create", "model": "bot", "input": "x", "generate": false}', 400),
    ('{"type": "response.create", "model": "bot", "input": "x", "stream_id": 7}', 400),
    ('{"type": "response.create", "model": "bot", "input": "x", "conversation": "a/b"}', 404),
    ('{"type": "response.retrieve"}', 404),
]


async def test_bad_event_gets_an_error_and_the_socket_stays(scene: ClientScene, socket: Any) -> None:
    scene.gate.set()
    for frame, status in BAD:
        await socket.send_raw(frame)
        error = await socket.recv()
        assert (error.type, error.status, bool(error.error.message)) == ("error", status, True), frame
    await socket.response.create(model="bot", input="you")
    assert text_of(await until(socket)) == ANSWER


async def test_peer_that_is_gone_when_its_error_is_sent_ends_the_socket(scene: ClientScene) -> None:
    frames = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "{}"}]
    send = AsyncMock(side_effect=[None, OSError, OSError])  # it accepts
    scope = {"type": "websocket", "client": ("127.0.0.1", 1), "headers": [(b"host", b"localhost")]}
    await OpenAI(scene.hub)(scope, AsyncMock(side_effect=frames), send)
    assert send.call_count == 3


async def test_socket_is_closed_for_frames_that_are_too_large_or_binary(scene: ClientScene) -> None:
    for frame, code in (('{"type": "' + "x" * 8 * 1024 * 1024 + '"}', 4301), (b"x", 4300)):
        async with scene.client.responses.connect() as socket:
            await socket._connection.send(frame)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code


async def test_requests_and_lanes_of_a_socket_are_bounded(socket: Any) -> None:
    for number in range(9):
        await socket.response.create(model="bot", input="x", stream_id=str(number))
    error = (await until(socket, lambda event: event.type == "error"))[-1]
    assert (error.status, error.stream_id) == (429, "8")
    for _ in range(17):
        await socket.response.create(model="bot", input="x", stream_id="0")
    assert (await until(socket, lambda event: event.type == "error"))[-1].status == 429


async def test_draining_hub_closes_the_socket_for_a_reconnect(scene: ClientScene, socket: Any) -> None:
    await begun_on(socket)
    draining = asyncio.ensure_future(scene.hub.drain())
    with pytest.raises(websockets.ConnectionClosed) as closed:
        await until(socket, lambda _: False)
    assert closed.value.rcvd is not None
    assert openai.types.websocket_reconnection.is_recoverable_close(closed.value.rcvd.code)
    await draining
