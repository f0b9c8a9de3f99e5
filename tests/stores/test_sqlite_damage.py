"""Bytes that change on the disk are never read as text; the other messages stay readable."""

import asyncio
import gzip
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.document import Stored, restored
from tenuto.core.errors import Damaged, StoreUnavailable, StoreUnusable
from tenuto.core.requests import SendCommand
from tenuto.hub import HubCore
from tenuto.hub.keep.exports import export_lines
from tenuto.hub.pending import DocumentDue
from tenuto.stores.base import NOTHING, OLD_MS, Committed, Store, head_of
from tenuto.stores.sqlite.compact import compact
from tenuto.stores.sqlite.file import SCHEMA
from tenuto.stores.sqlite.slots import MAX_DATA, MAX_ROOM, SLOT_BYTES, room_for, sealed
from tenuto.stores.sqlite.slots import opened as opened_row
from tenuto.stores.sqlite.store import SqliteStore
from tenuto.stores.sqlite.verify import verify
from tests.stores.contract import Chat, append, create, edit, emptied, texts
from tests.stores.files import cli, opened, read, run_from_outside, run_on_thread, write
from tests.stores.reference import described

FILE = Path(__file__).parent / "files" / f"schema-{SCHEMA}.db.gz"
IS_LONG = os.environ.get("TENUTO_STORES") == "long"
FLIPS, TORN = (1_000, 100) if IS_LONG else (300, 30)
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
KNOWN = {28562: 4, 28641: 2, 32635: 0, 32540: 7, 32620: 7, 4082: 7, 8166: 7, 16423: 6, 20149: 7, 24380: 7, 24541: 6}
KNOWN |= {32607: 5, 48396: 6, 48609: 4}


@pytest.mark.parametrize("flip", KNOWN.items(), ids=str)
async def test_known_flip_is_not_read_as_text(
    memory: Path, whole: bytes, truth: dict[str, Any], flip: tuple[int, int]
) -> None:
    data = bytearray(whole)
    data[flip[0]] ^= 1 << flip[1]
    assert (await outcome_of(memory / "chat.db", bytes(data), truth)).total() > 0


# -- slots --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=MAX_DATA), st.integers(0, 100))
def test_sealed_data_is_read_at_its_place_alone(data: bytes, spare: int) -> None:
    room = min(MAX_ROOM, room_for(SLOT_BYTES + len(data)) + spare)
    body = sealed((7, 1, 0), data, room)
    assert len(body) == room
    assert opened_row((7, 1, 0), body) == data
    assert opened_row((8, 1, 0), body) != data


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


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE texts SET body = CAST(replace(body, 'f', 'F') AS BLOB) WHERE id = {ONE_PIECE}",
        "DELETE FROM pieces WHERE document = 1 AND blob = 1",
        "UPDATE documents SET version = 7 WHERE message = 'm1'",
        "UPDATE pieces SET slot = (SELECT max(slot) FROM pieces JOIN documents ON id = document WHERE message = 'm2'"
        " AND blob = 1 AND chunk = 1) WHERE document = 1 AND blob = 1 AND chunk = 1",
    ],
)
async def test_damaged_message_has_failed_and_is_refused_until_it_is_deleted(
    path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_from_outside(path, change)
    store = SqliteStore(path)
    hub = HubCore(store, hooks_signals=False)
    found = {one.id: one for one in (await hub.history("c")).messages}
    assert (found["m1"].status, found["m1"].reason, found["m1"].parts) == ("failed", "damaged", [])
    assert [found[one].text for one in ("m2", "m3")] == ["second " * 2_000, "third 0 1 2 3 4 5 6 7 "]
    assert store.stats()["damaged"] >= 1
    assert "message 'm1' is damaged" in caplog.text
    with pytest.raises(Damaged):
        await hub.update("c", "m1", text="x")
    await hub.update("c", "m2", text="x")
    await hub.delete("c", "m1")
    await hub.close()
    async with opened(path) as again:
        assert (await states(again))["m1"].is_damaged is False
    assert list(verify(path)) == []


async def test_channel_under_another_name_is_not_read(path: Path) -> None:
    run_from_outside(path, "UPDATE channels SET name = 'd'")
    async with opened(path) as store:
        assert await head_of(store, "c") == NOTHING
        with pytest.raises(StoreUnusable, match="channel 'd' is damaged"):
            await store.changes("d", after=0, limit=10)
        assert await store.open_channels() == []
        assert await store.tidy(2**40) == []


LAST = "(SELECT max(id) FROM log)"


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE log SET body = CAST(replace(body, '7', '????') AS BLOB) WHERE id = {LAST}",
        f"UPDATE log SET body = x'' WHERE id = {LAST}",
        f"UPDATE log SET body = zeroblob(length(body)) WHERE id = {LAST}",
        "DELETE FROM log WHERE id = 3",
        "UPDATE log SET body = (SELECT body FROM log WHERE id = 4) WHERE id = 3",
    ],
)
async def test_damaged_row_of_the_log_damages_the_open_messages_alone_and_for_good(path: Path, change: str) -> None:
    run_from_outside(path, change)
    assert [line for line in verify(path) if "message 'm3'" in line or "the log" in line]
    for number in range(2):
        async with opened(path) as store:
            found = await states(store)
            assert {one.id: one.is_damaged for one in found.values()} == {"m1": False, "m2": False, "m3": True}
            assert (await head_of(store, "c")).epoch != "e1"
            assert (await Chat(store, f"new {number}").do(create("m1", streaming=True))) == Committed(1)
    assert [line.split(": message 'm3'")[0] for line in verify(path)] == ["channel 'c'"]


async def test_row_of_the_log_under_another_number_is_put_right(path: Path) -> None:
    run_from_outside(path, "UPDATE log SET id = id + 64 WHERE id = 4")
    async with opened(path) as store:
        assert (await states(store))["m3"].message().text == "third 0 1 2 3 4 5 6 7 "
        assert (await head_of(store, "c")).epoch == "e1"
    assert list(verify(path)) == []


async def test_zeroed_row_of_the_log_that_a_store_needs_is_damage(path: Path, store: SqliteStore) -> None:
    run_from_outside(path, f"UPDATE log SET body = zeroblob(length(body)) WHERE id = {LAST}")
    assert {one.id: one.is_damaged for one in (await states(store)).values()} == {"m1": 0, "m2": 0, "m3": 1}


async def test_damaged_time_or_name_of_a_channel_ends_no_list(path: Path) -> None:
    """One changed bit makes a time one before the year 1, or a hyphen the begin of the line."""
    async with opened(path) as store:
        await Chat(store, "a-b").do(create("m1", "x"))
    run_from_outside(path, "UPDATE channels SET updated_ms = updated_ms - (1 << 47) WHERE name = 'c'")
    run_from_outside(path, "UPDATE channels SET name = replace(name, '-', char(13)) WHERE name = 'a-b'")
    listed = await asyncio.to_thread(cli, "channels", store=path)
    assert [line.split()[-1] for line in listed.output.splitlines()] == ["channel", "'a\\rb'", "c"]
    due = await asyncio.to_thread(cli, "retention", "--dry-run", "--keep", "*=10m", store=path)
    assert [line.split()[2] for line in due.stdout.splitlines()[:-1]] == ["c"]
    assert due.stderr.startswith("retention leaves out a channel that cannot be read: channel 'a\\rb' is damaged")


async def test_message_that_an_index_does_not_list_gets_no_second_document(path: Path) -> None:
    ((root,),) = run_from_outside(path, "SELECT rootpage FROM sqlite_master WHERE name = 'documents_message'")
    data = bytearray(read(path))
    data[data.index(b"m2", PAGE * (root - 1))] ^= 2
    write(path, bytes(data))
    async with opened(path) as store:
        again = Chat(store)
        again.state.epoch, again.state.serial = (await head_of(store, "c"))[:2]
        again.state.insert((await states(store)).values())
        await again.do(edit("m2", "new"), documents=["m2"])
        page = await store.page("c", before=None, limit=9, limit_bytes=10**9)
        assert [one.message().text for one in restored(page.messages) if one.id == "m2"] == ["new"]


async def test_channel_whose_documents_damage_hides_takes_new_messages(path: Path) -> None:
    run_from_outside(path, "DELETE FROM documents")
    run_from_outside(path, "DELETE FROM pieces")
    async with opened(path) as store:
        assert await Chat(store).do(create("new", "new")) == Committed(1)
        assert await texts(store, "c", "new") == ["new"]


async def test_stand_in_of_a_damaged_message_is_never_stored(path: Path) -> None:
    async with opened(path) as store:
        chat = Chat(store)
        chat.state.epoch, chat.state.serial = (await head_of(store, "c"))[:2]
        await chat.do(("!c1", SendCommand(name="approve", target=None, data=1)))
    (row,) = run_from_outside(path, "SELECT max(id), body FROM log")
    run_from_outside(path, "UPDATE log SET body = ? WHERE id = ?", row[1][:8] + b"????" + row[1][12:], row[0])
    store = SqliteStore(path)
    hub = HubCore(store, hooks_signals=False)
    await hub.create("new", text="x")  # the hub has opened the store, and marked what was open as damaged
    rows = "SELECT * FROM documents JOIN pieces ON document = documents.id WHERE channel = 1 ORDER BY document, blob"
    before = run_from_outside(path, rows)
    await store.tidy(0)
    for channel, message_id in [*await store.tidy(OLD_MS), ("c", "m3"), ("c", "!c1")]:
        hub.runtime.committer.submit(DocumentDue(channel, (message_id,)))
    while hub.runtime.committer.waiting:  # noqa: ASYNC110 - a requested document has no result
        await asyncio.sleep(0)
    await hub.close()
    assert run_from_outside(path, rows) == before
    async with opened(path) as again:
        assert {one.id for one in (await states(again)).values() if one.is_damaged} == {"m3", "!c1"}
        assert again.stats()["pinned"] == 1


async def test_flipped_bit_in_the_log_is_put_right(path: Path) -> None:
    (row,) = run_from_outside(path, "SELECT max(id), body FROM log")
    body, data = bytearray(row[1]), opened_row((row[0],), row[1])
    assert data
    for bit in range(0, 8 * len(body), 7):
        body[bit // 8] ^= 1 << bit % 8
        assert opened_row((row[0],), bytes(body), mends=True) == data
        body[bit // 8] ^= 1 << bit % 8


async def test_verify_names_each_damaged_message_and_no_other(path: Path) -> None:
    assert list(verify(path)) == []
    run_from_outside(path, f"UPDATE texts SET body = CAST(replace(body, 'f', 'F') AS BLOB) WHERE id = {ONE_PIECE}")
    run_from_outside(path, "UPDATE documents SET version = 7 WHERE message = 'm2'")
    async with opened(path) as store:  # it also runs beside a server
        await Chat(store, "other").do(create("m1", "x"))
        one, two = verify(path)
    assert one.startswith("channel 'c': message 'm1': message 'm1' is damaged (piece 1 of text 1 has a wrong checksum)")
    assert two.startswith("channel 'c': message 'm2': message 'm2' is damaged (its head has a wrong checksum)")


# -- the list of free slots ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_open", [False, True])
async def test_damaged_list_of_free_slots_costs_free_space_only(
    path: Path, is_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path) as store:
        await Chat(store, "gone").do(*(create(f"m{number}", "x" * 90 * number) for number in range(40)))
        await emptied(store, "gone")
        await store.tidy(0)
    ((root,),) = run_from_outside(path, "SELECT rootpage FROM sqlite_master WHERE name = 'free'")
    damaged = bytearray(read(path))
    damaged[(root - 1) * PAGE : root * PAGE] = b"\xff" * PAGE
    if not is_open:
        write(path, bytes(damaged))
    async with opened(path) as store:
        if is_open:
            write(path, bytes(damaged))
            await run_on_thread(store, "PRAGMA shrink_memory")  # the page is read again
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


async def test_free_slot_that_is_in_use_keeps_its_text(path: Path) -> None:
    run_from_outside(path, "INSERT INTO free SELECT length(body), id FROM texts WHERE body <> zeroblob(length(body))")
    run_from_outside(path, "INSERT INTO free VALUES (?, 1), (?, 2)", 2**63 - 1, 2**63 - 1)  # too large to add up
    async with opened(path) as store:
        await Chat(store, "new").do(*(create(f"m{number}", "x" * 100 * number) for number in range(40)))
        assert [one.is_damaged for one in (await states(store)).values()] == [False] * 3
    assert list(verify(path)) == []
