"""The guide: the agent that answers in the demo's conversations.

Layer: demo.

This is the handler for `hub.agent` and `client.agent`. With the key of a model it passes the model's stream on; without
one it writes a ready answer or quotes the documentation (`agent`). It continues answers of an earlier process, asks
people before it deletes, and takes up their steering. Wording may change freely.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from tenuto.agents.backend import Writer
from tenuto.agents.turn import Steer, Turn
from tenuto.core.errors import Deleted, TenutoError
from tenuto.core.model import Json
from tenuto.demo.agent import (
    LONGEST_STEERING,
    OTHER_TEXT,
    DeleteDecision,
    Settled,
    Steering,
    Step,
    asks_to_delete,
    continue_at,
    is_as_begun,
    plan,
)
from tenuto.demo.control import IN_SERVER
from tenuto.demo.model import Model, talk

if TYPE_CHECKING:  # the server needs no client, and the agents need no server
    from tenuto.app import Hub
    from tenuto.client import Client
    from tenuto.hub.workers import AssignedTurn

__all__ = ["APPROVE_S", "LONGEST_QUESTION", "Guide", "Sleep", "continued"]

LONGEST_QUESTION = 2_000  # in code points; the page's input box accepts no more
APPROVE_S = 120.0
MOST_DELETED = 50  # limit of messages to delete when people agree
MOST_BREAKS = 20  # limit of interruptions that the answer's meta records

Sleep = Callable[[float], Awaitable[object]]  # a function that waits for a number of seconds


class Guide:
    """The handler, in the hub's process or over the network: `hub` may be a client. `model` answers if it is given.

    `details` is added to the progress that the handler reports.
    """

    def __init__(
        self,
        hub: Hub | Client,
        model: Model | None,
        sleep: Sleep = asyncio.sleep,
        *,
        details: dict[str, Json] | None = None,
    ) -> None:
        self._hub = hub
        self._model = model
        self._sleep = sleep
        self._details = details or {}
        self._restarts = 0  # number of the server's restarts while this process ran
        self._ended_with_server: set[tuple[str, str]] = set()  # channel and question id of each such turn

    def server_restarted(self) -> None:
        """Note that the server was killed and runs again; running answers record where that was."""
        self._restarts += 1

    def ended_with_server(self, turns: Iterable[AssignedTurn]) -> None:
        """Note turns whose agents ended because the whole demo did, and not by a crash of their own."""
        self._ended_with_server = {(turn.channel, turn.message_id) for turn in turns}

    async def answer(self, turn: Turn) -> None:
        """Answer one message."""
        if turn.previous is not None and turn.previous.status not in ("streaming", "interrupted"):
            return  # the answer is complete; only the end of the turn was not stored
        if self._model is not None and not asks_to_delete(turn.text):
            await talk(turn, self._model)
            return
        question = turn.text[:LONGEST_QUESTION]
        settled = Settled.of(turn.message.id, question)
        meta: dict[str, Json] = {**msgspec.to_builtins(settled), "agent": turn.name}
        async with turn.reply(meta=meta) as message:
            turn.progress("using a tool", tool="documentation", **self._details)
            before = turn.previous
            if before is not None and before.id == message.id:
                is_restart = (turn.channel, turn.message.id) in self._ended_with_server
                meta = before.meta | continued(before.meta, message.length, turn.name, is_restart=is_restart)
                await message.update(meta=meta)
            await self._write_rest(turn, message, question, meta)

    async def _write_rest(self, turn: Turn, message: Writer, question: str, meta: dict[str, Json]) -> None:
        """Write the missing text, and the text that steering and decisions add. `meta` is that of the answer."""
        settled = msgspec.convert(meta, Settled)
        if not is_as_begun(question, settled):
            await message.append(OTHER_TEXT)
            return
        await self._delete(turn.channel, settled.decision)
        while True:
            steering = await self._write(turn, message, plan(question, settled), meta)
            if steering:
                settled = settled.with_steering(steering)
            elif asks_to_delete(question) and settled.decision is None:
                settled = msgspec.structs.replace(settled, decision=await self._decide(turn))
            else:
                return
            # Stored before the first token that depends on it, so that another process continues with the same text.
            await message.update(meta=msgspec.to_builtins(settled))
            await self._delete(turn.channel, settled.decision)

    async def _write(self, turn: Turn, message: Writer, steps: list[Step], meta: dict[str, Json]) -> list[Steering]:
        """Write the rest of `steps` after the stored text. Return early with steering that arrives meanwhile."""
        restarts = self._restarts
        for number, (text, delay_s) in enumerate(continue_at(steps, message.length)):
            await self._sleep(delay_s)
            if number == 0:
                turn.progress("answering", **self._details)
            if restarts != self._restarts:
                restarts = self._restarts
                meta |= continued(meta, message.length, turn.name, is_restart=True)
                await message.update(meta={"continued": meta["continued"]})
            steered = await turn.steered(messages=False)  # False, so that another question waits for a turn of its own
            if steered:
                return [await self._steering(turn.channel, steer, message.length) for steer in steered]
            await message.append(text)
        return []

    async def _decide(self, turn: Turn) -> DeleteDecision:
        """Ask the people in the channel whether the earlier messages may be deleted."""
        older = await self._hub.history(turn.channel, before=turn.message.created, limit=MOST_DELETED)
        to_delete = [message.id for message in older.messages if message.status != "streaming"]
        if not to_delete:
            return DeleteDecision(ok=True)
        question = f"Delete the {len(to_delete)} messages above?" if len(to_delete) > 1 else "Delete the message above?"
        reply = await turn.ask("approve", {"question": question}, timeout_s=APPROVE_S)
        by = await self._name(turn.channel, reply.data, reply.by) if reply.error is None else None
        return DeleteDecision(ok=reply.ok, by=by, to_delete=to_delete if reply.ok else [])

    async def _delete(self, channel: str, decision: DeleteDecision | None) -> None:
        for message_id in decision.to_delete if decision is not None else ():
            with suppress(Deleted):
                await self._hub.delete(channel, message_id)

    async def _steering(self, channel: str, steer: Steer, at: int) -> Steering:
        line = " ".join(steer.text.split())
        return Steering(at=at, text=line[:LONGEST_STEERING] or "…", by=await self._name(channel, steer.data, steer.by))

    async def _name(self, channel: str, data: Json, by: str | None) -> str:
        """Return the name that a person sent with `data`, or has as a member of the channel, or else their id."""
        found: Json = data
        if by is not None and not _name_in(data):
            with suppress(TenutoError):  # an agent may have no connection at this moment
                present = await self._hub.members(channel)
                members = present if isinstance(present, list) else present.members
                found = next((member.data for member in members if member.id == by), None)
        return _name_in(found) or by or "a person"


def _name_in(data: Json) -> str:
    """Return the name in `data`, or an empty string."""
    name = data.get("name") if isinstance(data, dict) else None
    return " ".join(name.split())[:40] if isinstance(name, str) else ""


def continued(meta: dict[str, Json], at: int, successor: str, *, is_restart: bool) -> dict[str, Json]:
    """Return the meta that records, for the page, at which offset one writer ended and another continued.

    With `is_restart` the server was restarted, and the record has the writer as its own successor. The agent in the
    server ends only with it.
    """
    known = meta.get("continued")
    breaks = known if isinstance(known, list) else []
    by = meta.get("agent", IN_SERVER)
    one: Json = {"at": at, "by": by, "successor": by if is_restart or by == IN_SERVER else successor}
    return {"agent": successor, "continued": [*breaks, one][-MOST_BREAKS:]}
