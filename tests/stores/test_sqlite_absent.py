"""The search for words in all files of a store."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tenuto.cli.main import main
from tenuto.core.errors import LocalError
from tenuto.core.requests import AppendText, CreateMessage
from tenuto.hub import HubCore
from tenuto.stores.sqlite import absent as sqlite_absent
from tenuto.stores.sqlite.absent import MAX_PLACES, Word, read_words
from tenuto.stores.sqlite.store import SqliteStore

FILES = Path(__file__).parent / "files"


def verify(path: Path, words: Path) -> Result:
    return CliRunner().invoke(main, ["verify", "--store", f"sqlite:///{path}", "--absent", str(words)])


async def test_words_are_found_in_database_wal_and_backups_until_the_person_is_forgotten(tmp_path: Path) -> None:
    path, words, backup = tmp_path / "chat.db", tmp_path / "words", tmp_path / "kept" / "one.db"
    backup.parent.mkdir()
    words.write_bytes(b"\nxylophone-17\n  quince \nnever-written\n")
    hub = HubCore(f"sqlite:///{path}", hooks_signals=False)
    await hub.create("chat:1", id="m1", text="a xylophone-17", author="ann")
    await hub.create("chat:1", id="m2", text="x" * 4030 + " quince " + "y" * 9000, author="ann")
    assert isinstance(hub.store, SqliteStore)
    await hub.store.backup(backup, mb_per_s=1000)
    found = verify(path, words)
    assert found.exit_code == 1
    lines = found.output.splitlines()
    for file in (path, backup):
        assert f"{file}: the word of line 2 is in message 'm1' of channel 'chat:1'" in lines
        assert f"{file}: the word of line 3 is in message 'm2' of channel 'chat:1'" in lines
    assert any(line.startswith(f"{path}-wal: the word of line 2 is at byte ") for line in lines)
    assert not any("line 4" in line or "xylophone" in line for line in lines)
    assert lines[-1] == f"{path}: 2 of 3 words found, in {len(lines) - 1} places"

    assert (await hub.archive.forget("ann")).older_backups == [str(backup)]
    left = verify(path, words).output.splitlines()
    assert [line for line in left[:-1] if not line.startswith(str(backup))] == []
    backup.unlink()
    absent = verify(path, words)
    assert (absent.exit_code, absent.output) == (0, f"{path}: none of 3 words found\n")
    await hub.close()


async def test_a_word_that_was_appended_in_parts_is_found_while_its_message_streams(tmp_path: Path) -> None:
    path, words = tmp_path / "chat.db", tmp_path / "words"
    words.write_bytes(b"xylophone-17\n")
    hub = HubCore(f"sqlite:///{path}", hooks_signals=False)
    await hub.ask("chat:1", "m1", CreateMessage(status="streaming", role="assistant"), hub.caller(None))
    for text in ("a xylo", "phone", "-17"):
        await hub.ask("chat:1", "m1", AppendText(text=text), hub.caller(None))
    found = verify(path, words)
    await hub.close()
    assert (found.exit_code, found.output.splitlines()[0]) == (
        1,
        f"{path}: the word of line 1 is in message 'm1' of channel 'chat:1'",
    )


def test_a_word_is_found_at_each_place_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data"
    words = [Word(1, b"aba"), Word(2, b"abacus")]
    for data in (b"abacus", b"..abacus..ababa", b"ab", b"x" * 11 + b"abacus" + b"y" * 3 + b"aba"):
        file.write_bytes(data)
        expected = sorted(
            (word.line, at) for word in words for at in range(len(data)) if data.startswith(word.text, at)
        )
        for chunk in (1, 2, 5, 7, 100):
            monkeypatch.setattr(sqlite_absent, "_CHUNK", chunk)
            found = sorted((word.line, int(where.split()[-1])) for word, where in sqlite_absent._in_bytes(file, words))
            assert found == expected, (data, chunk)
    file.write_bytes(b"abc" * (MAX_PLACES + 5))
    counts: Counter[Word] = Counter()
    lines = list(sqlite_absent._bounded(file, sqlite_absent._in_bytes(file, [Word(1, b"abc")]), counts))
    assert (len(lines), lines[-1]) == (MAX_PLACES + 1, f"{file}: the word of line 1 is in 5 further places")
    assert counts.total() == MAX_PLACES + 5


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\n \n", "must have 1-1,000 words"),
        (b"abc\n" * 1_001, "it has 1,001 words"),
        (b"x" * (sqlite_absent.MAX_FILE_BYTES + 1), "at most 1,048,576 bytes"),
        (b"long\nab\n", "line 2 of .* must be a word of 3-1,000 bytes, got 'ab'"),
    ],
)
def test_a_file_without_usable_words_is_refused(tmp_path: Path, data: bytes | None, why: str) -> None:
    file = tmp_path / "words"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(LocalError, match=why):
        read_words(file)
