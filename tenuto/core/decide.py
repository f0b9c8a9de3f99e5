"""Decisions: whether a request becomes operations, or is refused.

Layer: core.

`decide` reads the durable state plus the draft of the running batch. It returns the operations to store, or raises a
TenutoError and leaves the state unchanged. The order of checks is part of the protocol (`docs/protocol.md`,
"Refusals"): deleted, not found, repeated, fenced, finished, the rest.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import assert_never

from msgspec import UNSET
from msgspec.structs import replace

from tenuto.core.deltas import is_answer_of
from tenuto.core.draft import Decision, Draft
from tenuto.core.errors import (
    AlreadyAnswered,
    AuthorMismatch,
    Damaged,
    Deleted,
    Fenced,
    Finished,
    Forbidden,
    ForbiddenStatus,
    Gap,
    IdConflict,
    InvalidName,
    InvalidRequest,
    Mismatch,
    NoPart,
    NotFound,
    NotText,
    NotWriter,
    StillStreaming,
    TenutoError,
    TooLarge,
    TooMany,
    VersionConflict,
    shown,
)
from tenuto.core.limits import KIB, Limits
from tenuto.core.model import (
    ATTEMPT,
    OPTIONS,
    OPTIONS_KEY,
    OPTIONS_MARK,
    ROLES,
    STATUSES,
    STREAMED,
    Approval,
    Json,
    Part,
    check_json,
    check_part,
    check_text,
    plain,
)
from tenuto.core.names import COMMAND_MARK, check_id, command_id, is_own_name
from tenuto.core.ops import (
    Append,
    Claim,
    Command,
    Create,
    Delete,
    Finish,
    Lease,
    Op,
    Reply,
    SetPart,
    Takeover,
    Update,
    WriterIdentity,
    digest,
    fingerprint,
)
from tenuto.core.requests import (
    KEPT,
    AppendText,
    Caller,
    ClaimTurn,
    CreateMessage,
    DeleteMessage,
    EndTurn,
    ExpireLease,
    FinishMessage,
    PutPart,
    RenewLease,
    ReplyCommand,
    Request,
    SendCommand,
    SettleCommand,
    TakeOver,
    UpdateMessage,
    references,
    regenerate_options_id,
    split_options,
)
from tenuto.core.state import CLAIMED, ChannelState, ClaimState, CommandState, MessageState, part_bytes, utf8_len
from tenuto.core.turns import (
    APPROVE,
    MOST_SPARED,
    QUESTION_MARK,
    STEER,
    STEP,
    STEP_MARK,
    UNREAD,
    WITHDRAWN,
    Replier,
    earlier_attempt,
    newest_branch,
    next_round,
    reply_ids,
    rules_of,
)

# the contents of superseded attempts may have this share of `Limits.message_bytes`, because documents repeat them
ATTEMPTS_SHARE = 8
STREAMED_BYTES = 32 * KIB  # room for `STREAMED` in `meta`, beside `Limits.meta_bytes`: records of some 100 streams
LONGEST_S = 24 * 3600  # longest time that a command may wait for its reply
STEP_S = 30 * 24 * 3600  # time after which the store may drop the data of a step
OPEN_CANCELS = 16  # limit of `cancel` commands without a reply per target; the server carries out the first
REASON_CHARS = 1_000  # maximal length of the reason of an approval or denial in the tool part; the reply has all of it
DENIED = "denied"  # state of a tool part whose call a person has not approved


def decide(
    state: Draft, key: str, request: Request, *, caller: Caller, now_ms: int, limits: Limits, is_served: bool = False
) -> Decision:
    """Return the decision on `request` about the message or command `key`. Raises a TenutoError if it is refused.

    `is_served`: agents serve this channel, so a new user message, or one to be answered again, waits for an agent.
    """
    if not isinstance(request, AppendText):  # hot path first: nearly all requests are appends
        match request:
            case CreateMessage():
                return _create(state, key, request, caller, now_ms, limits, is_served)
            case SendCommand():
                return _send_command(state, key, request, caller, now_ms, limits, is_served)
            case ReplyCommand():
                return _reply_command(state, key, request, caller, now_ms, limits)
            case SettleCommand():
                return _settle_command(state, key, request, now_ms)
    message = state.message(key)
    if (
        message is None
        or message.role == OPTIONS  # it keeps a value beside other messages; no client may change it
        or (not caller.may_read and not _is_author_or_writer(message, caller))  # it must not learn that the id exists
    ):
        raise NotFound(f"message {shown(key)} does not exist in this channel; check the id")
    if message.deleted:
        if isinstance(request, DeleteMessage):  # a repeat
            return Decision(serial=message.version)
        raise Deleted(f"message {shown(key)} was deleted; create another one")
    if message.is_damaged and not isinstance(request, DeleteMessage):
        raise Damaged(f"message {shown(key)} is damaged in the store; delete it, or restore a backup of the store")
    match request:
        case AppendText():
            _check_writer(message, caller, request.generation)
            return _append(message, request, limits, now_ms)
        case PutPart():
            _check_writer(message, caller, request.generation)
            return _earlier_decision(message, request.request) or _put_part(message, request, limits, now_ms)
        case UpdateMessage():
            check_may_change(message, caller)
            return _earlier_decision(message, request.request) or _update(message, request, caller, limits, now_ms)
        case FinishMessage():
            _check_writer(message, caller, request.generation)
            known = _earlier_decision(message, request.request)
            return known or _finish(state, message, request, caller, limits, now_ms)
        case TakeOver():
            is_ours = caller.is_app or caller.is_server or _is_writer(message, caller)
            # The id of another writer's request may be the same, by chance: the result of that request does not count.
            known = _earlier_decision(message, request.request) if is_ours else None
            return known or _take_over(message, request, caller, now_ms)
        case RenewLease():
            _check_writer(message, caller, request.generation)
            return _renew_lease(message, request, now_ms)
        case ExpireLease():
            _check_writer(message, caller, request.end.generation)
            if message.last > request.last:  # the writer lives
                return Decision(serial=message.version)
            return _finish(state, message, request.end, caller, limits, now_ms)
        case DeleteMessage():
            check_may_change(message, caller)
            ops = _ended_with(state, message, now_ms)
            return Decision(ops=(*ops, Delete(id=message.id, at_ms=now_ms)))
        case ClaimTurn():
            return _claim_turn(state, message, request, caller, now_ms)
        case EndTurn():
            return _end_turn(state, message, request, caller, now_ms)
        case _:
            assert_never(request)


def _create(
    state: Draft, message_id: str, request: CreateMessage, caller: Caller, now_ms: int, limits: Limits, is_served: bool
) -> Decision:
    """Store a new message, with its large options, which are messages of their own. A repeat gets the first result."""
    check_id(message_id)
    if request.if_author is not None and check_id(request.if_author, "if_author") != caller.id:
        raise AuthorMismatch(
            f"the message is of {request.if_author!r} (if_author), and this client is {shown(caller.id)}: "
            "sign in as its author, or send it as your own, without `if_author`"
        )
    sent_digest, size_bytes = request.fingerprint(caller.id)
    known = state.message(message_id)
    if known is not None:
        # A caller without the right to read, which did not write the message either, learns only that the id is taken.
        if known.deleted and (caller.may_read or _is_author(known, caller)):
            raise Deleted(f"message {message_id!r} was deleted; its id cannot be used again, choose another one")
        if known.deleted or known.digest != sent_digest:
            raise IdConflict(f"message {message_id!r} exists and was created with other content; choose another id")
        return Decision(serial=known.created, generation=1)  # a repeat
    if message_id.startswith(OPTIONS_MARK):
        raise InvalidName(f"ids of messages that begin with {OPTIONS_MARK!r} are those of options; choose another id")
    _check_may_begin(state, caller)
    if request.reply_to is not None:
        _check_attempt(state, request.reply_to, message_id, request.role, caller.attempt)
    if request.status == "interrupted":
        raise ForbiddenStatus("status 'interrupted' is set by the server only; create the message as 'streaming'")
    if request.status not in ("complete", "streaming"):
        raise InvalidRequest(f"status of a new message must be 'complete' or 'streaming', got {shown(request.status)}")
    if request.role not in ROLES:
        raise InvalidRequest(f"role must be 'user', 'assistant', 'system' or 'tool', got {shown(request.role)}")
    parts = _parts(request.text, request.parts, limits, most_bytes=size_bytes) or []
    is_pending = is_served and request.role == "user" and request.status == "complete" and not caller.brings_answer
    if is_pending:
        _check_room_for_pending(state, limits)
    options, large_options = _repeated_options(state, request.meta, caller.id), list[Create]()  # an edit
    if request.options:
        options, large_options = split_options(request.options, caller.id, now_ms, limits)
    op = Create(
        id=message_id,
        role=request.role,
        author=caller.id,
        status=request.status,
        parts=parts,
        meta=_merged({}, request.meta, limits, options, role=request.role),
        parent=(request.reply_to or state.newest) if request.parent is UNSET else _checked(request.parent, "parent"),
        reply_to=_checked(request.reply_to, "reply_to"),
        at_ms=now_ms,
        digest=sent_digest,
        writer=_writer(caller, request.lease_s) if request.status == "streaming" else None,
        is_pending=is_pending,
    )
    # the message comes first, so its serial shows whether it begins the channel (`Credentials.count_new_channel`)
    new_options = (one for one in large_options if state.message(one.id) is None)  # an equal value has the same id
    return Decision(ops=(op, *new_options), result_op=0, generation=1)


def _repeated_options(state: Draft, meta: Json, by: str | None) -> dict[str, Json]:
    """Return the options in a `meta` that repeats that of an earlier message, as an edit does.

    The result is {} if it refers to values that client `by` has not sent, or that are gone.
    """
    options = meta.get(OPTIONS_KEY) if isinstance(meta, dict) else None
    if not isinstance(options, dict):
        return {}
    value_ids = references(meta)
    values = [state.message(one) for one in value_ids.values()]
    is_own = all(one is not None and one.role == OPTIONS and one.author == by for one in values)
    return options if is_own and options.get(KEPT, {}) == value_ids else {}  # `value_ids` lacks damaged references


def _writer(caller: Caller, lease_s: float) -> WriterIdentity:
    return caller.writer or WriterIdentity(by=caller.id, lease_ms=int(lease_s * 1000))


def plain_append(state: ChannelState, key: str, request: AppendText, limits: Limits) -> Append | None:
    """Return the operation for text that a writer of this process appends at the end of its part, else None.

    Nearly all text arrives in this way. This is a fast path: it must return exactly what `decide` would store, or None,
    and then the caller asks `decide`, which may also refuse.
    """
    message, index, text = state.messages.get(key), request.part, request.text
    if message is None or message.status != "streaming" or message.deleted:
        return None
    if message.generation != request.generation or index is None or not 0 <= index < len(message.parts):
        return None
    known = message.parts[index].text
    if known is None or known.length != request.at or not text:
        return None
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return None
    if size > limits.append_bytes or message.size_bytes + size > limits.message_bytes:
        return None
    return Append(id=key, part=index, at=known.length, text=text)


def _append(message: MessageState, request: AppendText, limits: Limits, now_ms: int) -> Decision:
    """Decide an append. Hot path: each piece of a model's output comes here, so the common case is checked inline.

    `_check_streaming` comes late, as text that is stored may be sent again after the end.
    """
    at, index, text = request.at, request.part, request.text
    _check_not_negative(at, "at")
    _check_not_negative(index, "part")
    _check_generation(message, request.generation)
    size = len(text) if text.isascii() else utf8_len(check_text(text))
    if size > limits.append_bytes:
        raise _too_large(f"the text has {size} bytes", limits.append_bytes, "append_bytes", "append it in pieces")
    count = len(message.parts)
    if index is None:  # the text of all text parts counts as one, which new text continues behind the last part
        texts = [number for number, part in enumerate(message.parts) if part.fields["type"] == "text"]
        index = texts[-1] if texts else count
    elif index >= count:
        _check_streaming(message)
        raise NoPart(
            f"message {message.id!r} has {count} parts, the append was for part {index}; name one of them", parts=count
        )
    elif message.parts[index].text is None:
        _check_streaming(message)
        raise NotText(
            f"part {index} of message {message.id!r} is of type {shown(message.parts[index].fields['type'])}, "
            "text can be appended to 'text', 'reasoning' and 'tool' only; open such a part"
        )
    else:
        texts = [index]
    length = sum([message.parts[one].length for one in texts])
    new = text if at is None or at == length else _text_after_overlap(message, texts, length, request)
    if not new:  # the result names the part that has the end of the text
        start, end = length, length if at is None else at + len(text)  # `start` falls to where part `index` begins
        while text and start >= end and texts:
            index = texts.pop()
            start -= message.parts[index].length
        return Decision(serial=message.version, part=index, length=length)
    _check_streaming(message)
    _check_size(message, size if new is text else utf8_len(new), limits)
    op: Append | SetPart
    if request.part is None and index != count - 1:
        index = count  # further text opens a part behind the last one
        _check_part_count(count + 1, limits)
        op = SetPart(id=message.id, index=index, part={"type": "text", "text": new}, at_ms=now_ms)
    else:
        at_ms = now_ms if message.writer is not None and message.writer.lease_ms else 0  # it renews a lease
        op = Append(id=message.id, part=index, at=message.parts[index].length, text=new, at_ms=at_ms)
    return Decision(ops=(op,), part=index, length=length + len(new))


def _text_after_overlap(message: MessageState, texts: list[int], length: int, request: AppendText) -> str:
    """Return the end of the text of `request` that the parts `texts`, of this length together, do not hold yet.

    Raises Gap or Mismatch.
    """
    at, text = request.at or 0, request.text
    where = f"message {message.id!r}" if request.part is None else f"part {request.part} of message {message.id!r}"
    if at > length:
        _check_streaming(message)
        raise Gap(
            f"{where} has {length} characters, the append was for offset {at}; continue at offset {length}",
            length=length,
        )
    overlap = min(length - at, len(text))
    if overlap and _slice(message, texts, at, at + overlap) != text[:overlap]:
        _check_streaming(message)
        raise Mismatch(
            f"{where} has {length} characters, and those at offset {at} differ from the append; "
            "read the message and continue from its text",
            length=length,
        )
    return text[overlap:]


def _slice(message: MessageState, texts: list[int], start: int, end: int) -> str:
    """Return the text from `start` to `end` of the parts `texts`, as if they were one."""
    pieces = []
    for part in (message.parts[one] for one in texts):
        if part.text is not None and start < part.length and end > 0:  # each has a text; the types do not say so
            pieces.append(part.text.slice(max(0, start), end))
        start, end = start - part.length, end - part.length
    return "".join(pieces)


def _put_part(message: MessageState, request: PutPart, limits: Limits, now_ms: int) -> Decision:
    """Open a part at the end, or replace one; a superseded attempt stays, and so does the approval of a call."""
    _check_not_negative(request.index, "index")
    _check_generation(message, request.generation)
    _check_streaming(message)
    count = len(message.parts)
    if request.index > count:
        raise NoPart(
            f"message {message.id!r} has {count} parts, the request was for part {request.index}; use 0 to {count}",
            parts=count,
        )
    _check_part_count(request.index + 1, limits)
    part = check_part(request.part, limits)
    replaced_bytes = 0
    if request.index < count:
        earlier = message.parts[request.index].value()
        if earlier["type"] == ATTEMPT:
            raise InvalidRequest(f"part {request.index} of {message.id!r} is a superseded attempt; open another")
        replaced_bytes = part_bytes(earlier)
        part = _with_approval(part, earlier)
    _check_size(message, part_bytes(part) - replaced_bytes, limits)
    op = SetPart(id=message.id, index=request.index, part=part, at_ms=now_ms, request=_checked(request.request))
    return Decision(ops=(op,))


def _update(message: MessageState, request: UpdateMessage, caller: Caller, limits: Limits, now_ms: int) -> Decision:
    """Merge `meta`, and replace or supersede parts. While the message streams, only its writer may do so."""
    if message.is_streaming and request.generation is None:
        raise StillStreaming(
            f"message {message.id!r} is streaming in generation {message.generation}; "
            "only its writer may update it, with that generation"
        )
    if message.is_streaming:
        _check_writer(message, caller, request.generation)
        if not (caller.may_write or caller.is_app or caller.is_server):
            raise Forbidden(
                f"message {message.id!r} is streaming, and {_name_of(caller)} lacks the capability 'append' to "
                "update it; wait for its end"
            )
    if request.generation is not None:
        _check_generation(message, request.generation)
    if request.if_version is not None and request.if_version != message.version:
        raise VersionConflict(
            f"message {message.id!r} has version {message.version}, not {request.if_version}; read it again",
            version=message.version,
        )
    attempts = [one.fields for one in message.parts if one.fields["type"] == ATTEMPT]
    parts = _parts(request.text, request.parts, limits, attempts)
    if request.supersede is not None:
        _check_streaming(message)  # an answer that was stopped meanwhile stays as it is
        parts = _superseded(message, request.supersede, request.beside, parts or [], limits)
        if parts is None and not request.meta and request.request is None:
            return Decision(serial=message.version)  # the update changes no stored value
    elif parts is not None:  # an edit may not know of approvals
        calls = {one.fields["call"]: one.value() for one in message.parts if one.fields["type"] == "tool"}
        parts = [_with_approval(one, calls.get(one["call"], one)) if one["type"] == "tool" else one for one in parts]
    meta = _merged(message.meta, request.meta, limits, role=message.role)
    op = Update(id=message.id, parts=parts, meta=meta, at_ms=now_ms, request=_checked(request.request))
    return Decision(ops=(op,))


def _superseded(
    message: MessageState, since: int, beside: list[int], new: list[Part], limits: Limits
) -> list[Part] | None:
    """Return the parts of `message` with those from `since` on in one part of type `attempt`, followed by `new`.

    Attempts among them stay as they are, before it, and those with the indexes `beside` after it. Return None if there
    is nothing to change. Raises NoPart, InvalidRequest, TooLarge.
    """
    _check_not_negative(since, "supersede")
    known = [one.value() for one in message.parts]
    if since > len(known):
        raise NoPart(
            f"message {message.id!r} has {len(known)} parts, supersede was {since}; use 0 to {len(known)}",
            parts=len(known),
        )
    counted = [index for index, one in enumerate(known) if index >= since and one["type"] != ATTEMPT]
    stays = set(beside)
    if beside != [index for index in counted if index in stays]:
        detail = f"beside must be indexes of parts that count, from {since} on and rising, got {shown(beside)}"
        raise InvalidRequest(detail)
    taken = [index for index in counted if index not in stays]
    if not (taken or new):
        return None
    parts = known
    if taken:  # parts before the first of them stay where they are
        since, beside = taken[0], [index for index in beside if index > taken[0]]
        parts = known[:since] + [one for one in known[since:] if one["type"] == ATTEMPT]
        contents = [known[index] for index in taken]
        characters = sum(len(one["text"]) for one in contents if one["type"] == "text")
        places: Part = {"indexes": taken} if beside or since < len(parts) else {}  # {}: they were in a row from here
        places |= {"beside": beside} if beside else {}
        parts.append({"type": ATTEMPT, "parts": contents, "characters": characters, **places})
        parts += [known[index] for index in beside]
    parts = _without_old_attempts(parts, limits.message_bytes // ATTEMPTS_SHARE) + new
    _check_part_count(len(parts), limits)
    _check_size(message, sum(map(part_bytes, parts)) - message.size_bytes, limits)
    return parts


def _without_old_attempts(parts: list[Part], room_bytes: int) -> list[Part]:
    """Return `parts` without the contents of the oldest attempts, so that the others have at most `room_bytes`.

    An answer must have room for its own text, however often it was begun.
    """
    kept: list[Part] = []
    for part in reversed(parts):
        if part["type"] == ATTEMPT:
            room_bytes -= part_bytes(part)
            part = part if room_bytes >= 0 else {**part, "parts": []}
        kept.append(part)
    return kept[::-1]


def _finish(
    state: Draft, message: MessageState, request: FinishMessage, caller: Caller, limits: Limits, now_ms: int
) -> Decision:
    """End the writing of a message. The same end again has no effect; another one is refused."""
    _check_generation(message, request.generation)
    if request.status == "interrupted" and not caller.is_server:
        raise ForbiddenStatus("only the server sets 'interrupted'; finish with 'complete', 'cancelled' or 'failed'")
    check_finish(request, limits)
    if message.status == request.status:
        return Decision(serial=message.finished or message.created)  # `created`: it was never streaming
    _check_streaming(message)
    op = Finish(
        id=message.id,
        status=STATUSES[STATUSES.index(request.status)],  # no store encodes a subclass of `str`
        reason=request.reason,
        meta=_merged(message.meta, request.meta, limits, role=message.role),
        at_ms=now_ms,
        request=_checked(request.request),
    )
    return Decision(ops=(op, *_withdrawn(state, message, now_ms)), result_op=0)


def check_finish(request: FinishMessage, limits: Limits) -> None:
    """Raise InvalidRequest, InvalidText or TooLarge if `request` cannot finish any message."""
    if request.status == "streaming" or request.status not in STATUSES:
        raise InvalidRequest(f"the status must be 'complete', 'cancelled' or 'failed', got {shown(request.status)}")
    if request.reason is not None:
        check_json(request.reason, limits.data_bytes, "reason", depth=1)
    _merged({}, request.meta, limits)  # raises if this cannot be stored


def _take_over(message: MessageState, request: TakeOver, caller: Caller, now_ms: int) -> Decision:
    """Continue an interrupted message in the next generation; the server and an admin, also one that streams."""
    if request.generation is not None and request.generation != message.generation:
        raise _fenced(message, request.generation)
    if message.status == "streaming" and not (caller.is_server or caller.is_admin):
        raise StillStreaming(
            f"message {message.id!r} is streaming in generation {message.generation}; "
            "a takeover is possible once it is 'interrupted'"
        )
    if message.status not in ("streaming", "interrupted"):
        raise Finished(f"message {message.id!r} is {message.status!r}; only an 'interrupted' one can be taken over")
    generation = message.generation + 1
    op = Takeover(
        id=message.id,
        generation=generation,
        writer=_writer(caller, request.lease_s),
        request=_checked(request.request),
        at_ms=now_ms,
    )
    return Decision(ops=(op,), generation=generation, lengths=[part.length for part in message.parts])


def _earlier_decision(message: MessageState, request: str | None) -> Decision | None:
    """Return the decision of the request with id `request` if it was carried out already, else None."""
    # latest request first: if two writers used the same request id, only the later one can still repeat its request
    for known, serial, generation in reversed(message.requests):
        if known == request:
            lengths = [part.length for part in message.parts]
            return Decision(serial=serial, generation=generation, lengths=lengths)
    return None


def _checked(id: str | None, what: str = "request") -> str | None:
    """Return the id in the field `what` of a request, by default that of the request itself. Raises InvalidName."""
    return check_id(id, what) if id is not None else None


def _check_not_negative(number: int | None, what: str) -> None:
    """Raise InvalidRequest for a negative `number` in a request made in process; transports check it while decoding."""
    if number is not None and number < 0:
        raise InvalidRequest(f"{what} must be 0 or more, got {number}")


def _too_large(what: str, limit: int, name: str, remedy: str) -> TooLarge:
    return TooLarge(f"{what}, the limit is {limit} (Limits.{name}); {remedy}", limit=limit)


def _check_size(message: MessageState, more_bytes: int, limits: Limits) -> None:
    size = message.size_bytes + more_bytes
    if size > limits.message_bytes:
        what = f"message {message.id!r} would have {size} bytes"
        raise _too_large(what, limits.message_bytes, "message_bytes", "continue in another message")


def _check_part_count(count: int, limits: Limits) -> None:
    if count > limits.parts:
        raise _too_large(f"the message would have {count} parts", limits.parts, "parts", "send fewer")


def _parts(
    text: str | None, parts: list[Part] | None, limits: Limits, attempts: Sequence[Part] = (), most_bytes: int = 0
) -> list[Part] | None:
    """Return the checked parts of a create or update; None if the request has neither `text` nor `parts`.

    An edited message may keep its `attempts`, which no request can make. A part has at most `most_bytes`; 0: unknown.
    """
    if text is not None and parts is not None:
        raise InvalidRequest(f"the request has both the text {shown(text)} and {len(parts)} parts; send one of them")
    if text is not None:
        parts = [{"type": "text", "text": text}]
    if parts is None:
        return None
    _check_part_count(len(parts), limits)
    checked = [part if part in attempts else check_part(part, limits, most_bytes) for part in parts]
    if (size := sum(map(part_bytes, checked))) > limits.message_bytes:
        raise _too_large(f"the message would have {size} bytes", limits.message_bytes, "message_bytes", "send less")
    return checked


def _merged(
    old: dict[str, Json], new: dict[str, Json], limits: Limits, options: Json = None, role: str = "assistant"
) -> dict[str, Json]:
    """Return `new` merged into `old` at the top level; null removes a key. Only `options` sets the server's own key."""
    if not isinstance(new, dict):
        raise InvalidRequest(f"meta must be an object, got {shown(new)}")
    if not new and not options:
        return old
    own = {OPTIONS_KEY: options or old.get(OPTIONS_KEY)}
    merged = {name: value for name, value in {**old, **new, **own}.items() if value is not None}
    check_meta(merged, limits, role)
    return plain(merged)


def check_meta(meta: dict[str, Json], limits: Limits, role: str = "assistant") -> int:
    """Return the size of `meta` in bytes as JSON. Raises as `check_json`.

    An app that fills it must not fail its answer: `pipe` and attempts have room of their own, but in no user's message.
    """
    own = {name: value for name, value in meta.items() if name not in STREAMED}
    own_bytes = check_json(own, limits.meta_bytes, "meta", depth=limits.depth)
    if len(own) == len(meta):
        return own_bytes
    most_bytes = limits.meta_bytes + (STREAMED_BYTES if role != "user" else 0)
    return check_json(meta, most_bytes, "meta with its streams' fields", depth=limits.depth)


# -- commands: each is stored, and the first reply to it counts ------------------------------------------------


def _send_command(
    state: Draft, key: str, request: SendCommand, caller: Caller, now_ms: int, limits: Limits, is_served: bool
) -> Decision:
    """Store a command. A `regenerate`, and a `cancel` of a turn that waits, are carried out in the same batch."""
    assert key.startswith(COMMAND_MARK)  # without its prefix the stored command would be read as a message
    check_id(command_id(key), "a command's id")
    check_id(request.name, "a command's name")
    is_step = request.name == STEP.name
    if is_step or request.generation is not None:
        refusal = Forbidden("a step, and a command with `generation`, is for the agent that has the turn of its target")
        _check_has_turn(state, request.target, request.generation, caller, refusal)
    if is_step != command_id(key).startswith(STEP_MARK):
        raise InvalidName(f"ids of commands that begin with {STEP_MARK!r} are those of steps; choose another id")
    options = [request.options] if request.options else []
    sent_digest, _ = fingerprint("the command", caller.id, request.name, request.target, request.data, *options)
    known = state.command(key)
    if known is not None:
        # another attempt at the turn, maybe of another agent and about another answer, goes on with a step or question
        is_same = (known.sent.name, _question(known.sent.data)) == (request.name, _question(request.data))
        if known.sent.digest != sent_digest and not (is_step or (is_same and request.generation is not None)):
            raise IdConflict(f"command id {command_id(key)!r} was used before with other content; use a new id")
        # the reply came while no attempt wrote, or to one that was superseded: it is noted at the part of this one
        noted: tuple[SetPart, ...] = ()
        if known.reply is not None and request.generation is not None:
            noted = _approval_noted(state, known, request, known.reply, now_ms)
        return Decision(ops=noted, serial=known.created)
    if command_id(key).startswith(QUESTION_MARK) and request.generation is None:
        raise InvalidName(f"ids that begin with {QUESTION_MARK!r} are those of a turn's questions; choose another id")
    _check_may_begin(state, caller)
    if not 0 < request.expires_s <= LONGEST_S:
        raise InvalidRequest(f"expires_s must be above 0 and at most {LONGEST_S}, got {request.expires_s}")
    if request.options and not rules_of(request.name).restarts:
        raise InvalidRequest(f"only a regenerate may have options, got them for the command {shown(request.name)}")
    data = _data(request.data, limits.data_bytes, limits)
    target = _target(state, request, caller)
    command = Command(
        id=key,
        name=request.name,
        target=request.target,
        data=data,
        by=caller.id,
        at_ms=now_ms,
        expires_ms=now_ms + int((STEP_S if is_step else request.expires_s) * 1000),
        digest=sent_digest,
    )
    if rules_of(request.name).restarts:
        assert target is not None
        ops = _restarted(state, request, target, caller, now_ms, limits, is_served)
    elif rules_of(request.name).stops and target is not None and _is_only_waiting(state, target):
        ops = _cancelled(state, target, now_ms)
    else:
        if not (is_step or caller.is_server or caller.is_app):
            _check_room(state, request, caller, limits)
        return Decision(ops=(command,))
    # the result carries the serial of the command, as does that of a repeated request (`known`)
    return Decision(ops=(command, *ops, Reply(id=key, ok=True, at_ms=now_ms)), result_op=0)


def _question(data: Json) -> Json:
    """Return `data` without its call: a model that is asked again gives it another id."""
    return {**data, "call": None} if isinstance(data, dict) else data


def _restarted(
    state: Draft,
    request: SendCommand,
    target: MessageState,
    caller: Caller,
    now_ms: int,
    limits: Limits,
    is_served: bool,
) -> list[Op]:
    """Return the operations by which `target` waits for an agent again; [] if it waits already.

    With options such a message is refused: an attempt may know the earlier ones, and go on with its steps.
    The next attempts are numbered in a new round. Their answers therefore get new ids, and earlier crashes do not count
    towards the limit of attempts.
    """
    if target.role != "user":
        raise InvalidRequest(
            f"a regenerate needs the id of a user message as `target`, got a message of role {target.role!r}: "
            "name the message in its `reply_to`"
        )
    if _is_only_waiting(state, target) and not request.options:
        return []
    if _is_in_progress(state, target):
        raise StillStreaming(f"message {target.id!r} is being answered: wait for the end, or send a cancel first")
    if not is_served:
        raise Finished(f"message {target.id!r} cannot wait for an answer: no agent serves its channel")
    _check_room_for_pending(state, limits)
    generation = next_round(target.claim.generation if target.claim is not None else 0)
    claim = Claim(id=target.id, state="pending", generation=generation, at_ms=now_ms)
    return [*_kept_options(state, request, target, caller, now_ms, limits), claim]


def _kept_options(
    state: Draft, request: SendCommand, target: MessageState, caller: Caller, now_ms: int, limits: Limits
) -> list[Op]:
    """Return the operations that keep the options of a `regenerate`, in place of those of an earlier one.

    They are in messages of their authors, to which one without an author refers: all attempts find that one, wherever
    they run.
    """
    options, values = split_options(request.options, caller.id, now_ms, limits, is_hidden=True)
    check_json(options, limits.data_bytes, "the list of large options", depth=limits.depth)
    # the name tells `target` from a later message with the same id
    part = {"type": "data", "name": str(target.created), "data": options}
    ops: list[Op] = [one for one in values if state.message(one.id) is None]  # an equal value has the same id
    known = state.message(id := regenerate_options_id(target.id))
    if known is not None and known.role != OPTIONS:  # an import may have stored any id
        raise IdConflict(f"message {id!r} has the id of the options of this regenerate; name another user message")
    if known is None and options:
        ops.append(Create(id=id, role=OPTIONS, status="complete", parts=[part], at_ms=now_ms))
    elif known is not None and [one.value() for one in known.parts] != [part]:
        ops.append(Update(id=id, parts=[part], meta={}, at_ms=now_ms))
    return ops


def _check_room_for_pending(state: Draft, limits: Limits) -> None:
    """Raise TooMany if too many messages wait for an agent: such messages stay in memory until an agent takes them."""
    pending = state.pending()
    size_bytes = sum(one.size_bytes for one in pending)
    for count, limit, what in (
        (len(pending), limits.pending_messages, "messages"),
        (size_bytes, limits.pending_bytes, "bytes of messages"),
    ):
        if count >= limit:
            raise TooMany(
                f"the channel has {count} {what} that wait for an agent, the limit is {limit}; try again later",
                limit=limit,
            )


def _check_may_begin(state: Draft, caller: Caller) -> None:
    """Raise the refusal of `caller`, if it has one, or TooMany if it has created too many channels in this hour."""
    if caller.refusal is not None:
        raise caller.refusal
    if not caller.may_begin and state.is_empty:
        raise TooMany(
            f"the channel does not exist, and {_name_of(caller)} has created as many channels in the last hour as it "
            "may; try again later"
        )


def _check_room(state: Draft, request: SendCommand, caller: Caller, limits: Limits) -> None:
    """Raise TooMany if too many commands wait for a reply.

    `cancel` commands are counted separately, so that people can stop an answer while many other commands wait. They
    need no limit per sender, because the server replies to each within seconds.
    """
    stops = rules_of(request.name).stops
    alike = [one for one in state.open_commands() if rules_of(one.sent.name).stops is stops]
    if stops:
        _check_count(sum(one.sent.target == request.target for one in alike), OPEN_CANCELS, "cancels of that target")
        return
    _check_count(len(alike), limits.open_commands, "commands")
    own = sum(one.sent.by == caller.id for one in alike)
    _check_count(own, max(1, limits.open_commands // 4), "commands of this sender")


def _check_count(count: int, limit: int, what: str) -> None:
    if count >= limit:
        raise TooMany(
            f"the limit of {limit} {what} wait for a reply; send it again when one has its reply", limit=limit
        )


def _reply_command(
    state: Draft, key: str, request: ReplyCommand, caller: Caller, now_ms: int, limits: Limits
) -> Decision:
    """Store the reply to a command. The first reply counts; a later one is refused."""
    command = _command(state, key)
    if command.is_step:
        _check_has_turn(state, command.sent.target, request.generation, caller, _unknown(key))
    known = (command.reply.by, command.reply.request) if command.reply is not None else None
    if request.request is not None and known == (caller.id, request.request):
        return Decision(serial=command.reply_serial)  # a repeat, perhaps after the end of its work
    is_senders = caller.id is not None and command.sent.by == caller.id
    is_at_work = _is_at_work_on(state, command.sent.target, caller)
    if not (caller.may_read or is_senders or is_at_work):  # it must not learn which commands exist
        raise _unknown(key)
    is_trusted = is_at_work or caller.is_admin or caller.is_app or caller.is_server
    if rules_of(command.sent.name).replier is Replier.WORKER and not is_trusted:
        _check_may_reply(command, caller)
    if command.reply is not None:
        raise AlreadyAnswered(f"command {command_id(key)!r} already has a reply; only the first one counts")
    reply = Reply(
        id=key,
        ok=request.ok,
        data=_data(request.data, limits.step_bytes if command.is_step else limits.data_bytes, limits),
        error=_data(request.error, limits.data_bytes, limits),
        by=caller.id,
        request=_checked(request.request),
        at_ms=now_ms,
    )
    return Decision(ops=(reply, *_approval_noted(state, command, command.sent, request, now_ms)), result_op=0)


def _approval_noted(
    state: Draft, command: CommandState, asked: Command | SendCommand, reply: ReplyCommand | Reply, now_ms: int
) -> tuple[SetPart, ...]:
    """Return the operation that notes the reply at the tool call which an `approve` names in `data.call`, if it waits.

    `asked` has the target and data of the question. A reply with an error, such as that of an agent that withdraws its
    question, is not noted.
    """
    call = asked.data.get("call") if isinstance(asked.data, dict) else None
    target = state.message(asked.target) if asked.target is not None else None
    is_judgement = command.sent.name == APPROVE.name and reply.error is None
    if not is_judgement or target is None or not target.is_streaming:
        return ()
    tools = [one for one in enumerate(target.parts) if one[1].fields["type"] == "tool"]
    waiting = [(n, one.value()) for n, one in tools if one.fields["call"] == call and "output" not in one.fields]
    # without another reply: a model may repeat the id of a denied call, and this may repeat an older question
    chosen = [one for one in waiting if "approval" not in one[1]]
    for index, part in chosen or (waiting[-1:] if isinstance(asked, Command) else []):
        denied = {} if reply.ok else {"state": DENIED}
        noted = {**part, **denied, "approval": _approval(command, reply)}
        return (SetPart(id=target.id, index=index, part=noted, at_ms=now_ms),)
    return ()


def _approval(command: CommandState, reply: ReplyCommand | Reply) -> dict[str, Json]:
    """Return the field `approval` of a tool part: the reply, without its author."""
    reason = reply.data.get("reason") if isinstance(reply.data, dict) else None
    short = reason[:REASON_CHARS] if isinstance(reason, str) else None
    return plain(Approval(id=command_id(command.id), approved=reply.ok, reason=short))  # `command.id` has a mark


def _with_approval(part: Part, earlier: Part) -> Part:
    """Return `part`, which replaces `earlier`, with the approval of the same tool call: a writer may not know it."""
    is_same_call = part["type"] == earlier["type"] == "tool" and part["call"] == earlier["call"]
    if is_same_call and "approval" in earlier and "approval" not in part:
        return {**part, "approval": earlier["approval"]}
    return part


def _check_may_reply(command: CommandState, caller: Caller) -> None:
    """Raise Forbidden if `caller`, which does not work on the target, may not reply to this `cancel` or `steer`.

    The server does not carry out a `cancel` that has a reply, so a reply by another client would keep the answer
    running. Any client that may write replies to a command without a target.
    """
    if command.sent.target is not None:
        raise Forbidden(
            f"only the agent that works on message {command.sent.target!r} may reply to this "
            f"{command.sent.name}; wait for its reply"
        )
    if not caller.may_write:
        raise Forbidden(f"a reply to command {command.sent.name!r} without a target needs the capability 'append'")


def _is_at_work_on(state: Draft, target_id: str | None, caller: Caller) -> bool:
    """Return whether `caller`, in another process, writes the message, has its turn, or writes all answers to it.

    It must write all answers, and no worker may have the turn: otherwise a client that starts an answer itself could
    claim that the other answers have stopped. Messages that are being worked on are always in memory; a message that is
    not in memory is finished.
    """
    target = state.message(target_id) if target_id is not None else None
    if target is None or target.deleted:
        return False
    if _is_written_by(target, caller) or _has_turn(target, caller):
        return True
    if target.claim is not None and target.claim.is_open:
        return False
    answers = [one for one in state.streaming() if one.reply_to == target.id]
    return bool(answers) and all(_is_written_by(one, caller) for one in answers)


def _is_written_by(message: MessageState, caller: Caller) -> bool:
    writer = message.writer
    return writer is not None and writer.node is None and writer.by == caller.id and caller.may_write


def _check_has_turn(
    state: Draft, target_id: str | None, generation: int | None, caller: Caller, refusal: TenutoError
) -> None:
    """Raise Fenced unless attempt `generation` of `caller` has the turn of the target, or of the message it answers.

    A caller without that turn, or without a `generation`, gets `refusal`.
    """
    message = _asked(state, target_id)
    claim = message.claim if message is not None and not message.deleted else None
    is_holder = caller.is_app or (message is not None and _has_turn(message, caller))
    if generation is None or not is_holder:
        raise refusal
    if claim is None or (claim.state, claim.generation, claim.within) != ("taken", generation, None):
        raise Fenced(f"attempt {generation} no longer has the turn of message {target_id!r}; end this handler")


def _asked(state: Draft, id: str | None) -> MessageState | None:
    """Return the message of this id, or the one that it answers unless it had a turn itself."""
    message = state.message(id) if id is not None else None
    asked = message.reply_to if message is not None and message.claim is None else None
    return message if asked is None else state.message(asked)


def _has_turn(message: MessageState, caller: Caller) -> bool:
    claim = message.claim
    return claim is not None and claim.state == "taken" and claim.node is None and is_own_name(claim.by, caller.id)


def _settle_command(state: Draft, key: str, request: SettleCommand, now_ms: int) -> Decision:
    """Give the server's reply to a command without one: carry out a `cancel`, and expire a command that is too old."""
    command = _command(state, key)
    if command.reply is not None:
        return Decision(serial=command.reply_serial)
    if request.expires_ms not in (None, command.sent.expires_ms):  # a later command with the same id
        return Decision(serial=command.created)
    if rules_of(command.sent.name).stops and command.sent.target is not None:
        ops = _carry_out_cancel(state, command.sent.target, now_ms)
        late = Finished("the answer ended before the cancel was carried out; no other cancel is needed")
        error: Json = None if ops else {"code": late.code, "detail": late.detail}
        return Decision(ops=(*ops, Reply(id=key, ok=bool(ops), error=error, at_ms=now_ms)))
    if request.is_expired:
        expired: Json = {"code": "expired", "detail": "no reply arrived in time"}
        return Decision(ops=(Reply(id=key, ok=False, error=expired, at_ms=now_ms),))
    return Decision(serial=command.created)  # it still waits for its reply


def _carry_out_cancel(state: Draft, target: str, now_ms: int) -> list[Op]:
    """Return the operations that end `target`, an answer or all answers to a user message, and the turn."""
    ops: list[Op] = []
    turns = {target}  # ids of the messages whose turns end, if they have open ones
    for message in state.streaming():
        if target in (message.id, message.reply_to):
            ops.append(Finish(id=message.id, status="cancelled", reason=None, meta=message.meta, at_ms=now_ms))
            ops += _withdrawn(state, message, now_ms)
            if message.reply_to is not None:
                turns.add(message.reply_to)
    for message_id in sorted(turns):
        asked = state.message(message_id)
        if asked is not None and not asked.deleted and asked.claim is not None and asked.claim.is_open:
            ops += _cancelled(state, asked, now_ms)
    return ops


def _target(state: Draft, request: SendCommand, caller: Caller) -> MessageState | None:
    """Return the message that a command names. Raise NotFound, Deleted, or Finished if no answer to it is running."""
    if request.target is None:
        if rules_of(request.name).needs_target:
            raise InvalidRequest(
                f"a {request.name} needs `target`: the id of an answer, or of the user message that it answers"
            )
        return None
    check_id(request.target, "target")
    target = state.message(request.target)
    # without the right to read, a caller must learn only of its own messages; an anonymous one cannot prove these
    is_known = target is not None and caller.id is not None and _is_author_or_writer(target, caller)
    if target is None or not (caller.may_read or is_known):
        raise NotFound(f"message {request.target!r} does not exist in this channel; check the target")
    if target.deleted:
        raise Deleted(f"message {request.target!r} was deleted; check the target")
    asked = _asked(state, target.id) if request.name == STEER.name else None  # a steer is also for the next answer
    is_over = not _is_in_progress(state, target) and (asked is None or not asked.is_open)
    if is_over and rules_of(request.name).replier is Replier.WORKER:
        raise Finished(f"message {request.target!r} has no running answer to {request.name}; it may have ended already")
    return target


def _is_in_progress(state: Draft, target: MessageState) -> bool:
    return target.is_open or _has_answers(state, target)


def _is_only_waiting(state: Draft, target: MessageState) -> bool:
    """Return whether the turn waits for a worker and has no answer, so that no process has to stop first."""
    return target.is_pending and not _has_answers(state, target)


def _is_being_cancelled(state: Draft, message_id: str) -> bool:
    """Return whether a command that stops the turn of a message, or an answer to it, waits for its reply."""
    sent = (one.sent for one in state.open_commands())
    targets = (state.message(one.target) for one in sent if rules_of(one.name).stops and one.target is not None)
    return any(one is not None and message_id in (one.id, one.reply_to) for one in targets)


def _has_answers(state: Draft, target: MessageState) -> bool:
    return any(message.reply_to == target.id for message in state.streaming())


def _command(state: Draft, key: str) -> CommandState:
    command = state.command(key)
    if command is None:
        raise _unknown(key)
    return command


def _unknown(key: str) -> NotFound:
    return NotFound(f"command {command_id(key)!r} does not exist in this channel; check the id")


def _data(value: Json, limit_bytes: int, limits: Limits) -> Json:
    if value is None:
        return None
    check_json(value, limit_bytes, "data", depth=limits.depth)
    return plain({"data": value})["data"]


def _cancelled(state: Draft, message: MessageState, now_ms: int) -> list[Op]:
    """Return the operations by which the open turn of `message` ends as cancelled."""
    claim = _open_claim(message)
    op = Claim(id=message.id, state="cancelled", generation=claim.generation, by=claim.by, at_ms=now_ms)
    return [*_ended_with(state, message, now_ms), op]


def _ended_with(
    state: Draft, message: MessageState, now_ms: int, end: str = "pending", unheard: Container[str] = ()
) -> list[Claim | Reply]:
    """Return the operations on the held messages (`_released`) and the open questions of a turn that ends."""
    return [*_released(state, message, now_ms, end, unheard), *_withdrawn(state, message, now_ms)]


def _released(
    state: Draft, message: MessageState, now_ms: int, end: str = "pending", unheard: Container[str] = ()
) -> list[Claim]:
    """Return the operations by which the messages that the turn of `message` has taken in wait again, or end with it.

    If its attempt ends the turn in the state `end`, those that this attempt has taken in end so, too, except those
    that its handler did not get (`unheard`). Of a turn ended from outside the log does not show which these are.
    """
    ops: list[Claim] = []
    for one, known in state.held_by(message.id):
        op = Claim(id=one.id, state=end, generation=known.generation, by=known.by, at_ms=now_ms)
        is_last = message.claim is not None and message.claim.generation == known.within_generation
        if is_last and end != "pending" and one.id not in unheard:
            ops.append(replace(op, within=known.within, within_generation=known.within_generation))
        else:
            ops.append(replace(op, state="pending", spared=min(known.spared + 1, MOST_SPARED)))
    return ops


def _withdrawn(state: Draft, message: MessageState, now_ms: int) -> list[Reply]:
    """Return the replies to the open questions and steers of a turn that ends, or of an answer without a turn."""
    left: list[tuple[CommandState, dict[str, Json], str | None]] = []
    for one in state.open_commands():
        if command_id(one.id).startswith(QUESTION_MARK):
            left.append((one, WITHDRAWN, one.sent.by))
        elif one.sent.name == STEER.name:
            left.append((one, UNREAD, None))
    if not left:
        return []
    turn = _asked(state, message.id)
    claim = turn.claim if turn is not None and turn.is_open else None
    if claim is not None and message.claim is None:  # the turn of this answer goes on
        return []
    targets = {message.id}
    if claim is not None:
        # answers of earlier attempts may not be in memory, and those in memory may have other ids
        targets.update(reply_ids(message.id, claim.generation))
        targets.update(one.id for one in state.messages() if one.reply_to == message.id)
    elif message.reply_to is not None and [one.reply_to for one in state.streaming()].count(message.reply_to) == 1:
        targets.add(message.reply_to)
    return [
        Reply(id=one.id, ok=False, error=error, by=by, at_ms=now_ms)
        for one, error, by in left
        if one.sent.target in targets
    ]


# -- owners: who writes a message and until when, and who has a turn ---------------------------------------------


def _check_writer(message: MessageState, caller: Caller, generation: int | None) -> None:
    """Raise NotWriter unless `caller` created the message or took it over.

    An author whose message another writer took over passes, so that the generation check refuses it with `fenced`,
    unless it presents the current generation.
    """
    if caller.is_app or caller.is_server or _is_writer(message, caller):
        return
    if _is_author(message, caller) and message.generation != (1 if generation is None else generation):
        return
    raise NotWriter(
        f"message {message.id!r} belongs to another writer than {_name_of(caller)}; take it over once it is "
        "'interrupted'"
    )


def check_may_change(message: MessageState, caller: Caller) -> None:
    """Raise Forbidden if `caller` may not edit or delete the message because it belongs to another author."""
    if caller.is_admin or caller.is_app or caller.is_server:
        return
    # Anonymous callers cannot be distinguished from each other, nor from the app: such a caller owns a message only
    # while it streams, and only with the right to write. A caller without that right cannot have written an
    # assistant's message, even if its id equals the author's: a person may be called `assistant`, too.
    is_plausible = caller.may_write or message.role == "user"
    is_known = caller.id is not None or (message.is_streaming and caller.may_write)
    if is_plausible and is_known and _is_author_or_writer(message, caller):
        return
    raise Forbidden(
        f"message {message.id!r} belongs to another author than {_name_of(caller)}; "
        "changing it needs the capability 'admin'"
    )


def _name_of(caller: Caller) -> str:
    """Return the caller's name for error messages."""
    return "an anonymous caller" if caller.id is None else f"caller {shown(caller.id)}"


def _is_writer(message: MessageState, caller: Caller) -> bool:
    """Return whether `caller` created the message, or was the last to take it over."""
    writer = message.writer
    if writer is None:
        return _is_author(message, caller)
    if caller.writer is not None:  # of writers with one client id the generation tells which may write
        return writer.by == caller.id
    return writer.node is None and writer.by == caller.id  # a writer with a `node` is in a hub's process


def _is_author(message: MessageState, caller: Caller) -> bool:
    """Return whether `caller` created the message."""
    return caller.id is not None and message.author == caller.id


def _is_author_or_writer(message: MessageState, caller: Caller) -> bool:
    """Return whether `caller` created the message or writes it now.

    Messages without an author do not belong to anonymous clients.
    """
    return _is_author(message, caller) or _is_writer(message, caller)


def _check_generation(message: MessageState, generation: int | None) -> None:
    """Raise Fenced unless `generation` (by default 1) may write the message now."""
    if message.generation != (1 if generation is None else generation):
        raise _fenced(message, generation)


def _fenced(message: MessageState, generation: int | None) -> Fenced:
    """Return the error for a request whose `generation` is not the message's current one."""
    given = "1 (the default)" if generation is None else str(generation)
    problem = "stale" if (generation or 1) < message.generation else "unknown"
    return Fenced(
        f"generation {given} of message {message.id!r} is {problem}, the current one is {message.generation}; "
        "only the latest writer may write",
        generation=message.generation,
    )


def _check_streaming(message: MessageState) -> None:
    """Raise Finished if the message has an end."""
    if message.status != "streaming":
        raise Finished(f"message {message.id!r} is {message.status!r}; only a 'streaming' one can be written")


def _renew_lease(message: MessageState, request: RenewLease, now_ms: int) -> Decision:
    """Return the decision on a renewal: it stores a new term only. Raises Fenced, Finished."""
    _check_generation(message, request.generation)
    _check_streaming(message)
    lease_ms = int(request.lease_s * 1000)
    if message.writer is None or message.writer.lease_ms in (0, lease_ms):  # 0: the writer has no lease
        return Decision(serial=message.version)
    return Decision(ops=(Lease(id=message.id, lease_ms=lease_ms, at_ms=now_ms),))


def stored_renewal(message: MessageState | None, now_ms: int) -> tuple[Lease, ...]:
    """Return the entry by which the hubs of a shared store learn that the writer of `message` has sent a request.

    Only for a request without an entry of its own, and none if the message has no lease.
    """
    writer = message.writer if message is not None and message.is_streaming else None
    if message is None or writer is None or not writer.lease_ms:
        return ()
    return (Lease(id=message.id, lease_ms=writer.lease_ms, at_ms=now_ms),)


GIVEN_BACK_MS = 1  # length of the lease of an attempt that its worker has given back: each hub soon counts it as lost
CRASHED = "crashed"  # reason that a failed answer shows if each attempt of its turn ended without an answer


def _claim_turn(state: Draft, message: MessageState, request: ClaimTurn, caller: Caller, now_ms: int) -> Decision:
    """Claim the turn of `message` as the attempt after `request.generation`, unless it has to wait for another turn.

    A claim that `confirms` an attempt keeps its number, because an attempt without a handler does not count. The claim
    of a node that counted the attempt as lost before its confirmation is refused.
    """
    claim = _open_claim(message)
    if request.renews:
        return _renew_turn(message, claim, request, caller, now_ms)
    if (claim.generation, claim.confirmed) != (request.generation, request.confirmed):
        if caller.writer is not None and claim == _claim_of(caller, request, claim):
            # an earlier claim by this caller was stored, but its result was lost on the way
            return Decision(serial=message.last, generation=claim.generation)
        raise _stale(message, claim, request)
    if request.lost is not None:
        _check_alone(state, message, request.lost)
    if request.within is not None:
        _check_may_take_in(state, request.within, request.within_generation, is_again=claim.within == request.within)
    return _taken(message, _claim_of(caller, request, claim), now_ms)


def _renew_turn(message: MessageState, claim: ClaimState, request: ClaimTurn, caller: Caller, now_ms: int) -> Decision:
    """Confirm the attempt of a remote worker: each hub of a shared store gives it another term, or ends its lease."""
    is_latest = not caller.is_server or claim.confirmed == request.confirmed  # a worker does not know the confirmations
    if (claim.state, claim.generation) != ("taken", request.generation) or not is_latest:
        raise _stale(message, claim, request)
    if (claim.by, claim.node, claim.within) != (caller.id, None, None):
        raise NotWriter(f"another worker has the turn of message {message.id!r}; stop working on it")
    if claim.lease_ms == GIVEN_BACK_MS:  # given back already, which a renewal cannot undo
        if not request.gives_back:
            raise _stale(message, claim, request)
        return Decision(serial=message.last, generation=claim.generation)
    lease_ms = GIVEN_BACK_MS if request.gives_back else claim.lease_ms
    return _taken(message, claim._replace(lease_ms=lease_ms, confirmed=claim.confirmed + 1), now_ms)


def _taken(message: MessageState, claim: ClaimState, now_ms: int) -> Decision:
    """Return the decision that the turn of `message` is taken by `claim`."""
    op = Claim(id=message.id, at_ms=now_ms, **{name: getattr(claim, name) for name in CLAIMED})
    return Decision(ops=(op,), generation=claim.generation)


def _check_alone(state: Draft, message: MessageState, lost: tuple[tuple[str, int, int], ...]) -> None:
    """Raise StillStreaming if a further turn runs, except those `lost`: another hub may have claimed it just now."""
    for other in state.running():
        assert other.claim is not None
        if other.id != message.id and (other.id, other.claim.generation, other.claim.confirmed) not in lost:
            raise StillStreaming(f"message {other.id!r} is being answered: wait for the end of its turn")


def _check_may_take_in(state: Draft, message_id: str, attempt: int, *, is_again: bool) -> None:
    """Raise Finished unless this attempt has the turn of a message, and no client cancels it.

    With `is_again`, the turn had the message before: a cancel does not count, as one of its answers may contain it.
    """
    host = state.message(message_id)
    if host is None or not host.is_taken or host.claim is None or host.claim.generation != attempt:
        raise Finished(f"attempt {attempt} no longer has the turn of message {message_id!r}; it takes no message in")
    if not is_again and _is_being_cancelled(state, message_id):
        raise Finished(f"the turn of message {message_id!r} is being cancelled, so it takes no message in")


def _check_attempt(state: Draft, message_id: str, answer_id: str, role: str, attempt: int | None) -> None:
    """Raise Fenced if the turn of a message has another attempt by now, or waits for one after a `regenerate`.

    The agent of this attempt may not know that yet, for example after its node was cut off from the store. A further
    answer of it would stand beside those of the later attempt. A remote agent names no attempt (None), but the id of
    its answer shows an earlier one. No answer to a deleted message is begun: it would stay behind.
    """
    message = state.message(message_id)
    if message is None or (claim := message.claim) is None:
        return
    if message.deleted and role != "user":
        raise Fenced(f"message {message_id!r} was deleted; begin no answer to it", generation=claim.generation)
    if attempt is None:
        attempt = earlier_attempt(message_id, answer_id, claim.generation)
    if attempt in (None, claim.generation):
        return
    is_waiting = claim.state == "pending"
    later = "it waits for a new answer (regenerate)" if is_waiting else f"attempt {claim.generation} has followed"
    raise Fenced(
        f"attempt {attempt} cannot begin a further answer to message {message_id!r}: {later}; end this handler",
        generation=claim.generation,
    )


def _end_turn(state: Draft, message: MessageState, request: EndTurn, caller: Caller, now_ms: int) -> Decision:
    """End the turn of `message`, or hand it over. Only the running attempt may do this.

    A node that gives the turn up names the confirmations, too, and is refused if the attempt was confirmed since.
    """
    claim = message.claim
    is_ours = caller.is_app or caller.is_server or (claim is not None and claim.node is None and claim.by == caller.id)
    if claim is not None and is_ours and (claim.state, claim.generation) == (request.state, request.generation):
        return Decision(serial=message.last, generation=claim.generation)  # a repeat; one with `failure` is refused
    claim = _open_claim(message)
    if claim.generation != request.generation or request.confirmed not in (None, claim.confirmed):
        raise _stale(message, claim, request)
    if not is_ours:
        raise NotWriter(f"another worker has the turn of message {message.id!r}; stop working on it")
    if request.state == "pending":
        return _handed_over(state, message, claim, now_ms)
    failed = _failed(state, message, claim, request.failure, now_ms) if request.failure is not None else ()
    end = request.state if request.failure is None else "pending"  # what a failed turn took in waits again
    ended = _ended_with(state, message, now_ms, end, request.unheard)
    op = Claim(
        id=message.id,
        state=request.state,
        generation=claim.generation + (request.failure is not None),  # the last attempt begins no other answer
        by=claim.by,
        at_ms=now_ms,
        within=claim.within,
        within_generation=claim.within_generation,
    )
    return Decision(ops=(*failed, *ended, op), generation=claim.generation)


def _handed_over(state: Draft, message: MessageState, claim: ClaimState, now_ms: int) -> Decision:
    """Return the decision that the turn waits for its next attempt, and that the answers of this one are interrupted.

    The messages that it has taken in wait again, too; this attempt does not count for them either.
    """
    if claim.state != "taken" or claim.within is not None:  # `within`: another turn has taken it in
        raise Finished(f"the turn of message {message.id!r} is {claim.state!r}, so it cannot be handed over")
    ends = [
        Finish(id=one.id, status="interrupted", reason=None, meta=one.meta, at_ms=now_ms)
        for one in state.streaming()
        if one.reply_to == message.id and one.writer is not None and is_own_name(claim.by, one.writer.by)
    ]
    spared = min(claim.spared + 1, MOST_SPARED)
    op = Claim(id=message.id, state="pending", generation=claim.generation, by=claim.by, at_ms=now_ms, spared=spared)
    return Decision(ops=(*ends, *_released(state, message, now_ms), op), generation=claim.generation)


def _failed(state: Draft, message: MessageState, claim: ClaimState, answer_id: str, now_ms: int) -> list[Op]:
    """Return the operations by which the answer of a turn fails, which is the one that people see.

    The takeovers fence the last attempt, which may still write. If no answer was begun, an empty one fails, with the id
    `answer_id`.
    """
    answers = [one for one in state.messages() if is_answer_of(one, message.id, claim) and not one.deleted]
    seen = {one.id for one in newest_branch([one.message() for one in answers])}
    writer = WriterIdentity(by=claim.by)
    ops: list[Op] = []
    for one in answers:
        if one.status == "streaming" or (one.status == "interrupted" and one.id in seen):
            status, reason = ("failed", CRASHED) if one.id in seen else ("interrupted", None)
            ops.append(Takeover(id=one.id, generation=one.generation + 1, writer=writer, at_ms=now_ms))
            ops.append(Finish(id=one.id, status=status, reason=reason, meta=one.meta, at_ms=now_ms))
    # no empty one beside an answer of an attempt; one with another id is by another author, such as a route of the app
    if ops or not {one.id for one in answers}.isdisjoint(reply_ids(message.id, claim.generation)):
        return ops
    answer = Create(
        id=check_id(answer_id),
        role="assistant",
        author=claim.by,
        status="streaming",
        parent=message.id,
        reply_to=message.id,
        at_ms=now_ms,
        digest=digest(answer_id),
        writer=writer,
    )
    return [answer, Finish(id=answer_id, status="failed", reason=CRASHED, meta={}, at_ms=now_ms)]


def _claim_of(caller: Caller, request: ClaimTurn, known: ClaimState) -> ClaimState:
    """Return the claim that `request` makes of the turn with the claim `known`: of the same attempt, or of the next."""
    node = caller.writer.node if caller.writer is not None else None
    generation, confirmed, spared = request.generation + 1, 0, known.spared
    if request.generation < request.above:  # a worker of a deleted message with this id may use the numbers up to it
        generation, spared = next_round(request.above) + 1, 0  # `spared` counts the attempts of one round
    elif request.confirms:
        generation, confirmed = request.generation, request.confirmed + 1
    if request.within is not None and (known.within, known.generation) == (request.within, request.generation):
        # a later attempt at the same turn takes the message in again
        spared = min(spared + 1, MOST_SPARED)
    return known._replace(
        state="taken",
        generation=generation,
        by=caller.id,
        node=node,
        lease_ms=0 if node is not None else int(request.lease_s * 1000),
        within=request.within,
        within_generation=request.within_generation,
        confirmed=confirmed,
        spared=spared,
    )


def _stale(message: MessageState, claim: ClaimState, request: ClaimTurn | EndTurn) -> Fenced:
    """Return the refusal of a request about an attempt or a confirmation that differs from the `claim` in the log."""
    return Fenced(
        f"{_attempt(request.generation, request.confirmed)} of the turn of message {message.id!r} is stale; the "
        f"current one is {_attempt(claim.generation, claim.confirmed)}: stop working on it",
        generation=claim.generation,
    )


def _attempt(generation: int, confirmed: int | None) -> str:
    return f"attempt {generation}" + (f" (confirmation {confirmed})" if confirmed is not None else "")


def _open_claim(message: MessageState) -> ClaimState:
    if message.claim is None:
        raise Finished(f"message {message.id!r} has no turn: no agent serves its channel")
    if not message.claim.is_open:
        raise Finished(f"the turn of message {message.id!r} has ended ({message.claim.state!r}); stop working on it")
    return message.claim
