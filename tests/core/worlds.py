"""Random channels for the property tests: requests as clients make them, decided and folded by the real core.

You are in `tests`. A `World` is one channel: its log, its durable state, and every text each part ever had, so that
a test can tell a prefix of the truth from anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from holdfast.core.decide import decide
from holdfast.core.document import Document, Segment, Stored, document, mark_documented, restore
from holdfast.core.draft import Draft
from holdfast.core.errors import HoldfastError
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

IDS = ("m1", "m2", "m3")
LIMITS = Limits()
SERVER = Asker(id="s", is_server=True)

texts = st.text(st.sampled_from("ab é中🙂\n"), min_size=0, max_size=5)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda text: {"type": "reasoning", "text": text}, texts),
    st.builds(lambda text: {"type": "tool", "call": "c", "name": "n", "input": text}, texts),
    st.builds(lambda data: {"type": "data", "name": "bar", "data": data}, st.integers(0, 9)),
)
metas = st.dictionaries(st.sampled_from("xy"), st.one_of(st.none(), st.integers(0, 3)), max_size=2)


@dataclass(frozen=True)
class Asked:
    """A request, before it is known which generation and length the message has."""

    message_id: str
    request: Request


def weighted(*strategies: st.SearchStrategy[Request]) -> st.SearchStrategy[Request]:
    """One of `strategies`; one that stands there twice is drawn twice as often (`one_of` drops repeats)."""
    return st.integers(0, len(strategies) - 1).flatmap(lambda place: strategies[place])


def asked(message_ids: st.SearchStrategy[str]) -> st.SearchStrategy[Asked]:
    """One request; appends are by far the most frequent, as in life."""
    append = st.builds(AppendText, text=texts, part=st.sampled_from((None, 0, 0, 1, 2)))
    requests = weighted(
        append,
        append,
        append,
        append,
        st.builds(CreateMessage, status=st.sampled_from(("streaming", "streaming", "complete")), meta=metas),
        st.builds(PutPart, index=st.integers(0, 3), part=parts),
        st.builds(FinishMessage, status=st.sampled_from(("complete", "failed", "interrupted")), meta=metas),
        st.builds(TakeOver),
        st.builds(UpdateMessage, text=st.one_of(st.none(), texts), meta=metas),
        st.builds(DeleteMessage),
    )
    # Deleting ends an id for good: keep it rare, or little else happens.
    likely = requests.flatmap(
        lambda one: st.just(one) if not isinstance(one, DeleteMessage) else weighted(st.just(one), append, append)
    )
    return st.builds(Asked, message_ids, likely)


batches = st.lists(st.lists(asked(st.sampled_from(IDS)), min_size=1, max_size=6), min_size=1, max_size=14)


@dataclass
class World:
    """One channel and its history."""

    state: ChannelState = field(default_factory=lambda: ChannelState("c"))
    log: list[Entry] = field(default_factory=list)
    had: dict[tuple[str, int], list[str]] = field(default_factory=dict)  # every text a part had, in order
    now_ms: int = 0

    def commit(self, batch: list[Asked]) -> list[Entry]:
        """Decide and apply one batch; what is refused leaves no trace."""
        draft = Draft(self.state)
        self.now_ms += 1
        for one in batch:
            self.decide(draft, one)
        entries = draft.entries()
        if entries and self.state.serial == 0:
            self.state.epoch = "e1"
        for entry in entries:
            apply_entry(self.state, entry)
            self._note()
        self.log += entries
        return entries

    def decide(self, draft: Draft, one: Asked) -> HoldfastError | None:
        """Add to `draft` what `one` is granted; the refusal otherwise."""
        request = current(draft.message(one.message_id), one.request)
        try:
            decision = decide(draft, one.message_id, request, asker=SERVER, now_ms=self.now_ms, limits=LIMITS)
        except HoldfastError as error:
            return error
        for op in decision.ops:
            draft.add(op)
        return None

    def messages(self) -> dict[str, Message]:
        """What is there, as clients should see it."""
        return {one.id: one.message() for one in self.state.messages.values() if not one.deleted}

    def _note(self) -> None:
        for message in self.state.messages.values():
            for index, part in enumerate(message.parts):
                texts_had = self.had.setdefault((message.id, index), [])
                text = str(part.text) if part.text is not None else ""
                if not texts_had or texts_had[-1] != text:
                    texts_had.append(text)


def current(message: MessageState | None, request: Request) -> Request:
    """`request` with the generation that the message has, where it needs one."""
    if message is None or isinstance(request, CreateMessage | DeleteMessage):
        return request
    generation = message.generation
    match request:
        case AppendText():
            return AppendText(text=request.text, part=request.part, generation=generation)
        case PutPart():
            return PutPart(index=request.index, part=request.part, generation=generation)
        case UpdateMessage():
            return UpdateMessage(text=request.text, meta=request.meta, generation=generation)
        case FinishMessage():
            return FinishMessage(status=request.status, meta=request.meta, generation=generation)
        case _:
            return request


def fold(entries: list[Entry], state: ChannelState | None = None) -> ChannelState:
    """The state after `entries`."""
    folded = state if state is not None else ChannelState("c")
    for entry in entries:
        apply_entry(folded, entry)
    return folded


def everything(state: ChannelState) -> dict[str, object]:
    """All there is to know of a state's messages, but for how finely their marks are kept."""
    return {
        one.id: (one.message(), one.deleted, one.generation, one.edited, one.shaped, one.finished, one.taken_over)
        for one in state.messages.values()
    }


class Shelf:
    """Documents and entries as a store keeps them, without a store."""

    def __init__(self) -> None:
        self.documents: dict[str, tuple[bytes, list[Segment], int]] = {}
        self.entries: dict[str, list[Entry]] = {}

    def put(self, kept: Document) -> None:
        """Keep a document, and let go of the entries it covers."""
        _, segments, _ = self.documents.get(kept.id, (b"", [], 0))
        segments = kept.segments if kept.fresh else segments + kept.segments
        self.documents[kept.id] = (kept.head, segments, kept.version)
        self.entries[kept.id] = [one for one in self.entries.get(kept.id, []) if one.serial > kept.version]

    def put_document_of(self, message: MessageState) -> None:
        """Write the document of `message` as the committer does."""
        kept = document(message)
        self.put(kept)
        mark_documented(message, kept.version)

    def add(self, entry: Entry) -> None:
        """Keep an entry."""
        self.entries.setdefault(entry.op.id, []).append(entry)

    def restore(self, message_id: str) -> MessageState:
        """The message from what is kept."""
        head, segments, version = self.documents[message_id]
        entries = [one for one in self.entries.get(message_id, []) if one.serial > version]
        return restore(Stored(id=message_id, head=head, segments=segments, entries=entries))
