"""A real nginx in front of hubs.

Layer: tests.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from proof.chaos.engines import configuration
from proof.chaos.processes import free_port
from tests.processes import Process, listening

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


def nginx(folder: Path, upstream: int, location: str, *, user: str = "nobody") -> AbstractContextManager[int]:
    """Run nginx as a proxy of the port `upstream` with the directives `location`; gives its port.

    Its worker has the account `user` if this process is root's, else the account of this process.
    """
    port = free_port()
    owner = f"user {user} nogroup;" if os.geteuid() == 0 else ""
    text = _CONFIGURATION.format(folder=folder, user=owner, upstream=upstream, port=port, location=location)
    return _running(folder, f"nginx-{port}.conf", text, port)


def nginx_of_the_docs(folder: Path, *upstreams: int, is_two: bool = False) -> AbstractContextManager[int]:
    """Run nginx with the settings of the docs; gives its port. Only paths, ports and TLS differ.

    With `is_two` the port is that of the outer proxy, whose paths begin with `/chat`; that of the inner one is in
    `nginx.conf`.
    """
    port, inner = free_port(), free_port()
    text = configuration(folder, port, *upstreams, inner=inner if is_two else None)
    return _running(folder, "nginx.conf", text, port)


def _running(folder: Path, name: str, text: str, port: int) -> AbstractContextManager[int]:
    """Run nginx with the configuration `text` in the file `name`; gives `port`, on which it then listens."""
    path = folder / name
    path.write_text(text)
    arguments = ["-p", str(folder), "-c", str(path), "-e", str(folder / "error.log")]
    return listening(Process(arguments, folder / "error.log", program="nginx"), port)
