"""What a client needs to reach a server: credentials, WebSockets, HTTP requests, their exceptions and time limits.

Layer: client. Only this module knows `httpx2` and `websockets`.

Tokens travel in a header or an `auth` frame, never in a URL. No error and no log contains one. The server's codes
become the classes of `core.errors`, so that code runs unchanged in process and over the network; an unknown code
becomes an UnknownProblem. Any other carrier of text frames may replace `websockets` (`Client(dial=…)`), such as a
connection in memory.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import msgspec

from tenuto.core import errors
from tenuto.core.errors import LocalError, TenutoError, Unauthenticated, shown, shown_url
from tenuto.core.names import check_id

if TYPE_CHECKING:
    import httpx2


logger = logging.getLogger("tenuto.client")

TokenProvider = Callable[[], Awaitable[str]]

PROVIDER_S = 30.0  # time in which the app's token provider must return a token
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class ServerAccess:
    """The server's address and this client's credentials, shared by all its connections."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        token_provider: TokenProvider | None,
        client_id: str | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        if token is not None and token_provider is not None:
            raise LocalError("Client got both a token and a token_provider; give one of them")
        parts = check_address(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise LocalError(
                f"url must have a host and a path only, got {shown_url(url)} with a user, a query or a fragment; "
                "give credentials as token=..."
            )
        scheme = _SCHEMES[parts.scheme]
        mount = parts.netloc + parts.path.rstrip("/")  # host, port and path of the hub
        self._query = f"?{urlencode({'client': check_id(client_id, 'a client id')})}" if client_id is not None else ""
        # the hub's address as it was given, also for error messages: it contains no secret
        self.address = f"{'https' if scheme == 'wss' else 'http'}://{mount}"
        self.socket_url = f"{scheme}://{mount}/v1/ws{self._query}"  # of the WebSocket
        self._token = _checked_token(token) if token is not None else None
        self._provider = token_provider
        self._now = now

    @property
    def has_token(self) -> bool:
        """Return whether there is a token or a provider of tokens."""
        return self._token is not None or self._provider is not None

    def unlike_ours(self, status: int, kind: str = "") -> str:
        """Return the error text for a `status` unlike a Tenuto server's; `kind` is added, such as " to a WebSocket"."""
        return (
            f"{self.address} responded {status}{kind}, unlike a Tenuto server; the hub may be at another scheme, port "
            "or path, such as https or /tenuto"
        )

    def http_url(self, *path: str) -> str:
        """Return the HTTP URL of `path`, which is given in segments that are not encoded yet."""
        return self.address + "".join("/" + quote(one, safe="") for one in path) + self._query

    async def headers(self) -> dict[str, str]:
        """Return the headers of every request. Raises Unreachable if the provider returns no token."""
        headers = {"Tenuto-Client": "python"}
        token = await self.token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    async def token(self) -> str | None:
        """Return the token; without one, request it from the provider. Raises Unreachable, LocalError."""
        if self._token is None and self._provider is not None:
            try:
                async with asyncio.timeout(PROVIDER_S):
                    self._token = _checked_token(await self._provider())
            except TenutoError:  # such as that of `_checked_token`
                raise
            except Exception as error:
                # Log only the class: the text of an app's exception may contain a secret.
                logger.warning("the token provider failed: %s", type(error).__name__)
                raise Unreachable(
                    f"token_provider failed with {type(error).__name__}; see the log of the app"
                ) from None
        return self._token

    def forget_token(self) -> bool:
        """Drop a token that the server refused. Return whether a provider can return another one."""
        if self._provider is not None:
            self._token = None
        return self._provider is not None

    def token_left_s(self) -> float | None:
        """Return the seconds until the token expires; None if it has no expiry or cannot be renewed."""
        expires = _expiry(self._token) if self._token is not None and self._provider is not None else None
        return None if expires is None else max(0.0, expires - self._now())


def check_address(url: object, *, name: str = "url", example: str = "'https://host/tenuto'") -> SplitResult:
    """Return the parts of `url`. Raises LocalError, with the setting's `name`, unless it has a scheme and a host."""
    form = f"{name} must be like {example}"
    if not isinstance(url, str):
        raise LocalError(f"{form}, got {shown(url)}")
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # the system's look-up encodes a name like this
    except ValueError:
        parts = SplitResult("", "", "", "", "")  # refused below
    if parts.scheme not in _SCHEMES or not parts.hostname or not parts.netloc.isprintable() or " " in parts.netloc:
        raise LocalError(f"{form}, got {shown_url(url)}")
    try:
        has_valid_port = parts.port is None or parts.port > 0
    except ValueError:  # of `port`, for a number that is too high, or for a text
        has_valid_port = False
    if not has_valid_port:
        raise LocalError(f"{form}, with a port from 1 to 65535 or none, got {shown_url(url)}")
    return parts


def _checked_token(token: str) -> str:
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        found = f"a str of {len(token)} characters" if isinstance(token, str) else type(token).__name__
        raise LocalError(f"token must be one line of printable ASCII text, got {found}")
    return token


def _expiry(token: str) -> float | None:
    """Return the expiry of a JWT, in seconds since 1970; None if it has none, or is no JWT. It is not verified here."""
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==="))  # padding, which a JWT lacks
        return float(claims["exp"])
    except (ValueError, IndexError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All time limits of a client, in seconds."""

    connect_s: float = 5.0  # time limit for the very first connection; beyond it, the address is probably wrong
    open_s: float = 10.0  # time limit for opening a socket, since some proxies never respond to an upgrade
    silence_s: float = 14.0  # time without any frame after which a connection is broken; the server pings every 5 s
    response_s: float = 20.0  # time without a response after which it is broken, even if other frames arrive
    send_s: float = 14.0  # time in which the connection must accept a frame
    request_s: float = 30.0  # time limit of one call, over any number of connections
    # A delay is random, from 0 up to a limit that doubles ("full jitter"), so that the clients of a restarted server
    # spread out. The first limit is far below the 3 s that a writer's lease has left when its socket broke.
    backoff_s: float = 0.5
    backoff_cap_s: float = 5.0  # the limit doubles no further: a third of `client.LEASE_S`, for an outage of up to 10 s
    # A connection that breaks sooner than this counts as one more failure. With a much longer time, an outage and then
    # a broken connection would cost a turn.
    stable_s: float = 1.0
    retry_s: float = 0.25  # first limit of the delay after the store or the hub had no room
    leave_s: float = 10.0  # time limit for ending a message whose block ended early

    def backoff(self, failures: int, random: Random) -> float:
        """Return the delay before the next connection, after `failures` failures in a row (at least 1)."""
        return random.uniform(0, self._ceiling(self.backoff_s, failures))

    def retry(self, failures: int, random: Random) -> float:
        """Return the delay before a request is repeated, after `failures` refusals for now: at least half its limit."""
        ceiling_s = self._ceiling(self.retry_s, failures)
        return ceiling_s / 2 + random.uniform(0, ceiling_s / 2)

    def _ceiling(self, base_s: float, failures: int) -> float:
        doubled: float = base_s * 2 ** min(failures - 1, 16)  # a higher power of 2 could overflow
        return min(self.backoff_cap_s, doubled)


T = TypeVar("T")

_COMMON_FIELDS = ("type", "title", "status", "detail", "code", "ref")  # a problem's other fields are its details


class Unreachable(TenutoError):
    """The server did not respond in time. The outcome of the request is unknown; it is safe to repeat it."""

    code, status, retry, title = "unreachable", 503, True, "Unreachable"


class NotTenuto(TenutoError):
    """A server responds at the address, but not as a Tenuto server does: another port, path or program."""

    code, status, title = "not_tenuto", 502, "Not a Tenuto server"


class UnknownProblem(TenutoError):
    """The server refused with a `code` that this client does not know."""

    def __init__(self, detail: str, *, code: str, status: int, title: str, **details: Any) -> None:
        super().__init__(detail or title, **details)
        # in other errors these are attributes of the class, by its code
        vars(self).update(code=code, status=status, title=title, retry=status in (429, 502, 503, 504))


def error_of(problem: dict[str, Any]) -> TenutoError:
    """Return the exception for a problem object or an `error` frame."""
    code, detail = str(problem.get("code", "internal")), str(problem.get("detail", ""))
    details = {name: value for name, value in problem.items() if name not in _COMMON_FIELDS}
    known = _KNOWN.get(code)
    if known is not None:
        return known(detail, **details)
    status = problem.get("status")
    status = status if isinstance(status, int) else 500
    return UnknownProblem(detail, code=code, status=status, title=str(problem.get("title", code)), **details)


def given(**fields: Any) -> dict[str, Any]:
    """Return the `fields` that are not None; the server has defaults for missing ones."""
    return {name: value for name, value in fields.items() if value is not None}


def decode_response(response: dict[str, Any] | bytes, kind: type[T]) -> T:
    """Return the fields of a response, or its body, as an object of type `kind`.

    Raises TenutoError if they do not follow the protocol.
    """
    try:
        return (
            msgspec.json.decode(response, type=kind) if isinstance(response, bytes) else msgspec.convert(response, kind)
        )
    except msgspec.DecodeError as error:
        raise TenutoError(
            f"the server's response is not valid: {error}; check that client and server are of compatible versions"
        ) from None


_KNOWN: dict[str, type[TenutoError]] = {
    one.code: one
    for one in (*vars(errors).values(), Unreachable)
    if isinstance(one, type) and issubclass(one, TenutoError) and one is not LocalError
}


SUBPROTOCOL = "tenuto.v1"
_NEEDS = "Client needs the package {}; install Tenuto with [client], as its README shows"
CLOSE_S = 1.0  # time in which the peer can confirm a close; the client does not need the confirmation

# At the level DEBUG the library logs all headers, one of which contains the token.
_silent = logging.Logger("tenuto.client.websocket")
_silent.disabled = True


class Closed(Exception):
    """The connection has ended; `code` is None if it ended without a close frame."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Refusal(Exception):
    """The server or a proxy refused the upgrade; `problem` is empty if the response is not a Tenuto server's."""

    def __init__(self, status: int, problem: dict[str, Any], retry_after_s: float) -> None:
        super().__init__(f"{status} {problem.get('code', '')}")
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s


class FrameSocket(Protocol):
    """A connection that carries text frames."""

    async def send(self, text: str) -> None:
        """Send a frame; waits while the peer accepts none. Raises Closed."""

    async def receive(self) -> str:
        """Return the next frame. Raises Closed."""

    async def close(self) -> None:
        """End the connection, also while another task reads or writes."""


Dial = Callable[[str, dict[str, str]], Awaitable[FrameSocket]]


class _WebSocket:
    def __init__(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed  # here, because the package is optional

        self._connection = connection
        self._closed_error = ConnectionClosed

    async def send(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except self._closed_error as error:
            raise _closed_as(error) from None

    async def receive(self) -> str:
        try:
            frame = await self._connection.recv()
        except self._closed_error as error:
            raise _closed_as(error) from None
        if not isinstance(frame, str):
            raise Closed(reason="the server sent a binary frame")
        return frame

    async def close(self) -> None:
        await self._connection.close()


def websocket_dial(*, frame_bytes: int) -> Dial:
    """Return a function that opens WebSockets, for frames of at most `frame_bytes`.

    Raises LocalError without the library.
    """
    try:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidProxy, InvalidStatus
        from websockets.typing import Subprotocol
    except ImportError:
        raise LocalError(_NEEDS.format("websockets")) from None

    class Connect(connect):
        def process_redirect(self, exc: Exception) -> Exception | str:
            return exc  # no redirect is followed, also not to a WebSocket's address: later frames carry tokens

    async def dial(url: str, headers: dict[str, str]) -> FrameSocket:
        try:
            connection = await Connect(
                url,
                additional_headers=headers,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                max_size=frame_bytes,
                open_timeout=None,  # no timeout here, because the caller has one
                ping_interval=None,  # no pings here, because the protocol has its own
                close_timeout=CLOSE_S,
                logger=_silent,
            )
        except InvalidStatus as error:
            response = error.response
            body, after = response.body or b"", response.headers.get("Retry-After", "")
            raise Refusal(response.status_code, problem_in(bytes(body)), retry_after_s(after)) from None
        except (InvalidHandshake, EOFError) as error:
            raise OSError(str(error)) from None
        except (InvalidProxy, ImportError) as error:
            why = error.msg if isinstance(error, ImportError) else "its address is invalid"  # and may contain secrets
            raise LocalError(f"the proxy in the environment (HTTPS_PROXY, …) cannot be used: {why}") from None
        return _WebSocket(connection)

    return dial


def problem_in(body: bytes) -> dict[str, Any]:
    """Return the problem object in `body`; empty if `body` holds no such object."""
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) and isinstance(problem.get("code"), str) else {}


def retry_after_s(value: str) -> float:
    """Return the seconds in a `Retry-After` header, at most 300; 0 without a number, as for a date."""
    return min(float(value), 300.0) if value.isascii() and value.isdigit() and len(value) < 10 else 0.0


def _closed_as(error: Any) -> Closed:
    if error.rcvd is not None:
        return Closed(error.rcvd.code, error.rcvd.reason)
    # The client closed the connection because a frame was too large; the frame would be as large next time.
    return Closed(1009 if error.sent is not None and error.sent.code == 1009 else None)


@dataclass(eq=False)
class Http:
    """Sends requests over HTTP, and repeats them while the server does not respond."""

    _access: ServerAccess
    _timing: Timing
    _random: Random
    _transport: httpx2.AsyncBaseTransport | None
    _client: httpx2.AsyncClient | None = None
    _has_responded: bool = False  # True: a Tenuto server has responded, so a call may take longer than `connect_s`

    async def get(self, *path: str) -> dict[str, Any]:
        """Return the response to a GET request; `path` is a list of segments.

        Raises the server's refusal; Unreachable.
        """
        url = self._access.http_url(*path)
        failures, why = 0, "no response"
        wait_s = self._timing.request_s if self._has_responded else min(self._timing.connect_s, self._timing.request_s)
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    result, stay_away_s = await self._once(url)
                    if isinstance(result, dict):
                        return result
                    failures += 1
                    is_old_token = isinstance(result, Unauthenticated) and failures == 1  # only at the first failure
                    if not (result.retry or (is_old_token and self._access.forget_token())):
                        raise result
                    why = result.detail or result.code
                    await asyncio.sleep(stay_away_s + self._timing.backoff(failures, self._random))
        except TimeoutError:
            raise Unreachable(
                f"{self._access.address} did not respond within {wait_s:g} s ({why}); check that the server runs "
                "there, and that port and path are right"
            ) from None

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _once(self, url: str) -> tuple[dict[str, Any] | TenutoError, float]:
        """Return the response or an error, and the seconds for which the server asks to be left alone."""
        try:
            import httpx2
        except ImportError:
            raise LocalError(_NEEDS.format("httpx2")) from None

        if self._client is None:
            self._client = httpx2.AsyncClient(timeout=self._timing.response_s, transport=self._transport)
        try:
            response = await self._client.get(url, headers=await self._access.headers())
        except httpx2.TransportError as error:
            # Show only the class of other exceptions: some repeat a header, and one header contains the token.
            why = str(error) if isinstance(error, httpx2.ConnectError) else type(error).__name__
            return Unreachable(why), 0.0
        problem = problem_in(response.content)
        self._has_responded = self._has_responded or response.status_code == 200 or bool(problem)
        if response.status_code == 200:
            return decode_response(response.content, dict[str, Any]), 0.0
        if not problem:
            detail = self._access.unlike_ours(response.status_code)
            return Unreachable(detail) if response.status_code >= 500 else NotTenuto(detail), 0.0
        return error_of(problem), retry_after_s(response.headers.get("retry-after", ""))
