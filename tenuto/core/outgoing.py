"""The state machine of a message writer: the content that it has accepted, and the requests that store this content.

Layer: core.

Both writers use it. The hub's writer gives all requests to the committer at once; the client's writer sends each one
over a connection (`outgoing_remote`). An `Outgoing` waits for no event and knows no time. Its writer calls a verb for
each event and then takes the requests that can be sent. `portal.Writer` is what both writers show of it.

    NEW -- open --> OPEN -- accept_end --> ENDING -- stored --> ENDED
                      |                      |
                      +------- refuse -------+-----> REFUSED

After `close` it accepts no more content, in whatever state it was, and keeps its error.

An attempt owns the parts that it opens, until it ends. If it failed they stay in view until another part opens: they
are superseded by the request that brings it, so that viewers never see both texts, nor none. Parts of others stay.
In a continued answer the next writer supersedes the parts of an attempt that was left open; `meta` names them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from enum import Enum, auto

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.decide import check_finish, check_meta
from tenuto.core.errors import InvalidRequest, LocalError, NotText, TenutoError, public_reason, shown
from tenuto.core.limits import Limits
from tenuto.core.model import APPENDABLE, ATTEMPT, RESPONSES, TRIED, Json, Message, Part, check_part, plain
from tenuto.core.ops import digest
from tenuto.core.requests import AppendText, FinishMessage, PutPart, UpdateMessage
from tenuto.core.state import KEPT_REQUESTS, part_bytes, utf8_len
from tenuto.core.text import PartState, SurrogateJoiner


class OutgoingState(Enum):
    """The states of a message writer."""

    NEW = auto()  # the beginning of the message is not stored yet
    OPEN = auto()  # the writer accepts content
    ENDING = auto()  # the writer has accepted the end of the message, which is not stored yet
    ENDED = auto()  # the end of the message is stored, or the writer was closed
    REFUSED = auto()  # the server has refused a request


# Module names for the members: Python 3.11 finds them faster than attributes of the class.
NEW, OPEN, ENDING, ENDED, REFUSED = OutgoingState

END_BYTES = 1  # size of an end among unstored requests, whose sizes are above 0

WriterRequest = AppendText | PutPart | UpdateMessage | FinishMessage


class OutgoingRequest(Struct, eq=False, gc=False):
    """A request of a writer, with its size: at least one byte, or 0 while it waits for the text of its part."""

    request: WriterRequest
    size_bytes: int
    is_replacing: bool = False  # the request replaces an existing part
    was_sent: bool = False  # the request has failed, and the server may have stored it


class Owner:
    """An attempt, which owns the parts that it opens. When it ends, they belong to the attempt around it, `outer`."""

    __slots__ = ("is_listed", "is_over", "outer")

    def __init__(self, outer: Owner | None = None, *, is_listed: bool = False) -> None:
        """If it is listed in `meta`, the next writer supersedes its parts, unless it and listed ones around it end."""
        self.outer = outer
        self.is_listed: bool = is_listed or (outer is not None and outer.is_listed)
        self.is_over = False

    def is_within(self, other: Owner) -> bool:
        return self is other or (self.outer is not None and self.outer.is_within(other))


LEFT, FAILED = Owner(), Owner()  # of parts that an earlier writer left, and of those that the next part supersedes
SHOWN = Owner(LEFT)  # of the steps among the parts that an earlier writer left: they belong to no response of a model


def live(owner: Owner | None) -> Owner | None:
    """Return the attempt that `owner` belongs to now; None: the message itself."""
    while owner is not None and owner.is_over:
        owner = owner.outer
    return owner


class OutgoingPart(Struct):
    """A part of the message as it will be once all requests are stored."""

    type: str
    length: int  # length in code points of the text that is in requests; gathered text is not
    is_open: bool = True  # False: the part is only reserved, and its first text opens it
    owner: Owner | None = None  # the attempt that opened it
    is_closed: bool = False  # True: text without an index goes to another part (`fail_attempt`, `close_text`)
    is_cut: bool = False  # True: the listed attempt that opened it has failed, or an earlier writer did not end it
    ended: Part | None = None  # as its stream has left it: further content removes what an earlier writer added
    kept: PartState | None = None  # a copy of its content, if the message is written over a network

    @property
    def is_listed(self) -> bool:
        """Return whether the attempt that the part belongs to now is listed."""
        owner = live(self.owner)
        return owner is not None and owner.is_listed


class PartIndex(int):
    """The index of a part, by which it is found although it was moved since."""

    times: int  # number of times that parts had been superseded before

    def __new__(cls, index: int, times: int) -> PartIndex:
        """Return the index of a part that was written after parts had been superseded `times` times."""
        made = super().__new__(cls, index)
        made.times = times
        return made


class Outgoing:
    """A message that is being written. Text gathers until a request can be sent, and is sent as one append.

    All requests, applied in order, make up exactly the accepted content. Each stays in flight until it is stored, so
    that the writer can repeat it.
    """

    max_in_flight = KEPT_REQUESTS  # a message recognises repeats of this many requests by their ids

    def __init__(self, message_id: str, limits: Limits, nonce: str = "") -> None:
        """Write the message `message_id`. Its request ids begin with `nonce`, which no other writer has."""
        self.id = message_id  # a writer may change it until `open`
        self.limits = limits
        self.nonce = nonce
        self.state = NEW
        self.error: TenutoError | None = None  # the server's refusal of a request
        self.left: list[Part] = []  # the parts that an earlier writer left to be continued
        self.generation = 1
        self.meta: dict[str, Json] = {}  # the message's meta after all accepted updates
        self.in_flight: list[OutgoingRequest] = []
        self.unstored_bytes = 0  # size of all accepted requests that are not stored, including gathered text
        self._request_count = 0  # number of request ids given so far
        self._piece_length = max(1, limits.append_bytes // 4)  # limit for one append: a character has up to four bytes
        self._parts: list[OutgoingPart] = []
        # index of the part that receives text of `_text_owner` without an index; -1: there is no text part
        self._text_part = -1
        self._text_owner: Owner | None = None
        self._steps: Container[Json] = ()  # calls of the steps that an earlier writer has shown
        self._has_restored = False  # True: what an earlier writer left behind the restored parts is written again
        # for each time that parts were superseded: the index from which, and the new indexes of those that stayed
        self._superseded: list[tuple[int, dict[int, int]]] = []
        self._added: list[str] = []  # text that this writer added to what was left, and behind it
        self._queue: deque[OutgoingRequest] = deque()  # accepted requests that are not in flight
        self._texts: list[str] = []  # text that gathers for the next append
        self._texts_part = 0  # index of the part that the gathered text belongs to
        self._halves: dict[int, str] = {}  # for each part that ends in half a surrogate pair: that half

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Return whether the end was accepted or a request refused."""
        return self.state is ENDING or self.is_settled

    @property
    def is_settled(self) -> bool:
        """Return whether the message needs no further request."""
        return self.state is ENDED or self.state is REFUSED

    @property
    def length(self) -> int:
        """Return the accepted code points of the message's text; that of failed attempts does not count."""
        is_text = bool(self._texts) and self._parts[self._texts_part].type == "text"
        gathered = sum(map(len, self._texts)) if is_text else 0
        return gathered + sum(one.length for one in self._parts if one.type == "text" and one.owner is not FAILED)

    @property
    def has_requests(self) -> bool:
        """Return whether unstored content other than gathered text exists."""
        return bool(self._queue or self.in_flight)

    @property
    def _has_opening(self) -> bool:
        """Return whether the last request supersedes by a part without text; it waits for text or further requests."""
        return bool(self._queue) and not (self._queue[-1].size_bytes or self._queue[-1].was_sent)

    def load(self, message: Message, generation: int) -> None:
        """Continue the stored `message` at its end, as the writer with number `generation`."""
        self.generation = generation
        self.left = [plain(part) for part in message.parts] if generation > 1 else []
        self.meta = plain(message.meta)
        cut = self.meta.get(TRIED)
        for index, part in enumerate(message.parts):
            self._set_part(index, plain(part), LEFT if generation > 1 else None)
            self._parts[index].is_cut = isinstance(cut, list) and index in cut and part["type"] != ATTEMPT
        self.close_text()

    def begin_again(self, meta: dict[str, Json], *, supersedes: bool, steps: Container[Json] = ()) -> None:
        """Merge `meta`; with `supersedes` the next content supersedes all. `steps`: the call ids of shown steps."""
        self._steps = steps
        for part, left in zip(self._parts, self.left, strict=False):
            if left.get("call") in steps:
                part.owner = SHOWN
        changed = {key: value for key, value in meta.items() if self.meta.get(key) != value}
        if changed:
            self._update(changed)
        if supersedes:
            self.fail_attempt(LEFT)

    def open(self) -> None:
        """Accept content from now on: the beginning of the message is stored."""
        self.state = OPEN

    def close(self) -> None:
        """Accept no more content."""
        self.state = ENDED

    def check_open(self) -> None:
        """Raise the server's refusal, or LocalError, unless the writer accepts content."""
        if self.state is REFUSED:
            self.raise_error()
        if self.state is NEW:
            raise LocalError(f"message {self.id!r} is not open; enter `async with` before you write")
        if self.state is not OPEN:
            raise LocalError(f"message {self.id!r} has ended; write another message")

    def raise_error(self) -> None:
        """Raise the refusal if there is one."""
        if self.error is not None:
            raise self.error

    # -- content -----------------------------------------------------------------------------------------------

    def accept_text(self, text: str, part: int | None = None, owner: Owner | None = None) -> None:
        """Add `text` to the text part of `owner` behind which no other part was opened, or to part `part`.

        Without such a text part it opens one. Half a surrogate pair at the end of `text` is held back until the next
        text of its part, or behind it, or the end.
        """
        if self.state is not OPEN:
            self.check_open()
        if not isinstance(text, str):
            raise InvalidRequest(f"text must be a str, got {type(text).__name__}")
        text = str.__str__(text)  # the text of LangChain's messages is of a subclass, which no store encodes
        if part is None and owner is not self._text_owner:
            self._find_text_part(owner)
        index = self._text_part if part is None else self._checked_index(part)
        if not text:
            return
        if index < 0:
            self._open_reserved()
            given, text = text, self._take_half(owner) + text
            if self._note_failed(owner):
                text = self._supersede_by_text(text, owner)
                if not text:
                    return
            if self._text_part < 0:  # else `_supersede_by_text` has opened it
                if owner is None and self._added:
                    owner = LEFT  # superseded with the text that it follows, if that is
                    self._added.append(given)
                self._text_part = len(self._parts)  # reserved: its first whole character opens it
                self._set_part(self._text_part, {"type": "text", "text": ""}, owner, is_open=False)
                self._put_tried_meta()
            index = self._text_part
        elif self._parts[index].owner is LEFT and self._parts[index].type == "text":
            self._added.append(text)
        if text.isascii() and not self._halves:  # the common case, without a call
            size = len(text)
        else:
            text = self._join_halves(text, index)
            size = utf8_len(text)
            if not text:
                return
        if self._texts_part != index:
            self._gather()
            self._texts_part = index
        self._texts.append(text)
        self.unstored_bytes += size

    def accept_part(self, part: Part, index: int | None = None, owner: Owner | None = None) -> int:
        """Open a part of `owner` (without `index`) or replace one. Return its index.

        A part that was superseded after its index was returned is written as a new one. A step that an earlier writer
        has shown is no new content: its part is replaced, and what is to be superseded stays in view.
        """
        self.check_open()
        part = check_part(part, self.limits)
        count = len(self._parts)
        position = count if index is None else self._position_of(index)
        if index is not None and self._is_superseded(index) and not self._is_step(position, part):
            position = count
        if position == count and self._note_failed(owner):
            self._supersede(part, owner)
            self.close_text()
            return PartIndex(len(self._parts) - 1, len(self._superseded))
        if 0 <= position < count and self._parts[position].type == ATTEMPT:
            raise LocalError(
                f"part {position} of message {self.id!r} is a superseded attempt; use the index that part() returned"
            )
        if not 0 <= position <= count:
            raise LocalError(f"a part of message {self.id!r} has an index from 0 to {count}, got {position}")
        known = self._parts[position] if position < count else None
        if known is not None and known.owner not in (LEFT, SHOWN, FAILED):
            owner = known.owner  # a replaced part stays with its attempt
        if position < len(self.left):
            self.left[position] = part  # so its text is not taken for added content
        if position >= count - 1:  # only the last part may be reserved: it opens before it is replaced or followed
            self._open_reserved()
        self._gather()
        self._halves.pop(position, None)
        self._set_part(position, part, owner)
        self._parts[position].is_closed = known is not None and known.is_closed
        self._put_tried_meta()
        self.close_text()
        size = part_bytes(part)
        self.unstored_bytes += size
        self._put_part(position, part, size, is_replacing=position < count)
        return PartIndex(position, len(self._superseded))

    def _position_of(self, index: int) -> int:
        """Return the index that a part has now; -1: it was superseded since `accept_part` returned its index."""
        position = int(index)
        if isinstance(index, PartIndex):
            for since, moved in self._superseded[index.times :]:
                position = position if position < since else moved.get(position, -1)
        return position

    def _is_superseded(self, index: int) -> bool:
        """Return whether the part with this index was superseded, or the next part will supersede it."""
        position = self._position_of(index)
        is_known = 0 <= position < len(self._parts)  # else only a `PartIndex` was that of a part, which is superseded
        return self._parts[position].owner is FAILED if is_known else isinstance(index, PartIndex)

    def _is_step(self, position: int, part: Part) -> bool:
        """Return whether an earlier writer has shown the step of `part` at this position."""
        left = self.left[position] if 0 <= position < len(self.left) else {}
        return part.get("call") in self._steps and left.get("call") == part.get("call")

    def _taken_up(self, indexes: list[int], lengths: Mapping[int, int]) -> dict[int, Part]:
        """Return the left parts `indexes`, with texts up to `lengths`: the rest stays in view until more is written."""
        times = len(self._superseded)
        found: dict[int, Part] = {PartIndex(at, times): first_of(self.left[at], lengths.get(at)) for at in indexes}
        self._end_texts(found)
        self._find_text_part(self._text_owner)
        return found

    def _end_texts(self, found: dict[int, Part]) -> None:
        """Count no text behind that of the parts `found`: further content removes it."""
        for index, part in found.items():
            if part != self.left[index]:
                self.left[index] = self._parts[index].ended = part
                self._parts[index].length = len(text_of(part))

    def has_left(self) -> bool:
        """Return whether parts that an earlier writer left are neither continued nor superseded."""
        return bool(self._left_indexes())

    def _left_indexes(self) -> list[int]:
        return [index for index, part in enumerate(self._parts) if part.owner is LEFT and part.type != ATTEMPT]

    def _give_up_if_added(self, left: list[int]) -> bool:
        """Let the next part supersede all that was left if this writer has added content to it, or behind `left`.

        Then text that was added is written anew. Return whether content was added.
        """
        self._gather()
        added, self._added = self._added, []
        has_more = bool(added) or (bool(left) and len(self._parts) != len(self.left))
        if not has_more and all(self._parts[index].length == len(text_of(self.left[index])) for index in left):
            return False
        self.fail_attempt(LEFT)
        self.accept_text("".join(added))  # an attempt adds nothing to text of others
        return True

    def reopen_left(
        self, owner: Owner, after: int = 0, until: int | None = None, lengths: Mapping[int, int] | None = None
    ) -> dict[int, Part]:
        """Return the parts that an earlier writer left to be continued, which are of `owner` now; a second call: {}.

        They are those behind the first `after` of the parts that count, up to the number `until`. If this writer has
        added content, or a part before them has failed, no part is continued: the next part supersedes what is left.
        Steps, and parts that this writer has put again, are not among them. For a response in the background, `lengths`
        are those of its texts if it had ended, else {}: its parts count again if the next part would supersede them.
        """
        owners = (LEFT,) if lengths is None else (LEFT, FAILED)
        counted = [index for index, part in enumerate(self.left) if part["type"] != ATTEMPT]
        steps = {index for index in counted if self._is_step(index, self.left[index])}
        before = [index for index in counted[:after] if index not in steps]
        wanted = [index for index in counted[after:until] if index not in steps]
        reopened = [index for index in wanted if self._parts[index].owner in owners]
        left = self._left_indexes()  # once a part was superseded, `self.left` is empty, and these cannot be continued
        if not (reopened or left):
            return {}
        is_added = self._give_up_if_added(reopened if self.left else left)
        if is_added or not reopened or any(self._parts[index].owner is FAILED for index in before):
            return {}
        self._give(before, None)  # to the message itself: `owner` did not open them
        self._give(reopened, owner)
        return self._taken_up(reopened, lengths or {})

    def end_of(self, lengths: dict[int, int], content: str) -> int | None:
        """Return how many parts an earlier writer left that count, up to the last with an index in `lengths`.

        None if these parts, with such texts, have another hash than `content`.
        """
        known = [first_of(part, lengths[index]) for index, part in enumerate(self.left) if index in lengths]
        if not known or content_of(known) != content:
            return None
        return len([part for part in self.left[: max(lengths) + 1] if part["type"] != ATTEMPT])

    def _give(self, indexes: list[int], owner: Owner | None) -> None:
        """Let parts that an earlier writer left belong to `owner`, also failed ones."""
        for part in (self._parts[index] for index in indexes):
            if part.owner in (LEFT, FAILED):
                part.owner, part.is_cut = owner, False
        self._find_text_part(self._text_owner)

    def restore(self, lengths: dict[int, int], content: str, owner: Owner) -> dict[int, Part] | None:
        """Return parts that an earlier writer left, which are of `owner` now; the next part supersedes the others left.

        `lengths` are those of their texts, by their indexes, and `content` is the hash of them. None if they changed
        since, or if this writer has added content: then the next part supersedes all that is left.
        """
        indexes = [index for index in lengths if index < len(self.left) and self._parts[index].owner is LEFT]
        now = content_of(first_of(self.left[index], lengths[index]) for index in indexes)
        if now != content or self._give_up_if_added(indexes):
            return None
        before = range(min(indexes, default=0))  # such as the text of a step, which does not run again
        self._give([index for index in before if self._parts[index].owner is LEFT], None)
        self._give(indexes, owner)
        for last in self._parts[-1:]:
            last.is_closed = last.owner is LEFT  # only restored text is continued
        self._has_restored = True
        return self._taken_up(indexes, lengths)

    def _note_failed(self, owner: Owner | None = None) -> bool:
        """Note as failed the parts left behind restored ones, and for a listed `owner` those that were cut.

        End the texts of streams that had ended. Return whether the next part, of `owner`, supersedes any.
        """
        for index, part in enumerate(self._parts):
            if part.ended is not None and part.owner is not FAILED:
                self.accept_part(part.ended, index)  # removes what an earlier writer has added to it
        if self._has_restored and any(one.type != ATTEMPT and one.owner in (LEFT, SHOWN) for one in self._parts):
            self.fail_attempt(LEFT)
        self._has_restored = False
        for part in self._parts if owner is not None and owner.is_listed else ():
            if part.is_cut and part.owner in (LEFT, SHOWN):
                part.owner = FAILED
        return self.has_failed()

    def has_failed(self) -> bool:
        """Return whether parts of failed attempts stay in view until the next part opens."""
        return any(part.owner is FAILED for part in self._parts)

    def lengths(self, before: int | None = None) -> list[int]:
        """Return the lengths of the texts of the parts that count, or of those before the part with index `before`."""
        self._gather()
        parts = self._parts if before is None else self._parts[: self._position_of(before)]
        return [part.length for part in parts if part.type != ATTEMPT and part.owner is not FAILED]

    def begin_attempt(self, outer: Owner | None = None, *, is_listed: bool = False) -> Owner:
        """Return a new owner of parts, inside of `outer`."""
        self.check_open()
        return Owner(outer, is_listed=is_listed)

    def end_attempt(self, owner: Owner, *, is_cut: bool = False) -> None:
        """Let what `owner` has written belong to the attempt around it, unless it is listed and was cut."""
        owner.is_over = not (is_cut and owner.is_listed)
        self._find_text_part(live(owner))
        if owner.is_listed and live(owner) is None and self.state is OPEN:  # `meta` names its parts no longer
            self._put_tried_meta()

    def fail_attempt(self, owner: Owner) -> None:
        """Let the next part supersede those of `owner`, and of the attempts inside of it.

        With parts that an earlier writer left go those that it left behind them.
        """
        self._gather()
        around, has_failed = live(owner.outer), False
        for index, part in enumerate(self._parts):
            is_behind = has_failed and part.owner in (LEFT, SHOWN)
            if part.type != ATTEMPT and part.owner is not None and (is_behind or part.owner.is_within(owner)):
                part.is_cut |= part.is_listed
                part.owner, has_failed = FAILED, True
                self._halves.pop(index, None)
            elif live(part.owner) in (around, LEFT):
                part.is_closed = True  # further text stands behind what failed
        if self._parts and self._parts[-1].owner is FAILED and not self._parts[-1].is_open:  # only reserved
            self._keep(range(len(self._parts) - 1))
        self._find_text_part(self._text_owner)

    def close_text(self) -> None:
        """Let further text without an index stand behind the last part: a client may have the parts as a response."""
        for part in self._parts[:-1]:
            part.is_closed = True
        self._find_text_part(self._text_owner)

    def accept_update(self, meta: dict[str, Json]) -> None:
        """Merge `meta` into the message's meta; None removes a key."""
        self.check_open()
        self._update(meta)

    def _update(self, meta: dict[str, Json]) -> None:
        """Merge `meta`, also before the writer is open."""
        if not isinstance(meta, dict):
            raise InvalidRequest(f"meta must be an object, got {shown(meta)}")
        size = check_meta(meta, self.limits)
        self._gather()
        self.unstored_bytes += size
        self._put_update(plain(meta), size)

    def accept_check(self) -> None:
        """Queue a request that changes nothing, and is refused if the message has ended."""
        self.check_open()
        self._gather()
        self.unstored_bytes += 1
        end = sum(part.is_open for part in self._parts)  # no part follows, so this supersedes no part
        self._queue.append(OutgoingRequest(UpdateMessage(generation=self.generation, supersede=end), 1))

    def accept_end(
        self,
        status: str = "complete",
        *,
        reason: str | None = None,
        meta: dict[str, Json] | None = None,
        is_server: bool = False,
    ) -> None:
        """End the message. Only the server may end it as `interrupted`."""
        self.check_open()
        if status == "interrupted" and not is_server:
            raise InvalidRequest("only the server sets 'interrupted'; finish with 'complete', 'cancelled' or 'failed'")
        end = FinishMessage(status=status, reason=reason, meta=meta or {}, generation=self.generation)  # type: ignore[arg-type]
        check_finish(end, self.limits)
        if status == "complete" and self._note_failed():
            self._supersede(None)
        if status != "interrupted":  # no later attempt needs them
            end = replace(end, meta={**end.meta, **{key: None for key in (RESPONSES, TRIED) if key in self.meta}})
        for part in tuple(self._halves):
            self._release_half(part)
        self._gather()
        size = END_BYTES
        self.unstored_bytes += size
        # A last update of `meta` goes with the end, in one request, but only with `complete`: if the server has stored
        # another end already, such as `cancelled`, the same one again has no effect, and its meta would be lost.
        last = self._queue[-1] if self._queue and status == "complete" else None
        if last is not None and isinstance(last.request, UpdateMessage) and last.request.supersede is None:
            self._queue.pop()
            size += last.size_bytes  # it is counted in `unstored_bytes` already
            end = replace(end, meta={**last.request.meta, **end.meta})
        self._merge(end.meta)
        self._queue.append(OutgoingRequest(replace(end, meta=plain(end.meta), request=self._new_request()), size))
        self.state = ENDING

    # -- requests ----------------------------------------------------------------------------------------------

    def requests_to_send(self, max_bytes: int) -> list[OutgoingRequest]:
        """Put requests in flight, about `max_bytes` in all but at least one. Return all in flight, in order."""
        queue, in_flight = self._queue, self.in_flight
        if not in_flight and not queue:  # the common case: only text
            self._gather()
            if len(queue) == 1:
                in_flight.append(queue.popleft())
                return in_flight
        room_bytes = max_bytes - sum([one.size_bytes for one in in_flight])
        while queue or self._texts:
            if in_flight and (room_bytes <= 0 or len(in_flight) >= self.max_in_flight):
                break
            if not queue or self._has_opening:
                self._gather()
            if (len(queue) == 1 and self._has_opening) or (in_flight and self._must_wait(queue[0])):
                break
            one = queue.popleft()
            room_bytes -= one.size_bytes
            in_flight.append(one)
        return in_flight

    def stored(self, count: int) -> None:
        """Forget the first `count` requests in flight, which are stored."""
        in_flight = self.in_flight
        if count == 1:  # the common case: one request was stored
            self.unstored_bytes -= in_flight.pop(0).size_bytes
        else:
            self.unstored_bytes -= sum([one.size_bytes for one in in_flight[:count]])
            del in_flight[:count]
        if self.state is ENDING and not in_flight and not self._queue:
            self.state = ENDED

    def refuse(self, error: TenutoError) -> None:
        """Drop all content that is not stored, and raise `error` at the next call."""
        self.state = REFUSED
        self.error = error
        self._queue.clear()
        self._texts.clear()
        self._halves.clear()
        self.in_flight.clear()
        self.unstored_bytes = 0

    def _must_wait(self, next_one: OutgoingRequest) -> bool:
        """Return whether `next_one` must wait until the requests in flight are stored.

        A part is replaced or superseded only after its text is stored: if the outcome of a commit is unknown, all
        requests in flight are decided again, and text for a replaced part would be refused. An append without a part
        index opens a part.
        """
        request = next_one.request
        if isinstance(request, UpdateMessage) and request.supersede is not None:
            return any(isinstance(one.request, AppendText) for one in self.in_flight)
        return isinstance(request, PutPart) and any(
            isinstance(one.request, AppendText) and one.request.part in (request.index, None) for one in self.in_flight
        )

    # -- parts -------------------------------------------------------------------------------------------------

    def _set_part(self, index: int, part: Part, owner: Owner | None = None, *, is_open: bool = True) -> None:
        """Record `part` of `owner` at `index`, in place of an earlier one."""
        self._parts[index : index + 1] = [OutgoingPart(part["type"], len(text_of(part)), is_open, owner)]

    def _keep(self, order: Sequence[int]) -> None:
        """Keep the parts at these indexes, in this order."""
        self._parts = [self._parts[index] for index in order]

    def _find_text_part(self, owner: Owner | None) -> None:
        """Find the part to which text of `owner` without an index goes: its last text, unless closed or cut."""
        known = self._parts
        texts = [i for i in self._texts_of(owner) if not (known[i].is_closed or known[i].is_cut or known[i].ended)]
        self._text_owner, self._text_part = owner, texts[-1] if texts else -1

    def _texts_of(self, owner: Owner | None) -> list[int]:
        owners = (owner,) if owner is not None else (None, LEFT)
        return [i for i, part in enumerate(self._parts) if part.type == "text" and live(part.owner) in owners]

    def _checked_index(self, index: int) -> int:
        """Return the index that the part `index` has now. Raises LocalError, or NotText if it accepts no text."""
        if self._is_superseded(index):
            raise LocalError(f"part {index} of message {self.id!r} was superseded; write it again, with part()")
        index, count = self._position_of(index), len(self._parts)
        if not 0 <= index < count:
            raise LocalError(f"message {self.id!r} has {count} parts, got the index {index}; open that part first")
        if self._parts[index].type not in APPENDABLE:
            raise NotText(
                f"part {index} of message {self.id!r} is of type {shown(self._parts[index].type)}, "
                "text can be appended to 'text', 'reasoning' and 'tool' only; open such a part"
            )
        if (ended := self._parts[index].ended) is not None:
            self.accept_part(ended, index)  # removes what an earlier writer has added to it
        return index

    def _open_reserved(self) -> None:
        """Open a text part that has only half a surrogate pair so far, because another part opens after it."""
        last = len(self._parts) - 1
        if last >= 0 and not self._parts[last].is_open and not (self._texts and self._texts_part == last):
            self._release_half(last)

    # -- attempts ----------------------------------------------------------------------------------------------

    def _supersede_by_text(self, text: str, owner: Owner | None) -> str:
        """Supersede the failed attempt by a new text part, and return the rest of `text`, which goes to this part."""
        joiner = SurrogateJoiner()
        whole = joiner.write(text)
        first = whole[: self._piece_length]
        self._supersede({"type": "text", "text": first} if first else None, owner)
        return whole[len(first) :] + joiner.held

    def _supersede(self, first: Part | None, owner: Owner | None = None) -> None:
        """Queue the request that supersedes the failed attempts; `first` of `owner` follows in the same entry."""
        self._open_reserved()
        self._gather()
        self.left = []
        since = next(index for index, part in enumerate(self._parts) if part.owner is FAILED)
        after = range(since, len(self._parts))
        attempts = [index for index in after if self._parts[index].type == ATTEMPT]
        beside = [index for index in after if index not in attempts and self._parts[index].owner is not FAILED]
        order = [*range(since), *attempts, since, *beside]  # as `decide` orders them; `since` is for the new attempt
        moved = {before: index for index, before in enumerate(order) if before != since}
        self._superseded.append((since, moved))
        self._halves = {moved[index]: half for index, half in self._halves.items() if index in moved}
        self._keep(order)
        self._set_part(since + len(attempts), {"type": ATTEMPT, "parts": []})
        if first is not None:
            self._set_part(len(self._parts), first, owner)
        self._find_text_part(owner)
        self.unstored_bytes += self._put_supersede(since, beside, first)

    # -- text --------------------------------------------------------------------------------------------------

    def _join_halves(self, text: str, index: int) -> str:
        """Return the held half of a surrogate pair joined with `text`, and hold back a half at the end of `text`."""
        joiner = SurrogateJoiner()
        joiner.held = self._halves.pop(index, "")
        whole = joiner.write(text)
        if joiner.held:
            self._halves[index] = joiner.held
        return whole

    def _take_half(self, owner: Owner | None) -> str:
        """Return the half at the end of the last text of `owner`, whose next text stands in another part."""
        texts = self._texts_of(owner)
        return self._halves.pop(texts[-1], "") if texts else ""

    def _release_half(self, index: int) -> None:
        """Accept a replacement character for the held half in part `index`, because the other half did not come."""
        del self._halves[index]
        self.accept_text("\ufffd", index)

    def _gather(self) -> None:
        """Move the gathered text to the queue, as one request."""
        texts = self._texts
        if not texts:
            return
        text = texts[0] if len(texts) == 1 else "".join(texts)
        texts.clear()
        index = self._texts_part
        part = self._parts[index]
        if not part.length and part.is_open and part is self._parts[-1] and self._has_opening:
            # the opening of the part waits for this text
            opening, first, text = self._queue.pop().request, text[: self._piece_length], text[self._piece_length :]
            opening = replace(opening, parts=[{"type": part.type, "text": first}])
            self._queue.append(OutgoingRequest(opening, utf8_len(first)))
            part.length = len(first)
        length = len(text)
        # the common case: one piece of ASCII text for an open part
        if part.is_open and 0 < length <= self._piece_length and text.isascii():
            request = AppendText(text=text, at=part.length, part=index, generation=self.generation)
            self._queue.append(OutgoingRequest(request, length))
            part.length += length
        else:
            self._queue_text(index, text)

    def _queue_text(self, index: int, text: str) -> None:
        """Queue `text` for the end of part `index`; opens the part if it is only reserved."""
        part = self._parts[index]
        for start in range(0, len(text), self._piece_length):
            piece = text[start : start + self._piece_length]
            size = utf8_len(piece)
            if part.is_open:
                request = AppendText(text=piece, at=part.length, part=index, generation=self.generation)
                self._queue.append(OutgoingRequest(request, size))
            else:
                part.is_open = True
                self._open_text_part(index, piece, size)
            part.length += len(piece)

    def _open_text_part(self, index: int, text: str, size: int) -> None:
        """Queue the request that opens text part `index`; the first one by an append of `text` without an index."""
        if any(part.type == "text" for part in self._parts[:index]):
            self._put_part(index, {"type": "text", "text": text}, size)
            return
        request = AppendText(text=text, at=0, generation=self.generation)
        self._queue.append(OutgoingRequest(request, size))

    # -- other requests ----------------------------------------------------------------------------------------

    def _new_request(self) -> str:
        """Return a request id, unique to this writer, by which the message recognises a repeat."""
        self._request_count += 1
        return f"{self.nonce}{self.generation}.{self._request_count}"

    def _put_part(self, index: int, part: Part, size: int, *, is_replacing: bool = False) -> None:
        last = self._queue[-1] if self._queue else None
        if is_replacing and last is not None and last.is_replacing and part_of(last.request) == index:
            # only the last of several values counts, for example of a progress bar while the store is slow
            self._queue.pop()
            self.unstored_bytes -= last.size_bytes
        request = PutPart(index=index, part=part, generation=self.generation, request=self._new_request())
        self._queue.append(OutgoingRequest(request, size, is_replacing))

    def _put_update(self, meta: dict[str, Json], size: int) -> None:
        self._merge(meta)
        request = UpdateMessage(meta=meta, generation=self.generation, request=self._new_request())
        self._queue.append(OutgoingRequest(request, size))

    def _tried_meta(self) -> dict[str, Json]:
        """Return the change of `meta`, if any, that names the parts of open or failed attempts."""
        tried = [index for index, part in enumerate(self._parts) if part.is_cut or part.is_listed] or None
        return {TRIED: tried} if tried != self.meta.get(TRIED) else {}

    def _put_tried_meta(self) -> None:
        if change := self._tried_meta():
            self.accept_update(change)

    def _put_supersede(self, since: int, beside: list[int], first: Part | None) -> int:
        """Queue a request that supersedes the parts from `since` on, but for `beside`. Return its size in bytes."""
        size = 1 if first is None else part_bytes(first)
        if first in ({"type": "text", "text": ""}, {"type": "reasoning", "text": ""}):
            size = 0  # it waits for its text, so that viewers keep the old text
        change = self._tried_meta()
        self._merge(change)
        request = UpdateMessage(
            parts=None if first is None else [first],
            meta=change,
            generation=self.generation,
            request=self._new_request(),
            supersede=since,
            beside=beside,
        )
        self._queue.append(OutgoingRequest(request, size))
        return size

    def _merge(self, meta: dict[str, Json]) -> None:
        self.meta = {key: value for key, value in {**self.meta, **meta}.items() if value is not None}


class Ended(Outgoing):
    """A message that was complete before its writer began: what is written into it has no effect."""

    def __init__(self, message: Message, limits: Limits) -> None:
        super().__init__(message.id, limits)
        self.load(message, generation=2)
        self.state = OPEN

    @property
    def text(self) -> str:
        """Return the text of the message."""
        return "".join(text_of(part) for part in self.left if part["type"] == "text")

    def _drop(self, *_: object, **__: object) -> None:
        self.check_open()

    begin_again = accept_text = accept_update = accept_check = _drop

    def _stay(self, *_: object, **__: object) -> None:
        """Let all parts be what was left."""

    _give = _end_texts = fail_attempt = _stay

    def accept_part(self, part: Part, index: int | None = None, owner: Owner | None = None) -> int:
        """Return an index for the part."""
        self.check_open()
        return len(self._parts) if index is None else index

    def accept_end(self, *_: object, **__: object) -> None:
        """Refuse further calls, as those of any message that is over."""
        self.check_open()
        self.state = ENDED


def text_of(part: Part) -> str:
    return str(part.get(APPENDABLE.get(part["type"], ""), ""))


def first_of(part: Part, length: int | None) -> Part:
    """Return a part with the first `length` characters of its text; None: with all."""
    name = APPENDABLE.get(part["type"])
    return {**part, name: part[name][:length]} if name in part else part


def content_of(parts: Iterable[Part]) -> str:
    """Return a hash of the texts and calls of parts."""
    return digest([[part["type"], text_of(part), part.get("call"), part.get("name")] for part in parts]).hex()


def part_of(request: WriterRequest) -> int | None:
    """Return the index of the part that `request` changes, or None."""
    if isinstance(request, AppendText):
        return request.part
    return request.index if isinstance(request, PutPart) else None


def end_for(error: BaseException) -> tuple[str, str | None]:
    """Return the status and the public reason of a message whose `async with` block raised `error`."""
    return (error.ends_as, error.code) if isinstance(error, TenutoError) else ("failed", public_reason(error))
