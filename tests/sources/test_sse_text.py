"""Frames of server-sent events that hold text: unpacked, or refused with the remedy.

Layer: tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto import Hub
from tenuto.core.errors import LocalError
from tenuto.sources import UpstreamError
from tenuto.sources.reading import Add
from tenuto.sources.text import SSEText
from tests.sources.piping import broken, one_by_one, pipe_all

TOKENS = ["You ", "asked:\n", '"why?" ', "🙂 "]
WHOLE = "".join(TOKENS)


def frames(tokens: Iterable[object], event: str = "") -> list[str]:
    """Return the frames of an endpoint with JSON data."""
    name = f"event: {event}\n" if event else ""
    return [f"{name}data: {json.dumps(token)}\n\n" for token in tokens]


ServerSentEvent = type("ServerSentEvent", (SimpleNamespace,), {})  # such as those of sse-starlette and FastAPI
STREAMS: dict[str, list[Any]] = {
    "frames": frames(TOKENS),
    "frames behind the end": [*frames(TOKENS), "data: [DONE]\n\n", *frames(["b"])],
    "named frames": [*frames(TOKENS, "token"), "event: done\ndata: {}\n\n"],
    "frames with CRLF": [frame.replace("\n", "\r\n") for frame in frames(TOKENS)],
    "a comment, a delay and ids": [": hi\n\n", "retry: 1000\n\n", *(f"id: 7\n{one}" for one in frames(TOKENS))],
    "pings between frames": [frames(TOKENS)[0], "event: ping\ndata: 2026\n\n", *frames(TOKENS[1:])],
    "bytes": [frame.encode() for frame in frames(TOKENS)],
    "bytes cut anywhere": [bytes([one]) for one in "".join(frames(TOKENS)).encode()],
    "an event and its data apart": [piece for token in TOKENS for piece in ("event: token\n", *frames([token]))],
    "lines without ends": "".join(frames(TOKENS)).split("\n"),
    "no blank line at the end": [*frames(TOKENS[:-1]), frames(TOKENS[-1:])[0].rstrip()],
    "frames that halve a character": frames([*TOKENS[:-1], "\ud83d", "\ude42 "]),
    "dicts": [{"event": "token", "data": json.dumps(token)} for token in TOKENS],
    "dicts of raw text": [{"data": token} for token in TOKENS],
    "objects of sse-starlette": [ServerSentEvent(data=token, event=None) for token in TOKENS],
}


@pytest.mark.parametrize("name", STREAMS)
async def test_frames_of_text_are_unpacked(hub: Hub, name: str) -> None:
    source = "sse" if name == "bytes cut anywhere" else None
    stored, piped = await pipe_all(hub, one_by_one(STREAMS[name]), source=source)
    assert (stored.status, stored.parts, piped.text) == ("complete", [{"type": "text", "text": WHOLE}], WHOLE)


async def test_frames_of_raw_text_are_unpacked(hub: Hub) -> None:
    stored, _ = await pipe_all(hub, ["data: You \n\n", "data: 42\n\n", "data: one\ndata: two\n\n", "data: [DONE]\n\n"])
    assert stored.text == "You 42one\ntwo"


async def test_reasoning_events_become_reasoning(hub: Hub) -> None:
    stored, _ = await pipe_all(hub, [*frames(["hm"], "thinking"), *frames(["yes"], "answer")])
    assert stored.parts == [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "yes"}]


@pytest.mark.parametrize(
    ("field", "objects"),
    [
        ("text", [{"text": token, "n": 1} for token in TOKENS]),
        ("text", [{"start": True}, *({"text": token} for token in TOKENS), {"text": None}]),
        ("delta.text", [{"delta": {"text": token}} for token in TOKENS]),
        ("choices.0.delta.content", [{"choices": [{"delta": {"content": token}}]} for token in TOKENS]),
    ],
)
async def test_text_field_names_the_text_of_objects(hub: Hub, field: str, objects: list[object]) -> None:
    async with hub.message("chat:1") as message:
        await message.pipe(frames(objects), text_field=field)  # type: ignore[attr-defined]
    assert (await hub.read("chat:1", message.id))[0].text == WHOLE


NESTED = {"id": "1", "object": "chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}
OBJECTS = frames([{"token": "a", "n": 1}])


@pytest.mark.parametrize(
    ("stream", "options", "words"),
    [
        (OBJECTS, {}, "a JSON object with the keys 'token', 'n'; name the one that holds the text, as in"),
        (OBJECTS, {}, "as in text_field='token', or yield the text itself, and let style= of stream_response make"),
        (frames([NESTED]), {}, "as in text_field='choices.0.delta.content', or"),
        (frames([{"id": "1", "token": {"text": "a"}}]), {}, "as in text_field='token.text', or"),
        (frames([{"kind": "a", "delta": "a"}]), {}, "as in text_field='delta', or"),
        (frames([{"n": 1}]), {}, "as in text_field='text', or"),
        (OBJECTS, {"text_field": "text"}, "'text' is in no object of the stream, the first of which has the keys"),
        (frames([{"token": ["a"]}]), {"text_field": "token"}, "must name a string, it names a value of type list;"),
        (frames(["x"], "weather"), {}, "server-sent event has the name 'weather'"),
        *((frames(["x"]), {"text_field": field}, "text_field must be the name of a field") for field in ("", 5)),
        (["x"], {"text_field": "a", "source": "text"}, "leave it out"),
    ],
)
async def test_stream_whose_text_cannot_be_found_is_refused_with_the_remedy(
    hub: Hub, stream: list[Any], options: dict[str, Any], words: str
) -> None:
    stored, error = await broken(hub, stream, LocalError, **options)
    assert (stored.status, words in error.detail) == ("failed", True), error.detail


@pytest.mark.parametrize(
    "last", ['event: error\ndata: {"code": "overloaded"}\n\n', 'data: {"error": {"code": "overloaded"}}\n\n']
)
async def test_a_reported_error_fails_the_message(hub: Hub, last: str) -> None:
    stored, error = await broken(hub, [*frames(["half"]), last], UpstreamError)
    assert (stored.text, error.detail) == ("half", "the model's provider reported an error: overloaded")


@pytest.mark.parametrize("last", ["data: half a\n\n", "data: 5\n\n", "Hello\n\n"])
async def test_a_frame_unlike_the_first_is_malformed(hub: Hub, last: str) -> None:
    stored, error = await broken(hub, [*frames(["half"]), last], UpstreamError)
    assert stored.text == "half"
    assert "server-sent event" in error.detail


@pytest.mark.parametrize(
    "items",
    [
        ["data: 1\n", "other: 2\n", "\n"],
        ["data:", " the word", " has five letters"],
        ["data: 1\n", "data: 2\n"],
        ["id: 7\nname: x\n\n"],
        [": a colon begins this line"],
        ['data: {"a": 1}\n', "data: more"],
    ],
)
async def test_text_that_begins_like_a_field_stays_text(hub: Hub, items: list[str]) -> None:
    stored, _ = await pipe_all(hub, items)
    assert stored.text == "".join(items)


@pytest.mark.parametrize("start", ["\n", "\r\n"])
@pytest.mark.parametrize("is_text", [True, False])
async def test_blank_lines_before_the_first_frame_are_ignored(hub: Hub, start: str, is_text: bool) -> None:
    first, *rest = frames(["Hello"])
    items = [start + first, *rest]
    stored, _ = await pipe_all(hub, items if is_text else [one.encode() for one in items])
    assert stored.text == "Hello"


@given(st.lists(st.sampled_from(["data:", "data: x", "\n", "\n\n", "", "id: 1\n", ": c\n", "x", "\r\n"]), min_size=1))
def test_every_text_is_either_frames_or_kept_whole(items: list[str]) -> None:
    source = SSEText(is_certain=False)
    try:
        edits = [edit for item in items for edit in source.take(item)]
        edits += source.end()
    except UpstreamError:
        return  # a whole frame, and then a line that is not a field
    written = "".join(edit.text for edit in edits if isinstance(edit, Add))
    assert written == "".join(items) or "\n\n" in "\n".join([*items, ""]).replace("\r", "")
