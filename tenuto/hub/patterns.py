"""Patterns of channels, as the app passes them to a hub. Layer: hub; `core.patterns` defines their meaning."""

from __future__ import annotations

from tenuto.core.errors import LocalError
from tenuto.core.names import invalid_pattern, is_pattern, matches

__all__ = ["check_pattern", "matches"]


def check_pattern(pattern: str) -> str:
    """Return `pattern`. Raises LocalError unless it is valid."""
    if not is_pattern(pattern):
        raise LocalError(invalid_pattern(pattern))
    return pattern
