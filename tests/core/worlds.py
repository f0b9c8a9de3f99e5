"""Random channels for the property tests: requests as clients make them, decided and folded by the real core.

Layer: tests.

A `World` is one channel: its log, its durable state, and every text each part ever had, so that
a test can distinguish a prefix of the truth from other text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from tenuto.core.decide import decide
from tenuto.core.document import Document, Segment, Stored, document, mark_documented, restored
from tenuto.core.draft import Draft
from tenuto.core.errors import TenutoError
from tenuto.core.events import CommandReply
from tenuto.core.limits import Limits
from tenuto.core.model import Command, Message
from tenuto.core.names import COMMAND_MARK
from tenuto.core.ops import Entry
from tenuto.core.requests import (
    AppendText,
    Caller,
    ClaimTurn,
    CreateMessage,
    DeleteMessage,
    EndTurn,
    FinishMessage,
    PutPart,
    RenewLease,
    ReplyCommand,
    Request,
    SendCommand,
    SettleCommand,
    TakeOver,
    UpdateMessage,
)
from tenuto.core.state import ChannelState, CommandState, MessageState, apply_entry

IDS = ("m1", "m2", "m3")
COMMANDS = ("!k1", "!k2", "!k3", "!k4")  # a command ends with its reply, so the worlds need several
LIMITS = Limits(open_commands=3)
SERVER = Caller(id="s", is_server=True)

texts = st.text(st.sampled_from("ab é中🙂\n"), min_size=0, max_size=5)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda text: {"type": "reasoning", "text": text}, texts),
    st.builds(lambda text: {"type": "tool", "call": "c", "name": "n", "input": text}, texts),
    st.builds(lambda data: {"type": "data", "name": "bar", "data": data}, st.integers(0, 9)),
)
metas = st.dictionaries(st.sampled_from("xy"), st.one_of(st.none(), st.integers(0, 3)), max_size=2)
words = st.sampled_from((None, 1))


@dataclass(frozen=True)
class Asked:
    """A request, before the generation and length of its message are known."""

    message_id: str  # id of the message, or key of the command
    request: Request


def weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Draw each strategy as often as its weight says; `one_of` ignores one that is listed twice."""
    which = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.integers(0, len(which) - 1).flatmap(which.__getitem__)


def asked(message_ids: st.SearchStrategy[str]) -> st.SearchStrategy[Asked]:
    """Draw one request; appends are by far the most frequent, as in production."""
    append = st.builds(AppendText, text=texts, part=st.sampled_from((None, 0, 0, 1, 2)))
    create = st.builds(
        CreateMessage,
        status=st.sampled_from(("streaming", "streaming", "complete")),
        meta=metas,
        reply_to=st.sampled_from((None, *IDS)),
    )
    requests = weighted(
        (4, append),
        (1, create),
        (1, st.builds(PutPart, index=st.integers(0, 3), part=parts)),
        (1, st.builds(FinishMessage, status=st.sampled_from(("complete", "failed", "interrupted")), meta=metas)),
        (1, st.builds(TakeOver)),
        (1, st.builds(UpdateMessage, text=st.one_of(st.none(), texts), meta=metas)),
        (1, st.builds(UpdateMessage, text=st.one_of(st.none(), texts), supersede=st.integers(0, 2))),
        (1, st.builds(DeleteMessage)),
        (
            1,
            st.builds(ClaimTurn, generation=st.just(0), lease_s=st.just(15.0))
            | st.builds(EndTurn, generation=st.just(1)),
        ),
        (1, st.builds(RenewLease, lease_s=st.sampled_from((15.0, 30.0)))),
    )
    # Deleting ends an id for good: keep it rare, or other requests find no message.
    likely = requests.flatmap(
        lambda one: st.just(one) if not isinstance(one, DeleteMessage) else weighted((1, st.just(one)), (2, append))
    )
    about_messages = st.builds(Asked, message_ids, likely)
    return st.integers(0, 4).flatmap(lambda luck: about_messages if luck else about_commands(message_ids))


def about_commands(message_ids: st.SearchStrategy[str]) -> st.SearchStrategy[Asked]:
    """Draw a command, a reply to one, or its settlement by the server."""
    name = st.sampled_from(("cancel", "steer", "approve"))
    requests = weighted(
        (2, st.builds(SendCommand, name=name, target=message_ids, data=words)),
        (1, st.builds(ReplyCommand, ok=st.booleans(), data=words, error=words)),
        (1, st.builds(SettleCommand, is_expired=st.booleans())),
    )
    return st.builds(Asked, st.sampled_from(COMMANDS), requests)


batches = st.lists(st.lists(asked(st.sampled_from(IDS)), min_size=1, max_size=6), min_size=1, max_size=14)


@dataclass
class World:
    """One channel and its history."""

    state: ChannelState = field(default_factory=lambda: ChannelState("c"))
    truth: ChannelState = field(default_factory=lambda: ChannelState("c"))  # another fold of the log, to compare with
    log: list[Entry] = field(default_factory=list)
    had: dict[tuple[str, int], list[str]] = field(default_factory=dict)  # every text a part had, in order
    now_ms: int = 0

    def commit(self, batch: list[Asked]) -> list[Entry]:
        """Decide and apply one batch; a refused request leaves no trace."""
        draft = Draft(self.state)
        self.now_ms += 1
        for one in batch:
            self.decide(draft, one)
        entries = draft.entries()
        if entries and self.state.serial == 0:
            self.state.epoch = "e1"
        for entry in entries:
            apply_entry(self.state, entry)
            apply_entry(self.truth, entry)
            self._note()
        self.log += entries
        return entries

    def decide(self, draft: Draft, one: Asked) -> TenutoError | None:
        """Add the operations of `one` to `draft`; returns the refusal if there is one."""
        request = begun(draft, one)
        if not one.message_id.startswith(COMMAND_MARK):
            request = current(draft.message(one.message_id), request)
        try:
            decision = decide(
                draft, one.message_id, request, caller=SERVER, now_ms=self.now_ms, limits=LIMITS, is_served=True
            )
        except TenutoError as error:
            return error
        for op in decision.ops:
            draft.add(op)
        return None

    def messages(self) -> dict[str, Message]:
        """Return the messages that clients should see."""
        return {one.id: one.message() for one in self.truth.messages.values() if not one.deleted}

    def commands(self) -> dict[str, Command]:
        """Return all commands since the beginning, as clients should see them."""
        return {one.id[1:]: one.command() for one in self.truth.commands.values()}

    def pending(self) -> dict[str, Command]:
        """Return the commands that wait for a reply."""
        return {one.id[1:]: one.command() for one in self.truth.pending_commands()}

    def replies(self) -> list[CommandReply]:
        """Return all replies, as clients should receive them, in order."""
        replies = [
            CommandReply(
                serial=one.reply_serial,
                id=one.id[1:],
                ok=one.reply.ok,
                data=one.reply.data,
                error=one.reply.error,
                from_=one.reply.by,
            )
            for one in self.truth.commands.values()
            if one.reply is not None
        ]
        return sorted(replies, key=lambda reply: reply.serial)

    def _note(self) -> None:
        for message in self.truth.messages.values():
            for index, part in enumerate(message.parts):
                texts_had = self.had.setdefault((message.id, index), [])
                text = str(part.text) if part.text is not None else ""
                if not texts_had or texts_had[-1] != text:
                    texts_had.append(text)


def world_of(world_batches: list[list[Asked]]) -> World:
    """Return a world after `world_batches`."""
    world = World()
    for batch in world_batches:
        world.commit(batch)
    return world


worlds = batches.map(world_of)


def begun(draft: Draft, one: Asked) -> Request:
    """Return the drawn request, or the one that creates its missing message or command. (Else most are refused.)"""
    is_there = draft.thing(one.message_id) is not None
    match one.request:
        case CreateMessage() | SendCommand():
            return one.request
        case ReplyCommand() | SettleCommand() if not is_there:
            return SendCommand(name="steer")
        case _ if not is_there:
            is_waiting = isinstance(one.request, ClaimTurn | EndTurn)
            return CreateMessage(text="", status="complete" if is_waiting else "streaming")
        case _:
            return one.request


def current(message: MessageState | None, request: Request) -> Request:
    """Return `request` with the current generation of the message or its turn, if it needs one."""
    if message is None:
        return request
    if isinstance(request, ClaimTurn | EndTurn):
        return replace(request, generation=message.claim.generation if message.claim is not None else 0)
    if isinstance(request, AppendText | PutPart | UpdateMessage | FinishMessage | RenewLease):
        return replace(request, generation=message.generation)
    return request


def fold(entries: list[Entry], state: ChannelState | None = None) -> ChannelState:
    """Return the state after `entries`."""
    folded = state if state is not None else ChannelState("c")
    for entry in entries:
        apply_entry(folded, entry)
    return folded


def everything(state: ChannelState) -> dict[str, object]:
    """Return all fields of a state's messages and commands, except the marks of their texts."""
    messages = {one.id: everything_of_message(one) for one in state.messages.values()}
    return {**messages, **{one.id: everything_of_command(one) for one in state.commands.values()}}


def everything_of_message(message: MessageState) -> dict[str, object]:
    """Return all fields of a message, except the marks of its texts and the state of its document."""
    left_out = ("parts", "documented", "undocumented_bytes", "moved_at", "alive_at")
    fields = {name: getattr(message, name) for name in MessageState.__slots__ if name not in left_out}
    return {**fields, "parts": [(part.value(), part.opened, part.changed, part.length) for part in message.parts]}


def everything_of_command(command: CommandState) -> dict[str, object]:
    """Return all fields of a command."""
    left_out = "stored_bytes"  # of commands read from a store alone
    return {name: getattr(command, name) for name in CommandState.__struct_fields__ if name != left_out}


def thing(state: ChannelState, key: str) -> MessageState | CommandState:
    """Return the message or command `key`."""
    found = state.messages.get(key) or state.commands.get(key)
    assert found is not None
    return found


class Shelf:
    """Documents and entries as a store keeps them, without a store."""

    def __init__(self) -> None:
        self.documents: dict[str, tuple[bytes, list[Segment], int]] = {}
        self.entries: dict[str, list[Entry]] = {}

    def put(self, kept: Document) -> None:
        """Keep a document, and drop the entries that it covers."""
        _, segments, _ = self.documents.get(kept.id, (b"", [], 0))
        segments = kept.segments if kept.fresh else segments + kept.segments
        self.documents[kept.id] = (kept.head, segments, kept.version)
        self.entries[kept.id] = [one for one in self.entries.get(kept.id, []) if one.serial > kept.version]

    def put_document_of(self, one: MessageState | CommandState) -> None:
        """Write the document of a message or command as the committer does."""
        kept = document(one)
        self.put(kept)
        if isinstance(one, MessageState):
            mark_documented(one, kept.version)

    def add(self, entry: Entry) -> None:
        """Keep an entry."""
        self.entries.setdefault(entry.op.id, []).append(entry)

    def stored(self, key: str) -> Stored:
        """Return the stored form of a message or command."""
        head, segments, version = self.documents[key]
        entries = [one for one in self.entries.get(key, []) if one.serial > version]
        return Stored(id=key, head=head, segments=segments, entries=entries)

    def restore(self, message_id: str) -> MessageState:
        """Return the message restored from its stored form."""
        (one,) = restored([self.stored(message_id)])
        assert isinstance(one, MessageState)
        return one

    def restore_all(self) -> list[MessageState | CommandState]:
        """Return all messages and commands, restored."""
        return restored(self.stored(key) for key in self.documents)
