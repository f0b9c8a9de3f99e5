"""OpenAI Agents (`openai-agents`): the result of `Runner.run_streamed(...)`, or its `stream_events()`.

| event | becomes |
|---|---|
| `raw_response_event` | as for its event in `openai-responses`, for all responses of the run |
| `run_item_stream_event` `tool_output`, `handoff_occured` | the output of that tool, `done` |
| `agent_updated_stream_event`, other items | ignored: they repeat others |
| the end of the run, with every response ended | the end |
| an error of the SDK while a response is open | UpstreamEnded |

Pipe the result itself: an early end then cancels the run through it, so the run ends at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from tenuto.core.errors import TenutoError
from tenuto.sources.openai_responses import OpenAIResponses
from tenuto.sources.reading import DONE, Edit, Set, Source, UpstreamEnded, UpstreamError, get, plain, word

_OUTPUTS = ("tool_output", "handoff_occured", "handoff_occurred")


class OpenAIAgents(Source):
    name = "openai-agents"

    def __init__(self) -> None:
        self._responses = OpenAIResponses()

    def events(self, stream: object) -> object:
        events = getattr(stream, "stream_events", None)
        return events() if callable(events) else stream

    def take(self, event: object) -> Iterator[Edit]:
        match get(event, "type"):
            case "raw_response_event":
                yield from self._responses.take(get(event, "data"))
            case "run_item_stream_event" if get(event, "name") in _OUTPUTS:
                item = get(event, "item")
                raw = get(item, "raw_item")
                output = get(item, "output")
                if call := word(raw, "call_id"):
                    value = plain(output if output is not None else get(raw, "output"))
                    yield Set(("call", call), {"output": value, "state": DONE})

    def end(self) -> Iterator[Edit]:
        return self._responses.end()

    def translate(self, error: BaseException) -> TenutoError | None:
        ours = super().translate(error)
        # For a response that breaks off the SDK raises ModelBehaviorError. Errors of the provider arrive as events
        # instead.
        if isinstance(ours, UpstreamError) and self._responses.is_open and type(error).__name__ == "ModelBehaviorError":
            return UpstreamEnded("the model's response broke off, so it is incomplete")
        return ours

    async def stop(self, stream: object) -> None:
        cancel = getattr(stream, "cancel", None)
        if callable(cancel):
            cancel()
