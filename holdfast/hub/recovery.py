"""Recovery of the messages and commands that ended nodes left open.

Layer: hub.

A message whose writer ended with its node is continued by an adopter of the app, or becomes `interrupted`. A remote
writer gets one full lease to reconnect. Commands and turns continue to wait. On an exclusive store a hub recovers
before it serves; on a shared store, when the lease of a node has expired (`holdfast.hub.nodes`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from holdfast.core.document import restore, restore_command
from holdfast.core.errors import (
    Busy,
    Deleted,
    Fenced,
    Finished,
    HoldfastError,
    NotFound,
    StoreUnavailable,
    StoreUnusable,
)
from holdfast.core.message_state import MessageState
from holdfast.core.names import COMMAND_MARK
from holdfast.core.ops import WriterIdentity
from holdfast.core.requests import Caller, FinishMessage
from holdfast.hub.importing import undo_imports
from holdfast.hub.loading import in_time
from holdfast.hub.nodes import IsMine
from holdfast.hub.patterns import matches
from holdfast.hub.runtime import Runtime
from holdfast.hub.shared_turns import lose_turns
from holdfast.hub.writer import MessageWriter
from holdfast.hub.writers import Writers

logger = logging.getLogger("holdfast.hub")

Adopter = Callable[[MessageWriter], Coroutine[Any, Any, None]]


async def recover(runtime: Runtime, adopters: Sequence[tuple[str, Adopter]], writers: Writers, is_mine: IsMine) -> None:
    """Recover the open messages and commands of the channels for which `is_mine` returns True.

    `adopters` are the app's functions with their channel patterns. On a shared store a channel that fails does not stop
    the recovery of the others. Raises StoreUnavailable and Busy; the part that was done by then needs no repetition,
    and suffers none.
    """
    store, failed, is_transient = runtime.store, "", False
    if store.is_exclusive:
        await undo_imports(store)
    names = await in_time(store.open_channels(), store.name)
    current = await _current(runtime, [name for name in names if is_mine(name)])
    # one channel at a time: together they may be larger than memory
    for channel in names:
        if runtime.nodes.is_leaving:
            return
        if not is_mine(channel):
            continue
        adopter = next((one for pattern, one in adopters if matches(pattern, channel)), None)
        try:
            if channel in current and _has_living_writers(runtime, channel):
                await lose_turns(runtime.nodes, runtime.scheduler, channel)
                runtime.scheduler.offer(channel)
            else:
                await _recover_channel(runtime, channel, adopter, writers)
        except Exception as error:
            if store.is_exclusive:
                raise
            if not isinstance(error, HoldfastError):
                logger.exception("channel %s was not recovered", channel)
            failed = failed or f"channel {channel!r} was not recovered: {error!r}"
            is_transient |= isinstance(error, StoreUnavailable | Busy)
            await runtime.nodes.renew()  # raises if the store fails for all channels
    if failed:
        raise (StoreUnavailable if is_transient else StoreUnusable)(failed)


async def _current(runtime: Runtime, names: Sequence[str]) -> frozenset[str]:
    """Return those of the channels `names` that are in memory as they are in the store. Raises StoreUnavailable.

    With thousands of streaming messages, a read of each channel in each round would cost more than their text.
    """
    live = [runtime.channels[name] for name in names if name in runtime.channels]
    if runtime.store.is_exclusive or not live:
        return frozenset()
    heads = await in_time(runtime.store.heads([channel.name for channel in live]), runtime.store.name)
    return frozenset(channel.name for channel, head in zip(live, heads, strict=True) if channel.is_at(head))


def _has_living_writers(runtime: Runtime, name: str) -> bool:
    """Return whether channel `name` is in memory, and the nodes of the writers of all its open messages live."""
    channel = runtime.channels.get(name)
    if channel is None or not channel.is_ready:
        return False
    return not any(_is_left(runtime, message) for message in channel.state.messages.values())


async def _recover_channel(runtime: Runtime, channel: str, adopter: Adopter | None, writers: Writers) -> None:
    store, found, asked = runtime.store, [], []
    for stored in await in_time(store.open_documents(channel), store.name):
        if stored.id.startswith(COMMAND_MARK):
            runtime.leases.inspect_command(channel, stored.id, restore_command(stored))
            continue
        message = restore(stored)
        runtime.leases.inspect_writer(channel, message.id, message)
        if store.is_exclusive:
            runtime.scheduler.inspect_message(channel, message.id, message)
        elif message.claim is not None and message.claim.is_open:
            asked.append(message)
        if _is_left(runtime, message):
            found.append(message)
    if found:
        await runtime.nodes.renew()  # a node that began after the last renewal may have written these messages
    for message in found:
        if _is_left(runtime, message) and not runtime.nodes.is_leaving:
            await _end_or_adopt(runtime, channel, message, adopter, writers)
    if asked:  # after the answers of lost attempts have ended
        await _offer_turns(runtime, channel, asked)


async def _offer_turns(runtime: Runtime, channel: str, asked: Sequence[MessageState]) -> None:
    """Let the turns of the messages `asked` wait again that no living node has."""
    if channel in runtime.channels:
        runtime.scheduler.inspect(await in_time(runtime.fresh(channel), runtime.store.name), None)
    else:
        for message in asked:
            runtime.scheduler.inspect_message(channel, message.id, message)
    await lose_turns(runtime.nodes, runtime.scheduler, channel)
    if channel not in runtime.channels:
        runtime.scheduler.forget(channel)
    runtime.scheduler.offer(channel)


def _is_left(runtime: Runtime, message: MessageState) -> bool:
    """Return whether the node of the writer of `message` has ended, and the message has not."""
    writer = message.writer if message.is_streaming else None
    return writer is not None and writer.node is not None and runtime.nodes.is_gone(writer.node)


async def _end_or_adopt(
    runtime: Runtime, channel: str, message: MessageState, adopter: Adopter | None, writers: Writers
) -> None:
    """Interrupt `message`, the node of whose writer has ended, or let an adopter continue it."""
    author = message.writer.by if message.writer is not None else None
    server = Caller(id=author, writer=WriterIdentity(by=author, node=runtime.node), is_server=True)
    # these are expected: an overdue `cancel` or another node may have ended the message
    with contextlib.suppress(Finished, Fenced, Deleted, NotFound):
        if adopter is None:
            end = FinishMessage(status="interrupted", generation=message.generation)
            await runtime.ask(channel, message.id, end, server)
            return
        successor = await writers.continue_after(channel, message, server, author)
        if not runtime.nodes.is_leaving:  # otherwise the message is left to the next node
            runtime.tasks.start_job(_adopt(adopter, successor))


async def _adopt(adopter: Adopter, writer: MessageWriter) -> None:
    with contextlib.suppress(Finished, Fenced, Deleted):  # these are expected: a client may have stopped the message
        async with writer:
            await adopter(writer)
