"""The shell commands of the pages: their blocks parse, their options exist, and those on a store run as written.

Layer: tests.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tenuto import Hub
from tenuto.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "tenuto/.agents").rglob("*.md"))]
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A text of the blocks that do not run here, and the test that runs them or the reason.
ELSEWHERE = {
    "uvicorn main:app": "tests/examples/test_tutorial.py",
    "pytest -q": "tests/examples/test_tutorial.py",
    'install fastapi "tenuto[serve]"': "tests/examples/test_readme.py runs the program, without pip",
    'install "tenuto[client]"': "pip alone",
    "chat.dump": "tests/stores/test_postgres.py",
    "psql chat": "tests/stores/test_postgres.py",
    "docker build": "a daemon; scripts/test_image builds the image without one",
    "docker compose": "a daemon; the file's head has the same lines",
    "systemctl": "root; tests/test_deploy.py has the unit checked by systemd",
    "kubectl": "a cluster; the file's head has the same lines",
    "tenuto serve": "a server, with secrets, a proxy or PostgreSQL of yours; the options are checked below",
}


def blocks(page: Path) -> list[str]:
    """Return the blocks of a page for a shell."""
    found = FENCED.findall(page.read_text())
    assert {"", "bash", "console"}.isdisjoint(language for language, _ in found), f"{page.name}: write ```sh"
    return [text for language, text in found if language == "sh"]


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of each command line of `tenuto`, in blocks and within the text."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    lines += [one.replace("\n", " ") for one in re.findall(r"`(tenuto [a-z][^`]*)`", FENCED.sub("", page.read_text()))]
    words = [shlex.split(re.split(r" (?:[<>|;#]|&&)", line)[0]) for line in lines]
    return [one[1:] for one in words if one[:1] == ["tenuto"]]


def test_each_block_parses_and_runs_in_a_test_or_has_a_reason() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    for block in found:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    assert [block for block in found if not any(text in block for text in ELSEWHERE)] == []
    assert [text for text in ELSEWHERE if not any(text in block for block in found)] == []
    assert all((ROOT / one).exists() for one in re.findall(r"tests/[\w/]+\.py", " ".join(ELSEWHERE.values())))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_and_each_of_its_options_exists(page: Path) -> None:
    for arguments in commands(page):
        with contextlib.suppress(click.BadParameter, click.BadOptionUsage):  # no such file here, or a value left out
            main.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def test_commands_on_a_store_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = Hub("sqlite:///chat.db")
    hub.sync.create("chat:1", text="Hello", author="ann")
    hub.sync.close()
    table = (ROOT / "docs" / "keeping.md").read_text().partition("| you want | do |")[2].partition("\n## ")[0]
    lines = [one for one in re.findall(r"`(tenuto .*)` \|$", table, re.MULTILINE) if "serve" not in one]
    assert len(lines) == 5
    for line in lines:
        ran = subprocess.run(f"{sys.executable} -m {line}", shell=True, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, (line, ran.stderr)
    assert '"text":"Hello"' in Path("chat.jsonl").read_text()
    assert '"messages": 1' in ran.stdout, "what the last command prints"
