"""Centrifugo: a publish-subscribe server, in Go. Measured where a program `centrifugo` (version 6) is on the path.

One core, so one thread of Go's scheduler runs at a time. A channel keeps its last 5,000 messages, more than any run
publishes, and a viewer recovers all of them from its position, or from the beginning without one. Viewers use the
unidirectional transports, which need no SDK. Publishing is one POST per token over kept-alive connections.
"""

import contextlib
import http.client
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bench.peers.published import Published, publisher
from bench.peers.redis_server import redis_server
from bench.peers.system import config_folder, foreign
from bench.proc import BenchError
from proof.chaos.processes import free_port

__all__ = ["Centrifugo", "CentrifugoRedis", "centrifugo", "centrifugo_redis", "is_here"]

_HISTORY = 5_000
_PUBLISH: dict[str, Any] = {
    "path": "/api/publish",
    "head": "Content-Type: application/json\r\nX-API-Key: {key}",
    "around": ('{{"channel":"{channel}","data":"', '"}}'),
}


class Centrifugo(Published):
    name = "centrifugo, memory"
    kinds: ClassVar[tuple[str, ...]] = ("centrifugo-sse", "centrifugo-ws")
    resuming: ClassVar[tuple[str, ...]] = ("centrifugo-sse", "centrifugo-ws")
    promises = "keeps 5,000 messages of a channel in memory until it ends; one message per token; no joined text"

    @property
    def version(self) -> str:
        command = [_program(), "version"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


class CentrifugoRedis(Centrifugo):
    name = "centrifugo, Redis AOF always"
    promises = "a publish is acknowledged when it is in Redis's file on disk; one message per token; no joined text"


def is_here() -> bool:
    """Return whether the program is on the path."""
    return shutil.which("centrifugo") is not None


@contextlib.contextmanager
def centrifugo() -> Iterator[Centrifugo]:
    """Run Centrifugo with its memory engine. Raises `BenchError` if it is missing or does not start."""
    with _server({"type": "memory"}) as (port, keeper, request), publisher() as child:
        yield Centrifugo(port, (keeper,), child, **request)


@contextlib.contextmanager
def centrifugo_redis(directory: Path) -> Iterator[CentrifugoRedis]:
    """Run Centrifugo with its Redis engine, as durable as ours: AOF `always`."""
    with redis_server(directory, "always") as redis:
        engine = {"type": "redis", "redis": {"address": [f"redis://127.0.0.1:{redis.port}"]}}
        with _server(engine) as (port, keeper, request), publisher() as child:
            yield CentrifugoRedis(port, (keeper, redis.pid), child, **request)


@contextlib.contextmanager
def _server(engine: dict[str, Any]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Run the program. Yield its port, the process that keeps it, and how to publish."""
    executable = _program()
    port, key = free_port(), secrets.token_hex(8)
    with config_folder() as folder:
        config = folder / "centrifugo.json"
        config.write_text(json.dumps(_config(port, key, engine)))
        command = [executable, "--config", str(config)]
        with foreign(f"centrifugo on port {port}", command, lambda _: _publishes(port, key)) as keeper:
            yield port, keeper, _PUBLISH | {"head": _PUBLISH["head"].format(key=key)}


def _config(port: int, key: str, engine: dict[str, Any]) -> dict[str, Any]:
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
        "engine": engine,
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
