"""The viewers of a soak, in the load client: they connect, are disconnected, resume and leave as the plan says.

The text of each conversation is known beforehand. A viewer that leaves early must show a beginning of it, a viewer that
stays all of it. The first wrong fact of each viewer is recorded, and makes the run void.
"""

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from bench import plan
from bench.tokens import known_text
from bench.viewers import Connection, Viewer
from proof.wirecheck import Json

__all__ = ["Visits"]

_POLL_S = 0.05  # between two checks whether a viewer shows everything
_PATIENCE_S = 15.0  # time after the end of a conversation in which viewers must show all of it


class Dialler(Protocol):
    """The methods of the load client that visits use."""

    def dial(self, viewer: Viewer, port: int, prefix: str = "") -> Connection: ...
    def hang_up(self, connection: Connection) -> None: ...
    def turn(self, timeout_s: float) -> bool: ...


class _Visitor:
    """One viewer on its visit."""

    def __init__(self, conversation: plan.Conversation, visit: plan.Visit) -> None:
        self.conversation = conversation
        self.visit = visit
        self.viewer = Viewer(visit.kind, conversation.channel)
        self.connection: Connection | None = None


class Visits:
    """All visits. Call `run` repeatedly, each time for a short while."""

    def __init__(self, load: Dialler) -> None:
        self._load = load
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []  # a heap; the number keeps equal times in order
        self._numbers = itertools.count()
        self._counts: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._port: int | None = None

    def run(self, *, port: int, started_s: float, planned: Json, until_s: float) -> Json:
        """Continue until `until_s` (CLOCK_MONOTONIC). Return the counters so far and the number of pending actions."""
        if self._port is None:
            self._port = port
            for conversation in plan.conversations(**planned):
                for visit in conversation.visits:
                    self._plan(_Visitor(conversation, visit), started_s)
        while (now_s := time.monotonic()) < until_s:
            while self._agenda and self._agenda[0][0] <= now_s:
                heapq.heappop(self._agenda)[2]()
            next_s = min(self._agenda[0][0], until_s) if self._agenda else until_s
            self._load.turn(min(_POLL_S, max(0.0, next_s - time.monotonic())))
        wrong = {"wrong": len(self._wrong), "example": self._wrong[0] if self._wrong else None}
        return dict(self._counts) | wrong | {"left": len(self._agenda)}

    def _plan(self, visitor: _Visitor, started_s: float) -> None:
        visit = visitor.visit
        self._at(started_s + visit.arrives_s, lambda: self._dial(visitor))
        for at_s, back_s in visit.cuts:
            self._at(started_s + at_s, lambda: self._cut(visitor))
            self._at(started_s + back_s, lambda: self._dial(visitor))
        ends_s = visitor.conversation.starts_s + visitor.conversation.tokens / plan.TOKENS_PER_S
        last_s = max([visit.arrives_s, visit.leaves_s or ends_s, *(back_s for _, back_s in visit.cuts)])
        if visit.leaves_s is not None:
            self._at(started_s + last_s, lambda: self._leave(visitor))
        else:
            self._at(started_s + last_s, lambda: self._stay(visitor, started_s + last_s + _PATIENCE_S))

    def _at(self, at_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._numbers), do))

    def _dial(self, visitor: _Visitor) -> None:
        assert self._port is not None
        visitor.connection = self._load.dial(visitor.viewer, self._port)
        self._counts["connections"] += 1

    def _cut(self, visitor: _Visitor) -> None:
        """Close its connection at any point of the stream."""
        if visitor.connection is not None:
            if visitor.connection.session.is_over:
                self._wrong.append(f"the server ended a connection on {visitor.conversation.channel}")
            self._load.hang_up(visitor.connection)
            visitor.connection = None

    def _stay(self, visitor: _Visitor, until_s: float) -> None:
        """Leave once everything is shown."""
        now_s = time.monotonic()
        if visitor.viewer.checker.status(plan.MESSAGE) == "complete" or now_s > until_s:
            self._leave(visitor)
        else:
            self._at(now_s + _POLL_S, lambda: self._stay(visitor, until_s))

    def _leave(self, visitor: _Visitor) -> None:
        self._cut(visitor)
        checker, conversation = visitor.viewer.checker, visitor.conversation
        shown, text = checker.text(plan.MESSAGE), known_text(conversation.seed, conversation.tokens)
        if checker.violations:
            self._wrong.append(f"{conversation.channel}: {checker.violations[0]}")
        elif not text.startswith(shown):
            self._wrong.append(f"{conversation.channel}: the view has text that was not written")
        elif visitor.visit.leaves_s is None and (shown != text or checker.status(plan.MESSAGE) != "complete"):
            self._wrong.append(f"{conversation.channel}: {len(shown)} of {len(text)} characters are shown at the end")
        elif checker.new_starts > 1 and checker.cursor is not None:
            self._wrong.append(f"{conversation.channel}: a reconnect was a new start")
        self._counts["viewers"] += 1
        self._counts["resumes"] += checker.resumes
        self._counts["batches"] += checker.batches
        self._counts["characters"] += len(shown)
