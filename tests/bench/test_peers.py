"""A benchmark beside peers is honest: a wrong byte makes it void, and a failed measurement is reported.

The lying servers are written here, from the wire formats alone; all else is real.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import bench.common
import bench.load
import bench.pages
from bench import appends, beside
from bench.common import Row, check
from bench.load import Load
from bench.peers.system import foreign
from bench.peers.xadd import REDIS_CLIENT, cache
from bench.tokens import summary, token

PATIENCE_S = 40.0
APPENDS = appends.Sizes(producers=4, rounds=1, seconds=0.2, warm_s=0.05, pages=1, page_tokens=40)
KINDS = ("nchan-sse", "nchan-ws", "xadd-sse")

has_nginx = bool(shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"))
has_redis = bool(shutil.which("redis-server"))
needs_nchan = pytest.mark.skipif(not has_nginx, reason="Debian's nginx and libnginx-mod-nchan are not installed")
needs_redis_client = pytest.mark.skipif(
    not (has_redis and [*cache().glob(f"*{'_'.join(REDIS_CLIENT)}")]),
    reason="`python -m bench appends` has not run here",
)


# Servers with prescribed responses


def _frame(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 126
    return bytes((0x81, len(data))) + data


_UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: keep-alive\r\n\r\n: hi\n\n"

HANDSHAKES: dict[str, list[bytes]] = {  # a response to each message of the viewer
    "nchan-sse": [_STREAM],
    "xadd-sse": [_STREAM],
    "nchan-ws": [_UPGRADED],
}
MESSAGES: dict[str, Callable[[str, int], bytes]] = {
    "nchan-sse": lambda text, n: f"id: 1:{n}\ndata: {text}\n\n".encode(),
    "xadd-sse": lambda text, n: f'id: {n}-0\ndata: "{text}"\n\n'.encode(),
    "nchan-ws": lambda text, _: _frame(text),
}


class Liar:
    """A server for one viewer: it greets as the real one does, and then sends the test's bytes."""

    def __init__(self, kind: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._kind = kind
        self._greeted = threading.Event()
        self._thread = threading.Thread(target=self._greet, daemon=True)
        self._thread.start()

    def say(self, texts: list[str]) -> None:
        assert self._greeted.wait(PATIENCE_S)
        self._viewer.sendall(b"".join(MESSAGES[self._kind](text, n) for n, text in enumerate(texts)))

    def close(self) -> None:
        self._thread.join(PATIENCE_S)
        self._viewer.close()
        self._listener.close()

    def _greet(self) -> None:
        self._viewer, _ = self._listener.accept()
        self._viewer.settimeout(PATIENCE_S)
        for response in HANDSHAKES[self._kind]:
            assert self._viewer.recv(65536)
            self._viewer.sendall(response)
        self._greeted.set()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses: on loopback, bytes that have not arrived after this long do not arrive."""
    monkeypatch.setattr(bench.load, "_QUIET_S", 0.05)


def _run(kind: str, sent: list[str], reported: list[str]) -> None:
    """Run a benchmark in which `sent` was published and `reported` delivered. Raises `Void` if it does not count."""
    liar = Liar(kind)
    client = Load()
    client.connect(kind=kind, port=liar.port, channels=["c"], timeout_s=PATIENCE_S)
    client.capture()
    liar.say(reported)
    drained = client.drain(timeout_s=PATIENCE_S)
    decoded = client.decode()
    compared = client.compare(sent={"c": summary("".join(sent), "m")}, port=None)
    client.close()
    liar.close()
    check(decoded, compared, drained)


TOKENS = [token(at_s) for at_s in (1.0, 1.1, 1.2, 1.3, 1.4)]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_counts_when_every_token_came_once_and_in_order(kind: str) -> None:
    _run(kind, TOKENS, TOKENS)


TINY = beside.Sizes(shapes=(beside.Shape(2, 2, 100),), rounds=1, seconds=0.2)


# Real systems, tiny runs


def _figures(measured: Iterable[Row]) -> list[str]:
    rows = list(measured)
    assert [row.note for row in rows if row.has_failed] == []
    return [f"{row.what}: {row.measured}" for row in rows]


@needs_redis_client
def test_appends_are_measured_on_the_real_systems(tmp_path: Path) -> None:
    figures = _figures(appends.measure(tmp_path, APPENDS))
    assert [figure for figure in figures if "reload at 40 tokens" in figure and "XADD" in figure]
    assert list(tmp_path.iterdir()) == []


@needs_nchan
def test_nchan_and_tenuto_are_measured_by_the_same_rows(tmp_path: Path) -> None:
    figures = "\n".join(_figures(beside.measure(tmp_path, TINY, beside.SYSTEMS)))
    assert figures.count("CPU per delivered token, against nchan, memory") == 2  # SSE and WebSocket


def test_foreign_server_ends_with_its_context_and_with_its_parent_process() -> None:
    with foreign("sleep", ["sleep", "600"], lambda _: True) as pid:
        server = os.pidfd_open(pid)
    assert select.select([server], [], [], 0)[0]
    os.close(server)
    code = (
        "import os, signal; from bench.peers.system import foreign\n"
        "with foreign('sleep', ['sleep', '600'], lambda _: True) as pid:\n"
        "    print(pid, flush=True); input(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as by:
        assert by.stdout is not None
        server = os.pidfd_open(int(by.stdout.readline()))
        by.communicate("\n")
    assert select.select([server], [], [], PATIENCE_S)[0]
    os.close(server)
