"""Recovery of the messages and commands that ended nodes left open.

Layer: hub.

A message whose writer ended with its node is continued by an adopter of the app, or becomes `interrupted`. A remote
writer gets one full lease to reconnect. Commands and turns continue to wait. On an exclusive store a hub recovers
before it serves; on a shared store, when the lease of a node has expired (`holdfast.hub.nodes`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from holdfast.core.document import restore, restore_command
from holdfast.core.errors import Deleted, Fenced, Finished, HoldfastError, NotFound
from holdfast.core.message_state import MessageState
from holdfast.core.names import COMMAND_MARK
from holdfast.core.ops import WriterIdentity
from holdfast.core.requests import Caller, FinishMessage, TakeOver
from holdfast.hub.importing import undo_imports
from holdfast.hub.nodes import IsMine
from holdfast.hub.patterns import matches
from holdfast.hub.runtime import Runtime
from holdfast.hub.writer import MessageWriter
from holdfast.hub.writers import Writers

Adopter = Callable[[MessageWriter], Coroutine[Any, Any, None]]


async def recover(runtime: Runtime, adopters: Sequence[tuple[str, Adopter]], writers: Writers, is_mine: IsMine) -> None:
    """Recover the open messages and commands of the channels for which `is_mine` returns True.

    `adopters` are the app's functions with their channel patterns. Raises StoreUnavailable and Busy; the part that was
    done by then needs no repetition, and suffers none.
    """
    store = runtime.store
    if store.is_exclusive:
        await undo_imports(store)
    for channel in await store.open_channels():  # one channel at a time: together they may be larger than memory
        if not is_mine(channel):
            continue
        adopter = next((one for pattern, one in adopters if matches(pattern, channel)), None)
        for stored in await store.open_documents(channel):
            if stored.id.startswith(COMMAND_MARK):
                runtime.leases.inspect_command(channel, stored.id, restore_command(stored))
                continue
            message = restore(stored)
            runtime.leases.inspect_writer(channel, message.id, message)
            if store.is_exclusive:  # on a shared store other hubs may have these turns
                runtime.scheduler.inspect_message(channel, message.id, message)
            writer = message.writer if message.is_streaming else None
            if writer is not None and writer.node is not None and runtime.nodes.is_gone(writer.node):
                await _end_or_adopt(runtime, channel, message, writer, adopter, writers)


async def _end_or_adopt(
    runtime: Runtime,
    channel: str,
    message: MessageState,
    writer: WriterIdentity,
    adopter: Adopter | None,
    writers: Writers,
) -> None:
    """Interrupt the message of `writer`, whose node has ended, or let an adopter continue it."""
    server = Caller(id=writer.by, writer=WriterIdentity(by=writer.by, node=runtime.node), is_server=True)
    if adopter is None:
        end = FinishMessage(status="interrupted", generation=message.generation)
        # these are expected: an overdue `cancel` may have ended the message
        with contextlib.suppress(Finished, Fenced, Deleted, NotFound):
            await runtime.ask(channel, message.id, end, server)
        return
    # The takeover has a request id, so that a repeat after an unknown outcome is recognised instead of fenced.
    take_over = TakeOver(generation=message.generation, request=runtime.clock.new_id())
    try:
        taken = await runtime.ask(channel, message.id, take_over, server)
    except (Finished, Fenced, Deleted, NotFound):
        return
    except HoldfastError:
        # The takeover may be stored all the same. This node is then the writer, and no other node ends the message.
        writers.interrupt_later(channel, message.id, message.generation + 1)
        raise
    successor = writers.new(channel, message.id, writer.by, None)
    successor.take_up(message.message(), taken.generation or message.generation + 1)
    runtime.tasks.start_job(_adopt(adopter, successor))


async def _adopt(adopter: Adopter, writer: MessageWriter) -> None:
    with contextlib.suppress(Finished, Fenced, Deleted):  # these are expected: a client may have stopped the message
        async with writer:
            await adopter(writer)
