"""Retention: removes messages whose time is over, in small steps between the commits of a running hub.

Layer: hub.

A round reads the list of channels and sweeps those whose policy may let messages go (`policies`). Each step
removes a bounded number of messages in a transaction of its own, and a pause follows, so appends wait for one step at
most. A viewer gets no event: the floor of the channel rises, and a cursor below it leads to a new start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence

from msgspec.structs import replace

from tenuto.core.document import restore
from tenuto.core.errors import StoreUnusable, TenutoError
from tenuto.core.model import OPTIONS_KEY, OPTIONS_MARK, ChannelSummary
from tenuto.core.requests import references, regenerate_options_id
from tenuto.hub.keep.exports import is_importing
from tenuto.hub.keep.policies import DAY_MS, ClockTrust, Policies, Policy, Retention, Sweep
from tenuto.hub.lifecycle import Lifecycle
from tenuto.hub.runtime import Runtime
from tenuto.hub.tasks import logs_errors
from tenuto.stores.base import Fact, Head, Store, head_of

logger = logging.getLogger("tenuto.hub")

ROUND_S = 300.0  # pause between two rounds
PAGE = 200  # channels in one read
READ_FACTS = 32
READ_PAUSE_S = 0.02  # after a read of facts, also by `forgetting`
# Bounds of one step. A message that is larger than the bytes is a step of its own.
STEP_MESSAGES = 16
STEP_BYTES = 128 * 1024
# Between two steps. With 50 busy conversations the p99 of appends was 16 ms without retention, 24 to 28 ms with this
# pause, and 45 ms with 50 ms, mostly because of checkpoints (a machine of two cores under load).
PAUSE_S = 0.2
MAX_COUNTS = 10_000  # channels whose counts are remembered
# time for which the life of a removed channel is remembered, and the ids of messages that streamed in it are used up
GONE_MS = 24 * 3_600_000

Rules = Mapping[str, str | Retention]  # how long messages stay, by channel pattern


class Retainer:
    """Carries out the policies of a hub. Its counts grow over all runs of the hub."""

    def __init__(self, rules: Rules | None, lifecycle: Lifecycle, *, visitors_days: int | None = None) -> None:
        """Remove messages by `rules` while the hub runs.

        Messages of visitors' channels without a rule are removed after `visitors_days`, if it is given.
        """
        self.policies = Policies(rules if rules is not None else {}, visitors_days=visitors_days)
        self._trust = ClockTrust()
        self._newest_ms: int | None = None  # newest time in the store at the start of the hub; None: not read yet
        self._is_distrusted = False  # True: the clock was not plausible at the last round
        self._messages = self._bytes = self._channels = 0  # counts of what was removed
        self._rounds = self._last_ms = 0  # number of rounds, and when the last one ended
        self._counts: dict[str, tuple[str, int, int]] = {}  # epoch, serial and messages of counted channels
        if self.policies:
            lifecycle.on_start(lambda: lifecycle.runtime.tasks.start_background(self.run(lifecycle.runtime)))

    def stats(self) -> dict[str, int]:
        """Return counts of removed data, and when the last round ended, in ms since 1970; none without rules."""
        if not self.policies:
            return {}
        return {
            "retention_messages": self._messages,
            "retention_bytes": self._bytes,
            "retention_channels": self._channels,
            "retention_rounds": self._rounds,
            "retention_last_ms": self._last_ms,
        }

    async def run(self, runtime: Runtime) -> None:
        """Run one round after another, until this task is cancelled."""
        self._trust, self._newest_ms = ClockTrust(), None
        with contextlib.suppress(TenutoError):  # the first round reads it then
            await self._newest_at_start(runtime)
        while True:
            await asyncio.sleep(ROUND_S)
            with logs_errors(f"retention failed, and will try again in {ROUND_S:.0f} s"):
                await self._round(runtime)

    async def _round(self, runtime: Runtime) -> None:
        """Remove what goes now from each channel with a policy, if the clock is plausible."""
        now_ms = runtime.clock.now_ms()  # of the whole round: the clock may jump meanwhile
        if not await self._trusts_clock(runtime, now_ms):
            return
        after: str | None = None
        damaged, first = 0, None
        while page := await runtime.store.summaries(self.policies.within(), after=after, limit=PAGE):
            for summary in page:
                try:
                    await self._sweep(runtime, summary, now_ms)
                except StoreUnusable as error:  # the channel is damaged; the others are not
                    damaged, first = damaged + 1, first or error
            after = page[-1].channel
            await asyncio.sleep(PAUSE_S)
        if damaged:
            logger.error("retention left out %d channels that cannot be read; the first: %s", damaged, first)
        self._rounds += 1
        self._last_ms = runtime.clock.now_ms()

    async def _trusts_clock(self, runtime: Runtime, now_ms: int) -> bool:
        """Return whether the clock, which reads `now_ms`, is plausible; log when that changes."""
        is_new = self._trust.is_new
        newest_ms = await self._newest_at_start(runtime)
        steady_ms = int(runtime.loop.time() * 1000)
        is_trusted = self._trust.trusts(now_ms, steady_ms=steady_ms, newest_ms=newest_ms)
        if is_trusted == self._is_distrusted:  # it has changed
            self._is_distrusted = not is_trusted
            if is_trusted:
                logger.warning("the clock is plausible again, and retention goes on")
            elif is_new:
                logger.warning(
                    "the clock of %s is %.1f days %s the newest stored time, so retention removes no message yet; "
                    "correct the clock, or, if it is right, let it run evenly for a day",
                    *(runtime.clock.owner, abs(now_ms - newest_ms) / DAY_MS),
                    "after" if now_ms > newest_ms else "before",
                )
            else:
                logger.warning(
                    "the clock of %s is not plausible: it has jumped, so retention removes no message; "
                    "correct the clock, or let it run evenly for a day",
                    runtime.clock.owner,
                )
        return is_trusted

    async def _newest_at_start(self, runtime: Runtime) -> int:
        """Return the newest time that was stored before the hub started. A wrong clock stores wrong times later."""
        if self._newest_ms is None:
            self._newest_ms = await runtime.store.newest_ms()
        return self._newest_ms

    async def _sweep(self, runtime: Runtime, listed: ChannelSummary, now_ms: int) -> None:
        """Remove the messages of one channel that go, and the channel if it is empty then."""
        channel = listed.channel
        policy = self.policies.find(channel)
        if policy is None or not Sweep(policy, listed, now_ms).is_needed:
            return
        head = await head_of(runtime.store, channel)
        summaries = await runtime.store.summaries([channel], after=None, limit=1)  # the list may be hours old
        if not summaries or await is_importing(runtime.store, channel):
            return
        summary = summaries[0]
        sweep = Sweep(policy, summary, now_ms)
        if sweep.is_above:
            summary = await self._counted(runtime, summary, head, policy)
            sweep = Sweep(policy, summary, now_ms)
        if sweep.is_whole:
            async with contextlib.aclosing(_facts(runtime, channel)) as pages:
                async for facts in pages:
                    if any(one.is_busy for one in facts):
                        sweep = Sweep(policy, summary, now_ms, is_busy=True)
                        break
        if not sweep.is_needed:
            return
        async with contextlib.aclosing(_going(runtime.store, channel, sweep)) as going:
            async for step in going:
                now = await head_of(runtime.store, channel)
                if now.epoch != head.epoch or (sweep.is_whole and now.serial != head.serial):
                    return  # it was deleted, or, though it goes as a whole, written
                await self._remove(runtime, channel, head.epoch, step)
                await asyncio.sleep(PAUSE_S)
        if sweep.is_emptied:
            await self._remove_channel(runtime, channel)

    async def _counted(self, runtime: Runtime, summary: ChannelSummary, head: Head, policy: Policy) -> ChannelSummary:
        """Return `summary` with no more messages and bytes than the store finds: a damaged count removes no message.

        A number of messages that was right in an earlier round is right if it has risen by one per entry at most. A
        damaged one that passes this lets no more messages go than those that new ones replace in two rounds.
        """
        channel = summary.channel
        epoch, serial, before = self._counts.get(channel, ("", 0, 0))
        is_known = epoch == head.epoch and summary.messages - before <= head.serial - serial
        if is_known and policy.size_bytes is None:
            self._counts[channel] = head.epoch, head.serial, summary.messages
            return summary
        messages = size_bytes = 0
        async for facts in _facts(runtime, summary.channel):
            sizes = [one.size_bytes for one in facts if one.is_counted]
            messages, size_bytes = messages + len(sizes), size_bytes + sum(sizes)
        self._counts.pop(channel, None)
        if messages == summary.messages:
            if len(self._counts) == MAX_COUNTS:
                self._counts.clear()
            self._counts[channel] = head.epoch, head.serial, messages
        return replace(
            summary, messages=min(summary.messages, messages), size_bytes=min(summary.size_bytes, size_bytes)
        )

    async def _remove(self, runtime: Runtime, channel: str, epoch: str, step: Sequence[Fact]) -> None:
        """Remove the messages of one step that have not changed since."""
        pruned = await runtime.store.prune(channel, epoch=epoch, versions={one.id: one.version for one in step})
        gone = [one for one in step if one.id in pruned]
        self._messages += sum(one.is_counted for one in gone)
        self._bytes += sum(one.size_bytes for one in gone)
        await _follow(runtime, channel)

    async def _remove_channel(self, runtime: Runtime, channel: str) -> None:
        """Remove a channel without messages and commands, unless it has moved meanwhile."""
        left = await runtime.store.facts(channel, after=0, limit=1)
        if left.facts or not left.head.serial:
            return
        until_ms = runtime.clock.now_ms() + GONE_MS
        result = await runtime.store.delete_channel(channel, expected=left.head, used_up=(), until_ms=until_ms)
        self._channels += isinstance(result, Head)
        await _follow(runtime, channel)
        await asyncio.sleep(PAUSE_S)


async def _facts(runtime: Runtime, channel: str) -> AsyncGenerator[Sequence[Fact]]:
    """Yield all facts of `channel`, in pages, with a pause after each."""
    after = 0
    while facts := (await runtime.store.facts(channel, after=after, limit=READ_FACTS)).facts:
        yield facts
        after = facts[-1].version
        await asyncio.sleep(READ_PAUSE_S)


async def _going(store: Store, channel: str, sweep: Sweep) -> AsyncGenerator[Sequence[Fact]]:
    """Yield what goes in steps, to be removed before the next one; last the options that no remaining message names."""
    options: list[Fact] = []
    while not sweep.is_over:
        found = await store.facts(channel, after=sweep.after, limit=READ_FACTS)
        await asyncio.sleep(READ_PAUSE_S)
        due = sweep.take(found.facts, is_last=len(found.facts) < READ_FACTS)
        if not sweep.is_whole:
            options += [one for one in due if one.id.startswith(OPTIONS_MARK)]
            due = [one for one in due if not one.id.startswith(OPTIONS_MARK)]
        for step in steps(due):
            yield step
    # Options have the age of their first use, and later messages name them, mostly the newest: these are read first.
    # Then all are read once, and before each step those that were stored meanwhile.
    unnamed, after = {one.id for one in options}, None
    for step in steps(options):
        more = True
        while more and unnamed:
            await asyncio.sleep(READ_PAUSE_S)
            page = await store.page(channel, before=None, after=after, limit=READ_FACTS, limit_bytes=STEP_BYTES)
            messages = [restore(one) for one in page.messages]
            # the messages that list the options of a `regenerate`
            lists = (await store.messages(channel, [regenerate_options_id(one.id) for one in messages]))[1]
            listed = [part.value().get("data") for one in lists.values() for part in restore(one).parts]
            metas = [*(one.meta for one in messages), *({OPTIONS_KEY: one} for one in listed)]
            unnamed -= lists.keys() | {id for meta in metas for id in references(meta).values()}
            if after is None or messages:
                after = 0 if after is None else messages[-1].created
            more = page.more
        if left := [one for one in step if one.id in unnamed]:
            yield left


def steps(due: Sequence[Fact]) -> Iterator[list[Fact]]:
    """Divide `due` into the steps of one transaction each."""
    step: list[Fact] = []
    size_bytes = 0
    for fact in due:
        if step and (len(step) == STEP_MESSAGES or size_bytes + fact.size_bytes > STEP_BYTES):
            yield step
            step, size_bytes = [], 0
        step.append(fact)
        size_bytes += fact.size_bytes
    if step:
        yield step


async def _follow(runtime: Runtime, channel: str) -> None:
    """Bring a channel in memory up to its head in the store."""
    live = runtime.channels.get(channel)
    if live is not None and live.is_loaded:
        await live.refresh()
