"""Each example runs as a program, and the index shows all of them.

Layer: tests.

`test_pages` tests their pages in a browser.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn

from tests.examples.programs import FOLDER, NAMES, client_of, forget_django

Load = Callable[[str], ModuleType]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_run_as_a_program_serves_its_app(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    served: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: served.append((app, options)))
    forget_django()
    found = runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert served == [(found.get("application", found.get("app")), {"port": 8000})]


def test_the_server_of_the_react_example_serves_its_page_s_origin_with_a_token(program: Load) -> None:
    server = program("react/server")
    page = {"origin": server.PAGE}
    with client_of(server.app) as client:
        issued = client.post("/token", params={"name": "ann"}, headers=page)
        assert issued.headers["access-control-allow-origin"] == server.PAGE
        assert client.post("/token", params={"name": "Not A Name"}, headers=page).status_code == 422
        messages = "/tenuto/v1/channels/chat:1/messages"
        assert client.get(messages, headers=page).status_code == 401
        read = client.get(messages, headers={**page, "authorization": f"Bearer {issued.text}"})
        assert (read.status_code, read.headers.get_list("access-control-allow-origin")) == (200, [server.PAGE])
        elsewhere = client.post("/token", params={"name": "ann"}, headers={"origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in elsewhere.headers


def test_the_index_names_at_most_twelve_examples_and_shows_each() -> None:
    rows = re.findall(r"^\| \[`([\w/.]+)`\].*\| (.*) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert len(rows) <= 12
    found = {path.name + "/" * path.is_dir() for path in FOLDER.glob("[a-z]*") if path.name != "pictures"}
    assert {name for name, _ in rows} == found
    for name, shown in rows:
        picture = f"pictures/{name.rstrip('/').removesuffix('.py')}.png"
        assert shown == "below" or (f"]({picture})" in shown and (FOLDER / picture).exists()), name
