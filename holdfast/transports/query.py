"""Query parameters: numbers within their bounds, or a clear refusal.

Layer: transports.

A cursor is never refused: what is not a cursor is no cursor (`core.cursor`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from holdfast.core.errors import InvalidRequest

_WHOLE = re.compile(r"[0-9]{1,16}\Z")
_MAX_FIELDS = 50  # we know seven


class Query:
    """The query of a request; of a name that stands twice the last one counts."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        """Raises InvalidRequest when there is too much of it."""
        text = scope.get("query_string", b"").decode("latin-1")
        try:
            self._fields = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)) if text else {}
        except ValueError as error:
            raise InvalidRequest(f"the query: {error}") from None

    def text(self, name: str) -> str | None:
        """The field as it stands, or None."""
        return self._fields.get(name)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """The field as a whole number, or None when it is not there. Raises InvalidRequest out of `low` to `high`."""
        text = self._fields.get(name)
        if text is None:
            return None
        return whole(text, name, low, high)


def whole(text: str, name: str, low: int, high: int) -> int:
    """`text` as a whole number. Raises InvalidRequest unless it is one from `low` to `high`."""
    if not _WHOLE.match(text) or not low <= int(text) <= high:
        raise InvalidRequest(f"{name} is a whole number from {low} to {high}")
    return int(text)
