"""Decisions about commands.

Layer: core; `decide` calls this module. A command is stored, and the first reply to it counts.
"""

from __future__ import annotations

from collections.abc import Container

from msgspec.structs import replace

from tenuto.core.draft import Decision, Draft
from tenuto.core.errors import (
    AlreadyAnswered,
    Deleted,
    Fenced,
    Finished,
    Forbidden,
    IdConflict,
    InvalidName,
    InvalidRequest,
    NotFound,
    StillStreaming,
    TooMany,
    shown,
)
from tenuto.core.limits import Limits
from tenuto.core.model import OPTIONS, Approval, Json, Part, check_json, plain
from tenuto.core.names import COMMAND_MARK, check_id, command_id, is_own_name
from tenuto.core.ops import Claim, Command, Create, Finish, Op, Reply, SetPart, Update, fingerprint
from tenuto.core.requests import Caller, ReplyCommand, SendCommand, SettleCommand, regenerate_options_id, split
from tenuto.core.state import ClaimState, CommandState, MessageState
from tenuto.core.turns import (
    APPROVE,
    MOST_SPARED,
    QUESTION_MARK,
    STEP,
    STEP_MARK,
    WITHDRAWN,
    Replier,
    next_round,
    reply_ids,
    rules_of,
)

LONGEST_S = 24 * 3600  # longest time that a command may wait for its reply
STEP_S = 30 * 24 * 3600  # time after which the store may drop the data of a step
OPEN_CANCELS = 16  # limit of `cancel` commands without a reply per target; the server carries out the first
REASON_CHARS = 1_000  # maximal length of the reason of an approval or denial in the tool part; the reply has all of it
DENIED = "denied"  # state of a tool part whose call a person has not approved


def send_command(
    state: Draft, key: str, request: SendCommand, caller: Caller, now_ms: int, limits: Limits, is_served: bool
) -> Decision:
    """Store a command. A `regenerate`, and a `cancel` of a turn that waits, are carried out in the same batch."""
    assert key.startswith(COMMAND_MARK)  # without its prefix the stored command would be read as a message
    check_id(command_id(key), "a command's id")
    check_id(request.name, "a command's name")
    is_step = request.name == STEP.name
    if is_step or request.generation is not None:
        _check_has_turn(state, request.target, request.generation, caller)
    if is_step != command_id(key).startswith(STEP_MARK):
        raise InvalidName(f"ids of commands that begin with {STEP_MARK!r} are those of steps; choose another id")
    options = [request.options] if request.options else []
    given = fingerprint("the command", caller.id, request.name, request.target, request.data, *options)
    known = state.command(key)
    if known is not None:
        # another attempt at the turn, maybe of another agent and about another answer, goes on with a step or question
        is_same = (known.sent.name, _question(known.sent.data)) == (request.name, _question(request.data))
        if known.sent.digest != given and not (is_step or (is_same and request.generation is not None)):
            raise IdConflict(f"command id {command_id(key)!r} was used before with other content; use a new id")
        # the reply came while no attempt wrote, or to one that was superseded: it is noted at the part of this one
        noted: tuple[SetPart, ...] = ()
        if known.reply is not None and request.generation is not None:
            noted = _noted(state, known, request, known.reply, now_ms)
        return Decision(ops=noted, serial=known.created)
    if command_id(key).startswith(QUESTION_MARK) and request.generation is None:
        raise InvalidName(f"ids that begin with {QUESTION_MARK!r} are those of a turn's questions; choose another id")
    check_may_begin(state, caller)
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
        digest=given,
    )
    ops: list[Op] = []
    if rules_of(request.name).restarts:
        assert target is not None
        claims = _restarted(state, target, is_served, now_ms, limits, has_options=bool(request.options))
        ops += [*(_kept_options(state, request, target, caller, now_ms, limits) if claims else ()), *claims]
    elif rules_of(request.name).stops and target is not None and _is_only_waiting(state, target):
        assert target.claim is not None
        ops += _cancelled(state, target, target.claim, now_ms)
    else:
        if not (is_step or caller.is_server or caller.is_app):
            _check_room(state, request, caller, limits)
        return Decision(ops=(command,))
    # the result carries the serial of the command, as does that of a repeated request (`known`)
    return Decision(ops=(command, *ops, _reply(key, now_ms, ok=True)), result_op=0)


def _question(data: Json) -> Json:
    """Return `data` without its call: a model that is asked again gives it another id."""
    return {**data, "call": None} if isinstance(data, dict) else data


def _restarted(
    state: Draft, target: MessageState, is_served: bool, now_ms: int, limits: Limits, *, has_options: bool
) -> tuple[Claim, ...]:
    """Return the operation by which `target` waits for an agent again; none if it waits already.

    With options such a message is refused: an attempt may know the earlier ones, and go on with its steps.
    The next attempts are numbered in a new round. Their answers therefore get new ids, and earlier crashes do not count
    towards the limit of attempts.
    """
    if target.role != "user":
        raise InvalidRequest(
            f"a regenerate needs the id of a user message as `target`, got a message of role {target.role!r}: "
            "name the message in its `reply_to`"
        )
    if _is_only_waiting(state, target) and not has_options:
        return ()
    if _is_in_progress(state, target):
        raise StillStreaming(f"message {target.id!r} is being answered: wait for the end, or send a cancel first")
    if not is_served:
        raise Finished(f"message {target.id!r} cannot wait for an answer: no agent serves its channel")
    check_room_for_pending(state, limits)
    generation = next_round(target.claim.generation if target.claim is not None else 0)
    return (Claim(id=target.id, state="pending", generation=generation, at_ms=now_ms),)


def _kept_options(
    state: Draft, request: SendCommand, target: MessageState, caller: Caller, now_ms: int, limits: Limits
) -> list[Op]:
    """Return the operations that keep the options of a `regenerate`, in place of those of an earlier one.

    They are in messages of their authors, to which one without an author refers: all attempts find that one, wherever
    they run.
    """
    options, values = split(request.options, caller.id, now_ms, limits, is_hidden=True)
    check_json(options, limits.data_bytes, "the list of large options", depth=limits.depth)
    # the name tells `target` from a later message with the same id
    part = {"type": "data", "name": str(target.created), "data": options}
    ops: list[Op] = [one for one in values if state.message(one.id) is None]
    known = state.message(id := regenerate_options_id(target.id))
    if known is not None and known.role != OPTIONS:  # of an import
        raise IdConflict(f"message {id!r} has the id of the options of this regenerate; name another user message")
    if known is None and options:
        ops.append(Create(id=id, role=OPTIONS, status="complete", parts=[part], at_ms=now_ms))
    elif known is not None and [one.value() for one in known.parts] != [part]:
        ops.append(Update(id=id, parts=[part], meta={}, at_ms=now_ms))
    return ops


def check_room_for_pending(state: Draft, limits: Limits) -> None:
    """Raise TooMany if too many messages wait for an agent: such messages stay in memory until an agent takes them."""
    pending = state.pending()
    if len(pending) >= (limit := limits.pending_messages):
        raise TooMany(
            f"the channel has {len(pending)} messages that wait for an agent, the limit is {limit}; try again later",
            limit=limit,
        )
    if (size_bytes := sum(one.size_bytes for one in pending)) >= (limit := limits.pending_bytes):
        raise TooMany(
            f"the channel has {size_bytes} bytes of messages that wait for an agent, the limit is {limit}; "
            "try again later",
            limit=limit,
        )


def check_may_begin(state: Draft, caller: Caller) -> None:
    """Raise the refusal of `caller`, if it has one, or TooMany if it has created too many channels in this hour."""
    if caller.refusal is not None:
        raise caller.refusal
    if not caller.may_begin and state.is_empty:
        name = f"client {shown(caller.id)}" if caller.id is not None else "a client without an id"
        raise TooMany(
            f"the channel does not exist, and {name} has created as many channels in the last hour as it may; "
            "try again later"
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
            f"{limit} {what} wait for a reply, which is the limit; send it again when one has its reply", limit=limit
        )


def reply_command(
    state: Draft, key: str, request: ReplyCommand, caller: Caller, now_ms: int, limits: Limits
) -> Decision:
    """Store the reply to a command. The first reply counts; a later one is refused."""
    command = _command(state, key)
    if command.is_step:
        _check_has_turn(state, command.sent.target, request.generation, caller, key)
    if command.reply is not None and _is_repeat(command.reply, request, caller):
        return Decision(serial=command.reply_serial)
    is_senders = caller.id is not None and command.sent.by == caller.id
    is_at_work = _is_at_work_on(state, command.sent.target, caller)
    if not (caller.may_read or is_senders or is_at_work):
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
        request=check_id(request.request, "request") if request.request is not None else None,
        at_ms=now_ms,
    )
    return Decision(ops=(reply, *_noted(state, command, command.sent, request, now_ms)), result_op=0)


def _noted(
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
    for index, part in enumerate(target.parts):
        fields = part.fields
        has_other = isinstance(asked, SendCommand) and "approval" in fields  # maybe of a newer question
        if fields["type"] == "tool" and fields["call"] == call and "output" not in fields and not has_other:
            denied = {} if reply.ok else {"state": DENIED}
            noted = {**part.value(), **denied, "approval": _approval(command, reply)}
            if noted == part.value():
                return ()
            return (SetPart(id=target.id, index=index, part=noted, at_ms=now_ms),)
    return ()


def _approval(command: CommandState, reply: ReplyCommand | Reply) -> dict[str, Json]:
    """Return the field `approval` of a tool part: the reply, without its author."""
    reason = reply.data.get("reason") if isinstance(reply.data, dict) else None
    short = reason[:REASON_CHARS] if isinstance(reason, str) else None
    return plain(Approval(id=command_id(command.id), approved=reply.ok, reason=short))


def with_approval(part: Part, earlier: Part) -> Part:
    """Return `part`, which replaces `earlier`, with the approval of the same tool call: a writer may not know it."""
    is_same_call = part["type"] == earlier["type"] == "tool" and part["call"] == earlier["call"]
    if is_same_call and "approval" in earlier and "approval" not in part:
        return {**part, "approval": earlier["approval"]}
    return part


def _is_repeat(reply: Reply, request: ReplyCommand, caller: Caller) -> bool:
    """Return whether the request repeats the stored reply; the client that sent it may have finished its work since."""
    return reply.by == caller.id and request.request is not None and reply.request == request.request


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
    state: Draft, target_id: str | None, generation: int | None, caller: Caller, key: str | None = None
) -> None:
    """Raise Fenced unless attempt `generation` of `caller` has the turn of the target, or of the message it answers.

    A caller without that turn gets NotFound for a command `key`, else Forbidden.
    """
    message = state.message(target_id) if target_id is not None else None
    if message is not None and message.claim is None and message.reply_to is not None:
        message = state.message(message.reply_to)
    claim = message.claim if message is not None and not message.deleted else None
    is_holder = caller.is_app or (message is not None and _has_turn(message, caller))
    if generation is None or not is_holder:
        if key is not None:
            raise _unknown(key)
        raise Forbidden("a step, and a command with `generation`, is for the agent that has the turn of its target")
    if claim is None or (claim.state, claim.generation, claim.within) != ("taken", generation, None):
        raise Fenced(f"attempt {generation} no longer has the turn of message {target_id!r}; end this handler")


def _has_turn(message: MessageState, caller: Caller) -> bool:
    claim = message.claim
    return claim is not None and claim.state == "taken" and claim.node is None and is_own_name(claim.by, caller.id)


def settle_command(state: Draft, key: str, request: SettleCommand, now_ms: int) -> Decision:
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
        return Decision(ops=(*ops, _reply(key, now_ms, ok=bool(ops), error=error)))
    if request.is_expired:
        expired: Json = {"code": "expired", "detail": "no reply arrived in time"}
        return Decision(ops=(_reply(key, now_ms, ok=False, error=expired),))
    return Decision(serial=command.created)


def _carry_out_cancel(state: Draft, target: str, now_ms: int) -> list[Op]:
    """Return the operations that end `target`, an answer or all answers to a user message, and the turn."""
    ops: list[Op] = []
    turns = {target}
    for message in state.streaming():
        if target in (message.id, message.reply_to):
            ops.append(Finish(id=message.id, status="cancelled", reason=None, meta=message.meta, at_ms=now_ms))
            if message.reply_to is not None:
                turns.add(message.reply_to)
    for message_id in sorted(turns):
        asked = state.message(message_id)
        if asked is not None and not asked.deleted and asked.claim is not None and asked.claim.is_open:
            ops += _cancelled(state, asked, asked.claim, now_ms)
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
    # a caller without the right to read must not learn which messages exist
    if target is None or not (caller.may_read or _is_of(target, caller)):
        raise NotFound(f"message {request.target!r} does not exist in this channel; check the target")
    if target.deleted:
        raise Deleted(f"message {request.target!r} was deleted; check the target")
    if rules_of(request.name).stops and not _is_in_progress(state, target):
        raise Finished(f"message {request.target!r} has no running answer to cancel; it may have ended already")
    return target


def _is_of(message: MessageState, caller: Caller) -> bool:
    """Return whether `caller` created the message or is its current writer."""
    writer = message.writer
    return caller.id is not None and (message.author == caller.id or (writer is not None and writer.by == caller.id))


def _is_in_progress(state: Draft, target: MessageState) -> bool:
    return target.is_open or _has_answers(state, target)


def _is_only_waiting(state: Draft, target: MessageState) -> bool:
    """Return whether the turn waits for a worker and has no answer, so that no process has to stop first."""
    return target.is_pending and not _has_answers(state, target)


def is_being_cancelled(state: Draft, message_id: str) -> bool:
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


def _reply(key: str, now_ms: int, *, ok: bool, error: Json = None) -> Reply:
    return Reply(id=key, ok=ok, error=error, at_ms=now_ms)


def _data(value: Json, limit_bytes: int, limits: Limits) -> Json:
    if value is None:
        return None
    check_json(value, limit_bytes, "data", depth=limits.depth)
    return plain({"data": value})["data"]


def _cancelled(state: Draft, message: MessageState, claim: ClaimState, now_ms: int) -> list[Op]:
    op = Claim(id=message.id, state="cancelled", generation=claim.generation, by=claim.by, at_ms=now_ms)
    return [*ended_with(state, message, now_ms), op]


def ended_with(
    state: Draft, message: MessageState, now_ms: int, end: str = "pending", unheard: Container[str] = ()
) -> list[Claim | Reply]:
    """Return the operations on the held messages (`released`) and the open questions of a turn that ends."""
    return [*released(state, message, now_ms, end, unheard), *_withdrawn(state, message, now_ms)]


def released(
    state: Draft, message: MessageState, now_ms: int, end: str = "pending", unheard: Container[str] = ()
) -> list[Claim]:
    """Return the operations by which the messages that the turn of `message` has taken in wait again.

    If its attempt ends the turn in the state `end`, they end so, too, but for those that this attempt has not taken in,
    or that its handler did not get (`unheard`). Of a turn ended from outside the log does not show which these are.
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
    """Return the replies to the open questions of the turn of `message`, which ends: no attempt waits for others."""
    questions = [one for one in state.open_commands() if command_id(one.id).startswith(QUESTION_MARK)]
    if not questions or message.claim is None or not message.claim.is_open:
        return []
    # answers of earlier attempts may not be in memory, and those in memory may have other ids
    targets = {message.id, *reply_ids(message.id, message.claim.generation)}
    targets.update(one.id for one in state.messages() if one.reply_to == message.id)
    return [
        Reply(id=one.id, ok=False, error=WITHDRAWN, by=one.sent.by, at_ms=now_ms)
        for one in questions
        if one.sent.target in targets
    ]
