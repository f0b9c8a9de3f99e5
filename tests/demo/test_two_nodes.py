"""Two demos share one PostgreSQL store: each shows and steers the answers of the other one's agents.

Layer: tests.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tenuto.demo.guide import Settled, whole
from tests.demo.test_supervisor import CHANNEL, QUESTION, ask, follow, longer_than, wait_for_agents
from tests.postgres import needs_postgres, running_postgres
from tests.processes import serving, text_of

pytestmark = needs_postgres


def test_an_answer_that_was_asked_at_one_demo_is_shown_and_steered_at_another(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with (
        running_postgres(fsync="off", full_page_writes="off") as store,
        serving("demo", tmp_path / "here", "--store", store.url) as here,
        serving("demo", tmp_path / "there", "--store", store.url) as there,
    ):
        wait_for_agents(here)
        wait_for_agents(there)
        ask(here)
        begun = follow(there, longer_than(60))
        command = {"name": "steer", "target": begun["id"], "data": {"text": "shorter", "name": "Ada"}}
        assert there.post(f"{there.hub}/v1/channels/{CHANNEL}/commands", command)[0] == 201
        ended = follow(there, lambda message: message["status"] == "complete")
        assert text_of(ended) == whole(QUESTION, msgspec.convert(ended["meta"], Settled))
        assert text_of(follow(here, lambda message: message["status"] == "complete")) == text_of(ended)
        _, page = there.get(f"{there.hub}/v1/channels/{CHANNEL}/messages")
        assert [one["role"] for one in page["messages"]].count("assistant") == 1
