"""Damage to the structure of a file: each command gives one line that says what to do, never a traceback."""

import gzip
from pathlib import Path

import pytest
from click.testing import CliRunner

from holdfast.cli import main
from holdfast.core.errors import StoreUnusable
from holdfast.stores.sqlite import SqliteStore
from holdfast.stores.sqlite_file import SCHEMA
from tests.stores.files import opened, read, write

WHOLE = gzip.decompress((Path(__file__).parent / "files" / f"schema-{SCHEMA}.db.gz").read_bytes())
NAME_OF_AN_INDEX = (1839, 7)  # no longer UTF-8, and SQLite quotes it in its error
COLUMN_OF_THE_LOG = (2061, 2)  # its numbers are no longer those of the slots
CONDITION_OF_AN_INDEX = (WHOLE.index(b"WHERE open = 1") + 13, 1)  # it would list other messages as open
COMMANDS = (
    ["verify"],
    ["channels"],
    ["retention", "--dry-run", "--keep", "*=1d"],
    ["export", "chat:1"],
    ["hold", "chat:1", "--reason", "x"],
    ["forget", "alice"],
    ["compact"],
)
DAMAGE = pytest.mark.parametrize("flip", [NAME_OF_AN_INDEX, COLUMN_OF_THE_LOG, CONDITION_OF_AN_INDEX], ids=str)


def flipped(flip: tuple[int, int]) -> bytes:
    data = bytearray(WHOLE)
    data[flip[0]] ^= 1 << flip[1]
    return bytes(data)


def run(*arguments: str, store: Path) -> str:
    """Return the one line of a command that fails."""
    result = CliRunner().invoke(main, [*arguments, "--store", f"sqlite:///{store}"])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.output.splitlines()
    return line


@DAMAGE
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_each_command_says_in_one_line_that_the_file_is_damaged(
    tmp_path: Path, command: list[str], flip: tuple[int, int]
) -> None:
    path = tmp_path / "chat.db"
    write(path, flipped(flip))
    line = run(*command, store=path)
    assert line.startswith(f"Error: store file {path} cannot be read")
    assert line.endswith("; restore a backup")


@DAMAGE
async def test_server_does_not_open_a_file_of_damaged_structure(tmp_path: Path, flip: tuple[int, int]) -> None:
    path = tmp_path / "chat.db"
    write(path, flipped(flip))
    with pytest.raises(StoreUnusable, match=r"damaged.*; restore a backup"):
        await SqliteStore(path).open()


@DAMAGE
async def test_restore_of_a_backup_of_damaged_structure_replaces_nothing(tmp_path: Path, flip: tuple[int, int]) -> None:
    path, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    async with opened(path):
        pass
    before = read(path)
    write(backup, flipped(flip))
    line = run("restore", str(backup), store=path)
    assert line.startswith(f"Error: backup {backup} cannot be read")
    assert line.endswith("; use an earlier one")
    assert read(path) == before
    assert not list(tmp_path.glob("*before-restore*"))  # noqa: ASYNC240
