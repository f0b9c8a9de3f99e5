"""The report of a producer about its work, in one form for all systems."""

from array import array
from collections.abc import Collection
from typing import Any

from bench.tokens import known_token, summary

__all__ = ["Sent", "appended", "summary"]

_STEP = 97  # number of tokens between the beginnings of two producers' texts
_TOKENS = [known_token(0, n) for n in range(1 << 16)]


class Sent:
    """The tokens that one producer has sent, and the duration of each of its waits.

    Each producer has its own text, known beforehand: making and keeping tokens would add to the measured work.
    """

    def __init__(self, producer: int) -> None:
        self.tokens = 0
        self.waits_s = array("d")
        self._first = producer * _STEP

    def next(self) -> str:
        """Return the next token and count it as sent."""
        token = _TOKENS[(self._first + self.tokens) % len(_TOKENS)]
        self.tokens += 1
        return token

    @property
    def text(self) -> str:
        """Return the whole text."""
        return "".join(_TOKENS[(self._first + n) % len(_TOKENS)] for n in range(self.tokens))


def appended(sent: Collection[Sent], seconds: float) -> dict[str, Any]:
    """Return the totals of a closed loop of appends."""
    ordered = sorted(wait for each in sent for wait in each.waits_s)
    return {
        "tokens": sum(each.tokens for each in sent),
        "seconds": seconds,
        "wait_ms": [ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99)] if ordered else [],
        "fewest": min(
            each.tokens for each in sent
        ),  # number of tokens of the producer that sent fewest, which shows whether all were served
    }
