"""Recovery of the messages and commands that ended nodes left open.

Layer: hub.

A message whose writer ended with its node is continued by an adopter of the app, or becomes `interrupted`. A remote
writer gets one full lease to reconnect. Commands and turns continue to wait. On an exclusive store a hub recovers
before it serves; on a shared store, when the lease of a node has expired (`tenuto.hub.nodes.nodes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from tenuto.core.document import restore, restore_command
from tenuto.core.errors import (
    Busy,
    Deleted,
    Fenced,
    Finished,
    NotFound,
    StoreUnavailable,
    StoreUnusable,
    TenutoError,
)
from tenuto.core.message_state import MessageState
from tenuto.core.names import COMMAND_MARK, matches
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import Caller, FinishMessage
from tenuto.hub.committer import in_time, sent_again
from tenuto.hub.keep.exports import undo_imports
from tenuto.hub.nodes.nodes import IsMine
from tenuto.hub.runtime import Runtime
from tenuto.hub.turns.shared import lose_turns
from tenuto.hub.writer import MessageWriter, Writers
from tenuto.stores.base import Store

logger = logging.getLogger("tenuto.hub")

T = TypeVar("T")

READS = 3  # channels that are recovered at the same time: together they may be larger than memory
SLOW_S = 1.0  # time after which a channel no longer holds up a recovery, and after which a read is sent again

Adopter = Callable[[MessageWriter], Coroutine[Any, Any, None]]


class Recovery:
    """Recovers channels, several at a time: one whose read hangs, or that is damaged, delays no other one."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None  # that of the last call of `run`
        self._running: dict[str, asyncio.Task[None]] = {}  # by channel
        self._late: set[str] = set()  # the channels that a call of `run` has left behind

    async def run(
        self, runtime: Runtime, adopters: Sequence[tuple[str, Adopter]], writers: Writers, is_mine: IsMine
    ) -> None:
        """Recover the open messages and commands of the channels for which `is_mine` returns True.

        `adopters` are the app's functions with their channel patterns. On a shared store a channel that fails does not
        stop the recovery of the others, and one that takes long goes on beside and after this call; if it fails later,
        the recovery is due again. On an exclusive store only a damaged channel does not stop the others. Raises
        StoreUnavailable, StoreUnusable and Busy; the part that was done by then needs no repetition, and suffers none.
        """
        store, failures = runtime.store, list[tuple[str, Exception]]()
        if runtime is not self._runtime:  # the hub has started again, perhaps in another event loop
            self._runtime, self._running = runtime, {}
        self._late = set(self._running)
        if store.is_exclusive:
            await undo_imports(store)
        names = await _read(store, store.open_channels)
        current = await _current(runtime, [name for name in names if is_mine(name)])
        known = 0
        for channel in names:
            while len(self._running) >= READS:
                await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)
            if runtime.nodes.is_leaving:
                return
            if len(failures) > known:
                known = len(failures)
                _check_exclusive(store, failures)
                await runtime.nodes.renew()  # raises if the store fails for all channels
            if is_mine(channel) and channel not in self._running:
                adopter = next((one for pattern, one in adopters if matches(pattern, channel)), None)
                work = partial(_recover_channel, runtime, channel, adopter, writers)
                if channel in current and _has_living_writers(runtime, channel):
                    work = partial(_offer_lost_turns, runtime, channel)
                self._start(runtime, channel, work, failures)
        if self._running:
            await asyncio.wait(self._running.values(), timeout=None if store.is_exclusive else SLOW_S)
        self._late = set(self._running)
        _check_exclusive(store, failures)
        for channel, error in failures[:1]:
            failed = f"channel {channel!r} was not recovered: {error!r}"
            if not store.is_exclusive:
                is_transient = any(isinstance(one, StoreUnavailable | Busy) for _, one in failures)
                raise (StoreUnavailable if is_transient else StoreUnusable)(failed)
            count = len(failures)
            logger.error("%d channels are damaged; restore a backup, or delete them; the first: %s", count, failed)

    def _start(
        self,
        runtime: Runtime,
        channel: str,
        work: Callable[[], Awaitable[None]],
        failures: list[tuple[str, Exception]],
    ) -> None:
        """Do `work` for `channel` in a task, which adds its error to `failures`."""

        async def recover() -> None:
            try:
                await work()
            except Exception as error:
                failures.append((channel, error))
                is_late = channel in self._late  # so no call reports it
                if not isinstance(error, TenutoError):
                    logger.exception("channel %s was not recovered", channel)
                elif is_late:
                    logger.warning("channel %s was not recovered; the hub tries again: %s", channel, error)
                if is_late:
                    runtime.nodes.recover_soon()

        running = self._running
        task = running[channel] = runtime.tasks.start_background(recover())
        task.add_done_callback(lambda _: running.pop(channel))


def _check_exclusive(store: Store, failures: Sequence[tuple[str, Exception]]) -> None:
    """Raise the first error that is no damage, if the store is exclusive: the hub must not serve then."""
    for _, error in failures if store.is_exclusive else ():
        if not isinstance(error, StoreUnusable):
            raise error


async def _read(store: Store, read: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `read()`. Raises StoreUnavailable if it takes too long."""
    if store.is_exclusive:  # it has no connection that may be broken
        return await in_time(read(), store.name)
    return await sent_again(read, store.name, after_s=SLOW_S)


async def _current(runtime: Runtime, names: Sequence[str]) -> frozenset[str]:
    """Return those of the channels `names` that are in memory as they are in the store. Raises StoreUnavailable.

    With thousands of streaming messages, a read of each channel in each round would cost more than their text.
    """
    live = [runtime.channels[name] for name in names if name in runtime.channels]
    if runtime.store.is_exclusive or not live:
        return frozenset()
    live_names = [channel.name for channel in live]
    heads = await _read(runtime.store, lambda: runtime.store.heads(live_names))
    return frozenset(channel.name for channel, head in zip(live, heads, strict=True) if channel.is_at(head))


def _has_living_writers(runtime: Runtime, name: str) -> bool:
    """Return whether channel `name` is in memory, and the nodes of the writers of all its open messages live."""
    channel = runtime.channels.get(name)
    if channel is None or not channel.is_ready:
        return False
    return not any(_is_left(runtime, message) for message in channel.state.messages.values())


async def _recover_channel(runtime: Runtime, channel: str, adopter: Adopter | None, writers: Writers) -> None:
    store, found, asked = runtime.store, [], []
    for stored in await _read(store, lambda: store.open_documents(channel)):
        if stored.id.startswith(COMMAND_MARK):
            runtime.leases.inspect_command(channel, stored.id, restore_command(stored))
            continue
        message = restore(stored)
        runtime.leases.inspect_writer(channel, message.id, message, is_late=channel not in runtime.channels)
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
    await _offer_lost_turns(runtime, channel)


async def _offer_lost_turns(runtime: Runtime, channel: str) -> None:
    """Let the turns of ended nodes wait again in `channel`, and offer them to workers."""
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
