"""The target `cursors`: cursors of every kind on every transport, to test that `resumed` is never wrong.

Layer: fuzz.

A channel has a past: a deleted log, then a log with every kind of entry. An input is `{steps}`. A step sends a cursor
over one transport (`via`), or writes another entry. The cursor is a `text`, or the one issued `at` a serial with `and`
appended. A viewer with a true cursor must end with the stored messages; a viewer with any other must get a new start;
no viewer may be refused.
"""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

from proof.fuzz import mutate
from proof.fuzz.engine import Finding, Guided
from proof.fuzz.mutate import Json, to_bytes
from proof.fuzz.world import WATCHED, Exchange, World, as_dict, as_list, as_number, as_text, entry_of, headers_of, pages
from proof.wirecheck import SseParser
from tenuto.core.events import Batch, known_events, parse_cursor
from tenuto.core.view import View, ViewGap

MAX_STEPS = 30
C = f"/v1/channels/{WATCHED}"
M = f"{C}/messages"
VIA = ["header", "query", "both", "poll", "poll-header", "answer", "answer-header"]
TEXTS = [
    *("-:0", "-:1", "-", ":", "", "{epoch}:0", "{epoch}:1", "{epoch}:5", "{epoch}:9999999999999999", "{epoch}:05"),
    *("{epoch}:-1", "{epoch}:1.0", "{epoch}:٣", "{epoch}:1:", "{epoch}:1:x", "{epoch}:1:" + "x" * 300),
    *("{epoch}:1:" + "x" * 301, "{epoch}:3:m0.1.2", "{epoch}:3:d0.9", "{epoch}:3:m999" + ".99999999" * 30, "{old}:1"),
    *("{old}:3", "{epoch} :1", "{epoch}:1\n", "{epoch}:1\x00", "x" * 33 + ":1", "null", "{epoch}:1,{epoch}:2", "%7B"),
    *("+", "{epoch}"),
]
TAKEN_S = 0.5


class Cursors(Guided):
    """Connects and resumes with true and false cursors."""

    name = "cursors"

    def seeds(self) -> list[Json]:
        """Return every text over every transport, and every serial of the past, before and after another write."""
        found: list[Json] = [{"steps": [{"via": via, "text": text} for text in TEXTS]} for via in VIA]
        at = [{"via": via, "at": serial} for serial in range(15) for via in VIA]
        found += [{"steps": at[start : start + 15]} for start in range(0, len(at), 15)]
        found += [{"steps": [{"write": 9}, *at[start : start + 15]]} for start in range(0, len(at), 15)]
        return found

    def generate(self, draw: Random) -> Json:
        """Return a new input."""
        return {"steps": [self._step(draw) for _ in range(draw.randint(1, 6))]}

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change one step."""
        new, number = mutate.steps(draw, old, other, self._step, (0.3, 0.0, 0.0), max_steps=MAX_STEPS)
        if number is None:
            return new
        steps = new["steps"]
        step = draw.choice(steps)
        match draw.randrange(5):
            case 0:
                step["via"] = draw.choice(VIA)
            case 1 if "text" in step:
                step["text"] = mutate.text(draw, as_text(step["text"], ""), TEXTS)
            case 2 if "at" in step:
                step["and"] = mutate.text(draw, as_text(step.get("and"), ""), [":m0.1", ":x", " ", "\n", ":d0"])
            case 3:
                steps.pop(draw.randrange(len(steps)))
            case _:
                step["query"] = draw.choice(("history=0", "history=1", "flush_ms=0", "history=10&ping_s=2"))
        return new

    def _step(self, draw: Random) -> dict[str, Json]:
        choice = draw.random()
        if choice < 0.1:
            return {"write": draw.randint(1, 9)}
        via = draw.choice(VIA)
        if choice < 0.4:
            return {
                "via": via,
                "at": draw.randint(0, 16),
                "and": draw.choice(("", "", "", ":", ":m0.1.1", ":d0.1", ":z")),
            }
        return {"via": via, "text": draw.choice(TEXTS)}

    def run(self, given: Json) -> None:
        """Run the steps. Raises Finding."""
        known = as_dict(given)
        texts = [one["text"] for one in as_list(known.get("steps")) if isinstance(as_dict(one).get("text"), str)]
        for text in texts:
            check_parser(text)

        async def job(world: World) -> None:
            past = await Past.lived(world)
            for step in as_list(known.get("steps"))[:MAX_STEPS]:
                await past.take(as_dict(step))

        World().run(job)


def check_parser(text: str) -> None:
    """Check that a parsed cursor is written as it was read. Raises Finding."""
    cursor = parse_cursor(text)
    if cursor is None:
        return
    if parse_cursor(str(cursor)) != cursor or not text.startswith(f"{cursor.epoch}:{cursor.serial}"):
        raise Finding(f"parser: {text!r} was parsed as {cursor}")


class Past:
    """A channel, its events serial by serial, and its true messages now."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.old = ""  # the epoch of the deleted log
        self.epoch = ""
        self.serial = 0
        self.cursors: list[str] = []  # all issued cursors, in order
        self._batches: list[tuple[str, list[Any]]] = []  # of the current log: each cursor and the events before it
        self._written = 0

    @classmethod
    async def lived(cls, world: World) -> Past:
        """Return the past of a channel that has a deleted log, and after it a log with every kind of entry."""
        past = cls(world)
        for id in ("o1", "o2", "o3"):
            await world.expect(201, "POST", M, {"id": id, "text": "old"})
        past.old = (await world.expect(200, "GET", C))["epoch"]
        await world.expect(204, "DELETE", C)
        streaming = {"role": "assistant", "status": "streaming", "lease_s": 3_600}
        for method, path, body in (
            ("POST", M, {"id": "m1", **streaming}),
            ("POST", f"{M}/m1/append", {"text": "a😀"}),
            ("POST", f"{M}/m1/append", {"text": "bc"}),
            ("POST", M, {"id": "m2", "text": "two"}),
            ("PUT", f"{M}/m1/parts/1", {"type": "reasoning", "text": "hm"}),
            ("POST", f"{M}/m1/append", {"text": "d", "part": 0}),
            ("PATCH", f"{M}/m2", {"text": "two, edited"}),
            ("POST", M, {"id": "m3", "text": "gone"}),
            ("DELETE", f"{M}/m3", None),
            ("POST", M, {"id": "m4", **streaming, "text": "x"}),
            ("POST", f"{M}/m4/finish", {"status": "failed", "reason": "why"}),
            ("POST", f"{M}/m1/append", {"text": "e", "part": 1}),
        ):
            await past._write(method, path, body)
        return past

    async def take(self, step: dict[str, Any]) -> None:
        """Write an entry, or resume. Raises Finding."""
        if "write" in step:
            for _ in range(int(as_number(step["write"], 1, 9))):
                self._written += 1
                await self._write("POST", M, {"id": f"w{self._written}", "text": "w"})
        else:
            await self._come_back(step)

    async def _write(self, method: str, path: str, body: object) -> None:
        before = self.cursors[-1] if self.cursors else "-:0"
        await self._world.expect(201 if path == M else 204 if method == "DELETE" else 200, method, path, body)
        polled = await self._world.expect(200, "GET", f"{C}/poll", query=f"since={before}&wait_s=0")
        info = await self._world.expect(200, "GET", C)
        self.epoch, self.serial = info["epoch"], info["serial"]
        if entry_of(polled["cursor"]) != info["cursor"]:
            raise Finding(f"behind: a poll returned the cursor {polled['cursor']}, the channel is at {info['cursor']}")
        self.cursors.append(polled["cursor"])
        self._batches.append((polled["cursor"], polled["events"]))

    def _view_at(self, serial: int) -> View:
        """Return the view of a viewer that has seen the log up to `serial`."""
        view = View()
        view.receive(Batch(events=known_events([self._attached()]), cursor="-:0"))
        for cursor, events in self._batches:
            if int(cursor.split(":")[1]) <= serial:
                view.receive(Batch(events=known_events(events), cursor=cursor))
        return view

    def _attached(self) -> dict[str, Any]:
        fields = {"epoch": "-", "serial": 0, "resumed": False, "more": False, "before": 0}
        return {"type": "channel.attached", "channel": WATCHED, **fields}

    async def _come_back(self, step: dict[str, Any]) -> None:
        if "at" in step:
            at = int(as_number(step["at"], 0, 10_000))
            text = (self.cursors[at - 1] if 0 < at <= len(self.cursors) else f"{self.epoch}:{at}") + as_text(
                step.get("and"), ""
            )
        else:
            text = as_text(step.get("text"), "").replace("{epoch}", self.epoch).replace("{old}", self.old)
        via = as_text(step.get("via"), "header")
        via = via if via in VIA else "header"
        path = (
            f"{C}/poll" if via.startswith("poll") else f"{M}/m1/events" if via.startswith("answer") else f"{C}/events"
        )
        query = as_text(step.get("query"), "") if step.get("query") in _QUERIES else ""
        headers = [["Host", "localhost"]]
        if via in ("header", "both", "poll-header", "answer-header"):
            headers.append(["Last-Event-ID", text])
            sent = headers_of(headers)[-1][1].decode("latin-1")
            if via == "both" or not sent:
                query += "&since=" + ("x:1" if sent else "")
        else:
            sent = to_bytes(text).decode("utf-8", "replace")
            query += "&since=" + "".join(f"%{one:02X}" for one in to_bytes(text))
        exchange = Exchange(
            self._world,
            "GET",
            path,
            headers=headers_of(headers),
            query=f"{query}&wait_s=0".encode("latin-1", "replace"),
        )
        exchange.start()
        await exchange.read_for(TAKEN_S)
        await exchange.leave()
        response = exchange.response
        if response.status == 204 and via.startswith("answer"):
            return
        if response.status != 200:
            raise Finding(f"refused: the cursor {text!r} got {response.status} {bytes(response.body[:200])!r}")
        if via.startswith("answer"):
            await self._check_message_stream(bytes(response.body), sent)
        elif via.startswith("poll"):
            polled = response.json()
            await self._check(sent, polled["events"], polled["cursor"], is_poll=True)
        else:
            events = SseParser().receive(bytes(response.body))
            cursors = [event.id for event in events if event.id is not None]
            if not cursors:
                raise Finding(f"no batch: the cursor {text!r} got {bytes(response.body[:200])!r}")
            received = [json.loads(event.data) for event in events if event.event != "ping"]
            await self._check(sent, received, cursors[-1], is_poll=False)

    def _true_serial(self, text: str) -> int | None:
        """Return the serial of the current log that a cursor names, or None if it is not a cursor of that log."""
        found = re.fullmatch(r"([A-Za-z0-9_-]{1,32}):(0|[1-9][0-9]{0,15})(:[!-~]{0,300})?", text)
        if found is None:
            return None
        epoch, serial = found[1], int(found[2])
        if (epoch, serial) == ("-", 0):
            return 0
        return serial if epoch == self.epoch and serial <= self.serial else None

    async def _check(self, text: str, events: list[Any], cursor: str, *, is_poll: bool) -> None:
        """Check that `resumed` is true only for a true cursor, and that the viewer ends with the stored messages.

        Raises Finding.
        """
        attached = [event for event in events if event["type"] == "channel.attached"]
        is_resumed = attached[0]["resumed"] if attached else is_poll
        seen = self._true_serial(text)
        if is_resumed and seen is None:
            raise Finding(f"resumed: from {text!r}, at {self.epoch}:{self.serial}")
        if cursor.split(":")[:2] != [self.epoch, str(self.serial)]:
            raise Finding(f"cursor: {cursor} at {self.epoch}:{self.serial}")
        changed = sum(message["version"] > (seen or 0) for message in await pages(self._world, WATCHED))
        if not is_resumed and seen is not None and changed < self._world.limits.catch_up_messages - 2:
            raise Finding(f"not resumed: from {text!r}, at {self.epoch}:{self.serial}")
        view = self._view_at(seen or 0) if is_resumed else View()
        try:
            view.receive(Batch(events=known_events(events), cursor=cursor))
        except ViewGap as gap:
            raise Finding(f"gap: from {text!r}: {gap}") from gap
        await self._compare(view, text)

    async def _compare(self, view: View, text: str) -> None:
        stored = {message["id"]: message for message in await pages(self._world, WATCHED)}
        for message in view.messages():
            known = stored.pop(message.id, None)
            parts = [dict(part) for part in message.parts]
            if known is None or (known["version"], known["status"], known.get("parts", [])) != (
                message.version,
                message.status,
                parts,
            ):
                raise Finding(f"other view: from {text!r}: {message} is stored as {known}")
        if not view.more and stored:
            raise Finding(f"other view: from {text!r}: {list(stored)} are not shown")
        if any(message["status"] == "streaming" for message in stored.values()):
            raise Finding(f"other view: from {text!r}: a streaming message is not shown")

    async def _check_message_stream(self, body: bytes, text: str) -> None:
        """Check that the stream of one message adds up to the message, or to its rest after the cursor."""
        streamed = {"answer": "", "thinking": ""}
        for event in SseParser().receive(body):
            if event.event in streamed:
                streamed[event.event] += json.loads(event.data)
        message = (await self._world.expect(200, "GET", f"{M}/m1"))["message"]
        for kind, name in (("text", "answer"), ("reasoning", "thinking")):
            whole = "".join(part["text"] for part in message["parts"] if part["type"] == kind)
            if not whole.endswith(streamed[name]):
                raise Finding(f"streamed: {streamed} of {message} from {text!r}")
            if self._true_serial(text) is None and streamed[name] != whole:
                raise Finding(f"streamed: only {streamed} of {message} from {text!r}, not a cursor of this log")


_QUERIES = ("history=0", "history=1", "flush_ms=0", "history=10&ping_s=2")
