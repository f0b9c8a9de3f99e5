"""A process that commits as fast as it can and prints each committed serial, for tests that kill it.

`python -m tests.stores.writing FILE SYNCHRONOUS BOOT_ID_FILE`: three messages of channel "c" grow by the serial of
each append. After each commit its serial is printed. It never ends by itself.
"""

import asyncio
import sys
from pathlib import Path

from tenuto.core.document import restored
from tenuto.core.state import ChannelState
from tenuto.stores.base import Committed
from tenuto.stores.sqlite import file as sqlite_file
from tenuto.stores.sqlite.store import SqliteStore
from tests.stores.contract import Chat, append, create

MESSAGES = ("m0", "m1", "m2")


async def continued(store: SqliteStore) -> Chat:
    """Return the channel as the store has it; create it if it is missing."""
    chat = Chat(store)
    changes = await store.changes("c", after=0, limit=10)
    if changes.head.serial == 0:
        await chat.do(*(create(message_id, streaming=True) for message_id in MESSAGES))
        return chat
    chat.state = ChannelState("c", changes.head.epoch, changes.head.serial)
    chat.state.insert(restored(changes.messages or ()))
    chat.state.newest = changes.newest
    return chat


async def main(path: Path, synchronous: str, boot_id: Path) -> None:
    sqlite_file.BOOT_ID = boot_id
    store = SqliteStore(path, synchronous=synchronous)
    await store.open()
    chat = await continued(store)
    while True:
        serial = chat.state.serial + 1
        message_id = MESSAGES[serial % 3]
        outcome = await chat.do(append(message_id, f"{serial} "), documents=[message_id] if serial % 7 == 0 else [])
        assert outcome == Committed(serial)
        print(serial, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
