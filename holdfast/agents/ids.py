"""The ids of answers, computed from the id of the answered message, so that an answer is found again after a crash.

Layer: agents.

The computation must not change: stored answers have ids that it made.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator

from holdfast.core.names import base32
from holdfast.core.turns import ATTEMPTS

ANSWERS = 4  # number of answers of one attempt to search for; more are rare


def reply_id(message_id: str, attempt: int, number: int = 0) -> str:
    """Return the id of an attempt's answer.

    Every process computes the same id, so that no message is answered twice.
    """
    name = f"{message_id}\n{attempt}\n{number}"
    return base32(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=12).digest(), "big") >> 6, 18)


def spare_id() -> str:
    """Return a random id for an answer whose computed id is taken.

    A client cannot guess it, and so cannot take it, too.
    """
    return base32(secrets.randbits(90), 18)


def reply_ids(message_id: str, attempts: int = ATTEMPTS) -> Iterator[str]:
    """Yield the ids of the answers of the first `attempts` at a message."""
    for attempt in range(1, attempts + 1):
        for number in range(ANSWERS):
            yield reply_id(message_id, attempt, number)
