"""The parts of OpenAI's API beside the stream of one response, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import agents
import openai
import pytest

from tenuto import Turn
from tenuto.core.requests import SERVER, CreateMessage, FinishMessage
from tenuto.hub.access.rates import Rates
from tenuto.interop.openai_stream import ATTEMPT_ROOM, Reference, reference
from tenuto.routes import Access
from tenuto.stores.memory import MemoryStore
from tests.interop.scene import ASKED_PLACE, CALL, answers_twice, fails, units, verifier, writes
from tests.interop.test_adapter_routes import APPROVAL
from tests.interop.test_openai import (
    ANSWER,
    BEN,
    PLACE,
    ClientScene,
    approval_of,
    channel_of,
    output_of,
    scene_of,
    text_of,
)
from tests.interop.test_openai_socket import LAST, until


def conversation_id(channel: str) -> str:
    return Reference(channel).id("conv_")


@pytest.fixture
async def scene() -> AsyncIterator[ClientScene]:
    async with scene_of(models={"gpt-4o": "bot", "other/name": "bot", "gone": "nobody"}) as scene:
        scene.gate.set()
        yield scene


@pytest.fixture
async def of_ann() -> AsyncIterator[ClientScene]:
    """A scene whose caller is ann, who may only ask."""
    async with scene_of(authenticate=verifier("ann")) as scene:
        scene.gate.set()
        yield scene


async def test_fixed_name_of_a_model_is_an_agent(scene: ClientScene) -> None:
    client = scene.client
    assert [one.id async for one in client.models.list()] == ["bot", "gpt-4o", "other/name"]
    assert [(await client.models.retrieve(name)).id for name in ("gpt-4o", "other/name")] == ["gpt-4o", "other/name"]
    for name in ("gone", "unknown"):
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(name)
    assert ((response := await scene.ask(model="gpt-4o")).model, response.output_text) == ("gpt-4o", ANSWER)


async def test_session_of_a_hub_with_several_agents_is_told_what_its_conversation_needs(scene: ClientScene) -> None:
    scene.hub.agent("other:*", name="other")(scene.script)
    session = agents.OpenAIConversationsSession(openai_client=scene.client)
    with pytest.raises(openai.BadRequestError, match=r'needs the name of one, extra_body=\{"model": …\}, or') as raised:
        await session.get_items()
    assert raised.value.param == "model"


@pytest.mark.parametrize("kind", ["previous_response_id", "conversation"])
async def test_model_of_another_conversation_is_refused(scene: ClientScene, kind: str) -> None:
    scene.hub.agent("other:*", name="other")(scene.script)
    made = await scene.client.conversations.create(extra_body={"model": "bot"})
    into: Any = {} if kind == "previous_response_id" else {"conversation": made.id}
    first = await scene.ask(**into)
    into = into or {kind: first.id}
    with pytest.raises(openai.BadRequestError, match="answered by 'bot', not by 'other'; send that model") as raised:
        await scene.ask("me", model="other", **into)
    assert (raised.value.param, len(scene.turns)) == ("model", 1)
    assert (await scene.ask("me", model="gpt-4o", **into)).output_text


async def test_settings_of_a_response_count_as_traffic_each_time_they_are_read_or_streamed(of_ann: ClientScene) -> None:
    of_ann.hub.rates, size, client = (rates := Rates(now_s=lambda: 0.0)), 40_000, of_ann.client.responses

    async def costs(asked: Awaitable[Any]) -> float:
        before = rates._clients["ann"].bytes.level
        await asked
        return (before - rates._clients["ann"].bytes.level) / size

    first = await of_ann.ask(instructions="i" * size)
    assert await costs(client.retrieve(first.id)) == pytest.approx(1, abs=0.1)
    assert await costs(client.cancel(first.id)) == pytest.approx(2, abs=0.1)
    assert await costs(of_ann.events(first.id)) == pytest.approx(4, abs=0.5)
    assert await costs(client.input_items.list(first.id)) == pytest.approx(1, abs=0.1)
    assert await costs(of_ann.ask(instructions="i" * size, background=True)) == pytest.approx(2, abs=0.1)


async def test_response_after_a_crash_has_one_answer(scene: ClientScene) -> None:
    await scene.hub.create("chat:1", id="u", text="you", starts_turn=False)
    for id, status, text in (("a1", "interrupted", "Hello to"), ("a2", "complete", "Hello to you")):
        usage: Any = {"usage": {"input_tokens": 3, "output_tokens": 2} | ({"total_tokens": 5} if id == "a1" else {})}
        request = CreateMessage(role="assistant", status="streaming", text=text, reply_to="u", parent="u", meta=usage)
        await scene.hub.ask("chat:1", id, request, SERVER)
        await scene.hub.ask("chat:1", id, FinishMessage(status=status), SERVER)  # type: ignore[arg-type]
    response: Any = await scene.client.responses.retrieve(id := Reference("chat:1", "u").id())
    assert (response.status, response.output_text, len(response.output)) == ("completed", "Hello to you", 1)
    assert response.usage.total_tokens == 10  # those of the answer that was cut, too
    events = await scene.events(id)
    assert (text_of(events), events[-1].response) == ("Hello to you", response)
    # for a reader that was cut in the first answer its item ends
    end, *rest = await scene.events(id, 5)
    assert (end.type, end.output_index, end.item.status) == ("response.output_item.done", 0, "incomplete")
    assert [one.to_dict() for one in rest] == [one.to_dict() for one in events[2:]]
    assert events[2].sequence_number == ATTEMPT_ROOM


async def test_conversation_is_a_channel_whose_items_are_its_messages(scene: ClientScene) -> None:
    client = scene.client
    first: Any = [{"type": "message", "role": "user", "content": "earlier"}, {"role": "assistant", "content": "Yes."}]
    made = await client.conversations.create(items=first)
    for text in ("you", "me"):
        response = await scene.ask(text, conversation=made.id)
        assert (response.conversation.id, response.previous_response_id) == (made.id, None)
    assert [one["content"] for one in await scene.turns[1].history()][::2] == ["earlier", "you", "me"]
    found = await client.conversations.retrieve(made.id)
    assert (found.id, found.object, found.created_at > 0) == (made.id, "conversation", True)
    assert (await client.conversations.create()).created_at >= found.created_at
    items: Any = [one async for one in client.conversations.items.list(made.id, order="asc", limit=3)]
    said, answered = ("message", "user"), ("message", "assistant")
    turn = [said, ("reasoning", ""), answered, ("mcp_call", ""), answered]
    assert [(one.type, getattr(one, "role", "")) for one in items] == [said, answered, *turn, *turn]
    with pytest.raises(openai.BadRequestError, match="is of a conversation; send") as raised:  # no branch hides it
        await scene.ask("us", previous_response_id=response.id)
    assert (raised.value.param, len(scene.turns)) == ("previous_response_id", 2)
    assert (await client.conversations.items.retrieve(items[-1].id, conversation_id=made.id)) == items[-1]
    raw, of_items = client.conversations.with_raw_response, client.conversations.items.with_raw_response
    asked_for = raw.create(), raw.retrieve(made.id), of_items.list(made.id), of_items.create(made.id, items=first[:1])
    for one in (*asked_for, of_items.retrieve(items[-1].id, conversation_id=made.id)):
        assert (await one).headers["cache-control"] == "no-store"
    added = await client.conversations.items.create(made.id, items=[{"role": "user", "content": "note"}])
    assert (await client.conversations.items.list(made.id, limit=1)).data == added.data


async def test_tokens_of_an_answer_count_in_the_response_in_which_it_ends(scene: ClientScene) -> None:
    async def counts(turn: Turn) -> None:
        async with turn.reply(meta={"usage": {"input_tokens": 8, "output_tokens": 1}}) as message:
            await message.part(ASKED_PLACE)
            place = (await turn.ask("where", {"call": "c1"})).data
            await message.finish(meta={"usage": {"input_tokens": 16, "output_tokens": 2}})
        async with turn.reply(meta={"usage": {"input_tokens": 32, "output_tokens": 4}}) as message:
            await message.part({**ASKED_PLACE, "call": "c2"})
            await turn.ask("where", {"call": "c2"})
            await message.part({"type": "text", "text": f"Here: {place}."})

    scene.script = counts
    responses = [await scene.ask(tools=[PLACE])]
    for call in ("c1", "c2"):
        responses.append(await scene.ask([output_of(call)], previous_response_id=responses[-1].id))
    assert [one.usage and one.usage.total_tokens for one in responses] == [None, 18, 36]
    assert responses[-1].output_text == "Here: Ulm."


async def test_output_for_a_conversation_finds_its_turn_behind_newer_messages(scene: ClientScene) -> None:
    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            kind = {"weather": "approve", "place": "where"}.get(turn.text)
            if kind is not None:
                await message.part({**CALL, "name": turn.text, "state": "called"})
                await message.append(f"{(await turn.ask(kind, {'call': 'c1'})).data}!")

    scene.script = asks
    client, note = scene.client.conversations, {"role": "user", "content": "note"}
    made, empty = [await client.create() for _ in range(2)]
    for name, wrong in (("place", output_of("c9")), ("weather", {**APPROVAL, "approval_request_id": "mcpr_0_0_x9"})):
        asked = await scene.ask(name, conversation=made.id, tools=[PLACE])
        await client.items.create(made.id, items=[note])  # type: ignore[list-item]
        words = "has no call 'c9'; send the call_id of its function_call" if name == "place" else "does not exist"
        for conversation in (made.id, empty.id):
            with pytest.raises(openai.NotFoundError, match=words):
                await scene.ask([wrong], conversation=conversation)
        reply = output_of("c1") if name == "place" else approval_of(asked)
        assert (await scene.ask([reply], conversation=made.id)).output_text == ("Ulm!" if name == "place" else "None!")
    assert len(scene.turns) == 2


async def test_item_that_goes_with_others_cannot_be_deleted_alone(scene: ClientScene) -> None:
    client = scene.client
    made = await client.conversations.create(items=[{"role": "user", "content": "note"}])
    await scene.ask(conversation=made.id)
    *_, note = [one async for one in client.conversations.items.list(made.id)]
    for one in [one async for one in client.conversations.items.list(made.id, order="asc")][1:]:
        with pytest.raises(openai.BadRequestError, match=r"goes with \d others; delete the response or"):
            await client.conversations.items.delete(str(one.id), conversation_id=made.id)
    assert (await client.conversations.items.delete(str(note.id), conversation_id=made.id)).id == made.id
    other = await client.conversations.create()
    for id, conversation in ((str(note.id), made.id), ("in_x", made.id), (str(one.id), other.id)):
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.conversations.items.delete(id, conversation_id=conversation)
    assert len((await client.conversations.items.list(made.id)).data) == 5


async def test_delete_of_a_conversation_leaves_only_what_others_have_written() -> None:
    async with scene_of(authenticate=verifier()) as scene:
        scene.gate.set()
        client = scene.client
        ann, ben, bot = ({"extra_headers": {"Authorization": f"Bearer {name}"}} for name in ("ann", "ben", "bot"))
        items: Any = [{"role": role, "content": "Hm."} for role in ("system", "assistant", "user")]
        made = await client.conversations.create(items=items, **ann)
        system: Any = (await client.conversations.items.list(made.id, **ben)).data[-1]
        for other in (ben, bot):
            with pytest.raises(openai.PermissionDeniedError, match="another author"):
                await client.conversations.items.delete(system.id, conversation_id=made.id, **other)
        await client.conversations.items.delete(system.id, conversation_id=made.id, **ann)
        for caller in (ben, ann):
            await scene.ask(conversation=made.id, **caller)
        for caller in (bot, ann):  # an agent's answers are not those of a person with its name
            with pytest.raises(openai.PermissionDeniedError, match="the messages of others are left"):
                await client.conversations.delete(made.id, **caller)
        left = (await scene.hub.history(scene.turns[0].channel)).messages
        assert [(one.role, one.author) for one in left] == [("assistant", "bot"), ("user", "ben")]
        gone = await scene.hub.create(  # by a request of ann at the same moment, which deletes it next
            scene.turns[0].channel, id="conversation.deleted", role="system", parts=[], author="ann"
        )
        deleted = await client.conversations.delete(made.id, **ben)
        assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "conversation.deleted")
        assert (await scene.hub.history(scene.turns[0].channel)).messages == [gone]


async def test_delete_of_a_conversation_ends_although_its_caller_stores_message_after_message(
    of_ann: ClientScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_turn, stored = Access.delete_turn, list[str]()

    async def while_another_is_stored(access: Access, channel: str, message_id: str) -> None:
        await delete_turn(access, channel, message_id)
        assert len(stored) < 100
        stored.append((await of_ann.hub.create(channel, text="Hm.", author="ann", starts_turn=False)).id)

    made = await of_ann.client.conversations.create(items=[{"role": "user", "content": "note"}])
    monkeypatch.setattr(Access, "delete_turn", while_another_is_stored)
    assert (await of_ann.client.conversations.delete(made.id)).deleted
    left = (await of_ann.hub.history(reference(made.id, kind="conversation").channel)).messages
    assert len(stored) > 2  # those that were stored while it deleted others
    assert {one.id for one in left} == {*stored[-2:]}  # the last ones: of the last pass, and of the note of its end


async def test_delete_of_a_conversation_begins_no_turn_that_waits_and_reads_few_pages() -> None:
    class Counting(MemoryStore):
        pages = 0

        async def page(self, channel: str, **about: Any) -> Any:
            self.pages += 1
            return await super().page(channel, **about)

    store = Counting()
    async with scene_of(store, authenticate=verifier("ann")) as scene:
        made = await scene.client.conversations.create()
        channel = reference(made.id, kind="conversation").channel
        for number in range(300):
            await scene.hub.create(channel, id=f"q{number}", text="you", author="ann", starts_turn=False)
            await scene.hub.create(channel, id=f"a{number}", role="assistant", text="Hm.", reply_to=f"q{number}")
        for _ in range(3):
            await scene.ask(conversation=made.id, background=True)
        await scene.served.until(lambda: scene.turns)
        scene.hub.channel(channel).trim(0)
        store.pages = 0
        assert (await scene.client.conversations.delete(made.id)).deleted
        assert (len(scene.turns), store.pages < 50) == (1, True)
        assert (await scene.hub.history(channel)).messages == []


@pytest.mark.parametrize("asker", ["ann", "ben"])
async def test_delete_of_a_conversation_has_answers_to_deleted_messages_of_the_caller(
    of_ann: ClientScene, asker: str
) -> None:
    channel = "chat:1"
    await of_ann.hub.create(channel, id="q", text="you", author=asker, starts_turn=False)
    await of_ann.hub.create(channel, id="a", role="assistant", text="Hm.", reply_to="q")
    await of_ann.hub.delete(channel, "q")
    left: Any = pytest.raises(openai.PermissionDeniedError, match="the messages of others are left")
    with nullcontext() if asker == "ann" else left:
        assert (await of_ann.client.conversations.delete(conversation_id(channel))).deleted
    assert [one.id for one in (await of_ann.hub.history(channel)).messages] == ["a"] * (asker == "ben")


async def test_deleted_conversation_does_not_exist_until_its_next_message(tmp_path: Path) -> None:
    given: Any = [{"role": "user", "content": "you"}]
    async with scene_of(f"sqlite:///{tmp_path}/hub.db") as scene:
        client = scene.client.conversations
        used, unused, left = [(await client.create(items=items)).id for items in (given, [], [])]
        for id in (used, unused, used):  # a repeat is no error
            assert (await client.delete(id)).deleted
    async with scene_of(f"sqlite:///{tmp_path}/hub.db") as scene:
        client = scene.client.conversations
        for id in (used, unused):
            adds, responds = client.items.create(id, items=given), scene.ask(conversation=id)
            for asked in (client.retrieve(id), client.items.list(id), adds, responds):
                with pytest.raises(openai.NotFoundError, match=r"conversation 'conv_.*' does not exist"):
                    await asked
        assert (await client.retrieve(left)).id == left
        channel = reference(used, kind="conversation").channel
        await scene.hub.create(channel, text="Hm.", starts_turn=False)  # by another client
        assert len((await client.items.list(used)).data) == 1


async def test_regenerated_response_begins_anew_and_is_deleted_with_the_answers_before(
    of_ann: ClientScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def regenerate(*given: Any) -> Any:
        """Answer the turn again once the request has read it."""
        monkeypatch.undo()
        await of_ann.hub.command(channel, "regenerate", target=of_ann.turns[0].message.id)
        await of_ann.served.until(lambda: len(of_ann.turns) == 4)
        return await Access.options(*given)

    response = await of_ann.ask()
    channel, known = channel_of(response.id), units(await of_ann.events(response.id))
    for number in (2, 3):
        of_ann.script = writes({"type": "reasoning", "text": "Hm."}, f"Answer {number}.")  # type: ignore[method-assign]
        await of_ann.hub.command(channel, "regenerate", target=of_ann.turns[0].message.id)
        whole = await of_ann.events(response.id)
        assert (text_of(whole), whole[-1].response.output_text) == (f"Answer {number}.", f"Answer {number}.")
        known += units(whole)  # a reader of an earlier answer gets all of this one
        for after, _, _ in known[:-1:3]:
            assert units(await of_ann.events(response.id, after)) == [one for one in units(whole) if one[0] > after]
    monkeypatch.setattr(Access, "options", regenerate)
    assert units(await of_ann.events(response.id, known[-2][0])) == units(await of_ann.events(response.id))
    assert len((await of_ann.hub.history(channel)).messages) == 5
    await of_ann.client.responses.delete(response.id)
    assert (await of_ann.hub.history(channel)).messages == []


async def test_messages_that_a_request_brought_are_deleted_by_their_maker_alone() -> None:
    async with scene_of(authenticate=verifier("bot")) as scene:
        scene.gate.set()
        given: Any = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "you"}]
        channel = channel_of((await scene.ask(given)).id)
        # the app's, whose fields have names of their own
        await scene.hub.create(channel, role="assistant", text="Welcome.", author="bot", meta={"brought": True})
        with pytest.raises(openai.PermissionDeniedError):
            await scene.client.conversations.delete(conversation_id(channel))
        assert [one.text for one in (await scene.hub.history(channel)).messages] == ["Welcome."]


async def test_calls_of_a_request_are_not_compared_with_each_other(scene: ClientScene) -> None:
    began_s, call = time.process_time(), {"type": "function_call", "name": "f", "arguments": "{}"}
    given = [*({**call, "call_id": f"c{number}"} for number in range(15_000)), {"role": "user", "content": "x"}]
    with pytest.raises(openai.APIStatusError, match="the limit is 256"):
        await scene.client.post("/responses", body={"model": "bot", "input": given}, cast_to=object)
    assert time.process_time() - began_s < 3.0  # comparisons take 10 s
    for one in (0, '"]\\'):
        with pytest.raises(openai.APIStatusError, match="more than 600000 values"):
            await scene.client.post("/responses", body={"input": [one] * 600_000}, cast_to=object)


async def test_caller_that_may_only_ask_brings_no_message_of_another_role(of_ann: ClientScene) -> None:
    first = await of_ann.ask()
    photo = [{"type": "input_image", "image_url": "/up/a.png"}]  # as an app stores its own
    for role, content in (("system", photo), ("assistant", "Obey.")):
        given = [{"role": role, "content": content}, {"role": "user", "content": "me"}]
        with pytest.raises(openai.PermissionDeniedError, match="'append'"):
            await of_ann.ask(given, previous_response_id=first.id)
    assert len((await of_ann.hub.history(of_ann.turns[0].channel)).messages) == 2


@pytest.mark.parametrize("kind", ["previous_response_id", "conversation"])
async def test_system_messages_are_instructions_of_a_caller_that_may_only_ask(of_ann: ClientScene, kind: str) -> None:
    into = {kind: (await (of_ann.client.conversations.create() if kind == "conversation" else of_ann.ask())).id}
    given: Any = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": "me"},
    ]
    for own, expected in (({}, ""), ({"instructions": "Rhyme."}, "Rhyme.\n\n")):  # the AI SDK sends them each time
        response = await of_ann.ask(given, **into, **own)
        assert response.output_text == ANSWER.replace("you", "me")
        assert of_ann.turns[-1].request.instructions == f"{expected}Be kind.\n\nBe brief."
        if kind == "previous_response_id":
            into = {kind: response.id}
    assert {one["role"] for one in await of_ann.turns[-1].history()} == {"user", "assistant"}
    with pytest.raises(openai.APIStatusError) as raised:
        given[0]["content"] = "x" * 600_000
        await of_ann.ask(given, **into)
    assert (raised.value.status_code, raised.value.param) == (413, "instructions")


async def paths_of(scene: ClientScene) -> dict[str, list[str]]:
    """Return for the text of each question those of the messages before it in the agent's history."""
    histories = [await turn.history() for turn in scene.turns]
    return {turns[-1]["content"]: [one["content"] for one in turns[:-1]] for turns in histories}


async def test_requests_that_continue_one_response_are_branches(scene: ClientScene) -> None:
    first = await scene.ask()
    both = await asyncio.gather(*(scene.ask(text, previous_response_id=first.id) for text in ("a", "b")))
    late = [{"role": "developer", "content": "S"}, {"role": "user", "content": "c"}]
    third = await scene.ask(late, previous_response_id=first.id)
    for response, text in ((both[1], "d"), (third, "e")):
        await scene.ask(text, previous_response_id=response.id)
    begin, answers = ["you", ANSWER], {text: ANSWER.replace("you", text) for text in "abc"}
    assert await paths_of(scene) == {
        "you": [],
        "a": begin,
        "b": begin,
        "c": [*begin, "S"],
        "d": [*begin, "b", answers["b"]],
        "e": [*begin, "S", "c", answers["c"]],
    }
    items: Any = [one async for one in scene.client.responses.input_items.list(third.id, order="asc")]
    assert [one.role for one in items] == ["system", "user"]


@pytest.mark.parametrize("kind", ["conversation", "previous_response_id"])
@pytest.mark.parametrize("when_busy", ["queue", "parallel", "interrupt"])
async def test_two_sockets_that_create_at_once_have_each_its_own_answer(kind: str, when_busy: str) -> None:
    create, both = Access.create, asyncio.Barrier(2)

    async def at_once(*of: Any, **question: Any) -> Any:
        await both.wait()  # each request has read all that it needs, without the question of the other
        return await create(*of, **question)

    async def respond(text: str) -> Any:
        async with scene.client.responses.connect() as socket:
            await socket.response.create(model="bot", input=text, **into)
            events = await until(socket, lambda event: event.type in (*LAST, "error"))
        last, numbers = events[-1].response, [number for number, _, _ in units(events)]
        assert numbers == [*range(len(numbers))]
        assert {one.response.id for one in events if hasattr(one, "response")} == {last.id}
        assert text_of(events) == last.output_text
        return last

    async with scene_of(when_busy=when_busy) as scene:
        scene.gate.set()
        into: Any = {kind: (await (scene.client.conversations.create() if kind == "conversation" else scene.ask())).id}
        begin = ["you", ANSWER] if scene.turns else []
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Access, "create", at_once)
            found = await asyncio.gather(*map(respond, "ab"))
        assert found == [await scene.client.responses.retrieve(one.id) for one in found]
        shown = {text: one.output_text for text, one in zip("ab", found, strict=True)}
        stored = sorted((await scene.hub.history(scene.turns[0].channel)).messages, key=lambda one: one.created)
        assert sorted(one.text for one in stored) == sorted([*begin, *shown, *filter(None, shown.values())])
        first, second = [one.text for one in stored if one.text in shown]
        is_cut = when_busy == "interrupt"  # before its turn begins
        assert shown == {text: "" if is_cut and text == first else ANSWER.replace("you", text) for text in "ab"}
        paths = await paths_of(scene)
        assert (paths.get(first, begin), paths[second]) == (begin, begin or [first, *filter(None, [shown[first]])])


async def test_request_that_continues_the_last_response_follows_its_last_answer(scene: ClientScene) -> None:
    scene.script = answers_twice
    first = await scene.ask()
    await scene.ask("me", previous_response_id=first.id)
    messages = sorted((await scene.hub.history(channel_of(first.id))).messages, key=lambda one: one.created)
    before: list[str | None] = [None, *(one.id for one in messages)]
    assert [one.parent for one in messages] == [*before[:3], before[3], before[4], before[5]]
    await scene.hub.delete(channel_of(first.id), messages[2].id)
    await scene.ask("us", previous_response_id=first.id)
    assert (await paths_of(scene))["us"] == ["you", "One."]


async def test_request_continues_a_response_that_runs_or_has_failed(scene: ClientScene) -> None:
    scene.gate.clear()
    running = await scene.begin()
    for text in ("a", "b"):
        await scene.ask(text, previous_response_id=running, background=True)
    scene.gate.set()
    await scene.served.until(lambda: len(scene.turns) == 3)
    scene.script = fails  # type: ignore[method-assign]
    failed = await scene.ask("me", previous_response_id=running)
    for text in ("c", "d"):
        await scene.ask(text, previous_response_id=failed.id, background=True)
    await scene.served.until(lambda: len(scene.turns) == 6)
    begin, paths = ["you", ANSWER], await paths_of(scene)
    assert [paths[text] for text in "abcd"] == [begin, begin, [*begin, "me", "One."], [*begin, "me", "One."]]


async def test_branch_that_begins_long_before_the_newest_messages_has_only_its_own(scene: ClientScene) -> None:
    channel = channel_of((first := await scene.ask()).id)
    for branch in range(2):
        parent = (await scene.hub.history(channel, limit=1)).messages[0].id
        for number in range(230):
            parent = (await scene.hub.create(channel, role="system", text=f"{branch}.{number}", parent=parent)).id
        other = await scene.ask(f"late {branch}", previous_response_id=first.id)
        last = await scene.ask(f"later {branch}", previous_response_id=other.id)
    paths = await paths_of(scene)
    assert paths["late 0"] == paths["late 1"] == ["you", ANSWER]
    assert paths["later 1"] == ["you", ANSWER, "late 1", ANSWER.replace("you", "late 1")]
    for number in range(110):  # further answers of its own than a history has
        await scene.hub.create(channel, id=f"x{number}", text=f"x{number}", starts_turn=False)
    await scene.ask("end", previous_response_id=last.id)
    assert (await paths_of(scene))["end"] == [*paths["later 1"], "later 1", ANSWER.replace("you", "later 1")]


ASKED_B = {"role": "user", "content": "b"}


async def test_reference_to_an_item_of_another_branch_is_the_item(scene: ClientScene) -> None:
    first = await scene.ask()
    other = await scene.ask("a", previous_response_id=first.id)
    given = [*({"type": "item_reference", "id": one.output[1].id} for one in (first, other)), ASKED_B]
    for response in (first, other):
        await scene.ask(given, previous_response_id=response.id)
    begin = ["you", ANSWER]
    assert [one["content"] for one in await scene.turns[2].history()] == [*begin, "Hello to a 😀, ", "b"]
    assert [one["content"] for one in await scene.turns[3].history()] == [*begin, "a", ANSWER.replace("you", "a"), "b"]


@pytest.mark.parametrize("has_branches", [False, True])
async def test_item_before_a_deleted_response_is_in_the_history_once(scene: ClientScene, has_branches: bool) -> None:
    first = await scene.ask()
    for text in ("c", "d") if has_branches else ():
        await scene.ask(text, previous_response_id=first.id)
    gone = await scene.ask("gone", previous_response_id=first.id)
    last = await scene.ask("a", previous_response_id=gone.id)
    await scene.client.responses.delete(gone.id)
    await scene.ask([{"type": "item_reference", "id": first.output[-1].id}, ASKED_B], previous_response_id=last.id)
    own = ["a", ANSWER.replace("you", "a")]
    assert (await paths_of(scene))["b"] == ([*own, "in Ulm."] if has_branches else ["you", ANSWER, *own])


async def test_branch_has_no_question_that_came_before_the_answer_where_it_begins(scene: ClientScene) -> None:
    gates = {text: asyncio.Event() for text in ("you", "a", "b")}

    async def waits(turn: Turn) -> None:
        await gates[turn.text].wait()
        async with turn.reply() as message:
            await message.append("One.")

    scene.script = waits
    first = (await scene.ask(background=True)).id
    for text, gate in (("a", "you"), ("b", "a")):
        await scene.ask(text, background=True, previous_response_id=first)
        gates[gate].set()
        await scene.events(first)
    gates["b"].set()
    await scene.served.until(lambda: len(scene.turns) == 3)
    assert (await paths_of(scene))["b"] == ["you", "One."]


async def test_repeated_request_is_the_same_branch_although_its_response_has_grown(scene: ClientScene) -> None:
    first = await scene.ask()

    async def ask(key: str, given: object) -> str:
        """Return the id of the response."""
        return str((await scene.ask(given, previous_response_id=first.id, extra_headers={"Idempotency-Key": key})).id)

    given = {"k": "me", "other": [{"role": "user", "content": text} for text in ("a", "b")]}
    stored = [await ask(*one) for one in given.items()]
    await scene.hub.command(channel_of(first.id), "regenerate", target=scene.turns[0].message.id)
    await scene.served.until(lambda: len(scene.turns) == 4)
    assert stored == [await ask(*one) for one in given.items()]
    with pytest.raises(openai.ConflictError):
        await ask("k", "other")
    assert len(scene.turns) == 4


async def test_input_items_are_what_the_request_brought(scene: ClientScene) -> None:
    photo = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}
    content = [
        {"type": "input_text", "text": "you"},
        photo,
        {"type": "input_file", "file_data": "data:a/b;base64,AA=="},
    ]
    given: Any = [
        {"role": "system", "content": "Obey."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": content},
    ]
    response = await scene.ask(given)
    items: Any = [one async for one in scene.client.responses.input_items.list(response.id, order="asc", limit=2)]
    assert [one.role for one in items] == ["system", "assistant", "user"]
    assert [one.to_dict() for one in items[-1].content] == content
    for options, wrong in (({"order": "up"}, "asc or desc, got 'up'"), ({"limit": 0}, "from 1 to 100, got '0'")):
        with pytest.raises(openai.BadRequestError, match=f"must be .*{wrong}"):
            await scene.client.responses.input_items.list(response.id, **options)
    with pytest.raises(openai.NotFoundError):
        await scene.client.responses.input_items.list(response.id, after="in_x")


@pytest.mark.parametrize(
    ("written", "inputs", "left"),
    [
        ([("q.0", "ben"), ("q.x", "ann"), ("q.1", "ann"), ("q", "ann")], ["q", "q.1"], ["q.0", "q.x"]),
        ([("q.0", "ann"), *((f"{n}", "ben") for n in range(201)), ("q", "ann")], ["q", "q.0"], ["0", "1", "2"]),
    ],
    ids=["of another person or name", "behind many of others"],
)
async def test_input_of_a_response_has_the_messages_of_its_person_and_name(
    of_ann: ClientScene, written: list[tuple[str, str]], inputs: list[str], left: list[str]
) -> None:
    for id, author in written:
        await of_ann.hub.create("chat:1", id=id, text=id, author=author, starts_turn=False)
    id = Reference("chat:1", "q").id()
    found: Any = [one async for one in of_ann.client.responses.input_items.list(id)]
    assert [one.content[0].text for one in found] == inputs
    await of_ann.client.responses.delete(id)
    assert [one.id for one in (await of_ann.hub.history("chat:1", after=0, limit=3)).messages] == left


async def test_items_of_a_conversation_are_in_the_order_in_which_they_came(scene: ClientScene) -> None:
    call: Any = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
    result: Any = {"type": "function_call_output", "call_id": "c", "output": "7"}
    given: Any = [call, result, *({"role": role, "content": role} for role in ("user", "system", "user"))]
    given += [{**call, "call_id": "d"}, {"role": "user", "content": "user"}, {**result, "call_id": "d"}, given[2]]
    made = await (client := scene.client.conversations).create(items=given)
    added: Any = await client.items.create(made.id, items=given)
    listed: Any = [one async for one in client.items.list(made.id, order="asc")]
    for items in (added.data, listed[: len(given)], listed[len(given) :]):
        assert [getattr(one, "role", one.type) for one in items] == [one.get("role") or one["type"] for one in given]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_have_all_items_of_a_long_conversation(scene: ClientScene, order: Any) -> None:
    texts = [f"{number}" for number in range(205)]
    for text in texts[:4]:
        await scene.hub.create("chat:1", id=text, text=text, starts_turn=False)
    async with scene.hub.message("chat:1", reply_to="3") as message:
        await message.append("answer")
    for text in texts[4:]:
        await scene.hub.create("chat:1", id=text, text=text, starts_turn=False)
    client, id = scene.client.conversations.items, conversation_id("chat:1")
    items: Any = [one async for one in client.list(id, order=order, limit=100)]
    assert [one.content[0].text for one in items][:: 1 if order == "asc" else -1] == [*texts[:4], "answer", *texts[4:]]
    assert items[40] in (await client.list(id, order=order, after=items[38].id, limit=2)).data
    with pytest.raises(openai.NotFoundError):
        await client.list(id, order=order, after="in_x")


async def test_reply_is_no_item_of_a_conversation(scene: ClientScene) -> None:
    client = scene.client.conversations
    made, approvals, outputs = await client.create(), list[Any]([APPROVAL]), list[Any]([output_of("c9")])
    is_reply, no_call = "send it as the input of a response", "replies to 'c9', but no call before it has this id"
    asked = [(client.create(items=approvals), is_reply), (client.items.create(made.id, items=approvals), is_reply)]
    for one, words in (*asked, (client.create(items=outputs), no_call)):
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            await one
        assert refused.value.param == "items"


async def test_response_repeats_the_settings_of_its_request(scene: ClientScene) -> None:
    response = await scene.ask(user="ann", prompt={"id": "pmpt_1", "variables": {"a": "b"}}, text={"verbosity": "low"})
    assert (response.user, response.prompt.id, response.text.verbosity) == ("ann", "pmpt_1", "low")


async def test_reference_to_an_item_is_the_item(scene: ClientScene) -> None:
    """As the AI SDK sends its second turn."""
    first = await scene.ask()
    refs: Any = [{"type": "item_reference", "id": one.id} for one in first.output]
    given = [{"role": "user", "content": "you"}, *refs, {"role": "user", "content": "me"}]
    response = await scene.ask(given)
    history = [(one["role"], one["content"]) for one in await scene.turns[1].history()]
    assert history == [("user", "you"), ("assistant", "Hello to you 😀, "), ("assistant", "in Ulm."), ("user", "me")]
    # the items of the request are items of their own, to which another request may refer
    items: Any = [one async for one in scene.client.responses.input_items.list(response.id, order="asc")]
    assert [one.type for one in items] == ["message", "message", "mcp_call", "message", "message"]
    made = await scene.client.conversations.create(items=[{"type": "item_reference", "id": one.id} for one in items])
    stored: Any = [one async for one in scene.client.conversations.items.list(made.id, order="asc")]
    assert [one.type for one in stored] == [one.type for one in items]
    for id, before in (("msg_none", []), ("x", given[:1])):
        items = [*before, {**refs[0], "id": id}]
        with pytest.raises(openai.NotFoundError, match=f"item '{id}' does not exist"):
            await scene.client.conversations.items.create(made.id, items=items)
    assert len((await scene.client.conversations.items.list(made.id)).data) == len(stored)
    # a reference to the item that the store has already, and one to itself
    await scene.ask([*refs, given[-1]], previous_response_id=first.id)
    # a copy would be stored, so that a short request could fill the disk
    twice = await scene.ask(2 * [refs[1]] + [given[-1]])
    assert len((await scene.client.responses.input_items.list(twice.id)).data) == 2
    for id in ("msg_1", "resp_1", first.output[0].id[:-2], "", Reference("chat:none", "u").id("msg_")):
        with pytest.raises(openai.NotFoundError) as raised:
            await scene.ask([{"type": "item_reference", "id": id}, given[-1]])
        assert (raised.value.param, repr(id) in raised.value.message) == ("input", True)
    assert len(scene.turns) == 4


@pytest.mark.parametrize("kind", ["whole", "references", "conversation"])
async def test_calls_of_the_server_reach_the_agent_when_clients_send_them_again(scene: ClientScene, kind: str) -> None:
    done = {**CALL, "call": "c0", "state": "done", "output": {"c": "7 °"}}
    failed = {**CALL, "call": "c1", "state": "error", "output": "?"}
    scene.script = writes("Wait: ", done, failed, {"type": "text", "text": "Ulm."})
    first = await scene.ask()
    sent: Any = [{"role": "user", "content": "you"}, *(one.to_dict() for one in first.output)]
    if kind == "references":
        forms: Any = ({"type": "item_reference"}, {"type": None}, {})
        sent[1:] = [{**form, "id": one.id} for one, form in zip(first.output, cycle(forms), strict=False)]
    given = [{"role": "user", "content": "me"}]
    if kind == "conversation":
        await scene.ask(given, conversation=(await scene.client.conversations.create(items=sent)).id)
    else:
        await scene.ask([*sent, *given])
    await scene.ask(given, previous_response_id=first.id)  # the store has the calls
    shapes: Any = ("openai", "responses", "anthropic")
    for shape in shapes:
        resent, chained = [json.dumps(await turn.history(shape)) for turn in scene.turns[1:]]
        for number, id in enumerate(dict.fromkeys(re.findall(r'"(?:id|call_id)": "([0-9a-f]{32})"', resent))):
            resent = resent.replace(id, f"c{number}")
        assert resent == chained


async def test_items_and_conversations_of_another_person_are_unknown_or_forbidden() -> None:
    verify = verifier(channels="user:{}:*")
    async with scene_of(authenticate=verify, channel="user:{client}:{id}", pattern="user:*") as scene:
        scene.gate.set()
        theirs = await scene.ask("secret", extra_headers={"authorization": "Bearer ann"})
        errors = []
        for id in (theirs.output[1].id, Reference("user:ann:none", "u").id("msg_")):
            with pytest.raises(openai.NotFoundError) as raised:
                await scene.ask([{"type": "item_reference", "id": id}, ASKED_B], extra_headers=BEN)
            errors.append(raised.value.message.replace(id, "id"))
        assert errors[0] == errors[1]
        own = await scene.ask(extra_headers=BEN)
        given = [{"type": "item_reference", "id": theirs.output[1].id}, ASKED_B]
        with pytest.raises(openai.NotFoundError):
            await scene.ask(given, previous_response_id=own.id, extra_headers=BEN)
        for conversation in (conversation_id(channel_of(theirs.id)), conversation_id("user:ann:none")):
            with pytest.raises(openai.PermissionDeniedError):
                await scene.ask(conversation=conversation, extra_headers=BEN)
        for conversation in ("conv_a/b", "a/b", conversation_id("a/b"), ""):
            with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
                await scene.ask(conversation=conversation, extra_headers=BEN)
            path = conversation.replace("/", "%2F") or "%20"
            assert (await scene.served.http.get(f"/v1/conversations/{path}", headers=BEN)).status_code in (400, 404)
        with pytest.raises(openai.PermissionDeniedError):
            await scene.client.responses.delete(theirs.id, extra_headers=BEN)
