"""A conversation waits a limited time for each fact, and names the fact that did not come.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable

import pytest

from proof.chaos.conversation import CHANNELS, Conversation
from proof.chaos.processes import Failure, Server
from proof.chaos.viewer import Viewer, Watching
from proof.chaos.world import Scale, World
from proof.oracle.questions import Question
from tests.oracle.test_plans import STEPS
from tests.oracle.test_questions import ID, answer
from tests.oracle.test_views import SEED
from tests.wirecheck.test_wirecheck import ATTACHED, COMMAND

STREAMING = answer(1, "streaming", (2, 1, "bot-1"))


@pytest.mark.parametrize(
    ("wait", "why"),
    [
        (lambda conversation: conversation.until_gone("bot-1", 0.05), "bot-1 to be gone"),
        (lambda conversation: conversation.until_interrupted(STREAMING["id"], 1, 0.05), "to be interrupted"),
        (lambda conversation: conversation.until_settled(), "still stream"),
    ],
)
async def test_wait_for_a_missing_fact_fails_with_its_name(
    wait: Callable[[Conversation], Awaitable[None]], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The viewer shows a present agent, and a streaming answer."""
    monkeypatch.setattr("proof.chaos.conversation.SETTLED_S", 0.05)
    world = World("agents", SEED, Scale(1, steps=STEPS))
    world.adds(Server.plain("server", world.folder, world.store))  # it does not run
    watching = Watching(name="ws", transport="ws", port=1, channel=CHANNELS[0], seed=SEED, steps=STEPS)
    viewer = Viewer(watching, world.news)
    message = {"created": 1, "version": 6, "role": "assistant"} | STREAMING
    viewer.checker.begin(None)
    viewer.checker.take([ATTACHED, {"type": "message.update", "serial": 6, "message": message}, COMMAND], "e:7")
    conversation = Conversation(world, viewers=[viewer])
    conversation.questions.all[ID] = Question(ID, CHANNELS[0])
    async with asyncio.timeout(5):
        with pytest.raises(Failure, match=why):
            await wait(conversation)
    shutil.rmtree(world.folder)
