"""A server that is killed in the middle of a response: OpenAI's client raises, and later retrieves exactly the rest."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.interop.long.restarts import served


async def test_response_of_a_server_that_is_killed_is_resumed_exactly(tmp_path: Path, unused_tcp_port: int) -> None:
    address = f"http://127.0.0.1:{unused_tcp_port}/v1"
    async with openai.AsyncOpenAI(base_url=address, api_key="key", max_retries=0) as client:
        text, events = "", []
        async with served(tmp_path, unused_tcp_port) as server:
            stream = await client.responses.create(model="bot", input="you", background=True, stream=True)
            with pytest.raises(openai.APIConnectionError):
                async for event in stream:
                    events.append(event)
                    if event.type == "response.output_text.delta":
                        text += event.delta
                        server.kill()
            await server.wait()
        assert (text, events[0].type) == ("Hello ", "response.created")
        seen = events[-1].sequence_number
        (tmp_path / "go").touch()
        async with served(tmp_path, unused_tcp_port):
            stream = await client.responses.retrieve(events[0].response.id, stream=True, starting_after=seen)
            rest = [event async for event in stream]
        deltas = [event.delta for event in rest if event.type == "response.output_text.delta"]
        assert text + "".join(deltas) == rest[-1].response.output_text == "Hello to you"
        assert deltas[0].startswith("to")
        numbers = [event.sequence_number for event in rest]
        assert numbers == sorted(set(numbers))
        assert numbers[0] > seen
