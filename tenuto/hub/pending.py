"""Items that wait for the committer: requests, with the component that receives their results.

Layer: hub.

An item holds requests of one channel that the committer decides in order and stores together. `Waiting` is one request
with a callback, `MessageWriter` all accepted text of one writer. `Decided` holds the decisions on an item until their
commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from tenuto.core.catch_up import reply_to
from tenuto.core.decision import Decision
from tenuto.core.errors import TenutoError
from tenuto.core.events import encode_json
from tenuto.core.message_state import utf8_len
from tenuto.core.ops import Append, Entry
from tenuto.core.requests import Caller, ClaimTurn, CreateMessage, Request, SendCommand, UpdateMessage, needs
from tenuto.hub.channel import Channel
from tenuto.hub.results import Done, Result


class Ask(Struct, gc=False):
    """One request about one message or command. `request` gets the offset `at` of its first decision, and keeps it."""

    key: str
    request: Request
    caller: Caller
    is_unclear: bool = False  # True: it may be stored, because an earlier commit with it has an unknown outcome


class Item(Protocol):
    """Requests of one channel that the committer decides and returns together."""

    channel: str
    size_bytes: int
    ids: tuple[str, ...]  # ids of the messages and commands that the decision needs in memory
    is_beginning: bool  # True: a message or an attempt at a turn begins with it

    def asks(self) -> Sequence[Ask]:
        """Return the requests in order. The committer calls this once per decision."""

    def decided(self, decided: Decided) -> None:
        """Receive the outcomes of the last `asks`, after their commit."""

    def failed(self, error: TenutoError) -> None:
        """Receive the error of a commit that stored none of these requests."""


class Waiting:
    """One request; `done` is called with its result or error."""

    __slots__ = ("_ask", "_done", "_is_repeat", "channel", "ids", "is_beginning", "size_bytes")

    def __init__(
        self, channel: str, key: str, request: Request, caller: Caller, done: Done, *, is_repeat: bool = False
    ) -> None:
        self.channel = channel
        self.size_bytes = _size_of(request)
        self.ids = needs(key, request, caller)
        is_claim = isinstance(request, ClaimTurn) and not request.renews  # a renewal is no beginning
        self.is_beginning = is_claim or isinstance(request, CreateMessage)
        self._is_repeat = is_repeat
        self._ask = Ask(key, request, caller, is_unclear=is_repeat)
        self._done = done

    @property
    def became_unclear(self) -> bool:
        """Return whether a commit with this request had an unknown outcome, so that it may be stored."""
        return self._ask.is_unclear and not self._is_repeat

    def asks(self) -> Sequence[Ask]:
        return (self._ask,)

    def decided(self, decided: Decided) -> None:
        self._done(decided.result())

    def failed(self, error: TenutoError) -> None:
        self._done(error)


class DocumentDue:
    """A request of the store: write the document of a message, so that the store can release the message's entries."""

    __slots__ = ("channel", "ids", "is_beginning", "message_id", "size_bytes")

    def __init__(self, channel: str, message_id: str) -> None:
        self.channel = channel
        self.message_id = message_id
        self.ids: tuple[str, ...] = (message_id,)
        self.size_bytes = 0
        self.is_beginning = False

    def asks(self) -> Sequence[Ask]:
        return ()

    def decided(self, decided: Decided) -> None:
        pass

    def failed(self, error: TenutoError) -> None:
        pass  # no retry needed: the store will request the document again


Outcome = tuple[Decision, int] | TenutoError  # a decision with the serial of its last operation, or the refusal


class Decided(Struct):
    """The decisions on an item: an outcome for each request, up to the first refusal."""

    channel: Channel
    item: Item
    asks: Sequence[Ask]
    outcomes: Sequence[Outcome] = ()
    # the last outcome if it is a refusal; later requests of the item were not decided
    refusal: TenutoError | None = None
    grown: Entry | None = None  # the entry, if `plain_append` decided the only request; it replaces `outcomes`

    @property
    def granted(self) -> Sequence[Ask]:
        """Return the decisions on the accepted requests."""
        return self.asks if self.refusal is None else self.asks[:-1]

    def result(self) -> Result | TenutoError:
        """Return the result of the first request.

        Call it after the commit. It is built on demand, since most items need none.
        """
        if self.grown is not None:
            op = self.grown.op
            assert type(op) is Append
            decision = Decision(ops=(op,), part=op.part, length=op.at + len(op.text))
            return _result(self.channel, self.asks[0], decision, self.grown.serial)
        outcome = self.outcomes[0]
        return outcome if isinstance(outcome, TenutoError) else _result(self.channel, self.asks[0], *outcome)


def _result(channel: Channel, ask: Ask, decision: Decision, serial: int) -> Result:
    message, command, reply = None, None, None
    is_new = bool(decision.ops)
    if isinstance(ask.request, SendCommand):
        sent = channel.state.command(ask.key)
        command = sent.command() if sent is not None else None
        reply = reply_to(sent) if sent is not None else None
    elif isinstance(ask.request, CreateMessage | UpdateMessage):
        known = channel.state.message(ask.key)
        message = known.message() if known is not None and not known.deleted else None
        # A commit with an unknown outcome had stored the message for this same request, so its result is `created`.
        is_new = is_new or (ask.is_unclear and known is not None and known.writer == ask.caller.writer)
    return Result(
        serial=serial,
        cursor=str(channel.state.cursor),
        created=is_new,
        message=message,
        command=command,
        reply=reply,
        generation=decision.generation,
        part=decision.part,
        length=decision.length,
        lengths=decision.lengths,
        is_blind=not ask.caller.may_read,
    )


def _size_of(request: Request) -> int:
    """Return an estimate of the bytes that a waiting request holds."""
    size = 200
    text = getattr(request, "text", None)
    if isinstance(text, str):
        size += utf8_len(text)
    for name in ("parts", "part", "meta", "asked", "data", "error"):
        value = getattr(request, name, None)
        if value and not isinstance(value, int):
            try:
                size += len(encode_json(value))
            except (TypeError, ValueError, OverflowError, RecursionError):
                continue  # the decision will refuse this request
    return size
