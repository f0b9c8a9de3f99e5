"""The `cancel` commands for a turn or a streamed response: they stop the work, and get a reply when it has ended.

Layer: agents.

The process that does the work has two seconds to reply; then the server carries the command out (`hub.leases`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Set

from tenuto.agents.backend import Watch
from tenuto.core.errors import TenutoError
from tenuto.core.model import Command
from tenuto.core.turns import rules_of

Targets = Callable[[], Set[str]]  # returns the ids that a command may name; each answer of a turn adds its own


def stops(watch: Watch, targets: Targets) -> list[Command]:
    """Return the commands without a reply that stop one of `targets`."""
    return [one for one in watch.commands() if rules_of(one.name).stops and one.target in targets()]


async def until_stopped(watch: Watch, targets: Targets) -> None:
    """Wait until a client has sent a command that stops one of `targets`."""
    while not stops(watch, targets):
        await watch.changed()


async def reply_to_stops(watch: Watch, targets: Targets, reply: Callable[[str], Awaitable[None]]) -> None:
    """Call `reply` with the id of each command that waits for a reply."""
    for command in stops(watch, targets):
        with contextlib.suppress(TenutoError):  # another client has replied already
            await reply(command.id)
