"""The lease monitor: ends what nobody else ends.

Layer: hub.

It looks at every message and command that changed, and sets deadlines: for the lease of a writer
elsewhere, which ends as `interrupted`; for a `cancel` that no writer carries out; for a command that nobody answers.
Deadlines are this hub's own and are not stored: after a restart a lease begins with one full term, so that a writer
who comes back in time keeps it. What the lease monitor decides goes through the committer like any request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import NamedTuple

from holdfast.core.errors import HoldfastError
from holdfast.core.names import COMMAND_MARK
from holdfast.core.requests import SERVER, Caller, FinishMessage, Request, SettleCommand
from holdfast.core.state import CommandState, MessageState
from holdfast.hub.channel import Channel
from holdfast.hub.clock import Clock
from holdfast.hub.committer import Done, Result
from holdfast.hub.deadlines import Deadlines

logger = logging.getLogger("holdfast.hub")

CANCEL_S = 2.0  # for whoever writes to carry out a `cancel`
BROKEN_S = 3.0  # what is left of a lease when its holder's socket breaks
RETRY_S = 1.0  # after a store that failed

Submit = Callable[[str, str, Request, Caller, Done], None]


class _Holder(NamedTuple):
    """By what the writer of a message was heard of last."""

    line: Hashable  # its socket
    is_last: bool  # and by nothing else since


class LeaseMonitor:
    """Watches over leases and commands. `submit` is the hub's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, deadlines: Deadlines, submit: Submit) -> None:
        self._loop = loop
        self._clock = clock
        self._deadlines = deadlines
        self._submit = submit
        self._leases: dict[tuple[str, str], tuple[int, float]] = {}  # generation and term in seconds
        self._holders: dict[tuple[str, str], _Holder] = {}  # by what their writers were heard of, where that is known

    def look(self, channel: Channel, keys: Iterable[str] | None) -> None:
        """The messages and commands `keys` of `channel` changed; with None, any may have."""
        state = channel.state
        if keys is None:
            keys = [*state.messages, *(command.id for command in state.pending_commands())]
        for key in keys:
            if key.startswith(COMMAND_MARK):
                self.look_at_command(channel.name, key, state.command(key))
            else:
                self.look_at_writer(channel.name, key, state.message(key))

    def look_at_writer(self, channel: str, key: str, message: MessageState | None) -> None:
        """See to the lease of the message `key`, which may be gone."""
        place = (channel, key)
        writer = message.writer if message is not None and message.is_streaming else None
        if message is None or writer is None or writer.node is not None or not writer.lease_ms:
            if self._leases.pop(place, None) is not None:
                self._deadlines.drop(("lease", *place))
                self._holders.pop(place, None)
            return
        lease, known = (message.generation, writer.lease_ms / 1000), self._leases.get(place)
        if known != lease:
            self._leases[place] = lease
            if lease[0] > 1 and (known is None or known[0] != lease[0]):
                self._holders[place] = _Holder(None, False)  # whoever wrote before has no say in it
            self.renew(channel, key)

    def renew(self, channel: str, key: str) -> None:
        """The writer of `key` was heard of: its lease, if it has one, begins anew."""
        lease = self._leases.get((channel, key))
        if lease is not None:
            self._deadlines.drop(("again", channel, key, FinishMessage))  # of an end that came in its way
            self._end_lease_in(channel, key, lease[1])
            if (channel, key) in self._holders:
                self._holders[channel, key] = self._holders[channel, key]._replace(is_last=False)

    def held(self, channel: str, key: str, line: Hashable) -> None:
        """It was by the socket `line` that the writer of `key` was heard of."""
        if (channel, key) in self._leases:
            self._holders[channel, key] = _Holder(line, True)

    def broken(self, channel: str, key: str, line: Hashable, *, is_late: bool = False) -> None:
        """The socket `line` of the writer of `key` broke: a blip does not interrupt, and a crash shows soon.

        Not where the writer was heard of by something else since: then it is there. `is_late`: the socket had broken
        already when this last request of its was carried out.
        """
        lease, holder = self._leases.get((channel, key)), self._holders.get((channel, key))
        if lease is None:
            return
        if holder is None or (holder.line is line and (holder.is_last or is_late)):
            self._end_lease_in(channel, key, min(lease[1], BROKEN_S))

    def _end_lease_in(self, channel: str, key: str, term_s: float) -> None:
        self._deadlines.set(("lease", channel, key), self._loop.time() + term_s, partial(self._lapse, channel, key))

    def _lapse(self, channel: str, key: str) -> None:
        lease = self._leases.get((channel, key))
        if lease is not None:
            end = FinishMessage(status="interrupted", reason="writer_gone", generation=lease[0])
            self._ask(
                channel, key, end, partial(self._lapse, channel, key), over=partial(self._over, channel, key, lease)
            )

    def _over(self, channel: str, key: str, lease: tuple[int, float]) -> None:
        """The lease has ended, also where it was somebody else who ended the message."""
        if self._leases.get((channel, key)) == lease:
            del self._leases[channel, key]
            self._holders.pop((channel, key), None)

    def look_at_command(self, channel: str, key: str, command: CommandState | None) -> None:
        """See to the end of the command `key`, which may be gone."""
        if command is None:
            return  # if it was answered where it was not in memory, or its channel is gone, its end finds nothing to do
        expires_ms = command.expires_ms
        cancel, expiry = ("cancel", channel, key, expires_ms), ("expiry", channel, key, expires_ms)
        if not command.is_open:
            self._deadlines.drop(cancel)
            self._deadlines.drop(expiry)
            return
        now_s, now_ms = self._loop.time(), self._clock.now_ms()
        if expiry not in self._deadlines:
            left_s = max(0.0, min((command.expires_ms - now_ms) / 1000, 24 * 3600))
            self._deadlines.set(expiry, now_s + left_s, partial(self._settle, channel, key, expires_ms, True))
        if command.name == "cancel" and cancel not in self._deadlines:
            self._deadlines.set(cancel, now_s + CANCEL_S, partial(self._settle, channel, key, expires_ms, False))

    def _settle(self, channel: str, key: str, expires_ms: int, is_expired: bool) -> None:
        again = partial(self._settle, channel, key, expires_ms, is_expired)
        self._ask(channel, key, SettleCommand(is_expired=is_expired, expires_ms=expires_ms), again)

    def _ask(
        self,
        channel: str,
        key: str,
        request: Request,
        again: Callable[[], None],
        over: Callable[[], None] = lambda: None,
    ) -> None:
        """Have `request` carried out as the server's; where the store fails, again later, else it is `over`."""

        def done(answer: Result | HoldfastError) -> None:
            if isinstance(answer, HoldfastError) and answer.retry:
                self._deadlines.set(("again", channel, key, type(request)), self._loop.time() + RETRY_S, again)
                return
            if isinstance(answer, HoldfastError):
                logger.debug("%s of %s needed no end: %s", key, channel, answer)
            over()

        try:
            self._submit(channel, key, request, SERVER, done)
        except HoldfastError as error:
            done(error)
