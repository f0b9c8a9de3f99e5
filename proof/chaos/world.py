"""One run: a folder, a server, producers, viewers and proxies, and the checks that every run must pass.

Layer: chaos.

Each wait is for a fact, and has a time limit after which the run fails with the name of that fact. You can change
freely how often the world looks at a fact. Do not make a check milder without a reason from the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proof.chaos.agent import AgentOrders
from proof.chaos.processes import Child, Failure, Server, say_when_late, short
from proof.chaos.producer import Orders
from proof.chaos.proxies import Proxies, Proxy
from proof.chaos.viewer import TRANSPORTS, Transport, Viewer, Watching
from proof.oracle.plans import Acknowledged, counted
from proof.oracle.views import HISTORY

Json = dict[str, Any]
PATIENCE_S = 30.0
LOOK_S = 0.2  # a dead process is noticed within this time
LOOK_PAUSE = 4  # length of the pause after a look, in times the length of the look
STORY_LINES = 40
LOG_CHARACTERS = 3_000


@dataclass(frozen=True)
class Scale:
    """The number of rounds, and the length of faults and messages."""

    rounds: int
    steps: int = 200  # steps of each message
    per_second: float = 60.0  # steps per second of a producer
    stopped_s: float = 10.0  # time for which a process is stopped by SIGSTOP
    silent_s: float = 22.0  # time for which an agent is stopped by SIGSTOP, longer than its lease
    viewers: int = 300  # of a cluster
    answers: int = 30  # of a cluster at once, two thirds of them by agents
    is_small: bool = False

    @classmethod
    def small(cls, rounds: int) -> Scale:
        """Return a scale for the tests."""
        return cls(
            rounds, steps=80, per_second=120.0, stopped_s=1.2, silent_s=0.5,
            viewers=15, answers=3, is_small=True,
        )  # fmt: skip


class World:
    """The world of a scenario. An async context manager: its exit ends all processes."""

    def __init__(self, name: str, seed: int, scale: Scale, *, write_line: Callable[[str], None] | None = None) -> None:
        self.name = name
        self.seed = seed
        self.scale = scale
        self.random = random.Random(f"{name}:{seed}")
        self.folder = Path(tempfile.mkdtemp(prefix=f"tenuto-chaos-{name}-{seed}-"))
        self.store = self.folder / "chaos.db"
        self.acknowledged = Acknowledged(seed, scale.steps)
        self.viewers: list[Viewer] = []
        self.producers: dict[str, Child] = {}  # the producers and agents that must be running
        self.figures: dict[str, int] = {}
        self.counts_entries = True
        self.news = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._server: Server | None = None
        self._servers: list[Server] = []
        self._proxies: Proxies | None = None
        self._wrong: list[str] = []  # reports of errors
        self._begun_s = time.monotonic()
        self._lines: list[str] = []  # the events, each with its time
        self._write_line = write_line

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        # the viewers and the waits share this loop: what it does late, no server is to blame for
        watching = asyncio.get_running_loop().create_task(say_when_late(self.note))
        self._stack.callback(watching.cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for viewer in self.viewers:
                with contextlib.suppress(Exception) if error is not None else contextlib.nullcontext():
                    await viewer.stop()
        finally:
            await self._stack.__aexit__(kind, error, trace)
        if isinstance(error, Failure | AssertionError | TimeoutError | OSError):
            raise self._failure(error) from error
        if error is None:
            shutil.rmtree(self.folder)

    # -- the report ------------------------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        """Add an event to the report."""
        self._lines.append(f"{time.monotonic() - self._begun_s:8.3f} {what}")
        if self._write_line is not None:
            self._write_line(self._lines[-1])

    def count(self, what: str, by: int = 1) -> None:
        """Add to a figure of the report."""
        self.figures[what] = self.figures.get(what, 0) + by

    def _failure(self, error: BaseException) -> Failure:
        failure = error if isinstance(error, Failure) else Failure(f"{type(error).__name__}: {error}")
        lines = [
            f"chaos {self.name}, seed {self.seed}: {failure.account}",
            f"-- load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; limits hold for a machine that is not busy",
            f"-- the last {STORY_LINES} events:",
            *self._lines[-STORY_LINES:],
            *(f"-- the end of {one.name}'s log:\n{one.log[-LOG_CHARACTERS:]}" for one in self._servers),
            f"-- kept in {self.folder}",
            f"-- again: python -m proof.chaos {self.name} --seed {self.seed} --rounds {self.scale.rounds}"
            f"{' --small' if self.scale.is_small else ''}",
        ]
        failure.account = "\n".join(lines)
        (self.folder / "account.txt").write_text(failure.account)
        return failure

    def _of_viewer(self, viewer: Viewer, what: str) -> Failure:
        events = "\n".join(f"   {short(event)}" for event in viewer.last_events)
        return Failure(
            f"viewer {viewer.name} ({viewer.connections} connections): {what}\n   its last events:\n{events}"
        )

    # -- the parties -----------------------------------------------------------------------------------------------

    @property
    def server(self) -> Server:
        """Return the present server."""
        assert self._server is not None
        return self._server

    def adds(self, server: Server, *, serves: bool = True) -> Server:
        """Add a server; with `serves` it becomes the present one."""
        self._servers.append(server)
        self._stack.push_async_callback(server.clean_up)
        if serves:
            self._server = server
        return server

    async def proxy(self, port: int) -> Proxy:
        """Return a proxy in front of `port`."""
        if self._proxies is None:
            self._proxies = Proxies(self.folder, self.note)
            self._stack.push_async_callback(self._proxies.clean_up)
            await self._proxies.spawn()
        return await self._proxies.add(port)

    def view(
        self, name: str, transport: Transport, channel: str, *, port: int | None = None, by: type[Viewer] = Viewer,
        **more: Any,
    ) -> Viewer:  # fmt: skip
        """Start a viewer."""
        watching = Watching(
            name=name, transport=transport, port=port or self.server.port, channel=channel, seed=self.seed,
            steps=self.scale.steps, prefix=self.server.prefix, **more,
        )  # fmt: skip
        viewer = by(watching, self.news)
        self.viewers.append(viewer)
        viewer.start()
        return viewer

    async def produce(self, name: str, channel: str) -> None:
        """Start a producer."""

        def take_report(sent: Json) -> None:
            self.acknowledged.report(sent, channel)
            if sent["say"] == "wrong":
                raise Failure(sent["detail"])

        orders = Orders(
            port=self.server.port, name=name, channel=channel, seed=self.seed, steps=self.scale.steps,
            per_second=self.scale.per_second, prefix=self.server.prefix,
        )  # fmt: skip
        await self.start_program("proof.chaos.producer", orders, take_report)

    def checked(self, name: str, take_report: Callable[[Json], None]) -> Callable[[Json], None]:
        """Return a function that passes reports on; a Failure of `take_report` fails the run."""

        def report(sent: Json) -> None:
            try:
                take_report(sent)
            except Failure as failure:
                self._wrong.append(f"{name}: {failure}")
            self.news.set()

        return report

    async def start_program(
        self, module: str, orders: Orders | AgentOrders, take_report: Callable[[Json], None]
    ) -> Child:
        """Start a program, and wait until it is ready: before that, a SIGTERM would kill it.

        `take_report` receives its reports, and raises Failure for a wrong one.
        """
        ready = asyncio.Event()
        checked = self.checked(orders.name, take_report)

        def report(sent: Json) -> None:
            checked(sent)
            if sent["say"] == "ready":
                ready.set()

        arguments = ["-m", module, json.dumps(asdict(orders))]
        child = Child(orders.name, arguments, self.folder / f"{orders.name}.log", report=report)
        self._stack.push_async_callback(child.clean_up)
        await child.spawn()
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()
        self.producers[child.name] = child
        return child

    # -- waiting -----------------------------------------------------------------------------------------------

    async def until(self, predicate: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until `predicate()` holds. Raises Failure after `timeout_s`, and at once if a rule is broken."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            begun_s = time.monotonic()
            if predicate():
                return
            self.check()
            ended_s = time.monotonic()
            if ended_s > deadline_s:
                raise Failure(f"waited {timeout_s:.0f} s for {what}")
            self.news.clear()
            # With hundreds of viewers a look takes milliseconds, and each event of each viewer is news.
            await asyncio.sleep(LOOK_PAUSE * (ended_s - begun_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self.news.wait()

    async def until_written(self, characters: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until so many more characters are acknowledged."""
        goal = self.acknowledged.characters + characters
        await self.until(lambda: self.acknowledged.characters >= goal, f"{characters} more characters", timeout_s)

    def check(self) -> None:
        """Check viewers and processes. Raises Failure for a violation, or for a process that has ended."""
        if self._wrong:
            raise Failure("; ".join(self._wrong))
        for name, child in self.producers.items():
            if not child.is_running:
                raise Failure(f"producer {name} has ended:\n{child.log[-LOG_CHARACTERS:]}")
        for viewer in self.viewers:
            viewer.check_running()
            if viewer.violations:
                first = viewer.violations[0]
                raise self._of_viewer(viewer, f"{first.kind}: {first.detail}")

    # -- checks ------------------------------------------------------------------------------------------------

    async def check_stored(self) -> None:
        """Check that all acknowledged or shown text is stored. Asks the server directly, without a proxy."""
        self.check()
        promised = {id: (replace(one), self._shown(id)) for id, one in self.acknowledged.messages.items()}
        stored = {channel: await self.stored(channel) for channel in self._channels()}
        for id, (written, shown) in promised.items():
            message = stored[written.channel].get(id)
            if (wrong := written.wrong(message)) is not None:
                raise Failure(f"after the last fault: {wrong}")
            for who, length in shown.items():
                self._check_shown(id, who, length, message)
        self.count("checks of the store")

    def _check_shown(self, id: str, who: str, length: int, message: Json | None) -> None:
        if message is None:
            raise Failure(f"{id} was shown to {who} and is not stored")
        parts = message.get("parts", [])
        # an attempt may be superseded after the last look
        superseded = [one["characters"] for one in parts if one["type"] == "attempt"]
        if max(sum(len(part["text"]) for part in counted(parts)), *superseded, 0) < length:
            raise Failure(f"{id}: {length} characters were shown to {who}, stored is {short(parts)}")

    def _shown(self, id: str) -> dict[str, int]:
        return {one.name: one.shown.lengths[id] for one in self.viewers if id in one.shown.lengths}

    def _channels(self) -> list[str]:
        return sorted({one.channel for one in self.acknowledged.messages.values()})

    async def stored(self, channel: str) -> dict[str, Json]:
        """Return all messages of a channel from the server, newest first. Raises Failure if its pages are wrong."""
        messages: dict[str, Json] = {}
        before: int | None = None
        while True:
            query = f"?limit={HISTORY}" + (f"&before={before}" if before is not None else "")
            status, page = await self.server.get(f"/v1/channels/{channel}/messages{query}")
            if status != 200:
                raise Failure(f"a page of {channel} got status {status}: {page}")
            if (wrong := self.acknowledged.wrong_epoch(channel, page["cursor"])) is not None:
                raise Failure(wrong)
            for message in page["messages"]:
                if before is not None and message["created"] >= before:
                    raise Failure(f"{message['id']} (created {message['created']}) is not below {before} in {channel}")
                before = message["created"]
                messages[message["id"]] = message
            if not page["more"]:
                return messages

    async def finish(self) -> None:
        """End the producers, check that store and viewers agree, and check it again after a last `kill -9`."""
        await self._end_producers()
        self.note("producers have ended")
        stored = await self._check_all_stored()
        await self._check_views(self.viewers, stored)
        self.note("viewers are equal")
        fresh = [self.view(f"fresh-{one}-{channel}", one, channel) for channel in stored for one in TRANSPORTS]
        await self._check_views(fresh, stored)
        self.note("store and viewers agree; kill -9, and once more")
        before = [viewer.connections for viewer in self.viewers]
        await self.server.kill()
        await self.server.start()
        if await self._check_all_stored() != stored:
            raise Failure("the last kill -9 has changed the messages of the server")
        await self.until(
            lambda: all(one.connections > count for one, count in zip(self.viewers, before, strict=True)),
            "all viewers to reconnect after the last kill -9",
        )
        await self._check_views(self.viewers, stored)
        self.note("store and viewers agree again; the server shuts down")
        self.check()
        await self.check_what_is_left()
        self.count("messages", len(self.acknowledged.messages))
        self.count("characters", self.acknowledged.characters)
        self.count("entries", sum(one.entries for one in self.acknowledged.messages.values()))
        self.count("connections of viewers", sum(one.connections for one in self.viewers))

    async def _end_producers(self) -> None:
        for child in self.producers.values():
            child.signal(signal.SIGTERM)
        for name, child in list(self.producers.items()):
            del self.producers[name]
            try:
                code = await child.ended(2 * PATIENCE_S)
            except TimeoutError:
                raise Failure(f"producer {name} did not end:\n{child.log[-LOG_CHARACTERS:]}") from None
            if code:
                raise Failure(f"producer {name} ended with {code}: {self._wrong}\n{child.log[-LOG_CHARACTERS:]}")

    async def _check_all_stored(self) -> dict[str, dict[str, Json]]:
        """Return the messages of each channel; check that they are exactly those of the producers, entry by entry."""
        stored = {}
        for channel in self._channels():
            stored[channel] = messages = await self.stored(channel)
            written = self.acknowledged.of(channel)
            for id, one in written.items():
                if (wrong := one.wrong(messages.get(id))) is not None:
                    raise Failure(f"at the end: {wrong}")
                if not one.is_over:
                    raise Failure(f"at the end: no producer has ended {id}")
            if strange := messages.keys() - written.keys():
                raise Failure(f"messages in {channel} that no producer wrote: {strange}")
            _, info = await self.server.get(f"/v1/channels/{channel}")
            entries = sum(one.entries for one in written.values())
            if self.counts_entries and info["serial"] != entries:
                raise Failure(f"{channel} stands at serial {info['serial']}, and {entries} entries were acknowledged")
        return stored

    async def _check_views(self, viewers: Iterable[Viewer], stored: dict[str, dict[str, Json]]) -> None:
        """Wait until each viewer shows exactly the stored messages."""
        for viewer in viewers:
            messages = stored[viewer.watching.channel]
            try:
                await self.until(
                    lambda viewer=viewer, messages=messages: not self._differences(viewer, messages),  # type: ignore[misc]
                    "viewers to be equal",
                )
            except Failure as error:
                different = self._differences(viewer, messages)
                if not different:
                    raise
                raise self._of_viewer(viewer, f"{error}; it differs: {'; '.join(different[:5])}") from None

    def _differences(self, viewer: Viewer, messages: dict[str, Json]) -> list[str]:
        if not viewer.checker.has_attached:
            return ["it has not attached"]
        newest = list(messages)[:HISTORY]
        found = [f"{id} is shown, and is not stored" for id in viewer.messages.keys() - messages.keys()]
        for id in {*newest, *viewer.messages} & messages.keys():
            if viewer.checker.differences(messages[id]):
                found.append(f"{id}: {viewer.checker.differences(messages[id])}")
        return found

    async def check_what_is_left(self) -> None:
        """Check that each server ends, that its log has no traceback, and that its file is intact."""
        for server in self._servers:
            if server.is_running:
                server.signal(signal.SIGTERM)
                await server.ended()
            if "Traceback" in server.log:
                place = server.log.index("Traceback")
                raise Failure(
                    f"{server.name}'s log has a traceback:\n{server.log[max(0, place - 500) : place + 2_000]}"
                )
        if not self.store.exists():
            return  # the nodes of a cluster have another store
        with contextlib.closing(sqlite3.connect(self.store)) as db:
            (found,) = db.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            raise Failure(f"the file is damaged: {found}")
