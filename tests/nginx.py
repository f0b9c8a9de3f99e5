"""A real nginx in front of a hub.

Layer: tests.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaos.processes import free_port
from tests.processes import Process

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed; CI installs it")

_CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
{user}
events {{ worker_connections 100; }}
http {{
  access_log off;
  keepalive_timeout 0;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream hub {{ server 127.0.0.1:{upstream}; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ {location} }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, upstream: int, location: str, *, user: str = "nobody") -> Iterator[int]:
    """Run nginx as a proxy of the port `upstream` with the directives `location`; gives its port.

    Its worker has the account `user` if this process is root's, else the account of this process.
    """
    port = free_port()
    owner = f"user {user} nogroup;" if os.geteuid() == 0 else ""
    text = _CONFIGURATION.format(folder=folder, user=owner, upstream=upstream, port=port, location=location)
    configuration = folder / f"nginx-{port}.conf"
    configuration.write_text(text)
    arguments = ["-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]
    process = Process(arguments, folder / "error.log", program="nginx")

    def is_listening() -> bool:
        socket.create_connection(("127.0.0.1", port)).close()
        return True

    try:
        process.start()
        process.until(is_listening)
        yield port
    finally:
        process.end()
