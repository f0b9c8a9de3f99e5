"""A harness for one channel: a test sends requests, reads decisions, and stores the batch when it wants to.

Layer: tests.

`worlds` draws random channels; this harness builds one request by request.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from tenuto.core.decide import decide
from tenuto.core.draft import Decision, Draft
from tenuto.core.limits import Limits
from tenuto.core.model import Message
from tenuto.core.names import command_key
from tenuto.core.ops import Entry, WriterIdentity
from tenuto.core.requests import (
    AppendText,
    Caller,
    ClaimTurn,
    CreateMessage,
    DeleteMessage,
    EndTurn,
    FinishMessage,
    PutPart,
    ReplyCommand,
    Request,
    SendCommand,
    SettleCommand,
    TakeOver,
    UpdateMessage,
)
from tenuto.core.state import ChannelState, CommandState, MessageState, apply_entry

ANN = Caller(id="ann")
BOB = Caller(id="bob")
ADMIN = Caller(id="root", is_admin=True)
NAMELESS = Caller()
PERSON = Caller(id="eve", may_write=False)  # a caller that may not write answers
SERVER = Caller(id="ann", is_server=True)
APP = Caller(id="app", writer=WriterIdentity(by="app", node="here"), is_app=True)
AGENT = Caller(id="agent", writer=WriterIdentity(by="agent", node="here"), is_server=True)  # the hub, for its turns


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


class LogHarness:
    """One channel. `ask` decides on the running batch, `commit` stores it; with `batches=False` each is a batch."""

    def __init__(self, limits: Limits | None = None, *, batches: bool = False) -> None:
        self.limits = limits or Limits()
        self.batches = batches
        self.state = ChannelState("c")
        self.draft = Draft(self.state)
        self.log: list[Entry] = []
        self.now_ms = 1_000
        self.is_served = False  # True: agents serve this channel

    def ask(self, message_id: str, request: Request, caller: Caller = ANN) -> Decision:
        """Decide; a decision that stores something gets the serial of its last operation, unless it names another."""
        decision = decide(
            self.draft,
            message_id,
            request,
            caller=caller,
            now_ms=self.now_ms,
            limits=self.limits,
            is_served=self.is_served,
        )
        serials = [self.draft.add(op) for op in decision.ops]
        if serials:
            decision = replace(decision, serial=serials[decision.result_op])
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
        """Return a message as it is stored."""
        known = self.state.messages.get(message_id)
        assert known is not None
        return known

    def known_command(self, command_id: str) -> CommandState:
        """Return a command as it is stored."""
        known = self.state.commands.get(command_key(command_id))
        assert known is not None
        return known

    def message(self, message_id: str) -> Message:
        """Return a stored message as clients see it."""
        return self.known(message_id).message()

    def text(self, message_id: str) -> str:
        """Return the text of a stored message."""
        return self.message(message_id).text

    # -- requests ----------------------------------------------------------------------------------------------

    def create(self, message_id: str, *, caller: Caller = ANN, **fields: Any) -> Decision:
        return self.ask(message_id, CreateMessage(**fields), caller)

    def stream(self, message_id: str, text: str | None = None, **fields: Any) -> Decision:
        """Create a streaming message."""
        return self.create(message_id, text=text, status="streaming", role="assistant", **fields)

    def append(self, message_id: str, text: str, *, caller: Caller = ANN, **fields: Any) -> Decision:
        return self.ask(message_id, AppendText(text=text, **fields), caller)

    def part(
        self, message_id: str, index: int, part: dict[str, Any], *, caller: Caller = ANN, **fields: Any
    ) -> Decision:
        return self.ask(message_id, PutPart(index=index, part=part, **fields), caller)

    def update(self, message_id: str, *, caller: Caller = ANN, **fields: Any) -> Decision:
        return self.ask(message_id, UpdateMessage(**fields), caller)

    def finish(self, message_id: str, status: Any = "complete", *, caller: Caller = ANN, **fields: Any) -> Decision:
        return self.ask(message_id, FinishMessage(status=status, **fields), caller)

    def interrupt(self, message_id: str) -> Decision:
        """Interrupt the message as the server does after its writer died."""
        return self.finish(message_id, "interrupted", caller=SERVER, generation=self.known(message_id).generation)

    def take_over(self, message_id: str, *, caller: Caller = BOB, **fields: Any) -> Decision:
        return self.ask(message_id, TakeOver(**fields), caller)

    def delete(self, message_id: str, *, caller: Caller = ANN) -> Decision:
        return self.ask(message_id, DeleteMessage(), caller)

    def command(self, command_id: str, name: str = "steer", *, caller: Caller = ANN, **fields: Any) -> Decision:
        return self.ask(command_key(command_id), SendCommand(name=name, **fields), caller)

    def cancel(self, command_id: str, target: str | None, *, caller: Caller = ANN) -> Decision:
        return self.command(command_id, "cancel", target=target, caller=caller)

    def reply(self, command_id: str, *, caller: Caller = ANN, **fields: Any) -> Decision:
        return self.ask(command_key(command_id), ReplyCommand(**fields), caller)

    def settle(self, command_id: str, *, is_expired: bool = False) -> Decision:
        """Settle a command without a reply, as the server does."""
        return self.ask(command_key(command_id), SettleCommand(is_expired=is_expired), SERVER)

    def claim(self, message_id: str, generation: int = 0, *, caller: Caller = AGENT, lease_s: float = 0.0) -> Decision:
        return self.ask(message_id, ClaimTurn(generation=generation, lease_s=lease_s), caller)

    def end(self, message_id: str, generation: int = 1, state: Any = "done", *, caller: Caller = AGENT) -> Decision:
        return self.ask(message_id, EndTurn(generation=generation, state=state), caller)


def text_part(text: str = "") -> dict[str, Any]:
    """A text part."""
    return {"type": "text", "text": text}


def tool_part(text: str = "") -> dict[str, Any]:
    """Return a tool part with `text` as its input."""
    return {"type": "tool", "call": "call-1", "name": "search", "input": text}


def served_log(*message_ids: str) -> LogHarness:
    """Return the log of a channel that agents serve, with user messages that wait for an agent."""
    log = LogHarness()
    log.is_served = True
    for message_id in message_ids:
        log.create(message_id, text="question")
    return log


def data_part(data: object = None) -> dict[str, Any]:
    """A data part."""
    return {"type": "data", "name": "bar", "data": data}
