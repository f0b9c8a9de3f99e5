"""A desk in front of one channel: requests go in, decisions come out, a batch is stored when the test says so.

You are in `tests`. Where `worlds` draws random channels, this spells out one, request by request.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from holdfast.core.decide import Decision, decide
from holdfast.core.draft import Draft
from holdfast.core.limits import Limits
from holdfast.core.model import Message
from holdfast.core.ops import Entry
from holdfast.core.requests import (
    AppendText,
    Asker,
    CreateMessage,
    DeleteMessage,
    FinishMessage,
    PutPart,
    Request,
    TakeOver,
    UpdateMessage,
)
from holdfast.core.state import ChannelState, MessageState, apply_entry

ANN = Asker(id="ann")
BOB = Asker(id="bob")
SERVER = Asker(id="ann", is_server=True)


class Desk:
    """One channel. `ask` decides on the running batch; `commit` stores it; with `batches=False` each ask is one."""

    def __init__(self, limits: Limits | None = None, *, batches: bool = False) -> None:
        self.limits = limits or Limits()
        self.batches = batches
        self.state = ChannelState("c")
        self.draft = Draft(self.state)
        self.log: list[Entry] = []
        self.now_ms = 1_000

    def ask(self, message_id: str, request: Request, asker: Asker = ANN) -> Decision:
        """Decide; a decision that stores something gets the serial of its last operation."""
        now_ms, limits = self.now_ms, self.limits
        decision = decide(self.draft, message_id, request, asker=asker, now_ms=now_ms, limits=limits)
        for op in decision.ops:
            decision = replace(decision, serial=self.draft.add(op))
        if not self.batches:
            self.commit()
        return decision

    def commit(self) -> list[Entry]:
        """Store the batch; returns its entries."""
        entries = self.draft.entries()
        if entries and not self.state.serial:
            self.state.epoch = "e1"
        for entry in entries:
            apply_entry(self.state, entry)
        self.log += entries
        self.draft = Draft(self.state)
        return entries

    def known(self, message_id: str) -> MessageState:
        """A message as it is stored."""
        known = self.state.message(message_id)
        assert known is not None
        return known

    def message(self, message_id: str) -> Message:
        """A message as it is stored, as clients see it."""
        return self.known(message_id).message()

    def text(self, message_id: str) -> str:
        """The text of a stored message."""
        return self.message(message_id).text

    # -- requests ----------------------------------------------------------------------------------------------

    def create(self, message_id: str, *, asker: Asker = ANN, **fields: Any) -> Decision:
        return self.ask(message_id, CreateMessage(**fields), asker)

    def stream(self, message_id: str, text: str | None = None, **fields: Any) -> Decision:
        """Create a streaming message."""
        return self.create(message_id, text=text, status="streaming", role="assistant", **fields)

    def append(self, message_id: str, text: str, *, asker: Asker = ANN, **fields: Any) -> Decision:
        return self.ask(message_id, AppendText(text=text, **fields), asker)

    def part(self, message_id: str, index: int, part: dict[str, Any], **fields: Any) -> Decision:
        return self.ask(message_id, PutPart(index=index, part=part, **fields))

    def update(self, message_id: str, **fields: Any) -> Decision:
        return self.ask(message_id, UpdateMessage(**fields))

    def finish(self, message_id: str, status: Any = "complete", *, asker: Asker = ANN, **fields: Any) -> Decision:
        return self.ask(message_id, FinishMessage(status=status, **fields), asker)

    def interrupt(self, message_id: str) -> Decision:
        """The server's word that the writer died."""
        return self.finish(message_id, "interrupted", asker=SERVER, generation=self.known(message_id).generation)

    def take_over(self, message_id: str, *, asker: Asker = BOB, **fields: Any) -> Decision:
        return self.ask(message_id, TakeOver(**fields), asker)

    def delete(self, message_id: str) -> Decision:
        return self.ask(message_id, DeleteMessage())


def text_part(text: str = "") -> dict[str, Any]:
    """A text part."""
    return {"type": "text", "text": text}


def tool_part(text: str = "") -> dict[str, Any]:
    """A tool part with `text` as its input."""
    return {"type": "tool", "call": "call-1", "name": "search", "input": text}


def data_part(data: object = None) -> dict[str, Any]:
    """A data part."""
    return {"type": "data", "name": "bar", "data": data}
