"""A producer as a separate process: writes one message over HTTP, and sends unacknowledged requests again.

    python -m tests.producer PORT PREFIX CHANNEL ID SEED TOKENS PER_SECOND

Layer: tests.

It behaves like a careful remote agent: it keeps its text until the finish is stored, names the
offset of every append (`at`), and continues from `length` after a gap. It ends when the message is finished.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import time
from typing import Any

# Ordinary words, and text between them that breaks naive code.
ORDINARY = ["the ", "quick ", "brown ", "fox ", "jumps ", "over "]
NASTY = [
    "🙂",
    "👩\u200d🚀",
    "e\u0301",
    "中文 ",
    "שלום ",
    "\r\n",
    "\r",
    "\n",
    "\u2028",
    "  ",
    "\ndata: x\n\n",
    "<b>&amp;",
    "\t",
]
PIECES = [*ORDINARY * 6, *NASTY]
RETRY_S = 0.1
GIVE_UP_S = 60.0


def tokens_of(seed: int, count: int) -> list[str]:
    """Return the tokens of the message that `seed` determines."""
    chosen = random.Random(seed)
    return [chosen.choice(PIECES) for _ in range(count)]


class Producer:
    """A writer of one message, which continues after outages of the server."""

    def __init__(self, port: int, prefix: str, channel: str, message_id: str) -> None:
        self._port = port
        self._base = f"{prefix}/v1/channels/{channel}/messages"
        self._id = message_id
        self._connection: http.client.HTTPConnection | None = None

    def send(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the server's response, after as many tries as needed."""
        deadline_s = time.monotonic() + GIVE_UP_S
        while True:
            try:
                status, answer = self._try(path, body)
                if status < 500:
                    return status, answer
            except (OSError, http.client.HTTPException, ValueError):
                self._connection = None
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the server sent no response within {GIVE_UP_S:g} s")
            time.sleep(RETRY_S)

    def write(self, tokens: list[str], per_second: float) -> None:
        """Create the message, append `per_second` tokens each second, and finish it."""
        status, answer = self.send("", {"id": self._id, "role": "assistant", "status": "streaming"})
        assert status in (200, 201), answer
        text, start_s = "", time.monotonic()
        for number, token in enumerate(tokens):
            time.sleep(max(0.0, start_s + number / per_second - time.monotonic()))
            status, answer = self.send(f"/{self._id}/append", {"text": token, "at": len(text)})
            text += token
            assert status == 200, answer
        status, answer = self.send(f"/{self._id}/finish", {"status": "complete"})
        assert status == 200, answer

    def _try(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        self._connection.request(
            "POST", self._base + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")


def main(port: str, prefix: str, channel: str, message_id: str, seed: str, count: str, per_second: str) -> None:
    """Write the message that `seed` determines."""
    producer = Producer(int(port), prefix, channel, message_id)
    producer.write(tokens_of(int(seed), int(count)), float(per_second))


if __name__ == "__main__":
    main(*sys.argv[1:])
