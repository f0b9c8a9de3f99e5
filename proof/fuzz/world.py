"""A hub in virtual time, ASGI by hand, and the invariants that hold for every input of a peer.

Layer: fuzz.

Each input gets its own `World`, so it alone determines the result. The clock of a world jumps, so a poll of one minute
costs no time. The rules are those of `docs/protocol.md`, read from the page where it has a table: only documented
statuses and codes, a response to each request, no lost message, no leaked resource.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Coroutine, MutableMapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

from proof.fuzz.engine import Finding
from proof.fuzz.mutate import to_bytes
from proof.simulation.clock import SimClock, Stuck, VirtualLoop
from proof.wirecheck import Checker, SseParser, WireError
from tenuto.app import Hub
from tenuto.core.limits import Limits
from tenuto.hub.access.identity import allow_everyone
from tenuto.hub.access.rates import Rates

PATIENCE_S = 200.0  # virtual time in which requests must end by themselves
HOLD_S = 0.3  # how long a stream is read: some flush windows
PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
SMALL = Limits(
    request_bytes=8_192,
    append_bytes=2_048,
    message_bytes=6_000,
    parts=8,
    meta_bytes=1_024,
    depth=8,
    socket_channels=3,
    socket_requests=20,
    socket_request_bytes=300_000,
    history=10,
    history_bytes=4_000,
    default_history=3,
    catch_up_messages=5,
    waiting_requests=50,
    channel_bytes=10_000,
)
LIMITS = {"small": SMALL, "default": Limits()}
PRECIOUS = "precious-5f0c"  # a channel whose name no input contains
PRECIOUS_TEXT = "stored before, häßlich 😀"
WATCHED = "c"  # a channel with a viewer from the beginning to the end
JSON = [[b"host", b"localhost"], [b"content-type", b"application/json"]]


@cache
def documented_codes() -> dict[int, frozenset[str]]:
    """Return the codes of each status, as section 9 of the protocol lists them."""
    section = PROTOCOL.read_text().split("\n## 9. ")[1].split("\n## ")[0]
    codes: dict[int, set[str]] = {}
    for statuses, listed in re.findall(r"^\| ([0-9, ]+) \| (.*) \|$", section, re.M):
        for status in statuses.split(","):
            codes.setdefault(int(status), set()).update(re.findall(r"`(\w+)`", listed))
    assert "internal" in codes[500], "the table of errors is not where it was"
    return {status: frozenset(names) for status, names in codes.items()}


def check_code(status: object, code: object, where: str) -> None:
    """Check that `code` is documented for `status`, and is not an internal error. Raises Finding."""
    if code in ("internal", "store_unusable", "misuse"):
        raise Finding(f"internal: {where}")
    if not isinstance(status, int) or code not in documented_codes().get(status, ()):
        raise Finding(f"undocumented: {status} {code!r} to {where}")


class Response:
    """An ASGI app's response to one request, checked while it arrives."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.is_over = False

    def take(self, message: MutableMapping[str, Any]) -> None:
        """Take one ASGI message. Raises Finding if no server can send it on."""
        kind = message["type"]
        if kind == "http.response.start":
            if self.status:
                raise Finding(f"twice: a second response to {self.what}")
            self.status = message["status"]
            for name, value in message.get("headers", ()):
                if re.search(rb"[\r\n\0]", value) or not re.fullmatch(rb"[a-z0-9-]+", name):
                    raise Finding(f"header: {name!r}: {value!r} in the response to {self.what}")
                self.headers[name.decode()] = value.decode("latin-1")
        elif kind == "http.response.body":
            if not self.status or self.is_over:
                raise Finding(f"order: an unexpected body for {self.what}")
            self.body += message.get("body", b"")
            self.is_over = not message.get("more_body", False)
        else:
            raise Finding(f"order: unexpected {kind} for {self.what}")

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def json(self) -> Any:
        """Return the decoded body. Raises Finding if it is not JSON."""
        try:
            return json.loads(bytes(self.body).decode())
        except ValueError:
            raise Finding(f"not JSON: the response to {self.what}: {bytes(self.body[:80])!r}") from None

    def check(self, *, is_head: bool) -> None:
        """Check that the protocol allows this response. Raises Finding."""
        what = f"{self.what}: {self.status}"
        if not self.status:
            raise Finding(f"no response: {self.what}")
        if not self.is_stream:
            if not self.is_over:
                raise Finding(f"unfinished: {what}")
            length = self.headers.get("content-length")
            if length is not None and int(length) != len(self.body) and not is_head:
                raise Finding(f"length: {what} announces {length} bytes and has {len(self.body)}")
            if self.headers.get("cache-control") not in ("no-store", "no-cache"):
                raise Finding(f"cache: {what}")
        if self.status >= 400:
            self._check_problem(what)
        elif self.status not in (200, 201, 202, 204):
            raise Finding(f"undocumented: {what}")
        elif self.headers.get("content-type") == "application/json" and not is_head:
            self.json()
        elif self.headers.get("content-type") == "application/x-ndjson" and not is_head:
            self._check_lines()

    def _check_lines(self) -> None:
        """Check that each line is JSON, and that an error in a line is documented. Raises Finding."""
        for line in bytes(self.body).splitlines():
            try:
                decoded = json.loads(line)
            except ValueError:
                raise Finding(f"not JSON: a line of the response to {self.what}: {line[:80]!r}") from None
            if decoded.get("type") == "error":
                check_code(decoded["error"]["status"], decoded["error"]["code"], self.what)

    def _check_problem(self, what: str) -> None:
        if self.headers.get("content-type") != "application/problem+json":
            raise Finding(f"no problem: {what} is {self.headers.get('content-type')}")
        problem = self.json()
        if not {"type", "title", "status", "detail", "code"} <= problem.keys() or problem["status"] != self.status:
            raise Finding(f"no problem: {what} {problem}")
        check_code(self.status, problem["code"], self.what)
        if self.status in (429, 503) and not self.headers.get("retry-after", "").isdigit():
            raise Finding(f"retry: {what}")


class _ErrorLog(logging.Handler):
    """Collects the logged internal errors: the function, the error, and the record's text."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR:
            self.texts.append(f"{blame(error)}: {error!r} {record.getMessage()}")


def blame(error: BaseException | None) -> str:
    """Return the product's innermost function in the traceback. Findings are distinguished by it."""
    function = "code outside Tenuto"
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/tenuto/" in code.co_filename:
            function = f"{Path(code.co_filename).stem}.{code.co_name}"
        trace = trace.tb_next
    return f"{type(error).__name__} in {function}"


class World:
    """A hub and its peers."""

    def __init__(
        self,
        *,
        limits: str = "small",
        by_hand: bool = False,
        origins: tuple[str, ...] = (),
        is_open: bool = False,
    ) -> None:
        self.loop = VirtualLoop()
        self.limits = LIMITS[limits]
        clock = SimClock(self.loop, Random(1))
        self.hub = Hub(
            "memory://",
            hooks_signals=False,
            drain_s=0.2,
            limits=self.limits,
            clock=clock,
            allowed_origins=origins,
            authenticate=allow_everyone if is_open else None,
        )
        self.hub.rates = Rates(now_s=self.loop.time)
        self.hub.drive_by_hand = by_hand
        self.ticket = ""  # the latest issued ticket
        self.open: list[Exchange] = []  # exchanges that continue during later requests

    def run(self, job: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        """Run `job` in this world, and check the state that it leaves. Raises Finding."""
        errors = _ErrorLog()
        logger = logging.getLogger()
        known = [logging.getLogger(name) for name in ("tenuto", "tenuto.hub", "tenuto.transports", "asyncio")]
        before = [(one, one.level, one.propagate) for one in known]
        logger.addHandler(errors)
        for one in known:
            one.propagate = True
        logging.disable(logging.WARNING)
        asyncio.set_event_loop(self.loop)
        found: Finding | None = None
        try:
            self.loop.run_until_complete(self._live(job))
        except Finding as error:
            found = error
        except Stuck as error:
            found = Finding(f"stuck: {error}")
        finally:
            asyncio.set_event_loop(None)
            logging.disable(logging.NOTSET)
            logger.removeHandler(errors)
            for one, level, propagates in before:
                one.level, one.propagate = level, propagates
            self.loop.close()
        if errors.texts:  # more specific than a response of 500
            raise Finding(f"logged {errors.texts[0]}; {found or ''}")
        if found is not None:
            raise found
        if self.loop.complaints:
            raise Finding(f"asyncio: {self.loop.complaints}")

    async def _live(self, job: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        try:
            await self.hub.start()
            await self._store_something_precious()
            witness = Witness(self)
            await witness.begin()
            tasks = len(asyncio.all_tasks())
            await job(self)
            for exchange in self.open:
                await exchange.leave()
            await asyncio.sleep(HOLD_S)
            await witness.check()
            await self._check_precious()
            await witness.leave()
            await self._check_nothing_is_left(tasks - 1)  # not counting the task of the witness
        finally:
            await self._end()

    async def _end(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.hub.close()
        except TimeoutError:
            raise Finding("stuck: the hub does not close") from None
        await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
            raise Finding(f"left: after shutdown the hub holds {left}")

    # A well-behaved peer

    async def request(self, method: str, path: str, body: object = None, query: str = "") -> Response:
        """Send a correct request."""
        exchange = Exchange(self, method, path, headers=JSON, query=query.encode())
        exchange.pieces = [json.dumps(body).encode()] if body is not None else [b""]
        await exchange.finish()
        return exchange.response

    async def expect(self, status: int, method: str, path: str, body: object = None, query: str = "") -> Any:
        """Send a correct request, and check that the response has `status`. Raises Finding."""
        response = await self.request(method, path, body, query)
        if response.status != status:
            raise Finding(f"health: {method} {path} {body} got {response.status} {bytes(response.body[:200])!r}")
        return response.json() if response.body else None

    async def _store_something_precious(self) -> None:
        path = f"/v1/channels/{PRECIOUS}/messages"
        await self.expect(201, "POST", path, {"id": "p", "text": PRECIOUS_TEXT})
        start = {"id": "s", "role": "assistant", "status": "streaming", "text": PRECIOUS_TEXT, "lease_s": 3_600}
        await self.expect(201, "POST", path, start)

    async def _check_precious(self) -> None:
        page = await self.expect(200, "GET", f"/v1/channels/{PRECIOUS}/messages")
        found = [(one["id"], one["parts"]) for one in page["messages"]]
        status = page["messages"][0]["status"] if found else ""
        parts = [{"type": "text", "text": PRECIOUS_TEXT}]
        # after an hour the lease of the streaming message has expired, which adds an entry
        serial = 2 if asyncio.get_running_loop().time() < 3_600 else 3
        expected = "streaming" if serial == 2 else "interrupted"
        if found != [("s", parts), ("p", parts)] or status != expected or not page["cursor"].endswith(f":{serial}"):
            raise Finding(f"lost: {page}")

    async def _check_nothing_is_left(self, tasks: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(20):  # housekeeping needs only a few turns
                stats = self.hub.stats()
                if len(asyncio.all_tasks()) <= tasks and not stats["feeds"] and not stats["waiting"]:
                    return
                await asyncio.sleep(1.0)
        alive = [str(task.get_coro()) for task in asyncio.all_tasks()]
        raise Finding(f"leak: {stats} and {len(alive)} tasks, {tasks} before: {alive}")


async def until_returned(task: asyncio.Task[None], what: str) -> None:
    """Wait until the app has returned. Raises Finding if it raises, or does not return."""
    _, waiting = await asyncio.wait([task], timeout=PATIENCE_S)
    if waiting:
        task.cancel()
        await asyncio.wait([task])
        raise Finding(f"hangs: {what}")
    error = task.exception()
    if isinstance(error, Finding):
        raise error
    if error is not None:
        raise Finding(f"raised {blame(error)}: {error!r} from {what}")


class Exchange:
    """One request to the app, by hand: for scopes and timing that no client produces."""

    def __init__(
        self,
        world: World,
        method: str,
        path: str,
        *,
        headers: list[list[bytes]],
        query: bytes = b"",
        raw_path: bytes | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self._world = world
        self.response = Response(f"{method} {path[:200]!r} {query[:200]!r}")
        self.pieces: list[bytes] = [b""]
        self.is_complete = True  # otherwise the body has no end, and the peer leaves in the middle
        self.block_s = 0.0  # how long each write blocks
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_head = method == "HEAD"
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": raw_path if raw_path is not None else path.encode("utf-8", "surrogatepass"),
            "root_path": "",
            "query_string": query,
            "headers": [(bytes(name), bytes(value)) for name, value in headers],
            "client": (address, 5),
            # no address, because the hub would look up the owner of a real socket with it
            "server": ("in-process", 80),
            "extensions": {},
        }
        self._task: asyncio.Task[None] | None = None

    async def finish(self) -> None:
        """Run it from the beginning to the end. Raises Finding."""
        self.start()
        await self.until_over()
        self.response.check(is_head=self._is_head)

    def start(self) -> None:
        """Start the request; the response arrives by itself."""
        self._task = asyncio.get_running_loop().create_task(self._world.hub(self._scope, self._receive, self._send))

    @property
    def is_done(self) -> bool:
        """Return whether the app has returned."""
        return self._task is not None and self._task.done()

    async def read_for(self, hold_s: float) -> None:
        """Let it continue for so long, or until it ends."""
        assert self._task is not None
        await asyncio.wait([self._task], timeout=hold_s)

    async def leave(self) -> None:
        """Close the connection as the peer does."""
        if not self._left.done():
            self._left.set_result(None)
        await self.until_over()
        if self.response.status and (self.response.is_over or self.response.is_stream):
            self.response.check(is_head=self._is_head)

    async def until_over(self) -> None:
        """Wait until the app has returned. Raises Finding if it raises, or does not return."""
        assert self._task is not None
        await until_returned(self._task, self.response.what)

    async def _receive(self) -> MutableMapping[str, Any]:
        if self.pieces:
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces) or not self.is_complete}
        await asyncio.wait([self._left])
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if self.block_s:
            await asyncio.wait([self._left], timeout=self.block_s)
        if self._left.done():
            # ASGI requires this error since 2.4; some servers return silently instead
            raise OSError("the peer has left")
        self.response.take(message)


class Witness:
    """A viewer that follows a channel all the time and checks it independently (`wirecheck.Checker`)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.checker = Checker(WATCHED)
        self._parser = SseParser()
        self._exchange = Exchange(
            world,
            "GET",
            f"/v1/channels/{WATCHED}/events",
            headers=[[b"host", b"localhost"]],
            query=b"flush_ms=0",
        )
        self._read = 0

    async def begin(self) -> None:
        """Attach."""
        self.checker.begin(None)
        self._exchange.start()
        await asyncio.sleep(HOLD_S)
        self.look()

    def look(self) -> None:
        """Take the new events. Raises Finding if no correct server sends them."""
        body = self._exchange.response.body
        data, self._read = bytes(body[self._read :]), len(body)
        try:
            for event in self._parser.receive(data):
                self.checker.take([json.loads(event.data)], event.id)
        except (WireError, ValueError) as error:
            raise Finding(f"stream: {error!r}") from error
        if self.checker.violations:
            raise Finding(f"viewer {self.checker.violations[0].kind}: {self.checker.violations}")

    async def check(self) -> None:
        """Compare the view with the stored messages. Raises Finding."""
        self.look()
        stored = await pages(self._world, WATCHED)
        head = await self._world.expect(200, "GET", f"/v1/channels/{WATCHED}")
        if self.checker.cursor != head["cursor"]:  # only entries without events may lie between them
            query = f"since={self.checker.cursor}&wait_s=0"
            events = (await self._world.expect(200, "GET", f"/v1/channels/{WATCHED}/poll", query=query))["events"]
            if [event for event in events if not event["type"].startswith("presence.")]:
                raise Finding(f"behind: a viewer at {self.checker.cursor} has not received {events}")
        shown = set(self.checker.messages)
        for message in stored:
            shown.discard(message["id"])
            differences = self.checker.differences(message)
            if differences and differences != ["not in view"]:
                raise Finding(f"other view: of {message['id']}: {differences}")
            if differences and self.checker.new_starts <= 1:  # later ones show only the newest messages
                raise Finding(f"other view: {message['id']} is stored and not in view")
        if shown:
            raise Finding(f"other view: {sorted(shown)} are in view and not stored")
        highest = max((message["version"] for message in stored), default=0)
        if highest > head["serial"]:
            raise Finding(f"serial: a message of version {highest} in a channel at {head['serial']}")

    async def leave(self) -> None:
        """Close the connection."""
        await self._exchange.leave()


async def pages(world: World, channel: str) -> list[Any]:
    """Return all messages of a channel, newest first. Raises Finding if pages overlap or never end."""
    found: list[Any] = []
    before = ""
    for _ in range(2_000):
        page = await world.expect(200, "GET", f"/v1/channels/{channel}/messages", query=before)
        found += page["messages"]
        created = [message["created"] for message in found]
        if created != sorted(set(created), reverse=True):
            raise Finding(f"pages: {created}")
        if not page["more"]:
            return found
        if not page["messages"]:
            raise Finding(f"pages: an empty page that announces more, {before}")
        before = f"before={created[-1]}"
    raise Finding("pages: the list never ends")


def as_text(value: object, default: str) -> str:
    """Return a field of an input as text. Mutation can give it any type."""
    if value is None:
        return default
    return value if isinstance(value, str) else json.dumps(value)


def as_number(value: object, default: float, most: float) -> float:
    """Return a field of an input as a number from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return float(min(max(value, 0), most))


def as_list(value: object) -> list[Any]:
    """Return a field of an input as a list."""
    return value if isinstance(value, list) else []


def as_dict(value: object) -> dict[str, Any]:
    """Return a field of an input as an object."""
    return value if isinstance(value, dict) else {}


def headers_of(listed: object) -> list[list[bytes]]:
    """Return header lines of an input as a server passes them: names in lower case, no line breaks, no NUL."""
    found = []
    for line in as_list(listed):
        if isinstance(line, list) and len(line) == 2:
            name, value = (re.sub(rb"[\r\n\0]", b"", to_bytes(one)) for one in line)
            if re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):  # RFC 9110, 5.1: no server accepts other names
                found.append([name.lower(), value.strip(b" \t")])
    return found


def world_of(setup: object) -> World:
    """Return the world that an input describes."""
    known = as_dict(setup)
    origins = tuple(one for one in as_list(known.get("origins")) if isinstance(one, str))
    return World(
        limits="default" if known.get("limits") == "default" else "small",
        by_hand=known.get("by_hand") is True,
        origins=origins,
        is_open=known.get("is_open") is True,
    )


def path_of(raw: str) -> tuple[str, bytes]:
    """Return path and raw path as uvicorn makes them from the request line."""
    data = re.sub(
        rb"[\x00-\x20\x7f?#]", b"", to_bytes(raw)
    )  # no server accepts these in a path; percent-encoded they are possible
    ascii_only = "".join(chr(one) if one < 128 else f"%{one:02X}" for one in data)
    return unquote(ascii_only) or "/", ascii_only.encode()
