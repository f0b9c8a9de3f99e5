"""The target `frames`: WebSocket messages, in process: every frame of the protocol, in any order and of any form.

Layer: fuzz.

An input is `{setup, query, headers, subprotocols, steps}`. A step is a frame (`json`, or literal `text`), or `binary`,
or `wait_s`, or `stall_s` (the peer reads no bytes for so long), or `times` around `steps`. The target checks the
guarantees of a correct peer: each frame gets one reply with its `ref`, and events obey the client rules.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import MutableMapping
from contextlib import suppress
from random import Random
from typing import Any

from proof.fuzz import mutate
from proof.fuzz.engine import Finding, InProcess
from proof.fuzz.mutate import Json, to_bytes
from proof.fuzz.requests import BODIES, HEADER_LINES, PARTS, QUERIES, RAW, SETUPS, STREAMING, WORDS
from proof.fuzz.world import (
    World,
    as_dict,
    as_list,
    as_number,
    as_text,
    check_code,
    headers_of,
    until_returned,
    world_of,
)
from proof.wirecheck import Checker

MAX_STEPS = 60
MAX_TIMES = 300
QUIET_S = 2.0
CLOSE_CODES = (1012, 4000, 4001, 4300, 4301)
FRAMES: list[dict[str, Json]] = [
    {"type": "attach", "channel": "c", "since": None, "history": 5, "flush_ms": 0},
    {"type": "attach", "channel": "d", "since": "-:0"},
    {"type": "attach", "channel": "c", "since": "x:1"},
    {"type": "detach", "channel": "c"},
    {"type": "history", "channel": "c", "before": 5, "limit": 2},
    {"type": "create", "channel": "c", **BODIES["create"]},
    {"type": "create", "channel": "c", **STREAMING},
    {"type": "create", "channel": "c", "parts": PARTS, "id": "m3"},
    {"type": "append", "channel": "c", "id": "m1", **BODIES["append"]},
    {"type": "append", "channel": "c", "id": "m1", "text": "more"},
    {"type": "part", "channel": "c", "id": "m1", "part": 0, "value": PARTS[0], "generation": 1, "request": "r3"},
    {"type": "update", "channel": "c", "id": "m1", **BODIES["update"]},
    {"type": "finish", "channel": "c", "id": "m1", **BODIES["finish"]},
    {"type": "delete", "channel": "c", "id": "m1"},
    {"type": "pong", "n": 1},
    {"type": "auth", "token": "x"},
    {"type": "lease", "channel": "c", "id": "m1", **BODIES["lease"]},
    {"type": "takeover", "channel": "c", "id": "m1", **BODIES["takeover"]},
    {"type": "signal", "channel": "c", "name": "typing", "data": {}},
    {"type": "presence", "channel": "c", "member": "anonymous~1", "data": {"a": 1}},
    {"type": "presence", "channel": "c", "leave": True},
    {"type": "command", "channel": "c", **BODIES["command"]},
    {"type": "command", "channel": "c", "id": "k2", "name": "cancel", "target": "m1"},
    {"type": "reply", "channel": "c", "id": "k1", **BODIES["reply"]},
    {"type": "work", "pattern": "c", "slots": 2, "when_busy": "parallel", "name": "bot"},
    {"type": "work", "pattern": "*", "slots": 1, "when_busy": "interrupt"},
    {"type": "work", "pattern": "c", "slots": 0},
    {"type": "create", "channel": "c", "id": "q1", "text": "who answers?"},
    {"type": "turn.take", "channel": "c", "message": "q1"},
    {"type": "turn.renew", "channel": "c", "message": "q1", "generation": 1, "state": {"step": 1}},
    {"type": "turn.done", "channel": "c", "message": "q1", "generation": 1, "state": "done"},
]
TEXTS = [
    *RAW,
    '{"type":"detach","ref":"\\ud800","channel":"c"}',
    '{"type":"detach","channel":"c"}',
    '{"ref":1}',
    '{"type":"detach","ref":1e2,"channel":"c"}',
    '{"type":"pong","ref":1,"type":"detach","channel":"c"}',
    '{"type":"detach","ref":' + "9" * 5_000 + ',"channel":"c"}',
    '{"type":null,"ref":3}',
    '{"type":"\\ud83d","ref":4}',
    '{"type":"detach","ref":9007199254740993,"channel":"c"}',
    '{"type":"detach","ref":"' + "r" * 65 + '","channel":"c"}',
]
FRAME_WORDS: list[Json] = [*WORDS, *mutate.words_in(FRAMES), "ref", "e", 10, 11, 1000, 1001, "queue", "c*", "anonymous"]


class Frames(InProcess):
    """Sends frames over an ASGI socket without a network."""

    name = "frames"

    def seeds(self) -> list[Json]:
        """Return every frame, alone and together, by both ways of sending; storms of frames; every bad text."""
        steps = [{"json": {**frame, "ref": ref}} for ref, frame in enumerate(FRAMES)]
        found: list[Json] = [{"setup": {}, "steps": steps}, {"setup": {"by_hand": True}, "steps": steps}]
        begun = {"json": {"type": "create", "ref": "a", "channel": "c", **STREAMING}}
        found += [{"setup": {}, "steps": [begun, step, step]} for step in steps]
        found += [{"setup": {}, "steps": [{"text": one}, begun]} for one in TEXTS]
        storm = [{"times": 50, "steps": [steps[0], steps[3]]}, {"times": 40, "steps": [steps[0]]}]
        found += [{"setup": {"by_hand": by_hand}, "steps": storm} for by_hand in (False, True)]
        found += [{"setup": {}, "steps": [steps[0], {"stall_s": 400}, {"times": 99, "steps": [steps[8]]}]}]
        found += [{"setup": {}, "steps": [steps[0], {"binary": "x"}, steps[1]]}]
        found += [{"setup": {}, "query": "client=%00", "steps": []}, {"setup": {}, "subprotocols": ["x"], "steps": []}]
        return found

    def generate(self, draw: Random) -> Json:
        """Return a new input."""
        new: dict[str, Json] = {"setup": draw.choice(SETUPS), "steps": []}
        new["steps"] = [self._step(draw) for _ in range(draw.randint(1, 12))]
        if draw.random() < 0.7:
            new["steps"][:0] = [
                {"json": {**FRAMES[0], "ref": "a"}},
                {"json": {"type": "create", "channel": "c", "ref": "b", **STREAMING}},
            ]
        return new

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change one frame, their order, or the handshake."""
        new, number = mutate.steps(draw, old, other, self._step, (0.2, 0.35, 0.4), max_steps=MAX_STEPS)
        steps = new["steps"]
        if number is None:
            return new
        if number < 0.45:
            at = draw.randrange(len(steps))
            until = at + draw.randint(1, 3)
            steps[at:until] = [{"times": draw.choice((2, 5, 30, 120)), "steps": steps[at:until]}]
        elif number < 0.5:
            self._change_handshake(draw, new)
        else:
            step = draw.choice(steps)
            if isinstance(step.get("text"), str):
                step["text"] = mutate.text(draw, step["text"], TEXTS)
            elif draw.random() < 0.1 and "json" in step:
                step["text"] = mutate.text(draw, json.dumps(step.pop("json")), TEXTS)
            elif "json" in step:
                step["json"] = mutate.value(draw, step["json"], FRAME_WORDS)
        return new

    def _change_handshake(self, draw: Random, new: dict[str, Json]) -> None:
        match draw.randrange(4):
            case 0:
                new["setup"] = draw.choice(SETUPS)
            case 1:
                new["query"] = draw.choice(QUERIES)
            case 2:
                new["headers"] = [draw.choice(HEADER_LINES) for _ in range(draw.randint(0, 3))]
            case _:
                new["subprotocols"] = draw.choice(([], ["tenuto.v1"], ["x", "tenuto.v1"], ["x"], [""]))

    def _step(self, draw: Random) -> dict[str, Json]:
        choice = draw.random()
        if choice < 0.05:
            return {"text": draw.choice(TEXTS)}
        if choice < 0.07:
            return {"binary": draw.choice(("", "x", "\xff"))}
        if choice < 0.12:
            return {"wait_s": draw.choice((0, 0.01, 0.05, 6, 20))}
        if choice < 0.16:
            return {"stall_s": draw.choice((0.01, 1, 20, 400))}
        ref: Json = draw.randrange(1_000_000) if draw.random() < 0.9 else mutate.scalar(draw, FRAME_WORDS)
        frame = {**mutate.copied(draw.choice(FRAMES)), "ref": ref}
        if draw.random() < 0.5:
            frame = mutate.value(draw, frame, FRAME_WORDS)
        return {"json": frame}

    def run(self, given: Json) -> None:
        """Send the frames and check the replies. Raises Finding."""
        known = as_dict(given)

        async def job(world: World) -> None:
            peer = Peer(world, known)
            await peer.talk()
            peer.check()

        world_of(known.get("setup")).run(job)


class Peer:
    """The peer's end of one socket."""

    close_codes: tuple[int, ...] = CLOSE_CODES

    def __init__(self, world: World, known: dict[str, Any]) -> None:
        self._world = world
        # the next ASGI messages that `receive` returns; an empty one is a pause
        self._waiting: deque[dict[str, Any]] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._left = asyncio.Event()
        self._sent: list[bytes] = []  # text frames of the app that the peer has accepted
        self._replies: list[dict[str, Any]] = []
        self._checkers: dict[str, Checker] = {}
        # for the `ref` of each attach frame: its number, channel and cursor
        self._attaching: dict[str, tuple[int, str, Any]] = {}
        self._attached_by: dict[str, int] = {}  # the number of the latest attach that has a reply, by channel
        self._is_plain = True  # True: no ref occurs twice, so each reply belongs to one known attach frame
        self._refs: set[str] = set()
        self.is_accepted = False
        self.close_code: int | None = None
        self._is_refused = False
        self._is_cut = False
        self._stalled_s = 0.0
        self._take_steps(as_list(known.get("steps")), MAX_STEPS)
        offered = known.get("subprotocols")
        subprotocols = [one for one in as_list(offered) if isinstance(one, str)] if offered is not None else []
        query = to_bytes(as_text(known.get("query"), "")).replace(b"#", b"").replace(b" ", b"")
        headers = headers_of(known.get("headers"))
        if b"host" not in {bytes(name) for name, _ in headers}:
            headers.append([b"host", b"localhost"])
        self._scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": "/v1/ws",
            "raw_path": b"/v1/ws",
            "root_path": "",
            "query_string": query,
            "headers": [(bytes(name), bytes(value)) for name, value in headers],
            "client": ("127.0.0.1", 5),
            "server": ("in-process", 80),
            "subprotocols": subprotocols,
            "extensions": {"websocket.http.response": {}} if known.get("extension") is True else {},
        }

    def _take_steps(self, steps: list[Any], left: int) -> None:
        for step in steps[:left]:
            if not isinstance(step, dict):
                continue
            if isinstance(step.get("steps"), list):
                times = int(as_number(step.get("times"), 1, MAX_TIMES))
                inner = [one for one in step["steps"] if isinstance(one, dict) and "steps" not in one]
                for _ in range(min(times, 2 * MAX_TIMES // max(1, len(inner)))):
                    self._take_steps(inner, 8)
            elif "json" in step:
                self._waiting.append({"type": "websocket.receive", "text": json.dumps(step["json"])})
            elif "text" in step:
                # Servers decode UTF-8 strictly, so no lone surrogates arrive; escaped ones do.
                text = to_bytes(step["text"]).decode("utf-8", "replace")
                self._waiting.append({"type": "websocket.receive", "text": text})
            elif "binary" in step:
                self._waiting.append({"type": "websocket.receive", "bytes": to_bytes(step["binary"])})
            else:
                self._waiting.append({name: step.get(name) for name in ("wait_s", "stall_s")})

    async def talk(self) -> None:
        """Send all frames, wait until the socket is quiet, and leave. Raises Finding."""
        task = asyncio.get_running_loop().create_task(self._world.hub(self._scope, self._receive, self._send))
        for _ in range(2_000):
            if task.done() or not self._waiting:
                break
            await asyncio.wait([task], timeout=QUIET_S)
        self._room.set()
        await asyncio.wait([task], timeout=QUIET_S)
        if self._waiting and not task.done():
            raise Finding(f"unread: {len(self._waiting)} frames are unread, {len(self._replies)} replies were sent")
        self._is_cut = task.done()
        self._left.set()
        await until_returned(task, "a socket")

    def check(self) -> None:
        """Check that each request has a reply. Raises Finding."""
        for checker in self._checkers.values():
            if checker.violations:
                raise Finding(f"viewer {checker.violations[0].kind}: {checker.violations}")
        if not self.is_accepted:
            if self.close_code is None and not self._is_refused:
                raise Finding("no response: a handshake")
            return
        if self.close_code is not None:
            if self.close_code not in self.close_codes:
                raise Finding(f"close code: {self.close_code}")
            return
        if self._is_cut:
            if not self._stalled_s:  # do not wait for a stalled peer, least of all if there is a reason to close
                raise Finding("cut: the app returned without closing the socket")
            return
        replied = Counter(_key(reply.get("ref")) for reply in self._replies)
        least, refs = 0, Counter[str]()
        for data in self._sent:
            frame = _read(data)
            if frame is None or frame.get("type") != "pong":
                least += 1
            if frame is not None and frame.get("type") != "pong" and _is_ref(frame.get("ref")):
                refs[_key(frame["ref"])] += 1
        if not least <= len(self._replies) <= len(self._sent):
            raise Finding(f"replies: {len(self._replies)} to {least} frames")
        for ref, count in refs.items():
            if replied[ref] < count:
                raise Finding(f"ref: {replied[ref]} replies to {count} frames with the ref {ref}")

    async def _receive(self) -> MutableMapping[str, Any]:
        if not self.is_accepted:
            return {"type": "websocket.connect"}
        while self._waiting:
            message = self._waiting.popleft()
            if "type" in message:
                if "text" in message:
                    self._note(message["text"])
                return message
            if message["stall_s"] is not None:
                self._room.clear()
                self._stalled_s += as_number(message["stall_s"], 0, 1_000)
                asyncio.get_running_loop().call_later(as_number(message["stall_s"], 0, 1_000), self._room.set)
            await asyncio.sleep(as_number(message["wait_s"], 0, 100))
        await self._left.wait()
        return {"type": "websocket.disconnect", "code": 1006}

    def _note(self, text: str) -> None:
        data = text.encode()
        self._sent.append(data)
        frame = _read(data)
        if frame is None or not _is_ref(frame.get("ref")):
            return
        ref = _key(frame["ref"])
        self._is_plain = self._is_plain and ref not in self._refs
        self._refs.add(ref)
        if frame.get("type") == "attach" and isinstance(frame.get("channel"), str):
            self._attaching[ref] = (len(self._sent), frame["channel"], frame.get("since"))

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if not self._left.is_set():
            await self._room.wait()
        kind = message["type"]
        if self.close_code is not None:
            raise Finding(f"order: {kind} after a close")
        if kind == "websocket.accept":
            self.is_accepted = True
        elif kind == "websocket.close":
            self.close_code = message["code"]
        elif kind == "websocket.http.response.start":
            self._is_refused = True
            check_code(message["status"], _code_of(message["status"]), "a handshake")
        elif kind == "websocket.send":
            self._take(message["text"])

    def _take(self, text: str) -> None:
        frame = json.loads(text)
        match frame["type"]:
            case "ok":
                self._replies.append(frame)
                self._attached(_key(frame["ref"]))
            case "error":
                self._replies.append(frame)
                check_code(frame["status"], frame["code"], "a frame")
            case "events":
                checker = self._checkers.get(frame["channel"])
                if checker is not None and self._is_plain:
                    checker.take(frame["events"], frame.get("cursor"))
                elif self._is_plain:
                    raise Finding(f"not attached: events of {frame['channel']!r}")
            case "bye":
                if frame["reason"] == "internal":
                    raise Finding(f"internal: {frame}")
            case "ping" | "turn":
                pass
            case other:
                raise Finding(f"unknown: a frame of type {other!r}")

    def _attached(self, ref: str) -> None:
        number, channel, since = self._attaching.get(ref, (0, "", None))
        if number > self._attached_by.get(channel, 0):  # otherwise a later attach has overtaken this one
            self._attached_by[channel] = number
            checker = self._checkers[channel] = Checker(channel)
            checker.begin(since if isinstance(since, str) and _is_cursor(since) else None)


def _code_of(status: int) -> str:
    """Return one code of this status with which a handshake may be refused."""
    known = {400: "invalid_request", 401: "unauthenticated", 403: "forbidden", 404: "not_found", 503: "busy"}
    return known.get(status, "internal")


def _is_cursor(text: str) -> bool:
    epoch, _, rest = text.partition(":")
    serial = rest.partition(":")[0]
    return bool(epoch) and serial.isascii() and serial.isdigit()


def _read(data: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        return found if isinstance(found, dict) else None
    return None


def _is_ref(ref: object) -> bool:
    """Return whether `ref` is valid by section 7.2, so that the reply repeats it."""
    if isinstance(ref, bool):
        return False
    if isinstance(ref, int):
        return abs(ref) <= 2**53
    return isinstance(ref, str) and len(ref) <= 64 and not any("\ud800" <= one <= "\udfff" for one in ref)


def _key(ref: object) -> str:
    return json.dumps(ref)
