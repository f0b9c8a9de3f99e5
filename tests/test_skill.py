"""The skill for coding agents: its form, its links, its programs.

Layer: tests.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from tenuto import Hub, visitors
from tenuto.testing import ScriptedModel
from tests.examples.programs import blocks
from tests.test_docs import anchors, script_of_the_site

ROOT = Path(__file__).parents[1]
SKILL = ROOT / "tenuto" / ".agents" / "skills" / "tenuto"
PAGES = [SKILL / "SKILL.md", *sorted((SKILL / "references").glob("*.md"))]


def test_the_skill_has_the_form_that_tools_read() -> None:
    _, head, body = PAGES[0].read_text().split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    assert fields["name"] == SKILL.name
    assert 40 < len(fields["description"]) <= 1024
    assert len(body.split()) < 1200
    assert sorted(SKILL / one for one in re.findall(r"\]\((references/[\w-]+\.md)\)", body)) == PAGES[1:]
    assert set(re.findall(r"\]\(#([\w-]+)\)", body)) <= anchors(PAGES[0])


def test_site_serves_the_skill_of_the_packages_by_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = script_of_the_site(monkeypatch)
    pages, folder = tmp_path / "pages", tmp_path / ".well-known" / "agent-skills"
    for path in (ROOT / "docs").rglob("*.md"):
        (pages / site.page_name(path)).parent.mkdir(parents=True, exist_ok=True)
        (pages / site.page_name(path)).write_text(path.read_text())
    for name in site.REFERENCE:
        (pages / name).write_text("# Reference")
    site.write_for_machines(pages, tmp_path)
    site.write_skill(folder)
    (named,) = re.findall(r"\((\.well-known/\S+)\)", (tmp_path / "llms.txt").read_text())
    assert (tmp_path / named).read_bytes() == PAGES[0].read_bytes()
    index = json.loads((folder / "index.json").read_text())
    assert index["$schema"] == "https://schemas.agentskills.io/discovery/0.2.0/schema.json"
    (entry,) = index["skills"]
    assert (entry["name"], entry["type"]) == (SKILL.name, "archive")
    assert len(entry["description"]) > 40
    archive = folder / entry["url"]
    assert entry["digest"] == f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    with ZipFile(archive) as zipped:
        assert {name: zipped.read(name) for name in zipped.namelist()} == {
            page.relative_to(SKILL).as_posix(): page.read_bytes() for page in PAGES
        }
    assert all((folder / SKILL.name / page.relative_to(SKILL)).read_bytes() == page.read_bytes() for page in PAGES)


def test_all_programs_of_the_skill_compile() -> None:
    programs = [block for page in PAGES for block in blocks(str(page))]
    assert len(programs) == 6
    for program in programs:
        compile(program, "skill", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


async def frames(question: str) -> AsyncIterator[str]:
    yield f"data: {json.dumps({'token': f'You asked: {question}'})}\n\n"


@pytest.mark.parametrize(
    ("number", "text"), [(1, "You asked: Why?"), (2, '{"token": "You asked: Why?"}')], ids=["text", "frames"]
)
def test_an_endpoint_of_the_skill_streams_its_answer_and_again_without_a_question(number: int, text: str) -> None:
    app, guests = FastAPI(), visitors()
    hub = Hub("memory://", authenticate=guests)
    hub.install(app, "/tenuto")
    known = {"app": app, "guests": guests, "hub": hub, "Request": Request, "json": json}
    exec(blocks(str(PAGES[0]))[number], {**known, "model": ScriptedModel(["You asked: Why?"]), "events": frames})
    with TestClient(app) as client:
        for query in ("?question=Why?", ""):
            assert client.get(f"/chat{query}").text == f"data: {text}\n\ndata: [DONE]\n\n"


def test_the_chat_of_the_skill_answers_as_its_test_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _, _, its_test = blocks(str(PAGES[0]))
    monkeypatch.chdir(tmp_path)
    main = ModuleType("main")
    exec(chat, main.__dict__)
    monkeypatch.setitem(sys.modules, "main", main)
    its = ModuleType("its")
    exec(its_test, its.__dict__)
    its.test_the_assistant_answers(monkeypatch, tmp_path)
    with TestClient(main.app) as client:
        assert "<tenuto-chat" in client.get("/").text
