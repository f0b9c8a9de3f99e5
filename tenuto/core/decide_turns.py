"""Decisions about turns.

Layer: core; `decide` calls this module. A turn is the work on one user message. Its claim says whether the turn waits
for an agent, runs, or is over, and counts the attempts, so that exactly one process works on it, and a process that
lost the turn gets `fenced`.
"""

from __future__ import annotations

from tenuto.core.draft import Decidable, Decision
from tenuto.core.errors import Fenced, Finished, NotWriter, StillStreaming
from tenuto.core.message_state import ClaimState, MessageState
from tenuto.core.names import check_id
from tenuto.core.ops import Claim, Create, Finish, Op, WriterIdentity, digest
from tenuto.core.requests import Caller, ClaimTurn, EndTurn
from tenuto.core.turns import earlier_attempt, next_round

GIVEN_BACK_MS = 1  # length of the lease of an attempt that its worker has given back: each hub soon counts it as lost
CRASHED = "crashed"  # reason that a failed answer shows if each attempt of its turn ended without an answer


def claim_turn(state: Decidable, message: MessageState, request: ClaimTurn, caller: Caller, now_ms: int) -> Decision:
    """Claim the turn of `message` as the attempt after `request.generation`, unless it has to wait for another turn.

    A claim that `confirms` an attempt keeps its number, because an attempt without a handler does not count. The claim
    of a node that counted the attempt as lost before its confirmation is refused.
    """
    claim = _open_claim(message)
    if request.renews:
        return _renew_turn(message, claim, request, caller, now_ms)
    if (claim.generation, claim.confirmed) != (request.generation, request.confirmed):
        if caller.writer is not None and claim == _claim_of(caller, request)._replace(round_from=claim.round_from):
            return Decision(
                serial=message.last, generation=claim.generation
            )  # an earlier claim by this caller was stored, but its result was lost on the way
        raise _stale(message, claim, request)
    if request.lost is not None:
        _check_alone(state, message, request.lost)
    taken = _claim_of(caller, request)
    return _taken(message, taken, now_ms)


def _renew_turn(message: MessageState, claim: ClaimState, request: ClaimTurn, caller: Caller, now_ms: int) -> Decision:
    """Confirm the attempt of a remote worker, so that each hub of a shared store gives it another term, or none."""
    is_known = not caller.is_server or claim.confirmed == request.confirmed  # a worker does not know the confirmations
    if (claim.state, claim.generation) != ("taken", request.generation) or not is_known:
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
    op = Claim(
        id=message.id,
        state="taken",
        generation=claim.generation,
        by=claim.by,
        node=claim.node,
        lease_ms=claim.lease_ms,
        at_ms=now_ms,
        within=claim.within,
        within_generation=claim.within_generation,
        confirmed=claim.confirmed,
    )
    return Decision(ops=(op,), generation=claim.generation)


def _check_alone(state: Decidable, message: MessageState, lost: tuple[tuple[str, int, int], ...]) -> None:
    """Raise StillStreaming if another turn runs in the channel: another hub may have claimed it just now."""
    for other in state.running():
        assert other.claim is not None
        if other.id != message.id and (other.id, other.claim.generation, other.claim.confirmed) not in lost:
            raise StillStreaming(f"message {other.id!r} is being answered: wait for the end of its turn")


def check_attempt(state: Decidable, message_id: str, answer_id: str, attempt: int | None) -> None:
    """Raise Fenced if the turn of a message has another attempt by now, or waits for one after a `regenerate`.

    The agent of this attempt may not know that yet, for example after its node was cut off from the store. A further
    answer of it would stand beside those of the later attempt. A remote agent names no attempt (None), but the id of
    its answer shows an earlier one.
    """
    message = state.message(message_id)
    claim = message.claim if message is not None else None
    if claim is None:
        return
    if attempt is None:
        attempt = earlier_attempt(message_id, answer_id, claim.generation)
    if attempt in (None, claim.generation):
        return
    later = (
        f"attempt {claim.generation} has followed"
        if claim.state != "pending"
        else "it waits for a new answer (regenerate)"
    )
    raise Fenced(
        f"attempt {attempt} cannot begin a further answer to message {message_id!r}: {later}; end this handler",
        generation=claim.generation,
    )


def end_turn(message: MessageState, request: EndTurn, caller: Caller, now_ms: int) -> Decision:
    """End the turn of `message`. Only the running attempt may do this.

    A node that gives the turn up names the confirmations, too, and is refused if the attempt was confirmed since.
    """
    claim = message.claim
    is_ours = caller.is_app or caller.is_server or (claim is not None and claim.node is None and claim.by == caller.id)
    if claim is not None and is_ours and (claim.state, claim.generation) == (request.state, request.generation):
        return Decision(serial=message.last, generation=claim.generation)
    claim = _open_claim(message)
    if claim.generation != request.generation or request.confirmed not in (None, claim.confirmed):
        raise _stale(message, claim, request)
    if not is_ours:
        raise NotWriter(f"another worker has the turn of message {message.id!r}; stop working on it")
    failed = _failed(message, claim, request.failure, now_ms) if request.failure is not None else ()
    op = Claim(id=message.id, state=request.state, generation=claim.generation, by=claim.by, at_ms=now_ms)
    return Decision(ops=(*failed, op), generation=claim.generation)


def _failed(message: MessageState, claim: ClaimState, answer_id: str, now_ms: int) -> tuple[Op, ...]:
    """Return the operations of an empty, failed answer. Answers that the attempts had started end as `interrupted`."""
    answer = Create(
        id=check_id(answer_id),
        role="assistant",
        author=claim.by,
        status="streaming",
        parts=[],
        meta={},
        parent=message.id,
        reply_to=message.id,
        at_ms=now_ms,
        digest=digest(answer_id),
        writer=WriterIdentity(by=claim.by),
    )
    return answer, Finish(id=answer_id, status="failed", reason=CRASHED, meta={}, at_ms=now_ms)


def _claim_of(caller: Caller, request: ClaimTurn) -> ClaimState:
    node = caller.writer.node if caller.writer is not None else None
    lease_ms = 0 if node is not None else int(request.lease_s * 1000)
    within, attempt = request.within, request.within_generation
    if request.confirms and request.generation >= request.above:
        return ClaimState("taken", request.generation, caller.id, node, confirmed=request.confirmed + 1)
    before = request.generation if request.generation >= request.above else next_round(request.above)
    return ClaimState("taken", before + 1, caller.id, node, lease_ms, within, attempt)


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
