"""A second hub of one process on the same store file: a finished first hub is closed for it, another is not.

Layer: tests.

The interpreter with `await`, which `python -m asyncio` starts, stands for a notebook: it has one event loop, and one
namespace for all inputs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 60.0
CELL = 'hub = Hub(FastStore("chat.db"), hooks_signals=False)\nhub.drain_s = 0\nm = await hub.create("c", text="hi")\n'
FIRST = (
    "from functools import partial\n"
    "from tenuto import Hub\n"
    "from tenuto.stores.sqlite.store import SqliteStore\n"
    "FastStore = partial(SqliteStore, lock_wait_s=0.1)\n"
)


SYNC_CELL = 'hub = Hub(FastStore("chat.db"), hooks_signals=False)\nm = hub.sync.create("c", text="hello")\n'
SYNC_END = 'print("messages:", len(hub.sync.history("c").messages))\n'


def interpreted(
    folder: Path,
    *cells: str,
    end: str = 'print("messages:", len((await hub.history("c")).messages))\n',
    options: tuple[str, ...] = ("-m", "asyncio"),
) -> tuple[str, str]:
    """Return stdout and stderr of an interpreter with these inputs."""
    ran = subprocess.run(
        [sys.executable, *options],
        input=FIRST + "".join(cells) + end,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return ran.stdout, ran.stderr


def test_notebook_cell_that_makes_a_hub_may_run_again(tmp_path: Path) -> None:
    out, err = interpreted(tmp_path, CELL, CELL, CELL)
    assert "messages: 3" in out, err
    assert "StoreInUse" not in err


def test_cell_with_blocking_calls_may_run_again_also_after_its_hub_was_shown(tmp_path: Path) -> None:
    shown = "_ = _7 = hub\n"  # IPython keeps the value of a cell's last line under these names
    out, err = interpreted(tmp_path, SYNC_CELL, shown, SYNC_CELL, SYNC_CELL, end=SYNC_END, options=("-i", "-"))
    assert "messages: 3" in out, err
    assert "StoreInUse" not in err


def held(cell: str, *holdings: str) -> list[str]:
    """Return the cells that run `cell`, hold its hub, and run it again; each holding on a store file of its own."""
    files = [cell.replace("chat.db", f"chat{number}.db") for number in range(len(holdings))]
    return [one for file, holding in zip(files, holdings, strict=True) for one in (file, holding, file)]


HOLDINGS = [
    "kept = hub\n",
    'writer = hub.message("c")\nm = await writer.__aenter__()\n',
    'batches = hub.subscribe("c").batches()\nbatch = await anext(batches)\n',
    "import asyncio\njob = hub.start_task(asyncio.sleep(60))\n",
]


def test_hub_in_use_is_not_replaced(tmp_path: Path) -> None:
    _, err = interpreted(tmp_path, *held(CELL, *HOLDINGS), end="")
    for number in range(len(HOLDINGS)):
        assert f"store file chat{number}.db is in use by this process: another Hub of this process has it open" in err


CLOSED_CELL = """
loop = asyncio.new_event_loop()
hub = Hub(FastStore("chat.db"), hooks_signals=False)
m = loop.run_until_complete(hub.create("c", text="hello"))
print(len(loop.run_until_complete(hub.history("c")).messages))
loop.close()  # its tasks are not cancelled, other than with `asyncio.run`
"""


def test_hub_of_a_closed_event_loop_is_replaced(tmp_path: Path) -> None:
    out, err = interpreted(tmp_path, "import asyncio\n", CLOSED_CELL, CLOSED_CELL, end="", options=("-",))
    assert out.split() == ["1", "2"], err
