"""The judges of a cluster's run: epochs of viewers, and losses by a failover.

Layer: tests.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from proof.chaos.cluster import Cluster, Stage
from proof.chaos.conversation import Conversation
from proof.chaos.processes import Failure
from proof.chaos.viewer import Viewer, Watching
from proof.chaos.world import Scale, World
from proof.oracle.plans import Script

Json = dict[str, Any]
STEPS = 20
CHANNEL = "text:0"
SEED = 1
SCRIPT = Script(SEED, "writer0-0", steps=STEPS)


def text_of(count: int) -> str:
    return "".join(SCRIPT.texts("writer0")[:count])


@pytest.fixture
def world() -> Iterator[World]:
    world = World("cluster", SEED, Scale(1, steps=STEPS))
    yield world
    shutil.rmtree(world.folder)


def shown(viewer: Viewer, epoch: str, text: str) -> None:
    """Let the viewer begin anew in this epoch, with this text."""
    message = {"id": SCRIPT.id, "role": "assistant", "status": "streaming", "created": 1, "version": 2}
    message["parts"] = [{"type": "text", "text": text}]
    attached = {"type": "channel.attached", "channel": CHANNEL, "epoch": epoch, "serial": 2, "resumed": False}
    viewer.checker.begin(None)
    viewer.checker.take([attached, {"type": "message.update", "serial": 2, "message": message}], f"{epoch}:2")
    viewer._look([])


@pytest.mark.parametrize(
    ("may_begin_anew", "may_lose", "kinds"),
    [(False, False, {"epoch", "shrunk", "changed"}), (True, False, {"shrunk", "changed"}), (True, True, set())],
    ids=["no failover", "a failover without loss", "a failover with loss"],
)
def test_new_epoch_with_less_text_is_wrong_unless_a_failover_explains_it(
    may_begin_anew: bool, may_lose: bool, kinds: set[str]
) -> None:
    viewer = Viewer(Watching(name="ws", transport="ws", port=1, channel=CHANNEL, seed=SEED, steps=STEPS))
    shown(viewer, "a", text_of(9))
    viewer.may_begin_anew, viewer.may_lose = may_begin_anew, may_lose
    shown(viewer, "b", text_of(4))
    assert {one.kind for one in viewer.violations} == kinds
    assert viewer.epoch == "b"


@pytest.mark.parametrize(("stored", "is_wrong"), [(4, True), (6, False), (9, False)])
async def test_text_that_the_standby_had_must_be_stored(
    world: World, monkeypatch: pytest.MonkeyPatch, stored: int, is_wrong: bool
) -> None:
    """The standby had six pieces of the nine that were acknowledged."""
    conversation = Conversation(world, channels=(CHANNEL,))
    stage = Stage(world, Cluster(world, conversation, has_bus=False), conversation)
    written = world.acknowledged.begin(SCRIPT.id, CHANNEL)
    written.status, written.length = "streaming", len(text_of(6))
    kept = stage.remember()
    written.length = len(text_of(9))
    stage.expect_new_epochs(kept)
    assert written.length == len(text_of(6))

    async def read(self: World, channel: str) -> dict[str, Json]:
        return {
            SCRIPT.id: {"id": SCRIPT.id, "status": "streaming", "parts": [{"type": "text", "text": text_of(stored)}]}
        }

    monkeypatch.setattr(World, "stored", read)
    if is_wrong:
        with pytest.raises(Failure, match="the standby had it before it was promoted"):
            await stage.check_kept(kept, kept)
    else:
        await stage.check_kept(kept, kept)
