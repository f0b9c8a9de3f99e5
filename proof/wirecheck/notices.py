"""Presence, commands and signals, as one client receives them: the events that change no message.

Layer: wirecheck.

A `Checker` passes these events on. A reload forgets the members and the pending commands, but not the content of a
command: it never changes within an epoch, except that the data of a command with a reply may be missing later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Notices"]

Json = dict[str, Any]


class Notices:
    """The members, commands and signals of one channel. `violate` receives a kind and a detail."""

    def __init__(self, violate: Callable[[str, str], None]) -> None:
        self.members: dict[str, Json] = {}
        self.left: list[str] = []  # for each `presence.leave` the id of the member
        self.signals: list[Json] = []
        self.pending: dict[str, Json] = {}  # commands that wait for a reply
        self.replies: dict[str, Json] = {}
        self._epoch: str | None = None
        self._commands: dict[str, Json] = {}  # all commands that were received
        self._without_reply: set[str] = set()  # received commands whose reply has not come; a new start may omit it
        self._violate = violate

    def attached(self, event: Json) -> None:
        """Take `channel.attached`, which holds the present members and the pending commands."""
        if self._epoch != event["epoch"]:
            self._epoch = event["epoch"]
            self._commands.clear()
            self.replies.clear()
        if not event["resumed"]:
            self._without_reply.clear()
        self._sync((event.get("presence") or {}).get("members", []))
        self.pending = {}
        for command in event.get("commands", []):
            self._command(command)

    def take(self, event: Json) -> None:
        """Take any other event; those of messages are ignored."""
        match event["type"]:
            case "presence.sync":
                self._sync(event["members"])
            case "presence.enter" | "presence.update":
                self.members[event["member"]["id"]] = event["member"]
            case "presence.leave":
                self.members.pop(event["id"], None)
                self.left.append(event["id"])
            case "command":
                self._command(event["command"])
            case "command.reply":
                self._reply(event)
            case "signal":
                self.signals.append(event)

    def reload(self) -> None:
        """Forget the members and the pending commands, as a page that is loaded again."""
        self.members.clear()
        self.pending.clear()
        self._without_reply.clear()

    def differences(self, members: Iterable[str]) -> list[str]:
        """Return one sentence for each difference from `members` and from a channel where no command waits."""
        expected = set(members)
        return [
            *(f"{id} is shown as present, but is not" for id in sorted(self.members.keys() - expected)),
            *(f"{id} is present, but not shown" for id in sorted(expected - self.members.keys())),
            *(f"command {id} still waits for a reply" for id in sorted(self.pending)),
            *(
                f"command {id} was sent, but its reply was not"
                for id in sorted(self._without_reply - self.pending.keys())
            ),
        ]

    def _sync(self, members: list[Json]) -> None:
        self.members = {member["id"]: member for member in members}

    def _command(self, command: Json) -> None:
        self._check_same(self._commands, command["id"], command, "command")
        if command["id"] not in self.replies:
            self.pending[command["id"]] = command
            self._without_reply.add(command["id"])

    def _reply(self, reply: Json) -> None:
        self._check_same(self.replies, reply["id"], reply, "reply")
        self.pending.pop(reply["id"], None)
        self._without_reply.discard(reply["id"])

    def _check_same(self, known: dict[str, Json], id: str, received: Json, what: str) -> None:
        before = known.setdefault(id, received)
        if before == received:
            return
        bare = _without_data(received)
        has_lost_data = bare == _without_data(before) and bare in (before, received)
        if not has_lost_data or (id in self.pending and id not in self.replies):
            self._violate("changed", f"{what} {id} was {before}, and is now {received}")


def _without_data(known: Json) -> Json:
    """Return a command or reply without its data; of an error only the code remains."""
    bare = {name: value for name, value in known.items() if name not in ("data", "error")}
    code = (known.get("error") or {}).get("code")
    return bare | {"error": {"code": code}} if code is not None else bare
