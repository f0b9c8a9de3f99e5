"""Bytes that change on the disk are never read as text; the other messages stay readable."""

import asyncio
import gzip
import json
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from tenuto import Hub
from tenuto.cli.main import main
from tenuto.core.document import Stored, restored
from tenuto.core.errors import Damaged, StoreUnavailable, StoreUnusable
from tenuto.core.requests import SendCommand
from tenuto.hub import HubCore
from tenuto.hub.keep.exports import export_lines
from tenuto.hub.pending import DocumentDue
from tenuto.stores.base import NOTHING, Committed, Store, head_of
from tenuto.stores.sqlite.compact import compact
from tenuto.stores.sqlite.engine import OLD_MS
from tenuto.stores.sqlite.file import SCHEMA
from tenuto.stores.sqlite.slots import SUM_BYTES, sealed
from tenuto.stores.sqlite.slots import opened as opened_row
from tenuto.stores.sqlite.store import SqliteStore
from tenuto.stores.sqlite.verify import verify
from tests.stores.contract import Chat, append, create, delete, edit, emptied
from tests.stores.files import opened, read, run_from_outside, run_on_thread, write
from tests.stores.reference import described

FILE = Path(__file__).parent / "files" / f"schema-{SCHEMA}.db.gz"
IS_LONG = os.environ.get("TENUTO_STORES") == "long"
FLIPS, TORN = (2_000, 200) if IS_LONG else (300, 30)
PAGE = 4_096


# of channel and message: whole, damaged, missing, refused, or left out of a page, the changes or the export
Outcomes = dict[tuple[str, str], str]


def checked(messages: Iterable[Stored], known: dict[str, Any]) -> list[str]:
    """Return the ids of `messages`. Fails for one with a wrong content."""
    for one in messages:
        (state,) = restored([one])
        assert state.is_damaged or json.loads(json.dumps(described(one))) == known.get(one.id)
    return [one.id for one in messages]


async def paged(store: Store, channel: str, known: dict[str, Any]) -> list[str]:
    return checked((await store.page(channel, before=None, limit=100, limit_bytes=10**9)).messages, known)


async def changed(store: Store, channel: str, known: dict[str, Any]) -> list[str]:
    return checked((await store.changes(channel, after=0, limit=100)).messages or (), known)


async def exported(store: Store, channel: str, known: dict[str, Any]) -> list[str]:
    lines = [json.loads(line) async for line in export_lines(store, channel)]
    return [one["id"] for one in lines if one["type"] == "message"]


async def compared(store: Store, truth: dict[str, Any], named: list[str]) -> Outcomes:
    """Return what became of the messages of `truth`, read one by one. Fails for one with a wrong content."""
    found: Outcomes = {}
    for channel, known in truth.items():
        for message_id, whole in known["messages"].items():
            found[channel, message_id] = "missing"
            try:
                _, stored = await store.messages(channel, [message_id])
            except (StoreUnusable, StoreUnavailable):
                found[channel, message_id] = "refused"
                continue
            for one, state in zip(stored.values(), restored(stored.values()), strict=True):
                found[channel, message_id] = "damaged" if state.is_damaged else "whole"
                assert state.is_damaged or json.loads(json.dumps(described(one))) == whole, (channel, message_id)
        lists: dict[str, list[str]] = {}
        for way in (paged, changed, exported):
            try:
                lists[way.__name__] = await way(store, channel, known["messages"])
            except (Damaged, StoreUnusable, StoreUnavailable):
                assert named, channel
                continue
            wanted = known["messages"] if way is changed else known["page"]
            for message_id in set(wanted) - set(lists[way.__name__]):
                if found[channel, message_id] == "whole":
                    found[channel, message_id] = "left out"
        if not named:
            assert (lists["paged"], lists["exported"]) == (known["page"], known["page"][::-1])
            assert set(lists["changed"]) == set(known["messages"])
    return found


def lines_of(path: Path) -> list[str]:
    try:
        return list(verify(path))
    except StoreUnusable as error:
        return [str(error)]


def is_named(channel: str, message_id: str, lines: list[str]) -> bool:
    """Return whether a line names the message, or its whole channel."""
    of_channel = [line for line in lines if repr(channel) in line]
    return any(f"message {message_id!r}" in line or ": message " not in line for line in of_channel)


async def outcome_of(path: Path, data: bytes, truth: dict[str, Any]) -> Counter[str]:
    """Count what became of the messages in a file. Fails if `verify` does not name each one that is not whole.

    A file may be refused as a whole. If its structure is damaged, `verify` says so, and names those that it finds.
    """
    write(path, bytes(data))
    try:
        lines = lines_of(path)
        try:
            async with opened(path) as store:
                found = await compared(store, truth, lines)
        except StoreUnusable:
            assert lines
            return Counter({"file refused": 1})
        unnamed = [one for one, outcome in found.items() if outcome != "whole" and not is_named(*one, lines)]
        assert not unnamed or lines[0].startswith("store file"), unnamed
        return Counter(found.values())
    finally:
        for one in path.parent.glob("chat.db*"):
            one.unlink()


@pytest.fixture(scope="module")
def whole() -> bytes:
    return gzip.decompress(FILE.read_bytes())


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    return dict(json.loads(FILE.with_suffix("").with_suffix(".json").read_text())["channels"])


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory if the system has one: each of many files is synced several times."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


async def test_no_flipped_bit_is_read_as_text(memory: Path, whole: bytes, truth: dict[str, Any]) -> None:
    draw = random.Random(17)
    found: Counter[str] = Counter()
    for _ in range(FLIPS):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        found += await outcome_of(memory / "chat.db", bytes(data), truth)
    messages = FLIPS * sum(len(known["messages"]) for known in truth.values())
    assert found["damaged"] > 0
    assert found["whole"] > 0.9 * messages
    assert found["file refused"] <= 0.04 * FLIPS  # docs/decisions/0095


async def test_no_torn_page_is_read_as_text(memory: Path, whole: bytes, truth: dict[str, Any]) -> None:
    draw = random.Random(18)
    found: Counter[str] = Counter()
    for number in range(TORN):
        at = PAGE * draw.randrange(len(whole) // PAGE) + draw.choice((0, PAGE // 2))
        half = bytes(PAGE // 2) if number % 2 else draw.randbytes(PAGE // 2)
        found += await outcome_of(memory / "chat.db", whole[:at] + half + whole[at + PAGE // 2 :], truth)
    assert found["damaged"] > 0
    assert found["file refused"] <= 0.4 * TORN


# Flips that were found: byte and bit. They gave a message of another channel or without its last text, an error without
# a code, or a message that `verify` did not name.
KNOWN = (
    (28562, 4),
    (28641, 2),
    (32635, 0),
    (32540, 7),
    (32620, 7),
    (4082, 7),
    (8155, 7),
    (16423, 6),
    (20149, 7),
    (24380, 7),
    (24541, 6),
    (32607, 5),
    (48058, 6),
    (48357, 4),
)


@pytest.mark.parametrize("flip", KNOWN, ids=str)
async def test_known_flip_is_not_read_as_text(
    memory: Path, whole: bytes, truth: dict[str, Any], flip: tuple[int, int]
) -> None:
    data = bytearray(whole)
    data[flip[0]] ^= 1 << flip[1]
    assert (await outcome_of(memory / "chat.db", bytes(data), truth)).total() > 0


# -- damaged messages ------------------ -------------------------------------------------------------------------------


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A closed file with two finished messages, and one that streams."""
    path = tmp_path / "chat.db"
    async with opened(path) as store:
        chat = Chat(store)
        await chat.do(create("m1", "first " * 2_000), create("m2", "second " * 2_000))
        await chat.do(create("m3", "third ", streaming=True))
        for number in range(8):
            await chat.do(append("m3", f"{number} "))
    return path


async def states(store: Store) -> dict[str, Any]:
    changes = await store.changes("c", after=0, limit=10)
    return {one.id: one for one in restored(changes.messages or ())}


ONE_PIECE = "(SELECT slot FROM pieces JOIN documents ON id = document WHERE message = 'm1' AND blob = 1 AND chunk = 1)"


async def test_message_with_a_changed_byte_has_failed_and_names_the_reason(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_from_outside(path, f"UPDATE texts SET body = CAST(replace(body, 'f', 'F') AS BLOB) WHERE id = {ONE_PIECE}")
    async with opened(path) as store:
        found = await states(store)
        assert (found["m1"].status, found["m1"].reason, found["m1"].parts) == ("failed", "damaged", [])
        assert (found["m1"].created, found["m1"].version) == (1, 1)
        assert [found[one].message().text for one in ("m2", "m3")] == ["second " * 2_000, "third 0 1 2 3 4 5 6 7 "]
        assert store.stats()["damaged"] == 1
    assert "message 'm1' is damaged" in caplog.text


async def test_damaged_message_is_refused_and_blocks_no_other_message(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    async with opened(path) as store:
        await Chat(store).do(create("m1", "hello"), create("m2", "hello"))
    head = "SELECT slot FROM pieces JOIN documents ON id = document WHERE message = 'm1' AND blob = 0"
    run_from_outside(path, f"UPDATE texts SET body = x'000190' WHERE id = ({head})")
    hub = Hub(f"sqlite:///{path}", hooks_signals=False)
    with pytest.raises(Damaged):
        await hub.update("c", "m1", text="x")
    await hub.update("c", "m2", text="x")
    await hub.close()


async def test_text_of_another_message_is_not_read_for_it(path: Path) -> None:
    (pieces,) = run_from_outside(
        path,
        "SELECT max(slot) FROM pieces JOIN documents ON id = document WHERE message = 'm2' AND blob = 1 AND chunk = 1",
    )
    run_from_outside(
        path,
        "UPDATE pieces SET slot = ? WHERE document = (SELECT id FROM documents WHERE message = 'm1')"
        " AND blob = 1 AND chunk = 1",
        *pieces,
    )
    async with opened(path) as store:
        assert (await states(store))["m1"].is_damaged


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM pieces WHERE document = 1 AND blob = 1",
        "UPDATE documents SET version = 7 WHERE message = 'm1'",
        "UPDATE documents SET deleted = 1 WHERE message = 'm1'",
    ],
)
async def test_changed_row_of_a_message_is_noticed(path: Path, change: str) -> None:
    run_from_outside(path, change)
    async with opened(path) as store:
        found = await states(store)
        assert found["m1"].is_damaged
        assert not found["m2"].is_damaged


async def test_message_under_an_id_that_no_read_finds_is_in_no_list(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ((root,),) = run_from_outside(path, "SELECT rootpage FROM sqlite_master WHERE name = 'documents'")
    data = bytearray(read(path))
    data[data.index(b"m2", PAGE * (root - 1)) + 1] ^= 8  # the index of ids still has m2
    write(path, bytes(data))
    hub = HubCore(SqliteStore(path), hooks_signals=False)
    page = await hub.history("c", limit=1)
    older = await hub.history("c", limit=1, before=page.messages[-1].created)
    assert [(one.id, one.status) for one in (*page.messages, *older.messages)] == [
        ("m3", "interrupted"),
        ("m1", "complete"),
    ]
    assert not older.more
    assert "message 'm:' cannot be read" in caplog.text
    message, _ = await hub.read("c", "m2")
    assert (message.status, message.reason) == ("failed", "damaged")
    with pytest.raises(Damaged):
        [line async for line in hub.archive.export("c")]
    await hub.close()


async def test_deletion_makes_a_damaged_message_whole(path: Path) -> None:
    run_from_outside(path, "UPDATE documents SET crc = 0 WHERE message = 'm1'")
    async with opened(path) as store:
        chat = Chat(store)
        chat.state.epoch, chat.state.serial = (await head_of(store, "c"))[:2]
        chat.state.insert((await states(store)).values())
        await chat.do(delete("m1"), documents=["m1"])
    async with opened(path) as store:
        found = (await states(store))["m1"]
        assert (found.deleted, found.is_damaged) == (True, False)


async def test_channel_under_another_name_is_not_read(path: Path) -> None:
    run_from_outside(path, "UPDATE channels SET name = 'd'")
    async with opened(path) as store:
        assert await head_of(store, "c") == NOTHING
        with pytest.raises(StoreUnusable, match="channel 'd' is damaged"):
            await store.changes("d", after=0, limit=10)
        assert await store.open_channels() == []
        assert await store.tidy(2**40) == []


def damage_last_row_of_the_log(path: Path) -> None:
    (row,) = run_from_outside(path, "SELECT max(id), body FROM log")
    run_from_outside(path, "UPDATE log SET body = ? WHERE id = ?", row[1][:8] + b"????" + row[1][12:], row[0])


async def test_damaged_row_of_the_log_damages_the_open_messages_for_good(path: Path) -> None:
    damage_last_row_of_the_log(path)
    for _ in range(2):
        async with opened(path) as store:
            found = await states(store)
            assert {one.id: one.is_damaged for one in found.values()} == {"m1": False, "m2": False, "m3": True}
            assert (await head_of(store, "c")).epoch != "e1"
            assert (await Chat(store, f"new {_}").do(create("m1", streaming=True))) == Committed(1)


@pytest.mark.parametrize("body", ["zeroblob(length(body))", "x''"], ids=["zeros", "empty"])
async def test_needed_row_of_the_log_without_entries_is_damage(path: Path, body: str) -> None:
    async with opened(path) as store:
        run_from_outside(path, f"UPDATE log SET body = {body} WHERE id = (SELECT max(id) FROM log)")
        found = await states(store)
        assert {one.id: one.is_damaged for one in found.values()} == {"m1": False, "m2": False, "m3": True}


def flip_in_the_log(path: Path, body: bytes, at: int, mask: int) -> None:
    """Change bits of a closed file near the row of the log that has `body`; `at` counts from the body."""
    data = bytearray(read(path))
    (place,) = (one.start() for one in re.finditer(re.escape(body), data))
    data[place + at] ^= mask
    write(path, bytes(data))


# The last byte before the body of a row is its type and length; the fourth one is the number of the row.
@pytest.mark.parametrize(("at", "mask"), [(-1, 1), (-1, 4), (-4, 0x40), (-4, 1)], ids=str)
@pytest.mark.parametrize("row", [1, 4, 8])
async def test_changed_number_or_type_of_a_row_of_the_log_loses_no_finished_message(
    path: Path, at: int, mask: int, row: int
) -> None:
    ((body,),) = run_from_outside(path, "SELECT body FROM log WHERE id = ?", row)
    flip_in_the_log(path, body, at, mask)
    assert any("the log" in line for line in verify(path))
    for _ in range(2):
        async with opened(path) as store:
            found = await states(store)
            assert [one for one in ("m1", "m2") if found[one].is_damaged] == []
            is_whole = mask != 4  # the body is shorter
            assert found["m3"].is_damaged != is_whole
            assert is_whole == ((await head_of(store, "c")).epoch == "e1")
            if is_whole:
                assert found["m3"].message().text == "third 0 1 2 3 4 5 6 7 "
            assert await Chat(store, f"new {_}").do(create("m1", streaming=True)) == Committed(1)
    assert [line for line in verify(path) if "'m3'" not in line] == []


async def test_missing_row_of_the_log_damages_open_messages_only(path: Path) -> None:
    run_from_outside(path, "DELETE FROM log WHERE id = 3")
    assert [line for line in verify(path) if "message 'm3'" in line]
    async with opened(path) as store:
        found = await states(store)
        assert {one.id: one.is_damaged for one in found.values()} == {"m1": False, "m2": False, "m3": True}
    assert [line.split(": message 'm3'")[0] for line in verify(path)] == ["channel 'c'"]


async def test_stand_in_of_a_damaged_message_is_never_stored(path: Path) -> None:
    async with opened(path) as store:
        chat = Chat(store)
        chat.state.epoch, chat.state.serial = (await head_of(store, "c"))[:2]
        await chat.do(("!c1", SendCommand(name="approve", target=None, data=1)))
    damage_last_row_of_the_log(path)
    store = SqliteStore(path)
    hub = HubCore(store, hooks_signals=False)
    await hub.create("new", text="x")  # the hub has opened the store, and marked what was open as damaged
    rows = "SELECT * FROM documents JOIN pieces ON document = documents.id WHERE channel = 1 ORDER BY document, blob"
    before = run_from_outside(path, rows)
    await store.tidy(0)
    for channel, message_id in [*await store.tidy(OLD_MS), ("c", "m3"), ("c", "!c1")]:
        hub.runtime.committer.submit(DocumentDue(channel, message_id))
    while hub.runtime.committer.waiting:  # noqa: ASYNC110 - a requested document has no result
        await asyncio.sleep(0)
    await hub.close()
    assert run_from_outside(path, rows) == before
    async with opened(path) as again:
        assert {one.id for one in (await states(again)).values() if one.is_damaged} == {"m3", "!c1"}
        assert again.stats()["pinned"] == 1


async def test_flipped_bit_in_the_log_is_put_right(path: Path) -> None:
    (row,) = run_from_outside(path, "SELECT max(id), body FROM log")
    body = bytearray(row[1])
    for bit in range(0, 8 * len(body), 7):
        body[bit // 8] ^= 1 << bit % 8
        assert opened_row(row[0], bytes(body)) == row[1][SUM_BYTES:]
        body[bit // 8] ^= 1 << bit % 8


def test_row_of_the_log_is_opened_in_its_own_slot_only() -> None:
    row = sealed(3, b"\x91\x01")
    assert opened_row(3, row) == b"\x91\x01"
    assert opened_row(4, row) is None
    assert opened_row(4, bytes(40)) == bytes(36)


async def test_verify_names_each_damaged_message_and_no_other(path: Path) -> None:
    assert list(verify(path)) == []
    run_from_outside(path, f"UPDATE texts SET body = CAST(replace(body, 'f', 'F') AS BLOB) WHERE id = {ONE_PIECE}")
    run_from_outside(path, "UPDATE documents SET version = 7 WHERE message = 'm2'")
    async with opened(path) as store:  # it also runs beside a server
        await Chat(store, "other").do(create("m1", "x"))
        one, two = verify(path)
    assert one.startswith("channel 'c': message 'm1': message 'm1' is damaged (piece 1 of text 1 has a wrong checksum)")
    assert two.startswith("channel 'c': message 'm2': message 'm2' is damaged (its head has a wrong checksum)")


async def test_channels_are_listed_beside_a_server_and_verify_reports_a_wrong_count(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    async with opened(path) as store:
        await Chat(store, "chat:1").do(create("m1", "hello"))
        await Chat(store, "log:1").do(create("m1", "hello"))
        command = ["channels", "--store", f"sqlite:///{path}"]
        listed = await asyncio.to_thread(CliRunner().invoke, main, [*command, "chat:", "--json"])
        (summary,) = await store.summaries(["chat:*"], after=None, limit=9)
        assert [json.loads(line) for line in listed.output.splitlines()] == [msgspec.to_builtins(summary)]
        table = (await asyncio.to_thread(CliRunner().invoke, main, command)).output.splitlines()
        assert [line.split()[-1] for line in table] == ["channel", "chat:1", "log:1"]
        assert "1970-01-01 00:00:01" in table[1]
    run_from_outside(path, "UPDATE channels SET messages = 7 WHERE name = 'log:1'")
    assert list(verify(path)) == [
        "channel 'log:1': its count of messages or bytes is wrong; if none of its messages is named, run "
        "`tenuto compact`, which counts anew"
    ]


async def test_damaged_time_or_name_of_a_channel_ends_no_list(path: Path) -> None:
    """One changed bit makes a time one before the year 1, or a hyphen the begin of the line."""
    async with opened(path) as store:
        await Chat(store, "a-b").do(create("m1", "x"))
        await Chat(store, "d").do(create("m1", "x" * 70))
    run_from_outside(path, "UPDATE channels SET updated_ms = updated_ms - (1 << 47) WHERE name = 'c'")
    run_from_outside(path, "UPDATE channels SET name = replace(name, '-', char(13)) WHERE name = 'a-b'")
    store_url = ("--store", f"sqlite:///{path}")
    listed = await asyncio.to_thread(CliRunner().invoke, main, ["channels", *store_url])
    assert (listed.exit_code, [line.split()[-1] for line in listed.output.splitlines()]) == (
        0,
        ["channel", "'a\\rb'", "c", "d"],
    ), listed
    as_json = await asyncio.to_thread(CliRunner().invoke, main, ["channels", "--json", *store_url])
    assert [json.loads(line)["channel"] for line in as_json.output.splitlines()] == ["a\rb", "c", "d"]
    due = await asyncio.to_thread(CliRunner().invoke, main, ["retention", "--dry-run", "--keep", "*=10m", *store_url])
    assert due.exit_code == 1
    assert [line.split()[2] for line in due.stdout.splitlines()[:-1]] == ["c", "d"]
    assert due.stderr.startswith("retention leaves out a channel that cannot be read: channel 'a\\rb' is damaged")


@pytest.mark.parametrize("where", ["message", "index", "channel"])
async def test_name_that_is_no_longer_utf8_damages_one_message_or_one_channel(
    path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each other call works: an error of Python's while it decodes a row also left a statement open."""
    async with opened(path) as store:
        await Chat(store, "other").do(create("odd-one", "x", streaming=where == "message"), create("m4", "y"))
    table, name = {
        "message": ("documents", b"odd-one"),
        "index": ("documents_message", b"odd-one"),
        "channel": ("channels", b"other"),
    }[where]
    ((root,),) = run_from_outside(path, "SELECT rootpage FROM sqlite_master WHERE name = ?", table)
    data = bytearray(read(path))
    data[data.index(name, PAGE * (root - 1))] ^= 0x80
    write(path, bytes(data))
    lines = list(verify(path))
    assert [line for line in lines if "other" in line or "odd-one" in line or "\ufffd" in line], lines
    store = SqliteStore(path)
    hub = HubCore(store, hooks_signals=False)
    await hub.start()
    for channel in ("c", "other"):
        if (channel, where) == ("other", "channel"):
            continue
        messages = {one.id: one.text for one in (await hub.history(channel)).messages}
        assert messages.get("m1", "first " * 2_000) == "first " * 2_000
        assert messages.get("m4", "y") == "y"
        changed = (await store.changes(channel, after=0, limit=9)).messages
        is_left_out = (channel, where) == ("other", "message")
        assert len(changed or ()) == {"c": 3, "other": 2}[channel] - is_left_out
        with pytest.raises(Damaged, match="2 messages, but 1") if is_left_out else nullcontext():
            assert b'"damaged":1' not in b"".join([line async for line in export_lines(store, channel)])
    await store.tidy(0)
    assert await store.wipe()
    with pytest.raises(StoreUnusable, match="missing from index"):  # as for each damaged index
        await store.backup(path.with_name("backup.db"), mb_per_s=100)
    assert store.stats()["damaged"] == (where == "message")
    await hub.close()
    assert [one for one in caplog.messages if "housekeeping" in one or "closed cleanly" in one] == []
    await asyncio.to_thread(compact, path)
    assert [line for line in verify(path) if "index" in line] == []
    async with opened(path) as store:
        await store.backup(path.with_name("backup.db"), mb_per_s=100)


async def test_message_that_an_index_does_not_list_gets_no_second_document(path: Path) -> None:
    async with opened(path) as store:
        chat = Chat(store, "other")
        await chat.do(create("odd-one", "x"))
    ((root,),) = run_from_outside(path, "SELECT rootpage FROM sqlite_master WHERE name = 'documents_message'")
    data = bytearray(read(path))
    data[data.index(b"odd-one", PAGE * (root - 1))] ^= 2
    write(path, bytes(data))
    async with opened(path) as store:
        again = Chat(store, "other")
        again.state.epoch, again.state.serial = (await head_of(store, "other"))[:2]
        again.state.insert(restored((await store.changes("other", after=0, limit=9)).messages or ()))
        await again.do(edit("odd-one", "new"), documents=["odd-one"])
        page = await store.page("other", before=None, limit=9, limit_bytes=10**9)
        assert [(one.id, one.message().text) for one in restored(page.messages)] == [("odd-one", "new")]


# -- the list of free slots ------------------------------------------------------------------------------------------


async def with_free_slots(path: Path) -> None:
    """Delete messages of a closed file, so that it has free slots."""
    async with opened(path) as store:
        chat = Chat(store, "gone")
        await chat.do(*(create(f"m{number}", "x" * 90 * number) for number in range(40)))
        await emptied(store, "gone")
        await store.tidy(0)
    assert run_from_outside(path, "SELECT count(*) FROM free")[0][0] > 10


@pytest.mark.parametrize("moment", ["closed", "serving", "deleting"])
async def test_damaged_list_of_free_slots_costs_free_space_only(
    path: Path, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    await with_free_slots(path)
    async with opened(path) as store:
        await Chat(store, "old").do(create("m0", "x" * 3_000))
    ((root,),) = run_from_outside(path, "SELECT rootpage FROM sqlite_master WHERE name = 'free'")

    def damage() -> None:
        with path.open("r+b") as file:
            file.seek((root - 1) * PAGE)
            file.write(b"\xff" * PAGE)

    if moment == "closed":
        damage()
        checked = CliRunner().invoke(main, ["verify", "--store", f"sqlite:///{path}"])
        assert re.fullmatch(
            r"store file \S+ is damaged \(.*\n?.*\); if no message is named below, "
            r"run `tenuto compact`; if that fails, restore a backup\n"
            r"\S+: 1 damaged\n",
            checked.output,
        )
    async with opened(path) as store:
        if moment != "closed":
            damage()
            await run_on_thread(store, "PRAGMA shrink_memory")  # the page is read again
        if moment == "deleting":
            await emptied(store, "old")  # its sweep fails, and waits to be tried again
        if moment == "serving":
            with pytest.raises(StoreUnavailable):
                await Chat(store, "new").do(create("m0", "lost"))
        await store.tidy(0)
        assert await Chat(store, "new").do(create("m1", "x" * 3_000)) == Committed(1)
        await emptied(store, "new")
        await store.tidy(0)
        assert store.stats()["free_bytes"] > 0
        assert [one.is_damaged for one in (await states(store)).values()] == [False] * 3
    assert len([one for one in caplog.messages if "its list of free slots is damaged" in one]) == 1
    assert len(list(verify(path))) == 1
    await asyncio.to_thread(compact, path)
    assert list(verify(path)) == []
    assert run_from_outside(path, "SELECT name FROM sqlite_master WHERE name GLOB 'damaged*'") == []


async def test_free_slot_that_is_in_use_keeps_its_text(path: Path) -> None:
    run_from_outside(path, "INSERT INTO free SELECT length(body), id FROM texts WHERE body <> zeroblob(length(body))")
    run_from_outside(path, "INSERT INTO free VALUES (?, 1), (?, 2)", 2**63 - 1, 2**63 - 1)  # too large to add up
    async with opened(path) as store:
        await Chat(store, "new").do(*(create(f"m{number}", "x" * 100 * number) for number in range(40)))
        assert [one.is_damaged for one in (await states(store)).values()] == [False] * 3
    assert list(verify(path)) == []
