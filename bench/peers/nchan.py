"""nchan: a publish-subscribe module of nginx, in C. Debian's nginx with Debian's module.

One worker, because it gets one core. Channels keep all messages of a run, and a late viewer receives them from the
oldest: the closest to an answer so far. The defaults (10 messages, newest first) could not do the work at all. Logging
is off. Publishing is one POST per token over kept-alive connections.
"""

import contextlib
import http.client
import os
import pwd
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from bench.peers.system import System, config_folder, foreign, program
from bench.proc import CLIENT_CORE, BenchError, Child
from proof.chaos.processes import free_port

_MODULES = ("/usr/lib/nginx/modules/ngx_nchan_module.so", "/usr/share/nginx/modules/ngx_nchan_module.so")
_PUBLISH = "/publish/{channel}"
_CONFIG = """
load_module {module};
daemon off;
worker_processes 1;
user {user};
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    nchan_shared_memory_size 512M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /who {{ return 200 "{nonce}"; }}
        location ~ ^/publish/(.+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
            nchan_message_buffer_length 100000;
            nchan_message_timeout 1h;
        }}
        location ~ ^/subscribe/(.+)$ {{
            nchan_subscriber eventsource websocket;
            nchan_channel_id $1;
            nchan_subscriber_first_message oldest;
        }}
    }}
}}
"""


class Nchan(System):
    name = "nchan, memory"
    kinds: ClassVar[tuple[str, ...]] = ("nchan-sse", "nchan-ws")

    def __init__(self, port: int, pid: int, publisher: Child) -> None:
        """Another process publishes to it, and its time is not counted."""
        super().__init__(port, pid)
        self._publisher = publisher

    def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> Any:
        wanted: dict[str, Any] = {"channels": channels, "count": count, "tokens_per_s": tokens_per_s}
        wanted |= {"port": self.port, "path": _PUBLISH, "reply_in_s": 60 + count / tokens_per_s}
        return self._publisher.request("publish", **wanted)


@contextlib.contextmanager
def nchan(*, connections: int) -> Iterator[Nchan]:
    """Run nchan with its memory storage. Raises `BenchError` if it is missing or does not start."""
    executable = program("nginx", "nginx libnginx-mod-nchan")
    module = next((path for path in _MODULES if Path(path).exists()), None)
    if module is None:
        raise BenchError("nginx has no nchan module (Debian: apt-get install libnginx-mod-nchan)")
    port, nonce = free_port(), secrets.token_hex(8)
    with config_folder() as folder:
        config = folder / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                module=module,
                user=pwd.getpwuid(os.geteuid()).pw_name,
                folder=folder,
                connections=connections + 400,  # the additional connections are those of the publisher
                port=port,
                nonce=nonce,
            )
        )
        # Without -e, nginx first opens its built-in log path, which we may not be allowed to write.
        command = [executable, "-e", "stderr", "-p", str(folder), "-c", str(config)]
        server = foreign(f"nginx with nchan on port {port}", command, lambda _: _is_ours(port, nonce))
        with server as pid, Child("bench.peers.publisher", core=CLIENT_CORE) as publisher:
            yield Nchan(port, pid, publisher)


def _is_ours(port: int, nonce: str) -> bool:
    """Return whether our nginx responds on this port, with nchan in it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/who")
        is_ours = connection.getresponse().read() == nonce.encode()
        connection.request("POST", f"/publish/{quote('bench:ready')}", b"ready")
        return is_ours and 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
