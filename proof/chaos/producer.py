"""A producer in a process of its own: it writes messages over HTTP, and repeats requests without a response.

    python -m proof.chaos.producer '{"port": 8000, "name": "a", …}'

Layer: chaos.

It behaves as a careful remote agent: it repeats the same request until it has a response, names the offset of each
append (`at`), and joins text while it waits. It prints the server's acknowledgements, one JSON object per line. After
SIGTERM it ends with its present message; the exit status is 0 only if each response was correct.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from proof.oracle.plans import Script

GIVE_UP_S = 60.0  # longest wait for one response, over all tries
MOST_JOINED = 64  # limit of steps in one request
HURRY_PER_S = 1_000.0  # steps per second of a producer that is shutting down

Json = dict[str, Any]


@dataclass(frozen=True)
class Orders:
    """The settings of a producer; JSON on its command line."""

    port: int
    name: str  # the prefix of the ids of its messages: `name-0`, `name-1`, …
    channel: str
    seed: int
    steps: int  # number of steps of each message
    per_second: float
    prefix: str = ""
    timeout_s: float = 3.0  # longest time of one try
    last: int | None = None  # the number of its last message; None: it writes until SIGTERM
    lease_s: int = 60  # longer than any fault, so that a writer that continues keeps its message


class Wrong(Exception):
    """The server sent a response that the protocol forbids."""


def say(what: str, **fields: Any) -> None:
    """Print a report. One write, so that a kill cannot split a line."""
    os.write(1, json.dumps({"say": what, **fields}).encode() + b"\n")


class Producer:
    """Writes one message after the other."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._base = f"{orders.prefix}/v1/channels/{quote(orders.channel, safe='')}/messages"
        self._random = random.Random(f"{orders.seed}:{orders.name}:pauses")
        self._connection: http.client.HTTPConnection | None = None
        self.is_ending = False

    def run(self) -> None:
        """Write until SIGTERM, or the last message."""
        number = 0
        last = math.inf if self._orders.last is None else self._orders.last
        while number <= last and not self.is_ending:
            Writing(self, f"{self._orders.name}-{number}").run()
            number += 1

    @property
    def orders(self) -> Orders:
        return self._orders

    def ask(self, method: str, message_id: str, path: str = "", body: Json | None = None) -> tuple[int, Json]:
        """Send a request, the same bytes each time, until it has a response; return it."""
        target = self._base + (f"/{message_id}" if message_id else "") + path
        data = json.dumps(body).encode() if body is not None else None
        deadline_s = time.monotonic() + GIVE_UP_S
        while time.monotonic() < deadline_s:
            try:
                status, headers, response = self._try(method, target, data)
            except (OSError, http.client.HTTPException, ValueError):
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
            else:
                if status < 500:
                    return status, response
                self._check_refusal(status, headers, response)
            time.sleep(self._random.uniform(0.02, 0.2))
        raise Wrong(f"{method} {target} had no response in {GIVE_UP_S} s")

    def _try(self, method: str, target: str, data: bytes | None) -> tuple[int, http.client.HTTPMessage, Json]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                "127.0.0.1", self._orders.port, timeout=self._orders.timeout_s
            )
        headers = {"content-type": "application/json"} if data is not None else {}
        self._connection.request(method, target, data, headers)
        response = self._connection.getresponse()
        return response.status, response.headers, json.loads(response.read() or b"{}")

    def _check_refusal(self, status: int, headers: http.client.HTTPMessage, response: Json) -> None:
        if status != 503 or headers["content-type"] != "application/problem+json" or "retry-after" not in headers:
            raise Wrong(f"a refusal without a time to try again: {status} {dict(headers)} {response}")


class Writing:
    """One message. Counts the entries of its requests."""

    def __init__(self, producer: Producer, id: str) -> None:
        orders = producer.orders
        self._producer = producer
        self._id = id
        self._texts = Script(orders.seed, id, steps=orders.steps).texts(orders.name)
        self._entries = self._length = 0

    def run(self) -> None:
        """Write the whole message."""
        orders = self._producer.orders
        say("begins", id=self._id)
        create = {"id": self._id, "role": "assistant", "status": "streaming", "lease_s": orders.lease_s}
        self._must("POST", "", "", create)
        self._acknowledged()
        self._write()
        self._must("POST", self._id, "/finish", {"status": "complete"})
        self._acknowledged(status="complete")
        say("over", id=self._id)

    def _write(self) -> None:
        place = 0
        begun_s, per_second = time.monotonic(), self._producer.orders.per_second
        while place < len(self._texts):
            if self._producer.is_ending:
                per_second = HURRY_PER_S
            time.sleep(max(0.0, begun_s + place / per_second - time.monotonic()))
            due = int((time.monotonic() - begun_s) * per_second) + 1
            until = max(place + 1, min(place + MOST_JOINED, due))
            self._append("".join(self._texts[place:until]))
            place = until

    def _append(self, text: str) -> None:
        at = self._length
        response = self._must("POST", self._id, "/append", {"text": text, "at": at})
        self._length += len(text)
        if response["length"] != self._length:
            raise Wrong(f"append at {at} of {len(text)} characters to {self._id}: {response}")
        self._acknowledged()

    def _must(self, method: str, message_id: str, path: str, body: Json | None) -> Json:
        status, response = self._producer.ask(method, message_id, path, body)
        if status not in (200, 201, 204):
            raise Wrong(f"{method} {message_id}{path} {str(body)[:200]}: {status} {response}")
        return response

    def _acknowledged(self, **fields: Any) -> None:
        """Report an acknowledgement: this text must never be lost."""
        self._entries += 1
        say("stored", id=self._id, entries=self._entries, length=self._length, **fields)


def main(orders: str) -> int:
    """Write with these orders; return the exit status."""
    producer = Producer(Orders(**json.loads(orders)))

    def end(number: int, frame: object) -> None:
        producer.is_ending = True

    signal.signal(signal.SIGTERM, end)
    say("ready")
    try:
        producer.run()
    except Wrong as error:
        say("wrong", detail=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
