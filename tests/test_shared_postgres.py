"""Two server processes share one PostgreSQL: a client of one reaches the agent of the other, also behind nginx."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from itertools import cycle
from pathlib import Path

import httpx2
import pytest

from proof.chaos.processes import free_port
from proof.wirecheck import Checker, SseViewer, WsViewer
from tenuto import Hub
from tenuto.agents.turn import Turn
from tenuto.client import ChannelView, Client
from tenuto.client.feed import is_new_start
from tenuto.hub.hooks import HookEvent
from tests.caddy import caddy_of_the_docs, needs_caddy
from tests.nginx import needs_nginx, nginx_of_the_docs
from tests.postgres import needs_postgres, running_postgres
from tests.processes import Process, request

pytestmark = needs_postgres

PATIENCE_S = 60.0
QUESTIONS = 200


class Node(Process):
    """A server process on the shared store."""

    def __init__(self, url: str, log: Path, *parts: str) -> None:
        self.port = free_port()
        super().__init__(["-m", "tests.shared_app", str(self.port), url, *parts], log)
        self.url = f"http://127.0.0.1:{self.port}/tenuto"

    def until_ready(self) -> None:
        self.until(lambda: request(self.port, "GET", "/tenuto/readyz")[0] == 200)


@pytest.fixture(scope="module")
def nodes(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Run a process with an agent, and one without."""
    folder = tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        here, there = Node(url, folder / "a.log", "agent"), Node(url, folder / "b.log", "root")
        for node in (here, there):
            stack.callback(node.clean_up)
            node.start()
            node.until_ready()  # the second process learns of the agent at its start
        yield here, there


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_postgres(fsync="off", full_page_writes="off") as server:
        yield server.url


async def until(view: ChannelView, is_so: Callable[[], bool]) -> None:
    """Follow `view` until `is_so` returns True."""
    async with asyncio.timeout(PATIENCE_S):
        changes = aiter(view)
        while not is_so():
            await anext(changes)


async def answer_to(client: Client, view: ChannelView, question: str) -> str:
    """Send a question; return the id of its answer, once the answer has some text."""
    await client.create("chat:1", id=question, role="user", text="?")

    def answers() -> list[str]:
        return [one.id for one in view.messages if one.reply_to == question and len(one.text) > 10]

    await until(view, lambda: bool(answers()))
    return answers()[0]


async def shows(viewer: WsViewer | SseViewer, answer: str) -> None:
    """Wait until `viewer` shows further text of an answer."""
    before = len(viewer.checker.text(answer))
    await viewer.until(lambda: len(viewer.checker.text(answer)) > before + 10, PATIENCE_S)


@pytest.mark.parametrize(
    "is_nginx",
    [pytest.param(True, marks=needs_nginx, id="two nginx"), pytest.param(False, marks=needs_caddy, id="caddy")],
)
async def test_two_processes_behind_a_proxy_serve_each_other_on_each_transport(
    nodes: tuple[Node, Node], tmp_path: Path, is_nginx: bool
) -> None:
    ports = {f"127.0.0.1:{node.port}" for node in nodes}
    name = f"chat:{'nginx' if is_nginx else 'caddy'}"
    prefix, channel = "/chat/tenuto", f"/v1/channels/{name}"
    each = [node.port for node in nodes]
    # The page's nginx believes the address that a trusted proxy before it sends. Its Caddy trusts none.
    client = "203.0.113.9" if is_nginx else "127.0.0.1"
    with nginx_of_the_docs(tmp_path, *each, is_two=True) if is_nginx else caddy_of_the_docs(tmp_path, *each) as port:
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/chat", trust_env=False, timeout=PATIENCE_S)
            )
            for _ in ports:  # the proxy takes the processes in turn
                response = await http.get("/seen", headers={"x-forwarded-for": "203.0.113.9"})
                path = "/chat/seen" if response.headers["x-node"] == f"127.0.0.1:{nodes[1].port}" else "/seen"
                host = "127.0.0.1" if is_nginx else f"127.0.0.1:{port}"  # nginx leaves the port out
                assert response.json() == [f"http://{host}{path}", client]

            where = ("127.0.0.1", port, name)
            sockets = [WsViewer(*where, prefix=prefix) for _ in ports]
            streams = [SseViewer(*where, prefix=prefix) for _ in ports]
            viewers: list[WsViewer | SseViewer] = [*sockets, *streams]
            for viewer in viewers:
                await stack.enter_async_context(viewer)
                await viewer.until_attached(PATIENCE_S)
            served = [viewer.session.response.headers["x-node"] for viewer in viewers]
            assert set(served[:2]) == set(served[2:]) == ports

            asked = {"id": "q", "role": "user", "text": "?"}
            assert (await http.post(f"/tenuto{channel}/messages", json=asked)).status_code == 201
            await viewers[0].until(lambda: "q" in viewers[0].checker.messages, PATIENCE_S)
            await viewers[0].until(lambda: len(viewers[0].checker.messages) == 2, PATIENCE_S)
            answer = next(one for one in viewers[0].checker.messages if one != "q")
            for viewer in viewers:
                await shows(viewer, answer)

            polls = Checker(name)
            polled: set[str] = set()
            async with asyncio.timeout(PATIENCE_S):
                while polled != ports:
                    since = {"since": polls.cursor} if polls.cursor is not None else {}
                    polls.begin(polls.cursor, is_poll=True)
                    response = await http.get(f"/tenuto{channel}/poll", params=since)
                    batch = response.json()
                    polls.take(batch["events"], batch["cursor"])
                    if any(one["type"] == "message.append" for one in batch["events"]):
                        polled.add(response.headers["x-node"])
            assert polls.violations == []

            while (await http.get("/seen")).headers["x-node"] != f"127.0.0.1:{nodes[0].port}":
                pass
            stop = await http.post(f"/tenuto{channel}/commands", json={"name": "cancel", "target": answer})
            assert (stop.status_code, stop.headers["x-node"]) == (201, f"127.0.0.1:{nodes[1].port}")
            await asyncio.to_thread(nodes[0].until, lambda: f"model of {name} closed" in nodes[0].output)
            for viewer in viewers:
                await viewer.until(lambda one=viewer: one.checker.status(answer) == "cancelled", PATIENCE_S)
                assert viewer.checker.violations == []


async def test_a_client_of_one_process_is_served_by_the_agent_of_another(nodes: tuple[Node, Node]) -> None:
    here, there = nodes
    async with Client(here.url) as near, Client(there.url) as far, far.channel("chat:1") as view:
        answer = await answer_to(far, view, "q1")
        async with aclosing(near.subscribe("chat:1").batches()) as page:
            cursor = (await anext(page)).cursor
        assert cursor is not None
        async with aclosing(far.subscribe("chat:1", since=cursor).batches()) as refreshed:
            assert not is_new_start((await anext(refreshed)).events)

        await far.command("chat:1", "cancel", target=answer)
        await asyncio.to_thread(here.until, lambda: "model of chat:1 closed" in here.output)
        await until(view, lambda: getattr(view.message(answer), "status", None) == "cancelled")

        lost = await answer_to(far, view, "q2")
        here.end(signal.SIGKILL)
        await until(view, lambda: getattr(view.message(lost), "status", None) == "interrupted")


async def test_two_nodes_answer_each_of_many_questions_once(url: str) -> None:
    attempts: Counter[str] = Counter()
    answered: set[str] = set()
    is_over = asyncio.Event()
    here, there = hubs = [Hub(f"{url}?schema=questions", hooks_signals=False) for _ in range(2)]

    async def answer(turn: Turn) -> None:
        attempts[turn.message.id] += 1
        async with turn.reply() as message:
            await message.append("!")
        answered.add(turn.message.id)
        if len(answered) == QUESTIONS:  # not when each has begun: the node that closes would hand on the rest
            is_over.set()

    try:
        for hub in hubs:
            hub.agent("*", name="bot")(answer)
            await hub.start()
        asked = [(f"chat:{number % 50}", f"q{number}") for number in range(QUESTIONS)]
        await asyncio.gather(
            *(
                hub.create(channel, id=question, role="user", text="?")
                for hub, (channel, question) in zip(cycle(hubs), asked, strict=False)
            )
        )
        async with asyncio.timeout(2 * PATIENCE_S):
            await is_over.wait()
    finally:
        await there.close()
        pages = [await here.history(f"chat:{number}", limit=200) for number in range(50)]
        await here.close()
    assert attempts == Counter(question for _, question in asked)
    answers = [message for page in pages for message in page.messages if message.role == "assistant"]
    assert Counter(message.reply_to for message in answers) == attempts


async def test_one_node_calls_a_hook_and_another_one_goes_on_when_it_ends(url: str) -> None:
    first, second = hubs = [Hub(f"{url}?schema=hooks", drain_s=0, hooks_signals=False) for _ in range(2)]
    calls: list[tuple[Hub, str]] = []
    called = asyncio.Event()
    for hub in hubs:

        @hub.on("message.create", "*", name="billing")
        async def bill(event: HookEvent, hub: Hub = hub) -> None:
            calls.append((hub, event.id))
            called.set()

    async def until_called(hub: Hub, *ids: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not {(hub, one) for one in ids} <= set(calls):
                called.clear()
                await called.wait()

    try:
        for hub in hubs:
            await hub.start()
        for number, hub in zip(range(10), cycle(hubs), strict=False):
            await hub.create(f"chat:{number % 3}", id=f"m{number}", role="user", text="?")
        await until_called(first, *(f"m{number}" for number in range(10)))
        await first.close()
        await second.create("chat:0", id="last", role="user", text="?")
        await until_called(second, "last")
    finally:
        await first.close()
        await second.close()
    places = [hubs.index(hub) for hub, _ in calls]
    assert places == sorted(places)  # the last call of the first hub may be repeated, but they never take turns


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the test finds the workers in /proc")
def test_a_worker_that_dies_is_replaced(url: str, tmp_path: Path) -> None:
    port = str(free_port())
    arguments = ["-m", "tenuto", "serve", "--workers", "2", "--port", port, "--store", f"{url}?schema=workers"]
    serving = Process(arguments, tmp_path / "log")

    def workers() -> list[int]:
        pid = serving.running.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    serving.start()
    try:
        serving.until(lambda: request(int(port), "GET", "/readyz")[0] == 200)
        first, kept = workers()
        os.kill(first, signal.SIGKILL)
        serving.until(lambda: len(workers()) == 2 and first not in workers())
        assert kept in workers()
        serving.until(lambda: request(int(port), "GET", "/readyz")[0] == 200)
        assert serving.end() == -signal.SIGTERM
        assert "another one starts" in serving.output
        assert "fsync off, full_page_writes off, synchronous_commit on" in serving.output
    finally:
        serving.clean_up()


def test_workers_on_a_file_are_refused_before_the_server_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        done = Process(["-m", "tenuto", "serve", "--workers", "2", "--port", port], tmp_path / "log")
        done.start()
        try:
            assert done.wait() == 1
        finally:
            done.clean_up()
    assert "--workers 2 needs a store that processes share, and 'sqlite:///tenuto.db' serves one" in done.output
    assert "change it to --store postgresql://" in done.output
