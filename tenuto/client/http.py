"""The requests over HTTP: reading one message, and the present members.

Layer: client. Only this module knows `httpx2`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from tenuto.client.access import ServerAccess
from tenuto.client.dial import problem_in, retry_after_s
from tenuto.client.problems import NotTenuto, Unreachable, error_of
from tenuto.client.timing import Timing
from tenuto.core.errors import LocalError, TenutoError, Unauthenticated

if TYPE_CHECKING:
    from random import Random

    import httpx2


class Http:
    """Sends requests over HTTP, and repeats them while the server does not respond."""

    def __init__(
        self, access: ServerAccess, *, timing: Timing, random: Random, transport: httpx2.AsyncBaseTransport | None
    ) -> None:
        self._access = access
        self._timing = timing
        self._random = random
        self._transport = transport
        self._client: httpx2.AsyncClient | None = None
        self._has_responded = False  # True: a Tenuto server has responded, so the address is right

    async def get(self, *path: str, **query: str) -> dict[str, Any]:
        """Return the response to a GET request; `path` is a list of segments.

        Raises the server's refusal; Unreachable.
        """
        url = self._access.http_url(*path, **query)
        failures, why = 0, "no response"
        wait_s = self._timing.request_s if self._has_responded else min(self._timing.connect_s, self._timing.request_s)
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    result, stay_away_s = await self._once(url)
                    if isinstance(result, dict):
                        return result
                    failures += 1
                    may_pass = result.retry or (isinstance(result, Unauthenticated) and failures == 1)
                    if not may_pass or (isinstance(result, Unauthenticated) and not self._access.forget_token()):
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
        try:
            import httpx2
        except ImportError:
            raise LocalError(
                "Client needs the package httpx2; install Tenuto with [client], as its README shows"
            ) from None

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
            return _decoded(response.content), 0.0
        if not problem:
            detail = (
                f"{self._access.address} responded {response.status_code}, unlike a Tenuto server; the hub may be at "
                "another port or path, such as /tenuto"
            )
            return Unreachable(detail) if response.status_code >= 500 else NotTenuto(detail), 0.0
        return error_of(problem), retry_after_s(response.headers.get("retry-after", ""))


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise TenutoError(
            f"the server's response is not valid: {error}; check that client and server are of compatible versions"
        ) from None
