"""Photos: the p99 of running answers' tokens while questions with a photo of 3 MB arrive, against without.

Twenty answers stream fifty tokens per second each, to one viewer each, on SQLite FULL. Windows without and with photos
alternate on one server. A photo is a data URL in a question of OpenAI's Responses, once a second; an agent answers it.
"""

import base64
import http.client
import json
import os
import time
from typing import Any

from bench.ai_sdk import streaming
from bench.common import Options, Row, capture, judge, spread
from bench.proc import BenchError

_CHANNELS = [f"bench:{n}" for n in range(20)]
_LIMIT = 1.1


def run(options: Options) -> list[Row]:
    photos, pairs = (2, 1) if options.is_quick else (10, 4)  # a photo takes a second of its window
    image = f"data:image/png;base64,{base64.b64encode(os.urandom(3_000_000)).decode()}"
    content = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": image}]
    body = json.dumps({"model": "bot", "input": [{"role": "user", "content": content}], "background": True}).encode()
    with streaming(options, "sse", _CHANNELS, 1) as (child, load, address):
        begun_s = time.monotonic() + 0.5  # the first tokens have no latency: all answers are created then
        windows = [(begun_s + n * photos, begun_s + (n + 1) * photos) for n in range(2 * pairs)]

        def produce() -> Any:
            child.send("grow", seconds=2 * pairs * photos + 1.0)
            for due_s in (first_s + n for first_s, _ in windows[1::2] for n in range(photos)):
                time.sleep(max(0.0, due_s - time.monotonic()))
                connection = http.client.HTTPConnection("127.0.0.1", address["port"], timeout=10)
                connection.request("POST", "/v1/responses", body, {"Content-Type": "application/json"})
                if (response := connection.getresponse()).status != 200:
                    raise BenchError(f"a photo got the status {response.status}: {response.read()[:300]!r}")
                connection.close()
            return child.read(timeout_s=45)

        grown, drained, _ = capture(load, child.pid, produce, last=None)
        p99s = [p99 for _, p99, _ in judge(load, drained, grown["messages"], address, windows=windows)["windows_ms"]]
    ratios = [beside / alone for alone, beside in zip(p99s[::2], p99s[1::2], strict=True)]
    what = f"{photos} photos of 3 MB in {photos} s: p99 of the tokens of {len(_CHANNELS)} answers, against without"
    return [Row.judged(what, ratios, "×", _LIMIT), Row("  p99 without", spread(p99s[::2], "ms"))]
