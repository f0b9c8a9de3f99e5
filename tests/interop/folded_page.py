"""A page of the AI SDK as a fold of chunks, which refuses what the client cannot use.

Layer: tests.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any


class FoldedPage:
    """The parts of a page's message. `take` raises AssertionError for a chunk at which the client fails."""

    def __init__(self, parts: list[Any] | None = None) -> None:
        self.parts: list[Any] = parts or []
        self.calls: list[str] = []  # calls that the page was asked to run
        self.ending = ""  # type of the last chunk
        self._texts: dict[str, Any] = {}
        self._inputs: dict[str, str] = {}

    def take(self, body: bytes) -> None:
        """Add the chunks of a response."""
        for frame in body.decode().split("\n\n"):
            if frame.startswith("data: {"):
                chunk = json.loads(frame.removeprefix("data: "))
                self.ending = chunk["type"]
                self._take(chunk)

    def posts_again(self) -> bool:
        """Return whether both rules of `sendAutomaticallyWhen` send the message again."""
        step = self._step()
        own = [one for one in step if not one.get("providerExecuted")]
        outputs = {"output-available", "output-error"}
        replied = any(one["state"] == "approval-responded" for one in step)
        return (bool(own) and all(one["state"] in outputs for one in own)) or (
            replied and all(one["state"] in {*outputs, "output-denied", "approval-responded"} for one in step)
        )

    def _step(self) -> list[Any]:
        starts = [index for index, part in enumerate(self.parts) if part["type"] == "step-start"]
        return [part for part in self.parts[starts[-1] if starts else 0 :] if "toolCallId" in part]

    def _call(self, id: str) -> Any:
        return next(part for part in reversed(self.parts) if part.get("toolCallId") == id)

    def _take(self, chunk: Any) -> None:
        match chunk:
            case {"type": "start-step"}:
                self.parts.append({"type": "step-start"})
            case {"type": "reset-step"}:
                while self.parts[-1]["type"] != "step-start":
                    self.parts.pop()
                self._texts.clear()
            case {"type": "finish-step"}:
                self._texts.clear()
            case {"type": "text-start", "id": id}:
                self._texts[id] = {"type": "text", "text": "", "state": "streaming"}
                self.parts.append(self._texts[id])
            case {"type": "text-delta", "id": id, "delta": delta}:
                self._texts[id]["text"] += delta
            case {"type": "text-end", "id": id}:
                self._texts.pop(id)["state"] = "done"
            case {"type": "tool-input-start", "toolCallId": id, "toolName": name}:
                assert not [one for one in self.parts if one.get("toolCallId") == id], f"the call {id} begins again"
                self._inputs[id] = ""
                part = {"type": f"tool-{name}", "toolCallId": id, "state": "input-streaming"}
                self.parts.append(part | {"providerExecuted": True} if "providerExecuted" in chunk else part)
            case {"type": "tool-input-delta", "toolCallId": id, "inputTextDelta": delta}:
                self._inputs[id] += delta
                if self._inputs[id]:
                    assert self._call(id) in self._step(), f"the page makes another part of the input of {id}"
                    with suppress(ValueError, RecursionError):  # the page waits for the rest
                        self._call(id)["input"] = json.loads(self._inputs[id])
            case {"type": "tool-input-available", "toolCallId": id, "input": value}:
                assert self._call(id) in self._step(), f"the page makes another part of the call {id}"
                self._call(id).update(state="input-available", input=value)
                if "providerExecuted" not in chunk:
                    self.calls.append(id)
            case {"type": "tool-approval-request", "toolCallId": id, "approvalId": approval}:
                self._call(id).update(state="approval-requested", approval={"id": approval})
            case {"type": "tool-approval-response", "approvalId": approval}:
                (part,) = (one for one in self.parts if one.get("approval", {}).get("id") == approval)
                reply = {name: chunk[name] for name in ("approved", "reason") if name in chunk}
                part.update(state="approval-responded", approval={"id": approval, **reply})
            case {"type": "tool-output-available", "toolCallId": id, "output": output}:
                self._call(id).update(state="output-available", output=output)
            case {"type": "tool-output-denied", "toolCallId": id}:
                self._call(id).update(state="output-denied")
            case {"type": "source-url" | "file"}:
                self.parts.append(chunk)
            case _:
                assert chunk["type"] in ("start", "finish", "abort", "error"), chunk
