"""A process that commits as fast as it can and prints each committed serial, for tests that kill it.

`python -m tests.stores.writing FILE SYNCHRONOUS BOOT_ID_FILE`: three messages of channel "c" grow by the serial of
each append. After each commit its serial is printed. It never ends by itself.
"""

import asyncio
import sys
from pathlib import Path

from tenuto.stores.base import Committed
from tenuto.stores.sqlite import file as sqlite_file
from tenuto.stores.sqlite.store import SqliteStore
from tests.stores.contract import Chat, append, create

MESSAGES = ("m0", "m1", "m2")


async def main(path: Path, synchronous: str, boot_id: Path) -> None:
    sqlite_file.BOOT_ID = boot_id
    store = SqliteStore(path, synchronous=synchronous)
    await store.open()
    chat = Chat(store)
    await chat.do(*(create(message_id, streaming=True) for message_id in MESSAGES))
    while True:
        serial = chat.state.serial + 1
        message_id = MESSAGES[serial % 3]
        outcome = await chat.do(append(message_id, f"{serial} "), documents=[message_id] if serial % 7 == 0 else [])
        assert outcome == Committed(serial)
        print(serial, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
