"""Use an installed Tenuto as its users do: the command, a server that is killed, the client, the demo.

Layer: scripts. `test_package` runs it with the Python of a fresh environment, in an empty folder outside of the clone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import tenuto
from tenuto.client import SyncClient
from tenuto.core.events import MessageFinish

TENUTO = str(Path(sys.executable).with_name("tenuto"))
CLONE = Path(__file__).parents[1]
END_S = 20
TEXT = "You asked: 你好 👋 "


@contextmanager
def running(*arguments: str, ends_with: int) -> Iterator[str]:
    """Run the command until the block ends, and yield the address that it prints."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "ANTHROPIC_"))}
    command = [TENUTO, *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        try:
            yield next(found[0] for line in process.stdout if (found := re.search(r"http://[\d.:]+", line)))
        finally:
            process.send_signal(ends_with)
            process.wait(END_S)
    assert process.returncode == -ends_with, process.returncode  # uvicorn ends by the signal that it has handled


def page(url: str) -> str:
    """Return the body of a GET."""
    with urllib.request.urlopen(url, timeout=END_S) as response:
        text: str = response.read().decode()
    return text


def main() -> None:
    """Raise AssertionError if the installed package does not work."""
    assert not Path(tenuto.__file__).is_relative_to(CLONE), tenuto.__file__
    shown = subprocess.run([TENUTO, "--version"], capture_output=True, text=True, check=True).stdout
    assert version("tenuto") in shown, shown

    subprocess.run([TENUTO, "new", "my-chat"], capture_output=True, check=True)
    assert "<tenuto-chat" in Path("my-chat", "index.html").read_text()

    with running("serve", ends_with=signal.SIGKILL) as address, SyncClient(address) as client:
        with client.message("chat:1", id="m1") as message:
            message.append(TEXT)
            message.append(TEXT)
        assert "class" in page(f"{address}/web/client.js")
    with running("serve", ends_with=signal.SIGTERM) as address, SyncClient(address) as client:
        message, cursor = client.read("chat:1", "m1")
        assert (message.status, [part["text"] for part in message.parts]) == ("complete", [TEXT * 2])
        assert cursor

    with running("demo", ends_with=signal.SIGTERM) as address:
        assert "<html" in page(address)
        with SyncClient(f"{address}/tenuto", client_id="ada") as client:
            question = client.create("demo:smoke", text="What is a cursor?", id="q1")
            events = client.subscribe("demo:smoke")
            end = next(event for event in events if isinstance(event, MessageFinish) and event.id != question.id)
            answer, _ = client.read("demo:smoke", end.id)
            assert answer.status == "complete"
            assert len("".join(part["text"] for part in answer.parts if part["type"] == "text")) > 100, answer
    print(f"{shown.strip()} works outside of the clone, in {Path.cwd()}")


main()
