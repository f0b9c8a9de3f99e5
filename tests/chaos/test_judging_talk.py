"""What a run knows of questions, answers, commands and presence: it finds what must not be."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from chaos.conversation import CHANNELS, Conversation
from chaos.processes import Server
from chaos.recorder import Heard
from chaos.script import Piece, Script
from chaos.talk import Question, Sent, Talk
from chaos.viewer import Shown, Viewer, Watching
from chaos.world import Failure, Scale, World
from holdfast.agents.ids import reply_id
from tests.chaos.test_judging import starting

Json = dict[str, Any]
SEED, STEPS = 3, 6
ASKED = "ask-0"


def said(id: str, *hands: tuple[int, int, str]) -> str:
    """Text of a message by several hands: how many pieces, in which attempt, by whom."""
    script = Script(SEED, id, steps=STEPS)
    text = ""
    number = 0
    for count, attempt, who in hands:
        for _ in range(count):
            text += script.text(Piece(number, attempt, who))
            number += 1
    return text


def answer(attempt: int, status: str, *hands: tuple[int, int, str], created: int | None = None) -> Json:
    """The answer that an attempt began; without `hands` it is whole, by one agent."""
    id = reply_id(ASKED, attempt)
    parts = [{"type": "text", "text": said(id, *(hands or ((STEPS, attempt, f"bot-{attempt}"),)))}]
    return {"id": id, "status": status, "reply_to": ASKED, "created": created or 1 + attempt, "parts": parts}


def stored(*answers: Json) -> dict[str, Json]:
    return {one["id"]: one for one in ({"id": ASKED, "status": "complete", "created": 1}, *answers)}


def talk_of(attempts: int = 2) -> tuple[Talk, Question]:
    question = Question(ASKED, "c", attempts)
    return Talk(SEED, STEPS, {ASKED: question}), question


INTERRUPTED = answer(1, "interrupted", (2, 1, "bot-1"))


# -- who writes ------------------------------------------------------------------------------------------------


def text(*texts: str) -> list[Json]:
    return [{"type": "text", "text": one} for one in texts]


def test_an_answer_may_be_by_several_hands_one_after_the_other() -> None:
    script = Script(SEED, "m", steps=STEPS)
    assert script.wrong([], is_whole=False) is None
    assert script.wrong(text(said("m", (2, 1, "a"))), is_whole=False) is None
    assert script.wrong(text(said("m", (2, 1, "a"), (4, 2, "b"))), is_whole=True) is None
    assert script.wrong(text(script.whole("ann")), is_whole=True) is None


@pytest.mark.parametrize(
    ("hands", "is_whole", "why"),
    [
        (((2, 2, "b"), (1, 1, "a")), False, "has it no more"),  # written after it was fenced off
        (((2, 1, "a"), (1, 1, "b")), False, "has it no more"),  # two that had one attempt
        (((5, 1, "a"),), True, "has 5 pieces, written are 6"),
        (((7, 1, "a"),), False, "has 7 pieces"),
    ],
)
def test_what_a_writer_may_not_write_is_wrong(hands: Any, is_whole: bool, why: str) -> None:
    wrong = Script(SEED, "m", steps=STEPS).wrong(text(said("m", *hands)), is_whole=is_whole)
    assert wrong is not None
    assert why in wrong


def test_a_piece_that_is_missing_doubled_or_changed_is_wrong() -> None:
    script = Script(SEED, "m", steps=STEPS)
    pieces = [script.text(Piece(number, 1, "a")) for number in range(3)]
    for bad in (pieces[1:], [*pieces, pieces[2]], [pieces[0], pieces[2]], ["#", *pieces], [*pieces, "#"]):
        assert script.wrong(text("".join(bad)), is_whole=False) is not None
    assert script.wrong(text("".join(pieces), ""), is_whole=False) is not None


def seen(length: int, status: str, attempt: int = 1, who: str = "a") -> Json:
    parts = text(said("m", *((length, attempt, who),)))
    return {"id": "m", "role": "assistant", "status": status, "parts": parts}


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        (seen(2, "interrupted"), seen(4, "streaming"), []),  # gone on with
        (seen(2, "interrupted"), seen(6, "complete"), []),
        (seen(2, "cancelled"), seen(4, "streaming"), ["reopened"]),
        (seen(6, "complete"), seen(6, "interrupted"), ["reopened"]),
        (seen(2, "streaming"), seen(4, "streaming", 2, "b"), ["changed"]),  # longer, and not what was shown
        (seen(4, "streaming"), seen(2, "streaming"), ["shrunk", "changed"]),
    ],
)
def test_what_was_shown_of_an_answer_stays_whoever_goes_on_with_it(before: Json, after: Json, kinds: list[str]) -> None:
    shown = Shown(SEED, STEPS, "script")
    shown.look(starting(4, before | {"version": 4}))
    shown.look(starting(5, after | {"version": 5}))
    assert [one.kind for one in shown.violations] == kinds


# -- answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers",
    [
        [answer(1, "complete")],
        [INTERRUPTED, answer(2, "complete")],
        [answer(1, "complete", (2, 1, "bot-1"), (4, 2, "bot-2"))],  # gone on with
        [answer(1, "interrupted", (0, 1, "")), answer(2, "complete")],
    ],
)
def test_a_question_with_one_answer_that_counts_is_settled(answers: list[Json]) -> None:
    talk, question = talk_of()
    assert talk.wrong(question, stored(*answers)) is None
    assert talk.unsettled(question, stored(*answers)) is None


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([answer(1, "complete"), answer(2, "complete")], "more than the one answer that counts"),
        ([answer(1, "complete"), INTERRUPTED | {"id": reply_id(ASKED, 2), "created": 9}], "more than the one"),
        ([answer(1, "complete") | {"id": "of-nobody"}], "no attempt gives"),
        ([answer(2, "interrupted", created=2), answer(1, "complete", created=3)], "no attempt gives in this order"),
        ([INTERRUPTED, answer(2, "complete", (6, 1, "bot-1"))], "was begun by attempt 2"),
        ([INTERRUPTED, answer(2, "interrupted"), answer(3, "complete")], "there was reason for 2"),
        ([answer(1, "failed") | {"reason": "crashed"}], "has failed"),
        ([answer(1, "cancelled")], "nobody asked for that"),
        ([answer(1, "interrupted", (1, 1, "a"), (1, 2, "b")), answer(2, "complete", (6, 2, "b"))], "attempt 2 at"),
    ],
)
def test_answers_that_may_not_be_are_found(answers: list[Json], why: str) -> None:
    talk, question = talk_of()
    wrong = talk.wrong(question, stored(*answers))
    assert wrong is not None
    assert why in wrong


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([], "no answer"),
        ([INTERRUPTED], "left with"),
        ([answer(1, "streaming", (2, 1, "bot-1"))], "still stream"),
        ([answer(1, "streaming", (2, 1, "bot-1")), answer(2, "complete")], "still stream"),
    ],
)
def test_a_question_whose_turn_does_not_end_is_not_settled(answers: list[Json], why: str) -> None:
    talk, question = talk_of()
    missing = talk.unsettled(question, stored(*answers))
    assert missing is not None
    assert why in missing


def test_what_was_settled_stays_as_it_was() -> None:
    talk, question = talk_of()
    talk.settle(question, stored(INTERRUPTED, answer(2, "complete")))
    assert talk.wrong(question, stored(INTERRUPTED, answer(2, "complete"))) is None
    longer = answer(1, "interrupted", (3, 1, "bot-1"))  # a token by one who was fenced off
    for later in (stored(longer, answer(2, "complete")), stored(answer(2, "complete")), {}):
        assert talk.wrong(question, later) is not None


# -- commands --------------------------------------------------------------------------------------------------

STOP = {"command": {"id": "stop-0", "name": "cancel"}, "serial": 7}
REPLY = {"type": "command.reply", "serial": 8, "id": "stop-0", "ok": True, "from": "bot-1"}


def stopping(talk: Talk, *answers: tuple[int, Json]) -> list[str | None]:
    """Send one command again and again: what was wrong with each answer."""
    sent = talk.sent["stop-0"] = Sent("stop-0", "c", "cancel", ASKED, ASKED)
    return [talk.told(sent, status, told, known=(sent.told, sent.reply)) for status, told in answers]


def test_a_command_is_answered_once_and_a_repeat_gets_the_same() -> None:
    talk, question = talk_of()
    assert (
        stopping(talk, (201, STOP), (200, STOP), (200, STOP | {"reply": REPLY}), (200, STOP | {"reply": REPLY}))
        == [None] * 4
    )
    assert talk.unanswered() == []
    assert talk.unsettled(question, stored(INTERRUPTED)) is None  # cancelled between two attempts
    assert talk.wrong(question, stored(answer(1, "cancelled", (2, 1, "bot-1")))) is None
    told = talk.wrong(question, stored(answer(1, "complete")))
    assert told is not None
    assert "was cancelled" in told


@pytest.mark.parametrize(
    ("again", "why"),
    [
        ((200, STOP), "and then with None"),  # the reply was lost
        ((200, STOP | {"reply": REPLY | {"ok": False}}), "and then with"),
        ((200, STOP | {"serial": 9, "reply": REPLY}), "and then as"),
        ((201, STOP | {"reply": REPLY}), "was answered with 201"),  # stored anew
        ((404, {"code": "not_found"}), "was answered with 404"),
        ((409, {"code": "finished"}), "was answered with 409"),
    ],
)
def test_a_repeat_that_is_told_something_else_is_found(again: tuple[int, Json], why: str) -> None:
    wrong = stopping(talk_of()[0], (201, STOP), (200, STOP | {"reply": REPLY}), again)
    assert wrong[:2] == [None, None]
    assert wrong[2] is not None
    assert why in wrong[2]


def test_a_command_that_nobody_answers_is_found() -> None:
    talk, _ = talk_of()
    assert stopping(talk, (201, STOP)) == [None]
    assert talk.unanswered() == ["stop-0"]
    refused, _ = talk_of()
    assert stopping(refused, (409, {"code": "finished"})) == [None]
    assert refused.unanswered() == []


# -- what a viewer was told ------------------------------------------------------------------------------------

BOT: Json = {"id": "bot-1", "kind": "agent", "data": {"state": "listening"}, "connections": 1}
ATTACHED: Json = {"type": "channel.attached", "resumed": False, "presence": {"members": [BOT], "count": 1}}
COMMAND: Json = {"type": "command", "serial": 7, "command": {"id": "stop-0", "name": "cancel"}}


def heard(*events: Json) -> Heard:
    told = Heard()
    told.take(events)
    return told


def test_who_is_here_is_who_came_and_has_not_left() -> None:
    enter, leave = {"type": "presence.enter", "member": BOT}, {"type": "presence.leave", "id": "bot-1"}
    sync = {"type": "presence.sync", "members": [BOT], "count": 1}
    for events in ([ATTACHED], [enter], [ATTACHED, leave, enter], [sync]):
        assert heard(*events).differences({"bot-1"}) == []
        assert heard(*events).differences(set()) == ["bot-1 is shown, and is not here"]
    assert heard(ATTACHED, leave).differences(set()) == []
    assert heard(ATTACHED, leave).differences({"bot-1"}) == ["bot-1 is here, and is not shown"]
    assert heard(ATTACHED, leave, enter).left == ["bot-1"]  # it flickered


def test_an_answer_that_a_viewer_was_not_told_of_is_found() -> None:
    resumed = ATTACHED | {"resumed": True}
    assert heard(COMMAND).differences(set()) == ["command stop-0 seems to wait for its answer"]
    assert heard(COMMAND, REPLY).differences(set()) == []
    lost = heard(COMMAND, resumed)  # nothing waits any more, and why was not told
    assert lost.differences({"bot-1"}) == ["command stop-0 was told of, and its answer never"]
    assert heard(COMMAND, resumed, REPLY).differences({"bot-1"}) == []
    assert heard(COMMAND, ATTACHED).differences({"bot-1"}) == []  # a new start is told of what waits alone


def test_two_answers_to_one_command_are_found() -> None:
    assert heard(COMMAND, REPLY, COMMAND, REPLY).wrong == []
    assert len(heard(COMMAND, REPLY, REPLY | {"from": "bot-2"}).wrong) == 1
    assert len(heard(COMMAND, COMMAND | {"command": {"id": "stop-0", "name": "steer"}}).wrong) == 1


# -- waiting ---------------------------------------------------------------------------------------------------

STREAMING = answer(1, "streaming", (2, 1, "bot-1"))
SENT = Sent("stop-0", CHANNELS[0], "cancel", ASKED, ASKED)


@pytest.mark.parametrize(
    ("wait", "why"),
    [
        (lambda talk: talk.until_gone("bot-1", 0.05), "bot-1 to be gone"),
        (lambda talk: talk.until_interrupted(STREAMING["id"], 1, 0.05), "to be interrupted"),
        (lambda talk: talk.until_answered(SENT), "an answer to stop-0"),
        (lambda talk: talk.until_settled(), "still stream"),
    ],
)
async def test_what_does_not_come_is_not_waited_for_for_ever(
    wait: Callable[[Conversation], Awaitable[None]], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A presence that stays, an answer that streams for ever, a `cancel` that nobody answers."""
    monkeypatch.setattr("chaos.conversation.STOPPED_S", 0.05)
    monkeypatch.setattr("chaos.conversation.SETTLED_S", 0.05)
    world = World("agents", SEED, Scale(1, steps=STEPS))
    world.adds(Server.plain("server", world.folder, world.store))  # which does not run
    watching = Watching(name="ws", transport="ws", port=1, channel=CHANNELS[0], seed=SEED, steps=STEPS, kind="script")
    viewer = Viewer(watching, world.news)  # who was told this, and no more
    viewer.heard.take([ATTACHED, COMMAND])
    viewer.checker = starting(2, STREAMING | {"role": "assistant", "version": 2})
    conversation = Conversation(world, looking_on=[viewer])
    conversation.talk.questions[ASKED] = Question(ASKED, CHANNELS[0])
    async with asyncio.timeout(5):
        with pytest.raises(Failure, match=why):
            await wait(conversation)
    shutil.rmtree(world.folder)
