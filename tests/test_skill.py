"""The skill for coding agents: its form, its links, its programs.

Layer: tests.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from starlette.testclient import TestClient

from tests.test_docs import anchors

SKILL = Path(__file__).parents[1] / "tenuto" / ".agents" / "skills" / "tenuto"
PAGES = [SKILL / "SKILL.md", *sorted((SKILL / "references").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return [block[1] for block in re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)]


def test_the_skill_has_the_form_that_tools_read() -> None:
    _, head, body = PAGES[0].read_text().split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    assert fields["name"] == SKILL.name
    assert 40 < len(fields["description"]) <= 1024
    assert len(body.split()) < 1200
    assert sorted(SKILL / one for one in re.findall(r"\]\((references/[\w-]+\.md)\)", body)) == PAGES[1:]
    assert set(re.findall(r"\]\(#([\w-]+)\)", body)) <= anchors(PAGES[0])


def test_all_programs_of_the_skill_compile_and_name_what_exists() -> None:
    programs = [block for page in PAGES for block in blocks(page)]
    assert len(programs) == 6
    for program in programs:
        compile(program, "skill", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_chat_of_the_skill_answers_as_its_test_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _, _, its_test = blocks(PAGES[0])
    monkeypatch.chdir(tmp_path)
    main = ModuleType("main")
    exec(chat, main.__dict__)
    monkeypatch.setitem(sys.modules, "main", main)
    its = ModuleType("its")
    exec(its_test, its.__dict__)
    its.test_the_assistant_answers(monkeypatch, tmp_path)
    with TestClient(main.app) as client:
        assert "<tenuto-chat" in client.get("/").text
