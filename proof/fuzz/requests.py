"""The target `requests`: all of HTTP, in process: bodies, headers, queries, paths, streams and polls.

Layer: fuzz.

An input is `{setup, steps}`. A step is a request: `method`, `path` (as in the request line), `query`, `headers`, and
`json` or `body` (bytes, see `mutate.to_bytes`). `cuts` is the number of pieces of the body; with `ends: false` it never
ends. With `beside: true` the request continues during the next ones. `hold_s` is how long a stream is read, `block_s`
how long each write blocks. `{ticket}` in a query stands for the latest issued ticket.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from proof.fuzz import mutate
from proof.fuzz.engine import Finding, InProcess
from proof.fuzz.mutate import Json, to_bytes
from proof.fuzz.world import (
    HOLD_S,
    Exchange,
    World,
    as_dict,
    as_list,
    as_number,
    as_text,
    headers_of,
    path_of,
    world_of,
)

MAX_STEPS = 24
C = "/v1/channels/c"
M = f"{C}/messages"
STREAMING = {"id": "m1", "role": "assistant", "status": "streaming"}
PARTS: list[dict[str, Json]] = [
    {"type": "text", "text": "ab"},
    {"type": "reasoning", "text": "hm 😀"},
    {"type": "tool", "call": "c1", "name": "f", "input": "{", "output": {"n": 1}, "state": "x"},
    {"type": "source", "url": "u", "deep": [[1]]},
    {"type": "file", "name": "f", "data": None},
    {"type": "data", "name": "d", "data": {"a": []}},
]
BODIES: dict[str, dict[str, Json]] = {
    "create": {"id": "m2", "role": "user", "text": "x", "status": "complete", "meta": {"k": 1}, "lease_s": 15}
    | {"parent": "m1", "reply_to": "m1"},
    "append": {"text": "héy", "at": 0, "part": 0, "generation": 1},
    "part": PARTS[0],
    "update": {"parts": PARTS, "meta": {"k": None}, "generation": 1, "if_version": 1, "request": "r1", "supersede": 0},
    "finish": {"status": "complete", "reason": "r", "meta": {"u": 2}, "generation": 1, "request": "r2"},
    "lease": {"generation": 1, "lease_s": 5},
    "takeover": {"generation": 1, "lease_s": 15, "request": "r4"},
    "command": {"id": "k1", "name": "steer", "target": "m1", "data": {"to": [1]}, "expires_s": 2},
    "reply": {"ok": False, "data": None, "error": {"code": "no"}, "request": "r5"},
}
REQUESTS: list[dict[str, Json]] = [
    {"method": "POST", "path": M, "json": BODIES["create"]},
    {"method": "POST", "path": M, "json": {**STREAMING, "parts": PARTS}},
    {"method": "POST", "path": f"{M}/m1/append", "json": BODIES["append"]},
    {"method": "POST", "path": f"{M}/m1/append", "json": {"text": "more"}},
    {"method": "PUT", "path": f"{M}/m1/parts/0", "query": "generation=1&request=r3", "json": BODIES["part"]},
    {"method": "PUT", "path": f"{M}/m1/parts/1", "json": PARTS[2]},
    {"method": "PATCH", "path": f"{M}/m1", "json": BODIES["update"]},
    {"method": "POST", "path": f"{M}/m1/finish", "json": BODIES["finish"]},
    {"method": "DELETE", "path": f"{M}/m1"},
    {"method": "GET", "path": f"{M}/m1"},
    {"method": "HEAD", "path": f"{M}/m1"},
    {"method": "OPTIONS", "path": M},
    {"method": "GET", "path": M, "query": "before=3&limit=2"},
    {"method": "GET", "path": C},
    {"method": "GET", "path": "/v1/channels", "query": "prefix=c&after=a&limit=2"},
    {"method": "GET", "path": f"{C}/export"},
    {"method": "POST", "path": "/v1/forget", "json": {"client_id": "ada", "channels": True}},
    {"method": "POST", "path": "/v1/verify", "json": {}},
    {"method": "GET", "path": "/v1/inspect"},
    {"method": "DELETE", "path": C},
    {"method": "GET", "path": "/healthz"},
    {"method": "GET", "path": "/readyz"},
    {"method": "GET", "path": "/metrics"},
    {"method": "GET", "path": f"{C}/events", "query": "since=-:0&history=5&flush_ms=40&ping_s=2", "beside": True},
    {"method": "GET", "path": f"{C}/events", "hold_s": 20, "headers": [["Last-Event-ID", "x:1"], ["Accept", "*/*"]]},
    {"method": "HEAD", "path": f"{C}/events"},
    {"method": "GET", "path": f"{C}/poll", "query": "since=-:0&wait_s=0&history=1"},
    {"method": "GET", "path": f"{C}/poll", "query": "wait_s=60", "beside": True},
    {"method": "GET", "path": f"{M}/m1/events", "query": "since=x:1:1m0.1", "beside": True},
    {"method": "GET", "path": f"{M}/m1/events", "headers": [["Tenuto-Client", "js/1"]]},
    {"method": "POST", "path": "/v1/tickets", "json": {"channel": "c"}},
    {"method": "GET", "path": f"{C}/events", "query": "ticket={ticket}&flush_ms=0", "beside": True},
    {"method": "GET", "path": f"{M}/m1/events", "query": "ticket={ticket}", "hold_s": 20},
    {"method": "POST", "path": f"{M}/m1/lease", "json": BODIES["lease"]},
    {"method": "POST", "path": f"{M}/m1/takeover", "json": BODIES["takeover"]},
    {"method": "POST", "path": f"{C}/commands", "json": BODIES["command"]},
    {"method": "POST", "path": f"{C}/commands", "json": {"name": "cancel", "target": "m1", "expires_s": 1}}
    | {"hold_s": 3},
    {"method": "POST", "path": f"{C}/commands/k1/reply", "json": BODIES["reply"]},
    {"method": "GET", "path": f"{C}/presence"},
    {"method": "PUT", "path": f"{C}/presence/ada", "json": {"data": {"typing": True}, "lease_s": 5}},
    {"method": "DELETE", "path": f"{C}/presence/ada"},
    {"method": "POST", "path": f"{C}/signals", "json": {"name": "typing", "data": {"n": 1}}},
]
PATHS = [
    *(C, M, f"{M}/m1", f"{M}/m1/append", f"{M}/m1/finish", f"{M}/m1/parts/0", f"{M}/m1/events", f"{C}/events"),
    *(f"{C}/poll", f"{C}/commands", f"{C}/commands/k1/reply", f"{C}/presence", f"{C}/presence/ada", f"{C}/signals"),
    *(f"{M}/m1/lease", f"{M}/m1/takeover", f"{C}/export", "/v1/forget", "/v1/verify", "/v1/inspect"),
    *("/v1/channels/d/messages", "/v1/channels/a+b~c@d=e.f:g-h_i/messages", "/v1/ws", "/", "/v1", "/v1/channels"),
    *("/v1/channels/", "//v1/channels/c", "/v1/channels/%2e%2e/messages", "/v1/channels/../x"),
    *("/v1/channels/c%2Fmessages", "/v1/channels/c%252F", "/v1/channels/%00", "/v1/channels/c%0a", "/v1/channels/c/"),
    *("/v1/channels/%ff%fe/messages", "/v1/channels/" + "c" * 201, "/v1/channels/" + "c" * 20_000, "*"),
]
ENCODED = ["%0A", "%0a", "%00", "%2F", "%2f", "%2E%2E", "%FF", "%C3%A9", "%", "%G1", "+", ";", "//", "/.", "/..", "%3F"]
HEADERS: dict[str, list[str]] = {
    "Host": [
        *("localhost", "localhost:8000", "[::1]", "evil.test", "localhost@evil.test", "[::1", "localhost:x", "é"),
        *("[v1.x]", ""),
    ],
    "Content-Type": ["application/json", "Application/JSON ; charset=utf-8", "text/plain", "", "\xff"],
    "Content-Length": ["5", "-1", "99999999999999999999999", "²", "1_0"],
    "Transfer-Encoding": ["chunked"],
    "Accept": ["text/event-stream", "x" * 9_000],
    "Accept-Encoding": ["gzip, br;q=1"],
    "Origin": [
        *("http://localhost", "null", "http://[::1", "http://localhost:x", "\xff", "https://page.test"),
        "http://\u2100.test",
    ],
    "Cookie": ["a=b"],
    "Forwarded": ["for=x"],
    "X-Forwarded-For": ["1.2.3.4"],
    "Via": ["1.1 x"],
    "Last-Event-ID": ["-:0", "x:1", "\xff\xfe", "-:0:" + "x" * 400, ""],
    "Tenuto-Client": ["js/1", "\x7f"],
    "Authorization": ["Bearer x"],
    "Range": ["bytes=0-1"],
    "Access-Control-Request-Method": ["PUT"],
    "Access-Control-Request-Headers": ["x, y"],
    "Expect": ["100-continue"],
    "Upgrade": ["websocket"],
    "Connection": ["upgrade"],
    "If-None-Match": ["*"],
    "X-HTTP-Method-Override": ["DELETE"],
}
HEADER_LINES = [[name, value] for name, values in HEADERS.items() for value in values]
QUERIES = [
    *("since=-:0", "since=", "since=%FF", "since=x%00", "history=0", "history=10", "history=11", "history=-1"),
    *("flush_ms=0", "flush_ms=1000", "flush_ms=1001", "ping_s=2", "ping_s=1", "wait_s=0", "wait_s=60", "wait_s=61"),
    *("before=0", "before=9007199254740992", "before=9007199254740993", "limit=1", "limit=0", "limit=%D9%A1"),
    *("prefix=c", "prefix=%00", "after=a", "after=" + "x" * 201, "sdk=js", "client=ada", "client=%00"),
    *("client=" + "x" * 80, "client=%F0%9F%98%80", "generation=1", "generation=0", "request=r1", "request="),
    *("request=..", "&&&", "=", "a=b&" * 60, "%", "since=-:0&since=x:1", "ticket={ticket}"),
    *("ticket={ticket}&ticket={ticket}", "ticket=", "ticket=e30.x", "x" * 5_000),
]
RAW = [
    *("", " ", "{", "[]", "null", "1", '"x"', "{}{}", "\xef\xbb\xbf{}", '{"text": "\xff"}', '{"text": "\\ud800"}'),
    *('{"text": "a", "text": "b"}', '{"id": "m\\u0000"}', '{"text": "\\u00', '{"x": ' + "[" * 5_000),
    *('{"meta": ' + '{"a":' * 300 + "1" + "}" * 300 + "}", '{"meta": {"n": 1e999}}'),
    *('{"meta": {"n": ' + "9" * 5_000 + "}}", '{"lease_s": 1e308}', '{"client_id": "*"}'),
    *('{"client_id": "ada", "channels": 1}', '{"reason": "\\u001b[2J\\n"}', '{"text": ' + '"' + "x" * 9_000 + '"}'),
    "x" * 20_000,
]
WORDS: list[Json] = [
    *mutate.words_in([BODIES, STREAMING, PARTS]),
    *("d", "m3", "client_id", "channels", "system", "cancelled", "interrupted", "failed", "cancel", "regenerate"),
    *("ada", "typing", 3, 8, 9, PARTS[0], PARTS[2]),
]
TICKET = "{ticket}"
TICKETS: dict[str, Json] = {"method": "POST", "path": "/v1/tickets", "json": {"channel": "c"}}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "", "X" * 50]
SETUPS: list[dict[str, Json]] = [
    {},
    {},
    {},
    {"by_hand": True},
    {"limits": "default"},
    {"origins": ["https://page.test"]},
    {"origins": ["*"]},
    {"is_open": True},
    {"is_open": True, "origins": ["https://page.test"], "by_hand": True},
]


class Requests(InProcess):
    """Sends requests to a hub of their own, one after another or concurrently."""

    name = "requests"

    def seeds(self) -> list[Json]:
        """Return every request, alone and after a message has begun; one conversation; every bad value once."""
        begun = {"method": "POST", "path": M, "json": STREAMING}
        found: list[Json] = [{"setup": {}, "steps": REQUESTS}, {"setup": {"by_hand": True}, "steps": REQUESTS}]
        found += [{"setup": {}, "steps": [begun, one, one]} for one in REQUESTS]
        found += [{"setup": {}, "steps": [begun, {"method": "GET", "path": path}]} for path in PATHS]
        with_ticket = [one for one in REQUESTS if TICKET in as_text(one.get("query"), "")]
        found += [{"setup": {}, "steps": [begun, TICKETS, one, one]} for one in with_ticket]
        found += [{"setup": {}, "steps": [{"method": "POST", "path": M, "body": raw}]} for raw in RAW]
        return found

    def generate(self, draw: Random) -> Json:
        """Return a new input."""
        steps = [self._step(draw) for _ in range(draw.randint(1, 8))]
        if draw.random() < 0.3:
            steps[:0] = [TICKETS, {**draw.choice(REQUESTS), "query": f"ticket={TICKET}"}]
        if draw.random() < 0.8:
            steps.insert(0, {"method": "POST", "path": M, "json": STREAMING})
        return {"setup": draw.choice(SETUPS), "steps": steps}

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change one step, or the order of steps."""
        new, number = mutate.steps(draw, old, other, self._step, (0.15, 0.3, 0.35), max_steps=MAX_STEPS)
        if number is not None and number < 0.4:
            new["setup"] = draw.choice(SETUPS)
        elif number is not None:
            self._change_step(draw, draw.choice(new["steps"]))
        return new

    def _step(self, draw: Random) -> dict[str, Json]:
        step: dict[str, Json] = mutate.copied(draw.choice(REQUESTS))
        for _ in range(draw.choice((0, 1, 1, 2))):
            self._change_step(draw, step)
        return step

    def _change_step(self, draw: Random, step: dict[str, Json]) -> None:
        lines = as_list(step.get("headers"))
        match draw.randrange(13):
            case 0:
                step["method"] = draw.choice(METHODS)
            case 1:
                step["path"] = draw.choice(PATHS)
            case 2:
                path = as_text(step.get("path"), "/")
                at = draw.randint(0, len(path))
                step["path"] = path[:at] + draw.choice(ENCODED) + path[at:]
            case 3:
                step["path"] = mutate.text(draw, as_text(step.get("path"), "/"), PATHS)
            case 4:
                step["query"] = "&".join(draw.choice(QUERIES) for _ in range(draw.choice((1, 1, 2, 4))))
            case 5:
                step["query"] = mutate.text(draw, as_text(step.get("query"), ""), QUERIES)
            case 6:
                step["headers"] = [*lines, draw.choice(HEADER_LINES)]
            case 7 if lines:
                line = draw.choice(lines)
                if isinstance(line, list) and line:
                    line[-1] = mutate.text(draw, as_text(line[-1], ""), [one[1] for one in HEADER_LINES])
            case 8:
                step.pop("json", None)
                step["body"] = draw.choice(RAW)
            case 9 if "json" in step:
                step["body"] = mutate.text(draw, json.dumps(step.pop("json")), RAW)
            case 10:
                step[draw.choice(("beside", "beside", "cuts", "ends", "hold_s", "block_s", "bare", "address"))] = (
                    draw.choice((True, False, 1, 3, 20, 70, 0.01, 400, "1.2.3.4", "::1", "::ffff:127.0.0.1"))
                )
            case _:
                step["json"] = mutate.value(draw, step.get("json", draw.choice(list(BODIES.values()))), WORDS)

    def run(self, given: Json) -> None:
        """Send the requests. Raises Finding."""
        known = as_dict(given)

        async def job(world: World) -> None:
            for step in as_list(known.get("steps"))[:MAX_STEPS]:
                await run_step(world, as_dict(step))

        world_of(known.get("setup")).run(job)


async def run_step(world: World, step: dict[str, Any]) -> None:
    """Send one request and check its response. Raises Finding."""
    method = as_text(step.get("method"), "GET")[:60]
    path, raw_path = path_of(as_text(step.get("path"), "/"))
    if not path.startswith("/web"):  # files need threads, and virtual time has none; `wire` requests them
        exchange = _exchange(world, step, method, path, raw_path)
        exchange.start()
        if step.get("beside") is True and len(world.open) < 20:
            world.open.append(exchange)
            await exchange.read_for(0.01)
            return
        await exchange.read_for(as_number(step.get("hold_s"), HOLD_S, 400.0))
        await exchange.leave()
        _check_stored_append(exchange, step)
        if exchange.response.status == 201 and path == "/v1/tickets":
            world.ticket = as_text(as_dict(exchange.response.json()).get("ticket"), "")


def _exchange(world: World, step: dict[str, Any], method: str, path: str, raw_path: bytes) -> Exchange:
    headers = headers_of(step.get("headers"))
    names = {bytes(name) for name, _ in headers}
    if step.get("bare") is not True:  # headers that every client sends, unless the input sets them
        headers += [] if b"host" in names else [[b"host", b"localhost"]]
        headers += [] if b"content-type" in names else [[b"content-type", b"application/json"]]
    given = as_text(step.get("query"), "")
    query = to_bytes(given.replace(TICKET, world.ticket)[:20_000])
    query = query.replace(b"#", b"").replace(b" ", b"")
    address = step.get("address")
    exchange = Exchange(
        world,
        method,
        path,
        headers=headers,
        query=query,
        raw_path=raw_path,
        address=address if isinstance(address, str) else "127.0.0.1",
    )
    body = to_bytes(step["body"]) if "body" in step else json.dumps(step["json"]).encode() if "json" in step else b""
    count = int(as_number(step.get("cuts"), 1, 50)) or 1
    size = max(1, -(-len(body) // count))
    exchange.pieces = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    exchange.is_complete = step.get("ends") is not False
    exchange.block_s = as_number(step.get("block_s"), 0.0, 400.0)
    return exchange


def _check_stored_append(exchange: Exchange, step: dict[str, Any]) -> None:
    """Check that the response to an append reports a length of at least the sent text. Raises Finding."""
    response, given = exchange.response, as_dict(step.get("json"))
    is_append = step.get("method") == "POST" and as_text(step.get("path"), "").endswith("/append")
    if response.status != 200 or not response.is_over or not is_append or "body" in step:
        return
    body, at = response.json(), given.get("at")
    least = len(given["text"]) + (at if isinstance(at, int) else 0)
    if not isinstance(body, dict) or body["length"] < least:
        raise Finding(f"append: the response to {given} is {body}")
