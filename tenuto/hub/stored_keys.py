"""Keys that a hub generates and keeps in its store: those of tickets and of visitors.

Layer: hub.

A hub that got no key from the app generates one, and keeps it as a note in the store unless the store has one already.
So the hubs that share a store, and later starts, use the same key. Tickets live for hours, so an exclusive store gets
no key of them: it stays in its process.
"""

from __future__ import annotations

from typing import Protocol

from tenuto.hub.loading import in_time
from tenuto.stores.base import Store


class Keyed(Protocol):
    """A component that signs with a key."""

    key_note: str  # name of the note that keeps its key
    keeps_key_always: bool  # True: an exclusive store keeps the key, too
    generated: bytes | None  # the key of this process; None if the app has given keys

    def use(self, key: bytes) -> None:
        """Sign and verify with `key`, which the store keeps."""


async def share_key(store: Store, keyed: Keyed) -> None:
    """Use the key in `store`, and keep the generated one there if there is none. Raises StoreUnavailable."""
    if keyed.generated is None or (store.is_exclusive and not keyed.keeps_key_always):
        return
    name = keyed.key_note
    # of two hubs that start on a new store at the same moment, one keeps its key
    await in_time(store.note({name: keyed.generated}, expected={name: None}), store.name)
    keyed.use((await in_time(store.notes(name), store.name))[name])
