"""The view against the vectors that every client passes (`tests/vectors/README.md`).

Layer: tests.

JavaScript runs the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tenuto.core.catch_up import new_start
from tenuto.core.events import Batch, CommandReply, MessageAppend, Page, encode_json, known_events
from tenuto.core.text import Text
from tenuto.core.view import View, ViewGap
from tests.core.harness import LogHarness

VECTORS = Path(__file__).parent.parent / "vectors"

Vector = dict[str, Any]


def vectors(name: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in json.loads((VECTORS / f"{name}.json").read_text())]


class Run:
    """A view that takes the steps of a vector. Its state is compared in the form of the vectors."""

    def __init__(self) -> None:
        self.view = View()
        self.gap = False
        self.ask_again: bool | None = None
        self.passed: list[Any] = []

    def take(self, step: Vector) -> None:
        if "batch" in step:
            batch = step["batch"]
            try:
                self.view.receive(Batch(events=known_events(batch["events"]), cursor=batch.get("cursor")))
            except ViewGap:
                self.gap = True
            self.passed += self.view.passed
        elif "page" in step:
            self.ask_again = not self.view.receive_page(msgspec.convert(step["page"], Page))
        else:
            assert step["cut"]
            self.view.cut()

    def check(self, expected: Vector) -> None:
        state = {
            "messages": self.view.messages(),
            "cursor": self.view.cursor,
            "gap": self.gap,
            "before": self.view.before,
            "more": self.view.more,
            "ask_again": self.ask_again,
            "commands": self.view.commands(),
            "members": self.view.members(),
            "count": self.view.count,
            "passed": self.passed,
        }
        assert json.loads(encode_json({name: state[name] for name in expected})) == expected


@pytest.mark.parametrize("vector", [*vectors("view"), *vectors("commands"), *vectors("presence")])
def test_a_view_shows_what_the_vector_expects(vector: Vector) -> None:
    run = Run()
    for step in vector["steps"]:
        run.take({name: value for name, value in step.items() if name != "expect"})
        if "expect" in step:
            run.check(step["expect"])
    run.check(vector["expect"])


def view_of(text: str) -> View:
    """Return a view of one message with one text part."""
    log, view = LogHarness(), View()
    log.stream("m", text)
    attached, updates = new_start(log.state, [log.known("m")], more=False)
    view.receive(Batch(events=[attached, *updates], cursor=log.state.cursor))
    return view


@pytest.mark.parametrize("vector", vectors("text"))
def test_text_has_the_length_and_encoding_of_the_vector(vector: Vector) -> None:
    text, pieces = vector["text"], vector["pieces"]
    assert "".join(piece["text"] for piece in pieces) == text
    assert (len(text), len(text.encode())) == (vector["code_points"], vector["utf8_bytes"])
    assert json.loads(encode_json(text)) == text
    grown = Text()
    for serial, piece in enumerate(pieces, 1):
        assert grown.length == piece["at"]
        grown.append(piece["text"], serial)
        assert grown.slice(piece["at"]) == piece["text"]
    assert str(grown) == text


def test_gap_names_its_part_and_is_counted() -> None:
    view = view_of("abc")
    with pytest.raises(ViewGap, match="message 'm' has 3 characters, an append came for offset 4"):
        view.receive(Batch(events=[MessageAppend(serial=2, id="m", part=0, at=4, text="x")], cursor="e:2"))
    assert (view.gaps, view.cursor, view.text("m")) == (1, None, "abc")


def test_a_message_that_is_not_shown_has_no_text() -> None:
    assert view_of("abc").text("n") == ""


def test_memory_of_messages_out_of_view_and_of_commands_is_bounded() -> None:
    view = view_of("")
    for serial in range(2, 30_002):
        append = MessageAppend(serial=serial, id=f"n{serial}", part=0, at=0, text="x")
        reply = CommandReply(serial=serial, id=f"c{serial}", ok=True)
        view.receive(Batch(events=[append, reply], cursor=f"e:{serial}"))
    assert len(view._seen) <= 10_000
    assert len(view._commands._has_reply) <= 10_000
