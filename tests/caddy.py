"""A real Caddy in front of hubs.

Layer: tests.
"""

from __future__ import annotations

import re
import shutil
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from proof.chaos.engines import DEPLOYMENT
from proof.chaos.processes import free_port
from tests.processes import Process, listening

needs_caddy = pytest.mark.skipif(shutil.which("caddy") is None, reason="Caddy is not installed; CI installs it")


def settings_of_the_docs() -> str:
    """Return the configuration that `docs/deployment.md` shows."""
    found = re.findall(r"## Caddy\n.*?```text\n(.*?)```", DEPLOYMENT.read_text(), re.DOTALL)
    return str(found[0])


def caddy_of_the_docs(folder: Path, *upstreams: int) -> AbstractContextManager[int]:
    """Run Caddy with the settings of the docs, below the path `/chat`; gives its port.

    Only the path, addresses and TLS differ.
    """
    port = free_port()
    processes = " ".join(f"127.0.0.1:{one}" for one in upstreams)
    text = settings_of_the_docs()
    text = text.replace("{\n    servers {", "{\n    admin off\n    auto_https off\n    servers {")
    text = text.replace("chat.example {", f"http://127.0.0.1:{port} {{\nbind 127.0.0.1")
    text = text.replace("health_uri /readyz", "health_uri /tenuto/readyz")
    text = text.replace(
        "reverse_proxy 10.0.0.1:8000 10.0.0.2:8000 {", f"handle_path /chat/* {{\nreverse_proxy {processes} {{"
    )
    configuration = folder / "Caddyfile"
    configuration.write_text(f"{text}}}\n")
    own = [f"XDG_CONFIG_HOME={folder}", f"XDG_DATA_HOME={folder}"]  # where it keeps its last configuration
    arguments = [*own, "caddy", "run", "--config", str(configuration), "--adapter", "caddyfile"]
    # Killed, because it waits for open streams.
    return listening(Process(arguments, folder / "caddy.log", program="env"), port, end=signal.SIGKILL)
