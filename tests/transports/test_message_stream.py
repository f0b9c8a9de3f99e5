"""One message as a stream (docs/protocol.md, 5.3). The simulation reads and resumes such streams, too."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert

from tenuto.core.deltas import Delta, MessageReplaced, PartReplaced, Sent, TextAdded
from tenuto.core.events import parse_cursor
from tenuto.core.model import Message
from tenuto.transports.streams import NamedEvents, OwnFrames, PlainData, Position, sent_by, sent_field
from tests.transports.conftest import Served
from tests.transports.lines import LiveLine
from tests.transports.watching import Stream, write

EVENTS = "/v1/channels/c/messages/m1/events"


def added_up(stream: Stream) -> str:
    return "".join(json.loads(event.data) for event in stream.events if event.event == "answer")


async def whole(served: Served, path: str = EVENTS, **headers: str) -> Stream:
    stream = await Stream.open(served, path, **headers)
    await stream.until_over()
    return stream


def last_id(stream: Stream) -> str:
    return [event.id for event in stream.events if event.id is not None][-1]


async def test_coming_back_after_done_gets_204_which_stops_an_event_source(served: Served) -> None:
    """Not with the id of the text before it, with a cursor of another message, nor with one that names no message."""
    found = []
    for id, text in (("m1", "text"), ("m2", "a longer text")):
        await write(served.hub, "c", [text], id=id)
        stream = await whole(served, EVENTS.replace("m1", id))
        cursor, _, field = last_id(stream).rpartition(":")
        for sent in (field, str(stream.events[0].id).rpartition(":")[2], field.lstrip("0123456789")):
            again = await whole(served, Last_Event_ID=f"{cursor}:{sent}")
            found.append((again.response.status, added_up(again), again.body == b""))
    assert found == [(204, "", True), (200, "", False), *[(200, "text", False)] * 4]


async def change(served: Served, method: str, path: str, body: object) -> None:
    response = await served.http.request(method, f"/v1/channels/c/messages{path}", json=body)
    assert response.status_code in (200, 201), response.text


async def test_deleted_message_ends_with_done(served: Served) -> None:
    await change(served, "POST", "", {"id": "m1", "role": "assistant", "status": "streaming"})
    stream = await Stream.open(served, EVENTS)
    await served.http.delete("/v1/channels/c/messages/m1")
    assert await stream.until_over() is True
    assert [json.loads(event.data) for event in stream.events if event.event == "done"] == [{"status": "deleted"}]
    again = await whole(served, Last_Event_ID=last_id(stream))
    assert (again.response.status, json.loads(again.body)["code"]) == (410, "deleted")


async def test_cut_between_two_events_of_one_write_doubles_neither(served: Served) -> None:
    parts = [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "yes"}, {"type": "text", "text": "!"}]
    await change(served, "POST", "", {"id": "m1", "role": "assistant", "parts": parts})
    first = await whole(served)
    for number, event in enumerate(first.events):
        rest = await whole(served, Last_Event_ID=str(event.id))
        assert [one.data for one in rest.events] == [one.data for one in first.events[number + 1 :]]
    lost = await whole(served, Last_Event_ID=f"other{first.events[0].id}")  # after a failover
    assert [(one.event, one.data) for one in lost.events[:1]] == [("reset", b'{"answer":"yes!","thinking":"hm"}')]


@pytest.mark.parametrize("is_continued", [True, False])
async def test_interrupted_answer_is_done_when_no_attempt_can_continue_it(served: Served, is_continued: bool) -> None:
    agent, turn, answer = LiveLine(served.hub, "bot"), {"channel": "c", "message": "q1"}, {"channel": "c", "id": "m1"}
    await agent.ask("work", pattern="c", slots=1)
    await served.hub.create("c", id="q1", text="Well?")
    await agent.turn()
    await agent.ask("create", **answer, role="assistant", status="streaming", reply_to="q1", text="Half an ")
    first = await Stream.open(served, f"{EVENTS}?flush_ms=0")
    await first.until(lambda: added_up(first) == "Half an ")
    await agent.ask("turn.done", **turn, generation=1, state="handed_over")
    assert (await agent.turn())["generation"] == 2
    second = await Stream.open(served, EVENTS)  # between two attempts
    if is_continued:
        await agent.ask("takeover", **answer)
        await agent.ask("append", **answer, generation=2, text="answer")
        await agent.ask("finish", **answer, generation=2)
    await agent.ask("turn.done", **turn, generation=2)
    text, status = ("Half an answer", "complete") if is_continued else ("Half an ", "interrupted")
    for stream in (first, second):
        assert await stream.until_over() is True
        assert (added_up(stream), json.loads(stream.events[-1].data)) == (text, {"status": status})


async def test_superseded_attempt_is_reset_once_for_each_reader(served: Served) -> None:
    await change(served, "POST", "", {"id": "m1", "role": "assistant", "status": "streaming"})
    await change(served, "PUT", "/m1/parts/0", {"type": "reasoning", "text": "hm"})
    await change(served, "PUT", "/m1/parts/1", {"type": "text", "text": "Half an answ"})
    first, away = [await Stream.open(served, f"{EVENTS}?flush_ms=0") for _ in range(2)]
    for stream in (first, away):
        await stream.until(lambda stream=stream: added_up(stream) == "Half an answ")
    away.close()
    await change(served, "PATCH", "/m1", {"supersede": 0, "text": "A whole", "generation": 1})
    reset = await first.until_event("reset")
    assert json.loads(reset.data) == {"answer": "A whole", "thinking": ""}
    await change(served, "POST", "/m1/append", {"text": " one", "part": 1})
    await first.until(lambda: added_up(first) == "Half an answ one")
    second = await Stream.open(served, EVENTS, Last_Event_ID=last_id(away))
    await change(served, "POST", "/m1/finish", {})
    assert await second.until_over() is True
    anew = [("reset", {"answer": "A whole one", "thinking": ""}), ("done", {"status": "complete"})]
    assert [(event.event, json.loads(event.data)) for event in second.events] == anew
    assert await first.until_over() is True
    third = await whole(served)
    assert (added_up(third), [event.event for event in third.events]) == ("A whole one", ["answer", "done"])
    above = await whole(served, f"{EVENTS}?since={last_id(first).replace(':', ':9', 1)}")
    assert [(event.event, json.loads(event.data)) for event in above.events] == anew  # the store has lost entries


def test_formats_of_plain_text_send_what_is_left_of_the_answer() -> None:
    """Also if text of the failed attempt, and more text after it, are in the same batch."""
    times = dict.fromkeys(("created", "version", "created_at", "updated_at"), 1)
    parts = [{"type": "attempt", "parts": []}, {"type": "text", "text": "right\n"}]
    left = convert({"id": "m1", "role": "assistant", "status": "streaming", "parts": parts, **times}, Message)
    deltas: list[Delta] = [TextAdded(0, "text", 5, "!"), MessageReplaced(left, (), is_superseded=True)]
    deltas.append(TextAdded(1, "text", 6, "on"))
    position = Position("e:9", "", 7, Sent([0, 8], attempts=1))
    plain = PlainData(has_ids=True).frame(deltas, None, position)
    assert plain == b"event: reset\ndata: right\ndata: on\nid: e:9:7m0a1.0.8\n\n"
    own = OwnFrames(lambda text: f"data: {text}\n\n", "data: [DONE]\n\n", has_ids=False)
    assert own.frame(deltas, "complete", position) == b"event: reset\ndata: right\ndata: on\n\ndata: [DONE]\n\n"
    deltas = [TextAdded(0, "reasoning", 0, "hm"), TextAdded(1, "text", 5, " and on"), PartReplaced(1, parts[1], 12)]
    named = NamedEvents().frame(deltas, None, Position("e:9", "", 7, Sent([2, 6])))
    assert re.findall(rb"id: (.*)", named) == [b"e:9:7m0.2.5", b"e:9:7m0.2.6"]


def test_a_line_end_cut_in_two_is_one_line_end() -> None:
    plain, position = PlainData(has_ids=False), Position("e:9", "", 7, Sent([3]))
    frames = [plain.frame([TextAdded(0, "text", 0, text)], None, position) for text in ("a\r", "\nb\n", "\nc\r", "d")]
    assert frames == [b"data: a\ndata: \n\n", b"data: b\ndata: \n\n", b"data: \ndata: c\ndata: \n\n", b"data: d\n\n"]


@given(st.lists(st.integers(0, 9_999_999), max_size=256), st.booleans(), st.integers(0, 256), st.integers(1, 10**15))
def test_sent_lengths_are_read_back_from_the_cursor(lengths: list[int], is_done: bool, attempts: int, at: int) -> None:
    extra = sent_field(at, Sent(lengths, attempts=attempts), is_finished=is_done)
    parsed = sent_by(parse_cursor(f"epoch:5:{extra}"))
    assert (parsed.is_finished, parsed.attempts, len(parsed.lengths)) == (is_done, attempts, len(lengths))
    left_out = list(parsed.lengths).count(2**53)
    assert list(parsed.lengths)[left_out:] == lengths[left_out:]
    kept = "".join(f".{length}" for length in lengths[left_out:])
    assert left_out == 0 or len(f".{lengths[left_out - 1]}{kept}") > 255 - len(f"{at}ma{attempts}")
