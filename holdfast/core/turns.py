"""The rules of the built-in commands, as a table.

Layer: core. `docs/protocol.md` prints `BUILT_IN_COMMANDS`, and a test compares both. Safe to change: a row, together
with the document. The decisions, the lease monitor and the agents read the table.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

CANCEL_S = 2.0  # for the client at work to carry out a `cancel`

# -- commands --------------------------------------------------------------------------------------------------


class Replier(Enum):
    """The clients that may reply to a command, beside the app. A reply also needs the capability `command`."""

    WORKER = "the client at work on the target, a caller with `admin`"
    READER = "any caller that may read the channel, the sender, the client at work on the target"


class ServerAction(Enum):
    """What the server does for a command that no client has replied to."""

    STOP = "ends the answers and the turn as `cancelled`, and replies `ok: true`"
    EXPIRE = 'replies `ok: false` with `error: {code: "expired"}`'


class CommandRules(NamedTuple):
    """The rules of one command name."""

    name: str
    needs_target: bool
    replier: Replier
    action: ServerAction
    after_s: float | None  # the server acts this long after the command was sent; None: when it expires

    @property
    def stops(self) -> bool:
        """Return whether the command stops its target: an answer, or all answers to a message and its turn."""
        return self.action is ServerAction.STOP


CANCEL = CommandRules("cancel", True, Replier.WORKER, ServerAction.STOP, CANCEL_S)
STEER = CommandRules("steer", False, Replier.WORKER, ServerAction.EXPIRE, None)
APPROVE = CommandRules("approve", False, Replier.READER, ServerAction.EXPIRE, None)
BUILT_IN_COMMANDS = {rules.name: rules for rules in (CANCEL, STEER, APPROVE)}


def commands_table() -> str:
    """Return the table of `docs/protocol.md`, 8.2."""
    lines = ["| command | target | replies | without a reply, the server | after |", "|---|---|---|---|---|"]
    for rules in BUILT_IN_COMMANDS.values():
        target = "required" if rules.needs_target else "optional"
        after = "`expires_s`" if rules.after_s is None else f"{rules.after_s:g} s"
        lines.append(f"| `{rules.name}` | {target} | {rules.replier.value} | {rules.action.value} | {after} |")
    return "\n".join(lines) + "\n"


def rules_of(name: str) -> CommandRules:
    """Return the rules of the command `name`. A command of the app's own has those of `approve`."""
    return BUILT_IN_COMMANDS.get(name) or APPROVE._replace(name=name)
