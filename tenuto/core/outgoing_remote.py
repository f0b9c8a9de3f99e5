"""A message that is written over a network: the rules that a connection adds to `Outgoing`.

Layer: core.

Three rules make it safe to lose a connection, a response, or the log on the server:

- Each request names its offset (`at`) or itself (`request`), so it can be sent again. Only requests that do not depend
  on each other are in flight together, because the server refuses each of them on its own.
- After a refusal that passes, no request is sent until all in flight have their response; then the refused ones go
  again, first.
- After each new connection, and whenever the server knows less than it has acknowledged, the writer reads the message
  before it sends more. In another epoch, or if stored text is missing, it writes the missing content again from its
  copy of all accepted content.
"""

from __future__ import annotations

from tenuto.core.errors import Finished, Gap, Mismatch, NoPart, NotFound, TenutoError
from tenuto.core.limits import Limits
from tenuto.core.model import ATTEMPT, TRIED, Json, Message, Part, check_json
from tenuto.core.outgoing import Outgoing, OutgoingRequest, Owner, part_of, text_of
from tenuto.core.requests import FinishMessage, UpdateMessage
from tenuto.core.state import part_bytes
from tenuto.core.text import PartState

FRAME_BYTES = 1024  # estimated size of a request without its part
MAX_REFILLS = 3  # refills without a stored request in between; more than these mean a bug in the client or the server

# The server has less of the message than it has acknowledged, or other content.
LOST = (Gap, Mismatch, NoPart, NotFound)


class RemoteOutgoing(Outgoing):
    """A message that is written over a network. It keeps a copy of all content until the end."""

    max_in_flight = 8

    def __init__(self, message_id: str, limits: Limits, nonce: str) -> None:
        super().__init__(message_id, limits, nonce)
        self.epoch = ""  # epoch of the log in which the requests were stored
        self.trouble: TenutoError | None = None  # a temporary failure; while it is set, no request is sent
        self._failed: list[OutgoingRequest] = []  # requests that failed and will be sent again
        self._refills = 0

    @property
    def text(self) -> str:
        """Return the accepted text of all text parts."""
        texts = [str(one.kept.text) if one.type == "text" and one.kept is not None else "" for one in self._parts]
        if self._texts and self._parts[self._texts_part].type == "text":
            texts[self._texts_part] += "".join(self._texts)
        return "".join(texts)

    @property
    def is_lost(self) -> bool:
        """Return whether the server lost acknowledged content; the writer must then read the message and refill it."""
        return isinstance(self.trouble, LOST)

    def accept_part(self, part: Part, index: int | None = None, owner: Owner | None = None) -> int:
        """Open a part (without `index`) or replace one. Return its index. It must fit into one request."""
        self.check_open()
        limits = self.limits
        check_json(part, limits.request_bytes - FRAME_BYTES, "part", depth=limits.depth)
        return super().accept_part(part, index, owner)

    # -- responses ---------------------------------------------------------------------------------------------

    def requests_to_send(self, max_bytes: int) -> list[OutgoingRequest]:
        """Put requests in flight as `Outgoing` does, but none while `trouble` is set. Return the newly added ones."""
        if self.trouble is not None:
            return []
        before = len(self.in_flight)
        return super().requests_to_send(max_bytes)[before:]

    def request_stored(self, one: OutgoingRequest) -> None:
        """Note that `one`, which was in flight, is stored."""
        if self.is_settled:
            return
        self.in_flight.remove(one)
        self.unstored_bytes -= one.size_bytes
        self._refills = 0
        self._take_back()
        self.stored(0)  # if this was the end, the message has ended

    def request_failed(self, one: OutgoingRequest, error: TenutoError) -> None:
        """Note that the server refused `one`, or that its outcome is unknown. After a final refusal, refuse all."""
        if self.is_settled:
            return
        if not (error.retry or isinstance(error, LOST)):
            self.refuse(error)
            return
        self.in_flight.remove(one)
        one.was_sent = True
        self._failed.append(one)
        # Requests after the first failed one must be repeated with it: text after refused text would leave a gap.
        self.trouble = self.trouble or error
        self._take_back()

    def disconnected(self, error: TenutoError) -> None:
        """Send no request until the message has been read on a new connection."""
        self.trouble = self.trouble or error

    def resume(self) -> None:
        """Send requests again, beginning with those that failed."""
        self.trouble = None

    def seen(self, stored: Message, epoch: str) -> bool:
        """Go on from the message as the server has it, and send what it lacks. Return False if it was not compared."""
        if epoch == self.epoch and not self.is_lost:
            self.trouble = None
            return False
        # a refill because of a new epoch is neither side's error, so it does not count towards MAX_REFILLS
        self._refills = self._refills + 1 if epoch == self.epoch else 0
        if self._refills > MAX_REFILLS and self.trouble is not None:
            self.refuse(self.trouble)
            return False
        self.epoch = epoch
        self._refill(stored)
        return True

    def _take_back(self) -> None:
        """Queue the failed requests before all others once no request is in flight."""
        if not self.in_flight:
            self._queue.extendleft(reversed(self._failed))
            self._failed.clear()

    def _must_wait(self, next_one: OutgoingRequest) -> bool:
        return any(_depends(next_one, one) for one in self.in_flight)

    # -- writing missing content again -------------------------------------------------------------------------

    def _refill(self, stored: Message) -> None:
        """Replace the queue by requests for all accepted content that `stored` lacks."""
        self._gather()
        end = self._queue.pop() if self._queue and isinstance(self._queue[-1].request, FinishMessage) else None
        self._queue.clear()
        parts = self._supersede_again(list(stored.parts))
        for index in range(len(self._parts)):
            if self._parts[index].is_open:
                self._refill_part(index, parts[index] if index < len(parts) else None)
        meta: dict[str, Json] = dict.fromkeys(stored.meta.keys() - self.meta.keys())
        meta |= {key: value for key, value in self.meta.items() if stored.meta.get(key) != value}
        if meta:
            self._put_update(meta, 1)  # 1: a nominal size; sizes only bound how much is queued and in flight
        is_ended = end is not None and isinstance(end.request, FinishMessage) and end.request.status == stored.status
        if stored.status != "streaming" and (self._queue or not is_ended):
            self.refuse(Finished(f"message {self.id!r} is {stored.status!r}; only a 'streaming' one can be written"))
            return
        if end is not None:
            self._queue.append(end)
        self.unstored_bytes = sum(one.size_bytes for one in self._queue)
        self.trouble = None

    def _supersede_again(self, stored: list[Part]) -> list[Part]:
        """Queue requests for failed attempts that `stored`, the server's parts, still shows. Return the parts then."""
        for index, part in enumerate(self._parts):
            if part.type == ATTEMPT and index < len(stored) and stored[index]["type"] != ATTEMPT:
                self._put_supersede(index, [], None)
                attempts = [one for one in stored[index:] if one["type"] == ATTEMPT]
                stored[index:] = [*attempts, {"type": ATTEMPT, "parts": []}]
        return stored

    def _refill_part(self, index: int, stored: Part | None) -> None:
        """Queue the content of part `index` that `stored`, the server's part, lacks; None: it has no such part."""
        part = self._parts[index]
        # None: it must be put anew
        length = _stored_length(part.kept, stored) if stored is not None and part.kept is not None else None
        if length is None and part.type == ATTEMPT:  # only the server makes such a part; an empty text takes its place
            self._set_part(index, {"type": "text", "text": ""})
            part = self._parts[index]
            part.is_closed = True
        kept = part.kept
        assert kept is not None  # `_set_part` keeps each part
        if length is None:
            length = min(kept.length, self._piece_length)
            value = kept.value(length)
            self._put_part(index, value, part_bytes(value), is_replacing=stored is not None)
        part.length = length
        if kept.text is not None:
            self._queue_text(index, kept.text.slice(length))
        if part.ended is not None:  # the rest does not count: further content removes it
            part.length = len(text_of(part.ended))

    def _set_part(self, index: int, part: Part, owner: Owner | None = None, *, is_open: bool = True) -> None:
        super()._set_part(index, part, owner, is_open=is_open)
        self._parts[index].kept = PartState(part, 0, 0)  # serials have no meaning here

    def _gather(self) -> None:
        kept = self._parts[self._texts_part].kept if self._texts else None
        if kept is not None and kept.text is not None:
            kept.text.append("".join(self._texts), 0)
        super()._gather()

    def _open_text_part(self, index: int, text: str, size: int) -> None:
        """Queue the request that opens text part `index`. It has the index, because other parts may open before it."""
        self._put_part(index, {"type": "text", "text": text}, size)


def _stored_length(kept: PartState, stored: Part) -> int | None:
    """Return the length of the text of `stored`, a part on the server, if `kept` continues it, else None."""
    if kept.fields["type"] == stored["type"] == ATTEMPT:
        return 0  # no copy of superseded parts is kept
    known = PartState(stored, 0, 0)
    return known.length if kept.value(known.length) == known.value() else None


def _depends(one: OutgoingRequest, earlier: OutgoingRequest) -> bool:
    """Return whether `one` could fail or be undone if `earlier` were refused and then sent again after it."""
    if isinstance(one.request, FinishMessage):
        return True
    if _supersedes(one) or _supersedes(earlier):
        return True
    if isinstance(one.request, UpdateMessage):
        return isinstance(earlier.request, UpdateMessage)
    is_same = part_of(one.request) == part_of(earlier.request)
    return is_same and (one.is_replacing or earlier.is_replacing)


def _supersedes(one: OutgoingRequest) -> bool:
    update = one.request
    return isinstance(update, UpdateMessage) and (update.supersede is not None or TRIED in update.meta)
