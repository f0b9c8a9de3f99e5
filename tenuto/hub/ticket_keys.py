"""The keys of tickets that the nodes of one store share.

Layer: hub.

A hub without `ticket_keys` generates a key. On a store that several hubs share, the first of them keeps its key as a
note in the store, and each uses the keys that it finds there. Two hubs that start on a new store at the same moment may
both keep one; each learns the other's within some seconds. An exclusive store gets no key: it stays in its process.
"""

from __future__ import annotations

import asyncio
import secrets

from tenuto.hub.loading import in_time
from tenuto.hub.store_errors import logs_errors
from tenuto.hub.tickets import MIN_KEY_BYTES, Tickets
from tenuto.stores.base import Store

NOTE = "ticket-key/"  # prefix of the notes with keys; a random name follows
FOLLOW_S = 5.0  # time between two reads of the keys
MAX_KEYS = 16  # limit of the keys that a hub uses


async def share_keys(store: Store, tickets: Tickets) -> None:
    """Use the keys in `store`, and keep the key of this hub there if there is none. Raises StoreUnavailable."""
    if store.is_exclusive or tickets.generated is None:
        return
    if not await _read(store, tickets):
        await in_time(store.note({NOTE + secrets.token_hex(8): tickets.generated}), store.name)
        await _read(store, tickets)


async def follow_keys(store: Store, tickets: Tickets) -> None:
    """Read the keys every few seconds until this task is cancelled, unless the app has given keys."""
    while tickets.generated is not None:
        await asyncio.sleep(FOLLOW_S)
        with logs_errors("the keys of tickets were not read; the hub tries again"):
            await _read(store, tickets)


async def _read(store: Store, tickets: Tickets) -> bool:
    """Use the keys in the store; return whether there are any. Raises StoreUnavailable."""
    notes = await in_time(store.notes(NOTE), store.name)
    keys = [key for _, key in sorted(notes.items()) if len(key) >= MIN_KEY_BYTES][:MAX_KEYS]
    if keys:
        tickets.use(keys)
    return bool(keys)
