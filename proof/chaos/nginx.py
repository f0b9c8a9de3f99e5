"""The configuration of a real nginx with the settings of `docs/deployment.md`.

Layer: chaos.

Only paths, ports and TLS differ from the page.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["DEPLOYMENT", "configuration", "settings_of_the_docs"]

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


def settings_of_the_docs() -> tuple[str, str, str]:
    """Return what `docs/deployment.md` shows: the configuration, the processes, and the inner one of two proxies."""
    found = re.findall(r"```nginx\n(.*?)```", DEPLOYMENT.read_text(), re.DOTALL)
    whole, group, inner = map(str, found)
    return whole, group, inner


def configuration(folder: Path, port: int, *upstreams: int, inner: int | None = None) -> str:
    """Return the configuration of an nginx that listens on `port`, and passes requests on to the ports `upstreams`.

    With `inner`, two proxies follow one another: paths of the outer one begin with `/chat`, and `inner` is the port of
    the other one.
    """
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
    if inner is not None:
        http = http.replace("location / {", "location /chat/ {")
        http = http.replace("proxy_pass http://127.0.0.1:8000;", f"proxy_pass http://127.0.0.1:{inner}/;")
        inside = inside.replace("listen 80;", f"listen 127.0.0.1:{inner};").replace("10.0.0.8", "127.0.0.1")
        http = inside + http
    else:
        http = http.replace("proxy_pass http://127.0.0.1:8000;", "proxy_pass http://chat;")
    text = f"{general}\n{main}http {{ access_log off; {paths}{group}{http}"
    text = re.sub(r"\n *ssl_\w+ .*;", "", text)
    # The strict viewers check this header, which nginx takes as its own.
    return text.replace("proxy_buffering off;", "proxy_buffering off; proxy_pass_header X-Accel-Buffering;")
