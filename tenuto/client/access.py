"""The address of the server, and the credentials of this client.

Layer: client.

Tokens travel in a header or an `auth` frame, never in a URL. No error and no log contains one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from tenuto.client.problems import Unreachable
from tenuto.core.errors import LocalError, TenutoError, shown, shown_url
from tenuto.core.names import check_id

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
        self._scheme = _SCHEMES[parts.scheme]
        self._mount = parts.netloc + parts.path.rstrip("/")
        self._query = {"client": check_id(client_id, "a client id")} if client_id is not None else {}
        self._token = _checked(token) if token is not None else None
        self._provider = token_provider
        self._now = now

    @property
    def address(self) -> str:
        """Return the hub's address as it was given, for error messages. It contains no secret."""
        return f"{'https' if self._scheme == 'wss' else 'http'}://{self._mount}"

    @property
    def has_token(self) -> bool:
        """Return whether there is a token or a provider of tokens."""
        return self._token is not None or self._provider is not None

    @property
    def can_renew(self) -> bool:
        """Return whether a provider can return another token."""
        return self._provider is not None

    def socket_url(self) -> str:
        """Return the URL of the WebSocket."""
        return self._address(self._scheme, "/v1/ws", self._query)

    def http_url(self, *path: str, **query: str) -> str:
        """Return the HTTP URL of `path`, which is given in segments that are not encoded yet."""
        scheme = "https" if self._scheme == "wss" else "http"
        return self._address(scheme, "".join("/" + quote(one, safe="") for one in path), {**self._query, **query})

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
                    self._token = _checked(await self._provider())
            except TenutoError:
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

    def _address(self, scheme: str, path: str, query: dict[str, str]) -> str:
        return f"{scheme}://{self._mount}{path}" + (f"?{urlencode(query)}" if query else "")


def check_address(url: object, *, name: str = "url", example: str = "'https://host/tenuto'") -> SplitResult:
    """Return the parts of `url`. Raises LocalError, with the setting's `name`, unless it has a scheme and a host."""
    form = f"{name} must be like {example}"
    if not isinstance(url, str):
        raise LocalError(f"{form}, got {shown(url)}")
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # the system's look-up encodes a name like this
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if parts.scheme not in _SCHEMES or not parts.hostname or not parts.netloc.isprintable() or " " in parts.netloc:
        raise LocalError(f"{form}, got {shown_url(url)}")
    try:
        is_port = parts.port is None or parts.port > 0
    except ValueError:
        is_port = False
    if not is_port:
        raise LocalError(f"{form}, with a port from 1 to 65535 or none, got {shown_url(url)}")
    return parts


def _checked(token: str) -> str:
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        found = f"a str of {len(token)} characters" if isinstance(token, str) else type(token).__name__
        raise LocalError(f"token must be one line of printable ASCII text, got {found}")
    return token


def _expiry(token: str) -> float | None:
    """Return the expiry of a JWT, in seconds since 1970. Only the server verifies the token."""
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==="))
        return float(claims["exp"])
    except (ValueError, IndexError, KeyError, TypeError):
        return None
