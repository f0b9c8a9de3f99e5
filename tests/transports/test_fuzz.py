"""Random input causes no internal error, gets one reply for each request, and leaves the server running."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.events import Batch, known_events
from holdfast.core.limits import Limits
from holdfast.core.view import View, ViewGap
from tests.transports.conftest import PATIENCE_S, asking, new_hub
from tests.transports.test_session import Line

FUZZ = settings(max_examples=60)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["m1", "m2", "c", "text", "streaming", "complete", "assistant", "user", "data", "-:0", "x" * 300]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "reasoning", "tool", "data", "source", "file", "song"])},
    optional={"text": values, "call": values, "name": values, "input": values, "data": values},
)
ids = st.sampled_from(["m1", "m2", "m3"]) | values
places = st.integers(0, 6) | values
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "channel": st.sampled_from(["c", "c", "c", "d"]) | values,
    "id": ids,
    "part": places | parts,
    "value": parts | values,
    "at": places,
    "text": st.text(max_size=5) | values,
    "parts": st.lists(parts, max_size=3) | values,
    "role": st.sampled_from(["user", "assistant"]) | values,
    "status": st.sampled_from(["complete", "streaming", "failed", "interrupted"]) | values,
    "meta": st.dictionaries(st.text(max_size=3), values, max_size=2) | values,
    "generation": st.integers(0, 3) | values,
    "request": ids,
    "if_version": places,
    "since": values,
    "history": places,
    "before": places,
    "limit": places,
    "flush_ms": places,
    "reason": values,
    "lease_s": values,
    "n": values,
}
TYPES = ["attach", "detach", "history", "create", "append", "part", "update", "finish", "delete"]
frames = st.fixed_dictionaries({"type": st.sampled_from([*TYPES, "pong", "signal"]) | values}, optional=FIELDS)


@FUZZ
@given(st.lists(frames, max_size=30))
def test_every_frame_with_a_ref_is_answered_once_and_the_view_stays_whole(sent: list[dict[str, Any]]) -> None:
    async def run() -> None:
        hub = new_hub()
        await hub.start()
        line = Line(hub)
        for ref, frame in enumerate(sent):
            line.session.receive(json.dumps({**frame, "ref": ref}), now_s=0.0)
        answers: dict[object, int] = {}
        views = {"c": View(), "d": View()}
        due = {ref for ref, frame in enumerate(sent) if frame["type"] != "pong"}

        def look(frame: dict[str, Any]) -> None:
            if frame["type"] in ("ok", "error"):
                answers[frame["ref"]] = answers.get(frame["ref"], 0) + 1
                assert frame.get("code") != "internal"
            elif frame["channel"] in views:
                try:
                    batch = Batch(events=known_events(frame["events"]), cursor=frame.get("cursor"))
                    views[frame["channel"]].receive(batch)
                except ViewGap as gap:
                    raise AssertionError(frame) from gap

        async with asyncio.timeout(PATIENCE_S):
            while set(answers) < due:
                look(await line.frame())
            await line.rest()
        while (frame := line.take()) is not None:
            look(frame)
        assert set(answers.values()) <= {1}
        assert line.session.closing is None
        await hub.close()

    asyncio.run(run())


def unescaped(value: object) -> bytes:
    """JSON with every character as it is, half ones too."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


bodies = st.fixed_dictionaries({}, optional=FIELDS)
raw = st.one_of(
    st.binary(max_size=60),
    values.map(lambda value: json.dumps(value).encode()),
    bodies.map(lambda value: json.dumps(value).encode()),
    bodies.map(unescaped),
)
SEGMENTS = ["c", "m1", "messages", "append", "finish", "parts", "0", "events", "poll", "%2F", "..", "%FF", "é", ""]
NAMES = ["before", "limit", "since", "wait_s", "history", "generation", "request", "client"]
NUMBERS = ["0", "1", "-1", "x", "-:0", "1.5", "é", ""]
paths = st.one_of(
    st.sampled_from(
        [
            "/v1/channels/c/messages",
            "/v1/channels/c/messages/m1",
            "/v1/channels/c/messages/m1/append",
            "/v1/channels/c/messages/m1/finish",
            "/v1/channels/c/messages/m1/parts/0",
            "/v1/channels/c",
            "/v1/channels/c/poll",
        ]
    ),
    st.lists(st.sampled_from(SEGMENTS), max_size=6).map(lambda names: "/v1/channels/" + "/".join(names)),
)
requests = st.tuples(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW"]),
    paths,
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(NUMBERS), max_size=3),
    raw,
)


@FUZZ
@given(st.lists(requests, max_size=12))
def test_no_request_is_an_internal_error(sent: list[tuple[str, str, dict[str, str], bytes]]) -> None:
    async def run() -> None:
        hub = new_hub(limits=Limits(request_bytes=2_000))
        async with asking(hub) as http:
            await http.post("/v1/channels/c/messages", json={"id": "m1", "role": "assistant", "status": "streaming"})
            for method, path, query, body in sent:
                if path.endswith("/events"):
                    continue  # it has no end, and its body cannot be wrong
                answer = await http.request(
                    method,
                    path,
                    params={"wait_s": "0", **query},
                    content=body if method not in ("GET", "HEAD", "OPTIONS") else None,
                    headers={"content-type": "application/json"},
                )
                assert answer.status_code < 500, (method, path, query, body, answer.text)
                if answer.status_code >= 400 and method != "HEAD":
                    assert answer.headers["content-type"] == "application/problem+json"
                    assert answer.json()["code"] != "internal"
            assert (await http.get("/healthz")).status_code == 200
        await hub.close()

    asyncio.run(run())
