"""Channel patterns, for agents, hooks and capabilities alike (`docs/protocol.md`, 12).

You are in `hub`. A pattern is a channel's whole name, or ends in `*` after one of `: / .`, or is `*` alone.
"""

from __future__ import annotations

from holdfast.core.errors import LocalError


def check_pattern(pattern: str) -> str:
    """Return `pattern`; raises LocalError unless it is one."""
    stem = pattern.removesuffix("*")
    if "*" in stem or (stem != pattern and stem and stem[-1] not in ":/."):
        raise LocalError(f"pattern {pattern!r}: a star stands only at the end, alone or after one of : / .")
    return pattern


def matches(pattern: str, channel: str) -> bool:
    """Does `channel` fall under `pattern`?"""
    if pattern.endswith("*"):
        return channel.startswith(pattern[:-1])
    return channel == pattern
