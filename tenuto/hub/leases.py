"""Expire writer leases, commands without a reply, and cancels that no writer carries out.

Layer: hub.

The lease monitor inspects each message and command that changed, and sets deadlines: for the lease of a remote
writer, whose message ends as `interrupted`; for a `cancel` that no writer carries out; for a command without a reply.
Deadlines belong to this hub and are not stored: after a restart a lease begins with one full term, so that a writer
that reconnects in time keeps it. The lease monitor's requests go through the committer like all others. At the end of a
term it waits for the requests that the committer has: a slow store ends no lease of a writer that has sent one.

On a shared store the writer may send its requests to another hub. That hub stores text and renewals as entries, with
their times. So the lease monitor reads the message at the end of a term, and ends it only if it has no new entry by the
commit. A lease ends about one term after the last entry, also if this hub reads that entry later (`NodeLease.left_s`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

from msgspec import Struct

from tenuto.core.errors import TenutoError
from tenuto.core.names import COMMAND_MARK
from tenuto.core.requests import SERVER, Caller, ExpireLease, FinishMessage, Request, SettleCommand
from tenuto.core.state import CommandState, MessageState
from tenuto.core.turns import rules_of
from tenuto.hub.channel import Channel
from tenuto.hub.clock import Clock, Deadlines
from tenuto.hub.nodes import NodeLease
from tenuto.hub.pending import Done, Result

logger = logging.getLogger("tenuto.hub")

BROKEN_S = 3.0  # rest of a lease when the connection of its holder breaks
RETRY_S = 1.0  # wait before the next try after the store failed

Read = Callable[[str, str], Coroutine[Any, Any, MessageState]]
Submit = Callable[[str, str, Request, Caller, Done], None]


def send(submit: Submit, channel: str, key: str, request: Request, caller: Caller, done: Done) -> None:
    """Submit `request`. `done` is called with the result, or with the refusal."""
    try:
        submit(channel, key, request, caller, done)
    except TenutoError as error:
        done(error)


class _Lease(Struct, eq=False):
    """The lease of the remote writer of one message, or of its successor with another generation."""

    channel: str
    key: str
    generation: int
    term_s: float
    last: int = 0  # serial of the message's last entry when the term began
    connection: Hashable = None  # the open connection on which the writer was last seen, if any
    is_bound: bool = False  # the writer has used no other way since


@dataclass(eq=False)
class LeaseMonitor:
    """Holds the deadlines of the leases and commands of one hub; its `submit` carries out the requests."""

    _loop: asyncio.AbstractEventLoop
    _clock: Clock
    _deadlines: Deadlines
    _submit: Submit
    _: KW_ONLY
    read: Read  # returns a message once all requests about it that were submitted before are decided
    nodes: NodeLease  # if it is exclusive, no other hub has the store open: this one receives all requests of a writer
    spawn: Callable[[Coroutine[Any, Any, None]], object]  # starts a task
    _leases: dict[str, dict[str, _Lease]] = field(default_factory=dict, init=False)  # by channel and message
    _held: dict[Hashable, dict[_Lease, None]] = field(default_factory=dict, init=False)  # by connection

    def inspect(self, channel: Channel, keys: Iterable[str] | None) -> None:
        """Update the deadlines of the messages and commands `keys` of `channel`; None means all of them."""
        state = channel.state
        if is_read := keys is None:  # from the store, where the entries may have been for long
            keys = [*state.messages, *(command.id for command in state.pending_commands())]
        for key in keys:
            if key.startswith(COMMAND_MARK):
                self.inspect_command(channel.name, key, state.commands.get(key))
            else:
                self.inspect_writer(channel.name, key, state.messages.get(key), is_late=is_read)

    def inspect_writer(self, channel: str, key: str, message: MessageState | None, *, is_late: bool = False) -> None:
        """Begin, change or drop the lease of the writer of message `key`; `message` is None if it no longer exists.

        `is_late`: its entries may have been stored long ago, because this hub does not follow the channel.
        """
        known = self._lease(channel, key)
        writer = message.writer if message is not None and message.is_streaming else None
        if message is None or writer is None or writer.node is not None or not writer.lease_ms:
            if known is not None:
                self._deadlines.drop(("lease", channel, key))
                self._forget(known)
            return
        generation, term_s = message.generation, writer.lease_ms / 1000
        if known is None or known.generation != generation:
            if known is not None:
                self._release(known)  # it is on the connection of the previous writer
            self._leases.setdefault(channel, {})[key] = _Lease(channel, key, generation, term_s)
        elif known.term_s != term_s:
            known.term_s = term_s
        elif self.nodes.is_exclusive or message.last <= known.last:
            return  # no other hub has received a request of the writer
        is_late = is_late or known is None  # this hub may learn of the lease only now
        self.renew(channel, key, message, self.nodes.left_s(term_s, message.alive_at) if is_late else None)

    def followed(self, channel: Channel) -> None:
        """Restart the leases of the messages in `channel` that have new text of another hub, which is not inspected."""
        for key, lease in self._leases.get(channel.name, {}).items() if not self.nodes.is_exclusive else ():
            message = channel.state.messages.get(key)
            if message is not None and message.last > lease.last:
                self.renew(channel.name, key, message)

    def renew(self, channel: str, key: str, message: MessageState | None, left_s: float | None = None) -> None:
        """Restart the lease of `message` with id `key`, if it has one: its writer has sent a request.

        The lease ends in `left_s`, or for None in a full term.
        """
        lease = self._lease(channel, key)
        if lease is not None:
            lease.last = message.last if message is not None else 0
            self._deadlines.drop(("again", channel, key))  # the retry of its end, which the store had refused
            end_s = self._loop.time() + (lease.term_s if left_s is None else left_s)
            self._deadlines.set(("lease", channel, key), end_s, partial(self._lapse, channel, key))
            lease.is_bound = False  # until `held`, if the request came over a connection

    def held(self, channel: str, key: str, connection: Hashable) -> None:
        """Record that the last request of the writer of `key` came over `connection`, until the lease ends."""
        lease = self._lease(channel, key)
        if lease is not None:
            if lease.connection is not connection:
                self._release(lease)
                lease.connection = connection
                self._held.setdefault(connection, {})[lease] = None
            lease.is_bound = True  # it ends soon after `connection` breaks

    def is_holder(self, connection: Hashable) -> bool:
        """Return whether a writer with a lease was last seen on `connection`."""
        return connection in self._held

    def broken(self, connection: Hashable) -> None:
        """Shorten the leases of the writers on `connection`, which broke, so that a crash shows soon.

        A lease stays if its writer has sent a request another way since.
        """
        for lease in self._held.pop(connection, ()):
            lease.connection = None
            if lease.is_bound:
                self._deadlines.hasten(("lease", lease.channel, lease.key), self._loop.time() + BROKEN_S)

    def _lease(self, channel: str, key: str) -> _Lease | None:
        return self._leases.get(channel, {}).get(key)

    def _release(self, lease: _Lease) -> None:
        """Forget on which connection the writer was last seen."""
        if lease.connection is not None:
            held = self._held[lease.connection]
            del held[lease]
            if not held:
                del self._held[lease.connection]
            lease.connection = None

    def _lapse(self, channel: str, key: str) -> None:
        """End the lease, whose term has passed, unless this hub or another one has received a request of the writer."""
        lease = self._lease(channel, key)
        if lease is not None:
            with suppress(RuntimeError):  # the hub is ending
                self.spawn(self._read_and_expire(lease))

    async def _read_and_expire(self, lease: _Lease) -> None:
        channel, key, last = lease.channel, lease.key, lease.last
        try:
            message = await self.read(channel, key)
        except Exception as error:  # an error of a third-party store must not end the lease, nor keep it for good
            if isinstance(error, TenutoError) and not error.retry:
                self._forget(lease)
                return
            if not isinstance(error, TenutoError):
                logger.exception("%s of channel %s could not be read; the hub tries again", key, channel)
            again = partial(self._lapse, channel, key)
            self._deadlines.set(("again", channel, key), self._loop.time() + RETRY_S, again)
            return
        self.inspect_writer(channel, key, message)  # renews the lease if the message has new entries
        if self._lease(channel, key) is lease:
            # a full term has begun when this hub read of the entries
            if lease.last != last and not self.nodes.is_exclusive:
                self.renew(channel, key, message, self.nodes.left_s(lease.term_s, message.alive_at))
            if ("lease", channel, key) not in self._deadlines:
                self.end(channel, key)

    def end(self, channel: str, key: str) -> None:
        """End the message `key` if it has a lease, whose writer is gone, unless it gets another entry first.

        A hub alone with its store ends no lease while it shuts down: remote writers lose their sockets, and their
        leases begin anew with its next start.
        """
        lease = self._lease(channel, key)
        if lease is not None and not (self.nodes.is_exclusive and self.nodes.is_leaving):
            end = FinishMessage(status="interrupted", reason="writer_gone", generation=lease.generation)
            self._submit_as_server(
                channel,
                key,
                end if self.nodes.is_exclusive else ExpireLease(end=end, last=lease.last),
                partial(self._lapse, channel, key),
                finished=partial(self._forget, lease),
            )

    def _forget(self, lease: _Lease) -> None:
        """Forget the lease, unless it was replaced: its message has ended, by this request or by another one."""
        leases = self._leases.get(lease.channel, {})
        if leases.get(lease.key) is lease:
            self._release(lease)
            del leases[lease.key]
            if not leases:
                del self._leases[lease.channel]

    def inspect_command(self, channel: str, key: str, command: CommandState | None) -> None:
        """Set or drop the deadlines of the command `key`; None if the command no longer exists."""
        if command is None:
            return  # its deadlines need not be dropped: they have no effect on a command that has a reply or is gone
        expires_ms = command.sent.expires_ms
        cancel, expiry = ("cancel", channel, key, expires_ms), ("expiry", channel, key, expires_ms)
        if not command.is_open:
            self._deadlines.drop(cancel)
            self._deadlines.drop(expiry)
            return
        now_s, now_ms = self._loop.time(), self._clock.now_ms()
        if expiry not in self._deadlines:
            left_s = max(0.0, min((expires_ms - now_ms) / 1000, 24 * 3600))
            self._deadlines.set(expiry, now_s + left_s, partial(self._settle, channel, key, expires_ms, True))
        after_s = rules_of(command.sent.name).after_s
        if after_s is not None and cancel not in self._deadlines:
            self._deadlines.set(cancel, now_s + after_s, partial(self._settle, channel, key, expires_ms, False))

    def _settle(self, channel: str, key: str, expires_ms: int, is_expired: bool) -> None:
        again = partial(self._settle, channel, key, expires_ms, is_expired)
        self._submit_as_server(channel, key, SettleCommand(is_expired=is_expired, expires_ms=expires_ms), again)

    def _submit_as_server(
        self,
        channel: str,
        key: str,
        request: Request,
        again: Callable[[], None],
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        """Submit `request` as the server. If the store fails call `again` later, else `finished`."""

        def done(result: Result | TenutoError) -> None:
            if isinstance(result, TenutoError) and result.retry:
                self._deadlines.set(("again", channel, key), self._loop.time() + RETRY_S, again)
            elif isinstance(request, ExpireLease) and isinstance(result, Result) and not result.created:
                again()  # the message had a new entry
            else:
                if isinstance(result, TenutoError):
                    logger.debug("%s of channel %s was not ended: %s", key, channel, result)
                finished()

        send(self._submit, channel, key, request, SERVER, done)
