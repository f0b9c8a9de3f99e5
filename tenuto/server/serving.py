"""Runs a hub as a process of its own, for `tenuto serve` and `tenuto demo`.

Layer: server. Here uvicorn gets the settings that were measured. Inside the server of another app the library changes
none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import gc
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from tenuto.core.errors import LocalError
from tenuto.core.limits import Limits
from tenuto.hub import HubCore
from tenuto.hub.access.hosts import is_loopback
from tenuto.hub.lifecycle import SIGNALS
from tenuto.hub.tasks import PERIOD_S, LineLimit
from tenuto.server.connections import OWN_DESCRIPTORS, Connections, TrustedProxies, raise_descriptor_limit

if TYPE_CHECKING:
    import uvicorn

# Size of the send buffer. Without this limit the kernel buffers 0.6-2.9 MB of stale frames for a stalled reader
# (measured).
NOTSENT_LOWAT_BYTES = 16 * 1024
BACKLOG = 2048  # connections that the kernel holds until they are accepted
# Number of connections that asyncio accepts before it reads from one of them. If it accepted a whole burst, silent
# peers could not be told apart from others.
ACCEPTED_AT_ONCE = 32
PORT_TRIES = 50
MAX_NESTED = 100  # limit of apps within apps that are searched for hubs: a wrapper may return a new object each time
STARTED_POLL_S = 0.01
# After the hub has drained: time for requests in progress. Then their connections are aborted, and their tasks are
# cancelled a second later.
REQUESTS_S = 2.0
CANCEL_S = 3
DRAIN_S = 5.0  # stands for the `drain_s` of a hub that cannot be found; equals the default of `Hub`
FORCE_S = 10.0  # time beyond the hub's `drain_s` after which the process ends even if code in it blocks


def is_local(host: str) -> bool:
    """Return whether a server that listens on `host`, a name or an address, can be reached from this machine only."""
    return host == "localhost" or is_loopback(host)


def check_loopback(host: str) -> str:
    """Return `host`. Raises LocalError unless it is a loopback address, so that no other machine can connect."""
    if not is_local(host):
        raise LocalError(f"{host} is not a loopback address: use --host 127.0.0.1, ::1 or localhost")
    return host


def check_guarded(host: str, app: Any) -> None:
    """Raise LocalError if other machines could reach a hub that has no verifier."""
    hubs = hubs_in(app)
    if is_local(host) or (hubs and all(hub.authenticate is not None for hub in hubs)):
        return
    found = "the hub has no verifier" if hubs else "no hub was found in this app"
    raise LocalError(
        f"{host} is not a loopback address, and {found}. Give each visitor chats of their own with --visitors (in a "
        "container: TENUTO_VISITORS=1), or with Hub(authenticate=visitors()) behind --app. Or verify callers, with "
        "--jwt-secret-file or --jwks and --jwt-audience (TENUTO_JWT_SECRET_FILE, …). --allow-everyone accepts every "
        "caller, unverified."
    )


def hubs_in(app: Any) -> list[HubCore]:
    """Return the hubs that `app` is, wraps or has mounted, as far as `app` and `routes` of these objects show them."""
    seen: dict[int, Any] = {}
    level = [app]  # the objects at one depth within `app`
    for _ in range(MAX_NESTED):
        level = list({id(one): one for one in level if one is not None and id(one) not in seen}.values())
        seen |= {id(one): one for one in level}
        within: list[Any] = []
        for one in level:
            if not isinstance(one, HubCore):
                routes = getattr(one, "routes", None)  # apps of Starlette and FastAPI, and their mounts, have routes
                within += routes if isinstance(routes, list | tuple) else ()
                within.append(getattr(one, "app", None))  # of a route, or of middleware
        level = within
    return [one for one in seen.values() if isinstance(one, HubCore)]


def longest_drain_s(app: Any) -> float:
    """Return the longest `drain_s` of the hubs in `app`, or `DRAIN_S` if none is found."""
    return max((one.drain_s for one in hubs_in(app)), default=DRAIN_S)


class _Listening(socket.socket):
    """A listening socket whose queue in the kernel has room for `BACKLOG` connections, although asyncio requests fewer.

    asyncio calls `listen` with `ACCEPTED_AT_ONCE`. With so little room, many viewers that reconnect to a restarted
    server would find the queue full, and the kernel tries again only after a second (1,000 viewers: 1.5 s instead of
    0.7 s).
    """

    def listen(self, backlog: int = BACKLOG, /) -> None:
        super().listen(max(backlog, BACKLOG))


def listen(host: str, port: int, *, tries: int = 1) -> socket.socket:
    """Return a socket that listens on the first free port of `port`, `port + 1` … Raises OSError if all are taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + tries):
        # The protocol must be given as TCP: only then does asyncio switch Nagle's algorithm off, which would delay a
        # round trip by 40 ms.
        listening = _Listening(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
    raise LocalError(f"tries must be at least 1, got {tries}")


def adopt(descriptor: int) -> socket.socket:
    """Return the socket of `listen` that the parent process has opened and passed on."""
    with socket.socket(fileno=os.dup(descriptor)) as same:
        family = same.family
    # with the address family and the protocol that `listen` gives to a socket
    return _Listening(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=descriptor)


def address_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _LogFilter(logging.Filter):
    """Drops records of the server that do not belong in a log.

    A stream that is broken off shows its viewer that it is incomplete, but the server logs an error. The server logs
    the whole URL of each WebSocket, whose query may hold secrets. At the level DEBUG it logs each frame (`<` and `>`):
    headers, tokens and messages of users. It logs a traceback for text that is not UTF-8, although the peer is notified
    (1007), and for each task that a second Ctrl-C cancels. Handshakes and upgrades it logs without a reason or a bound:
    any peer could fill the disk. `transports.codec` logs why peers are refused.
    """

    _BEGINNINGS = ("< ", "> ", "Invalid UTF-8", "connection open", "connection rejected", "Unsupported upgrade")

    def filter(self, record: logging.LogRecord) -> bool:
        form, error = str(record.msg), record.exc_info[1] if record.exc_info else None
        ends = isinstance(error, asyncio.CancelledError) and isinstance(error.__context__, KeyboardInterrupt)
        return not (ends or form.startswith(self._BEGINNINGS) or '"WebSocket ' in form or "without completing" in form)


class _ShortageFilter(logging.Filter):
    """Keeps one a minute of the tracebacks, up to 32 a second, that asyncio logs if no descriptor is left."""

    shortages = LineLimit()

    def filter(self, record: logging.LogRecord) -> bool:
        is_other = not str(record.msg).startswith("socket.accept() out of system resource")
        return is_other or self.shortages.more({"accept": PERIOD_S}) is not None


_log_filter, _shortage_filter = _LogFilter(), _ShortageFilter()  # for all servers: a logger has each once


def server(
    app: Any, *, log_level: str = "warning", proxies: Iterable[str] = (), on_startup: Callable[[], None] | None = None
) -> uvicorn.Server:
    """Return a server for `app`, to be run on sockets of `listen`.

    `proxies` are the addresses whose `X-Forwarded-For` names the client. `on_startup` is called before the first
    request. Raises LocalError for any other text in `proxies`, and if uvicorn is not installed.
    """
    try:
        import uvicorn

        from tenuto.server.bounded_http import BoundedHttpProtocol
        from tenuto.server.bounded_websocket import BoundedWebSocketProtocol
    except ImportError as error:
        raise LocalError(
            f"this command needs the package {error.name}; install Tenuto with [serve], as its README shows"
        ) from None
    book = Connections(
        max_open=max(OWN_DESCRIPTORS, raise_descriptor_limit() - OWN_DESCRIPTORS), proxies=TrustedProxies(proxies)
    )

    class Server(uvicorn.Server):
        async def serve(self, sockets: list[socket.socket] | None = None) -> None:
            # uvicorn exits from within a task if the app cannot start: asyncio would print a long report about that
            with contextlib.suppress(SystemExit):
                await super().serve(sockets)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and on_startup is not None:
                on_startup()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Wait for requests in progress, but not for peers that do not read their response or finish their body."""
            asyncio.get_running_loop().call_later(REQUESTS_S, _abort_connections, self)
            await super().shutdown(sockets)

    most_bytes = max((one.limits.request_bytes for one in hubs_in(app)), default=Limits().request_bytes)
    logging.getLogger("uvicorn.error").addFilter(_log_filter)
    logging.getLogger("asyncio").addFilter(_shortage_filter)
    config = uvicorn.Config(
        app,
        # asyncio instead of uvloop: the time is spent in the kernel, and uvloop was not faster (measured)
        loop="asyncio",
        http=cast("Any", partial(BoundedHttpProtocol, book)),
        ws=BoundedWebSocketProtocol,
        backlog=ACCEPTED_AT_ONCE,
        ws_max_size=most_bytes + 64 * 1024,  # above the hub's own limit, which closes with a reason
        ws_ping_interval=None,  # the protocol has its own pings
        ws_per_message_deflate=False,  # compression costs memory per socket, and joined text compresses little
        lifespan="on",
        access_log=False,  # no access log, because URLs carry cursors and names
        log_level=log_level,
        server_header=False,
        # uvicorn would take the peer's address from a header, which must not decide whether a peer is admitted, and
        # would use one more coroutine for each viewer
        proxy_headers=False,
        timeout_graceful_shutdown=CANCEL_S,
    )
    return Server(config)


def _abort_connections(running: uvicorn.Server) -> None:
    for connection in list(running.server_state.connections):
        connection.transport.abort()


async def start(running: uvicorn.Server, listening: socket.socket) -> asyncio.Task[None]:
    """Serve on `listening`. Returns once the server has started or failed, with the task that ends with the server."""
    serving = asyncio.ensure_future(running.serve(sockets=[listening]))
    while not (running.started or serving.done()):  # noqa: ASYNC110
        await asyncio.sleep(STARTED_POLL_S)  # the server gives no notification when it has started
    settle_collector()
    return serving


def settle_collector() -> None:
    """Make Python's cyclic garbage collector run seldom, on few objects: else it takes 7 % of a busy core (measured).

    The objects that exist now live as long as the process, so they are frozen. A closed connection is a cycle
    (asyncio's transports and uvicorn's protocols are), and a conversation with two viewers leaves some 300 such
    objects. Those that were young at its end are freed after some 60 such conversations, most of the others after 200,
    all after 600.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # freeze after a collection; the next full one runs when the other objects have grown by a quarter
    gc.set_threshold(20_000, 2, 2)


def _end_by_force(bound_s: float, last: Callable[[int, FrameType | None], None]) -> None:
    """Install signal handlers that end the process `bound_s` after the first signal, if it has not ended by then.

    They act first, and then call the present handlers; `last` is the server's own one, for a signal that comes back.
    Only code that blocks the event loop, or ignores cancellation, can hold the process up so long, and no request can
    stop such code. No stored entry is lost. faulthandler's timer needs neither the loop nor Python's lock, and prints
    the stacks of all threads.
    """
    is_hit = False  # True: a first signal has come
    is_passing_on = False  # True: an earlier handler runs, called by `hit`

    def hit(before: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        """Start the timer at the first signal, then call `before`, the handler that this one has replaced."""
        nonlocal is_hit, is_passing_on
        if is_passing_on:  # by the handler of a hub that restarted, which was installed after this one
            last(number, frame)
            return
        if not is_hit and sys.__stderr__ is not None:
            is_hit = True
            faulthandler.dump_traceback_later(bound_s, exit=True, file=sys.__stderr__)
        is_passing_on = True
        try:
            before(number, frame)
        finally:
            is_passing_on = False

    for number in SIGNALS:
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, partial(hit, before))


def run(
    app: Any,
    hub: HubCore | None,
    listening: socket.socket,
    *,
    started: Callable[[], None],
    force_s: float = FORCE_S,
    **options: Any,
) -> bool:
    """Serve `app` until a signal ends it; return False if it could not start. `started` is called once it serves.

    `hub` is the hub behind `app`, if it is known: an error of its store is raised before the first request is served.
    The process ends within the hub's `drain_s` plus `force_s` seconds after the signal, even with work in progress.
    """
    running = server(app, **options)

    async def main() -> None:
        if hub is not None:
            await hub.start()
        serving = await start(running, listening)
        if running.started and not serving.done():
            if hub is not None:
                hub.hook_signals()
            _end_by_force(longest_drain_s(app) + force_s, running.handle_exit)
            started()
        await serving

    asyncio.run(main())
    return bool(running.started)


def load_app(target: str) -> Any:
    """Return the object that MODULE:NAME names. Raises LocalError, also for an exception inside the module."""
    module, _, name = target.partition(":")
    if not module:
        raise LocalError(f"--app must be MODULE:NAME, for example --app chat:hub, got {target!r}")
    sys.path.insert(0, "")  # the current folder, which an installed command does not search
    try:
        app = getattr(importlib.import_module(module), name or "hub")
    except Exception as error:
        raise LocalError(
            f"--app {target} could not be imported: {type(error).__name__}: {error}; name it as MODULE:NAME"
        ) from error
    if not callable(app):
        raise LocalError(f"--app {target} must name an ASGI app, got an object of type {type(app).__name__}")
    return app
