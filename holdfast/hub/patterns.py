"""Patterns of channels, as the app gives them to a hub. You are in `hub`; what they mean is `core.patterns`."""

from __future__ import annotations

from holdfast.core.errors import LocalError
from holdfast.core.patterns import RULE, is_pattern, matches

__all__ = ["check_pattern", "matches"]


def check_pattern(pattern: str) -> str:
    """Return `pattern`; raises LocalError unless it is one."""
    if not is_pattern(pattern):
        raise LocalError(f"pattern {pattern!r}: {RULE}")
    return pattern
