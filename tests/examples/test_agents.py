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

from tenuto.client import Client
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
    ):
        prompt = await ann.create("chat:1", text="why?")
        rows = await archived(http, 2)
        known = [(row["author"], row["status"], row["text"]) for row in rows]
        assert known == [("ann", "complete", "why?"), ("bot", "complete", ANSWER)]
        await ann.delete("chat:1", prompt.id)
        assert await archived(http, 1) == rows[1:]


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


async def test_a_refusal_is_one_line_without_the_token(program: Load, tmp_path: Path) -> None:
    secret = tmp_path / "chat.secret"
    secret.write_text("a secret of at least thirty-two bytes, as it should be\n")
    ann = program("agent_elsewhere").token("ann", str(secret))
    with serving("serve", tmp_path, "--jwt-secret-file", str(secret), "--jwt-audience", "chat") as server:
        url = {"TENUTO_URL": f"http://127.0.0.1:{server.port}"}
        asking = run("ask", "why?", **url, TENUTO_TOKEN="garbled-token")
        runs = await asyncio.gather(run(**url), asking, run(**url, TENUTO_TOKEN=ann))
    assert runs == [
        (1, "", "the server requires a token, and this client has none; give Client(..., token=...)\n"),
        (1, "", "token is malformed, it must be a signed JWT: 'Not enough segments'\n"),
        (1, "", "client 'ann' needs the capability 'agent' on all channels of 'chat:*'\n"),
    ]
