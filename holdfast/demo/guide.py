"""The guide: the agent that answers in the demo's conversations.

You are in `demo`, in the part that waits. One handler for `hub.agent`: with a model's key it passes the model on,
without one it reads from the documentation (`agent`). It goes on where a process before it ended, asks people before it
deletes, and takes up what they say meanwhile. Wording may change freely.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from holdfast.agents.backend import Writer
from holdfast.agents.turn import Steer, Turn
from holdfast.app import Hub
from holdfast.client import Client
from holdfast.core.errors import Deleted
from holdfast.core.model import Json
from holdfast.demo.agent import (
    LONGEST_SAID,
    OTHER_TEXT,
    Decision,
    Said,
    Settled,
    Step,
    asks_to_delete,
    continue_at,
    is_as_begun,
    plan,
)
from holdfast.demo.model import Model, talk

__all__ = ["APPROVE_S", "LONGEST_QUESTION", "Guide", "Sleep", "continued"]

LONGEST_QUESTION = 2_000  # code points; the page's input box holds no more
APPROVE_S = 120.0
MOST_DELETED = 50  # messages at once, when people agree
MOST_BREAKS = 20  # that are told

Sleep = Callable[[float], Awaitable[object]]  # waits for so many seconds


class Guide:
    """The handler, beside the hub or over the network: `hub` may be a client of it. `model` answers if there is one.

    `says` goes with what it tells of itself while it works.
    """

    def __init__(
        self,
        hub: Hub | Client,
        model: Model | None,
        sleep: Sleep = asyncio.sleep,
        *,
        says: dict[str, Json] | None = None,
    ) -> None:
        self._hub = hub
        self._model = model
        self._sleep = sleep
        self._says = says or {}

    async def answer(self, turn: Turn) -> None:
        """Answer one message."""
        if turn.previous is not None and turn.previous.status not in ("streaming", "interrupted"):
            return  # it was answered; only the end of the turn was not stored
        if self._model is not None and not asks_to_delete(turn.text):
            await talk(turn, self._model)
            return
        question = turn.text[:LONGEST_QUESTION]
        settled = Settled.of(turn.message.id, question)
        async with turn.reply(meta=msgspec.to_builtins(settled)) as message:
            turn.progress("using a tool", tool="documentation", **self._says)
            before = turn.previous
            if before is not None and before.id == message.id:
                settled = msgspec.convert(before.meta, Settled)
                await message.update(meta=continued(before.meta, message.length, before.author, turn.name))
            await self._say(turn, message, question, settled)

    async def _say(self, turn: Turn, message: Writer, question: str, settled: Settled) -> None:
        """Write what is missing, and what becomes settled meanwhile."""
        if not is_as_begun(question, settled):
            await message.append(OTHER_TEXT)
            return
        await self._delete(turn.channel, settled.decision)
        while True:
            said = await self._write(turn, message, plan(question, settled))
            if said:
                settled = settled.hear(said)
            elif asks_to_delete(question) and settled.decision is None:
                settled = msgspec.structs.replace(settled, decision=await self._decide(turn))
            else:
                return
            # Stored before the first word that follows from it, so that whoever goes on says the same.
            await message.update(meta=msgspec.to_builtins(settled))
            await self._delete(turn.channel, settled.decision)

    async def _write(self, turn: Turn, message: Writer, steps: list[Step]) -> list[Said]:
        """Write `steps` from where the message stands. Returns early with what people say meanwhile."""
        for number, (text, delay_s) in enumerate(continue_at(steps, message.length)):
            await self._sleep(delay_s)
            if number == 0:
                turn.progress("answering", **self._says)
            steered = await turn.steered()
            if steered:
                return [_heard(steer, message.length) for steer in steered]
            await message.append(text)
        return []

    async def _decide(self, turn: Turn) -> Decision:
        """Ask whoever is here whether what was said before may be deleted."""
        older = await self._hub.history(turn.channel, before=turn.message.created, limit=MOST_DELETED)
        gone = [message.id for message in older.messages if message.status != "streaming"]
        if not gone:
            return Decision(ok=True)
        question = f"Delete the {len(gone)} messages above?" if len(gone) > 1 else "Delete the message above?"
        answered = await turn.ask("approve", {"question": question}, timeout_s=APPROVE_S)
        by = _name(answered.data, answered.by) if answered.error is None else None
        return Decision(ok=answered.ok, by=by, gone=gone if answered.ok else [])

    async def _delete(self, channel: str, decision: Decision | None) -> None:
        for message_id in decision.gone if decision is not None else ():
            with suppress(Deleted):
                await self._hub.delete(channel, message_id)


def continued(meta: dict[str, Json], at: int, by: Json, successor: str) -> dict[str, Json]:
    """The meta that tells, for the page to show, where one writer was gone and another went on."""
    known = meta.get("continued")
    breaks = known if isinstance(known, list) else []
    if breaks and isinstance(breaks[-1], dict):
        by = breaks[-1]["successor"]  # the author is who began; who was gone this time had gone on before
    return {"continued": [*breaks, {"at": at, "by": by, "successor": successor}][-MOST_BREAKS:]}


def _heard(steer: Steer, at: int) -> Said:
    line = " ".join(steer.text.split())
    return Said(at=at, text=line[:LONGEST_SAID] or "…", by=_name(steer.data, steer.by))


def _name(data: Json, by: str | None) -> str:
    """How somebody calls themselves, or else their id."""
    name = data.get("name") if isinstance(data, dict) else None
    return " ".join(name.split())[:40] if isinstance(name, str) and name.strip() else (by or "somebody")
