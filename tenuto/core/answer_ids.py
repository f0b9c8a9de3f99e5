"""The ids of answers, computed from the id of the answered message, so that an answer is found again after a crash.

Layer: core. Agents name their answers by these ids, and a decision finds the attempt of an answer by its id.

The computation must not change: stored answers have ids that it made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from tenuto.core.names import base32
from tenuto.core.turns import ATTEMPTS, ROUND, attempt_of

ANSWERS = 4  # number of answers of one attempt to search for; more are rare


def reply_id(message_id: str, attempt: int, number: int = 0) -> str:
    """Return the id of an attempt's answer.

    Every process computes the same id, so that no message is answered twice.
    """
    name = f"{message_id}\n{attempt}\n{number}"
    return base32(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=12).digest(), "big") >> 6, 18)


def reply_ids(message_id: str, attempts: int = ATTEMPTS) -> Iterator[str]:
    """Yield the ids of the answers of the first `attempts` at a message."""
    for attempt in range(1, attempts + 1):
        for number in range(ANSWERS):
            yield reply_id(message_id, attempt, number)


def earlier_attempt(message_id: str, answer_id: str, generation: int) -> int | None:
    """Return the attempt before `generation`, of the last two rounds, that gives its answers the id `answer_id`."""
    for earlier in range(generation - 1, max(0, generation - 2 * ROUND), -1):
        if 1 <= attempt_of(earlier) <= ATTEMPTS and any(
            answer_id == reply_id(message_id, earlier, number) for number in range(ANSWERS)
        ):
            return earlier
    return None
