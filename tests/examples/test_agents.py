"""The examples with agents, on a real server and in processes of their own.

Layer: tests.

`test_pages` tests their pages in a browser.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import httpx2
import pytest

from tenuto.client import Client
from tests.examples.nodes import is_over, until
from tests.examples.programs import FOLDER, served
from tests.processes import PATIENCE_S, python, serving

Load = Callable[[str], ModuleType]

NUMBERS = "".join(f"{count} " for count in range(2, 121))
ANSWER = f"You asked: why?\n{NUMBERS}"


# The agent in the app --------------------------------------------------------------------------------------------


async def test_a_hook_copies_a_finished_answer_to_the_apps_table(program: Load) -> None:
    async with (
        served(program("agent_fastapi"), pace_s=0.0) as address,
        httpx2.AsyncClient(base_url=address) as http,
        Client(f"{address}/tenuto", client_id="ann") as ann,
        ann.channel("chat:1") as view,
    ):
        prompt = await ann.create("chat:1", text="why?")
        answer = (await until(view, is_over))[-1]
        assert (answer.author, answer.status, answer.text, answer.reply_to) == ("bot", "complete", ANSWER, prompt.id)
        rows = await archived(http, 2)
        assert [(row["id"], row["author"], row["status"]) for row in rows] == [
            (prompt.id, "ann", "complete"),
            (answer.id, "bot", "complete"),
        ]
        assert rows[1]["text"] == ANSWER
        await ann.delete("chat:1", prompt.id)
        assert [row["id"] for row in await archived(http, 1)] == [answer.id]


async def archived(http: httpx2.AsyncClient, count: int) -> list[dict[str, str]]:
    """Wait for `count` rows, and return them: a hook is called some time after the message is stored."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            response = await http.get("/archive")
            rows: list[dict[str, str]] = response.json() if response.status_code == 200 else []
            if len(rows) == count:
                return rows
            await asyncio.sleep(0.02)  # no event reports the work of a hook


# The agent in another process ------------------------------------------------------------------------------------

PROGRAM = FOLDER / "agent_elsewhere.py"


async def run(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Run the program to its end, and return its exit code, stdout and stderr."""
    async with python(str(PROGRAM), *arguments, **environ) as process, asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "chat.secret"
    path.write_text("a secret of at least thirty-two bytes, as it should be\n")
    return path


async def test_a_refusal_is_one_line_without_the_token(program: Load, tmp_path: Path, secret: Path) -> None:
    other = tmp_path / "other.secret"
    other.write_text("another secret, of at least thirty-two bytes, too")
    token = program("agent_elsewhere").token
    foreign, ann = token("bot", str(other)), token("ann", str(secret))
    with serving("serve", tmp_path, "--jwt-secret-file", str(secret), "--jwt-audience", "chat") as server:
        url = {"TENUTO_URL": f"http://127.0.0.1:{server.port}"}
        runs = await asyncio.gather(
            run(**url),
            run(**url, TENUTO_TOKEN="garbled-token"),
            run(**url, TENUTO_TOKEN=foreign),
            run("ask", "why?", **url, TENUTO_TOKEN=foreign),
            run(**url, TENUTO_TOKEN=ann),
        )
        log = server.output
    assert [(code, out) for code, out, _ in runs] == [(1, "")] * 5
    assert [err for _, _, err in runs] == [
        "the server requires a token, and this client has none; give Client(..., token=...)\n",
        "token is malformed, it must be a signed JWT: 'Not enough segments'\n",
        "token signature matches no key of this server; check the keys of its verifier\n",
        "token signature matches no key of this server; check the keys of its verifier\n",
        "client 'ann' needs the capability 'agent' on all channels of 'chat:*'\n",
    ]
    assert [one for one in ("garbled-token", foreign, ann) if one in log] == []
