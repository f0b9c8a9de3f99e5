"""Viewers that reconnect after each fault, and all text that one of them has shown.

Layer: chaos.

`wirecheck` follows the wire and applies its rules, without any code of the product. `proof.oracle.views.PlanOracle`
adds what only a whole run shows: the texts are the planned ones, and no shown text disappears.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode

from proof.chaos.processes import ask
from proof.oracle.views import HISTORY, PlanOracle
from proof.wirecheck import Checker, Json, Notices, SeenMessage, SseViewer, Violation, WireError, WsViewer
from tenuto.core.events import NO_EPOCH

Transport = Literal["sse", "eventsource", "ws", "poll"]
"""`sse` names itself and sends `since`; `eventsource` does neither, and reconnects with `Last-Event-ID`."""

TRANSPORTS: tuple[Transport, ...] = ("ws", "sse", "eventsource", "poll")
POLL_S = 1  # a long poll's `wait_s`
KEPT_EVENTS = 12  # number of the last events to keep for the report of a failure


@dataclass(kw_only=True)
class Watching:
    """The settings of a viewer."""

    name: str
    transport: Transport
    port: int
    channel: str
    seed: int
    steps: int  # steps of each message
    prefix: str = ""
    flush_ms: int = 40
    silence_s: float = 3.0  # without an event for this time, it reconnects
    # It views a cluster behind a proxy, and a connection lasts at most this time: the next one is to another node.
    moves_s: float | None = None


class Viewer:
    """One viewer. It follows in a task between `start` and `stop`."""

    def __init__(self, watching: Watching, news: asyncio.Event | None = None) -> None:
        self.watching = watching
        self.name = watching.name
        self.checker = Checker(watching.channel)
        self.shown = PlanOracle(watching.seed, watching.steps)
        self.connections = 0
        self.last_events: deque[Json] = deque(maxlen=KEPT_EVENTS)
        self.news = news or asyncio.Event()  # set after each check of the view
        self.may_begin_anew = False  # a failover of the store begins new epochs
        self.may_lose = False  # and the store may have lost shown text
        self._epoch = NO_EPOCH  # epoch of the shown messages
        self._random = random.Random(f"{watching.seed}:{watching.name}:pauses")
        self._task: asyncio.Task[None] | None = None

    @property
    def violations(self) -> list[Violation]:
        """Return all violations of all connections and reloads."""
        return [*self.checker.violations, *self.shown.violations]

    @property
    def messages(self) -> dict[str, SeenMessage]:
        """Return the shown messages."""
        return self.checker.messages

    @property
    def notices(self) -> Notices:
        """Return the received presence, commands and signals."""
        return self.checker.notices

    def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"viewer {self.name}")

    async def stop(self) -> None:
        """Stop following. Raises the error of the task, if it failed."""
        task, self._task = self._task, None
        if task is not None:
            await end(task)

    def check_running(self) -> None:
        """Raise the error of the task, if it failed."""
        if self._task is not None and self._task.done():
            self._task.result()

    @property
    def epoch(self) -> str:
        """Return the epoch of the shown messages, at the end of the last complete batch."""
        return self._epoch

    async def reload(self) -> None:
        """Load the page again: the view is empty, but the rules still apply to text that it has shown."""
        await self.stop()
        self.checker.reload()
        self.start()

    async def _run(self) -> None:
        if self.watching.transport == "poll":
            await self._poll_for_ever()
            return
        viewer = self._wire_viewer()
        try:
            while True:
                # the server refuses the connection or resets it at once
                with contextlib.suppress(OSError), self._resuming():
                    await viewer.reconnect(reset=self._random.random() < 0.5)
                    self.connections += 1
                    await self._follow(viewer)
                await asyncio.sleep(self._random.uniform(0.02, 0.3))  # before it connects again
        finally:
            await viewer.close()

    @contextlib.contextmanager
    def _resuming(self) -> Iterator[None]:
        """Check a connection: the server may not refuse to resume from a cursor."""
        cursor, starts = self.checker.cursor, self.checker.new_starts
        try:
            yield
        finally:
            # `_take_epoch` judges a new epoch.
            has_new_epoch = not (cursor or "").startswith(f"{self.checker.epoch}:")
            if cursor is not None and self.checker.new_starts > starts and not has_new_epoch:
                self.checker.violate("new start", f"{cursor} was not resumed")

    def _wire_viewer(self) -> SseViewer | WsViewer:
        options = {"history": HISTORY, "flush_ms": self.watching.flush_ms}
        watching = self.watching
        if watching.transport == "ws":
            return WsViewer(
                "127.0.0.1", watching.port, watching.channel, checker=self.checker, attach_fields=options,
                prefix=watching.prefix,
            )  # fmt: skip
        is_source = watching.transport == "eventsource"
        return SseViewer(
            "127.0.0.1", watching.port, watching.channel, checker=self.checker, prefix=watching.prefix,
            query={name: str(value) for name, value in options.items()}, uses_last_event_id=is_source,
            headers={} if is_source else {"Tenuto-Client": "chaos"},
        )  # fmt: skip

    async def _follow(self, viewer: SseViewer | WsViewer) -> None:
        checker, moves_s = self.checker, self.watching.moves_s
        now_s = asyncio.get_running_loop().time
        ends_s = now_s() + self._random.uniform(0.0, moves_s) if moves_s is not None else math.inf
        while not viewer.is_over and now_s() < ends_s:
            before = checker.events
            with contextlib.suppress(TimeoutError):
                await viewer.until(
                    lambda before=before: checker.events != before or viewer.is_over,  # type: ignore[misc]
                    min(self.watching.silence_s, ends_s - now_s()),
                )
            self._look([received.event for received in viewer.events])
            viewer.events.clear()
            if checker.events == before:
                return  # no event came: the connection may be dead

    async def _poll_for_ever(self) -> None:
        wait_s = 0
        while True:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(POLL_S + self.watching.silence_s):
                    await self._poll(wait_s)
                wait_s = POLL_S
                await asyncio.sleep(self.watching.flush_ms / 1_000)  # other transports get batches of this length
                continue
            wait_s = 0  # after a failure, the next poll returns at once
            await asyncio.sleep(self._random.uniform(0.02, 0.3))  # before it polls again

    async def _poll(self, wait_s: int) -> None:
        """Poll once."""
        checker, cursor = self.checker, self.checker.cursor
        options = {"wait_s": wait_s, "history": HISTORY} | ({"since": cursor} if cursor is not None else {})
        path = f"{self.watching.prefix}/v1/channels/{quote(checker.channel, safe='')}/poll?{urlencode(options)}"
        status, response = await ask(self.watching.port, "GET", path, headers="Tenuto-Client: chaos\r\n")
        if status in (502, 503, 504):
            raise OSError("the server is busy, or a proxy reaches none")
        if status != 200:
            raise WireError(f"a poll got status {status}: {response}")
        self.connections += 1
        checker.begin(cursor, is_poll=True)
        with self._resuming():
            checker.take(response["events"], response["cursor"])
        self._look(response["events"])

    def _look(self, events: list[Json]) -> None:
        self.last_events.extend(events)
        self._take_epoch()
        self.shown.look(self.checker)
        self.news.set()

    def _take_epoch(self) -> None:
        """Note a new epoch, once the view has it. A log keeps its epoch as long as its store loses no text."""
        epoch = (self.checker.cursor or "").partition(":")[0] or self._epoch
        if epoch == self._epoch:
            return
        if self._epoch != NO_EPOCH and not self.may_begin_anew:
            self.checker.violate("epoch", f"the view was in epoch {self._epoch} and is in {epoch}")
        if self.may_lose:
            self.shown.forget()
        self._epoch = epoch


async def end(task: asyncio.Task[None]) -> None:
    """Cancel `task`, and return when it has ended. Raises its error, if it failed.

    `await task` could not tell the end of `task` from a cancellation of the caller, and would swallow that one.
    """
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
