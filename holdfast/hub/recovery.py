"""Recovery of the messages and commands that a previous run of the hub left open.

Layer: hub.

A message whose writer died with its process is continued by an adopter of the app, or becomes `interrupted`. A remote
writer gets one full lease to reconnect. Commands and turns continue to wait. A hub recovers before it serves; on a
shared store other hubs may still write these messages, so it leaves them alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from holdfast.core.document import restore, restore_command
from holdfast.core.errors import Deleted, Fenced, Finished, NotFound
from holdfast.core.message_state import MessageState
from holdfast.core.names import COMMAND_MARK
from holdfast.core.ops import WriterIdentity
from holdfast.core.requests import Caller, FinishMessage, TakeOver
from holdfast.hub.importing import undo_imports
from holdfast.hub.patterns import matches
from holdfast.hub.runtime import Runtime
from holdfast.hub.writer import MessageWriter

Adopter = Callable[[MessageWriter], Coroutine[Any, Any, None]]
# a function that makes a writer from a channel, a message id and an author
NewWriter = Callable[[str, str, str | None], MessageWriter]


async def recover(runtime: Runtime, adopters: Sequence[tuple[str, Adopter]], new_writer: NewWriter) -> None:
    """Recover all open messages and commands. `adopters` are the app's functions with their channel patterns."""
    store = runtime.store
    if not store.is_exclusive:
        return
    await undo_imports(store)
    for channel in await store.open_channels():  # one channel at a time: together they may be larger than memory
        adopter = next((one for pattern, one in adopters if matches(pattern, channel)), None)
        for stored in await store.open_documents(channel):
            if stored.id.startswith(COMMAND_MARK):
                runtime.leases.inspect_command(channel, stored.id, restore_command(stored))
                continue
            message = restore(stored)
            runtime.leases.inspect_writer(channel, message.id, message)
            runtime.scheduler.inspect_message(channel, message.id, message)
            if message.is_streaming and message.writer is not None and message.writer.node not in (None, runtime.node):
                await _end_or_adopt(runtime, channel, message, message.writer, adopter, new_writer)


async def _end_or_adopt(
    runtime: Runtime,
    channel: str,
    message: MessageState,
    writer: WriterIdentity,
    adopter: Adopter | None,
    new_writer: NewWriter,
) -> None:
    """Interrupt the message of `writer`, whose process has died, or let an adopter continue it."""
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
    successor = new_writer(channel, message.id, writer.by)
    successor.take_up(message.message(), taken.generation or message.generation + 1)
    runtime.tasks.start_job(_adopt(adopter, successor))


async def _adopt(adopter: Adopter, writer: MessageWriter) -> None:
    with contextlib.suppress(Finished, Fenced, Deleted):  # these are expected: a client may have stopped the message
        async with writer:
            await adopter(writer)
