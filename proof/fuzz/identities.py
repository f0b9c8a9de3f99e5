"""The target `identities`: a hub with a verifier, and callers with limited rights.

Layer: fuzz.

An input is `{setup, steps}`. A step is a request (as in `requests`), or a `socket` with frames (as in `frames`, and
`{auth, ref}`), or `wait_s`. `as` is the caller: the claims of a token (`sub`, `can`, `exp` in seconds from the
beginning, `nbf`, `aud`), how it is presented (`by`, `line`), and how it is damaged (`sign`, `spoil`). `ticket` puts an
issued ticket into the query, `cursor` an issued cursor, counted from the first.

`town` has the invariants.
"""

from __future__ import annotations

from random import Random

from proof.fuzz import mutate
from proof.fuzz.frames import FRAME_WORDS, FRAMES
from proof.fuzz.mutate import Json
from proof.fuzz.requests import HEADER_LINES, REQUESTS, SPOILS
from proof.fuzz.rights import CAPABILITIES
from proof.fuzz.town import CHANNELS, MAX_STEPS, OWN, READ, Town
from proof.fuzz.world import World, as_dict, as_list, as_text, world_of

A = "/v1/channels/chat:a"
PEOPLE: list[dict[str, Json]] = [
    {"sub": "ada", "can": {"chat:*": [*READ, "publish", "presence", "command"], "user:{sub}": ["subscribe"]}},
    {"sub": "eve", "can": {"chat:a": ["subscribe"]}},
    {"sub": "bob", "can": {"chat:*": ["publish"]}},
    {"sub": "bot", "can": {"chat:*": ["agent", "append", "publish", *READ]}},
    {"sub": "wri", "can": {"chat:a": ["append", "publish"]}},
    {"sub": "adm", "can": {"chat:a": ["admin", "publish", "subscribe"]}},
    {"sub": "mia", "can": {"*": ["presence"]}},
    {"sub": "nil", "can": {}},
    {"sub": "all", "can": {"*": list(CAPABILITIES)}},
]
EVE, BOT, ALL = PEOPLE[1], PEOPLE[3], PEOPLE[-1]
ODD: list[dict[str, Json]] = [
    {"exp": -5},
    {"exp": -11},
    {"exp": 2},
    {"exp": None},
    {"exp": 1e300},
    {"nbf": 5},
    {"nbf": 30},
    {"aud": "other"},
    {"aud": ["other", "chat"]},
    {"sign": "wrong"},
    {"sub": "ada~1"},
    {"sub": "a" * 65},
    {"sub": None},
    {"can": {"chat*": ["subscribe"]}},
    {"can": {"chat:*": ["subscribe", "everything"]}},
    {"can": {"{sub}:*": ["subscribe"]}},
    {"can": {"chat:a": ["subscribe"], "chat:b": "history"}},
    {"line": "bearer  "},
    {"line": "Basic "},
    {"line": ""},
    {"by": "cookie"},
    *({"spoil": spoil} for spoil in SPOILS),
]
WORDS: list[Json] = [
    *FRAME_WORDS,
    *CAPABILITIES,
    *CHANNELS,
    *OWN,
    "chat:*",
    "{sub}",
    "sub",
    "can",
    "exp",
    "as",
    "ticket",
    "cursor",
    "beside",
    "ada",
    "eve",
    "bot",
    5,
    20,
    -11,
]
HEADERS = [
    *HEADER_LINES,
    ["Sec-Fetch-Site", "same-origin"],
    ["Sec-Fetch-Site", "cross-site"],
    ["Origin", "https://page.test"],
    ["Cookie", "token=e30.e30.e30"],
]
SETUPS: list[dict[str, Json]] = [
    {"is_guarded": True},
    {"is_guarded": True},
    {"is_guarded": True, "by_hand": True},
    {"is_guarded": True, "origins": ["https://page.test"]},
    {"is_guarded": True, "origins": ["*"]},
]
TICKETS: dict[str, Json] = {"method": "POST", "path": "/v1/tickets", "json": {"channel": "chat:a"}}
FOLLOW: list[dict[str, Json]] = [
    {"method": "GET", "path": f"{A}/events", "query": "flush_ms=0"},
    {"method": "GET", "path": f"{A}/poll", "query": "wait_s=0"},
    {"method": "GET", "path": f"{A}/messages/live/events"},
]


def _here(step: dict[str, Json], channel: str = "chat:a") -> dict[str, Json]:
    """Return a request of `requests`, moved to a channel of this world."""
    body = as_dict(step.get("json"))
    moved = {**step, "path": as_text(step["path"], "").replace("/channels/c", f"/channels/{channel}")}
    return {**moved, "json": {**body, "channel": channel}} if "channel" in body else moved


HTTP = [_here(one) for one in REQUESTS if "ticket=" not in as_text(one.get("query"), "")]
_MOVED = {"channel": "chat:a", "pattern": "chat:a"}
SOCKET = [{name: _MOVED.get(name, value) for name, value in frame.items()} for frame in FRAMES]
WORK: list[Json] = [
    {"json": {"type": "work", "ref": "w", "pattern": "chat:a"}},
    {"json": {"type": "create", "ref": "q", "channel": "chat:a", "id": "q1", "text": "who answers?"}},
    {"wait_s": 1},
    {"json": {"type": "turn.renew", "ref": "r", "channel": "chat:a", "message": "q1", "generation": 1, "state": {}}},
    {"json": {"type": "turn.done", "ref": "d", "channel": "chat:a", "message": "q1", "generation": 1}},
]
MID_TURN: list[list[Json]] = [
    [],
    [{"auth": {**BOT, "exp": 50}, "ref": 1}],
    [{"auth": {**ALL, "can": {"chat:a": ["subscribe", "append"]}}, "ref": 1}],
    [{"auth": {**ALL, "can": {"chat:a": list(CAPABILITIES)}, "exp": 50}, "ref": 1}],
    [{"wait_s": 35}],
]
STREAMS: list[dict[str, Json]] = [
    {},
    {"path": "/v1/channels/chat:b/messages/live/events"},
    *({"cursor": 0, "and": more} for more in ("", ".3", "x")),
    {"cursor": 1},
    {"headers": [["Last-Event-ID", "e:2:m0.9"]]},
]
ORIGINS: list[Json] = [
    [],
    [["Origin", "https://evil.test"]],
    [["Origin", "http://localhost"]],
    [["Sec-Fetch-Site", "same-origin"]],
    [["Sec-Fetch-Site", "cross-site"], ["Origin", "null"]],
]
EVERY_FRAME = [{"json": {**frame, "ref": ref}} for ref, frame in enumerate(SOCKET)]


class Identities:
    """Callers with different rights use a hub that verifies their tokens."""

    name = "identities"
    cpu_s = 4.0
    is_guided = True

    def seeds(self) -> list[Json]:
        """Return stories of tickets, cursors, renewals; odd tokens; operations of callers with few or most rights."""
        found = self._stories()
        for odd in ODD:
            shown = [{**FOLLOW[1], "as": {**ALL, **odd}}, _socket({**ALL, **odd}, EVERY_FRAME[:1])]
            found.append(_input([*shown, _socket(None, [{"auth": {**EVE, **odd}, "ref": 1}, *EVERY_FRAME[:2]])]))
        for at, (few, most) in enumerate(_fews_and_mosts()):
            found.append(
                _input([*({**step, "as": most} for step in HTTP[at::8]), _socket(few, EVERY_FRAME[at % 2 :: 2])])
            )
        return found

    def matrix(self) -> list[Json]:
        """Return all operations for a caller with only one capability, and for a caller with all but one."""
        steps = [{**step, "beside": False, "hold_s": 0.05} for step in HTTP]
        return [
            _input([*({**step, "as": who} for step in steps), _socket(who, EVERY_FRAME)])
            for both in _fews_and_mosts()
            for who in both
        ]

    def _stories(self) -> list[Json]:
        ticket, opened = {**TICKETS, "as": EVE}, {**FOLLOW[0], "ticket": 0}
        back = {**opened, "cursor": 0}
        follow = [{**one, "as": EVE} for one in FOLLOW[:2]]
        auth = {"auth": ALL, "ref": 1}
        attach = EVERY_FRAME[0]
        less = {**ALL, "can": {"chat:b": READ}}
        bob = PEOPLE[2]
        sources = {"method": "PATCH", "path": f"{A}/messages/m2", "json": {"parts": [{"type": "source", "url": "u"}]}}
        stories: list[list[Json]] = [
            [{**one, "as": EVE} for one in HTTP[:3]],
            [{**one, "as": bob} for one in (HTTP[1], HTTP[0], sources)],
            [{**one, "as": bob, "beside": True} for one in FOLLOW] + [{"wait_s": 30}],
            [_socket(bob, [EVERY_FRAME[6], EVERY_FRAME[5]])],
            [_socket({**BOT, "can": {"chat:*": ["agent", "append"]}}, WORK)],
            [{**FOLLOW[1], "as": {**ALL, "sign": "wrong"}}, {**FOLLOW[1], "as": {**ALL, "exp": -11}}],
            *([{**HTTP[0], "headers": line, "as": {**ALL, "by": "cookie"}}] for line in ORIGINS),
            [ticket, opened, {"wait_s": 61}, opened, back, {**back, "and": "x"}],
            [{**TICKETS, "as": {**EVE, "exp": 100}}, {**opened, "beside": True}, {"wait_s": 70}, back],
            [ticket, {**opened, "beside": True}, {**opened, "beside": True}, {"wait_s": 90}],
            [*({**FOLLOW[2], "as": ALL, **which} for which in STREAMS), {**TICKETS, "as": ALL},
             *({**FOLLOW[2], "ticket": 0, **which} for which in (*STREAMS, {"cursor": 3}))],
            [ticket, *({**one, "ticket": 0} for one in FOLLOW), {**opened, "path": "/v1/channels/chat:b/events"}],
            [ticket, {**TICKETS, "as": ALL, "json": {"channel": "chat:b"}}, {**opened, "ticket": 1},
             {**back, "ticket": 1}],
            [ticket, *({**opened, "spoil": spoil} for spoil in SPOILS)],
            [ticket, {**TICKETS, "ticket": 0}, {**HTTP[0], "ticket": 0}, {**opened, "method": "HEAD"}],
            [*follow, *({**one, "cursor": at} for one in follow for at in (0, 1, -1))],
            [*follow, *({**one, "cursor": at, "as": {**EVE, "sub": "ivy"}} for one in follow for at in (0, 1))],
            [*({**one, "as": ALL} for one in FOLLOW[:2]), *({**one, "cursor": at} for one in follow for at in (0, 1))],
            [*follow, _socket(EVE, [{**attach, "cursor": 0}, {**attach, "cursor": 1}, {**attach, "cursor": 7}])],
            [_socket(EVE, [attach]), {**HTTP[0], "as": ALL}, _socket(EVE, [{**attach, "cursor": 0}])],
            [_socket(None, [auth, {"auth": less, "ref": 2}, {"wait_s": 1}])],
            [_socket(None, [auth, attach, {"auth": less, "ref": 2}, attach, {"wait_s": 1}])],
            [_socket(None, [auth, attach, {"auth": EVE, "ref": 2}, EVERY_FRAME[5], {"wait_s": 1}])],
            [_socket({**ALL, "exp": 5}, [attach, {"auth": {**ALL, "exp": 60}, "ref": 2}, {"wait_s": 30}, attach])],
            [_socket({**ALL, "exp": 5}, [attach, {"wait_s": 14}, *EVERY_FRAME[4:9], {"wait_s": 9}])],
            [_socket(None, [{"wait_s": 6}, auth])],
            [_socket(None, [attach, auth])],
            [{**one, "as": {**ALL, "exp": 8}, "beside": True, "headers": line} for one in FOLLOW
             for line in ([], [["Tenuto-Client", "js/1"]])] + [{"wait_s": 30}],
            *([_socket({**who, "exp": 20}, [*WORK, *more, *WORK[2:]])] for who in (ALL, BOT) for more in MID_TURN),
            *([{**_socket({**ALL, "by": by}, [attach]), "headers": line}] for line in ORIGINS for by in ("cookie", "")),
            [{"method": "PUT", "path": f"{A}/presence/all", "json": {"lease_s": 3600}, "as": {**ALL, "exp": 9}}],
        ]  # fmt: skip
        return [_input(steps) for steps in stories]

    def generate(self, draw: Random) -> Json:
        """Return a new input."""
        steps = [self._step(draw) for _ in range(draw.randint(1, 7))]
        if draw.random() < 0.4:
            who = self._who(draw)
            steps[:0] = [{**TICKETS, "as": who}, {**FOLLOW[0], "as": who}]
        return {"setup": draw.choice(SETUPS), "steps": steps}

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change a step, its caller, or the order."""
        new, number = mutate.steps(draw, old, other, self._step, (0.15, 0.3, 0.4), max_steps=MAX_STEPS)
        if number is not None and number < 0.45:
            new["setup"] = draw.choice(SETUPS)
        elif number is not None:
            self._change_step(draw, new["steps"])
        return new

    def _change_step(self, draw: Random, steps: list[Json]) -> None:
        at = draw.randrange(len(steps))
        step = steps[at]
        inner = as_list(step.get("socket"))
        match draw.randrange(8):
            case 0:
                step["as"] = self._who(draw)
            case 1:
                step["ticket"] = draw.randrange(3)
                step["spoil"] = draw.choice((None, None, *SPOILS))
            case 2:
                holder = as_dict(draw.choice(inner)) if inner else step
                holder["cursor"] = draw.randrange(-2, 6)
                holder["and"] = draw.choice(("", "", "x", "@e:1", ":m0.1", "=="))
            case 3:
                step["headers"] = [*as_list(step.get("headers")), draw.choice(HEADERS)]
            case 4:
                step["beside"] = draw.random() < 0.7
            case 5 if inner:
                inner.insert(draw.randint(0, len(inner)), self._frame(draw))
            case 6 if inner:
                inner[draw.randrange(len(inner))] = self._frame(draw)
            case _:
                steps[at] = mutate.value(draw, step, WORDS)

    def _who(self, draw: Random) -> Json:
        choice = draw.random()
        if choice < 0.06:
            return None
        who = mutate.copied(draw.choice(PEOPLE))
        if choice < 0.3:
            who |= draw.choice(ODD)
        elif choice < 0.5:
            who["can"] = {draw.choice(("*", "chat:*", "chat:a", "room")): draw.sample(CAPABILITIES, draw.randint(1, 7))}
        return who

    def _step(self, draw: Random) -> dict[str, Json]:
        choice = draw.random()
        if choice < 0.1:
            return {"wait_s": draw.choice((1, 5, 11, 30, 61))}
        if choice < 0.4:
            frames = [self._frame(draw) for _ in range(draw.randint(1, 6))]
            if draw.random() < 0.4:
                return _socket(None, [{"auth": self._who(draw), "ref": 0}, *frames])
            return {**_socket(self._who(draw), frames), "beside": draw.random() < 0.4}
        made = _here(draw.choice((*REQUESTS, *FOLLOW, TICKETS)), draw.choice(CHANNELS))
        step = {**mutate.copied(made), "query": as_text(made.get("query"), "").replace("ticket=", "x=")}
        step["path"] = step["path"].replace("messages/m1", f"messages/{draw.choice(('m1', 'm1', 'm2', *OWN))}")
        return {**step, "as": self._who(draw)}

    def _frame(self, draw: Random) -> dict[str, Json]:
        choice = draw.random()
        if choice < 0.15:
            return {"auth": self._who(draw), "ref": draw.randrange(1_000_000)}
        if choice < 0.25:
            return {"wait_s": draw.choice((0, 0.05, 1, 6, 12))}
        frame = {**mutate.copied(draw.choice(SOCKET)), "ref": draw.randrange(1_000_000)}
        if "channel" in frame and draw.random() < 0.4:
            frame["channel"] = draw.choice(CHANNELS)
        if draw.random() < 0.25:
            frame = mutate.value(draw, frame, WORDS)
        return {"json": frame}

    def run(self, given: Json) -> None:
        """Carry out the steps. Raises Finding."""
        known = as_dict(given)

        async def job(world: World) -> None:
            town = Town(world, as_dict(known.get("setup")))
            await town.settle()
            for step in as_list(known.get("steps"))[:MAX_STEPS]:
                await town.take(as_dict(step))
            await town.end()

        world_of({**as_dict(known.get("setup")), "is_guarded": True}).run(job)

    def close(self) -> None:
        """No-op: the target holds no resource."""


def _fews_and_mosts() -> list[tuple[Json, Json]]:
    """Return, for each capability, a caller that holds only it, and a caller that holds all others."""
    return [
        (
            {"sub": "few", "can": {"chat:*": [one]}},
            {"sub": "most", "can": {"chat:*": [other for other in CAPABILITIES if other != one]}},
        )
        for one in CAPABILITIES
    ]


def _input(steps: list[Json]) -> Json:
    return {"setup": {"is_guarded": True}, "steps": steps}


def _socket(who: Json, steps: list[Json]) -> dict[str, Json]:
    return {"as": who, "socket": steps}
