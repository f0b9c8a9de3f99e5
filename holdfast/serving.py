"""Running a hub as a process of its own: what `holdfast serve` and `holdfast demo` share.

You are at the top, beside `cli`. Here uvicorn gets the settings that were measured; inside somebody else's server the
library leaves all of this alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import gc
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import LocalError
from holdfast.core.limits import Limits
from holdfast.hub import HubCore
from holdfast.hub.drain import SIGNALS

if TYPE_CHECKING:
    import uvicorn

# A stopped reader swallows 0.6-2.9 MB of stale frames in the kernel without it (measured).
NOTSENT_LOWAT_BYTES = 16 * 1024
BACKLOG = 2048
PORT_TRIES = 50
STARTED_POLL_S = 0.01
# The end, once the hub has drained: for requests that are being answered or are still coming in; then their connections
# are cut, and what goes on behind them is cancelled a second later.
ANSWERS_S = 2.0
CANCEL_S = 3
DRAIN_S = 5.0  # of hubs that are not known: the default of `Hub`
FORCE_S = 10.0  # and beyond the hub's `drain_s` in all, by which the process has ended, whatever goes on in it


def is_loopback(host: str) -> bool:
    """Is `host` this machine's own address?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_loopback(host: str) -> str:
    """Return `host`; raises LocalError unless it is this machine's own: nobody else is let in."""
    if not is_loopback(host):
        raise LocalError(f"{host} is not a loopback address: this serves 127.0.0.1, ::1 or localhost only")
    return host


def check_guarded(host: str, app: Any) -> str:
    """Return `host`; raises LocalError where others than this machine would meet a hub that cannot tell who asks."""
    if is_loopback(host):
        return host
    hubs = hubs_in(app)
    if hubs and all(hub.authenticate is not None for hub in hubs):
        return host
    found = "the hub has no verifier" if hubs else "no hub was found in this app"
    raise LocalError(
        f"{host} is not a loopback address, and {found}. Say who may come in: --jwt-secret-file or --jwks, with "
        "--jwt-audience, or Hub(authenticate=...) behind --app. --allow-everyone lets everybody in, as everybody."
    )


def hubs_in(app: Any) -> list[HubCore]:
    """The hubs that `app` is, or has mounted, as far as its routes tell."""
    if isinstance(app, HubCore):
        return [app]
    routes = getattr(app, "routes", None)  # of Starlette, FastAPI and their mounts
    if not isinstance(routes, list | tuple):
        return []
    return [hub for route in routes for hub in hubs_in(getattr(route, "app", None))]


def listen(host: str, port: int, *, tries: int = 1) -> socket.socket:
    """A listening socket on the first free port of `port`, `port + 1` … Raises OSError when none is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + tries):
        # Naming TCP makes asyncio switch Nagle's algorithm off; without it a round trip costs 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
        try:
            listening.bind((host, candidate))
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            if error.errno != errno.EADDRINUSE or candidate == port + tries - 1:
                raise
        else:
            return listening
    raise LocalError("no port to try")


def address_of(listening: socket.socket) -> str:
    """The URL that a listening socket is reached at."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Unsaid(logging.Filter):
    """What the server would log and should not.

    Breaking a stream off is how a viewer learns that it is not complete; the server calls that an error. And it names
    the whole URL of each WebSocket, whose query may hold what is not for a log; when it debugs, it also shows what goes
    over each (`< ` and `> `), which is headers, tokens, and people's messages. And for text that is not UTF-8 it fills
    the log with a traceback, though the peer who sent it is told so (1007).
    """

    def filter(self, record: logging.LogRecord) -> bool:
        form = str(record.msg)
        return not (
            form.startswith(("< ", "> ", "Invalid UTF-8")) or '"WebSocket ' in form or "without completing" in form
        )


def server(app: Any, *, limits: Limits | None = None, log_level: str = "warning") -> uvicorn.Server:
    """A server for `app`, to be run on sockets of `listen`. Raises LocalError where uvicorn is not installed."""
    try:
        import uvicorn
    except ImportError:
        raise LocalError("this needs uvicorn: pip install 'holdfast[serve]'") from None

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Wait for those who are being answered, but not for peers that do not read, or send no more."""
            asyncio.get_running_loop().call_later(ANSWERS_S, _cut_off, self)
            await super().shutdown(sockets)

    logging.getLogger("uvicorn.error").addFilter(_Unsaid())
    config = uvicorn.Config(
        app,
        loop="asyncio",  # the time goes to the kernel: uvloop gained nothing (measured)
        http="httptools",
        ws="auto",
        ws_max_size=(limits or Limits()).request_bytes + 64 * 1024,
        ws_ping_interval=None,  # our own pings say who is there
        ws_per_message_deflate=False,  # costs memory per socket, and joined text compresses little
        lifespan="on",
        access_log=False,  # URLs carry cursors and names
        log_level=log_level,
        server_header=False,
        proxy_headers=False,  # nobody is let in by what a header says; and it costs a coroutine a viewer
        timeout_graceful_shutdown=CANCEL_S,
    )
    return Server(config)


def _cut_off(running: uvicorn.Server) -> None:
    for connection in list(running.server_state.connections):
        connection.transport.abort()


async def start(running: uvicorn.Server, listening: socket.socket) -> asyncio.Task[None]:
    """Serve on `listening`; returns when it serves, or has failed to, with the task that ends when the server does."""
    serving = asyncio.ensure_future(_serve(running, listening))
    while not (running.started or serving.done()):  # noqa: ASYNC110
        await asyncio.sleep(STARTED_POLL_S)  # the server tells nobody when it has started
    settle_collector()
    return serving


def settle_collector() -> None:
    """Let Python's collector of cycles look at little, and seldom: else it takes about 7 % of a busy core (measured).

    What exists now lives as long as the process: it need not be looked at again. A connection that is over is a cycle
    (asyncio's transports and uvicorn's protocols are), and a conversation with two viewers leaves some 300 objects
    of them: what was young when it ended goes after some 60 such conversations, most else after 200, all after 600.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # Python looks at everything when it has grown by a quarter: of what is not frozen, from here on
    gc.set_threshold(20_000, 2, 2)


async def _serve(running: uvicorn.Server, listening: socket.socket) -> None:
    # An app that cannot start ends the process from within a task, which asyncio would report at length.
    with contextlib.suppress(SystemExit):
        await running.serve(sockets=[listening])


class _LastResort:
    """Ends the process `bound_s` after the first signal, where it has not ended by then.

    What is left to hold it up is code that blocks the event loop, or will not be cancelled; nobody can ask that to
    stop. Nothing that was stored is lost by it. faulthandler's timer needs neither the loop nor Python's lock, and
    tells where everybody was.
    """

    def __init__(self, bound_s: float, last: Callable[[int, FrameType | None], None]) -> None:
        self._bound_s = bound_s
        self._last = last
        self._is_hit = False
        self._is_passing_on = False

    def install(self) -> None:
        """Be told of signals before everybody who is told of them now."""
        for number in SIGNALS:
            before = signal.getsignal(number)
            if callable(before):
                signal.signal(number, partial(self._hit, before))

    def _hit(self, before: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        if self._is_passing_on:  # a hub that started anew has hooked on after us, and was before us already
            self._last(number, frame)
            return
        if not self._is_hit and sys.__stderr__ is not None:
            self._is_hit = True
            faulthandler.dump_traceback_later(self._bound_s, exit=True, file=sys.__stderr__)
        self._is_passing_on = True
        try:
            before(number, frame)
        finally:
            self._is_passing_on = False


def run(
    app: Any,
    hub: HubCore | None,
    listening: socket.socket,
    *,
    started: Callable[[], None],
    force_s: float = FORCE_S,
    **options: Any,
) -> bool:
    """Serve `app` until a signal ends it; False if it could not start. `started` is called when it serves.

    `hub` is the one behind `app`, if it is known: what is wrong with its store is raised, before anything is served.
    The process ends within the hub's `drain_s` and `force_s` seconds after the signal, with whatever is left.
    """
    running = server(app, **options)
    drain_s = max((one.drain_s for one in hubs_in(app)), default=hub.drain_s if hub is not None else DRAIN_S)

    async def main() -> None:
        if hub is not None:
            await hub.start()
        serving = await start(running, listening)
        if running.started and not serving.done():
            if hub is not None:
                hub.hook_signals()
            _LastResort(drain_s + force_s, running.handle_exit).install()
            started()
        await serving

    asyncio.run(main())
    return bool(running.started)
