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
from typing import Any

import tenuto
from tenuto.client import SyncClient
from tenuto.core.events import MessageCreate, MessageFinish, MessageUpdate, ServerEvent

TENUTO = str(Path(sys.executable).with_name("tenuto"))
CLONE = Path(__file__).parents[1]
END_S, LIMIT_S = 20, 300  # limits of a response or the end of a process, and of the whole test, which takes some 40 s
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
            try:
                process.wait(END_S)
            finally:
                process.kill()  # otherwise the end of this block would wait for it
    assert process.returncode == -ends_with, process.returncode  # uvicorn ends by the signal that it has handled


def page(url: str) -> str:
    """Return the body of a GET."""
    with urllib.request.urlopen(url, timeout=END_S) as response:
        text: str = response.read().decode()
    return text


def ended_answer(event: ServerEvent) -> str | None:
    """Return the id of the answer that `event` ends: the end may also come with the whole message."""
    if isinstance(event, MessageCreate | MessageUpdate):
        message = event.message
        return message.id if message.role == "assistant" and message.status != "streaming" else None
    return event.id if isinstance(event, MessageFinish) else None


def give_up(*_: Any) -> None:
    """Handle SIGALRM: the traceback of this error shows what the test waits for."""
    raise AssertionError(f"the test has not ended within {LIMIT_S} s")


def main() -> None:
    """Raise AssertionError if the installed package does not work."""
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_S)
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
            client.create("demo:smoke", text="What is a cursor?", id="q1")
            events = client.subscribe("demo:smoke")
            try:
                answer_id = next(found for event in events if (found := ended_answer(event)))
            except BaseException:
                print("Messages:", client.history("demo:smoke").messages, file=sys.stderr)
                print("Members:", client.members("demo:smoke"), file=sys.stderr)
                raise
            answer, _ = client.read("demo:smoke", answer_id)
            assert answer.status == "complete"
            assert len("".join(part["text"] for part in answer.parts if part["type"] == "text")) > 100, answer
    print(f"{shown.strip()} works outside of the clone, in {Path.cwd()}")


main()
