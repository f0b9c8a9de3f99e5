"""LangGraph (`langgraph`): `graph.astream(...)` with `stream_mode="messages"`, alone or among others.

| event | becomes |
|---|---|
| a message or a chunk with its metadata, in every form that modes and subgraphs give it | as for `langchain` |
| `updates`, `custom`, `values` and the other modes | ignored |
| the end, with every message ended | the end |
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

from tenuto.sources.langchain import LangChain
from tenuto.sources.reading import Edit, UpstreamEnded, get, word

_MESSAGES = "messages"


class LangGraph(LangChain):
    name = "langgraph"

    def take(self, event: object) -> Iterator[Edit]:
        found = _message_of(event)
        if found is not None:
            message, about = found
            yield from self.message(message, _origin(about))

    def end(self) -> Iterator[Edit]:
        if self._open:
            raise UpstreamEnded("the model's message ended without a finish reason, so it may be incomplete")
        return iter(())


def _origin(about: Mapping[str, object]) -> Hashable:
    """Return the run of the node, and the model call in it, that a message comes from."""
    return (word(about, "langgraph_checkpoint_ns") or word(about, "langgraph_node"), word(about, "ls_run_id"))


def _message_of(event: object) -> tuple[object, Mapping[str, object]] | None:
    """Return the message and its metadata in an item of a graph's stream; None if the item is of another mode."""
    if isinstance(event, Mapping):
        event = event.get("data") if event.get("type") == _MESSAGES else None
    for _ in range(3):  # remove up to three levels: a namespace, a mode, and the pair
        match event:
            case (str() as mode, inner):
                event = inner if mode == _MESSAGES else None
            case (tuple(), str() as mode, inner):
                event = inner if mode == _MESSAGES else None
            case (tuple(), inner):
                event = inner
            case (message, Mapping() as about) if isinstance(get(message, "type"), str):
                return message, about
            case _:
                return None
    return None
