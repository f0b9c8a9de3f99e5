"""The target `documents`: a SQLite file with damaged rows, or with rows of a newer Tenuto.

Layer: fuzz.

No peer sends such input; a failing disk, a newer version or a manual edit can produce it. A file holds messages of
every kind. An input is `{edits}`, and each edit changes one position:

- `document` (its key) and `blob` (0: the head, others: segments), or `log` (a slot): the item `at` a path, in
  MessagePack and in nested MessagePack, becomes `value`, is `gone`, or gets `more` at its end;
- `slot` or `log`, with `flip` (`[at, xor]`), `cut` (the length shrinks by so many bytes), or `body`;
- `table` and `row` (counted from 0): a `column` becomes `value`, or the row is `gone`.

Edits of the first kind renew the checksums: they stand for what another version writes. The others do not.

Then the file is opened (in memory, if opening does not read the edited table), and everything in it is read as a hub
reads it. Either the store refuses the file as unusable, or the restored messages are whole: they can be shown and
stored again. If the damage is detectable (text too short, segments that do not join, appends beyond the end), the
restored messages equal the original ones, or the store returns the message as damaged. Fields that a newer version
added change no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec

from proof.fuzz import mutate
from proof.fuzz.engine import Finding
from proof.fuzz.mutate import Json, to_bytes
from proof.fuzz.requests import PARTS
from proof.fuzz.world import as_dict, as_list, as_text, blame
from tenuto.app import Hub
from tenuto.core.document import DAMAGE, document, restored
from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.core.events import encode_json
from tenuto.core.message_state import DAMAGED, CommandState, MessageState
from tenuto.core.names import command_key
from tenuto.core.requests import (
    AppendText,
    Caller,
    CreateMessage,
    DeleteMessage,
    FinishMessage,
    PutPart,
    ReplyCommand,
    SendCommand,
)
from tenuto.stores.sqlite.engine import Engine
from tenuto.stores.sqlite.file import SqliteFile
from tenuto.stores.sqlite.slots import LENGTH_BYTES, SUM_BYTES, head_sum, pack, piece_sum, sealed, unpack

C = "c"
MAX_EDITS = 6
ADA = Caller(id="ada")
LONG = "häßlich 😀, and so on; " * 240
COLUMNS = {
    "channels": ("id", "name", "epoch", "floor"),
    "documents": ("id", "channel", "message", "created", "version", "open", "deleted", "size_bytes"),
    "pieces": ("document", "blob", "chunk", "slot"),
    "texts": ("id", "body"),
    "log": ("id", "body"),
    "graves": ("channel", "message", "until_ms"),
    "notes": ("name", "value"),
    "life": ("boot", "inode", "synchronous", "clean"),
}
WORDS: list[Json] = [
    "m1", "!k1", "type", "text", "reasoning", "tool", "data", "streaming", "complete", "pending", "banana", "\ud800",
    {"type": "text"}, {"type": []}, {"text": "x"}, [1, 2], [[0, 0, "x", [1, 1]]], -1, 0, 1, 2, 2**63, 2**64 - 1, None,
    "", 1.5, True, [], {},
]  # fmt: skip
OPENED = ("channels", "life")  # tables that are read when a file is opened
HEAD_PARTS = 21  # the index of the parts in a head; heads are decoded by position, so it is fixed


class Documents:
    """Opens files that were changed since they were closed."""

    name = "documents"
    cpu_s = 3.0
    is_guided = True

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tenuto-fuzz-")
        path = Path(self._folder.name) / "whole.db"
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(_write(path))
        # A database in memory cannot have a WAL, so change the two header bytes that request one.
        self._file = path.read_bytes()[:18] + b"\x01\x01" + path.read_bytes()[20:]
        with contextlib.closing(self._copy()) as db:
            self._positions = list(_all_positions(db))
            self._truth = _read(InMemory(db))
        assert {"m1", "m2", "m3"} <= self._truth.keys(), "the file does not hold what it should"

    def seeds(self) -> list[Json]:
        """Return edits of all positions in turn, fields of a newer version, missing and odd rows, and changed bytes."""
        found: list[Json] = [{"edits": []}]
        odd: tuple[Json, ...] = (None, -1, 2**63, "x", [], {"type": []}, "gone", "more")
        for number, position in enumerate(self._positions[::3]):
            found.append({"edits": [_edit(position, odd[number % len(odd)])]})
        found += [{"edits": [{"table": table, "row": row, "gone": True}]} for table in COLUMNS for row in range(2)]
        found += [
            {"edits": [{"table": table, "row": 0, "column": column, "value": value}]}
            for table, columns in COLUMNS.items()
            for column in columns
            for value in (("x",) if table in OPENED else ("x", -1))
        ]
        found += [
            {"edits": [{kind: row, "cut": cut}]} for kind in ("slot", "log") for row in (1, 2, 3) for cut in (1, 7)
        ]
        found += [
            {"edits": [{kind: 1, "body": body}]}
            for kind in ("slot", "log")
            for body in ("", "\x00", "\xc1", "\x00\x01\x91")
        ]
        return found

    def generate(self, draw: Random) -> Json:
        """Return a new input."""
        return {"edits": [self._new_edit(draw) for _ in range(draw.choice((1, 1, 1, 2, 3)))]}

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change a value or a position, or add an edit."""
        new = mutate.copied(as_dict(old))
        edits = new["edits"] = [one for one in as_list(new.get("edits")) if isinstance(one, dict)][:MAX_EDITS]
        if not edits or draw.random() < 0.4:
            edits.append(self._new_edit(draw))
            return new
        edit = draw.choice(edits)
        if "value" in edit and draw.random() < 0.7:
            edit["value"] = mutate.value(draw, edit["value"], WORDS)
        else:
            edits[edits.index(edit)] = self._new_edit(draw)
        return new

    def _new_edit(self, draw: Random) -> dict[str, Json]:
        choice = draw.random()
        if choice < 0.6:
            kind = draw.random()
            value = "gone" if kind < 0.15 else "more" if kind < 0.25 else mutate.scalar(draw, WORDS)
            return _edit(draw.choice(self._positions), value)
        if choice < 0.8:
            where = draw.choice(("slot", "log"))
            if draw.random() < 0.7:
                return {where: draw.randint(1, 12), "flip": [draw.randrange(600), 1 << draw.randrange(8)]}
            return {where: draw.randint(1, 12), "cut": draw.choice((1, 2, 5, 100))}
        table = draw.choice(list(COLUMNS))
        edit: dict[str, Json] = {"table": table, "row": draw.randrange(6)}
        if draw.random() < 0.3:
            return {**edit, "gone": True}
        return {**edit, "column": draw.choice(COLUMNS[table]), "value": mutate.scalar(draw, WORDS)}

    def run(self, given: Json) -> None:
        """Edit a copy of the file, open it and read it. Raises Finding."""
        edits = [as_dict(one) for one in as_list(as_dict(given).get("edits"))[:MAX_EDITS]]
        logging.disable(logging.ERROR)  # about a copied file, damaged messages, a file that cannot be closed cleanly
        try:
            self._run(edits)
        finally:
            logging.disable(logging.NOTSET)

    def _run(self, edits: list[dict[str, Any]]) -> None:
        with contextlib.closing(self._copy()) as db:
            may_differ = [change(db, edit) for edit in edits]
            try:
                if any(edit.get("table") in OPENED for edit in edits):
                    found = self._read_from_disk(db.serialize())
                else:
                    found = _read(InMemory(db))
            except (StoreUnusable, StoreUnavailable) as error:
                if edits and all(is_newer(edit) for edit in edits):
                    raise Finding(f"refused: a field that a newer version added: {error}") from error
                return
        if not any(may_differ):
            self._compare(found, may_be_damaged=any(not is_newer(edit) for edit in edits))

    def _copy(self) -> sqlite3.Connection:
        db = sqlite3.connect(":memory:", isolation_level=None)
        db.deserialize(self._file)
        return db

    def _read_from_disk(self, data: bytes) -> dict[str, Json]:
        path = Path(self._folder.name) / "damaged.db"
        path.write_bytes(data)
        try:
            return _read(SqliteFile(path, synchronous="full", busy_s=0, lock_wait_s=0))
        finally:
            for left in path.parent.glob("damaged.db*"):
                left.unlink()

    def _compare(self, found: dict[str, Json], *, may_be_damaged: bool) -> None:
        for id, whole in self._truth.items():
            if found.get(id) != whole and not (may_be_damaged and _is_damaged(found.get(id))):
                raise Finding(f"wrong: {id} was {str(whole)[:300]} and is {str(found.get(id))[:300]}")

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()


def _is_damaged(one: Json) -> bool:
    """Return whether a message or command is one that the store returned as damaged."""
    return isinstance(one, dict) and (one.get("reason") == DAMAGED or one.get("name") == DAMAGED)


class InMemory(SqliteFile):
    """A database in memory, already open."""

    def __init__(self, db: sqlite3.Connection) -> None:
        super().__init__(Path("memory.db"), synchronous="full", busy_s=0, lock_wait_s=0)
        self.db = db

    def open(self) -> None:
        """No-op: the database is open."""

    def close(self) -> None:
        """No-op: the owner of the connection closes it."""

    def checkpoint(self, mode: Literal["PASSIVE", "TRUNCATE"]) -> bool:
        """No-op: a database in memory has no WAL."""
        return True

    def abandon(self) -> None:
        """No-op, like `close`."""


def _read(file: SqliteFile) -> dict[str, Json]:
    """Return everything that a hub reads from a file, by id. Raises Finding, StoreUnusable, StoreUnavailable."""
    engine = Engine(file)
    try:
        engine.open()
    except (StoreUnusable, StoreUnavailable):
        raise
    except Exception as error:
        file.abandon()
        raise Finding(f"raised {blame(error)}: {error!r} while a file was opened") from error
    try:
        return _ask(engine)
    except (StoreUnusable, StoreUnavailable, Finding):
        raise
    except sqlite3.Error as error:
        raise file.unavailable(error) from error  # as the store reports it
    except Exception as error:
        raise Finding(f"raised {blame(error)}: {error!r} while a file was read") from error
    finally:
        engine.close()


def _ask(engine: Engine) -> dict[str, Json]:
    for name in engine.open_channels():  # as a hub does at start-up
        for one in restored(engine.open_documents(name)):
            shown(one)
    engine.notes("")
    found: dict[str, Json] = {}
    for stored in (
        engine.changes(C, 0, 200).messages or [],
        engine.page(C, None, None, 200, 2**40).messages,
        list(engine.messages(C, ["m1", "m2", "m3", "m4", command_key("k1"), command_key("k2"), "none"])[1].values()),
    ):
        for one in restored(stored):
            found[one.id] = shown(one)
    engine.tidy(2**40)
    return found


def _all_positions(db: sqlite3.Connection) -> Iterator[dict[str, Json]]:
    """Yield every position in the documents and in the log."""
    for key, blob in db.execute("SELECT DISTINCT document, blob FROM pieces ORDER BY document, blob").fetchall():
        for at in _paths(msgspec.msgpack.decode(_blob(db, key, blob)[0])):
            yield {"document": key, "blob": blob, "at": at}
    for slot, body in db.execute("SELECT id, body FROM log ORDER BY id").fetchall():
        if any(body):
            for at in _paths(msgspec.msgpack.decode(body[SUM_BYTES:])):
                yield {"log": slot, "at": at}


def shown(one: MessageState | CommandState) -> Json:
    """Return the visible form of a message or command. Store and restore it, and compare. Raises Finding."""
    is_command = isinstance(one, CommandState)
    seen = encode_json(one.command() if isinstance(one, CommandState) else one.message())
    again = document(one.fork())
    if not is_command and isinstance(one, MessageState):
        lengths = [(part.length, len(part.value().get(part.key, "")) if part.key else 0) for part in one.parts]
        if any(length != counted for length, counted in lengths):
            raise Finding(f"length: {one.id} has parts of {lengths}")
    assert again.id == one.id
    return msgspec.json.decode(seen)


async def _write(path: Path) -> None:
    """Write a file with messages of every kind, some with entries that no document contains."""
    hub = Hub(f"sqlite:///{path}", hooks_signals=False, drain_s=0.1)
    await hub.start()
    streaming = CreateMessage(role="assistant", text="", status="streaming", lease_s=3_600)
    requests: list[tuple[str, Any]] = [
        ("m1", streaming),
        *(("m1", AppendText(text=LONG)) for _ in range(4)),
        ("m1", PutPart(index=1, part={"type": "reasoning", "text": ""})),
        *(("m1", AppendText(text=f"thought {number}, ", part=1)) for number in range(6)),
        ("m1", FinishMessage(meta={"usage": {"tokens": 5}})),
        ("m3", CreateMessage(parts=[dict(part) for part in PARTS], meta={"k": [1, None, "é"]})),
        ("m4", CreateMessage(text="gone")),
        ("m4", DeleteMessage()),
        ("m2", streaming),
        ("m2", AppendText(text="begun ")),
        ("m2", PutPart(index=1, part=dict(PARTS[2]))),
        ("m2", AppendText(text='"q": 1}', part=1)),
        ("m2", AppendText(text="and more 😀", part=0)),
        (command_key("k1"), SendCommand(name="steer", target="m2", data={"to": [1, None]}, expires_s=80_000)),
        (command_key("k2"), SendCommand(name="approve", data="x")),
        (command_key("k2"), ReplyCommand(ok=False, error={"code": "no"})),
    ]
    for id, request in requests:
        await hub.ask(C, id, request, ADA)
    await hub.store.note({"hook/x": b"1"})
    await hub.close()


def _edit(position: dict[str, Json], value: Json) -> dict[str, Json]:
    if value == "gone":
        return {**position, "gone": True}
    if value == "more":
        return {**position, "at": position["at"][:-1], "more": [None, 7, "new"]}
    return {**position, "value": value}


def _paths(whole: Any, before: tuple[Json, ...] = ()) -> Iterator[list[Json]]:
    """Yield the path of each item in a decoded value, and of each item in nested MessagePack."""
    if isinstance(whole, bytes) and len(whole) > 16:
        with contextlib.suppress(msgspec.DecodeError):
            whole = msgspec.msgpack.decode(whole)
    inner = enumerate(whole) if isinstance(whole, list) else whole.items() if isinstance(whole, dict) else ()
    for key, one in inner:
        yield [*before, key]
        yield from _paths(one, (*before, key))


# Edits


def change(db: sqlite3.Connection, edit: dict[str, Any]) -> bool:
    """Make an edit if its position exists. Return whether it may change the restored messages undetectably."""
    with contextlib.suppress(sqlite3.Error, OverflowError, UnicodeEncodeError):  # a row that no tool can write
        if "document" in edit and "at" in edit:
            return _change_blob(db, edit)
        if "log" in edit and "at" in edit:
            return _change_log(db, edit)
        if "slot" in edit or "log" in edit:
            return _change_bytes(db, edit)
        if edit.get("table") in COLUMNS:
            return _change_row(db, edit)
    return False


def is_newer(edit: dict[str, Any]) -> bool:
    """Return whether a newer version may write this: a head, a part's head or a segment with more fields at its end."""
    at, blob = edit.get("at"), edit.get("blob")
    if not isinstance(edit.get("more"), list) or not isinstance(at, list) or edit.get("gone") is True:
        return False
    if blob == 0:
        return at == [] or (len(at) == 2 and at[0] == HEAD_PARTS and isinstance(at[1], int))
    return isinstance(blob, int) and len(at) == 1 and isinstance(at[0], int)


def _change_blob(db: sqlite3.Connection, edit: dict[str, Any]) -> bool:
    key, blob = edit["document"], edit.get("blob")
    data, slots = _blob(db, key, blob)
    before, after = _edited(data, edit)
    if after == data or not slots:
        return False
    # All entries in the first slot: a slot may be larger than any that Tenuto writes.
    db.execute("UPDATE texts SET body = ? WHERE id = ?", (pack(after, len(after) + LENGTH_BYTES), slots[0]))
    db.execute("DELETE FROM pieces WHERE document = ? AND blob = ? AND chunk > 0", (key, blob))
    with contextlib.suppress(*DAMAGE):
        _seal(db, key)
    at = as_list(edit["at"])
    if is_newer(edit):
        return False
    if blob == 0:
        return True
    if len(at) == 2 and at[1] == 2:
        return isinstance(edit.get("value"), str) and len(edit["value"]) == len(before)
    return bool(edit.get("gone") is True and len(at) == 1)  # the last text of a part can disappear without a trace


def _seal(db: sqlite3.Connection, key: int) -> None:
    """Give a changed document the right checksums."""
    rows = db.execute(
        "SELECT blob, chunk, body FROM pieces JOIN texts ON texts.id = slot WHERE document = ? ORDER BY blob, chunk",
        (key,),
    )
    pieces = [(blob, chunk, unpack(body)) for blob, chunk, body in rows.fetchall()]
    sums = [(piece_sum(key, blob, chunk, data), key, blob, chunk) for blob, chunk, data in pieces if blob]
    db.executemany("UPDATE pieces SET crc = ? WHERE document = ? AND blob = ? AND chunk = ?", sums)
    fields = db.execute(
        "SELECT channel, message, created, version, open, deleted, size_bytes, target FROM documents WHERE id = ?",
        (key,),
    ).fetchone()
    head = b"".join(data for blob, _, data in pieces if not blob)
    checksum = head_sum((*fields, max(blob for blob, _, _ in pieces)), head)
    db.execute("UPDATE documents SET crc = ? WHERE id = ?", (checksum, key))


def _change_log(db: sqlite3.Connection, edit: dict[str, Any]) -> bool:
    row = db.execute("SELECT body FROM log WHERE id = ?", (edit["log"],)).fetchone()
    if row is None or not isinstance(row[0], bytes) or not row[0]:
        return False
    body = row[0][SUM_BYTES:]
    before, after = _edited(body, edit)
    if after == body:
        return False
    db.execute("UPDATE log SET body = ? WHERE id = ?", (sealed(edit["log"], after), edit["log"]))
    return not _is_place_of_append(msgspec.msgpack.decode(body), as_list(edit["at"]), before)


def _is_place_of_append(items: Any, at: list[Any], before: Json) -> bool:
    """Return whether this is the offset of an append. In a log, each append begins at the end of its part."""
    if len(at) != 2 or not isinstance(before, int) or not isinstance(at[0], int) or not isinstance(items[at[0]], list):
        return False
    return isinstance(items[at[0]][-1], str) and at[1] == len(items[at[0]]) - 2


def _change_bytes(db: sqlite3.Connection, edit: dict[str, Any]) -> bool:
    table, number = ("texts", edit["slot"]) if "slot" in edit else ("log", edit["log"])
    row = db.execute(f"SELECT body FROM {table} WHERE id = ?", (number,)).fetchone()
    if row is None or not isinstance(row[0], bytes):
        return False
    body = bytearray(row[0])
    match edit:
        case {"body": str(text)}:
            body = bytearray(to_bytes(text))
        case {"flip": [int(at), int(xor)]} if body:
            body[at % len(body)] ^= xor & 255
        case {"cut": int(cut)} if table == "texts" and len(body) >= LENGTH_BYTES:
            length = len(unpack(bytes(body)))
            body[:LENGTH_BYTES] = max(0, length - max(cut, 0)).to_bytes(LENGTH_BYTES)
        case {"cut": int(cut)}:
            del body[max(0, len(body) - max(cut, 0)) :]
        case _:
            return False
    db.execute(f"UPDATE {table} SET body = ? WHERE id = ?", (bytes(body), number))
    return "cut" not in edit or table == "log"


def _change_row(db: sqlite3.Connection, edit: dict[str, Any]) -> bool:
    table, row = edit["table"], edit.get("row")
    columns = COLUMNS[table]
    rows = db.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
    if not isinstance(row, int) or not rows:
        return False
    known = rows[row % len(rows)]
    which = " AND ".join(f"{column} IS ?" for column in columns)
    if edit.get("gone") is True:
        db.execute(f"DELETE FROM {table} WHERE {which}", known)
        return table not in ("texts", "life", "notes")
    value = edit.get("value")
    if edit.get("column") not in columns or isinstance(value, list | dict):
        return False
    db.execute(f"UPDATE {table} SET {edit['column']} = ? WHERE {which}", (value, *known))
    return table not in ("life", "notes")


def _blob(db: sqlite3.Connection, key: Json, blob: Json) -> tuple[bytes, list[int]]:
    if not isinstance(key, int) or not isinstance(blob, int):
        return b"", []
    rows = db.execute(
        "SELECT slot, body FROM pieces JOIN texts ON texts.id = slot WHERE document = ? AND blob = ? ORDER BY chunk",
        (key, blob),
    ).fetchall()
    return b"".join(unpack(body) for _, body in rows if isinstance(body, bytes)), [slot for slot, _ in rows]


def _edited(data: bytes, edit: dict[str, Any]) -> tuple[Any, bytes]:
    """Return the old item at the position, and the changed bytes; the same bytes if the position does not exist."""
    try:
        root = [msgspec.msgpack.decode(data)]
        before = _at(root, [0, *as_list(edit["at"])], edit)
        return before, msgspec.msgpack.encode(root[0])
    except (LookupError, TypeError, ValueError, OverflowError, msgspec.DecodeError):
        return None, data


def _at(holder: Any, path: list[Any], edit: dict[str, Any]) -> Any:
    key = path[0]
    old = holder[key]
    if len(path) > 1:
        if isinstance(old, bytes):
            inner = [msgspec.msgpack.decode(old)]
            before = _at(inner, [0, *path[1:]], edit)
            holder[key] = msgspec.msgpack.encode(inner[0])
            return before
        return _at(old, path[1:], edit)
    if edit.get("gone") is True:
        del holder[key]
    elif isinstance(edit.get("more"), list):
        old += edit["more"] if isinstance(old, list) else []
    else:
        holder[key] = _value(edit.get("value"))
    return old


def _value(value: Json) -> Json:
    """Return an input's value as MessagePack can hold it: lone surrogates become their bytes."""
    return msgspec.Raw(_raw(value)) if isinstance(value, str) and not _is_text(value) else value


def _raw(text: str) -> bytes:
    data = as_text(text, "").encode("utf-8", "surrogatepass")[:250]
    return b"\xd9" + bytes((len(data),)) + data


def _is_text(text: str) -> bool:
    return not any("\ud800" <= one <= "\udfff" for one in text)
