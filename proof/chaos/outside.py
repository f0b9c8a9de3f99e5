"""The services that the agent of the scenario `finish` calls: a model that breaks in every way, and tools.

Layer: chaos.

They run in the process of the scenario, so they outlive the agent, and count what it has called. The text of an answer
follows from the question and the results of the steps, so that a lost result makes another text. Its numbers only rise,
so that a beginning of it has no text twice.
"""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from proof.oracle.plans import NASTY, ORDINARY
from tests.sources.provider import CUT, HOLD, Provider, Step
from tests.sources.wires import chat, chat_end, sse

__all__ = ["STEPS", "TOOLS", "Outside", "truth", "value"]

TOOLS = ("tool:a", "tool:b")  # the tool calls of the plan
STEPS = (*TOOLS, "pay")  # the steps beside the plan
LENGTH = 2_000  # characters of an answer
CHUNK = 40
OVERLAP = 50  # characters that a continuation may repeat
PACE_S = 0.01  # between two chunks
TOOL_S = 0.3  # longest work of a tool
BROKEN = 0.4  # share of the requests to the model that break
FAULTS = ("429", "503", "cut", "clean cut", "stall", "overloaded", "overlap", "repeat")
_ERROR = {"error": {"message": "try again", "type": "overloaded_error", "code": "overloaded"}}


def value(question: str, step: str) -> str:
    """Return the result of a step of the turn of `question`."""
    return f"{zlib.crc32(f'{question}:{step}'.encode()):08x}"


@lru_cache(maxsize=256)
def truth(question: str) -> str:
    """Return the text that the answer to `question` must have."""
    return _written(question, [value(question, step) for step in STEPS])


def _written(question: str, results: Sequence[str]) -> str:
    """Return the answer that the model writes with these results."""
    chosen = random.Random(question)
    text, number = f"{question}: {', '.join(results)}. ", 0
    while len(text) < LENGTH:
        text += f"{number} {chosen.choice(NASTY if chosen.random() < 0.2 else ORDINARY)}"
        number += 1
    return text[:LENGTH]


class Outside(Provider):
    """The model, which speaks the Chat Completions of OpenAI, and the tools."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.progress = 0  # rises with each call and each chunk
        self.calls: Counter[tuple[str, str]] = Counter()  # calls of a tool, by question and step
        self.keys: dict[tuple[str, str], set[str]] = {}  # their idempotency keys
        self.completed: Counter[tuple[str, str]] = Counter()  # whole responses of the model, by question and kind
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)

    def script(self, path: str, body: Any) -> tuple[int, str, Iterable[Step]]:
        """Return a response of a tool or of the model; the counters rise as it is sent."""
        if path == "/step":
            return 200, "application/json", self._step(body["question"], body["step"], body["key"])
        asked = json.loads(body["messages"][0]["content"])
        fault = self._random.choice(FAULTS) if self._random.random() < BROKEN else None
        if fault is not None:
            self.faults[fault] += 1
        if fault in ("429", "503"):
            return int(fault), "application/json", [json.dumps(_ERROR).encode()]
        if body.get("stream"):
            prefix = body["messages"][-1]["content"] if len(body["messages"]) > 1 else ""
            return 200, "text/event-stream", self._text(asked["question"], asked["results"], prefix, fault)
        return 200, "application/json", self._plan(asked["question"], fault)

    def _step(self, question: str, step: str, key: str) -> Iterator[Step]:
        self.calls[question, step] += 1
        self.keys.setdefault((question, step), set()).add(key)
        self.progress += 10
        number = self.calls[question, step]
        yield self._random.uniform(0.0, TOOL_S)
        yield json.dumps({"value": value(question, step), "number": number}).encode()

    def _plan(self, question: str, fault: str | None) -> Iterator[Step]:
        self.progress += 10
        if fault is not None:
            yield CUT
        calls = [{"id": one, "type": "function", "function": {"name": "find", "arguments": "{}"}} for one in TOOLS]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
        about = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
        yield json.dumps({**about, "choices": [choice]}).encode()
        self.completed[question, "plan"] += 1

    def _text(self, question: str, results: list[str], prefix: str, fault: str | None) -> Iterator[Step]:
        """Stream the text behind `prefix`, up to a fault."""
        text = _written(question, results)
        assert text.startswith(prefix), f"the agent continues {prefix!r}, which is no beginning of {text!r}"
        begin = {"repeat": 0, "overlap": max(0, len(prefix) - OVERLAP)}.get(fault or "", len(prefix))
        is_whole = fault in (None, "repeat", "overlap")
        end = len(text) if is_whole else self._random.randrange(begin, len(text) + 1)
        for at in range(begin, end, CHUNK):
            self.progress += CHUNK // 20
            yield chat({"content": text[at : min(at + CHUNK, end)]})
            yield PACE_S
        match fault:
            case "cut":
                yield CUT
            case "stall":
                yield HOLD
            case "overloaded":
                yield sse(_ERROR)
            case _ if is_whole:
                yield from chat_end()
                self.completed[question, "answer"] += 1
