"""Two server processes share one PostgreSQL: a client of one reaches the agent of the other, also behind nginx."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import httpx2
import pytest

from proof.wirecheck import Checker, SseViewer, WsViewer
from tests.caddy import caddy_of_the_docs, needs_caddy
from tests.examples.nodes import Node
from tests.nginx import needs_nginx, nginx_of_the_docs
from tests.postgres import Postgres, needs_postgres
from tests.processes import request

pytestmark = needs_postgres

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def nodes(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Run a process with an agent, and one without."""
    folder = tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        here, there = (
            Node(["tests.shared_app", postgres.url, part], folder / f"{part}.log") for part in ("agent", "root")
        )
        for node in (here, there):  # the second process learns of the agent at its start
            port = stack.enter_context(node).port
            node.until(lambda port=port: request(port, "GET", "/tenuto/readyz")[0] == 200)  # type: ignore[misc]
        yield here, there


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
