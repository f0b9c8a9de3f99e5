"""Centrifugo: a publish-subscribe server, in Go. Measured where a program `centrifugo` (version 6) is on the path.

One core, so one thread of Go's scheduler runs at a time. A channel keeps its last 5,000 messages, more than any run
publishes, which a late viewer gets. Viewers use the unidirectional transports, which need no SDK. Publishing is one
POST per token over kept-alive connections.
"""

import contextlib
import http.client
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, ClassVar

from bench.peers.system import Published, config_folder, foreign, publisher
from bench.proc import BenchError
from proof.chaos.processes import free_port

__all__ = ["Centrifugo", "centrifugo", "is_here"]

_HISTORY = 5_000
_PUBLISH: dict[str, Any] = {
    "path": "/api/publish",
    "head": "Content-Type: application/json\r\nX-API-Key: {key}",
    "around": ('{{"channel":"{channel}","data":"', '"}}'),
}


class Centrifugo(Published):
    name = "centrifugo, memory"
    kinds: ClassVar[tuple[str, ...]] = ("centrifugo-sse", "centrifugo-ws")
    promises = "keeps 5,000 messages of a channel in memory until it ends; one message per token; no joined text"

    @property
    def version(self) -> str:
        command = [_program(), "version"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def is_here() -> bool:
    """Return whether the program is on the path."""
    return shutil.which("centrifugo") is not None


@contextlib.contextmanager
def centrifugo() -> Iterator[Centrifugo]:
    """Run Centrifugo with its memory engine. Raises `BenchError` if it is missing or does not start."""
    executable = _program()
    port, key = free_port(), secrets.token_hex(8)
    request = _PUBLISH | {"head": _PUBLISH["head"].format(key=key)}
    with config_folder() as folder:
        config = folder / "centrifugo.json"
        config.write_text(json.dumps(_config(port, key)))
        command = [executable, "--config", str(config)]
        server = foreign(f"centrifugo on port {port}", command, lambda _: _publishes(port, key))
        with server as keeper, publisher() as child:
            yield Centrifugo(port, (keeper,), child, **request)


def _config(port: int, key: str) -> dict[str, Any]:
    return {
        "http_server": {"address": "127.0.0.1", "port": port},
        "log": {"level": "error"},
        "usage_stats": {"disabled": True},
        "http_api": {"key": key, "error_mode": "transport"},  # an error is a status, not a field of a response 200
        "client": {
            "allow_anonymous_connect_without_token": True,
            "allowed_origins": ["*"],
            "recovery_max_publication_limit": _HISTORY,
        },
        "uni_sse": {"enabled": True},
        "uni_websocket": {"enabled": True, "join_push_messages": True},
        "engine": {"type": "memory"},
        "channel": {
            "namespaces": [
                {
                    "name": "bench",
                    "history_size": _HISTORY,
                    "history_ttl": "3600s",
                    "force_recovery": True,
                    "allow_subscribe_for_client": True,
                    "allow_subscribe_for_anonymous": True,
                }
            ]
        },
    }


def _program() -> str:
    path = shutil.which("centrifugo")
    if path is None:
        raise BenchError("centrifugo is not on the path")
    return path


def _publishes(port: int, key: str) -> bool:
    """Return whether our server responds on this port: only it knows the key."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    body = json.dumps({"channel": "bench:ready", "data": "ready"})
    try:
        connection.request("POST", "/api/publish", body, {"Content-Type": "application/json", "X-API-Key": key})
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
