"""The clients of the adapters in the scenario `finish`: each shows the answer to one question until it is over.

Layer: chaos.

They connect to one node after the other, again after each break, and read the events as their packages do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import httpx2

from proof.chaos.outside import truth
from proof.chaos.report import Failure
from proof.oracle.plans import first_difference
from proof.wirecheck import SseParser
from tenuto.interop.openai_items import Reference

__all__ = ["CLIENTS", "Client"]

Json = dict[str, Any]
PAUSE_S = 0.02  # before it connects again
SILENCE_S = 10.0


class Client:
    """What a client shows: at each moment the beginning of the true text, and all of it at the end."""

    def __init__(self, ports: Sequence[int], question: str, chat: str) -> None:
        self.ports = ports
        self.question = question
        self.chat = chat
        self.texts: dict[str, str] = {}
        self.place = ""  # of the last event: the next connection goes on behind it

    def path(self) -> str:
        """Begin a connection, and return its address."""
        raise NotImplementedError

    def take(self, event: Json, id: str | None) -> bool:
        """Take an event; return whether the answer is over."""
        raise NotImplementedError

    async def follow(self) -> None:
        """Show the answer until it is over. Raises Failure if it shows another text."""
        while True:
            for port in self.ports:
                with contextlib.suppress(httpx2.HTTPError):
                    if await self._connect(f"http://127.0.0.1:{port}{self.path()}"):
                        return
            await asyncio.sleep(PAUSE_S)

    async def _connect(self, url: str) -> bool:
        async with httpx2.AsyncClient(timeout=SILENCE_S) as http, http.stream("GET", url) as response:
            parser = SseParser()
            async for data in response.aiter_bytes():
                for event in parser.receive(data) if response.status_code == 200 else ():
                    is_over = event.data != b"[DONE]" and self.take(json.loads(event.data), event.id)
                    text, due = "".join(self.texts.values()), truth(self.question)
                    if not due.startswith(text) or (is_over and text != due):
                        difference = first_difference(due, text)
                        raise Failure(f"{type(self).__name__}: the answer to {self.question} {difference}")
                    if is_over:
                        return True
        return False

    def _add(self, key: str, delta: str) -> None:
        self.texts[key] = self.texts.get(key, "") + delta


class AiSdkPage(Client):
    """A page with the AI SDK 7: each connection has the whole turn."""

    before: Iterable[str] = ()  # the texts of the steps that are over

    def path(self) -> str:
        self.texts = {}
        return f"/ai/{self.chat}/stream"

    def take(self, event: Json, id: str | None) -> bool:
        match event["type"]:
            case "start-step":
                self.before = list(self.texts)
            case "reset-step":
                self.texts = {key: self.texts[key] for key in self.before}
            case "text-delta":
                self._add(event["id"], event["delta"])
        return bool(event["type"] == "finish")


class AguiClient(Client):
    """A client of AG-UI, which gets only what it lacks."""

    def path(self) -> str:
        return f"/agui/{self.chat}/connect{self.place}"

    def take(self, event: Json, id: str | None) -> bool:
        self.place = f"?cursor={id}" if id else self.place
        match event["type"]:
            case "MESSAGES_SNAPSHOT":
                ids = [one["id"] for one in event["messages"]]  # of the thread; this answer follows its question
                later = event["messages"][ids.index(self.question) + 1 :]
                self.texts = {one["id"]: one.get("content") or "" for one in later}
            case "TEXT_MESSAGE_CONTENT":
                self._add(event["messageId"], event["delta"])
            case "RUN_ERROR":
                self.texts, self.place = {}, ""
        return bool(event["type"] == "RUN_FINISHED")


class OpenAiClient(Client):
    """A client of OpenAI's Responses, which gets only what it lacks; the last event has the whole."""

    def path(self) -> str:
        id = Reference(f"finish:{self.chat}", self.question, (0, 0)).id("resp_")
        return f"/v1/responses/{id}?stream=true{self.place}"

    def take(self, event: Json, id: str | None) -> bool:
        self.place = f"&starting_after={event['sequence_number']}"
        match event["type"]:
            case "response.output_text.delta":
                self._add(event["item_id"], event["delta"])
            case "response.output_item.done" if event["item"].get("status") == "incomplete":
                self.texts.pop(event["item"]["id"], None)
            case "response.failed" | "response.incomplete" | "error":
                self.texts, self.place = {}, ""
            case "response.completed":
                items = [one for one in event["response"]["output"] if one["type"] == "message"]
                self.texts = {one["id"]: "".join(block["text"] for block in one["content"]) for one in items}
        return bool(event["type"] == "response.completed")


CLIENTS: tuple[type[Client], ...] = (AiSdkPage, AguiClient, OpenAiClient)
