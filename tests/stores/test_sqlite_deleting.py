"""Deleted text is gone: from the file, the WAL, and every gap and free page in them."""

import itertools
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tenuto.core.requests import ReplyCommand, SendCommand
from tenuto.stores.base import OLD_MS, Store, head_of
from tenuto.stores.sqlite import engine as sqlite_engine
from tenuto.stores.sqlite.engine import Engine
from tenuto.stores.sqlite.store import SqliteStore
from tests.stores.contract import MINUTE_MS, Chat, append, create, delete, edit, emptied, texts
from tests.stores.files import PATIENCE_S, call_on_thread, lock, on_disk, opened, read, run_on_thread, wal, write

WORD = re.compile(rb"<(\d{6})>")


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    async with opened(path) as store:
        await store.tidy(0)  # do the housekeeping that follows each start, so that the tests begin after it
        yield store


async def tidy_for_a_minute(store: Store, *chats: Chat) -> None:
    """Do the hub's housekeeping of a minute."""
    for now_ms in (0, MINUTE_MS, MINUTE_MS + 5_000):
        due = await store.tidy(now_ms)
        for chat in chats:
            await chat.write_documents(due)
    await store.tidy(MINUTE_MS + 10_000)


async def test_data_of_a_command_is_gone_within_a_minute_after_its_target(store: SqliteStore, path: Path) -> None:
    chat = Chat(store)
    await chat.do(create("m1", "a"), create("m2", "stays"))
    for number in range(20):
        key = f"!c{number}"
        send, reply = SendCommand(name="approve", target="m1", data="SECRET" * number * 90), ReplyCommand(data="SECRET")
        await chat.do((key, send), documents=[key])
        await chat.do((key, reply), documents=[key])
    assert b"SECRET" in on_disk(path)
    await chat.do(delete("m1"), documents=["m1"])
    await tidy_for_a_minute(store, chat)
    assert b"SECRET" not in on_disk(path)
    assert (await store.changes("c", after=2, limit=100)).messages is not None


async def test_text_of_a_deleted_channel_is_gone_within_a_minute(store: SqliteStore, path: Path) -> None:
    gone, other = Chat(store, "gone"), Chat(store, "other")
    await other.do(create("m1", streaming=True))
    for number in range(60):
        await gone.do(create(f"m{number}", f"SECRET-{number} " * 50 * (number % 7), streaming=True))
        both = [gone.write(append(f"m{number}", "SECRET")), other.write(append("m1", "x"))]
        await store.commit(both)
        gone.take(both[0])
        other.take(both[1])
    await emptied(store, "gone")
    await tidy_for_a_minute(store, other)
    assert b"SECRET" not in on_disk(path)
    assert await texts(store, "other", "m1") == ["x" * 60]


async def test_wipe_of_a_busy_store_ends_although_more_is_deleted_again_and_again(
    store: SqliteStore, chat: Chat, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_engine, "IDLE_S", PATIENCE_S)  # the store is never idle
    await chat.do(create("a", "SECRET", streaming=True), create("b", streaming=True), create("c", "x" * 6_000_000))
    await chat.do(append("a", "SECRET"), append("b", "x"))
    await chat.do(delete("a"), documents=["a"])
    assert await store.wipe() is False  # `b` needs a row with the text
    for number in range(1, 20):
        open_id, gone_id = f"open{number}", f"gone{number}"
        await chat.do(create(open_id, streaming=True), create(gone_id, "x"))
        await chat.do(append(open_id, "x"), delete(gone_id), documents=[gone_id])
        await chat.write_documents(await store.tidy(number * 5_000))
        if await store.wipe(goes_on=True):
            break
    assert number * 5_000 == OLD_MS  # `b` gets a document
    assert b"SECRET" not in on_disk(path)
    assert await store.wipe() is False  # of the later ones


async def test_wipe_waits_for_no_text_in_a_row_that_a_damaged_message_needs(store: SqliteStore, path: Path) -> None:
    chat = Chat(store)
    await chat.do(create("a", streaming=True), create("b", streaming=True), create("c", streaming=True))
    await chat.do(append("a", "SECRET"), append("b", "x"))
    await chat.do(append("c", "SECRET"))
    await chat.do(delete("a"), delete("c"), documents=["a", "c"])
    await run_on_thread(store, "UPDATE documents SET crc = crc + 1 WHERE message = 'b'")
    assert await store.wipe() is False
    assert (await store.tidy(0), await store.tidy(OLD_MS)) == ([], [("c", "b")])
    assert await texts(store, "c", "b") == [""]  # the hub reads it, and finds the damage
    assert await store.wipe(goes_on=True) is None
    assert on_disk(path).count(b"SECRET") == 1


async def test_wipe_waits_for_no_channel_that_is_deleted_later(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_engine, "TIDY_S", 0)  # one step for each call
    for number in range(12):
        chat = Chat(store, f"c{number}")
        await chat.do(*(create(f"m{one}", "SECRET" if not number else "x", streaming=True) for one in range(40)))
        await chat.do(append("m0", "SECRET" if not number else "x"))

    def wipe(engine: Engine) -> list[bool | None]:
        results = []
        for number in range(12):
            name = f"c{number}"
            engine.delete_channel(name, expected=engine.channels.head(name), used_up=(), until_ms=0)
            results.append(engine.wipe(goes_on=number > 0))
        return [*results, engine.wipe()]

    results = await call_on_thread(store, wipe)
    assert (results[0], *results[-2:]) == (False, True, False)
    assert b"SECRET" not in on_disk(path)


async def test_text_deleted_just_before_a_crash_is_removed_after_it(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        chat = Chat(store)
        await chat.do(create("m1", "SECRET", streaming=True), create("m2", streaming=True))
        await chat.do(append("m1", "SECRET"), append("m2", "x"))
        await chat.do(delete("m1"), documents=["m1"])
        await emptied(store, "c")
        crashed = tmp_path / "crashed" / "chat.db"
        for one in (path, wal(path), lock(path)):
            write(crashed.with_name(one.name), read(one))
    assert b"SECRET" in on_disk(crashed)
    async with opened(crashed) as store:
        assert (await head_of(store, "c")).serial == 0
        for _ in range(20):  # on a busy machine the housekeeping takes several rounds
            await store.tidy(0)
            if b"SECRET" not in on_disk(crashed):
                break
        assert b"SECRET" not in on_disk(crashed)


async def test_no_deleted_text_is_left_in_gaps_between_rows(path: Path) -> None:
    """`secure_delete` alone leaves about one text in a thousand when rows move: see `tenuto.stores.sqlite.file`."""
    random.seed(1)
    numbers = itertools.count()
    async with opened(path) as store:
        chat = Chat(store)
        await chat.do(create("keeper", streaming=True))

        def word() -> str:
            return f"<{next(numbers):06d}>" * random.choice((1, 3, 12, 40, 150, 700))

        for _ in range(700):
            alive = [one.id for one in chat.state.messages.values() if not one.deleted and one.id != "keeper"]
            chosen = random.choice(alive) if alive else "keeper"
            steps = {
                "create": create(f"m{next(numbers)}", word(), streaming=True, title=word()[:800]),
                "append": append(chosen, word()),
                "edit": edit(chosen, word()),
                "delete": delete(chosen if chosen != "keeper" else "nobody"),
            }
            kind = random.choices(list(steps), (3, 4, 2, 2))[0]
            await chat.do(steps[kind], append("keeper", "."), documents=[chosen] * (random.random() < 0.5))
            gone = [one.id for one in chat.state.messages.values() if one.deleted and one.documented < one.version]
            await chat.do(documents=gone)
            for message_id in gone:
                del chat.state.messages[message_id]
        await chat.do(documents=list(chat.state.messages))
        await tidy_for_a_minute(store, chat)
        kept = {number for one in chat.state.messages.values() for number in WORD.findall(str(one.message()).encode())}
        left = set(WORD.findall(on_disk(path)))
        assert len(kept) > 50
        assert left <= kept
        await chat.do(append("keeper", "!"))
        assert await texts(store, "c", "keeper") == [chat.state.messages["keeper"].message().text]


async def test_wal_stays_small_while_a_large_channel_is_removed(store: SqliteStore, path: Path) -> None:
    chat, other = Chat(store), Chat(store, "other")
    for group in range(20):
        await chat.do(*(create(f"m{group}-{number}", "x" * 8_000) for number in range(100)))
    await store.delete_channel("c", expected=await head_of(store, "c"), used_up=(), until_ms=0)
    sizes = []
    for number in range(2_000):
        await other.do(create(f"m{number}", "y"))
        sizes.append(wal(path).stat().st_size)
        if await run_on_thread(store, "SELECT count(*) FROM channels WHERE name IS NULL") == [(0,)]:
            break
    assert len(sizes) < 2_000
    assert max(sizes) < 8_000_000
