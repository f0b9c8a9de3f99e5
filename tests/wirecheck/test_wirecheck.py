"""The wire checker against servers that break one rule each. The simulator shows that a correct server breaks none."""

import json
from typing import Any

import pytest

from proof.wirecheck import Checker, Json, SseSession, WsSession

# Events of a server


def attached(serial: int, *, resumed: bool = False, epoch: str = "e", channel: str = "c", **more: Any) -> Json:
    start = {"type": "channel.attached", "channel": channel, "epoch": epoch, "serial": serial, "resumed": resumed}
    return start | ({} if resumed else {"more": False, "before": 1}) | more


def update(serial: int, text: str, *, created: int = 1, id: str = "m") -> Json:
    message = {"id": id, "role": "assistant", "status": "streaming", "created": created, "version": serial}
    whole = message | {"parts": [{"type": "text", "text": text}]}
    return {"type": "message.update", "serial": serial, "message": whole}


def append(serial: int, at: int, text: str, *, part: int = 0, id: str = "m") -> Json:
    return {"type": "message.append", "serial": serial, "id": id, "part": part, "at": at, "text": text}


def opening(serial: int, index: int, part: Json) -> Json:
    return {"type": "message.part", "serial": serial, "id": "m", "index": index, "part": part, "updated_at": 7}


def finish(serial: int, status: str = "complete") -> Json:
    return {"type": "message.finish", "serial": serial, "id": "m", "status": status, "updated_at": 9}


def delete(serial: int) -> Json:
    return {"type": "message.delete", "serial": serial, "id": "m"}


def checked(*batches: tuple[list[Json], str | None], since: str | None = None) -> Checker:
    checker = Checker("c")
    checker.begin(since)
    for events, cursor in batches:
        checker.take(events, cursor)
    return checker


def kinds(checker: Checker) -> list[str]:
    return [violation.kind for violation in checker.violations]


START = ([attached(2), update(2, "Hel")], "e:2")


# Events that no correct server sends


@pytest.mark.parametrize(
    ("events", "cursor", "kind"),
    [
        ([append(4, 4, "lo")], "e:4", "hole"),
        ([append(4, 0, "lo", part=1)], "e:4", "hole"),
        ([opening(4, 2, {"type": "text", "text": ""})], "e:4", "hole"),
        ([append(4, 0, "lo", id="unseen")], "e:4", "hole"),
        ([append(4, 1, "xxlo")], "e:4", "text"),
        ([append(4, 3, "lo"), append(3, 5, "!")], "e:4", "serial"),
        ([append(4, 3, "lo"), finish(4)], "e:4", "serial"),
        ([append(2, 3, "lo")], "e:4", "serial"),
        ([append(4, 3, "lo")], "e:3", "cursor"),
        ([append(4, 3, "lo")], "f:4", "cursor"),
        ([append(4, 3, "lo")], "nonsense", "cursor"),
        ([{"type": "signal", "name": "x", "data": {}, "from": "a"}], "e:2", "cursor"),
        ([delete(3), append(4, 3, "lo")], "e:4", "deleted"),
        ([delete(3), update(4, "back", created=4) | {"type": "message.create"}], "e:4", "deleted"),
        ([update(4, "Hello") | {"serial": 5}], "e:5", "version"),
        ([finish(4, status="streaming")], "e:4", "malformed"),
        ([{"type": "message.append", "serial": 4}], "e:4", "malformed"),
        ([attached(4, channel="other"), update(2, "Hel")], "e:4", "channel"),
        ([attached(4, epoch="f", resumed=True)], "f:4", "resumed"),
        ([attached(1, resumed=True)], "e:2", "resumed"),
    ],
)
def test_broken_rule_is_a_violation(events: list[Json], cursor: str, kind: str) -> None:
    checker = checked(START, (events, cursor))
    assert kinds(checker) == [kind]
    assert (checker.cursor is None) == (kind == "hole")  # only a new start fills a hole


@pytest.mark.parametrize(
    ("batches", "kind"),
    [
        ([([attached(2, resumed=True)], "e:2")], "resumed"),
        ([([update(2, "Hel")], "e:2")], "unattached"),
        ([([attached(4), update(2, "Hel")], "e:2"), ([update(4, "x", id="n", created=3)], "e:4")], "cursor"),
        ([START, ([append(4, 3, "lo")], "e:5"), ([finish(5)], "e:5")], "serial"),
    ],
    ids=["resumed without a cursor", "before channel.attached", "cursor within a start", "cursor within a batch"],
)
def test_batches_that_break_a_rule_are_a_violation(batches: list[tuple[list[Json], str]], kind: str) -> None:
    assert kind in kinds(checked(*batches))


# Sessions without a socket


SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
    b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


RETRY = b"retry: 2000\n\n"
FIRST = f"event: channel.attached\ndata: {json.dumps(attached(0, epoch='-'))}\nid: -:0\n\n".encode()
BEGUN = SSE_HEAD + chunk(RETRY + FIRST)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (SSE_HEAD.replace(b"no-transform", b"x") + chunk(RETRY + FIRST), "header"),
        (SSE_HEAD + chunk(FIRST), "retry"),
        (SSE_HEAD + chunk(b"retry: 9\n\n" + FIRST), "retry"),
        (BEGUN + chunk(b"retry: soon\n\n"), "protocol"),
        (BEGUN + chunk(b"dat: x\n\n"), "protocol"),
        (BEGUN + chunk(b"event: ping\n\nevent: ping\ndata: {}\n\n"), "protocol"),
        (BEGUN + chunk(b"event: signal\ndata: {broken\n\n"), "protocol"),
        (SSE_HEAD + chunk(RETRY + FIRST.replace(b"event: channel.attached", b"event: other")), "protocol"),
        (BEGUN + chunk(b"event: ping\ndata: {}\nid: e:1\n\n"), "cursor"),
        (BEGUN + b"0\r\n\r\n", "ended"),
        (SSE_HEAD + b"zz\r\n", "protocol"),
    ],
)
def test_stream_that_breaks_a_rule_is_a_violation(data: bytes, kind: str) -> None:
    session = SseSession(Checker("c"))
    session.receive(data, now_s=1.0)
    assert kinds(session.checker) == [kind]


def test_handshake_with_another_key_is_a_violation() -> None:
    session = WsSession()
    checker = Checker("c")
    session.attach(checker)
    session.receive(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: wrong\r\n\r\n", now_s=1.0)
    assert (kinds(checker), session.is_over) == (["protocol"], True)


# Presence, commands and signals --------------------------------------------------------------------------------------


BOT: Json = {"id": "bot-1", "kind": "agent", "data": {"state": "listening"}, "connections": 1}
PRESENT: Json = {"presence": {"members": [BOT], "count": 1}}
ATTACHED, RESUMED = attached(6, **PRESENT), attached(6, resumed=True, **PRESENT)
COMMAND: Json = {"type": "command", "serial": 7, "command": {"id": "stop-0", "name": "cancel"}}
REPLY: Json = {"type": "command.reply", "serial": 8, "id": "stop-0", "ok": True, "from": "bot-1"}


def received(*events: Json) -> Checker:
    """Return a checker that has received `events`."""
    return checked((list(events), None), since="e:6" if RESUMED in events else None)


def differences(*events: Json, members: tuple[str, ...] = ()) -> list[str]:
    return received(*events).notices.differences(members)


def changes(*events: Json) -> int:
    return sum(one.kind == "changed" for one in received(*events).violations)


def test_command_without_its_reply_is_a_difference() -> None:
    assert differences(COMMAND) == ["command stop-0 still waits for a reply"]
    assert differences(COMMAND, REPLY) == []
    lost = differences(COMMAND, RESUMED, members=("bot-1",))  # no command waits any more, and no reply came
    assert lost == ["command stop-0 was sent, but its reply was not"]
    assert differences(COMMAND, RESUMED, REPLY, members=("bot-1",)) == []
    assert differences(COMMAND, ATTACHED, members=("bot-1",)) == []  # a new start omits earlier replies


def test_second_reply_or_a_changed_command_is_a_violation() -> None:
    assert changes(COMMAND, REPLY, COMMAND, REPLY) == 0
    assert changes(COMMAND, REPLY, REPLY | {"from": "bot-2"}) == 1
    assert changes(COMMAND, COMMAND | {"command": {"id": "stop-0", "name": "steer"}}) == 1


def test_data_of_a_command_with_a_reply_may_leave_and_not_change() -> None:
    command: Json = {"type": "command", "serial": 7, "command": {"id": "stop-0", "name": "cancel", "data": 1}}
    reply = REPLY | {"ok": False, "error": {"code": "no", "detail": "why"}}
    assert changes(command, reply, RESUMED, COMMAND, REPLY | {"ok": False, "error": {"code": "no"}}) == 0
    assert changes(command, COMMAND) == 1  # it still waits for its reply
    assert changes(command, reply, {**command, "command": command["command"] | {"data": 2}}) == 1
    assert changes(command, reply, REPLY | {"ok": False, "error": {"code": "other"}}) == 1
    assert changes(command, reply, reply | {"ok": True}) == 1
