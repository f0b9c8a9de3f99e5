"""A tag is refused until the clone is ready for it, and the commands of RELEASING.md make it ready.

The long tests fail if one of their steps has no result.

Layer: tests.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tenuto import __version__

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/client.md", "tenuto/cli/starter/README.md.txt", "tenuto/.agents/skills/tenuto/SKILL.md"]
LEFT = ["It is not published on npm.", "pip install file:///path/of/the/clone", "Run `make web`."]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a copy of the clone in which the steps before a tag are done."""
    ignored = shutil.ignore_patterns("__pycache__", "decisions", "vendor")
    for name in ("tenuto", "docs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(f"## [{__version__}] - 2026-12-01\n")
    command = "sed -i" + (ROOT / "RELEASING.md").read_text().partition("sed -i")[2].partition("```")[0]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    return tmp_path


def check(clone: Path, tag: str = f"v{__version__}") -> str:
    """Return what the check of a tag prints, and "" if it accepts the tag."""
    ran = subprocess.run([clone / "scripts/check_release", tag], capture_output=True, text=True, check=False)
    assert (ran.returncode == 0) == (ran.stderr == "")
    return ran.stdout + ran.stderr


def test_a_clone_that_is_ready_for_a_tag_is_accepted(clone: Path) -> None:
    assert check(clone) == ""
    assert "another version than 7.0.0" in check(clone, "v7.0.0")
    (clone / "CHANGELOG.md").write_text("## [Unreleased]\n")
    assert "CHANGELOG.md has no section" in check(clone)


def test_each_line_for_the_time_before_a_release_is_named(clone: Path) -> None:
    for page in PAGES:
        with (clone / page).open("a") as file:
            file.write("".join(f"\n{text}" for text in LEFT))
    named = [line.split(":", 2)[::2] for line in check(clone).splitlines()]
    assert {(page, text) for page in PAGES for text in LEFT} <= {(page, *text) for page, *text in named}


def test_long_tests_fail_if_the_shell_of_a_step_dies(tmp_path: Path) -> None:
    text = (ROOT / "scripts" / "test_long").read_text()
    begin, end = text.partition("\n}\n"), text.rpartition("\ntouch ")
    steps = 'step 60 good true\nstep 60 killed kill -KILL "$BASHPID" &\nwait'
    script = tmp_path / "scripts" / "test_long"
    script.parent.mkdir()
    script.write_text("".join([*begin[:2], steps, *end[1:]]))
    ran = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines()[1:] == ["failed: the shell of the step died: killed", "1 passed, 1 failed"]
    assert ran.returncode == 1
