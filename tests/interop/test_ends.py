"""Answers that are replaced, deleted or cancelled: each reader of a turn gets the same end, whenever it joined."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI

from holdfast.core.requests import SERVER, AppendText, CreateMessage, FinishMessage, TakeOver
from holdfast.interop import AGUI, AISDK
from tests.transports.conftest import new_hub, serving

PAGE = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "you"}]}
RUN = {"threadId": "1", "runId": "r", "messages": [{"id": "u", "role": "user", "content": "you"}]}


@pytest.mark.parametrize("change", ["deleted", "edited", "continued"])
@pytest.mark.parametrize(
    ("path", "body", "end"),
    [("/api/chat", {"id": "1", "message": PAGE}, '"finish"'), ("/api/agent", RUN, "RUN_FINISHED")],
    ids=["ai-sdk", "ag-ui"],
)
async def test_change_of_an_attempt_that_was_replaced_changes_no_stream(
    path: str, body: Any, end: str, change: str
) -> None:
    hub, app = new_hub(), FastAPI()
    AISDK(hub, channel="chat:{id}").install(app, "/api/chat")
    AGUI(hub, channel="chat:{id}").install(app, "/api/agent")
    await hub.create("chat:1", id="u", text="you", starts_turn=False)
    for id in ("a", "b"):
        request = CreateMessage(role="assistant", status="streaming", text=f"of {id}", reply_to="u", parent="u")
        await hub.ask("chat:1", id, request, SERVER)
        if id == "a":
            await hub.ask("chat:1", id, FinishMessage(status="interrupted"), SERVER)
    async with serving(hub, app) as served, served.http.stream("POST", path, json=body) as response:
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        while "of b" not in seen[-1]:
            seen.append(await anext(lines))
        if change == "deleted":
            await hub.delete("chat:1", "a")
        elif change == "edited":
            await hub.update("chat:1", "a", text="another text")
        else:
            await hub.ask("chat:1", "a", TakeOver(), SERVER)
            await hub.ask("chat:1", "a", AppendText(text=", more", generation=2), SERVER)
            await hub.ask("chat:1", "a", FinishMessage(status="failed", generation=2), SERVER)
        await hub.ask("chat:1", "b", AppendText(text=", the end"), SERVER)
        await hub.ask("chat:1", "b", FinishMessage(), SERVER)
        async with asyncio.timeout(10):
            seen += [line async for line in lines]
    text = "\n".join(seen)
    assert (end in text, "the end" in text) == (True, True)
    assert not [words for words in ("of a", "more", "another") if words in text]
