"""Attempts at deleted messages whose handlers may still run.

Layer: hub.
"""

from __future__ import annotations

from collections import OrderedDict

MAX_UNENDED = 10_000  # number of handlers of deleted messages to remember; each takes some 200 bytes


class UnendedAttempts:
    """For deleted messages: the last attempt whose handler, in another process, may not have ended.

    It may still send `turn.done` after the message was created again, so new attempts get numbers above this one.
    """

    def __init__(self) -> None:
        self._attempts: OrderedDict[tuple[str, str], int] = OrderedDict()

    def note(self, channel: str, message_id: str, attempt: int) -> None:
        """Note that the handler of `attempt` may still run."""
        key = (channel, message_id)
        self._attempts[key] = max(attempt, self._attempts.pop(key, 0))
        if len(self._attempts) > MAX_UNENDED:
            self._attempts.popitem(last=False)

    def attempt(self, channel: str, message_id: str) -> int:
        """Return the last attempt at a deleted message with this id whose handler may still end it, or 0."""
        return self._attempts.get((channel, message_id), 0)
