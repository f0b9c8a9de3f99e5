"""The ids of answers. They follow from what is answered, so that an answer is found again after a crash.

Layer: agents.

How an id is made is relied on by answers that are stored: it may not change.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator

from holdfast.core.decide_work import ATTEMPTS
from holdfast.core.names import base32

ANSWERS = 4  # of an attempt that are looked for; hardly anybody writes as many


def reply_id(message_id: str, attempt: int, number: int = 0) -> str:
    """The id of an attempt's answer: the same wherever it is made, so that nothing is answered twice."""
    name = f"{message_id}\n{attempt}\n{number}"
    return base32(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=12).digest(), "big") >> 6, 18)


def spare_id() -> str:
    """An id for an answer whose own is taken by something else. Nobody can guess it, and so take it too."""
    return base32(secrets.randbits(90), 18)


def reply_ids(message_id: str, attempts: int = ATTEMPTS) -> Iterator[str]:
    """The ids that the answers of the first `attempts` to a message have."""
    for attempt in range(1, attempts + 1):
        for number in range(ANSWERS):
            yield reply_id(message_id, attempt, number)
