"""Decisions: whether a request becomes operations, or is refused.

Layer: core.

`decide` reads the durable state plus the draft of the running batch. It returns the operations to store, or raises a
TenutoError and leaves the state unchanged; `decide_commands` holds the part about commands. The order of checks is part
of the protocol (`docs/protocol.md`, "Refusals"): deleted, not found, repeated, fenced, finished, the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from msgspec import UNSET

from tenuto.core.decide_commands import (
    check_may_begin,
    check_room_for_pending,
    ended_with,
    is_being_cancelled,
    released,
    reply_command,
    send_command,
    settle_command,
    with_approval,
)
from tenuto.core.deltas import is_answer_of
from tenuto.core.draft import Decision, Draft
from tenuto.core.errors import (
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
    TooLarge,
    VersionConflict,
    shown,
)
from tenuto.core.limits import Limits
from tenuto.core.model import (
    ATTEMPT,
    OPTIONS,
    OPTIONS_KEY,
    OPTIONS_MARK,
    ROLES,
    STATUSES,
    Json,
    Part,
    check_json,
    check_part,
    check_text,
    plain,
)
from tenuto.core.names import check_id, is_own_name
from tenuto.core.ops import (
    Append,
    Claim,
    Create,
    Delete,
    Finish,
    Lease,
    Op,
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
    split,
)
from tenuto.core.state import CLAIMED, ChannelState, ClaimState, MessageState, part_bytes, utf8_len
from tenuto.core.turns import MOST_SPARED, earlier_attempt, newest_branch, next_round, reply_ids

# the contents of superseded attempts may have this share of `Limits.message_bytes`, because documents repeat them
ATTEMPTS_SHARE = 8


def decide(
    state: Draft,
    key: str,
    request: Request,
    *,
    caller: Caller,
    now_ms: int,
    limits: Limits,
    is_served: bool = False,
) -> Decision:
    """Return the decision on `request` about the message or command `key`. Raises a TenutoError if it is refused.

    `is_served`: agents serve this channel, so a new user message, or one to be answered again, waits for an agent.
    """
    if not isinstance(request, AppendText):  # hot path first: nearly all requests are appends
        match request:
            case CreateMessage():
                return _create(state, key, request, caller, now_ms, limits, is_served)
            case SendCommand():
                return send_command(state, key, request, caller, now_ms, limits, is_served)
            case ReplyCommand():
                return reply_command(state, key, request, caller, now_ms, limits)
            case SettleCommand():
                return settle_command(state, key, request, now_ms)
    message = state.message(key)
    if (
        message is None
        or message.role == OPTIONS
        or (not caller.may_read and not _is_author_or_writer(message, caller))
    ):
        raise NotFound(f"message {shown(key)} does not exist in this channel; check the id")
    if message.deleted and isinstance(request, DeleteMessage):
        return Decision(serial=message.version)
    _check_readable(message, request)
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
            return _earlier_decision(message, request.request) or _finish(message, request, caller, limits, now_ms)
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
            return _finish(message, request.end, caller, limits, now_ms)
        case DeleteMessage():
            check_may_change(message, caller)
            ops = ended_with(state, message, now_ms)
            return Decision(ops=(*ops, Delete(id=message.id, at_ms=now_ms)))
        case ClaimTurn():
            return _claim_turn(state, message, request, caller, now_ms)
        case EndTurn():
            return _end_turn(state, message, request, caller, now_ms)
        case _:
            assert_never(request)


def _create(
    state: Draft,
    message_id: str,
    request: CreateMessage,
    caller: Caller,
    now_ms: int,
    limits: Limits,
    is_served: bool,
) -> Decision:
    check_id(message_id)
    if request.if_author is not None and check_id(request.if_author, "if_author") != caller.id:
        raise AuthorMismatch(
            f"the message is of {request.if_author!r} (if_author), and this client is {shown(caller.id)}: "
            "sign in as its author, or send it as your own, without `if_author`"
        )
    sent = fingerprint(
        "the new message",
        caller.id,
        request.role,
        request.text,
        request.parts,
        request.status,
        request.meta,
        "default" if request.parent is UNSET else [request.parent],  # a list, which differs from any text
        request.reply_to,
        request.options,
    )
    known = state.message(message_id)
    if known is not None:
        # A caller without the right to read, which did not write the message either, learns only that the id is taken.
        if known.deleted and (caller.may_read or _is_author(known, caller)):
            raise Deleted(f"message {message_id!r} was deleted; its id cannot be used again, choose another one")
        if known.deleted or known.digest != sent:
            raise IdConflict(f"message {message_id!r} exists and was created with other content; choose another id")
        return Decision(serial=known.created, generation=1)
    if message_id.startswith(OPTIONS_MARK):
        raise InvalidName(f"ids of messages that begin with {OPTIONS_MARK!r} are those of options; choose another id")
    check_may_begin(state, caller)
    if request.reply_to is not None:
        _check_attempt(state, request.reply_to, message_id, request.role, caller.attempt)
    if request.status == "interrupted":
        raise ForbiddenStatus("status 'interrupted' is set by the server only; create the message as 'streaming'")
    if request.status not in ("complete", "streaming"):
        raise InvalidRequest(f"status of a new message must be 'complete' or 'streaming', got {shown(request.status)}")
    if request.role not in ROLES:
        raise InvalidRequest(f"role must be 'user', 'assistant', 'system' or 'tool', got {shown(request.role)}")
    parts = _parts(request.text, request.parts, limits) or []
    is_pending = is_served and request.role == "user" and request.status == "complete" and not caller.brings_answer
    if is_pending:
        check_room_for_pending(state, limits)
    options, kept = _repeated_options(state, request.meta, caller.id), list[Create]()
    if request.options:
        options, kept = split(request.options, caller.id, now_ms, limits)
    op = Create(
        id=message_id,
        role=request.role,
        author=caller.id,
        status=request.status,
        parts=parts,
        meta=_merged({}, request.meta, limits, options),
        parent=_parent(state, request),
        reply_to=check_id(request.reply_to, "reply_to") if request.reply_to is not None else None,
        at_ms=now_ms,
        digest=sent,
        writer=_writer(caller, request.lease_s) if request.status == "streaming" else None,
        is_pending=is_pending,
    )
    # the message comes first, so its serial shows whether it begins the channel (`Credentials.count_new_channel`)
    return Decision(ops=(op, *(one for one in kept if state.message(one.id) is None)), result_op=0, generation=1)


def _repeated_options(state: Draft, meta: Json, by: str | None) -> dict[str, Json]:
    """Return the options in a `meta` that repeats that of an earlier message, as an edit does; none if not its own."""
    options = meta.get(OPTIONS_KEY) if isinstance(meta, dict) else None
    if not isinstance(options, dict):
        return {}
    found = references(meta)
    kept = [state.message(one) for one in found.values()]
    is_own = all(one is not None and one.role == OPTIONS and one.author == by for one in kept)
    return options if is_own and options.get(KEPT, {}) == found else {}  # `found` lacks damaged references


def _parent(state: Draft, request: CreateMessage) -> str | None:
    if request.parent is UNSET:
        return request.reply_to or state.newest
    return check_id(request.parent, "parent") if request.parent is not None else None


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

    `check_streaming` comes late, as text that is stored may be sent again after the end.
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
        texts = message.text_parts
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
        start, end = length, length if at is None else at + len(text)
        while text and start >= end and texts:
            index = texts.pop()
            start -= message.parts[index].length
        return Decision(serial=message.version, part=index, length=length)
    _check_streaming(message)
    _check_size(message, size if new is text else utf8_len(new), limits)
    op: Append | SetPart
    if request.part is None and index != count - 1:
        index = count
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
    replaced = 0
    if request.index < count:
        earlier = message.parts[request.index].value()
        if earlier["type"] == ATTEMPT:
            raise InvalidRequest(
                f"part {request.index} of message {message.id!r} is a superseded attempt; open another"
            )
        replaced = part_bytes(earlier)
        part = with_approval(part, earlier)
    _check_size(message, part_bytes(part) - replaced, limits)
    op = SetPart(id=message.id, index=request.index, part=part, at_ms=now_ms, request=_request(request.request))
    return Decision(ops=(op,))


def _update(message: MessageState, request: UpdateMessage, caller: Caller, limits: Limits, now_ms: int) -> Decision:
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
        parts = [with_approval(one, calls.get(one["call"], one)) if one["type"] == "tool" else one for one in parts]
    meta = _merged(message.meta, request.meta, limits)
    op = Update(id=message.id, parts=parts, meta=meta, at_ms=now_ms, request=_request(request.request))
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
    if taken:
        since, beside = taken[0], [index for index in beside if index > taken[0]]
        parts = known[:since] + [one for one in known[since:] if one["type"] == ATTEMPT]
        contents = [known[index] for index in taken]
        characters = sum(len(one["text"]) for one in contents if one["type"] == "text")
        # where they stood, if not in a row from here on
        places: Part = {"indexes": taken} if beside or since < len(parts) else {}
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


def _finish(message: MessageState, request: FinishMessage, caller: Caller, limits: Limits, now_ms: int) -> Decision:
    _check_generation(message, request.generation)
    if request.status == "interrupted" and not caller.is_server:
        raise ForbiddenStatus(
            "status 'interrupted' is set by the server only; finish with 'complete', 'cancelled' or 'failed'"
        )
    check_finish(request, limits)
    if message.status == request.status:
        return Decision(serial=message.finished or message.created)
    _check_streaming(message)
    op = Finish(
        id=message.id,
        status=request.status,
        reason=request.reason,
        meta=_merged(message.meta, request.meta, limits),
        at_ms=now_ms,
        request=_request(request.request),
    )
    return Decision(ops=(op,))


def check_finish(request: FinishMessage, limits: Limits) -> None:
    """Raise InvalidRequest, InvalidText or TooLarge if `request` cannot finish any message."""
    if request.status == "streaming" or request.status not in STATUSES:
        raise InvalidRequest(
            f"status of a finish must be 'complete', 'cancelled' or 'failed', got {shown(request.status)}"
        )
    if request.reason is not None:
        check_json(request.reason, limits.data_bytes, "reason", depth=1)
    _merged({}, request.meta, limits)  # raises if this cannot be stored


def _take_over(message: MessageState, request: TakeOver, caller: Caller, now_ms: int) -> Decision:
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
        request=_request(request.request),
        at_ms=now_ms,
    )
    return Decision(ops=(op,), generation=generation, lengths=[part.length for part in message.parts])


def _earlier_decision(message: MessageState, request: str | None) -> Decision | None:
    """Return the decision of the request with id `request` if it was carried out already, else None."""
    if request is None:
        return None
    # latest request first: if two writers used the same request id, only the later one can still repeat its request
    for known, serial, generation in reversed(message.requests):
        if known == request:
            lengths = [part.length for part in message.parts]
            return Decision(serial=serial, generation=generation, lengths=lengths)
    return None


def _request(request: str | None) -> str | None:
    return check_id(request, "request") if request is not None else None


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
    text: str | None, parts: list[Part] | None, limits: Limits, attempts: Sequence[Part] = ()
) -> list[Part] | None:
    """Return the checked parts of a create or update; None if the request has neither `text` nor `parts`.

    A message that is edited may keep its `attempts`, which no request can make otherwise.
    """
    if text is not None and parts is not None:
        raise InvalidRequest(f"the request has both the text {shown(text)} and {len(parts)} parts; send one of them")
    if text is not None:
        parts = [{"type": "text", "text": text}]
    if parts is None:
        return None
    _check_part_count(len(parts), limits)
    checked = [part if part in attempts else check_part(part, limits) for part in parts]
    if (size := sum(map(part_bytes, checked))) > limits.message_bytes:
        raise _too_large(f"the message would have {size} bytes", limits.message_bytes, "message_bytes", "send less")
    return checked


def _merged(old: dict[str, Json], new: dict[str, Json], limits: Limits, options: Json = None) -> dict[str, Json]:
    """Return `new` merged into `old` at the top level; null removes a key. Only `options` sets the server's own key."""
    if not isinstance(new, dict):
        raise InvalidRequest(f"meta must be an object, got {shown(new)}")
    if not new and not options:
        return old
    own = {OPTIONS_KEY: options or old.get(OPTIONS_KEY)}
    merged = {name: value for name, value in {**old, **new, **own}.items() if value is not None}
    check_json(merged, limits.meta_bytes, "meta", depth=limits.depth)
    return plain(merged)


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
    return writer.node is None and writer.by == caller.id


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


def _check_readable(message: MessageState, request: Request) -> None:
    """Raise Deleted, or Damaged for a message that the store cannot read; such a message may be deleted."""
    if message.deleted:
        raise Deleted(f"message {shown(message.id)} was deleted; create another one")
    if message.is_damaged and not isinstance(request, DeleteMessage):
        raise Damaged(
            f"message {shown(message.id)} is damaged in the store; delete it, or restore a backup of the store"
        )


def _renew_lease(message: MessageState, request: RenewLease, now_ms: int) -> Decision:
    """Return the decision on a renewal: it stores a new term only. Raises Fenced, Finished."""
    _check_generation(message, request.generation)
    _check_streaming(message)
    lease_ms = int(request.lease_s * 1000)
    if message.writer is None or message.writer.lease_ms in (0, lease_ms):
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
        _check_takes(state, request.within, request.within_generation, is_again=claim.within == request.within)
    return _taken(message, _claim_of(caller, request, claim), now_ms)


def _renew_turn(message: MessageState, claim: ClaimState, request: ClaimTurn, caller: Caller, now_ms: int) -> Decision:
    """Confirm the attempt of a remote worker: each hub of a shared store gives it another term, or ends its lease."""
    is_latest = not caller.is_server or claim.confirmed == request.confirmed  # a worker does not know the confirmations
    if (claim.state, claim.generation) != ("taken", request.generation) or not is_latest:
        raise _stale(message, claim, request)
    if (claim.by, claim.node, claim.within) != (caller.id, None, None):
        raise NotWriter(f"another worker has the turn of message {message.id!r}; stop working on it")
    if claim.lease_ms == GIVEN_BACK_MS:
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
    """Raise StillStreaming if another turn runs in the channel: another hub may have claimed it just now."""
    for other in state.running():
        assert other.claim is not None
        if other.id != message.id and (other.id, other.claim.generation, other.claim.confirmed) not in lost:
            raise StillStreaming(f"message {other.id!r} is being answered: wait for the end of its turn")


def _check_takes(state: Draft, message_id: str, attempt: int, *, is_again: bool) -> None:
    """Raise Finished unless this attempt has the turn of a message, and no client cancels it.

    What the turn has had before, it takes again even then: one of its answers may contain it.
    """
    host = state.message(message_id)
    if host is None or not host.is_taken or host.claim is None or host.claim.generation != attempt:
        raise Finished(f"attempt {attempt} no longer has the turn of message {message_id!r}; it takes no message in")
    if not is_again and is_being_cancelled(state, message_id):
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
    ended = ended_with(state, message, now_ms, end, request.unheard)
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

    The turns that it has taken in wait again, too, and theirs does not count either.
    """
    if claim.state != "taken" or claim.within is not None:
        raise Finished(f"the turn of message {message.id!r} is {claim.state!r}, so it cannot be handed over")
    ends = [
        Finish(id=one.id, status="interrupted", reason=None, meta=one.meta, at_ms=now_ms)
        for one in state.streaming()
        if one.reply_to == message.id and one.writer is not None and is_own_name(claim.by, one.writer.by)
    ]
    spared = min(claim.spared + 1, MOST_SPARED)
    op = Claim(id=message.id, state="pending", generation=claim.generation, by=claim.by, at_ms=now_ms, spared=spared)
    return Decision(ops=(*ends, *released(state, message, now_ms), op), generation=claim.generation)


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
    lease_ms = 0 if node is not None else int(request.lease_s * 1000)
    within, attempt = request.within, request.within_generation
    if request.confirms and request.generation >= request.above:
        taken = ClaimState("taken", request.generation, caller.id, node, confirmed=request.confirmed + 1)
        return taken._replace(round_from=known.round_from, spared=known.spared)
    before = request.generation if request.generation >= request.above else next_round(request.above)
    spared = known.spared if before == request.generation else 0  # it counts those of this round
    if within is not None and (known.within, known.generation) == (within, request.generation):
        # a later attempt at the same turn takes the message in again
        spared = min(spared + 1, MOST_SPARED)
    return ClaimState("taken", before + 1, caller.id, node, lease_ms, within, attempt, known.round_from, spared=spared)


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
