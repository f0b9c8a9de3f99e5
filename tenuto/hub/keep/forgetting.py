"""Forgetting: removes the messages and commands of one person from a store.

Layer: hub.

Nothing about a removal is stored, and each step can be repeated: a call that was cut off is repeated, and removes what
is left. Messages are deleted by an entry and then removed with their ids, as retention does; viewers begin anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from msgspec import Struct

from tenuto.core.document import Stored, document, restore, restore_command
from tenuto.core.errors import StoreUnusable
from tenuto.core.model import OPTIONS
from tenuto.core.names import COMMAND_MARK, check_id, is_own_name
from tenuto.core.ops import Delete, Entry, Reply
from tenuto.core.requests import regenerate_options_id
from tenuto.core.state import CommandState, MessageState, apply_to_command, change
from tenuto.hub.channel import MAX_CONFLICTS, outpaced
from tenuto.hub.clock import Clock
from tenuto.hub.keep.retention import GONE_MS, READ_FACTS, READ_PAUSE_S, steps
from tenuto.stores.base import OLD_MS, Conflict, Head, Store, Write, head_of

PAGE = 200  # channels in one read
WIPE_PAUSE_S = 0.5  # between two questions to the store whether its files are clean
WIPE_TRIES = 360

T = TypeVar("T")
# Runs a function that changes the named channel in the store, while no request changes it.
Rewrite = Callable[[str, Callable[[], Awaitable[T]]], Awaitable[T]]


class Forgotten(Struct, frozen=True, kw_only=True):
    """What one call has removed: messages and commands, also those in the `channels` that went as a whole."""

    messages: int
    commands: int
    channels: int
    unreadable: int  # damaged messages, commands and channels, whose authors are not known; they stay
    # The database and its WAL are without removed text. False: three minutes were not enough, as while
    # another process reads the file; None: the store cannot know, or damage keeps such text.
    is_clean: bool | None


@dataclass
class _Scan:
    """The messages and commands of a channel up to the serial of `head`."""

    head: Head
    ids: set[str] = field(default_factory=set)
    streaming: set[str] = field(default_factory=set)  # ids of the messages that stream
    has_own: bool = False  # True: the person wrote some of them
    has_others: bool = False  # True: another person wrote some of them, or one is unreadable

    @property
    def is_theirs(self) -> bool:
        """Return whether the person wrote in the channel, and no other person."""
        return self.has_own and not self.has_others


async def direct(_channel: str, write: Callable[[], Awaitable[T]]) -> T:
    """Run `write` at once, in a store without a hub (`Rewrite`)."""
    return await write()


@dataclass(eq=False)
class Forgetting:
    """The removal of one person's messages and commands."""

    _store: Store
    _client_id: str  # of that person
    _clock: Clock
    _rewrite: Rewrite[bool] = direct

    def __post_init__(self) -> None:
        """Raise InvalidName."""
        check_id(self._client_id, "a client id")
        self._has_hub = self._rewrite is not direct  # it serves meanwhile, and does the housekeeping of the store
        self._unreadable: set[tuple[str, str]] = set()  # channel and id of what could not be read; id "": the channel
        self._messages = self._commands = self._channels = 0  # numbers of those removed

    async def run(self, *, channels: bool) -> Forgotten:
        """Remove the person's messages and commands, with `channels` also channels. Raises StoreUnavailable, Busy."""
        after = None
        while names := await self._store.channels(after=after, limit=PAGE):
            for name in names:
                try:
                    await self._forget_in(name, may_go=channels)
                except StoreUnusable:  # its row is damaged
                    self._unreadable.add((name, ""))
            after = names[-1]
        is_clean = await self._wait_until_clean()
        return Forgotten(
            messages=self._messages,
            commands=self._commands,
            channels=self._channels,
            unreadable=len(self._unreadable),
            is_clean=is_clean,
        )

    # -- finding ---------------------------------------------------------------------------------------------------

    def _is_own(self, thing: MessageState | CommandState) -> bool:
        """Return whether the person wrote a message, sent a command or replied to it, also as one of their agents."""
        if isinstance(thing, MessageState):
            return is_own_name(thing.author, self._client_id)
        by_reply = thing.reply.by if thing.reply is not None else None
        return is_own_name(thing.sent.by, self._client_id) or is_own_name(by_reply, self._client_id)

    async def _read(self, channel: str, ids: Sequence[str]) -> tuple[Head, list[MessageState | CommandState]]:
        """Return the head of `channel`, and those of its messages and commands `ids` that can be read."""
        head, found = await self._store.messages(channel, ids)
        things = []
        for one in (found[message_id] for message_id in ids if message_id in found):
            if (thing := _thing(one)) is not None:
                things.append(thing)
            else:
                self._unreadable.add((channel, one.id))
        return head, things

    async def _walk(
        self, channel: str, after: int = 0
    ) -> AsyncGenerator[tuple[Head, list[str], list[MessageState | CommandState]], None]:
        """Yield the head, some of the ids that changed after serial `after`, and the readable ones of their things.

        All such ids come in turn, in the order of their changes.
        """
        is_over = False
        while not is_over:
            head, facts = await self._store.facts(channel, after=after, limit=READ_FACTS)
            for step in steps(facts):
                ids = [one.id for one in step]
                yield head, ids, (await self._read(channel, ids))[1]
            is_over = len(facts) < READ_FACTS
            after = facts[-1].version if facts else after
            await asyncio.sleep(READ_PAUSE_S if self._has_hub else 0)

    async def _scan_on(self, channel: str, found: _Scan) -> None:
        """Add to `found` the messages and commands that have changed since its head, and move that."""
        reached = found.head.serial
        async for head, step, things in self._walk(channel, reached):
            found.ids.update(step)
            found.streaming.update(one.id for one in things if isinstance(one, MessageState) and one.is_streaming)
            own = [one for one in things if self._is_own(one)]
            found.has_own |= bool(own)
            found.has_others |= len(things) < len(step) or any(_is_of_person(one) for one in things if one not in own)
            reached = head.serial
        found.head = found.head._replace(serial=reached)

    # -- removing --------------------------------------------------------------------------------------------------

    async def _forget_in(self, channel: str, *, may_go: bool) -> None:
        """Remove the person's messages and commands from one channel; with `may_go` the channel if it is theirs."""
        for _ in range(MAX_CONFLICTS if may_go else 0):
            found = _Scan((await head_of(self._store, channel))._replace(serial=0))
            await self._scan_on(channel, found)  # while requests are served
            if not found.is_theirs:
                break
            if await self._rewrite(channel, partial(self._remove_channel, channel, found)):
                return
        async for _, _, things in self._walk(channel):
            ids = [one.id for one in things if self._is_own(one)]
            if ids:
                await self._rewrite(channel, partial(self._remove, channel, ids))

    async def _remove_channel(self, channel: str, found: _Scan) -> bool:
        """Empty `channel`, scanned as `found`. Return False if it has a new epoch, or another client wrote in it.

        Only what changed since is read, because requests for the channel wait meanwhile.
        """
        for _ in range(MAX_CONFLICTS):
            head = await head_of(self._store, channel)
            if head.epoch != found.head.epoch:
                return False
            await self._scan_on(channel, found)
            if not found.is_theirs:
                return False
            until_ms = self._clock.now_ms() + GONE_MS  # until then writers find their messages deleted
            result = await self._store.delete_channel(
                channel, expected=head, used_up=sorted(found.streaming), until_ms=until_ms
            )
            if isinstance(result, Head):
                self._count(found.ids)
                self._channels += 1
                return True
        raise outpaced(channel, MAX_CONFLICTS)

    async def _remove(self, channel: str, ids: Sequence[str]) -> bool:
        """Delete the person's messages and end their commands, then remove both with their ids.

        Open commands about these messages get a reply. A second call continues after a crash.
        """
        for _ in range(MAX_CONFLICTS):
            head, found = await self._read(channel, ids)
            own = [one for one in found if self._is_own(one)]
            if not own:
                return True
            # those of a `regenerate` are listed by a message that has no author
            _, lists = await self._read(channel, [regenerate_options_id(one.id) for one in own])
            own += [one for one in lists if isinstance(one, MessageState) and one.role == OPTIONS]
            gone = {one.id for one in own}
            opened = [_thing(one) for one in await self._store.open_documents(channel)]
            about = [one for one in opened if isinstance(one, CommandState) and one.sent.target in gone]
            things = [*own, *(one for one in about if one.id not in gone)]
            entries: list[Entry] = []
            for thing in things:
                _end(thing, head.serial + len(entries) + 1, self._clock.now_ms(), entries)
            documents = {one.id: document(one) for one in things}
            write = Write(
                channel=channel,
                epoch=head.epoch,
                expected=head.serial,
                entries=entries,
                documents=list(documents.values()),
                floor=head.floor,
            )
            (result,) = await self._store.commit([write])
            if isinstance(result, Conflict):
                continue
            versions = {message_id: documents[message_id].version for message_id in gone}
            self._count(await self._store.prune(channel, epoch=head.epoch, versions=versions))
            return True
        raise outpaced(channel, MAX_CONFLICTS)

    def _count(self, gone: Collection[str]) -> None:
        commands = sum(one.startswith(COMMAND_MARK) for one in gone)
        self._commands += commands
        self._messages += len(gone) - commands

    async def _wait_until_clean(self) -> bool | None:
        """Wait until the store's files are without removed text, for three minutes (`Forgotten.is_clean`)."""
        if not self._has_hub:  # the ages of entries begin now, so the next call sees all of them as old
            await self._store.tidy(self._clock.now_ms() - OLD_MS)
        for number in range(WIPE_TRIES):
            if not self._has_hub:
                for channel, message_id in await self._store.tidy(self._clock.now_ms()):
                    await _write_document(self._store, channel, message_id)
            is_clean = await self._store.wipe(goes_on=number > 0)
            if is_clean is not False:
                return is_clean
            await asyncio.sleep(WIPE_PAUSE_S)
        return False


def _thing(stored: Stored) -> MessageState | CommandState | None:
    """Return a message or a command; None if it is damaged."""
    try:
        thing = restore_command(stored) if stored.id.startswith(COMMAND_MARK) else restore(stored)
    except StoreUnusable:
        return None
    return None if thing.is_damaged else thing


def _is_of_person(thing: MessageState | CommandState) -> bool:
    """Return whether a person may have written it: a message of a user, or a command of a client."""
    return thing.role == "user" if isinstance(thing, MessageState) else thing.sent.by is not None


def _end(thing: MessageState | CommandState, serial: int, now_ms: int, entries: list[Entry]) -> None:
    """Delete a message, or end an open command, by an entry with this serial. Neither is needed a second time."""
    if isinstance(thing, MessageState):
        if not thing.deleted:
            delete = Delete(id=thing.id, at_ms=now_ms)
            entries.append(Entry(serial, delete))
            change(thing, delete, serial)
    elif thing.is_open:
        error = {"code": "deleted", "detail": "the command, or the message that it is about, was removed"}
        reply = Reply(id=thing.id, ok=False, data=None, error=error, by=None, at_ms=now_ms)
        entries.append(Entry(serial, reply))
        apply_to_command(thing, reply, serial)


async def _write_document(store: Store, channel: str, message_id: str) -> None:
    """Store the document that `Store.tidy` wants, if the message is readable and did not change meanwhile."""
    head, found = await store.messages(channel, [message_id])
    thing = _thing(found[message_id]) if message_id in found else None
    if thing is not None and head.serial:
        write = Write(
            channel=channel, epoch=head.epoch, expected=head.serial, documents=[document(thing)], floor=head.floor
        )
        await store.commit([write])
