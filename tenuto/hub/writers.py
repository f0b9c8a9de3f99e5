"""The writers of this process.

Layer: hub.

`Writers` is the interface of the hub that message writers use. It registers them while they write, and ends a message
whose writer has gone without storing an end, because no other component would.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from tenuto.core.errors import Busy, Draining, Fenced, IdConflict, StoreUnavailable, TenutoError
from tenuto.core.limits import Limits
from tenuto.core.message_state import MessageState
from tenuto.core.names import check_key
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import SERVER, Caller, CreateMessage, FinishMessage, Request, TakeOver
from tenuto.hub.channel import Channel
from tenuto.hub.lifecycle import Lifecycle
from tenuto.hub.pace import Begin
from tenuto.hub.pending import Done, Item, Result, own_copy
from tenuto.hub.writer import MessageWriter, OpenWriter

logger = logging.getLogger("tenuto.hub")

ABANDONED_S = 1.0  # wait before the check that an abandoned message has ended, and between two tries to end it


class Writers:
    """Makes and registers the writers of a hub. Implements `WriterHub`."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        limits: Limits,
        writer_class: type[MessageWriter],
        reason_of: Callable[[BaseException], str | None],
    ) -> None:
        self.limits = limits
        self.reason_of = reason_of  # returns the reason to store for a message that an exception ended
        self._lifecycle = lifecycle
        self._writer_class = writer_class

    def new(self, channel: str, message_id: str, author: str | None, create: CreateMessage | None) -> MessageWriter:
        """Return a writer that creates its message by the request `create`; with None it continues a stored message."""
        return self._writer_class(self, channel, message_id, create=create, author=author)

    async def take_over(self, channel: str, message_id: str, author: str | None) -> MessageWriter:
        """Return a writer that continues an interrupted message. Raises the refusal of the takeover."""
        await self.start()
        known = await self._lifecycle.runtime.message(channel, message_id)
        return await self.continue_after(channel, known, self.caller(author), author)

    async def continue_after(
        self, channel: str, known: MessageState, caller: Caller, author: str | None
    ) -> MessageWriter:
        """Return a writer that continues `known`, which has no other takeover since. Raises the refusal.

        The takeover has a request id, so that a repeat after an unknown outcome is recognised instead of fenced.
        """
        runtime, message_id = self._lifecycle.runtime, check_key(known.id)
        next_generation = known.generation + 1
        request = TakeOver(generation=known.generation, request=runtime.clock.new_id())
        try:
            taken = await runtime.ask(channel, message_id, request, caller)
        except (StoreUnavailable, Busy, asyncio.CancelledError):
            # The takeover may have been stored although the request failed. No writer would then continue the message,
            # so the server interrupts it later.
            self.interrupt_later(channel, message_id, next_generation)
            raise
        writer = self.new(channel, message_id, author, None)
        generation = taken.generation or next_generation
        try:
            # read now: the text may have grown before the takeover
            stored = own_copy((await runtime.message_in_time(channel, message_id)).message())
        except BaseException:
            self.left(channel, message_id, generation)
            raise
        writer.take_up(stored, generation)
        return writer

    # -- `WriterHub` -------------------------------------------------------------------------------------------

    @property
    def node(self) -> str:
        return self._lifecycle.node

    @property
    def is_draining(self) -> bool:
        return self._lifecycle.is_draining

    async def start(self) -> None:
        await self._lifecycle.start()

    def caller(self, author: str | None) -> Caller:
        return Caller(id=author, writer=WriterIdentity(by=author, node=self._lifecycle.node), is_app=True)

    def submit(self, channel: str, key: str, request: Request, caller: Caller, done: Done, *, is_repeat: bool) -> None:
        self._lifecycle.runtime.submit(channel, key, request, caller, done, is_repeat=is_repeat)

    async def ask(self, channel: str, key: str, request: Request, caller: Caller) -> Result:
        await self._lifecycle.start()
        return await self._lifecycle.runtime.ask(channel, key, request, caller)

    def queue(self, item: Item, caller: Caller, *, is_urgent: bool) -> None:
        runtime = self._lifecycle.runtime
        if caller.writer is not None and caller.writer.node != runtime.node:
            # the store may have lost text of this writer; the new run lets an adopter continue the message, or ends it
            raise Fenced("the hub has begun another run since the message was opened; open another message")
        runtime.committer.submit(item, is_urgent=is_urgent)

    def hurry_commit(self) -> None:
        with contextlib.suppress(TenutoError):  # the hub has ended meanwhile
            self._lifecycle.runtime.committer.hurry()

    def schedule_commit(self, channel: Channel, callback: Callable[[], None]) -> Begin:
        try:
            return self._lifecycle.runtime.pace.begin(channel, callback)
        except TenutoError:  # the hub has ended meanwhile
            return Begin.NOW

    def register_writer(self, writer: OpenWriter) -> None:
        known = self._lifecycle.runtime.writers.setdefault((writer.channel, writer.id), writer)
        if known is not writer:
            raise IdConflict(f"message {writer.id!r} has a writer in this process already; use another id")

    def unregister_writer(self, writer: OpenWriter) -> None:
        if not self._lifecycle.is_running:
            return
        runtime = self._lifecycle.runtime
        key = (writer.channel, writer.id)
        if runtime.writers.get(key) is writer:  # after a restart of the hub, another writer may have the key
            del runtime.writers[key]
            runtime.tasks.quieter.set()
        self.left(writer.channel, writer.id, writer.generation)

    # -- abandoned messages ------------------------------------------------------------------------------------

    def left(self, channel: str, message_id: str, generation: int) -> None:
        """Note that the message has no writer here any more, and interrupt it later unless it has an end."""
        if not self._lifecycle.is_running:
            return
        live = self._lifecycle.runtime.channels.get(channel)
        known = live.state.message(message_id) if live is not None else None
        if known is None or self._is_abandoned(known, channel, generation):
            self.interrupt_later(channel, message_id, generation)

    def interrupt_later(self, channel: str, message_id: str, generation: int) -> None:
        """Interrupt the message after a while, unless it has an end or another writer by then."""
        if (
            self._lifecycle.is_running and not self._lifecycle.is_draining
        ):  # otherwise the next start recovers the message
            with contextlib.suppress(RuntimeError):  # RuntimeError: the hub is ending
                self._lifecycle.runtime.tasks.start_background(self._interrupt(channel, message_id, generation))

    def _is_abandoned(self, message: MessageState, channel: str, generation: int) -> bool:
        """Return whether the message still streams although its writer in this process has gone."""
        runtime = self._lifecycle.runtime
        is_ours = message.writer is not None and message.writer.node == runtime.node
        is_written = (channel, message.id) in runtime.writers
        return message.is_streaming and is_ours and message.generation == generation and not is_written

    async def _interrupt(self, channel: str, message_id: str, generation: int) -> None:
        """Retry until the abandoned message is stored as interrupted; no other component will finish it."""
        end = FinishMessage(status="interrupted", reason="writer_gone", generation=generation)
        while True:
            await asyncio.sleep(ABANDONED_S)
            try:
                runtime = self._lifecycle.runtime
                if self._is_abandoned(await runtime.message_in_time(channel, message_id), channel, generation):
                    await runtime.ask(channel, message_id, end, SERVER)
                return
            except TenutoError as error:
                if not error.retry or isinstance(error, Draining):
                    return
            except Exception:
                logger.exception(
                    "message %r of channel %r could not be interrupted; the hub tries again", message_id, channel
                )
