"""Viewers that come back whatever happens, and what a person in front of one was ever shown.

    python -m chaos.viewer '{"port": 8000, "transport": "sse", …}'

Layer: chaos.

The wire is followed and judged by `wirecheck`, which knows nothing of the
product. `Shown` adds what only a whole run can tell: that it is the truth (`plan`), and that nothing ever goes away
again. As a process of its own, a viewer follows until its input ends, and then says what it shows and what was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote, urlencode

from chaos.plan import Planned, first_difference
from chaos.recorder import Heard
from chaos.truth import PLANNED, Kind
from wirecheck import Checker, Json, Response, SeenMessage, SseViewer, Violation, WireError, WsViewer

__all__ = ["Shown", "Transport", "Viewer", "Watching"]

Transport = Literal["sse", "eventsource", "ws", "poll"]
"""`sse` says who it is and passes `since`; `eventsource` does neither and comes back with `Last-Event-ID`."""

STATUSES = ("complete", "failed", "interrupted", "cancelled")
POLL_S = 1  # a long poll's `wait_s`
KEPT_EVENTS = 12  # for the account of a failure
HISTORY = 200  # the most that a new start brings


class Watching:
    """What a viewer is to follow; JSON on its command line."""

    def __init__(
        self, *, name: str, transport: Transport, port: int, channel: str, seed: int, steps: int, prefix: str = "",
        flush_ms: int = 40, silence_s: float = 3.0, kind: Kind = "plan",
    ) -> None:  # fmt: skip
        self.name = name
        self.transport = transport
        self.port = port
        self.channel = channel
        self.seed = seed
        self.steps = steps  # of each message
        self.prefix = prefix
        self.flush_ms = flush_ms
        self.silence_s = silence_s  # without an event for so long, it connects anew
        self.kind = kind  # of what is written


class Shown:
    """What one person has seen, over all connections and reloads: it stays, and it is the truth."""

    def __init__(self, seed: int, steps: int, kind: Kind = "plan") -> None:
        self._seed = seed
        self._steps = steps
        self._kind = kind
        self._plans: dict[str, Planned] = {}
        self._texts: dict[str, str] = {}  # of scripts: a plan has but one text, and its lengths tell all
        self._known: dict[str, tuple[int, int]] = {}  # version and length when it was looked at last
        self.lengths: dict[str, list[int]] = {}
        self.statuses: dict[str, str] = {}
        self.violations: list[Violation] = []

    def look(self, checker: Checker) -> None:
        """Judge what is in view now."""
        if not checker.has_attached:
            return  # a page that has just been reloaded shows nothing yet
        for message_id, message in checker.messages.items():
            known = (message.version, sum(part.length for part in message.parts))
            if self._known.get(message_id) != known:
                self._known[message_id] = known
                self._judge(message_id, message)
        if len(checker.messages) < len(self.lengths):
            for message_id in self.lengths.keys() - checker.messages.keys():
                if not self._plan(message_id).is_deleted and len(checker.messages) < HISTORY:
                    self._violate("vanished", f"{message_id} was shown and is gone")
                del self.lengths[message_id]

    def _judge(self, message_id: str, message: SeenMessage) -> None:
        plan = self._plan(message_id)
        parts = [part.as_json() for part in message.parts]
        status = message.status
        wrong = plan.wrong(parts, is_whole=status == "complete")
        if wrong is not None:
            self._violate("untrue", wrong)
        lengths = [part.length for part in message.parts]
        before = self.lengths.get(message_id, [])
        if len(lengths) < len(before) or any(now < then for now, then in zip(lengths, before, strict=False)):
            self._violate("shrunk", f"{message_id} was shown with lengths {before}, now {lengths}")
        status_before = self.statuses.get(message_id, "streaming")
        may_go_on = self._kind == "script" and status_before in ("streaming", "interrupted")  # taken over, that is
        if self._kind == "script":
            self._check_stays(message_id, "".join(part.text for part in message.parts))
        if status_before != "streaming" and not may_go_on and (status != status_before or lengths != before):
            self._violate(
                "reopened", f"{message_id} was {status_before} with lengths {before}, now {status} with {lengths}"
            )
        if status not in ("streaming", *STATUSES):
            self._violate("status", f"{message_id} is {status!r}")
        self.lengths[message_id], self.statuses[message_id] = lengths, status

    def _check_stays(self, message_id: str, text: str) -> None:
        before = self._texts.get(message_id, "")
        if not text.startswith(before):
            self._violate("changed", f"{message_id}: {first_difference(before, text)}")
        self._texts[message_id] = text

    def _plan(self, message_id: str) -> Planned:
        plan = self._plans.get(message_id)
        if plan is None:
            plan = self._plans[message_id] = PLANNED[self._kind](self._seed, message_id, steps=self._steps)
        return plan

    def _violate(self, kind: str, detail: str) -> None:
        self.violations.append(Violation(kind, detail))


class Viewer:
    """One viewer. `run` follows until it is cancelled; everything else may be looked at meanwhile."""

    def __init__(self, watching: Watching, news: asyncio.Event | None = None) -> None:
        self.watching = watching
        self.name = watching.name
        self.checker = Checker(watching.channel)
        self.shown = Shown(watching.seed, watching.steps, watching.kind)
        self.heard = Heard()
        self.connections = 0
        self.reloads = 0
        self.last_events: deque[Json] = deque(maxlen=KEPT_EVENTS)
        self.news = news or asyncio.Event()  # set after each look
        self._random = random.Random(f"{watching.seed}:{watching.name}:pauses")
        self._old_violations: list[Violation] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def violations(self) -> list[Violation]:
        """All that was ever wrong."""
        told = [Violation("told", detail) for detail in self.heard.wrong]
        return [*self._old_violations, *self.checker.violations, *self.shown.violations, *told]

    @property
    def messages(self) -> dict[str, SeenMessage]:
        """What is in view."""
        return self.checker.messages

    def start(self) -> None:
        """Begin to follow, in a task."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"viewer {self.name}")

    async def stop(self) -> None:
        """Stop following; raises what the task failed with, if it did."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def check_running(self) -> None:
        """Raise what the task failed with, if it did."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def reload(self) -> None:
        """As a page that is loaded anew: it forgets everything. The person does not."""
        await self.stop()
        self.reloads += 1
        self._old_violations += self.checker.violations
        self.checker = Checker(self.watching.channel)
        self.heard.forget()
        self.start()

    # -- inside ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        if self.watching.transport == "poll":
            await self._poll_for_ever()
            return
        viewer = self._wire_viewer()
        try:
            while True:
                with contextlib.suppress(OSError), self._resuming():  # refused, or reset at once
                    await viewer.reconnect(reset=self._random.random() < 0.5)
                    self.connections += 1
                    await self._follow(viewer)
                await asyncio.sleep(self._random.uniform(0.02, 0.3))  # between two tries
        finally:
            await viewer.close()

    @contextlib.contextmanager
    def _resuming(self) -> Iterator[None]:
        """A connection: a new start is for those who have no cursor, and one that is good may not be turned down."""
        cursor, starts = self.checker.cursor, self.checker.new_starts
        try:
            yield
        finally:
            if cursor is not None and self.checker.new_starts > starts:
                self.checker.violate("new start", f"{cursor} was not resumed")

    def _wire_viewer(self) -> SseViewer | WsViewer:
        asked = {"history": HISTORY, "flush_ms": self.watching.flush_ms}
        watching = self.watching
        if watching.transport == "ws":
            return WsViewer(
                "127.0.0.1", watching.port, watching.channel, checker=self.checker, attach_fields=asked,
                prefix=watching.prefix,
            )  # fmt: skip
        is_source = watching.transport == "eventsource"
        return SseViewer(
            "127.0.0.1", watching.port, watching.channel, checker=self.checker, prefix=watching.prefix,
            query={name: str(value) for name, value in asked.items()}, uses_last_event_id=is_source,
            headers={} if is_source else {"Holdfast-Client": "chaos"},
        )  # fmt: skip

    async def _follow(self, viewer: SseViewer | WsViewer) -> None:
        checker = self.checker
        while not viewer.is_over:
            seen = checker.events
            with contextlib.suppress(TimeoutError):
                await viewer.until(
                    lambda seen=seen: checker.events != seen or viewer.is_over,  # type: ignore[misc]
                    self.watching.silence_s,
                )
            self._look([received.event for received in viewer.events])
            viewer.events.clear()
            if checker.events == seen:
                return  # nothing came: the connection may be dead without having said so

    async def _poll_for_ever(self) -> None:
        wait_s = 0
        while True:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(POLL_S + self.watching.silence_s):
                    await self._poll(wait_s)
                wait_s = POLL_S
                continue
            wait_s = 0  # whoever comes back wants to know at once
            await asyncio.sleep(self._random.uniform(0.02, 0.3))  # between two tries

    async def _poll(self, wait_s: int) -> None:
        """One poll. All polls are one connection to the checker: an answer counts whole or not at all."""
        checker, cursor = self.checker, self.checker.cursor
        asked = {"wait_s": wait_s, "history": HISTORY} | ({"since": cursor} if cursor is not None else {})
        path = f"{self.watching.prefix}/v1/channels/{quote(checker.channel, safe='')}/poll?{urlencode(asked)}"
        status, body = await _get(self.watching.port, path)
        if status == 503:
            raise OSError("not now")
        if status != 200:
            raise WireError(f"a poll was answered with {status}: {body[:200]!r}")
        self.connections += 1
        answer = json.loads(body)
        if cursor is None:
            checker.begin(None)
        if cursor is not None and not answer["events"] and not self._stays(cursor, answer["cursor"]):
            checker.violate("cursor", f"nothing happened, and {cursor} became {answer['cursor']}")
        with self._resuming():
            if cursor is not None and answer["events"] and all("serial" not in event for event in answer["events"]):
                self._take_ephemeral(answer["events"], cursor, answer["cursor"])
            else:
                checker.take(answer["events"], answer["cursor"])
        self._look(answer["events"])

    def _take_ephemeral(self, events: list[Json], before: str, after: str) -> None:
        """What a poll tells of presence alone moves on in its cursor as well, but not in the log."""
        self.checker.take(events)
        if not self._stays(before, after, is_passing=True):
            self.checker.violate("cursor", f"nothing was written, and {before} became {after}")
        self.checker.cursor = after

    def _stays(self, before: str, after: str, *, is_passing: bool = False) -> bool:
        """Is a cursor what it may be when nothing of the log was told? Claims of turns are entries, and no events."""
        (epoch, serial, *place), (now_epoch, now_serial, *now_place) = before.split(":"), after.split(":")
        is_moved = int(now_serial) > int(serial) if self.watching.kind == "script" else False
        return epoch == now_epoch and (is_moved or serial == now_serial) and (is_passing or place == now_place)

    def _look(self, events: list[Json]) -> None:
        self.last_events.extend(events)
        self.heard.take(events)
        self.shown.look(self.checker)
        self.news.set()


async def _get(port: int, path: str) -> tuple[int, bytes]:
    """One GET on a connection of its own. Raises OSError when it was cut, and WireError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHoldfast-Client: chaos\r\n\r\n"
        writer.write(head.encode("latin-1"))
        response, body = Response(), b""
        while not response.is_complete:
            data = await reader.read(64 * 1024)
            if not data:
                raise OSError("the answer was cut")
            body += response.receive(data)
        return response.status, body
    finally:
        writer.transport.abort()


async def _watch(watching: Watching) -> dict[str, Any]:
    """Follow until the input ends; what is in view then, and what was wrong."""
    viewer = Viewer(watching)
    viewer.start()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        wanted: dict[str, int] = json.loads(line)  # versions to wait for: then all is there
        while any(id not in viewer.messages or viewer.messages[id].version < at for id, at in wanted.items()):
            viewer.check_running()
            viewer.news.clear()
            await viewer.news.wait()
    await viewer.stop()
    return {
        "violations": [f"{one.kind}: {one.detail}" for one in viewer.violations],
        "messages": {id: message.as_json() for id, message in viewer.messages.items()},
        "events": viewer.checker.events,
        "connections": viewer.connections,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_watch(Watching(**json.loads(sys.argv[1]))))))
