"""Superseded attempts: parts that an earlier attempt at an answer wrote, which are kept and count no longer.

Layer: tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from tenuto.core.errors import Finished, InvalidRequest, NoPart, TooLarge
from tenuto.core.limits import Limits
from tenuto.core.model import Part
from tenuto.core.requests import CreateMessage, FinishMessage, PutPart, UpdateMessage
from tenuto.interop.fold import earlier_parts
from tests.core.harness import ANN, LogHarness, text_part


def attempt(*parts: Part, characters: int = 0) -> Part:
    return {"type": "attempt", "parts": list(parts), "characters": characters}


def begun(*parts: Part, limits: Limits | None = None) -> LogHarness:
    """Return a channel with a streaming message `m` that has `parts`."""
    harness = LogHarness(limits)
    harness.stream("m", parts=list(parts))
    return harness


def supersede(harness: LogHarness, since: int, **fields: Any) -> Any:
    return harness.ask("m", UpdateMessage(supersede=since, generation=1, **fields))


def test_request_that_superseded_nothing_supersedes_nothing_when_it_is_repeated() -> None:
    harness = begun(text_part("one"))
    supersede(harness, 1, request="r1")
    harness.ask("m", PutPart(index=1, part=text_part("two")))
    supersede(harness, 1, request="r1")
    assert harness.message("m").parts == [text_part("one"), text_part("two")]


def test_parts_of_others_stay_beside_an_attempt() -> None:
    parts = [text_part(one) for one in "abcde"]
    harness = begun(*parts)
    supersede(harness, 2, beside=[3], text="f")
    first = {**attempt(parts[2], parts[4], characters=2), "indexes": [2, 4], "beside": [3]}
    assert harness.message("m").parts == [*parts[:2], first, parts[3], text_part("f")]
    supersede(harness, 0, beside=[0, 3], text="g")
    second = {**attempt(parts[1], text_part("f"), characters=2), "indexes": [1, 4], "beside": [3]}
    assert harness.message("m").parts == [parts[0], first, second, parts[3], text_part("g")]
    assert earlier_parts(harness.message("m").parts) == [(2, parts), (1, [*parts[:2], first, parts[3], text_part("f")])]
    assert supersede(harness, 0, beside=[0, 3, 4]).ops == ()


@pytest.mark.parametrize("beside", [[0], [3], [2, 1], [1, 1], [9] * 500_000], ids=lambda one: f"{one[:2]}x{len(one)}")
def test_part_that_cannot_stay_beside_an_attempt_is_refused(beside: list[int]) -> None:
    harness = begun(text_part("one"), text_part("two"), text_part("three"))
    with pytest.raises(
        InvalidRequest, match="beside must be indexes of parts that count, from 1 on and rising"
    ) as error:
        supersede(harness, 1, beside=beside)
    assert len(str(error.value)) < 300


def test_index_beyond_the_end_is_refused() -> None:
    harness = begun(text_part("one"))
    with pytest.raises(NoPart, match="has 1 parts, supersede was 2; use 0 to 1"):
        supersede(harness, 2)


def test_client_cannot_replace_an_attempt() -> None:
    harness = begun(text_part("one"))
    supersede(harness, 0, text="two")
    with pytest.raises(InvalidRequest, match="part 0 of 'm' is a superseded attempt"):
        harness.ask("m", PutPart(index=0, part=text_part("x")))
    harness.ask("m", PutPart(index=1, part=text_part("x")))


def test_client_cannot_make_a_part_of_type_attempt() -> None:
    harness = begun(text_part("one"))
    for request in (
        PutPart(index=1, part=attempt(text_part("x"))),
        UpdateMessage(parts=[attempt(text_part("x"))], generation=1),
        CreateMessage(parts=[attempt(text_part("x"))]),
    ):
        with pytest.raises(InvalidRequest, match="part type 'attempt' is made by the server only"):
            harness.ask("n" if isinstance(request, CreateMessage) else "m", request)


def test_edited_message_keeps_the_attempts_that_it_has() -> None:
    harness = begun(text_part("one"))
    supersede(harness, 0, text="two")
    kept, _ = harness.message("m").parts
    harness.ask("m", UpdateMessage(parts=[kept, text_part("edited")], generation=1))
    assert harness.message("m").parts == [kept, text_part("edited")]


def test_contents_of_the_oldest_attempts_leave_room_for_the_answer() -> None:
    harness = begun(text_part("a" * 400), limits=Limits(message_bytes=8_000))
    supersede(harness, 0, text="b" * 400)
    supersede(harness, 0, text="c" * 400)
    supersede(harness, 0, text="d")
    kept = [attempt(text_part(one * 400), characters=400) for one in "bc"]
    assert harness.message("m").parts == [attempt(characters=400), *kept, text_part("d")]
    with pytest.raises(TooLarge, match="limit is 8000"):
        supersede(harness, 0, text="e" * 8_000)


def test_answer_that_was_stopped_meanwhile_stays_as_it_is() -> None:
    harness = begun(text_part("first try"))
    harness.ask("m", FinishMessage(status="cancelled", generation=1), ANN)
    with pytest.raises(Finished):
        supersede(harness, 0, text="second try")
    assert harness.text("m") == "first try"
