"""Each example runs on two nodes, with no other change than the store.

Layer: tests.

The example with Django is left out, because its settings are those of a process. `tests/demo/test_two_nodes.py` runs
whole processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from holdfast.stores import open_url
from tests.examples.programs import OPEN, app_of, client_of, follow
from tests.examples.test_examples import has_answer
from tests.postgres import needs_postgres, running_postgres

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_postgres(fsync="off", full_page_writes="off") as server:
        yield server.url


@pytest.mark.parametrize("name", [name for name in OPEN if name != "django_app"])
def test_an_example_runs_on_two_nodes(
    program: Callable[[str], ModuleType], name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.hub.settings.open_url", lambda _: open_url(f"{url}?schema={name}"))
    first, second = app_of(program(name)), app_of(program(name))
    with client_of(first) as here, client_of(second) as there:
        for client in (here, there):
            assert client.get("/").text.startswith("<!doctype html>")
            assert client.get("/holdfast/readyz").json() == {"status": "ready"}
        response = here.post("/holdfast/v1/channels/chat:1/messages", json={"id": "q", "text": "why?"})
        assert response.status_code == 201, response.text
        messages = follow(there, "chat:1", has_answer if name == "agent_fastapi" else bool).messages()
        assert messages[0].text == "why?"
        assert len(messages) == (2 if name == "agent_fastapi" else 1)
