"""Admission: the order in which queued items get into commits.

Layer: hub.

Beside running text, each commit admits a slice of beginnings: creates of messages and claims of turns. Further ones
wait aside, so text that is queued behind hundreds of creates gets into the next commit. Items of one channel keep their
order: an item whose channel has an item aside waits behind it. Each commit admits the oldest beginnings first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from tenuto.hub.pending import Item

# Limit of beginnings in one commit beside running text; a create costs some ten times as much as an append. With 300
# answers of 10 tokens a second, during a burst of 700 questions, the p99 of a token was 51 to 131 ms with slices of 16,
# 22 to 33 ms with 4, and no lower with 2.
SLICE = 4
# Limit on a slow disk. There a commit takes long in any case, and small slices would only make a burst last longer.
LARGEST_SLICE = 16
PER_BEGINNING_S = 0.001  # time that a commit takes in the store for each beginning that a slice may have
# A large create, such as a question with a photo, counts as several, so that two of them are in different commits and
# running text waits for one alone.
BEGINNING_BYTES = 64 * 1024
BESIDE_S = 1.0  # time after the last request about a watched message during which beginnings are limited


class Admission:
    """The items that wait for a commit."""

    def __init__(self) -> None:
        self._admitted: deque[Item] = deque()  # items that an earlier commit had admitted; they go before all others
        self._aside: deque[Item] = deque()
        self._behind: dict[str, int] = {}  # for each channel the number of its items in `_aside`
        self._queue: deque[Item] = deque()
        self._beside_until_s = -1.0
        self._took_s = 0.0  # moving average of the time that the store takes for a commit
        self._left: int | None = None  # number of beginnings that the commit may still admit; None: no limit

    def __len__(self) -> int:
        return len(self._admitted) + len(self._aside) + len(self._queue)

    @property
    def has_only_beginnings(self) -> bool:
        """Return whether all waiting items wait aside, or behind one that does."""
        return not self._queue and not self._admitted

    def append(self, item: Item) -> None:
        """Queue a new item."""
        self._queue.append(item)

    def put_first(self, items: Iterable[Item]) -> None:
        """Queue items that had been admitted before all others."""
        self._admitted.extendleft(reversed(tuple(items)))

    def begin(self, now_s: float) -> None:
        """Begin to admit items to a commit, at the loop time `now_s`."""
        self._left = self._slice() if now_s < self._beside_until_s else None

    def stored(self, took_s: float) -> None:
        """Note that the store took `took_s` for a commit."""
        self._took_s += (took_s - self._took_s) / 8

    def note_running(self, now_s: float) -> None:
        """Limit beginnings from the next commit on, because a viewer waits for an item that is none."""
        self._beside_until_s = now_s + BESIDE_S

    def take(self) -> Item | None:
        """Remove and return the next item of the commit; None if the rest waits for a later one."""
        if self._admitted:
            return self._admitted.popleft()
        if self._aside and (self._left is None or self._left > 0):
            return self._take_aside()
        while self._queue:
            item = self._queue.popleft()
            if self._behind and item.channel in self._behind:
                self._set_aside(item)
            elif not item.is_beginning or self._left is None:
                return item
            elif self._left > 0:
                self._left -= _weight(item)
                return item
            else:
                self._set_aside(item)
        return None

    def drain(self) -> Iterator[Item]:
        """Remove and yield all items."""
        for items in (self._admitted, self._aside, self._queue):
            while items:
                yield items.popleft()
        self._behind.clear()

    def _slice(self) -> int:
        return max(SLICE, min(LARGEST_SLICE, int(self._took_s / PER_BEGINNING_S)))

    def _set_aside(self, item: Item) -> None:
        self._aside.append(item)
        self._behind[item.channel] = self._behind.get(item.channel, 0) + 1

    def _take_aside(self) -> Item:
        item = self._aside.popleft()
        if self._left is not None:
            self._left -= _weight(item)
        if self._behind[item.channel] == 1:
            del self._behind[item.channel]
        else:
            self._behind[item.channel] -= 1
        return item


def _weight(item: Item) -> int:
    """Return how many beginnings an item counts for."""
    return 1 + item.size_bytes // BEGINNING_BYTES
