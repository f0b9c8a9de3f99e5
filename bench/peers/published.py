"""The common part of peers without producers in their own process: another process publishes to them over HTTP."""

import contextlib
from collections.abc import Iterator
from typing import Any

from bench.peers.system import GROWING_TOKENS_PER_S, System
from bench.proc import CLIENT_CORE, Child, cpu_s

__all__ = ["Published", "publisher"]


class Published(System):
    """A peer that is published to, over HTTP. `request` names the fields of `publish` that make its requests."""

    has_publisher = True
    window_ms = 0
    """How long its publisher gathers tokens of a channel before it publishes them as one message."""

    def __init__(self, port: int, pids: tuple[int, ...], publisher: Child, **request: Any) -> None:
        super().__init__(port, pids)
        self._publisher = publisher
        self._request = request
        self._grown: dict[str, str] = {}

    def client_core_s(self) -> float:
        return cpu_s(self._publisher.pid)

    def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> Any:
        wanted: dict[str, Any] = {"channels": channels, "count": count, "tokens_per_s": tokens_per_s}
        wanted["window_ms"] = self.window_ms
        patience_s = 60 + count / tokens_per_s
        return self._publisher.request("publish", reply_in_s=patience_s, port=self.port, **wanted, **self._request)

    def grow(self, channel: str, count: int) -> str:
        wanted: dict[str, Any] = {
            "channels": [channel],
            "count": count,
            "tokens_per_s": GROWING_TOKENS_PER_S,
            "returns_texts": True,
        }
        response = self._publisher.request("publish", port=self.port, **wanted, **self._request)
        self._grown[channel] = self._grown.get(channel, "") + response["texts"][channel]
        return self._grown[channel]


@contextlib.contextmanager
def publisher() -> Iterator[Child]:
    """Run the publisher on the load client's core."""
    with Child("bench.peers.publisher", core=CLIENT_CORE) as child:
        yield child
