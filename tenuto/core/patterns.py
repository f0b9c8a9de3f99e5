"""Channel patterns, for agents, hooks and capabilities alike (`docs/protocol.md`, 10).

Layer: core.

A pattern is a whole channel name, or ends in `*` after one of `: / .`, or is `*` alone.
"""

from __future__ import annotations

from tenuto.core.errors import shown


def is_pattern(text: str) -> bool:
    """Return whether `text` is a valid pattern."""
    stem = text.removesuffix("*")
    return "*" not in stem and (stem == text or not stem or stem[-1] in ":/.")


def invalid_pattern(text: str) -> str:
    """Return the text of the error for a `text` that is not a valid pattern."""
    return f"pattern must have its star only at the end, alone or after one of : / ., got {shown(text)}"


def matches(pattern: str, channel: str) -> bool:
    """Return whether `pattern` covers `channel`."""
    if pattern.endswith("*"):
        return channel.startswith(pattern[:-1])
    return channel == pattern
