"""Damage to the structure of a file: each command gives one line that says what to do, never a traceback."""

import contextlib
import gzip
import sqlite3
from pathlib import Path

import pytest

from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.stores.sqlite import engine as sqlite_engine
from tenuto.stores.sqlite.documents import Documents
from tenuto.stores.sqlite.engine import Engine
from tenuto.stores.sqlite.file import SCHEMA
from tenuto.stores.sqlite.verify import verify
from tests.stores.contract import Chat, create, delete, emptied
from tests.stores.files import call_on_thread, cli, on_disk, opened, read, run_from_outside, write
from tests.stores.test_sqlite_deleting import tidy_for_a_minute

WHOLE = gzip.decompress((Path(__file__).parent / "files" / f"schema-{SCHEMA}.db.gz").read_bytes())
NAME_OF_AN_INDEX = (WHOLE.index(b"tablegravesgraves") + 6, 7)  # no longer UTF-8, and SQLite quotes it in its error
COLUMN_OF_THE_LOG = (WHOLE.index(b"log (id INTEGER PRIMARY KEY") + 20, 2)  # its numbers are not those of the slots
CONDITION_OF_AN_INDEX = (WHOLE.index(b"WHERE open = 1") + 13, 1)  # it would list other messages as open
WORDS = ("verify", "channels", "retention --dry-run --keep *=1d", "export chat:1", "forget alice", "compact")
COMMANDS = [one.split() for one in WORDS]
PAGE = 4_096
INDEX_OF_MESSAGES = (24216, 7)


def flipped(flip: tuple[int, int]) -> bytes:
    data = bytearray(WHOLE)
    data[flip[0]] ^= 1 << flip[1]
    return bytes(data)


def run(*arguments: str, store: Path) -> str:
    """Return the one line of a command that fails."""
    result = cli(*arguments, store=store)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.output.splitlines()
    return line


@pytest.mark.parametrize("flip", [NAME_OF_AN_INDEX, COLUMN_OF_THE_LOG, CONDITION_OF_AN_INDEX], ids=str)
def test_each_command_says_in_one_line_that_the_file_is_damaged(path: Path, flip: tuple[int, int]) -> None:
    for command in COMMANDS:
        write(path, flipped(flip))
        line = run(*command, store=path)
        assert line.startswith(f"Error: store file {path} cannot be read")
        assert line.endswith("; restore a backup")


def test_compact_brings_messages_back_that_an_index_lost(path: Path) -> None:
    write(path, flipped(INDEX_OF_MESSAGES))
    (line,) = verify(path)
    assert line.endswith("if no message is named below, run `tenuto compact`; if that fails, restore a backup")
    result = cli("compact", store=path)
    assert result.exit_code == 0, result.output
    assert list(verify(path)) == []


async def test_removal_of_a_damaged_message_leaves_the_text_of_others(path: Path) -> None:
    write(path, WHOLE)
    run_from_outside(
        path,
        "UPDATE pieces SET slot = (SELECT min(slot) FROM pieces JOIN documents ON id = document WHERE channel = 1"
        " AND message = 'm-long' AND blob = 1) WHERE blob = 1 AND document = (SELECT id FROM documents"
        " WHERE message = 'm-2' AND channel = 6)",
    )
    assert len(list(verify(path))) == 1  # the message of a deleted channel, which the server removes
    async with opened(path) as store:
        await store.tidy(0)
    assert run_from_outside(path, "SELECT count(*) FROM documents WHERE channel IN (6, 7)") == [(0,)]
    assert list(verify(path)) == []


async def test_damaged_document_of_a_dead_channel_keeps_no_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts_of = [f"<{number:03d}>" * 700 for number in range(100)]
    async with opened(path) as store:
        await Chat(store, "gone").do(*(create(f"m{number}", text) for number, text in enumerate(texts_of)))
    data = bytearray(read(path))
    page = data.index(b"<050>" * 100) // PAGE
    data[page * PAGE : (page + 1) * PAGE] = b"\xff" * PAGE
    write(path, bytes(data))
    for deletes in (True, False):  # also a later start
        async with opened(path) as store:
            if deletes:
                await emptied(store, "gone")
            await tidy_for_a_minute(store)
            assert await store.wipe() is None
        assert run_from_outside(path, "SELECT message FROM documents") == [("m50",), ("m51",)]  # it has their heads
        assert [text[:5] for text in texts_of if text[:5].encode() in on_disk(path)] == ["<051>"]
    assert caplog.text.count("2 documents of a deleted channel cannot be removed") == 2


CORRUPT = sqlite3.DatabaseError("database disk image is malformed")
CORRUPT.sqlite_errorcode = sqlite3.SQLITE_CORRUPT


@pytest.mark.parametrize("error", [CORRUPT, StoreUnusable("no row"), TypeError("no number")], ids=repr)
async def test_error_that_tells_of_damage_puts_off_no_other_housekeeping(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    def round_of(engine: Engine) -> list[object]:
        for name in ("gone", "other"):
            engine.delete_channel(name, expected=engine.channels.head(name), used_up=(), until_ms=0)
        return [engine.tidy(0), *(engine.spare(is_idle=False) for _ in range(4))]

    monkeypatch.setattr(sqlite_engine, "TIDY_S", 0)  # one step for each call
    async with opened(path) as store:
        chat = Chat(store)
        await chat.do_each(create("m1", "a"), delete("m1"))
        for name in ("gone", "other"):
            await Chat(store, name).do(create("m1", "b"))
        monkeypatch.setattr(Documents, "outdated", fail)
        monkeypatch.setattr(Documents, "remove_keys", fail)
        assert (await call_on_thread(store, round_of))[:2] == [[("c", "m1")], 0.0]
        assert await call_on_thread(store, lambda engine: engine._deleted) == []


@pytest.mark.parametrize("flip", [(32513, 6), (19588, 7), (16453, 7)], ids=str)
async def test_removal_of_a_deleted_channel_ends_although_no_key_finds_its_messages(
    path: Path, flip: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    write(path, flipped(flip))
    async with opened(path) as store:
        for _ in range(20):  # more than it needs
            pause_s = await call_on_thread(store, lambda engine: engine.spare(is_idle=True))
        assert pause_s != 0
        assert await call_on_thread(store, lambda engine: engine._deleted) == []
    reports = caplog.text.count("of a deleted channel cannot be removed: their keys do not find their rows")
    assert reports in (1, 2)  # one for each of the two channels at most


@pytest.mark.parametrize("flip", [(12308, 0), (12308, 1), (12308, 2), (12308, 3), (12309, 6)], ids=str)
async def test_pages_of_a_damaged_index_end(path: Path, flip: tuple[int, int]) -> None:
    write(path, flipped(flip))
    async with opened(path) as store:
        for limit in (1, 2, 3, 200):
            for is_summary in (False, True):
                after: str | None = ""
                pages = 0
                with contextlib.suppress(StoreUnusable, StoreUnavailable):
                    while after is not None:
                        if is_summary:
                            page = [one.channel for one in await store.summaries(["*"], after=after, limit=limit)]
                        else:
                            page = await store.channels(after=after, limit=limit)
                        after = page[-1] if page else None
                        pages += 1
                        assert pages < 20  # the file has fewer channels
