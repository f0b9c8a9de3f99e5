"""The state of one message, of its turn, and of one command.

Layer: core. `state` folds entries into these records; they change nothing themselves.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from tenuto.core.model import APPENDABLE, STEP_NAME, Json, Message, Part
from tenuto.core.model import Command as SentCommand
from tenuto.core.names import command_id
from tenuto.core.ops import Command, Create, Reply, WriterIdentity
from tenuto.core.text import FIRST_BYTES, PartState, Text

# requests remembered per message, so that a repeated request with an id is recognised (`docs/protocol.md`, 8.2)
KEPT_REQUESTS = 16


DAMAGED = "damaged"  # reason of a message that a store can no longer read; a command has it as its error's code


class ClaimState(NamedTuple):
    """The state of a message's turn: waiting for an agent, taken by one, or over."""

    state: str  # pending, taken, done or cancelled
    generation: int = 0  # number of the last attempt; 0 before the first
    by: str | None = None
    node: str | None = None
    lease_ms: int = 0
    within: str | None = None  # id of the message whose turn has taken this message in; its attempt ends both turns
    within_generation: int = 0  # the attempt that has taken this message in; if it is lost, this message waits again
    round_from: int = 0  # serial of the `regenerate` that began this round of attempts; 0 for the first round
    # number of times that the node has claimed this attempt again before a handler began it, or, on a shared store,
    # that its remote worker has renewed its lease
    confirmed: int = 0
    spared: int = 0  # number of attempts of this round that were handed over, and do not count

    @property
    def is_open(self) -> bool:
        return self.state in ("pending", "taken")


_OF_CREATE = ("id", "role", "author", "status", "meta", "parent", "reply_to", "digest", "writer")
CLAIMED = tuple(name for name in ClaimState._fields if name != "round_from")  # the fields that a `Claim` has, too


@dataclass(slots=True, eq=False, kw_only=True)
class MessageState:
    """The state of one message: the fold of its entries."""

    id: str
    role: str
    author: str | None
    status: str
    reason: str | None = None
    meta: dict[str, Json]
    parent: str | None
    reply_to: str | None
    created: int
    version: int  # serial of the last visible change
    last: int  # serial of the last entry of any kind
    created_at: int
    updated_at: int
    # time of the last claim or takeover since the message was loaded; neither head nor clients have it
    moved_at: int = 0
    # time of the last sign of life of the remote writer, or of the agent that has the turn; 0: unknown
    alive_at: int
    digest: bytes
    writer: WriterIdentity | None
    generation: int = 1
    claim: ClaimState | None
    deleted: bool = False
    edited: int  # serial of the last create or update operation
    # serial of the last create, update or part; a viewer older than it needs more than the missing text
    shaped: int
    finished: int = 0  # serial of the last finish operation
    finished_as: tuple[str, str | None] = ("", None)  # status and reason of the last finish
    taken_over: int = 0  # serial of the last takeover
    # recent requests: id, serial, generation
    requests: deque[tuple[str, int, int]] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    parts: list[PartState] = field(default_factory=list)
    size_bytes: int = 0  # size of the text and of all fields, in bytes of UTF-8
    documented: int = 0  # version of the message that the store's document contains
    undocumented_bytes: int = 0  # size of the text and fields that arrived after that document was stored

    @classmethod
    def begun(cls, op: Create, serial: int) -> MessageState:
        """Return the state after the entry that created the message."""
        fields: dict[str, Any] = {name: getattr(op, name) for name in _OF_CREATE}
        fields |= dict.fromkeys(("created_at", "updated_at", "alive_at"), op.at_ms)
        fields |= dict.fromkeys(("created", "version", "last", "edited", "shaped"), serial)
        message = cls(**fields, claim=ClaimState("pending") if op.is_pending else None)
        set_parts(message, op.parts, serial)
        message.undocumented_bytes = message.size_bytes
        return message

    def fork(self) -> MessageState:
        """Return a copy; changes to it leave this message as it is. Copies the head, not the text."""
        copy = MessageState.__new__(MessageState)
        for name in MessageState.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.parts = [part.fork() for part in self.parts]
        copy.requests = self.requests.copy()
        return copy

    @property
    def is_streaming(self) -> bool:
        return self.status == "streaming" and not self.deleted

    @property
    def is_open(self) -> bool:
        """Return whether the message streams, or its turn is waiting or taken."""
        return not self.deleted and (self.status == "streaming" or (self.claim is not None and self.claim.is_open))

    @property
    def is_damaged(self) -> bool:
        """Return whether this stands for a message that the store cannot read (`document.damaged_head`)."""
        return self.reason == DAMAGED and self.status == "failed" and not self.created_at and not self.deleted

    @property
    def is_pending(self) -> bool:
        """Return whether the message waits for an agent to take its turn."""
        return self.claim is not None and self.claim.state == "pending" and not self.deleted

    @property
    def is_taken(self) -> bool:
        """Return whether an attempt has the message's own turn."""
        claim = self.claim
        return claim is not None and claim.state == "taken" and claim.within is None and not self.deleted

    @property
    def text_parts(self) -> list[int]:
        """Return the indexes of the text parts, which an append that names no part continues."""
        return [index for index, part in enumerate(self.parts) if part.fields["type"] == "text"]

    def message(self) -> Message:
        """Return the message in the form that clients see."""
        return Message(
            id=self.id,
            role=self.role,
            author=self.author,
            status=self.status,
            reason=self.reason,
            parts=[part.value() for part in self.parts],
            meta=self.meta,
            parent=self.parent,
            reply_to=self.reply_to,
            created=self.created,
            version=self.version,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )

    def cost_bytes(self) -> int:
        """Return an estimate of the memory that this message uses."""
        texts = sum(part.text.cost_bytes() for part in self.parts if isinstance(part.text, Text))
        firsts = FIRST_BYTES * sum(part.first is not None for part in self.parts)
        return 1_000 + self.size_bytes + texts + firsts


def set_parts(message: MessageState, parts: list[Part], serial: int) -> None:
    """Replace all parts of `message`."""
    message.parts = [PartState(part, serial, serial) for part in parts]
    message.size_bytes = sum(part_bytes(part) for part in parts)


class CommandState(Struct, eq=False, kw_only=True):
    """The state of one command: the fold of its entries."""

    sent: Command
    created: int
    reply: Reply | None = None
    reply_serial: int = 0  # serial of the reply; 0 while there is none
    stored_bytes: int = 0  # size of the data that was read from the store: a step's result may be large

    @property
    def id(self) -> str:
        """Return the id, with its prefix `!`."""
        return self.sent.id

    @property
    def is_damaged(self) -> bool:
        """Return whether this stands for a command that the store cannot read (`document.damaged_head`)."""
        return self.sent.name == DAMAGED and not self.sent.at_ms

    @property
    def version(self) -> int:
        """Return the serial of the command's last entry."""
        return self.reply_serial or self.created

    @property
    def updated_at(self) -> int:
        """Return the time of the command or of its reply, in ms since 1970."""
        return max(self.sent.at_ms, self.reply.at_ms) if self.reply is not None else self.sent.at_ms

    @property
    def is_step(self) -> bool:
        """Return whether this keeps a step of a turn, which no viewer gets."""
        return self.sent.name == STEP_NAME

    @property
    def is_open(self) -> bool:
        """Return whether the command still waits for its reply; a step waits for none, since its turn is open."""
        return self.reply is None and not self.is_step

    def command(self) -> SentCommand:
        """Return the command in the form that clients see."""
        sent = self.sent
        return SentCommand(
            id=command_id(sent.id),
            name=sent.name,
            target=sent.target,
            data=sent.data,
            from_=sent.by,
            expires_at=sent.expires_ms,
        )


def utf8_len(text: str) -> int:
    """Return the length of `text` in bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


# the field of a part that may be long, by type: it is counted without being encoded
_LONG = {**APPENDABLE, "file": "url"}


def part_bytes(part: Part) -> int:
    """Return the size of a part: its long text, plus its other fields as JSON.

    The size does not depend on how the text came, so removing a part subtracts exactly the bytes that it added.
    """
    key = _LONG.get(part["type"], "")
    if not isinstance(text := part.get(key, ""), str):  # a file of another form
        return len(msgspec.json.encode(part))
    size = len(msgspec.json.encode({name: value for name, value in part.items() if name != key}))
    return size + (len(text) if text.isascii() else utf8_len(text))
