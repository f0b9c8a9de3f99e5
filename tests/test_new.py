"""`tenuto new` writes an app that works, and changes no folder with files. `tests/browser/long/test_f5.py` runs it.

Layer: tests.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tenuto.cli.main import main


def new(name: str | Path) -> Result:
    return CliRunner().invoke(main, ["new", str(name)])


def test_the_test_of_a_new_app_passes(tmp_path: Path) -> None:
    done = new(tmp_path / "deep" / "my-chat")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "deep" / "my-chat"
    assert f"cd {folder}" in done.output
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert files.keys() >= {"Dockerfile", ".gitignore", "requirements.txt"}
    assert [name for name, text in files.items() if "{name}" in text] == []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed in" in ran.stdout, ran.stdout  # no warning either


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes").write_text("mine")
    done = new(folder)
    assert (done.exit_code, "is not empty; give the name of a new one" in done.stderr) == (1, True)
    assert [path.name for path in folder.iterdir()] == ["notes"]


@pytest.mark.parametrize("name", ["Mine", "my chat", 'a"b', "-x", "ä"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["new", "--", name])
    assert done.exit_code == 1
    assert "NAME must be made of lower-case letters" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_its_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("")
    done = new("mine")
    assert (done.exit_code, "mine" in done.stderr) == (1, True)
