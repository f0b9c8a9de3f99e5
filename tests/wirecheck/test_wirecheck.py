"""The wire checker: its parser of event streams, and the checker against servers that break one rule each."""

import json
from typing import Any

import pytest

from proof.wirecheck import Checker, Json, SseParser, SseSession, WireError, WsSession

# Server-sent events


def test_an_event_without_data_is_dropped_and_counted() -> None:
    parser = SseParser()
    assert parser.receive(b"event: ping\nid: 3\n\n") == []
    assert parser.without_data == 1


@pytest.mark.parametrize("stream", [b"retry: soon\n", b"dat: x\n"])
def test_an_unknown_field_is_an_error(stream: bytes) -> None:
    with pytest.raises(WireError):
        SseParser().receive(stream)


# The checker: events of a correct server


def attached(serial: int, *, resumed: bool = False, epoch: str = "e", channel: str = "c", **more: Any) -> Json:
    fields = {"more": False, "before": 1} if not resumed else {}
    return {"type": "channel.attached", "channel": channel, "epoch": epoch, "serial": serial, "resumed": resumed} | (
        fields | more
    )


def message(text: str, *, created: int, version: int, id: str = "m", status: str = "streaming") -> Json:
    parts = [{"type": "text", "text": text}]
    return {"id": id, "role": "assistant", "status": status, "parts": parts, "created": created, "version": version}


def create(serial: int, text: str = "", **fields: Any) -> Json:
    whole = message(text, created=serial, version=serial, **fields)
    return {"type": "message.create", "serial": serial, "message": whole}


def update(serial: int, text: str, *, created: int = 1, **fields: Any) -> Json:
    whole = message(text, created=created, version=serial, **fields)
    return {"type": "message.update", "serial": serial, "message": whole}


def append(serial: int, at: int, text: str, *, part: int = 0, id: str = "m") -> Json:
    return {"type": "message.append", "serial": serial, "id": id, "part": part, "at": at, "text": text}


def opening(serial: int, index: int, part: Json) -> Json:
    return {"type": "message.part", "serial": serial, "id": "m", "index": index, "part": part, "updated_at": 7}


def finish(serial: int, status: str = "complete", id: str = "m") -> Json:
    return {"type": "message.finish", "serial": serial, "id": id, "status": status, "updated_at": 9}


def delete(serial: int, id: str = "m") -> Json:
    return {"type": "message.delete", "serial": serial, "id": id}


def checked(*batches: tuple[list[Json], str | None], since: str | None = None) -> Checker:
    checker = Checker("c")
    checker.begin(since)
    for events, cursor in batches:
        checker.take(events, cursor)
    return checker


def kinds(checker: Checker) -> list[str]:
    return [violation.kind for violation in checker.violations]


START = ([attached(2), update(2, "Hel")], "e:2")


def test_a_new_start_replaces_the_view_only_when_it_is_complete() -> None:
    checker = checked(START, ([attached(9, epoch="f"), update(8, "New", id="n", created=8)], None))
    assert (checker.text("m"), checker.text("n")) == ("Hel", "")
    checker.take([update(9, "Newer", id="o", created=9)], "f:9")
    assert (checker.violations, sorted(checker.messages)) == ([], ["n", "o"])


def test_incomplete_new_start_is_dropped() -> None:
    checker = checked(START, ([attached(9, epoch="f"), update(8, "New", id="n", created=8)], None))
    checker.end()
    checker.begin(checker.cursor)
    checker.take([attached(4, resumed=True), append(4, 3, "lo")], "e:4")
    assert (checker.violations, checker.text("m"), checker.cursor) == ([], "Hello", "e:4")


def test_events_of_a_cut_batch_may_be_sent_again() -> None:
    checker = checked(START, ([append(4, 3, "lo"), finish(5)], None))
    checker.end()
    checker.begin(checker.cursor)
    checker.take([attached(5, resumed=True), append(4, 3, "lo"), finish(5)], "e:5")
    assert (checker.violations, checker.text("m"), checker.status("m")) == ([], "Hello", "complete")


def test_view_from_another_clients_cursor_may_miss_earlier_messages() -> None:
    checker = checked(([attached(4, resumed=True), append(4, 3, "lo")], "e:4"), since="e:2")
    assert (checker.violations, checker.messages) == ([], {})


# The checker: events that no correct server sends


@pytest.mark.parametrize(
    ("events", "cursor", "kind"),
    [
        ([append(4, 4, "lo")], "e:4", "hole"),
        ([append(4, 0, "lo", part=1)], "e:4", "hole"),
        ([opening(4, 2, {"type": "text", "text": ""})], "e:4", "hole"),
        ([append(4, 0, "lo", id="unseen")], "e:4", "hole"),
        ([finish(4, id="unseen")], "e:4", "hole"),
        ([append(4, 1, "xxlo")], "e:4", "text"),
        ([append(4, 0, "H3")], "e:4", "text"),
        ([append(4, 3, "lo"), append(3, 5, "!")], "e:4", "serial"),
        ([append(4, 3, "lo"), finish(4)], "e:4", "serial"),
        ([append(2, 3, "lo")], "e:4", "serial"),
        ([append(4, 3, "lo")], "e:3", "cursor"),
        ([append(4, 3, "lo")], "f:4", "cursor"),
        ([append(4, 3, "lo")], "nonsense", "cursor"),
        ([{"type": "signal", "name": "x", "data": {}, "from": "a"}], "e:2", "cursor"),
        ([delete(3), append(4, 3, "lo")], "e:4", "deleted"),
        ([delete(3), create(4, "back")], "e:4", "deleted"),
        ([update(4, "Hello") | {"serial": 5}], "e:5", "version"),
        ([finish(4, status="streaming")], "e:4", "malformed"),
        ([{"type": "message.append", "serial": 4}], "e:4", "malformed"),
        ([attached(4, channel="other"), update(2, "Hel")], "e:4", "channel"),
        ([attached(4, epoch="f", resumed=True)], "f:4", "resumed"),
        ([attached(1, resumed=True)], "e:2", "resumed"),
    ],
)
def test_broken_rule_is_a_violation(events: list[Json], cursor: str, kind: str) -> None:
    assert kinds(checked(START, (events, cursor))) == [kind]


def test_resume_with_a_hole_is_a_violation_and_drops_the_cursor() -> None:
    checker = checked(START)
    checker.end()
    checker.begin(checker.cursor)
    checker.take([attached(9, resumed=True), append(9, 5, "!")], "e:9")
    assert (kinds(checker), checker.cursor) == (["hole"], None)


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


def sse(*events: tuple[Json, str | None], retry: bytes = b"retry: 2000\n\n") -> bytes:
    blocks = [retry]
    for event, cursor in events:
        data = json.dumps(event, ensure_ascii=False)
        blocks.append(f"event: {event['type']}\ndata: {data}\n{f'id: {cursor}' + chr(10) if cursor else ''}\n".encode())
    return b"".join(blocks)


SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
    b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def sse_session(data: bytes) -> SseSession:
    session = SseSession(Checker("c"))
    session.receive(data, now_s=1.0)
    return session


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (SSE_HEAD.replace(b"no-transform", b"x") + chunk(sse((attached(0, epoch="-"), "-:0"))), "header"),
        (SSE_HEAD + chunk(sse((attached(0, epoch="-"), "-:0"), retry=b"")), "retry"),
        (SSE_HEAD + chunk(sse((attached(0, epoch="-"), "-:0"), retry=b"retry: 9\n\n")), "retry"),
        (SSE_HEAD + chunk(sse((attached(0, epoch="-"), "-:0"))) + chunk(b"event: ping\n\ndata: x\n\n"), "protocol"),
        (
            SSE_HEAD + chunk(b"retry: 2000\n\nevent: other\ndata: " + json.dumps(attached(0)).encode() + b"\n\n"),
            "protocol",
        ),
        (SSE_HEAD + chunk(b"retry: 2000\n\nevent: signal\ndata: {broken\n\n"), "protocol"),
        (
            SSE_HEAD + chunk(sse((attached(0, epoch="-"), "-:0"))) + chunk(b"event: ping\ndata: {}\nid: e:1\n\n"),
            "cursor",
        ),
        (SSE_HEAD + chunk(sse((attached(0, epoch="-"), "-:0"))) + b"0\r\n\r\n", "ended"),
        (SSE_HEAD + b"zz\r\n", "protocol"),
    ],
)
def test_stream_that_breaks_a_rule_is_a_violation(data: bytes, kind: str) -> None:
    assert kind in kinds(sse_session(data).checker)


def test_handshake_with_another_key_is_a_violation() -> None:
    session = WsSession()
    checker = Checker("c")
    session.attach(checker)
    session.receive(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: wrong\r\n\r\n", now_s=1.0)
    assert (kinds(checker), session.is_over) == (["protocol"], True)


# Presence, commands and signals --------------------------------------------------------------------------------------


BOT: Json = {"id": "bot-1", "kind": "agent", "data": {"state": "listening"}, "connections": 1}
ATTACHED: Json = {
    "type": "channel.attached",
    "channel": "c",
    "epoch": "e",
    "serial": 6,
    "resumed": False,
    "presence": {"members": [BOT], "count": 1},
}
RESUMED = ATTACHED | {"resumed": True}
COMMAND: Json = {"type": "command", "serial": 7, "command": {"id": "stop-0", "name": "cancel"}}
REPLY: Json = {"type": "command.reply", "serial": 8, "id": "stop-0", "ok": True, "from": "bot-1"}


def received(*events: Json) -> Checker:
    """Return a checker that has received `events`."""
    checker = Checker("c")
    checker.begin("e:6" if RESUMED in events else None)
    checker.take(list(events))
    return checker


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
