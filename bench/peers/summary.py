"""What producers of all systems report of their work, in one form."""

import hashlib
from typing import Any

__all__ = ["appended", "summary"]


def summary(text: str, message_id: str) -> dict[str, Any]:
    """What was sent to one channel, as the load client compares it."""
    return {"id": message_id, "length": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def appended(waits: list[list[float]], sent: dict[str, list[str]], seconds: float) -> dict[str, Any]:
    """What a closed loop of appends has done: `waits` by producer, one for each time it awaited durability."""
    ordered = sorted(wait for each in waits for wait in each)
    return {
        "tokens": sum(len(tokens) for tokens in sent.values()),
        "seconds": seconds,
        "wait_ms": [ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99)] if ordered else [],
        "fewest": min(len(tokens) for tokens in sent.values()),  # of a producer: was everybody served?
    }
