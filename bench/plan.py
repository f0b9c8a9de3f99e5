"""The plan of a soak: all events with their times, drawn from a seed.

Conversations begin at a steady pace, stream for a while and end. Viewers come and go, by SSE and WebSocket, are
disconnected, and resume with their cursors. Times are seconds since the beginning of the soak.
"""

import random
from dataclasses import dataclass

MESSAGE = "answer"  # the id of each conversation's message
TOKENS_PER_S = 20
LASTS_S = (2.0, 20.0)  # minimum and maximum of the time from the first token of a conversation to its last
_VIEWERS = (1, 4)
_AWAY_S = 2.0  # maximum time between a cut and the reconnect


@dataclass(frozen=True)
class Visit:
    """One viewer's stay. `cuts` are pairs of times: of the disconnect and of the reconnect."""

    kind: str
    arrives_s: float
    leaves_s: float | None  # None: it stays until it shows the whole answer
    cuts: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Conversation:
    """One answer in a channel of its own; its text is that of `seed`."""

    seed: int
    starts_s: float
    tokens: int
    visits: tuple[Visit, ...]

    @property
    def channel(self) -> str:
        return f"bench:soak-{self.seed}"


def conversations(
    *, seconds: float, live: int, lasts_s: tuple[float, float] = LASTS_S, seed: int = 1
) -> list[Conversation]:
    """Return conversations that end within `seconds`, of which about `live` stream at any time."""
    random_ = random.Random(seed)
    found: list[Conversation] = []
    starts_s = 0.0
    while (starts_s := starts_s + sum(lasts_s) / 2 / live) < seconds:
        length_s = random_.uniform(*lasts_s)
        visits = tuple(_visit(random_, starts_s, length_s) for _ in range(random_.randint(*_VIEWERS)))
        if starts_s + length_s < seconds:
            found.append(Conversation(len(found), starts_s, int(length_s * TOKENS_PER_S), visits))
    return found


def _visit(random_: random.Random, starts_s: float, lasts_s: float) -> Visit:
    """Return a visit: some begin before the first token, some late, some after the end; a third end early."""
    arrives_s = starts_s + random_.uniform(-0.1, 1.1) * lasts_s
    ends_s = max(arrives_s, starts_s + lasts_s)
    leaves_s = random_.uniform(arrives_s, ends_s) if random_.random() < 1 / 3 else None
    until_s = ends_s if leaves_s is None else leaves_s
    cuts = []
    at_s = arrives_s
    for _ in range(random_.choice((0, 0, 1, 3))):
        at_s = random_.uniform(at_s, until_s)
        back_s = at_s + random_.uniform(0, _AWAY_S)
        cuts.append((at_s, back_s))
        at_s = back_s
        if at_s > until_s:  # a viewer that is disconnected at the end reconnects once more and gets the rest
            break
    return Visit(random_.choice(("sse", "websocket")), max(0.0, arrives_s), leaves_s, tuple(cuts))
