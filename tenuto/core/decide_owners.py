"""Decisions about owners: who writes a message and until when (writers and leases), and who has a turn (claims).

Layer: core. A part of `decide` (`tenuto.core.decide`), which calls these decisions.
"""

from __future__ import annotations

from tenuto.core.decide_commands import ended_with, is_being_cancelled, released
from tenuto.core.deltas import is_answer_of
from tenuto.core.draft import Decision, Draft
from tenuto.core.errors import Damaged, Deleted, Fenced, Finished, Forbidden, NotWriter, StillStreaming, shown
from tenuto.core.message_state import CLAIMED, ClaimState, MessageState
from tenuto.core.names import check_id, is_own_name
from tenuto.core.ops import Claim, Create, Finish, Lease, Op, Takeover, WriterIdentity, digest
from tenuto.core.requests import Caller, ClaimTurn, DeleteMessage, EndTurn, ExpireLease, RenewLease, Request
from tenuto.core.turns import MOST_SPARED, earlier_attempt, newest_branch, next_round, reply_ids


def check_writer(message: MessageState, caller: Caller, generation: int | None) -> None:
    """Raise NotWriter unless `caller` created the message or took it over.

    An author whose message another writer took over passes, so that the generation check refuses it with `fenced`,
    unless it presents the current generation.
    """
    if caller.is_app or caller.is_server or is_writer(message, caller):
        return
    if is_author(message, caller) and not is_current(message, generation):
        return
    raise NotWriter(
        f"message {message.id!r} belongs to another writer than {name_of(caller)}; take it over once it is "
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
    if is_plausible and is_known and is_author_or_writer(message, caller):
        return
    raise Forbidden(
        f"message {message.id!r} belongs to another author than {name_of(caller)}; "
        "changing it needs the capability 'admin'"
    )


def name_of(caller: Caller) -> str:
    """Return the caller's name for error messages."""
    return "an anonymous caller" if caller.id is None else f"caller {shown(caller.id)}"


def is_writer(message: MessageState, caller: Caller) -> bool:
    """Return whether `caller` created the message, or was the last to take it over."""
    writer = message.writer
    if writer is None:
        return is_author(message, caller)
    if caller.writer is not None:  # of writers with one client id the generation tells which may write
        return writer.by == caller.id
    return writer.node is None and writer.by == caller.id


def is_author(message: MessageState, caller: Caller) -> bool:
    """Return whether `caller` created the message."""
    return caller.id is not None and message.author == caller.id


def is_author_or_writer(message: MessageState, caller: Caller) -> bool:
    """Return whether `caller` created the message or writes it now.

    Messages without an author do not belong to anonymous clients.
    """
    return is_author(message, caller) or is_writer(message, caller)


def check_generation(message: MessageState, generation: int | None) -> None:
    """Raise Fenced unless `generation` (by default 1) may write the message now."""
    if message.generation == (1 if generation is None else generation):  # inlined copy of `is_current`
        return
    raise fenced(message, generation)


def fenced(message: MessageState, generation: int | None) -> Fenced:
    """Return the error for a request whose `generation` is not the message's current one."""
    given = "1 (the default)" if generation is None else str(generation)
    problem = "stale" if (generation or 1) < message.generation else "unknown"
    return Fenced(
        f"generation {given} of message {message.id!r} is {problem}, the current one is {message.generation}; "
        "only the latest writer may write",
        generation=message.generation,
    )


def is_current(message: MessageState, generation: int | None) -> bool:
    """Return whether `generation` (by default 1) is the one that may write now."""
    return message.generation == (1 if generation is None else generation)


def check_streaming(message: MessageState) -> None:
    """Raise Finished if the message has an end."""
    if message.status != "streaming":
        raise Finished(f"message {message.id!r} is {message.status!r}; only a 'streaming' one can be written")


def check_readable(message: MessageState, request: Request) -> None:
    """Raise Deleted, or Damaged for a message that the store cannot read; such a message may be deleted."""
    if message.deleted:
        raise Deleted(f"message {shown(message.id)} was deleted; create another one")
    if message.is_damaged and not isinstance(request, DeleteMessage):
        raise Damaged(
            f"message {shown(message.id)} is damaged in the store; delete it, or restore a backup of the store"
        )


def renew_lease(message: MessageState, request: RenewLease, now_ms: int) -> Decision:
    """Return the decision on a renewal: it stores a new term only. Raises Fenced, Finished."""
    check_generation(message, request.generation)
    check_streaming(message)
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


def check_silent(message: MessageState, request: ExpireLease) -> Decision | None:
    """Return a decision without effect if the writer's lease must not expire, because the message has new entries."""
    return Decision(serial=message.version) if message.last > request.last else None


GIVEN_BACK_MS = 1  # length of the lease of an attempt that its worker has given back: each hub soon counts it as lost
CRASHED = "crashed"  # reason that a failed answer shows if each attempt of its turn ended without an answer


def claim_turn(state: Draft, message: MessageState, request: ClaimTurn, caller: Caller, now_ms: int) -> Decision:
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


def check_attempt(state: Draft, message_id: str, answer_id: str, role: str, attempt: int | None) -> None:
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


def end_turn(state: Draft, message: MessageState, request: EndTurn, caller: Caller, now_ms: int) -> Decision:
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
