"""Writes the store file that the tests of damage change.

`python -m tests.stores.reference tests/stores/files/schema-N` writes `schema-N.db.gz`, the file as a backup of the open
store has it, and `schema-N.json`, its messages. The tests name places in the file, so another one may need others.
"""

import asyncio
import gzip
import hashlib
import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from tenuto.core import document as documents
from tenuto.core import requests
from tenuto.core.requests import CreateMessage
from tenuto.stores.sqlite import file as sqlite_file
from tenuto.stores.sqlite.engine import Engine
from tests.stores.contract import Chat, append, create, delete, edit, emptied, finish, put_part
from tests.stores.files import opened, read

WORDS = "the quick brown fox jumps over the lazy dog, naïve 中文 🙂 "


async def fill(store: Any) -> list[str]:
    """Fill `store` with messages of each kind; returns the names of the channels that are left."""
    chats = [Chat(store, f"chat:{number}", epoch=f"e{number}") for number in range(4)]
    for number, chat in enumerate(chats):
        await chat.do(create("m-short", "hello"), create("m-long", WORDS * 400, of=number))
        await chat.do(create("m-edited", "first"), create("m-gone", "SECRET of a deleted message"))
        await chat.do(edit("m-edited", "second"), documents=["m-edited"])
        await chat.do(delete("m-gone"), documents=["m-gone"])
        await chat.do(create("m-streamed", streaming=True))
        for step in range(40):
            await chat.do(append("m-streamed", f"{step} {WORDS}"), documents=["m-streamed"] if step % 9 == 8 else [])
        await chat.do(finish("m-streamed"), documents=["m-streamed"])
        await chat.do(create("m-running", streaming=True))
        await chat.do(put_part("m-running", 1, {"type": "data", "name": "bar", "data": [1, None, "x" * 5000]}))
        for step in range(30):
            await chat.do(append("m-running", f"{step} {WORDS}", part=0), documents=["m-running"] if step == 12 else [])
        await chat.do(append("m-running", "y" * 9000))
    served = Chat(store, "served", epoch="es", is_served=True)
    await served.do(("u-waiting", CreateMessage(text="a question", role="user")))
    await served.do(("u-taken", CreateMessage(text="another", role="user")))
    await served.do(("u-taken", requests.ClaimTurn(generation=0)))
    for key in ("!c-open", "!c-replied"):
        await served.do((key, requests.SendCommand(name="approve", target="u-waiting", data={"a": "b" * 3000})))
    reply = requests.ReplyCommand(ok=False, data=[2], error={"code": "no", "detail": "why"}, request="r")
    await served.do(("!c-replied", reply), documents=["!c-replied"])
    await store.note({"a-note": b"\x00\xff"})
    chats.append(served)
    for name in ("gone:0", "gone:1"):
        chat = Chat(store, name, epoch="eg")
        await chat.do(create("m-1", "SECRET of a deleted channel"), create("m-2", WORDS * 20, streaming=True))
        await chat.do(append("m-2", "SECRET"))
        await emptied(store, name, used_up=["m-1", "m-2"], until_ms=2**40)
    return [chat.channel for chat in chats]


async def content(store: Any, channels: list[str]) -> dict[str, Any]:
    """Return all that `store` holds, as JSON."""
    found: dict[str, Any] = {}
    for channel in channels:
        changes = await store.changes(channel, after=0, limit=100)
        page = await store.page(channel, before=None, limit=100, limit_bytes=10**9)
        found[channel] = {
            "serial": changes.head.serial,
            "newest": changes.newest,
            "page": [one.id for one in page.messages],
            "messages": {one.id: described(one) for one in sorted(changes.messages, key=lambda one: one.id)},
        }
    return found


def described(stored: Any) -> dict[str, Any]:
    """Return what a message or a command must not lose."""
    if stored.id.startswith("!"):
        command = documents.restore_command(stored)
        answer = command.reply
        reply = None if answer is None else [answer.ok, answer.data, answer.error]
        sent = command.sent
        return {"name": sent.name, "target": sent.target, "data": digest(sent.data), "reply": reply}
    message = documents.restore(stored)
    claim = message.claim
    return {
        "status": message.status,
        "meta": message.meta,
        "deleted": message.deleted,
        "version": message.version,
        "parts": [
            [part.text.length, digest(part.text.slice(0))] if part.text is not None else digest(part.fields)
            for part in message.parts
        ],
        "claim": None if claim is None else [claim.state, claim.generation],
    }


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


async def write(target: Path) -> None:
    Engine._step = lambda engine: False  # type: ignore[method-assign]  # deleted channels keep their documents
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "chat.db"
        async with opened(path) as store:
            channels = await fill(store)
            found = await content(store, channels)
            with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(folder / "copy.db")) as copy:
                db.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
            data = read(folder / "copy.db")
    target.with_suffix(".db.gz").write_bytes(gzip.compress(data, mtime=0))
    target.with_suffix(".json").write_text(
        json.dumps({"schema": sqlite_file.SCHEMA, "channels": found}, indent=1) + "\n"
    )
    print(f"schema {sqlite_file.SCHEMA}: {len(data)} bytes, {sorted(found)}")


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
