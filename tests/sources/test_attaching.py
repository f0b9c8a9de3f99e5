"""`pipe(make, attach=…)`: a background response is attached again, so that nothing is generated, shown or lost twice.

Layer: tests.

The `openai` package is real. Its HTTP client has a transport that answers from a script, in virtual time, or is
connected to a server on loopback.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from itertools import cycle
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI

from tenuto import Hub
from tenuto.agents.turn import Turn
from tenuto.core.errors import Finished, LocalError
from tenuto.core.model import Message
from tenuto.sources import pipe
from tenuto.sources.openai import events_of
from tenuto.stores.memory import MemoryStore
from tests.agents.test_turns import lives, messages
from tests.sources.piping import broken, one_by_one
from tests.sources.provider import CUT, HOLD, Provider
from tests.sources.test_tries import LONG, Model, ask_chat, counted, new_hub, piped, texts_shown
from tests.sources.wires import (
    GEMINI_USAGE,
    INPUT,
    INTERACTION_USAGE,
    PARTS,
    RESPONSES_USAGE,
    TEXT,
    THOUGHT,
    Responses,
    chat_called,
    chat_end,
    chat_said,
    interaction_answer,
    interaction_state,
    responses_answer,
)
from tests.virtual import virtually

EVENTS = responses_answer()
ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
OUTPUT: list[dict[str, Any]] = [
    {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": THOUGHT}]},
    {**ITEM, "content": [{"type": "output_text", "text": TEXT, "annotations": []}]},
    Responses().call(INPUT),
]


def ask(client: Any, **options: Any) -> Callable[[], Any]:
    return lambda: client.responses.create(
        model="gpt-test", input="Hi", background=True, store=True, stream=True, **options
    )


def state(status: str, **fields: Any) -> tuple[int, dict[str, str], str]:
    """Return the script for a request that asks for the response."""
    return 200, {}, json.dumps(Responses().about(status, **fields))


ENDED = state("completed", output=OUTPUT, usage=json.loads(EVENTS[-1].split(b"data: ")[1])["response"]["usage"])
TOO_OLD = (400, {}, '{"error": {"message": "more than 5 minutes old", "type": "invalid_request_error"}}')
UNKNOWN = (404, {}, '{"error": {"message": "not found", "type": "invalid_request_error"}}')


def after(number: int) -> str:
    return f"GET /resp_1?starting_after={number}&stream=true"


async def answered(model: Model, **options: Any) -> Message:
    """Return the message into which a response of `model` was piped."""
    client = model.openai()
    message, shown = await piped(ask(client), attach=client.responses, **options)
    assert all(TEXT.startswith(text) for text in shown) or "attempt" in counted(message)
    return message


async def stopped(
    hub: Hub, make: object, *, ends_as: tuple[Any, str | None] = ("cancelled", None), **options: Any
) -> Message:
    """Return the message into which `make` was piped for five seconds."""

    async def answer() -> None:
        async with hub.message("chat:1", id="m") as message:
            message.cancelled_as = ends_as
            await pipe(message, make, **options)

    task = asyncio.create_task(answer())
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.wait([task])
    return (await hub.read("chat:1", "m"))[0]


async def died_and_answered(
    model: Model, *, supersedes: bool, make: Callable[[], Any] | None = None, attach: Any = None, **options: Any
) -> Message:
    """Return the message after a process that died while it piped a response, and another one that took it over."""
    hub, client = new_hub(), model.openai()
    make, attach = make or ask(client), attach or client.responses
    await stopped(hub, make, ends_as=("interrupted", None), attach=attach)
    message = await hub.take_over("chat:1", "m")
    message.begin_again({}, supersedes=supersedes)
    async with message:
        await pipe(message, make, attach=attach, **options)
    stored, _ = await hub.read("chat:1", "m")
    await hub.close()
    return stored


def unmarked(message: Message) -> list[dict[str, Any]]:
    return [{name: value for name, value in part.items() if name != "joins"} for part in message.parts]


# -- a break -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(1, len(EVENTS)))
@virtually
async def test_stream_that_breaks_goes_on_behind_its_last_event(at: int) -> None:
    end = [CUT] if at % 2 else []  # or it ends cleanly
    looks = [state("in_progress")] if at < 4 else []  # without content it looks first whether the response has begun
    model = Model([*EVENTS[:at], *end], *looks, EVENTS[at:])
    message = await answered(model)
    assert (message.status, message.parts) == ("complete", PARTS)
    assert model.asked == ["POST", *(["GET /resp_1"] if looks else []), after(at - 1)]
    assert message.meta == {"model": "gpt-test", "usage": RESPONSES_USAGE, "finish_reason": "tool_calls"}


@virtually
async def test_stream_without_an_event_is_not_complete() -> None:
    assert (await answered(Model([], EVENTS))).parts == PARTS
    assert (await answered(Model([*EVENTS[:9], CUT], [], state("in_progress"), EVENTS[9:]))).parts == PARTS
    assert (await died_and_answered(Model([*EVENTS[:9], HOLD], [], ENDED), supersedes=True)).parts == PARTS
    message, _ = await piped(ask(Model([], [*EVENTS]).openai()))  # without `attach`, too
    assert message.parts == PARTS


def keepalive(number: int) -> bytes:
    return f'event: keepalive\ndata: {{"type": "keepalive", "sequence_number": {number}}}\n\n'.encode()


@virtually
async def test_keepalives_are_no_events_of_a_response() -> None:
    first, second = [keepalive(0), *EVENTS[:9], keepalive(9), CUT], [keepalive(20), CUT]
    model = Model(first, second, state("in_progress"), [keepalive(21), *EVENTS[9:]])
    assert (await answered(model)).parts == PARTS
    assert model.asked == ["POST", after(8), "GET /resp_1", after(8)]


@virtually
async def test_breaks_in_a_row_are_counted_until_an_event_comes() -> None:
    model = Model([*EVENTS[:12], CUT], *([event, CUT] for event in EVENTS[12:-1]), EVENTS[-1:])
    assert (await answered(model, retries=1)).parts == PARTS
    down = (503, {}, "{}")
    model = Model([*EVENTS[:12], CUT], down, down)
    message = await answered(model, retries=2)
    assert (message.status, message.text) == ("failed", TEXT[:6])
    assert (model.asked, model.waits_s) == (["POST", after(11), "GET /resp_1"], [1.1, 2.0])


@virtually
async def test_response_that_failed_is_made_again() -> None:
    wire = Responses()
    wire.number = 11
    error = {"code": "server_error", "message": ""}
    failed = wire.event("response.failed", response=wire.about("failed", error=error))
    model = Model([*EVENTS[:12], failed], EVENTS)
    message = await answered(model)
    assert counted(message) == ["attempt", *(part["type"] for part in PARTS)]
    assert (unmarked(message)[1:], model.asked) == (PARTS, ["POST", "POST"])


# -- the death of a process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "supersedes", "has_ended"),
    [
        *((at, supersedes, False) for at in range(1, len(EVENTS)) for supersedes in (True, False)),
        *((at, True, True) for at in (1, 3, 4, 8, 12, 18, len(EVENTS) - 1)),
    ],
)
@virtually
async def test_next_process_goes_on_with_the_same_response(at: int, supersedes: bool, has_ended: bool) -> None:
    looks = at < 4  # nothing of it is in the message
    rest = [ENDED if has_ended else state("in_progress")] if looks else [TOO_OLD, ENDED] if has_ended else []
    model = Model([*EVENTS[:at], HOLD], *rest, EVENTS)
    message = await died_and_answered(model, supersedes=supersedes)
    assert (message.status, unmarked(message)) == ("complete", PARTS)
    streamed = [after(0)] if not (looks and has_ended) else []
    expected = [*(["GET /resp_1"] if looks else []), *streamed, *(["GET /resp_1"] if has_ended and not looks else [])]
    assert model.asked == ["POST", *expected]
    assert message.meta == {"model": "gpt-test", "usage": RESPONSES_USAGE, "finish_reason": "tool_calls"}
    if not has_ended:
        assert message.parts[1].get("joins") == ([6] if at == 12 else None)  # before the character that deltas share


async def answers_over_a_crash(respond: Callable[[Turn], Any], on_crash: Any, *shown: list[str]) -> list[Message]:
    """Return the answers to a question whose first process ends after thirty seconds, and the second one later.

    The texts that are `shown` in each process are added to its list.
    """
    store = MemoryStore()
    hubs = [new_hub(store), new_hub(store)]
    watching = list[asyncio.Future[None]]()
    for number, hub in enumerate(hubs):
        hub.agent("chat:*", name="bot", on_crash=on_crash)(respond)
        await hub.start()
        watching += [asyncio.ensure_future(texts_shown(hub, texts)) for texts in shown[number : number + 1]]
        if hub is hubs[0]:
            await hub.create("chat:1", id="q", role="user", text="?", author="ann")
        await asyncio.sleep(30)
        if hub is hubs[0]:
            await hub.close()
    answers = [one for one in (await hubs[1].history("chat:1")).messages if one.role == "assistant"]
    await hubs[1].close()
    for one in watching:
        one.cancel()
    return answers


def call_events(response: str) -> list[bytes]:
    wire = Responses(response)
    return [*wire.begin(), *wire.said(0, ("Let me ", "look. ")), *wire.called(1), *wire.completed()]


@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@pytest.mark.parametrize("own", ["", "own text. "])
@virtually
async def test_next_process_goes_on_with_each_response_of_a_tool_loop(on_crash: Any, own: str) -> None:
    calls = list[str]()
    first, second = call_events("resp_1"), long_events("It is ", "sunny.", response="resp_2")
    again = [] if on_crash == "continue" else [first]  # the text of a continued answer is not asked for again
    looks = [state("in_progress")] if own else []  # the own text follows the call, so what follows it is superseded
    model = Model(first, [*second[:5], HOLD], *again, *looks, second)
    client = model.openai()

    def weather(city: str) -> str:
        calls.append(city)
        return "sunny"

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            piped = await message.pipe(ask(client), attach=client.responses)
            await turn.run_tools(piped, {"weather": weather})
            if own:
                await message.append(own)
            await message.pipe(ask(client), attach=client.responses)

    answers = await answers_over_a_crash(respond, on_crash)
    assert [one.status for one in answers] == ["complete"]
    assert (answers[0].text, calls) == (f"Let me look. {own}It is sunny.", ["Oslo"])
    assert model.asked.count("POST") == 2
    parts = ["text", "tool", "attempt", "text", "text"]
    assert counted(answers[0]) == (parts if own else ["text", "tool", "text"])
    assert answers[0].meta["usage"]["output_tokens"] == 14


@pytest.mark.parametrize("kinds", ["PB", "BBP", "TBTPB", "BPTB"])
@virtually
async def test_streams_of_a_continued_answer_that_had_ended_stay_in_view_and_are_not_asked_again(kinds: str) -> None:
    """B: a response in the background; T: one with a tool call; P: another stream."""
    ended = {"B": lambda id: long_events("Some text ", f"of {id}. ", response=id), "T": call_events}
    plain = [*chat_said("Another model's ", "text. "), *chat_end()]
    model = Model(*[ended[kind](f"resp_{n}") if kind in ended else plain for n, kind in enumerate(kinds)])
    client, shown, pipes = model.openai(), (list[str](), list[str]()), list[Any]()

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            for kind in kinds:
                if kind == "P":
                    piped = await message.pipe(lambda so_far: ask_chat(client)())
                else:
                    piped = await message.pipe(ask(client), attach=client.responses)
                pipes.append(piped)
                await turn.run_tools(piped, {"weather": lambda city: "sunny"})
            await turn.step("last", asyncio.sleep, 1e6 if turn.attempt == 1 else 1)

    (answer,) = await answers_over_a_crash(respond, "continue", *shown)
    assert (answer.status, answer.text) == ("complete", shown[0][-1])
    assert {*filter(None, shown[1])} == {answer.text}
    assert (len(model.asked), pipes[len(kinds) :]) == (len(kinds), pipes[: len(kinds)])


@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@virtually
async def test_own_text_behind_a_response_that_had_ended_stays_in_view_until_it_is_written_again(on_crash: Any) -> None:
    streams = [[*chat_said(f"Stream {n}. "), *chat_end()] for n in (1, 2)]
    events = long_events("Some ", "text. ")
    model = Model(events, streams[0], *([events] if on_crash == "restart" else []), streams[1])
    client, shown = model.openai(), (list[str](), list[str]())

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.pipe(ask(client), attach=client.responses)
            await asyncio.sleep(1)
            await message.append(f"Own {turn.attempt}. ")
            await message.pipe(ask_chat(client)())
            await turn.step("last", asyncio.sleep, 1e6 if turn.attempt == 1 else 1)

    (answer,) = await answers_over_a_crash(respond, on_crash, *shown)
    assert (answer.status, answer.text) == ("complete", "Some text. Own 2. Stream 2. ")
    assert shown[1] == ["Some text. Own 1. Stream 1. ", "Some text. Own 2. ", "Some text. Own 2. Stream 2. "]


@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@pytest.mark.parametrize("takes_s", [1, 60])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("is_first", [True, False])
@virtually
async def test_next_process_goes_on_with_a_response_among_shown_steps(
    is_first: bool, order: int, takes_s: float, on_crash: Any
) -> None:
    events = long_events("One. ", "Two.")
    model = Model([*events[:5], HOLD], events)
    client = model.openai()

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            if is_first:
                await turn.step("before", asyncio.sleep, 1, show=True)
            beside = turn.step("beside", asyncio.sleep, takes_s if turn.attempt == 1 else 1, show=True)
            await asyncio.gather(*[message.pipe(ask(client), attach=client.responses), beside][::order])
            await turn.step("behind", asyncio.sleep, 1, show=True)

    (answer,) = await answers_over_a_crash(respond, on_crash)
    assert (answer.status, answer.text, model.asked.count("POST")) == ("complete", "One. Two.", 1)
    names = [*["before"] * is_first, "beside", "text", "behind"]
    assert [part.get("name", part["type"]) for part in answer.parts] == names
    assert {part["state"] for part in answer.parts if part["type"] == "tool"} == {"done"}
    assert [part.get("joins") for part in answer.parts if part["type"] == "text"] == [[len("One. ")]]


@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@virtually
async def test_drain_hands_on_at_once_a_turn_that_reads_a_response(on_crash: Any) -> None:
    lengths = range(9, 19)  # more often than a turn may die
    model = Model(*([*EVENTS[:length], HOLD] for length in lengths), EVENTS)
    client, now_s = model.openai(), asyncio.get_running_loop().time

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.pipe(ask(client), attach=client.responses)

    async for hub in lives(respond, *[10] * (len(lengths) + 1), hub={"drain_s": 60.0}, on_crash=on_crash):
        (_, answer) = await messages(hub)
        began_s = now_s()
        await hub.close()
        assert now_s() - began_s < 1
    assert (answer.status, unmarked(answer)) == ("complete", PARTS)
    assert model.asked.count("POST") == 1


@pytest.mark.parametrize(("on_break", "own"), [("prefix", ""), ("continue", ""), ("prefix", "Not the model's text. ")])
@virtually
async def test_drain_hands_on_at_once_a_turn_whose_text_is_continued_as_a_prefix(on_break: Any, own: str) -> None:
    ended, rest = [*chat_said("First. "), *chat_end()], [*chat_said("It goes on."), *chat_end()]
    model, waits_s = Model(ended, [*chat_said(LONG), HOLD], rest, rest), list[float]()
    client, now_s = model.openai(), asyncio.get_running_loop().time

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.pipe(ask_chat(client))
            if own:
                await message.append(own)
            await message.pipe(lambda so_far: ask_chat(client)(), on_break=on_break)

    async for hub in lives(respond, 10, 10, hub={"drain_s": 60.0}, on_crash="continue"):
        answer = (await messages(hub))[-1]
        began_s = now_s()
        await hub.close()
        waits_s.append(now_s() - began_s)
    assert (waits_s[0] < 1) == (on_break == "prefix" and not own)
    assert (answer.status, answer.text) == ("complete", f"First. {own}{'' if own else LONG}It goes on.")


@virtually
async def test_next_process_supersedes_what_the_response_does_not_hold() -> None:
    other = Responses()
    whole = [*other.begin(), *other.thought(), *other.said(pieces=("Another", " text")), *other.completed()]
    model = Model([*EVENTS[:13], HOLD], whole)
    message = await died_and_answered(model, supersedes=True)
    assert (message.text, counted(message)) == ("Another text", ["attempt", "reasoning", "text"])
    longer = Responses()
    model = Model([*EVENTS[:16], HOLD], [*longer.begin(), *longer.thought(), *longer.completed()])
    message = await died_and_answered(model, supersedes=False)
    assert (message.text, counted(message)) == ("", ["attempt", "reasoning"])


# -- when the response cannot be streamed, or is lost ------------------------------------------------------------------


@pytest.mark.parametrize("at", range(4, len(EVENTS)))
@virtually
async def test_response_that_is_too_old_for_a_stream_is_polled(at: int) -> None:
    model = Model([*EVENTS[:at], CUT], TOO_OLD, state("in_progress"), state("in_progress"), ENDED)
    message = await answered(model)
    assert (message.status, message.parts, message.meta["usage"]) == ("complete", PARTS, RESPONSES_USAGE)
    assert model.asked == ["POST", after(at - 1), *["GET /resp_1"] * 3]
    assert model.waits_s[1:] == [0.0, 3.0, 3.0]


@pytest.mark.parametrize("script", [[UNKNOWN], [TOO_OLD, UNKNOWN], [TOO_OLD, state("cancelled")]], ids=str)
@virtually
async def test_response_that_is_lost_is_followed_by_another_one(script: list[Any]) -> None:
    model = Model([*EVENTS[:12], CUT], *script, EVENTS)
    message = await answered(model)
    assert (message.status, message.parts[1:]) == ("complete", PARTS)
    assert model.asked.count("POST") == 2


def long_events(*pieces: str, response: str = "resp_1") -> list[bytes]:
    wire = Responses(response)
    return [*wire.begin(), *wire.said(0, pieces), *wire.completed()]


@virtually
async def test_text_of_a_lost_response_is_continued_and_that_one_is_lost_too() -> None:
    first = long_events(LONG, "It goes on.")
    second = long_events("x" * 250, "y", response="resp_2")
    third = long_events(LONG[-40:] + "x" * 250, "z" * 250, response="resp_3")
    known: list[Any] = []

    def make(so_far: Any) -> Any:
        known.append((so_far.text, so_far.response_id))
        return ask(client)()

    model = Model([*first[:5], CUT], UNKNOWN, [*second[:5], CUT], UNKNOWN, third)
    client = model.openai()
    message, _ = await piped(make, attach=client.responses, on_break="continue")
    assert message.parts[0]["text"] == LONG + "x" * 250 + "z" * 250
    assert known[-2:] == [(LONG, "resp_1"), (LONG + "x" * 250, "resp_2")]


async def written(model: Model, *scripts: Callable[[str], list[Any]], supersedes: bool) -> list[Message]:
    """Return the message after each of the processes that write it with on_break="continue".

    A process has thirty seconds. `scripts` are those of each, which depend on the text that it finds.
    """
    hub, client, stored = new_hub(), model.openai(), list[Message]()

    async def live() -> None:
        async with await hub.take_over("chat:1", "m") if stored else hub.message("chat:1", id="m") as message:
            message.cancelled_as = ("interrupted", None)
            if stored:
                message.begin_again({}, supersedes=supersedes)
            await pipe(message, lambda so_far: ask(client)(), attach=client.responses, on_break="continue")

    for script in scripts:
        model.scripts += script(stored[-1].text if stored else "")
        process = asyncio.create_task(live())
        await asyncio.sleep(30)
        process.cancel()
        await asyncio.wait([process])
        stored.append((await hub.read("chat:1", "m"))[0])
    await hub.close()
    return stored


BEGUN = ("x" * 250, "y" * 50, "z")


# the pieces of a response that continues `LONG`, and the whole text
CONTINUATIONS = {
    "new": (BEGUN, LONG + "".join(BEGUN)),
    "overlap": ((LONG[-40:] + "x" * 20, *BEGUN), LONG + "x" * 20 + "".join(BEGUN)),
    "whole": ((LONG, *BEGUN), LONG + "".join(BEGUN)),
    "verse": ((LONG[:40] + "x" * 200, *BEGUN), LONG + LONG[:40] + "x" * 200 + "".join(BEGUN)),  # it begins as the text
}
MOMENTS = [3, *range(5, 9)]  # of the fourth event the message has nothing, either


@pytest.mark.parametrize(
    ("at", "kind", "how", "supersedes"),
    [
        *((at, kind, how, bool(at % 2)) for at in MOMENTS for kind in CONTINUATIONS for how in ("streamed", "polled")),
        *((at, "new", "lost", supersedes) for at in MOMENTS for supersedes in (True, False)),
    ],
)
@virtually
async def test_response_that_continues_a_lost_one_is_attached_again(
    at: int, kind: str, how: str, supersedes: bool
) -> None:
    pieces, whole = CONTINUATIONS[kind]
    first, second = long_events(LONG, "more"), long_events(*pieces, response="resp_2")
    output = [{**ITEM, "content": [{"type": "output_text", "text": "".join(pieces), "annotations": []}]}]
    ended = (200, {}, json.dumps(Responses("resp_2").about("completed", output=output)))
    model = Model()
    *_, before, after = await written(
        model,
        lambda text: [[*first[:5], HOLD]],
        lambda text: [UNKNOWN, [*second[:at], HOLD]],
        lambda text: {  # it looks first at a response of which the message holds nothing
            "streamed": [state("in_progress"), second] if text == LONG else [second],
            "polled": [ended] if text == LONG else [TOO_OLD, ended],
            "lost": [UNKNOWN, long_events("!", response="resp_3")],
        }[how],
        supersedes=supersedes,
    )
    assert (after.status, after.text) == ("complete", before.text + "!" if how == "lost" else whole)
    assert model.asked.count("POST") == (3 if how == "lost" else 2)
    assert counted(after) == ["text"]


@virtually
async def test_text_that_a_response_has_continued_otherwise_is_continued_by_another_one() -> None:
    first, second = long_events(LONG), long_events("x" * 300, response="resp_2")
    model = Model()
    messages = await written(
        model,
        lambda text: [[*first[:5], HOLD]],
        lambda text: [UNKNOWN, [*second[:5], HOLD]],
        lambda text: [long_events("y" * 300, response="resp_2"), long_events("z" * 300, response="resp_3")],
        supersedes=True,
    )
    assert (messages[-1].status, messages[-1].text) == ("complete", LONG + "x" * 300 + "z" * 300)


QUEUED = state("queued")
IN_QUEUE = EVENTS[1].replace(b"in_progress", b"queued")


class Stuck(Model):
    """A model whose first response stays queued; a stream of it has these `steps`."""

    def __init__(self, steps: Any, *looks: Any) -> None:
        super().__init__([EVENTS[0], IN_QUEUE, CUT], EVENTS)
        self.steps, self.looks = steps, cycle(looks or [QUEUED])

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            self.scripts.insert(0, self.steps if request.url.query else next(self.looks))
        elif "cancel" in request.url.path:
            self.scripts.insert(0, state("cancelled"))
        return await super().handle_async_request(request)


@pytest.mark.parametrize("steps", [[HOLD], [IN_QUEUE, keepalive(7), HOLD], [IN_QUEUE, CUT], [], TOO_OLD], ids=str)
@virtually
async def test_response_that_stays_queued_is_cancelled_and_made_again(steps: Any) -> None:
    model = Stuck(steps)
    message = await answered(model)
    assert (message.status, message.parts) == ("complete", PARTS)
    assert model.asked[:3] == ["POST", "GET /resp_1", after(0)]
    assert model.asked[-3:] == ["GET /resp_1", "POST /resp_1/cancel", "POST"]
    assert (120 if HOLD in steps else 60) < model.asked_s[-2] - model.asked_s[0] < (125 if HOLD in steps else 65)


@virtually
async def test_looks_that_fail_now_and_then_make_a_queue_no_longer() -> None:
    model = Stuck([IN_QUEUE, CUT], (503, {}, "{}"), QUEUED)
    assert (await answered(model)).parts == PARTS
    assert 60 < model.asked_s[-2] - model.asked_s[0] < 125


@virtually
async def test_queued_response_is_streamed() -> None:
    """One leaves the queue. Those of vLLM are called queued until they have ended; its server is away for a minute."""
    away = [(503, {}, "{}")] * 7
    left = Model([EVENTS[0], CUT], QUEUED, [IN_QUEUE, CUT], state("in_progress"), EVENTS[1:])
    begun = Model([EVENTS[0], CUT], QUEUED, [EVENTS[1], HOLD], *away, QUEUED, EVENTS[2:])
    written = Model([*EVENTS[:12], CUT], *away, QUEUED, EVENTS[12:])
    for model in (left, begun, written):
        assert (await answered(model, retries=9)).parts == PARTS
        assert [one for one in model.asked if "POST" in one] == ["POST"]
    assert left.asked == ["POST", *["GET /resp_1", after(0)] * 2]


async def test_events_of_a_whole_response_are_those_of_its_stream(hub: Hub) -> None:
    note = {"type": "url_citation", "url": "https://a.example", "title": "A"}
    content = [{"type": "output_text", "text": "See ", "annotations": [note]}, {"type": "refusal", "refusal": "No."}]
    reasoning = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "a"}}
    output = [reasoning, search, {"type": "message", "content": content}]
    response = {"id": "resp_1", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    async with hub.message("chat:1", id="m") as message:
        piped = await pipe(message, events_of({**response, "output": output}))
    parts = (await hub.read("chat:1", "m"))[0].parts
    assert [part["type"] for part in parts] == ["reasoning", "tool", "text", "source", "text"]
    assert (parts[0]["text"], parts[1]["state"], parts[1]["input"]) == ("Hm.", "done", '{"query":"a"}')
    assert (piped.text, piped.finish_reason) == ("See No.", "length")


# -- stops -------------------------------------------------------------------------------------------------------------


STOPS = [("cancelled", None), ("failed", "timeout")]


@pytest.mark.parametrize("ends_as", [*STOPS, ("interrupted", None), ("failed", "error")])
@virtually
async def test_only_a_stop_cancels_the_response(ends_as: tuple[str, str | None]) -> None:
    model = Model([*EVENTS[:12], HOLD], state("cancelled"))
    client = model.openai()
    stored = await stopped(new_hub(), ask(client), ends_as=ends_as, attach=client.responses)
    assert (stored.status, "$responses" in stored.meta) == (ends_as[0], ends_as[0] == "interrupted")
    assert model.asked == ["POST", *(["POST /resp_1/cancel"] if ends_as in STOPS else [])]


@virtually
async def test_message_that_a_person_stops_cancels_the_response() -> None:
    hub, model = new_hub(), Model([*EVENTS[:12], *[b": alive\n\n"] * 900, *EVENTS[12:]], state("cancelled"))
    client = model.openai()

    async def answer() -> None:
        async with hub.message("chat:1", id="m") as message:
            await pipe(message, ask(client), attach=client.responses)

    task = asyncio.create_task(answer())
    await asyncio.sleep(2)
    await hub.finish("chat:1", "m", status="cancelled")
    with pytest.raises(Finished):
        await task
    assert model.asked == ["POST", "POST /resp_1/cancel"]


# -- Google's interactions ---------------------------------------------------------------------------------------------

INTERACTION = interaction_answer()
INTERACTION_STEPS: list[dict[str, Any]] = [
    {"type": "thought", "summary": [{"type": "text", "text": THOUGHT}]},
    {"type": "model_output", "content": [{"type": "text", "text": TEXT}]},
    {"type": "function_call", "id": "call_1", "name": "weather", "arguments": {"city": "Oslo"}},
]
LOOK = "GET /int_1?stream=false"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hooks of Google's SDK run on the loop; it has threads for them, for which virtual time does not wait."""

    async def to_thread(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)


def interact(client: Any) -> Callable[[], Any]:
    return lambda: client.interactions.create(model="gemini-test", input="Hi", background=True, stream=True)


def interaction_of(status: str, **fields: Any) -> tuple[int, dict[str, str], str]:
    return 200, {}, json.dumps(interaction_state(status, **fields))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("at", range(1, len(INTERACTION)))
@pytest.mark.usefixtures("at_once")
@virtually
async def test_interaction_that_breaks_goes_on_behind_its_last_event(at: int, every: int) -> None:
    pairs = zip(INTERACTION, interaction_answer(ids=False), strict=True)
    events = [without if place % every else with_id for place, (with_id, without) in enumerate(pairs)]
    is_known = not (at - 1) % every  # else the events behind the last id would be repeated
    looks = [interaction_of("in_progress")] if at < 4 or not is_known else []
    # the provider repeats the event at which a stream is attached, which its documentation leaves open
    model = Model([*events[:at], CUT], *looks, events[at - 1 :] if is_known else events)
    client = model.google().aio
    message, shown = await piped(interact(client), attach=client.interactions)
    assert (message.status, message.parts) == ("complete", PARTS)
    assert message.meta == {"model": "gemini-test", "usage": GEMINI_USAGE, "finish_reason": "tool_calls"}
    query = f"last_event_id=e{at - 1}&stream=true" if is_known else "stream=true"
    assert model.asked[-1] == f"GET /int_1?{query}"
    assert all(TEXT.startswith(text) for text in shown)


@pytest.mark.parametrize(
    ("at", "has_ended"), [*((at, False) for at in range(1, len(INTERACTION))), *((at, True) for at in (1, 3, 4, 9, 13))]
)
@pytest.mark.usefixtures("at_once")
@virtually
async def test_next_process_goes_on_with_the_same_interaction(at: int, has_ended: bool) -> None:
    ended = interaction_of("requires_action", steps=INTERACTION_STEPS, usage=INTERACTION_USAGE)
    rest: list[Any] = [INTERACTION]
    if has_ended:
        rest = [ended] if at < 4 else [TOO_OLD, ended]
    elif at < 4:
        rest = [interaction_of("in_progress"), INTERACTION]
    model = Model([*INTERACTION[:at], HOLD], *rest)
    client = model.google().aio
    make, attach = interact(client), client.interactions
    message = await died_and_answered(model, supersedes=True, make=make, attach=attach)
    *said, call = [part for part in unmarked(message) if part["type"] != "attempt"][-3:]
    assert (message.status, said, json.loads(call["input"])) == ("complete", PARTS[:2], {"city": "Oslo"})
    assert message.meta == {"model": "gemini-test", "usage": GEMINI_USAGE, "finish_reason": "tool_calls"}
    stream = "GET /int_1?stream=true"
    expected = [LOOK, *([] if has_ended else [stream])] if at < 4 else [stream, *([LOOK] if has_ended else [])]
    assert model.asked == ["POST", *expected]


@pytest.mark.usefixtures("at_once")
@virtually
async def test_person_who_stops_the_answer_cancels_the_interaction() -> None:
    model = Model([*INTERACTION[:9], HOLD], interaction_of("cancelled"))
    client = model.google().aio
    await stopped(new_hub(), interact(client), attach=client.interactions)
    assert model.asked == ["POST", "POST /int_1/cancel"]


# -- other providers, and other uses -----------------------------------------------------------------------------------


@virtually
async def test_function_attaches_to_responses_of_any_provider() -> None:
    asked: list[tuple[str, object]] = []

    def attach(id: str, cursor: Any) -> Any:
        asked.append((id, cursor))
        return client.responses.retrieve(id, stream=True, starting_after=cursor)

    model = Model([*EVENTS[:6], CUT], [*EVENTS[6:12], CUT], EVENTS[12:])
    client = model.openai()
    message, _ = await piped(ask(client), attach=attach)
    assert (message.parts, asked) == (PARTS, [("resp_1", 5), ("resp_1", 11)])
    model = Model([*EVENTS[:6], CUT], TOO_OLD, EVENTS)  # a function cannot poll
    client = model.openai()
    message, _ = await piped(ask(client), attach=attach)
    assert message.parts[1:] == PARTS


@virtually
async def test_stream_without_cursors_is_repeated_from_its_beginning() -> None:
    """As llama.cpp does, which keeps the bytes of a stream under an id of the client."""
    chunks = [*chat_said("Hello ", "wor", "ld"), *chat_called(), *chat_end("tool_calls")]
    model = Model([*chunks[:3], CUT], [*chunks[:5], CUT], chunks)
    make = ask_chat(model.openai())
    message, shown = await piped(make, attach=lambda id, cursor: make())
    assert [part["type"] for part in message.parts] == ["text", "tool"]
    assert (message.text, message.parts[1]["input"], shown[-1]) == ("Hello world", INPUT, "Hello world")


@virtually
async def test_several_responses_in_one_stream_cannot_be_attached() -> None:
    events = [*EVENTS, *long_events("more", response="resp_2")]
    run = [{"type": "raw_response_event", "data": json.loads(one.split(b"data: ")[1])} for one in events]
    client = Model().openai()
    for stream, attach, expected in (
        (lambda: one_by_one(run), client.responses, "attach needs the stream of one response"),
        (ask(client), "resp_1", "attach must be OpenAI's"),
        (iter("a"), client.responses, "attach need a function that makes the stream"),
    ):
        _, error = await broken(new_hub(), stream, LocalError, attach=attach)
        assert expected in str(error)


# -- over real connections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AsyncOpenAI, OpenAI])
async def test_response_breaks_off_in_each_item_over_real_connections(
    hub: Hub, provider: Provider, kind: type[AsyncOpenAI | OpenAI]
) -> None:
    provider.will_say([*EVENTS[:6], 0.05, CUT], [*EVENTS[6:12], 0.05, CUT], EVENTS[12:17], EVENTS[17:])
    client = kind(base_url=f"{provider.url}/v1", api_key="sk-none", max_retries=0)
    async with hub.message("chat:1", id="m") as message:
        make = ask(client)
        makers: dict[Any, Any] = {AsyncOpenAI: make, OpenAI: lambda: asyncio.to_thread(make)}
        await pipe(message, makers[kind], attach=client.responses, retry_s=0.01)
    assert (await hub.read("chat:1", "m"))[0].parts == PARTS
    streams = [f"/v1/responses/resp_1?starting_after={number}&stream=true" for number in (5, 11, 16)]
    assert [path for path, _ in provider.requests] == ["/v1/responses", *streams]


@virtually
async def test_numbers_that_do_not_rise_lose_no_text() -> None:
    """Only behind the place at which a stream was attached is an event a repetition."""
    events = [re.sub(rb'"sequence_number": \d+', b'"sequence_number": 0', one) for one in EVENTS]
    assert (await answered(Model(events))).parts == PARTS


def said_by(id: str) -> list[dict[str, Any]]:
    """Return the events of the response `id`, whose text names it."""
    steps = long_events(f"The text of {id} ", "and its end. ", response=id)
    return [json.loads(step.split(b"data: ")[1]) for step in steps]


class Background:
    """A provider whose responses go on without their reader."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.attached: list[str] = []

    def maker(self, id: str, *, wait_s: float = 0.0, fails: bool = False, holds: bool = True) -> Callable[[], Any]:
        """Return what makes the response `id`; with `holds` its first stream stops before its end."""

        async def make() -> AsyncIterator[dict[str, Any]]:
            self.made.append(id)
            await asyncio.sleep(wait_s)
            if fails:
                raise ValueError("refused")
            for number, event in enumerate(said_by(id)):
                if number == 5 and holds and self.made.count(id) == 1:
                    await asyncio.sleep(1e5)
                yield event

        return lambda: make()

    async def attach(self, id: str, cursor: int | None) -> AsyncIterator[dict[str, Any]]:
        self.attached.append(id)
        for event in said_by(id):
            yield event

    async def piped(self, message: Any, make: Callable[[], Any]) -> str:
        """Pipe a response into `message`, and return its text."""
        text: str = (await message.pipe(make, source="openai-responses", attach=self.attach)).text
        return text


@pytest.mark.parametrize("first", ["is refused", "is slow", "is attached"])
@virtually
async def test_next_process_finds_the_responses_of_calls_that_run_at_once_by_their_steps(first: str) -> None:
    provider = Background()
    calls = {
        "r0": provider.maker("r0", wait_s=1.0 * (first == "is slow"), fails=first == "is refused"),
        "r1": provider.maker("r1"),
    }

    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            order = [*calls.items()][:: -1 if turn.attempt > 1 else 1]
            steps = [turn.step(name, provider.piped, message, make) for name, make in order]
            await asyncio.gather(*steps, return_exceptions=True)

    (answer,) = await answers_over_a_crash(bot, "restart")
    ids = ["r1"] if first == "is refused" else ["r0", "r1"]
    assert (sorted(provider.attached), provider.made.count("r1")) == (ids, 1)
    assert answer.status == "complete"
    assert [answer.text.count(f"The text of {id} and its end. ") for id in ids] == [1] * len(ids)


@virtually
async def test_calls_with_attach_at_once_are_refused_outside_of_steps() -> None:
    provider, hub = Background(), new_hub()
    async with hub.message("chat:1", id="m") as message:
        both = [provider.piped(message, provider.maker(id, wait_s=1, holds=False)) for id in ("r0", "r1")]
        text, error = await asyncio.gather(*both, return_exceptions=True)
        assert text == "The text of r0 and its end. "
        assert isinstance(error, LocalError)
        assert "await one after the other, or put each into a step" in error.detail
        assert await provider.piped(message, provider.maker("r2", holds=False)) == "The text of r2 and its end. "
        places = [place for *place, _, _, _ in message.meta["$responses"]]
    assert (provider.made, places) == (["r0", "r2"], [["", 0], ["", 1]])
