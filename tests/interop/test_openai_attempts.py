"""Superseded attempts of several items in the events of OpenAI's Responses, for readers that are cut anywhere.

Layer: tests. The parts of each answer are those that the core decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import pytest

from tenuto import Message
from tenuto.core.deltas import MessageProgress
from tenuto.core.events import MessageUpdate
from tenuto.core.model import Part
from tenuto.core.requests import PutPart, UpdateMessage
from tenuto.interop.openai_stream import Asked, Reference, TurnEvents
from tenuto.routes import InAnswer, MessageFinished, TurnChanged, TurnDelta
from tests.conftest import rest_in_long
from tests.core.harness import LogHarness

KNOWN: Any = {"created": 1, "version": 1, "created_at": 0, "updated_at": 0}
QUESTION = Message(id="u", role="user", status="complete", **KNOWN)
ASKED = Asked(Reference("chat:1", "u"), QUESTION, {"tools": [{"type": "function", "name": "own"}]})
# A part is put at an index; with a list the parts from the index on are superseded, and the list follows them. Behind
# the list are the indexes of the parts that stay beside it.
Steps = Sequence[tuple[Any, ...]]


def text(value: str) -> Part:
    return {"type": "text", "text": value}


def call(id: str, name: str = "find", **fields: Any) -> Part:
    return {"type": "tool", "call": id, "name": name, "input": "{}", "state": "called", **fields}


LOOK, FOUND = text("Let me look. "), call("c", state="done", output=1)
SCENES: dict[str, Steps] = {
    "text, call, text": [
        (0, {"type": "reasoning", "text": "Hm"}),
        (1, LOOK),
        (2, call("c")),
        (2, FOUND),
        (3, text("0x ")),
        (3, text("0x 1x")),
        (0, [text("Let me")]),
        (1, LOOK),
        (2, FOUND),
        (3, text("0y ")),
        (3, text("0y 1y")),
        (0, [LOOK]),
        (3, text("0z 1z")),
    ],
    "an attempt at a part, then at the whole": [
        (0, text("Intro. ")),
        (1, text("0t0 ")),
        (1, text("0t0 1t0 ")),
        (1, [text("0t1 ")]),
        (3, FOUND),
        (4, text("1t1 ")),
        (0, [text("Intro. ")]),
        (3, text("0t2 ")),
        (3, text("0t2 1t2 ")),
        (3, [text("0t3 ")]),
        (0, [text("Intro. ")]),
        (5, text("Intro. 0t4 ")),
        (6, FOUND),
        (7, text("1t4")),
    ],
    "attempts beside one another": [
        (0, text("0x ")),
        (0, text("0x 1x ")),
        (1, text("0y ")),
        (1, text("0y 1y ")),
        (2, call("c")),
        (0, [text("0X ")], 1, 2),
        (2, FOUND),
        (3, text("0X 1X ")),
        (4, text("2y")),
        (1, [text("0Y ")], 2, 3),
        (4, text("0Y 1Y ")),
        (3, [text("0Z ")], 4),
        (5, text("0Z 1Z")),
    ],
    "attempts without parts, and calls of the caller": [
        (0, text("A")),
        (1, call("one", "own")),
        (2, text("B")),
        (0, []),
        (1, text("C")),
        (2, {**call("two", "own"), "input": "{", "state": "input"}),
        (1, []),
        (2, text("D")),
        (3, call("three", "own")),
    ],
}


def states_of(steps: Steps) -> list[Message]:
    """Return the answer before the first step and after each one."""
    harness = LogHarness()
    harness.stream("m", parts=[])
    states = [harness.message("m")]
    for index, given, *beside in steps:
        request: Any = (
            PutPart(index=index, part=given, generation=1)
            if isinstance(given, dict)
            else UpdateMessage(supersede=index, beside=beside, parts=given, generation=1)
        )
        harness.ask("m", request)
        states.append(harness.message("m"))
    return states


class Page:
    """A client that folds the events: the items it has, by id, with their places and texts."""

    def __init__(self) -> None:
        self.items: dict[str, tuple[int, str]] = {}
        self.open: set[str] = set()
        self.gone: set[str] = set()
        self.number = -1
        self.output: list[str] | None = None

    def take(self, event: Any) -> None:
        assert event["sequence_number"] > self.number
        self.number, index, item = event["sequence_number"], event.get("output_index"), event.get("item", {})
        id = event.get("item_id") or item.get("id")
        match event["type"]:
            case "response.created" | "response.in_progress":
                pass
            case "response.completed":
                self.output = [one["id"] for one in event["response"]["output"]]
            case "response.output_item.added":
                assert id not in self.items
                assert index not in {place for place, _ in self.items.values()}
                self.items[id] = index, ""
                self.open.add(id)
            case "response.output_item.done" if item["status"] == "incomplete":
                assert (self.items[id][0], id in self.gone) == (index, False)
                self.open.discard(id)
                self.gone.add(id)
            case kind:
                assert (id in self.open, self.items[id][0]) == (True, index), event
                self.items[id] = index, self.items[id][1] + event.get("delta", "")
                self.open -= {id} if kind == "response.output_item.done" else set()

    def shown(self) -> dict[str, tuple[int, str]]:
        """Return the items that were not taken back. The last event alone leaves out ended calls and reasoning."""
        last = self.output
        once = {id for id in self.items if last is not None and id.startswith(("fc_", "rs_")) and id not in last}
        return {id: item for id, item in self.items.items() if id not in self.gone | once}

    def text(self) -> str:
        return "".join(shown for id, (_, shown) in self.shown().items() if id.startswith("msg_"))


def batches_from(state: int, states: list[Message], size: int) -> Iterator[list[TurnDelta]]:
    """Yield the deltas of a reader that comes at a state, those of `size` states in each batch, up to the end."""
    progress = MessageProgress("m")
    yield [InAnswer("m", delta) for delta in progress.begin(states[state])]
    rest = states[state + 1 :]
    for number in range(0, len(rest), size):
        updates = [MessageUpdate(serial=1, message=one) for one in rest[number : number + size]]
        yield [InAnswer("m", delta) for delta in progress.receive(updates)]
    yield [InAnswer("m", MessageFinished("complete", None, {})), TurnChanged("over")]


@pytest.mark.parametrize("scene", [*SCENES])
@pytest.mark.parametrize("size", rest_in_long([1, 3, 99]))
def test_reader_that_is_cut_after_any_event_gets_the_events_that_it_lacks(scene: str, size: int) -> None:
    states = states_of(SCENES[scene])
    texts = [one.text for one in states]
    sent = [[*batches_from(came, states, size)] for came in range(len(states))]

    judged = set[str]()  # what a cut reader has, where it comes again, and what it must have at the end

    @cache  # readers that came at other states were cut behind the same event
    def resumed(number: int, again: int) -> list[Any]:
        stream = TurnEvents(ASKED, number)
        return [event for batch in sent[again] for event in stream.receive(batch)]

    for came in range(len(states)):
        stream = TurnEvents(ASKED)
        received: list[tuple[int, Any]] = []  # the events of a reader that is not cut, and how many states it had
        for number, batch in enumerate(sent[came]):
            seen = min(came + number * size, len(states) - 1)
            received += [(seen, event) for event in stream.receive(batch)]
        whole = Page()
        for _, event in received:
            whole.take(event)
            assert any(one.startswith(whole.text()) for one in texts), (came, event)
        assert whole.open == set()
        assert ([*whole.shown()], whole.text()) == (whole.output, texts[-1])
        before = Page()
        for cut, (seen, event) in enumerate(received[:-1]):
            before.take(event)
            for again in range(seen, len(states)):
                case = repr((vars(before), again, whole.shown(), whole.output))
                if case in judged:
                    continue
                judged.add(case)
                page = deepcopy(before)
                for after in resumed(event["sequence_number"], again):
                    page.take(after)
                    assert any(one.startswith(page.text()) for one in texts), (came, cut, again, after)
                assert (page.shown(), page.open, page.output) == (whole.shown(), set(), whole.output)
