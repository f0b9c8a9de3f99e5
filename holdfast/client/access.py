"""Where the server is, and how we say who we are.

Layer: client.

Tokens travel in a header or an `auth` frame, never in a URL, and are in no error and no log.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from holdfast.client.problems import Unreachable
from holdfast.core.errors import HoldfastError, LocalError
from holdfast.core.names import check_id

logger = logging.getLogger("holdfast.client")

TokenProvider = Callable[[], Awaitable[str]]

PROVIDER_S = 30.0  # for the app to come up with a token
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class ServerAccess:
    """The server's address and this client's identity, shared by all its connections."""

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
            raise LocalError("either a token, or a token_provider")
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise LocalError("the server's url is like https://host/holdfast")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise LocalError("the server's url has a host and a path, and nothing else")
        self._scheme = _SCHEMES[parts.scheme]
        self._place = parts.netloc + parts.path.rstrip("/")
        self._query = {"client": check_id(client_id, "a client id")} if client_id is not None else {}
        self._token = _checked(token) if token is not None else None
        self._provider = token_provider
        self._now = now

    @property
    def address(self) -> str:
        """Where the hub is, for people: as it was given, and nothing secret in it."""
        return f"{'https' if self._scheme == 'wss' else 'http'}://{self._place}"

    @property
    def has_token(self) -> bool:
        """Is there anything to say who we are?"""
        return self._token is not None or self._provider is not None

    @property
    def can_renew(self) -> bool:
        """Is there anybody to ask for another token?"""
        return self._provider is not None

    def socket_url(self) -> str:
        """Where the WebSocket is."""
        return self._address(self._scheme, "/v1/ws", self._query)

    def http_url(self, *path: str, **query: str) -> str:
        """Where something is over HTTP; `path` in segments that are not encoded yet."""
        scheme = "https" if self._scheme == "wss" else "http"
        return self._address(scheme, "".join("/" + quote(one, safe="") for one in path), {**self._query, **query})

    async def headers(self) -> dict[str, str]:
        """The headers that go with every request. Raises Unreachable when no token can be had."""
        headers = {"Holdfast-Client": "python"}
        token = await self.token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    async def token(self) -> str | None:
        """The token, asked for where there is none. Raises Unreachable, LocalError."""
        if self._token is None and self._provider is not None:
            try:
                async with asyncio.timeout(PROVIDER_S):
                    self._token = _checked(await self._provider())
            except HoldfastError:
                raise
            except Exception as error:
                # By its kind alone: what an app's exception says may hold what is not for a log.
                logger.warning("the token provider failed: %s", type(error).__name__)
                raise Unreachable("the token provider failed") from None
        return self._token

    def forget_token(self) -> bool:
        """The token is no good any more; false when there is no other to be had."""
        if self._provider is not None:
            self._token = None
        return self._provider is not None

    def token_left_s(self) -> float | None:
        """How long the token lasts, where it says so; None where it does not, or cannot be renewed."""
        expires = _expiry(self._token) if self._token is not None and self._provider is not None else None
        return None if expires is None else max(0.0, expires - self._now())

    def _address(self, scheme: str, path: str, query: dict[str, str]) -> str:
        return f"{scheme}://{self._place}{path}" + (f"?{urlencode(query)}" if query else "")


def _checked(token: str) -> str:
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        raise LocalError("a token is a line of ASCII text")
    return token


def _expiry(token: str) -> float | None:
    """When a JWT ends, in seconds since 1970. Nothing is verified: that is the server's part."""
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==="))
        return float(claims["exp"])
    except (ValueError, IndexError, KeyError, TypeError):
        return None
