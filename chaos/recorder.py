"""What one viewer was told of those who are here, and of what was asked of them.

Layer: chaos.

The part of the wire that `wirecheck.Checker` leaves out: presence, commands and their
replies, signals. Pure. A reload forgets who is here and what waits, and not what was told once: that stays true.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["Heard"]

Json = dict[str, Any]


class Heard:
    """Feed it with events in the order in which they came."""

    def __init__(self) -> None:
        self.members: dict[str, Json] = {}
        self.pending: dict[str, Json] = {}  # commands that wait for an answer
        self.commands: dict[str, Json] = {}  # all that were ever told
        self.missing: set[str] = set()  # commands whose answer has to be told yet: a new start leaves others out
        self.replies: dict[str, Json] = {}
        self.signals: list[Json] = []
        self.left: list[str] = []  # who was said to leave
        self.wrong: list[str] = []

    def take(self, events: Iterable[Json]) -> None:
        """Take what came together."""
        for event in events:
            match event["type"]:
                case "channel.attached":
                    self._attached(event)
                case "presence.sync":
                    self._here(event["members"])
                case "presence.enter" | "presence.update":
                    self.members[event["member"]["id"]] = event["member"]
                case "presence.leave":
                    self.members.pop(event["id"], None)
                    self.left.append(event["id"])
                case "command":
                    self._command(event["command"])
                case "command.reply":
                    self.replied(event)
                case "signal":
                    self.signals.append(event)

    def replied(self, reply: Json) -> None:
        """This is the answer to a command: the one that counts, wherever and however often it is told."""
        self._same(self.replies, reply["id"], reply, "reply")
        self.pending.pop(reply["id"], None)
        self.missing.discard(reply["id"])

    def forget(self) -> None:
        """The page is loaded anew."""
        self.members.clear()
        self.pending.clear()
        self.missing.clear()

    def differences(self, members: Iterable[str]) -> list[str]:
        """How who is shown differs from who is here, and whether something seems to wait still."""
        expected = set(members)
        return [
            *(f"{id} is shown, and is not here" for id in sorted(self.members.keys() - expected)),
            *(f"{id} is here, and is not shown" for id in sorted(expected - self.members.keys())),
            *(f"command {id} seems to wait for its answer" for id in sorted(self.pending)),
            *(f"command {id} was told of, and its answer never" for id in sorted(self.missing - self.pending.keys())),
        ]

    def _attached(self, event: Json) -> None:
        self._here((event.get("presence") or {}).get("members", []))
        self.pending = {}
        if not event["resumed"]:
            self.missing.clear()
        for command in event.get("commands", []):
            self._command(command)

    def _here(self, members: list[Json]) -> None:
        self.members = {member["id"]: member for member in members}

    def _command(self, command: Json) -> None:
        self._same(self.commands, command["id"], command, "command")
        if command["id"] not in self.replies:
            self.pending[command["id"]] = command
            self.missing.add(command["id"])

    def _same(self, known: dict[str, Json], id: str, told: Json, what: str) -> None:
        before = known.setdefault(id, told)
        if before != told:
            self.wrong.append(f"{what} {id} was told as {before}, and then as {told}")
