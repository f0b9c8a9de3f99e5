"""The checker follows presence, commands and signals, and finds a changed command.

Layer: tests.
"""

from typing import Any

from proof.wirecheck import Checker

Json = dict[str, Any]
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
