"""Decisions about who owns a message: remote writers and their leases.

Layer: core. A part of `decide` (`tenuto.core.decide`), which is the only caller of the decisions.
"""

from __future__ import annotations

from tenuto.core.draft import Decision
from tenuto.core.errors import Damaged, Deleted, Fenced, Finished, Forbidden, NotWriter, shown
from tenuto.core.message_state import MessageState
from tenuto.core.ops import Lease
from tenuto.core.requests import Caller, DeleteMessage, ExpireLease, RenewLease, Request


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
    if caller.writer is not None:  # two writers may have the same client id, in one process or in two
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
