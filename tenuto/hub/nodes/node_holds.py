"""The holds of one node: those that it should have, and those that the store has.

Layer: hub.

The small holds go with the next renewal. The holds about members go in batches, so that a renewal stays small also when
the store has lost all of them. The hold about the node goes with the last batch, because it tells other nodes that the
members may be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tenuto.stores.base import Hold

BATCH_BYTES = 256 * 1024  # a batch of holds about members ends with the one that reaches this size


class NodeHolds:
    """The holds that one node should have, with those of them that the store does not have yet."""

    def __init__(self) -> None:
        self.sources: list[Callable[[], Mapping[str, bytes]]] = []  # each returns small holds that the node should have
        self.about_node: Callable[[], Mapping[str, bytes]] = dict  # returns the hold about the node
        self.losses = 0  # number of times that the store may have lost the holds
        self._small: dict[str, bytes | None] = {}  # the small holds that the store has; None: perhaps
        self._members: dict[str, bytes] = {}  # the holds about members that the node should have
        self._stale: dict[str, None] = {}  # those that the store does not have like that, in order

    @property
    def is_behind(self) -> bool:
        """Return whether the store lacks holds about members."""
        return bool(self._stale)

    def show(self, name: str, value: bytes | None) -> None:
        """Put a hold about members with one of the next renewals; None drops it."""
        self._members.pop(name, None)
        if value is not None:
            self._members[name] = value
        self._stale[name] = None

    def due(self) -> dict[str, Hold | None]:
        """Return the holds of the next renewal: the small ones that have changed, and a batch about members."""
        batch: dict[str, Hold | None] = {}
        size = 0
        for name in self._stale:
            if size >= BATCH_BYTES:
                break
            value = self._members.get(name)
            batch[name] = Hold(value) if value is not None else None
            size += len(name) + len(value or b"")
        about_node = self.about_node()
        small = {name: value for source in self.sources for name, value in source().items()}
        wanted = {**small, **about_node}
        changed = {name for name in {**self._small, **wanted} if self._small.get(name) != wanted.get(name)}
        changed.update(name for name, value in self._small.items() if value is None)
        if len(batch) < len(self._stale):
            changed.difference_update(about_node)
        self._small.update(dict.fromkeys(changed))
        return {**{name: Hold(wanted[name]) if name in wanted else None for name in sorted(changed)}, **batch}

    def note_put(self, values: Mapping[str, Hold | None]) -> None:
        """Note that the store has `values`, which `due` has returned."""
        for name, hold in values.items():
            value = hold.value if hold is not None else None
            if name not in self._small:
                if self._members.get(name) == value:  # it may have changed since
                    self._stale.pop(name, None)
            elif value is not None:
                self._small[name] = value
            else:
                del self._small[name]

    def lose(self) -> None:
        """Let all holds be put again, because the store may have lost them."""
        self.losses += 1
        self._small = dict.fromkeys(self._small)
        self._stale |= dict.fromkeys(self._members)
