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


def test_members_are_those_that_entered_and_have_not_left() -> None:
    enter, leave = {"type": "presence.enter", "member": BOT}, {"type": "presence.leave", "id": "bot-1"}
    sync = {"type": "presence.sync", "members": [BOT], "count": 1}
    for events in ([ATTACHED], [enter], [ATTACHED, leave, enter], [sync]):
        assert differences(*events, members=("bot-1",)) == []
        assert differences(*events) == ["bot-1 is shown as present, but is not"]
    assert differences(ATTACHED, leave) == []
    assert differences(ATTACHED, leave, members=("bot-1",)) == ["bot-1 is present, but not shown"]
    assert received(ATTACHED, leave, enter).notices.left == ["bot-1"]


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


def test_reload_forgets_members_and_keeps_replies() -> None:
    checker = received(ATTACHED, COMMAND, REPLY)
    checker.reload()
    checker.begin(None)
    assert checker.notices.members == {}
    checker.take([ATTACHED, REPLY | {"from": "bot-2"}])
    assert [one.kind for one in checker.violations] == ["changed"]


def test_command_id_of_another_epoch_is_another_command() -> None:
    other = COMMAND | {"command": {"id": "stop-0", "name": "steer"}}
    assert changes(ATTACHED, COMMAND, ATTACHED | {"epoch": "f"}, other) == 0


def test_poll_moves_only_its_position_if_the_log_is_still() -> None:
    checker = received(ATTACHED)
    checker.take([], "e:6:@a:1")
    enter = {"type": "presence.enter", "member": BOT}
    for events, cursor, count in (([], "e:6:@a:1", 0), ([enter], "e:6:@a:2", 0), ([], "e:7:@a:2", 0)):
        checker.begin(checker.cursor, is_poll=True)
        checker.take(events, cursor)
        assert len(checker.violations) == count
    for cursor in ("e:7:@a:3", "e:6:@a:2", "f:7:@a:2"):
        checker.violations.clear()
        checker.begin("e:7:@a:2", is_poll=True)
        checker.take([], cursor)
        assert checker.violations[0].kind == "cursor"


def test_data_of_a_command_with_a_reply_may_leave_and_not_change() -> None:
    command: Json = {"type": "command", "serial": 7, "command": {"id": "stop-0", "name": "cancel", "data": 1}}
    reply = REPLY | {"ok": False, "error": {"code": "no", "detail": "why"}}
    assert changes(command, reply, RESUMED, COMMAND, REPLY | {"ok": False, "error": {"code": "no"}}) == 0
    assert changes(command, COMMAND) == 1  # it still waits for its reply
    assert changes(command, reply, {**command, "command": command["command"] | {"data": 2}}) == 1
    assert changes(command, reply, REPLY | {"ok": False, "error": {"code": "other"}}) == 1
    assert changes(command, reply, reply | {"ok": True}) == 1
