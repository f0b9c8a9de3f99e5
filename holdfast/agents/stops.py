"""Stops: the `cancel` commands for one piece of work, heard while it runs and answered when it is over.

Layer: agents.

A turn and a streamed response are both stopped so. Whoever writes has two seconds to answer; then
the server carries the command out (`hub.leases`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Set

from holdfast.agents.backend import Watch
from holdfast.core.errors import HoldfastError
from holdfast.core.model import Command
from holdfast.core.turns import rules_of

Targets = Callable[[], Set[str]]  # what a command may name; a turn's grow with its answers


def stops(watch: Watch, targets: Targets) -> list[Command]:
    """The `cancel`s that wait for an answer."""
    return [one for one in watch.commands() if rules_of(one.name).stops and one.target in targets()]


async def until_stopped(watch: Watch, targets: Targets) -> None:
    """Return when somebody has asked for a stop."""
    while not stops(watch, targets):
        await watch.changed()


async def answer_stops(watch: Watch, targets: Targets, reply: Callable[[str], Awaitable[None]]) -> None:
    """Result them all with `reply`, which takes a command's id."""
    for command in stops(watch, targets):
        with contextlib.suppress(HoldfastError):  # somebody was faster
            await reply(command.id)
