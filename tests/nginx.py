"""A real nginx in front of hubs.

Layer: tests.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from chaos.processes import free_port
from tests.processes import Process, listening

DEPLOYMENT = Path(__file__).parents[1] / "docs" / "deployment.md"
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


def settings_of_the_docs() -> tuple[str, str, str]:
    """Return what `docs/deployment.md` shows: the configuration, the processes, and the inner one of two proxies."""
    found = re.findall(r"```nginx\n(.*?)```", DEPLOYMENT.read_text(), re.DOTALL)
    whole, group, inner, _ = map(str, found)
    return whole, group, inner


def nginx_of_the_docs(folder: Path, *upstreams: int, is_two: bool = False) -> AbstractContextManager[int]:
    """Run nginx with the settings of the docs; gives its port. Only paths, ports and TLS differ.

    With `is_two` the port is that of the outer proxy, whose paths begin with `/chat`; that of the inner one is in
    `nginx.conf`.
    """
    port, inner = free_port(), free_port()
    paths = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole, group, inside = settings_of_the_docs()
    main, _, http = whole.partition("http {")
    owner = "user root;" if os.geteuid() == 0 else ""
    general = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; {owner}"
    processes = "".join(f"server 127.0.0.1:{one};" for one in upstreams)
    group = re.sub(r"( *server .*;\n)+", lambda _: processes, group)
    http = http.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    if is_two:
        http = http.replace("location / {", "location /chat/ {")
        http = http.replace("proxy_pass http://127.0.0.1:8000;", f"proxy_pass http://127.0.0.1:{inner}/;")
        inside = inside.replace("listen 80;", f"listen 127.0.0.1:{inner};").replace("10.0.0.8", "127.0.0.1")
        http = inside + http
    else:
        http = http.replace("proxy_pass http://127.0.0.1:8000;", "proxy_pass http://chat;")
    text = f"{general}\n{main}http {{ access_log off; {paths}{group}{http}"
    text = re.sub(r"\n *ssl_\w+ .*;", "", text)
    # The strict viewers check this header, which nginx takes as its own.
    text = text.replace("proxy_buffering off;", "proxy_buffering off; proxy_pass_header X-Accel-Buffering;")
    return _running(folder, "nginx.conf", text, port)


def _running(folder: Path, name: str, text: str, port: int) -> AbstractContextManager[int]:
    """Run nginx with the configuration `text` in the file `name`; gives `port`, on which it then listens."""
    configuration = folder / name
    configuration.write_text(text)
    arguments = ["-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]
    return listening(Process(arguments, folder / "error.log", program="nginx"), port)
