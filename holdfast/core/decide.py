"""The door: the only place that says yes or no.

Layer: core.

`decide` looks at the durable state plus the draft of the running batch and returns the
operations to store, or raises a HoldfastError and changes nothing. The order of the checks is part of the
protocol (`docs/protocol.md`, "Refusals"): deleted, not found, repeated, fenced, finished, the rest.
"""

from __future__ import annotations

from typing import assert_never

from msgspec import UNSET

from holdfast.core.decide_work import check_may_begin, claim_turn, end_turn, reply_command, send_command, settle_command
from holdfast.core.decision import Decidable, Decision
from holdfast.core.errors import (
    Deleted,
    Fenced,
    Finished,
    Forbidden,
    ForbiddenStatus,
    Gap,
    IdConflict,
    InvalidRequest,
    InvalidText,
    Mismatch,
    NoPart,
    NotFound,
    NotText,
    NotWriter,
    StillStreaming,
    TooLarge,
    TooMany,
    VersionConflict,
)
from holdfast.core.limits import Limits
from holdfast.core.model import ROLES, STATUSES, Json, Part, check_json, check_part, check_text, plain
from holdfast.core.names import check_id, is_id
from holdfast.core.ops import Append, Create, Delete, Finish, Lease, SetPart, Takeover, Update, Writer, digest
from holdfast.core.requests import (
    AboutMessages,
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
from holdfast.core.state import ChannelState, MessageState, PartState, part_bytes, utf8_len


def needs(key: str, request: Request) -> tuple[str, ...]:
    """The messages and commands that must be in memory before `request` about `key` can be decided."""
    target = request.target if isinstance(request, SendCommand) else None
    return (key, target) if target is not None and is_id(target) else (key,)  # what is no id will be refused


def decide(
    state: Decidable,
    key: str,
    request: Request,
    *,
    caller: Caller,
    now_ms: int,
    limits: Limits,
    is_served: bool = False,
) -> Decision:
    """Decide `request` about the message or command `key`. Raises a HoldfastError that says why not.

    `is_served`: agents answer in this channel, so that a new user message waits for one.
    """
    if not isinstance(request, AppendText):  # which nearly all are
        match request:
            case CreateMessage():
                return _create(state, key, request, caller, now_ms, limits, is_served)
            case SendCommand():
                return send_command(state, key, request, caller, now_ms, limits)
            case ReplyCommand():
                return reply_command(state, key, request, caller, limits)
            case SettleCommand():
                return settle_command(state, key, request, now_ms)
    message = state.message(key)
    if message is None or (not caller.may_read and not _is_of(message, caller)):
        raise NotFound(f"there is no message {key!r}")
    if message.deleted:
        if isinstance(request, DeleteMessage):
            return Decision(serial=message.version)
        raise Deleted(f"message {key!r} was deleted")
    return _about(message, request, caller, now_ms, limits)


def _about(message: MessageState, request: AboutMessages, caller: Caller, now_ms: int, limits: Limits) -> Decision:
    """Decide `request` about a message that is there."""
    match request:
        case AppendText():
            _check_writer(message, caller, request.generation)
            return _append(message, request, limits, now_ms)
        case PutPart():
            _check_writer(message, caller, request.generation)
            return _repeated(message, request.request) or _put_part(message, request, limits, now_ms)
        case UpdateMessage():
            _check_may_change(message, caller)
            return _repeated(message, request.request) or _update(message, request, caller, limits, now_ms)
        case FinishMessage():
            _check_writer(message, caller, request.generation)
            return _repeated(message, request.request) or _finish(message, request, caller, limits, now_ms)
        case TakeOver():
            is_ours = caller.is_app or caller.is_server or _is_writer(message, caller)
            # What somebody else was answered to an id of theirs is no answer to us.
            known = _repeated(message, request.request) if is_ours else None
            return known or _take_over(message, request, caller)
        case RenewLease():
            _check_writer(message, caller, request.generation)
            return _renew(message, request)
        case DeleteMessage():
            _check_may_change(message, caller)
            return Decision(ops=(Delete(id=message.id),))
        case ClaimTurn():
            return claim_turn(message, request, caller, now_ms)
        case EndTurn():
            return end_turn(message, request, caller, now_ms)
        case _:
            assert_never(request)


def _check_writer(message: MessageState, caller: Caller, generation: int | None) -> None:
    """Raises NotWriter unless `caller` is the identity that created the message or took it over.

    Whoever created it and lost it to another one goes on to be told so (`fenced`), unless it claims to be that one.
    """
    if caller.is_app or caller.is_server or _is_writer(message, caller):
        return
    if _is_author(message, caller) and not _is_present(message, generation):
        return
    raise NotWriter(f"message {message.id!r} is written by somebody else")


def _check_may_change(message: MessageState, caller: Caller) -> None:
    """Raises Forbidden where `caller` may not edit or delete the message: it is somebody else's."""
    if caller.is_admin or caller.is_app or caller.is_server:
        return
    # The nameless are not told apart, nor from the app: only what one of them is writing is theirs, if they may write.
    # And who could not have written it has but the name of an agent: a person may be called `assistant`, too.
    is_theirs = caller.may_write or message.role == "user"
    if _is_of(message, caller) and is_theirs and (caller.id is not None or (message.is_streaming and caller.may_write)):
        return
    raise Forbidden(f"message {message.id!r} is somebody else's; changing it needs the capability 'admin'")


def _is_writer(message: MessageState, caller: Caller) -> bool:
    writer = message.writer
    if writer is None:
        return _is_author(message, caller)
    if caller.writer is not None:  # two of one name in this process, or in two
        return writer.by == caller.id
    return writer.node is None and writer.by == caller.id


def _is_author(message: MessageState, caller: Caller) -> bool:
    return caller.id is not None and message.author == caller.id


def _is_of(message: MessageState, caller: Caller) -> bool:
    """Did `caller` begin the message, or go on with it? Nobody's messages are not those of the nameless."""
    return _is_author(message, caller) or _is_writer(message, caller)


def _create(
    state: Decidable,
    message_id: str,
    request: CreateMessage,
    caller: Caller,
    now_ms: int,
    limits: Limits,
    is_served: bool,
) -> Decision:
    check_id(message_id)
    fingerprint = _fingerprint(request, caller)
    known = state.message(message_id)
    if known is not None:
        # Whoever neither reads nor wrote it learns of an id only that it cannot be theirs.
        if known.deleted and (caller.may_read or _is_author(known, caller)):
            raise Deleted(f"message {message_id!r} was deleted; its id is not used again")
        if known.deleted or known.digest != fingerprint:
            raise IdConflict(f"message {message_id!r} exists and was created with other content")
        return Decision(serial=known.created, generation=1)
    check_may_begin(state, caller)
    if request.status == "interrupted":
        raise ForbiddenStatus("interrupted is the server's to give")
    if request.status not in ("complete", "streaming"):
        raise InvalidRequest("a message is created complete or streaming")
    if request.role not in ROLES:
        raise InvalidRequest("a role is user, assistant, system or tool")
    parts = _parts(request.text, request.parts, limits) or []
    is_pending = is_served and request.role == "user" and request.status == "complete" and not caller.brings_answer
    if is_pending:
        _check_room_for_pending(state, limits)
    op = Create(
        id=message_id,
        role=request.role,
        author=caller.id,
        status=request.status,
        parts=parts,
        meta=_merged({}, request.meta, limits),
        parent=_parent(state, request),
        reply_to=check_id(request.reply_to, "reply_to") if request.reply_to is not None else None,
        at_ms=now_ms,
        digest=fingerprint,
        writer=_writer(caller, request.lease_s) if request.status == "streaming" else None,
        is_pending=is_pending,
    )
    return Decision(ops=(op,), generation=1)


def _check_room_for_pending(state: Decidable, limits: Limits) -> None:
    """Raises TooMany where so much waits for an agent already: all of it is kept in memory until one takes it."""
    pending = state.pending()
    if len(pending) >= limits.pending_messages:
        limit = limits.pending_messages
        raise TooMany(f"{limit} messages wait for an agent in this channel already", limit=limit)
    if sum(one.size_bytes for one in pending) >= limits.pending_bytes:
        limit = limits.pending_bytes
        raise TooMany(f"{limit} bytes of messages wait for an agent in this channel already", limit=limit)


def _fingerprint(request: CreateMessage, caller: Caller) -> bytes:
    parent = "default" if request.parent is UNSET else [request.parent]
    try:
        return digest(
            caller.id,
            request.role,
            request.text,
            request.parts,
            request.status,
            request.meta,
            parent,
            request.reply_to,
        )
    except UnicodeEncodeError:
        raise InvalidText("the message holds a lone surrogate") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"the message is not JSON: {error}") from None


def _parent(state: Decidable, request: CreateMessage) -> str | None:
    if request.parent is UNSET:
        return request.reply_to or state.newest
    return check_id(request.parent, "parent") if request.parent is not None else None


def _writer(caller: Caller, lease_s: float) -> Writer:
    return caller.writer or Writer(by=caller.id, lease_ms=int(lease_s * 1000))


def grow(state: ChannelState, key: str, request: AppendText, limits: Limits) -> Append | None:
    """What `decide` stores for text in its place by a writer in this process, which nearly all text is.

    None: `decide` has to look, and may say no. A shortcut, and no second opinion: it never says what `decide` does not.
    """
    message, index, text = state.messages.get(key), request.part, request.text
    if message is None or message.status != "streaming" or message.deleted:
        return None
    if message.generation != request.generation or index is None or not 0 <= index < len(message.parts):
        return None
    grown = message.parts[index].text
    if grown is None or grown.length != request.at or not text:
        return None
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return None
    if size > limits.append_bytes or message.size_bytes + size > limits.message_bytes:
        return None
    return Append(id=key, part=index, at=grown.length, text=text)


def _append(message: MessageState, request: AppendText, limits: Limits, now_ms: int) -> Decision:
    """Every token of every answer comes through here: what is as it nearly always is, is asked without a call."""
    at, index, text = request.at, request.part, request.text
    _check_count(at, "at")
    _check_count(index, "part")
    _check_generation(message, request.generation)
    size = len(text) if text.isascii() else utf8_len(check_text(text))
    if size > limits.append_bytes:
        raise TooLarge(f"the text has {size} bytes, the limit is {limits.append_bytes}", limit=limits.append_bytes)
    if index is None:
        index = message.last_text_part
        if index is None:
            return _open_with(message, request, text, size, limits, now_ms)
    if index >= len(message.parts):
        _check_streaming(message)
        raise NoPart(
            f"message {message.id!r} has {len(message.parts)} parts, the append was for part {index}",
            parts=len(message.parts),
        )
    part = message.parts[index]
    if part.text is None:
        _check_streaming(message)
        raise NotText(f"part {index} of message {message.id!r} is of type {part.fields['type']}")
    length = part.text.length
    new = text if at is None or at == length else _beyond(message, part, index, at, text)
    if not new:
        return Decision(serial=message.version, part=index, length=length)
    _check_streaming(message)
    _check_size(message, size if new is text else utf8_len(new), limits)
    op = Append(id=message.id, part=index, at=length, text=new)
    return Decision(ops=(op,), part=index, length=length + len(new))


def _beyond(message: MessageState, part: PartState, index: int, at: int, text: str) -> str:
    """What of `text`, which begins at `at`, is not in `part` yet; raises Gap or Mismatch."""
    assert part.text is not None
    length = part.length
    if at > length:
        _check_streaming(message)
        raise Gap(
            f"part {index} of message {message.id!r} has {length} characters, the append was for {at}",
            length=length,
        )
    overlap = min(length - at, len(text))
    if overlap and part.text.slice(at, at + overlap) != text[:overlap]:
        _check_streaming(message)
        raise Mismatch(f"other text stands at {at} in part {index} of message {message.id!r}", length=length)
    return text[overlap:]


def _open_with(
    message: MessageState, request: AppendText, text: str, size: int, limits: Limits, now_ms: int
) -> Decision:
    """An append to a message without a text part opens one, as an entry of its own."""
    _check_streaming(message)
    if request.at:
        raise Gap(f"message {message.id!r} has no text yet, the append was for {request.at}", length=0)
    index = len(message.parts)
    if not text:
        return Decision(serial=message.version, part=index, length=0)
    _check_part_count(index + 1, limits)
    _check_size(message, size, limits)
    op = SetPart(id=message.id, index=index, part={"type": "text", "text": text}, at_ms=now_ms)
    return Decision(ops=(op,), part=index, length=len(text))


def _put_part(message: MessageState, request: PutPart, limits: Limits, now_ms: int) -> Decision:
    _check_count(request.index, "index")
    _check_generation(message, request.generation)
    _check_streaming(message)
    count = len(message.parts)
    if request.index > count:
        raise NoPart(f"message {message.id!r} has {count} parts, next is {count}", parts=count)
    _check_part_count(request.index + 1, limits)
    part = check_part(request.part, limits)
    replaced = part_bytes(message.parts[request.index].value()) if request.index < count else 0
    _check_size(message, part_bytes(part) - replaced, limits)
    op = SetPart(id=message.id, index=request.index, part=part, at_ms=now_ms, request=_request(request.request))
    return Decision(ops=(op,))


def _update(message: MessageState, request: UpdateMessage, caller: Caller, limits: Limits, now_ms: int) -> Decision:
    if message.is_streaming and request.generation is None:
        raise StillStreaming(f"message {message.id!r} is being written; only its writer may change it")
    if message.is_streaming:
        _check_writer(message, caller, request.generation)
        if not (caller.may_write or caller.is_app or caller.is_server):
            raise Forbidden(f"message {message.id!r} is being written, which takes the capability 'append'")
    if request.generation is not None:
        _check_generation(message, request.generation)
    if request.if_version is not None and request.if_version != message.version:
        raise VersionConflict(f"message {message.id!r} is at version {message.version}", version=message.version)
    parts = _parts(request.text, request.parts, limits)
    meta = _merged(message.meta, request.meta, limits)
    op = Update(id=message.id, parts=parts, meta=meta, at_ms=now_ms, request=_request(request.request))
    return Decision(ops=(op,))


def _finish(message: MessageState, request: FinishMessage, caller: Caller, limits: Limits, now_ms: int) -> Decision:
    _check_generation(message, request.generation)
    if request.status == "interrupted" and not caller.is_server:
        raise ForbiddenStatus("interrupted is the server's to give")
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
    """Raises InvalidRequest, InvalidText or TooLarge for what no message can be finished with."""
    if request.status == "streaming" or request.status not in STATUSES:
        raise InvalidRequest("a finish is complete, cancelled or failed")
    if request.reason is not None:
        check_json(request.reason, limits.data_bytes, "reason", depth=1)
    _merged({}, request.meta, limits)


def _take_over(message: MessageState, request: TakeOver, caller: Caller) -> Decision:
    if request.generation is not None and request.generation != message.generation:
        raise Fenced(f"message {message.id!r} is in generation {message.generation}", generation=message.generation)
    if message.status == "streaming" and not (caller.is_server or caller.is_admin):
        raise StillStreaming(f"message {message.id!r} is being written")
    if message.status not in ("streaming", "interrupted"):
        raise Finished(f"message {message.id!r} is {message.status}")
    generation = message.generation + 1
    op = Takeover(
        id=message.id,
        generation=generation,
        writer=_writer(caller, request.lease_s),
        request=_request(request.request),
    )
    return Decision(ops=(op,), generation=generation, lengths=[part.length for part in message.parts])


def _renew(message: MessageState, request: RenewLease) -> Decision:
    _check_generation(message, request.generation)
    _check_streaming(message)
    lease_ms = int(request.lease_s * 1000)
    if message.writer is None or message.writer.lease_ms in (0, lease_ms):
        return Decision(serial=message.version)
    return Decision(ops=(Lease(id=message.id, lease_ms=lease_ms),))


def _repeated(message: MessageState, request: str | None) -> Decision | None:
    """The first answer, where this request was carried out already."""
    if request is None:
        return None
    for known, serial, generation in reversed(message.requests):  # of two who chose the same id, the later one writes
        if known == request:
            lengths = [part.length for part in message.parts]
            return Decision(serial=serial, generation=generation, lengths=lengths)
    return None


def _request(request: str | None) -> str | None:
    return check_id(request, "request") if request is not None else None


def _check_generation(message: MessageState, generation: int | None) -> None:
    if message.generation == (1 if generation is None else generation):  # as `_is_present`
        return
    raise Fenced(
        f"message {message.id!r} is in generation {message.generation}, the request was not",
        generation=message.generation,
    )


def _is_present(message: MessageState, generation: int | None) -> bool:
    """Does a request of `generation` come from whoever may write now? Left out, it is the first."""
    return message.generation == (1 if generation is None else generation)


def _check_streaming(message: MessageState) -> None:
    if message.status != "streaming":
        raise Finished(f"message {message.id!r} is {message.status}")


def _check_count(number: int | None, what: str) -> None:
    """Transports refuse such numbers by type; this is for requests made in process."""
    if number is not None and number < 0:
        raise InvalidRequest(f"{what} is counted from 0")


def _check_size(message: MessageState, more_bytes: int, limits: Limits) -> None:
    if message.size_bytes + more_bytes > limits.message_bytes:
        raise TooLarge(f"message {message.id!r} would pass {limits.message_bytes} bytes", limit=limits.message_bytes)


def _check_part_count(count: int, limits: Limits) -> None:
    if count > limits.parts:
        raise TooLarge(f"a message has at most {limits.parts} parts", limit=limits.parts)


def _parts(text: str | None, parts: list[Part] | None, limits: Limits) -> list[Part] | None:
    """The parts that a create or update asks for; None where it asks for none."""
    if text is not None and parts is not None:
        raise InvalidRequest("give text or parts, not both")
    if text is not None:
        parts = [{"type": "text", "text": text}]
    if parts is None:
        return None
    _check_part_count(len(parts), limits)
    checked = [check_part(part, limits) for part in parts]
    check_json(checked, limits.message_bytes, "a message", depth=limits.depth + 2)
    return checked


def _merged(old: dict[str, Json], new: dict[str, Json], limits: Limits) -> dict[str, Json]:
    """`new` merged into `old` at the top level; null removes a key."""
    if not isinstance(new, dict):
        raise InvalidRequest("meta is an object")
    if not new:
        return old
    merged = {name: value for name, value in {**old, **new}.items() if value is not None}
    check_json(merged, limits.meta_bytes, "meta", depth=limits.depth)
    return plain(merged)
