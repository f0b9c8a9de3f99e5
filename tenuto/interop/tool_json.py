"""JSON of tools that parts and responses can carry.

Layer: interop.
"""

from __future__ import annotations

from typing import Any

import msgspec

LEVELS = 60  # of nested values; parts may have 64, and `json.dumps` ends at about 1,000


def value_of(text: str) -> Any:
    """Return the value of the JSON in `text`. Raises ValueError if it is none, or has too many nested levels."""
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    nested = [value]
    for _ in range(LEVELS):
        nested = [
            inner
            for outer in nested
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not nested:
            return value
    raise ValueError(f"JSON is nested deeper than {LEVELS} levels")
