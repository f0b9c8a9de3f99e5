"""The state of a turn, and the turns of a conversation, as the store has them.

Layer: hub.

`Hub.turn` and the routes of an app (`tenuto.routes`) read turns here. An agent that works on one message may answer a
later one in the same turn (`take_waiting`). The later message then gets no turn of its own: a stored claim ties it to
the running turn, and it is over when that turn is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tenuto.core.deltas import TurnStatus, is_answer_of, is_question, turn_state
from tenuto.core.document import restore
from tenuto.core.errors import Deleted, Fenced, Finished, NotFound
from tenuto.core.model import Command, Message
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import Caller, ClaimTurn
from tenuto.core.state import ClaimState, MessageState
from tenuto.core.turns import CANCEL, ROUND, newest_branch
from tenuto.hub.channel import Channel
from tenuto.hub.pending import own_copy
from tenuto.hub.runtime import Runtime


async def take_waiting(runtime: Runtime, channel: str, message_id: str, by: str, turn: str | None) -> bool:
    """Take `message_id` into the turn of the message `turn` of agent `by`, or with None into its newest turn.

    Return False if another turn has the message, if it does not wait, or if there is no such turn.
    """
    scheduler = runtime.scheduler
    try:
        known = await runtime.message(channel, message_id)
    except NotFound:
        return False
    host = scheduler.turn_of(channel, by, turn)
    if known.claim is None or known.deleted or host is None:
        return False
    claim = known.claim
    within, attempt, host_claim = host
    # a later attempt takes in again what an earlier one had, unless that has a turn of its own by now
    was_taken_in = (claim.state, claim.within) == ("taken", within) and claim.within_generation < attempt
    if claim.state != "pending" and not was_taken_in:
        return turn is not None and scheduler.is_held(channel, message_id, within, attempt)  # by an earlier call
    writer = WriterIdentity(by=by, node=runtime.node) if host_claim.node is not None else None
    caller = Caller(id=by, writer=writer, is_server=True)
    request = ClaimTurn(
        generation=claim.generation,
        above=scheduler.unended(channel, message_id),
        lease_s=host_claim.lease_ms / 1000,
        within=within,
        within_generation=attempt,
    )
    try:
        with scheduler.taking(channel, message_id, within, attempt):
            await runtime.ask(channel, message_id, request, caller)
    except (Fenced, Finished, Deleted, NotFound):
        return False
    return True


PAGES = (20, 200)  # newest messages to load until the answers of a turn are in memory; older ones are read in pages
MAX_PAGES = 10  # pages of the store to read for one turn, since a peer may name the oldest message of a long channel


async def read_turn(runtime: Runtime, channel: str, message_id: str) -> TurnStatus:
    """Return the turn of a user message, with its answers in memory and among the next 2,000 messages (`MAX_PAGES`).

    The answers are those of the last round. Raises NotFound, Deleted, StoreUnavailable.
    """
    live, known = await runtime.found(channel, message_id)
    older = await _answers_outside_memory(live, runtime, known, known.claim)
    if not older and not _answers_in_memory(live, known, known.claim):
        await live.load_since(known.created)  # also deleted answers, unless too many messages have changed since
    # No wait from here on, so that the parts of the status belong to one moment.
    known = live.state.messages.get(message_id) or known
    answers = {one.id: one for one in (*older, *_answers_in_memory(live, known, known.claim))}
    return _status(live, _pending(live), known.message(), known.claim, answers.values())


async def answers_left(runtime: Runtime, channel: str, message_id: str) -> set[str]:
    """Return the ids of the answers that `read_turn` finds, of all rounds, also to a deleted message."""
    live, known = await runtime.found(channel, message_id, may_be_gone=True)
    answers = [*await _answers_outside_memory(live, runtime, known, None), *_answers_in_memory(live, known, None)]
    return {one.id for one in answers if not one.deleted}


async def read_open_turns(runtime: Runtime, channel: str) -> list[TurnStatus]:
    """Return the turns that wait or run, oldest first, and answers that stream without a user message.

    Their answers are those that stream. These are always in memory, as waiting messages are, so this is cheap. An
    answer to a message that does not exist, or was deleted, has no user message.
    """
    live = await runtime.fresh(channel)
    await live.load_messages([one.reply_to for one in _streaming_answers(live) if one.reply_to is not None])
    # No wait from here on, so that the turns belong to one moment.
    asked = {one.id: one for one in live.state.messages.values() if one.is_open and one.role == "user"}
    pending = _pending(live)
    answers: dict[str, list[MessageState]] = {}
    turns: list[TurnStatus] = []
    for one in _streaming_answers(live):
        question = live.state.messages.get(one.reply_to) if one.reply_to is not None else None
        if question is None or question.deleted:
            turns.append(_status(live, pending, None, None, [one]))
            continue
        asked[question.id] = question
        if is_answer_of(one, question.id, question.claim):
            answers.setdefault(question.id, []).append(one)
    turns += [_status(live, pending, one.message(), one.claim, answers.get(one.id, ())) for one in asked.values()]
    is_open = [one for one in turns if one.state in ("waiting", "running")]
    return sorted(is_open, key=lambda one: (one.message or one.answers[0]).created)


def _streaming_answers(live: Channel) -> list[MessageState]:
    return [one for one in live.state.messages.values() if one.is_streaming and one.role != "user"]


async def read_conversation(
    runtime: Runtime, channel: str, limit: int, *, before: int | None = None
) -> list[TurnStatus]:
    """Return the turns of the newest branch, oldest first, of the newest `limit` messages of the channel.

    With `before` only messages that were created before this serial count. Pages are read, since one may hold a large
    photo alone, until their messages exceed twice `Limits.message_bytes`.
    """
    live = await runtime.fresh(channel)
    limits = runtime.limits
    limit, room = max(1, limit), 2 * limits.message_bytes
    states: dict[str, MessageState] = {}
    while len(states) < limit and room > 0:
        page = await runtime.store.page(
            channel, before=before, limit=min(limit - len(states), limits.history), limit_bytes=limits.history_bytes
        )
        found = [restore(one) for one in page.messages]
        states |= {one.id: one for one in found}
        if not page.more or not found:
            break
        before, room = found[-1].created, room - sum(one.size_bytes for one in found)
    # those in memory may be newer
    states |= {message_id: one for message_id, one in live.state.messages.items() if message_id in states}
    messages = {message_id: one.message() for message_id, one in states.items() if not one.deleted}
    branch = newest_branch(messages.values())
    pending = _pending(live)
    turns: list[TurnStatus] = []
    questions = {one.id for one in branch if one.role == "user"}
    answers, shown_answers = _by_question(messages.values()), _by_question(branch)
    for message in branch:
        if message.role == "user":
            claim = states[message.id].claim
            shown = shown_answers.get(message.id, [])
            is_last_round = all(is_answer_of(one, message.id, claim) for one in shown)
            is_open = claim is not None and claim.is_open
            if is_open or is_last_round:  # also the interrupted attempts of the round, which the branch leaves out
                shown = [one for one in answers.get(message.id, ()) if is_answer_of(one, message.id, claim)]
            turns.append(_status(live, pending, message, claim, (states[one.id] for one in shown)))
        elif message.reply_to not in questions:
            turns.append(_status(live, pending, None, None, [states[message.id]]))
    return turns


def _by_question(messages: Iterable[Message]) -> dict[str | None, list[Message]]:
    """Return the answers among `messages`, by the ids of their questions."""
    found: dict[str | None, list[Message]] = {}
    for one in messages:
        if one.role != "user":
            found.setdefault(one.reply_to, []).append(one)
    return found


def _status(
    live: Channel,
    pending: list[Command],
    message: Message | None,
    claim: ClaimState | None,
    answers: Iterable[MessageState],
) -> TurnStatus:
    """Return the turn of `message` as of now; deleted ones among `answers` only show that it had answers."""
    known = list(answers)
    ordered = sorted((one for one in known if not one.deleted), key=lambda one: one.created)
    ids = {one.id for one in ordered} | ({message.id} if message is not None else set())
    is_being_cancelled = any(one.name == CANCEL.name and one.target in ids for one in pending)
    return TurnStatus(
        message=own_copy(message) if message is not None else None,
        state=turn_state(claim, ["deleted" if one.deleted else one.status for one in known]),
        answers=[own_copy(one.message()) for one in ordered],
        questions=[] if is_being_cancelled else [one for one in pending if is_question(one, ids)],
        cursor=live.state.cursor,
        is_cancelled=claim is not None and claim.state == "cancelled",
        is_deleted=bool(known) and not ordered,
        round=f"{live.state.epoch}:{claim.generation // ROUND if claim is not None else 0}",
    )


async def read_pending(runtime: Runtime, channel: str) -> list[Command]:
    """Return the commands of a channel without a reply, oldest first. Raises StoreUnavailable."""
    return _pending(await runtime.fresh(channel))


def _pending(live: Channel) -> list[Command]:
    return [one.command() for one in live.state.pending_commands()]


def _answers_in_memory(live: Channel, message: MessageState, claim: ClaimState | None) -> list[MessageState]:
    """Return the answers of the last round of the turn, or with None as `claim` those of all rounds."""
    return [one for one in live.state.messages.values() if is_answer_of(one, message.id, claim)]


async def _answers_outside_memory(
    live: Channel, runtime: Runtime, message: MessageState, claim: ClaimState | None
) -> list[MessageState]:
    """Return the further answers that only the store has, as `_answers_in_memory` does. First some are loaded."""
    # serial of the first entry that can be an answer of the last round (`is_answer_of`)
    first = 1 + max(message.created, claim.round_from if claim is not None else 0)
    for wanted in PAGES:
        if live.state.history_from <= first:
            return []
        await live.load_history(wanted)
    found: list[MessageState] = []
    after = first - 1
    for _ in range(MAX_PAGES):
        if live.state.history_from <= after + 1:
            break
        page = await runtime.store.page(
            live.name, before=None, after=after, limit=PAGES[-1], limit_bytes=runtime.limits.history_bytes
        )
        restored = [restore(one) for one in page.messages]
        found += [one for one in restored if is_answer_of(one, message.id, claim)]
        if not page.more or not restored:
            break
        after = restored[-1].created
    return found


async def next_status(runtime: Runtime, channel: str, status: TurnStatus, woken: asyncio.Event) -> TurnStatus | None:
    """Wait until the turn has another state, answer, end of an answer, or question, and return it as it is then.

    Return None if `woken` was set without such a change, for example because the hub drains. Raises NotFound, Deleted.
    """
    assert status.message is not None
    live = await runtime.fresh(channel)
    live.listeners[woken.set] = None
    try:
        now = await read_turn(runtime, channel, status.message.id)
        if _outline(now) == _outline(status):
            await woken.wait()
            woken.clear()
            now = await read_turn(runtime, channel, status.message.id)
        return now if _outline(now) != _outline(status) else None
    finally:
        live.listeners.pop(woken.set, None)


def _outline(status: TurnStatus) -> object:
    answers = [(one.id, one.status) for one in status.answers]
    return status.state, answers, [one.id for one in status.questions]
