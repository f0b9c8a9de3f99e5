"""A server that is killed in mid-answer, with OpenAI's own client: the next attempt has the one answer that stays."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.interop.long.restarts import served


def shown(events: list[Any]) -> dict[str, tuple[str, str]]:
    """Return the type and the text of each item that a client shows which drops those that are taken back."""
    texts: dict[int, tuple[str, str, str]] = {}
    for event in events:
        match event.type:
            case "response.output_item.added":
                assert event.output_index not in texts
                texts[event.output_index] = (event.item.id, event.item.type, "")
            case "response.output_text.delta" | "response.reasoning_summary_text.delta":
                id, kind, text = texts[event.output_index]
                assert id == event.item_id
                texts[event.output_index] = (id, kind, text + event.delta)
            case "response.output_item.done" if event.item.status == "incomplete":
                del texts[event.output_index]
    return {id: (kind, text) for id, kind, text in texts.values()}


async def test_response_of_a_killed_server_has_the_answer_of_the_next_attempt_once(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}/v1"
    seen: list[Any] = []
    answer = [("reasoning", "Hm."), ("message", "Hello to you")]
    async with openai.AsyncOpenAI(base_url=url, api_key="key", max_retries=0) as client:

        async def resumed(after: int) -> list[Any]:
            return [one async for one in await client.responses.retrieve(id, stream=True, starting_after=after)]

        async with served(tmp_path, unused_tcp_port) as server:
            with pytest.raises(openai.APIConnectionError):
                async for event in await client.responses.create(model="again", input="you", stream=True):
                    seen.append(event)
                    if event.type == "response.output_text.delta":
                        server.send_signal(signal.SIGKILL)
            await server.wait()
        assert [*shown(seen).values()] == [("reasoning", "Hm."), ("message", "Hello ")]
        id = seen[0].response.id
        async with served(tmp_path, unused_tcp_port):
            (tmp_path / "go").touch()
            later = await resumed(seen[-1].sequence_number)
            ends = [one.item for one in later if one.type == "response.output_item.done"]
            assert [(one.type, one.status) for one in ends] == [
                ("message", "incomplete"),  # of the reasoning that has ended only the last event says so
                ("reasoning", "completed"),
                ("message", "completed"),
            ]
            whole = await client.responses.retrieve(id)
            assert (whole.status, whole.output_text) == ("completed", "Hello to you")
            assert later[-1].response.model_dump() == whole.model_dump()
            kept = [one.id for one in whole.output]  # an id has the number of the attempt
            for number in range(len(seen)):  # after each event that the cut stream had
                found = shown(seen[: number + 1] + await resumed(seen[number].sequence_number))
                assert {id: found[id] for id in kept} == dict(zip(kept, answer, strict=True))
                assert {*found} - {*kept} <= {*shown(seen)}
