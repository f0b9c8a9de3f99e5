"""Headers and the query of a request, the address of its peer, and whether that is the operator.

Layer: transports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from tenuto.core.errors import InvalidRequest
from tenuto.hub.access.identity import Scope
from tenuto.hub.keep.control import CONTROL


def is_operator(scope: Mapping[str, Any]) -> bool:
    """Return whether the request came on the control socket, a file that only the user of this server can open."""
    return CONTROL in (scope.get("extensions") or ())


def peer_of(scope: Scope) -> str:
    """Return the address of the peer as the server sees it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


_WHOLE = re.compile(r"[0-9]{1,16}\Z")
_MAX_FIELDS = 50  # limit of query parameters; the protocol defines seven


class Query:
    """The query parameters of a request. If a name is repeated, its last value counts."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        """Parse the query. Raises InvalidRequest if it has too many parameters."""
        text = scope.get("query_string", b"").decode("latin-1")
        try:
            self._fields = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)) if text else {}
        except ValueError as error:
            raise InvalidRequest(f"the query has more than {_MAX_FIELDS} fields: {error}") from None

    def text(self, name: str) -> str | None:
        """Return the parameter `name` as text, or None."""
        return self._fields.get(name)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Return the parameter `name` as a whole number; None if missing.

        Raises InvalidRequest outside `low` to `high`.
        """
        text = self._fields.get(name)
        if text is None:
            return None
        return whole(text, name, low, high)


def whole(text: str, name: str, low: int, high: int) -> int:
    """Return `text` as a whole number. Raises InvalidRequest unless it is one from `low` to `high`."""
    if not _WHOLE.match(text) or not low <= int(text) <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, got {text[:50]!r}")
    return int(text)
