"""Forgetting: removes the messages and commands of one person from a store, and returns a receipt.

Layer: hub.

A note, the intent, names the person, the counts so far, and the running step with the counts after it. It is stored
before each step, and each step can be repeated, so a removal that was killed goes on where it stopped and its receipt
is whole. It also names the node that removes: no other node goes on while that one lives, and a node that finds another
name there stops. Messages are deleted by an entry and then removed with their ids, as retention does; viewers begin
anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.document import Stored, document, restore, restore_command
from tenuto.core.errors import Busy, Held, StoreUnusable
from tenuto.core.events import kept_serial
from tenuto.core.message_state import CommandState, MessageState
from tenuto.core.names import COMMAND_MARK, check_id, is_own_name
from tenuto.core.ops import Delete, Entry, Reply
from tenuto.core.state import apply_to_command, change
from tenuto.hub.channel import MAX_CONFLICTS, outpaced
from tenuto.hub.clock import Clock
from tenuto.hub.keep.legal_holds import LegalHolds, is_held_in
from tenuto.hub.keep.retention import GONE_MS, READ_FACTS, steps
from tenuto.hub.nodes.nodes import NodeLease
from tenuto.stores.base import Conflict, Head, Store, Write, head_of
from tenuto.stores.sqlite.engine import OLD_MS
from tenuto.stores.sqlite.store import SqliteStore

NOTE = "forget:"  # prefix of the notes about running removals; the client id follows
RECEIPT = "receipt:"  # prefix of the notes with receipts; the SHA-256 of the client id follows
PAGE = 200  # channels in one read
WIPE_PAUSE_S = 0.5  # between two questions to the store whether its files are clean
WIPE_TRIES = 360

T = TypeVar("T")
# Runs a function that changes the named channel in the store, while no request changes it.
Rewrite = Callable[[str, Callable[[], Awaitable[T]]], Awaitable[T]]


class Receipt(Struct, frozen=True, kw_only=True):
    """The result of a removal. Times are in ms since 1970.

    `ids_sum` is the sum, modulo 2**256, of the SHA-256 of `CHANNEL ID` for each message and command that went, in hex.
    `clean_ms`: from then on neither the database nor its WAL held removed text; None if the store cannot know.
    """

    client_sha256: str
    begun_ms: int
    ended_ms: int
    messages: int
    commands: int
    channels: int
    unreadable: int  # damaged messages, commands and channels, whose authors are not known; they stay
    ids_sum: str
    clean_ms: int | None
    older_backups: list[str]  # known backups that were made before `clean_ms`


class Tally(Struct, frozen=True, array_like=True):
    """The counts of a removal, and the sum of its ids (`Receipt.ids_sum`)."""

    messages: int = 0
    commands: int = 0
    channels: int = 0
    ids_sum: str = "0" * 64

    def plus(self, channel: str, ids: Collection[str]) -> Tally:
        """Return the tally after `ids` of `channel` have gone. It hashes each id."""
        commands = sum(one.startswith(COMMAND_MARK) for one in ids)
        hashes = (hashlib.sha256(f"{channel} {one}".encode()).digest() for one in ids)
        total = int(self.ids_sum, 16) + sum(int.from_bytes(one) for one in hashes)
        return Tally(
            self.messages + len(ids) - commands, self.commands + commands, self.channels, f"{total % 2**256:064x}"
        )

    def plus_channel(self, one: Tally) -> Tally:
        """Return the tally after a whole channel has gone, with the messages and commands of the tally `one`."""
        total = int(self.ids_sum, 16) + int(one.ids_sum, 16)
        return Tally(
            self.messages + one.messages, self.commands + one.commands, self.channels + 1, f"{total % 2**256:064x}"
        )


class _Step(Struct, frozen=True, array_like=True):
    """Messages and commands that go next, or with None a whole channel, and the tally after that."""

    channel: str
    epoch: str
    ids: list[str] | None
    after: Tally


class _Intent(Struct, frozen=True, kw_only=True):
    has_channels: bool
    begun_ms: int
    done: Tally = Tally()
    step: _Step | None = None
    node: str = ""  # the node that removes; empty: none, or a process without a hub


@dataclass
class _Scan:
    """The messages and commands of a channel up to the serial of `head`."""

    head: Head
    ids: set[str] = field(default_factory=set)
    streaming: set[str] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)
    has_own: bool = False  # True: the person wrote some of them
    has_others: bool = False  # True: another person wrote some of them, or one is unreadable

    @property
    def is_theirs(self) -> bool:
        """Return whether the channel is the person's."""
        return self.has_own and not self.has_others


async def direct(_channel: str, write: Callable[[], Awaitable[T]]) -> T:
    """Run `write` at once, in a store without a hub (`Rewrite`)."""
    return await write()


async def intended(store: Store) -> list[str]:
    """Return the client ids of the removals that have not ended."""
    return [name.removeprefix(NOTE) for name in await store.notes(NOTE)]


class Forgetting:
    """The removal of one person's messages and commands."""

    def __init__(
        self,
        store: Store,
        client_id: str,
        clock: Clock,
        rewrite: Rewrite[bool],
        *,
        tidies: bool,
        pause_s: float = 0.0,
        nodes: NodeLease | None = None,
    ) -> None:
        """Remove what `client_id` wrote. `tidies`: no hub does the housekeeping of the store. Raises InvalidName.

        `pause_s`: time between two reads. `nodes`: the nodes of the hub that removes.
        """
        self._client_id = check_id(client_id, "a client id")
        self._store = store
        self._clock = clock
        self._rewrite = rewrite
        self._tidies = tidies
        self._pause_s = pause_s
        self._nodes = nodes
        self._unreadable: set[tuple[str, str]] = set()
        own = nodes.node if nodes is not None else ""
        self._intent = _Intent(has_channels=False, begun_ms=clock.now_ms(), node=own)
        self._note: bytes | None = None  # the stored intent, as this call knows it

    async def run(self, *, channels: bool | None) -> Receipt:
        """Remove the person's messages and commands; with `channels` also their channels. Returns the receipt.

        An earlier call that did not end goes on, with its channels if it had them; None asks for no more than that. If
        nothing is left to remove, the receipt of the last call is returned. Raises Held before anything is removed,
        Busy if another node removes the person, and StoreUnavailable.
        """
        holds = LegalHolds(self._store)
        await holds.load()  # it also mends damaged notes, so each step finds the hold
        for one in holds.all():
            await self._check_hold(one.channel)
        await self._take(has_channels=bool(channels))
        await self._repeat_step()
        after = None
        while names := await self._store.channels(after=after, limit=PAGE):
            for name in names:
                try:
                    await self._forget_in(name)
                except StoreUnusable:  # its row is damaged
                    self._unreadable.add((name, ""))
            after = names[-1]
        return await self._end()

    # -- finding ---------------------------------------------------------------------------------------------------

    def _is_own(self, thing: MessageState | CommandState) -> bool:
        """Return whether the person wrote a message, sent a command or replied to it, also as one of their agents."""
        if isinstance(thing, MessageState):
            return is_own_name(thing.author, self._client_id)
        by_reply = thing.reply.by if thing.reply is not None else None
        return is_own_name(thing.by, self._client_id) or is_own_name(by_reply, self._client_id)

    async def _read(self, channel: str, ids: Sequence[str]) -> tuple[Head, list[MessageState | CommandState]]:
        """Return the head of `channel`, and those of its messages and commands `ids` that can be read."""
        head, found = await self._store.messages(channel, ids)
        things = []
        for one in (found[message_id] for message_id in ids if message_id in found):
            thing = _thing(one)
            if thing is not None:
                things.append(thing)
            else:
                self._unreadable.add((channel, one.id))
        return head, things

    async def _walk(
        self, channel: str, after: int = 0
    ) -> AsyncGenerator[tuple[Head, list[str], list[MessageState | CommandState]], None]:
        """Yield the head, some ids, and those of their messages and commands that can be read; all ids in turn.

        They are those that have changed after a serial.
        """
        is_over = False
        while not is_over:
            head, facts = await self._store.facts(channel, after=after, limit=READ_FACTS)
            for step in steps(facts):
                ids = [one.id for one in step]
                yield head, ids, (await self._read(channel, ids))[1]
            is_over = len(facts) < READ_FACTS
            after = facts[-1].version if facts else after
            await asyncio.sleep(self._pause_s)

    async def _scan(self, channel: str) -> _Scan:
        """Read all messages and commands of `channel`."""
        found = _Scan((await head_of(self._store, channel))._replace(serial=0))
        await self._scan_on(channel, found)
        return found

    async def _scan_on(self, channel: str, found: _Scan) -> None:
        """Add to `found` the messages and commands that have changed since."""
        reached = found.head.serial
        async for head, step, things in self._walk(channel, reached):
            new = [one for one in step if one not in found.ids]
            found.tally = found.tally.plus(channel, new)
            found.ids.update(new)
            found.streaming.update(one.id for one in things if isinstance(one, MessageState) and one.is_streaming)
            own = [one for one in things if self._is_own(one)]
            found.has_own |= bool(own)
            found.has_others |= len(things) < len(step) or any(_is_of_person(one) for one in things if one not in own)
            reached = head.serial
        found.head = found.head._replace(serial=reached)

    async def _check_hold(self, channel: str) -> None:
        if (await self._scan(channel)).has_own:
            raise _held(channel)

    # -- removing --------------------------------------------------------------------------------------------------

    async def _forget_in(self, channel: str) -> None:
        """Remove the person's messages and commands from one channel, or the channel if it is theirs."""
        for _ in range(MAX_CONFLICTS if self._intent.has_channels else 0):
            found = await self._scan(channel)  # while requests are served
            if not found.is_theirs:
                break
            if await self._rewrite(channel, partial(self._remove_channel, channel, found)):
                return
        async for head, _, things in self._walk(channel):
            ids = [one.id for one in things if self._is_own(one)]
            if ids:
                await self._begin(_Step(channel, head.epoch, ids, self._intent.done.plus(channel, ids)))
                await self._rewrite(channel, partial(self._remove, channel, ids))
                self._step_ended()

    async def _remove_channel(self, channel: str, found: _Scan) -> bool:
        """Empty `channel`, which was `found` so. Return False if it is another one, or not the person's any more.

        Only what changed since is read, because requests for the channel wait meanwhile.
        """
        for _ in range(MAX_CONFLICTS):
            await self._check_free(channel)
            head = await head_of(self._store, channel)
            if head.epoch != found.head.epoch:
                return False
            await self._scan_on(channel, found)
            if not found.is_theirs:
                return False
            await self._begin(_Step(channel, head.epoch, None, self._intent.done.plus_channel(found.tally)))
            until_ms = self._clock.now_ms() + GONE_MS
            result = await self._store.delete_channel(
                channel, expected=head, used_up=sorted(found.streaming), until_ms=until_ms
            )
            if isinstance(result, Head):
                self._step_ended()
                return True
        raise outpaced(channel, MAX_CONFLICTS)

    async def _remove(self, channel: str, ids: Sequence[str]) -> bool:
        """Delete the person's messages and end their commands, then remove both with their ids.

        Open commands about these messages get a reply. A second call continues after a crash.
        """
        for _ in range(MAX_CONFLICTS):
            await self._check_free(channel)
            head, found = await self._read(channel, ids)
            own = [one for one in found if self._is_own(one)]
            if not own:
                return True
            gone = {one.id for one in own}
            opened = [_thing(one) for one in await self._store.open_documents(channel)]
            about = [one for one in opened if isinstance(one, CommandState) and one.target in gone]
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
            await self._store.prune(channel, epoch=head.epoch, versions=versions)
            return True
        raise outpaced(channel, MAX_CONFLICTS)

    async def _check_free(self, channel: str) -> None:
        if await is_held_in(self._store, channel):
            raise _held(channel)

    # -- the intent and the receipt --------------------------------------------------------------------------------

    async def let_go(self) -> None:
        """Let other nodes go on with the removal, which was cut off. Raises StoreUnavailable."""
        found = await self._noted()
        if found is not None and found.node == self._intent.node:
            await self._keep(replace(found, node=""))

    async def _take(self, *, has_channels: bool) -> None:
        """Note the intent in the name of this node, with the counts of an earlier call that did not end."""
        own = self._intent.node
        found = await self._noted()
        other = found.node if found is not None and found.node != own else ""
        if other and self._nodes is not None and not self._nodes.is_gone(other):
            raise Busy(f"removal of client {self._client_id!r} runs in another process of the store; retry later")
        before = found if found is not None else self._intent
        await self._keep(replace(before, has_channels=before.has_channels or has_channels, node=own))

    async def _noted(self) -> _Intent | None:
        """Read the stored intent."""
        self._note = (await self._store.notes(NOTE + self._client_id)).get(NOTE + self._client_id)
        return _decoded(self._note, _Intent) if self._note is not None else None

    async def _keep(self, intent: _Intent) -> None:
        await self._replace_note(msgspec.json.encode(intent), {})
        self._intent = intent

    async def _replace_note(self, note: bytes | None, others: Mapping[str, bytes]) -> None:
        """Store the intent and `others`. Raises Busy if another process took the removal since it was read."""
        name = NOTE + self._client_id
        if not await self._store.note({name: note, **others}, expected={name: self._note}):
            raise Busy(f"removal of client {self._client_id!r} was taken by another process of the store; retry later")
        self._note = note

    async def _begin(self, step: _Step) -> None:
        await self._keep(replace(self._intent, step=step))

    def _step_ended(self) -> None:
        """Count the running step. The note about it is replaced with the next one."""
        step = self._intent.step
        if step is not None:
            self._intent = replace(self._intent, done=step.after, step=None)

    async def _repeat_step(self) -> None:
        """End the step that a process had begun when it died."""
        step = self._intent.step
        if step is None:
            return
        if step.ids is not None:
            await self._rewrite(step.channel, partial(self._remove, step.channel, step.ids))
        elif kept_serial(step.epoch, (await head_of(self._store, step.channel)).epoch) >= 0:
            self._intent = replace(self._intent, step=None)  # nothing of the channel went: it is counted again
        self._step_ended()

    async def _end(self) -> Receipt:
        done = self._intent.done
        person = hashlib.sha256(self._client_id.encode()).hexdigest()
        clean_ms = await self._wait_until_clean()
        earlier = (await self._store.notes(RECEIPT + person)).get(RECEIPT + person)
        if earlier is not None and done == Tally():
            receipt = _decoded(earlier, Receipt)
            if receipt.clean_ms is None:
                receipt = replace(receipt, clean_ms=clean_ms)
        else:
            receipt = Receipt(
                client_sha256=person,
                begun_ms=self._intent.begun_ms,
                ended_ms=self._clock.now_ms(),
                messages=done.messages,
                commands=done.commands,
                channels=done.channels,
                unreadable=len(self._unreadable),
                ids_sum=done.ids_sum,
                clean_ms=clean_ms,
                older_backups=[],
            )
        if isinstance(self._store, SqliteStore):
            known = await self._store.backups()
            older = [str(one.path) for one in known if receipt.clean_ms is None or one.made_ms <= receipt.clean_ms]
            receipt = replace(receipt, older_backups=older)
        await self._replace_note(None, {RECEIPT + person: msgspec.json.encode(receipt)})
        return receipt

    async def _wait_until_clean(self) -> int | None:
        """Return when the store's files were without removed text; None if it cannot know, or after three minutes."""
        if self._tidies:  # no server keeps the ages of entries, so the next call sees all of them as old
            await self._store.tidy(self._clock.now_ms() - OLD_MS)
        for _ in range(WIPE_TRIES):
            if self._tidies:
                for channel, message_id in await self._store.tidy(self._clock.now_ms()):
                    await _write_document(self._store, channel, message_id)
            is_clean = await self._store.wipe()
            if is_clean is not False:
                return self._clock.now_ms() if is_clean else None
            await asyncio.sleep(WIPE_PAUSE_S)
        return None


def _decoded(note: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(note, type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise StoreUnusable(f"note about a removal is damaged ({error}); restore a backup") from None


def _thing(stored: Stored) -> MessageState | CommandState | None:
    """Return a message or a command; None if it is damaged."""
    try:
        thing = restore_command(stored) if stored.id.startswith(COMMAND_MARK) else restore(stored)
    except StoreUnusable:
        return None
    return None if thing.is_damaged else thing


def _is_of_person(thing: MessageState | CommandState) -> bool:
    """Return whether a person may have written it: a message of a user, or a command of a client."""
    return thing.role == "user" if isinstance(thing, MessageState) else thing.by is not None


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


def _held(channel: str) -> Held:
    return Held(f"channel {channel!r} is held and has messages of the person; release it first, and repeat the call")


async def _write_document(store: Store, channel: str, message_id: str) -> None:
    """Store the document that `Store.tidy` wants, if the message is readable and did not change meanwhile."""
    head, found = await store.messages(channel, [message_id])
    thing = _thing(found[message_id]) if message_id in found else None
    if thing is not None and head.serial:
        write = Write(
            channel=channel, epoch=head.epoch, expected=head.serial, documents=[document(thing)], floor=head.floor
        )
        await store.commit([write])
