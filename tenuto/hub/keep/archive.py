"""The channels of a hub as records: lists, exports, imports, and the removal of a person.

Layer: hub.

`Hub.archive` is an `Archive`. Its calls work on the store; an import loads its channel into memory. The conversations
of a caller, which `POST /v1/visitor` and `Access.conversations` show, are a list with titles.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from tenuto.core.document import restore
from tenuto.core.errors import Busy, InvalidRequest, LocalError, StoreUnusable
from tenuto.core.model import ChannelSummary
from tenuto.core.names import check_channel, check_id, check_prefix
from tenuto.hub.access.identity import Identity
from tenuto.hub.keep.exports import NOTE, Import, Imported, check_file, export_lines, mend_import, undo_stopped
from tenuto.hub.keep.forgetting import Forgetting, Forgotten
from tenuto.hub.keep.policies import narrowed
from tenuto.hub.lifecycle import Lifecycle
from tenuto.stores.base import Store
from tenuto.stores.sqlite import verify as sqlite_verify
from tenuto.stores.sqlite.store import SqliteStore

MAX_REMOVALS = 8  # removals of persons at once: one of them runs, and the others wait
MAX_LISTED = 500  # channels on a page
DEFAULT_LISTED = 100
_STEP = 200  # patterns in one call of the store
LINE_BYTES = 1024 * 1024  # of a check: far above the longest line


class ChannelPage(Struct, frozen=True, kw_only=True):
    """Channels in the order of their names. `more`: others follow; continue after the last name."""

    channels: list[ChannelSummary]
    more: bool


class Archive:
    """The records of a hub: `hub.archive`."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._store = lifecycle.store
        self._clock = lifecycle.clock
        lifecycle.on_start(self._begin)

    async def channels(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int = DEFAULT_LISTED,
        patterns: Iterable[str] = ("*",),
    ) -> ChannelPage:
        """Return at most `limit` (500) channels with messages or commands, in order of their names.

        Their names begin with `prefix`, come after the name `after`, and match one of `patterns`. A channel into which
        an import runs is left out. Raises InvalidName, InvalidRequest, StoreUnavailable.
        """
        check_prefix(prefix)
        if after is not None:
            check_channel(after)
        if not isinstance(limit, int) or not 1 <= limit <= MAX_LISTED:
            raise InvalidRequest(f"limit must be a whole number from 1 to {MAX_LISTED}, got {limit!r}")
        await self._lifecycle.start()
        importing = {name.removeprefix(NOTE) for name in await self._store.notes(NOTE)}
        found: list[ChannelSummary] = []
        wanted = narrowed(prefix, after or "", patterns)
        for start in range(0, len(wanted), _STEP):
            listed = await self._store.summaries(
                wanted[start : start + _STEP], after=after, limit=limit + 1 - len(found) + len(importing)
            )
            found += [one for one in listed if one.channel not in importing]
            if len(found) > limit:
                break
        return ChannelPage(channels=found[:limit], more=len(found) > limit)

    async def export(self, channel: str) -> AsyncGenerator[bytes]:
        """Yield the lines of an export of `channel`: its messages and commands as JSON, each with its line end.

        Raises InvalidName, NotFound for a channel without messages, Busy if it is deleted meanwhile
        or has a part of an import, Damaged before the last line if messages are missing, StoreUnavailable.
        """
        check_channel(channel)
        await self._lifecycle.start()
        async for line in export_lines(self._store, channel):
            yield line

    async def import_file(
        self, path: str | os.PathLike[str], *, channel: str | None = None, damaged: bool = False
    ) -> Imported:
        """Write the messages of an export file into an empty channel, by default that of its header; all or none.

        No turn starts. A file with damaged messages is refused unless `damaged`. Raises IdConflict if the channel is
        not empty, and for a wrong file InvalidRequest or another error that names the line, before the channel is
        changed. Raises StoreFull.
        """
        if channel is not None:
            check_channel(channel)
        await self._lifecycle.start()
        check_space = self._lifecycle.runtime.capacity.check
        check_space()
        checked = await check_file(Path(path), self._lifecycle.limits, self._clock.now_ms(), damaged=damaged)
        name = channel or checked.channel
        live = self._lifecycle.runtime.channel(name)
        filling = Import(self._store, name, checked, self._clock, check_space)
        return await live.rewrite(filling.run, partial(mend_import, self._store, name))

    async def forget(self, client_id: str, *, channels: bool = False) -> Forgotten:
        """Remove all messages and commands of a person, and return what was removed.

        With `channels`, channels in which no other person wrote go as a whole, with the answers. If the call is cut
        off, repeat it: it removes what is left. Raises InvalidName, StoreUnavailable, and Busy while eight calls run
        or wait.
        """
        check_id(client_id, "a client id")
        await self._lifecycle.start()
        if self._removals.locked():
            raise Busy(f"{MAX_REMOVALS} removals of persons run or wait, the most at once; repeat it when one ends")
        async with self._removals, self._forgetting:
            running = Forgetting(self._store, client_id, self._clock, self._rewrite)
            return await running.run(channels=channels)

    async def verify(self) -> AsyncGenerator[str]:
        """Yield one line for each damaged part of the store's file, in a process of its own.

        Raises Busy while another check runs, and InvalidRequest for a store without a file of its own.
        """
        await self._lifecycle.start()
        if not isinstance(self._store, SqliteStore):
            raise InvalidRequest(f"store {self._store.name!r} cannot be verified; a check needs a store in a file")
        if self._verifying.locked():
            raise Busy("the store is being verified already; wait until that has ended")
        async with self._verifying, contextlib.aclosing(_damage_in(self._store.path)) as lines:
            async for line in lines:
                yield line.replace(str(self._store.path), self._store.path.name)

    async def _rewrite(self, channel: str, write: Callable[[], Awaitable[bool]]) -> bool:
        return await self._lifecycle.runtime.channel(channel).rewrite(write)

    def _begin(self) -> None:
        """Prepare for a run of the hub, which may use another event loop than the one before."""
        self._verifying, self._forgetting = asyncio.Lock(), asyncio.Lock()
        self._removals = asyncio.Semaphore(MAX_REMOVALS)
        if not self._store.is_exclusive:
            self._lifecycle.runtime.tasks.start_background(undo_stopped(self._store))


async def _damage_in(path: Path) -> AsyncGenerator[str]:
    """Yield one line for each damaged part of the store in `path`. Raises StoreUnusable, LocalError.

    The check reads the whole file and computes each checksum, which in this process would delay every commit. Its
    process ends with this generator. The errors name the file without its folder: peers see them.
    """
    folders = os.pathsep.join(one for one in sys.path if one)  # the same modules as in this process
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", sqlite_verify.__name__, str(path)),
            env={**os.environ, "PYTHONPATH": folders},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
    except OSError as error:
        raise LocalError(
            f"process that verifies {path.name} cannot be started ({error.strerror}); run tenuto verify"
        ) from None
    try:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            damage = msgspec.json.decode(line, type=str | None)
            if damage is None:
                return
            yield damage
        raise StoreUnusable(f"process that verifies {path.name} ended with status {await process.wait()}; see the log")
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()  # also reads what is left, because a full pipe would never close


MAX_CONVERSATIONS = 50  # on a list
MAX_PAGES = 4  # pages of channels that are read; a caller with more channels gets the newest of these
TITLE_CHARACTERS = 60
_TITLE_MESSAGES, _TITLE_BYTES = 4, 16 * 1024  # the beginning of a chat, in which its first question is looked for


class Conversation(Struct, frozen=True, kw_only=True):
    """A channel in a list of conversations. The title is the first words of its first question with text; or empty.

    `is_running`: its newest message is a question that waits or is answered, or an answer that streams.
    """

    channel: str
    title: str
    updated_ms: int
    is_running: bool


async def read_conversations(
    store: Store, identity: Identity, within: Sequence[str], *, limit: int = MAX_CONVERSATIONS
) -> list[Conversation]:
    """Return the conversations that `identity` may read, newest first, in the channels `within` (`Store.summaries`)."""
    found: list[ChannelSummary] = []
    for _ in range(MAX_PAGES if within else 0):
        page = await store.summaries(within, after=found[-1].channel if found else None, limit=MAX_LISTED)
        found += page
        if len(page) < MAX_LISTED:
            break
    readable = [one for one in found if identity.has("history", one.channel)]
    newest = sorted(readable, key=lambda one: (one.updated_ms, one.channel), reverse=True)[:limit]
    return [
        Conversation(
            channel=one.channel,
            title=await _title(store, one.channel),
            updated_ms=one.updated_ms,
            is_running=await _is_running(store, one.channel),
        )
        for one in newest
    ]


async def _title(store: Store, channel: str) -> str:
    """Return the first words of the first question with text, `TITLE_CHARACTERS` at most; empty without one."""
    page = await store.page(channel, before=None, after=0, limit=_TITLE_MESSAGES, limit_bytes=_TITLE_BYTES)
    for message in (restore(stored).message() for stored in page.messages):
        texts = [str(part["text"]) for part in message.parts if message.role == "user" and part.get("type") == "text"]
        if text := " ".join(" ".join(texts)[: 8 * TITLE_CHARACTERS].split()):
            if len(text) <= TITLE_CHARACTERS:
                return text
            words, _, _ = text[:TITLE_CHARACTERS].rpartition(" ")
            return f"{words or text[: TITLE_CHARACTERS - 1]}…"
    return ""


async def _is_running(store: Store, channel: str) -> bool:
    """Return whether the newest message of a chat streams, waits for an agent or is answered."""
    page = await store.page(channel, before=None, limit=1, limit_bytes=1)
    return any(one.is_streaming or one.is_open for one in map(restore, page.messages))
