"""The running hub against a model: the log that the store really took, folded by the core, is the truth.

Layer: tests.

Hubs, committers, feeds and views are the real ones; the clock is virtual (it jumps to the next
timer, and a loop where everybody waits for ever is a failure), and one seed draws everything: who writes what, when
the store is slow, refuses, or leaves open whether it stored, when memory is freed, a hub dies, a connection is cut.
After every complete batch a viewer must show exactly what the log says at its cursor, without a hole. A failure names
its seed: `HUB_SEEDS=17 pytest tests/hub/test_hub_model.py`.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from holdfast.core.cursor import parse_cursor
from holdfast.core.document import restored
from holdfast.core.errors import (
    AlreadyAnswered,
    Busy,
    Deleted,
    Draining,
    Fenced,
    Finished,
    HoldfastError,
    IdConflict,
    InvalidName,
    InvalidText,
    LocalError,
    NotFound,
    StoreUnavailable,
    VersionConflict,
)
from holdfast.core.events import Batch, ChannelAttached, MessageUpdate
from holdfast.core.limits import Limits
from holdfast.core.model import Command, Message, Part
from holdfast.core.names import command_key
from holdfast.core.ops import Writer
from holdfast.core.requests import (
    AppendText,
    Caller,
    ClaimTurn,
    CreateMessage,
    EndTurn,
    FinishMessage,
    PutPart,
    RenewLease,
    ReplyCommand,
    Request,
    SendCommand,
    TakeOver,
    UpdateMessage,
)
from holdfast.core.state import ChannelState, CommandState, MessageState, apply_entry
from holdfast.core.view import View
from holdfast.hub import HubCore, MessageWriter
from holdfast.hub.batches import Behind, EncodedBatch
from holdfast.hub.clock import Clock
from holdfast.hub.feed import Feed
from holdfast.hub.pending import DocumentDue
from holdfast.hub.results import Result
from holdfast.hub.workers import AssignedTurn, WhenBusy
from holdfast.stores.base import Committed, CommitUnknown, Conflict, Write
from holdfast.stores.memory import MemoryStore

SEEDS = [int(seed) for seed in os.environ.get("HUB_SEEDS", "").split()] or list(range(8))
CHATS = ("chat:1", "chat:2")
SHORT_LIVED = "short"  # a channel that is deleted now and then
EMPTY = "-:0"
LONG_S = 3_600.0  # a lease that outlasts a store that says nothing for a minute
COME_BACK = (StoreUnavailable, Busy, Draining, LocalError)  # the same request may be sent again


# -- virtual time ----------------------------------------------------------------------------------------------


class _Jumping(selectors.SelectSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        assert timeout is not None, "everybody waits for ever"
        self.loop.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer as soon as nothing else is to be done."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        selector = _Jumping()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s


class SeededClock(Clock):
    """Wall time from the loop, ids from the seed."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng

    def now_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1_000)

    def random_bits(self, bits: int) -> int:
        return self._rng.getrandbits(bits)


# -- the truth -------------------------------------------------------------------------------------------------


class Life:
    """One epoch of a channel: what it showed at each serial."""

    def __init__(self) -> None:
        self.state = ChannelState("truth")
        self.at: list[dict[str, Message]] = [{}]  # by serial
        self.pending: list[dict[str, Command]] = [{}]  # by serial

    def take(self, write: Write) -> None:
        for entry in write.entries:
            apply_entry(self.state, entry)
            known = self.state.messages.get(entry.op.id)
            shown = {**self.at[-1]}
            if known is not None:
                shown.pop(entry.op.id, None)
                if not known.deleted:
                    shown[entry.op.id] = known.message()
            self.at.append(shown)
            self.pending.append({one.id[1:]: one.command() for one in self.state.pending_commands()})


class FaultModel(MemoryStore):
    """A store in memory that is slow, refuses and leaves things open, and remembers what it really took."""

    def __init__(self, rng: Random, *, is_exclusive: bool) -> None:
        super().__init__()
        self.is_exclusive = is_exclusive
        self.rng = rng
        self.is_fair = False  # nothing fails any more
        self.lives: dict[tuple[str, str], Life] = {}
        self.late: list[asyncio.Task[object]] = []

    def truth(self, channel: str, cursor: str, *, or_at: int = 0) -> dict[str, Message]:
        """What `channel` shows at `cursor`, or at serial `or_at` if that is later."""
        epoch, serial = cursor.split(":")
        return self.lives[channel, epoch].at[max(int(serial), or_at)] if epoch != "-" else {}

    def pending(self, channel: str, cursor: str) -> dict[str, Command]:
        """The commands that wait at `cursor`."""
        epoch, serial = cursor.split(":")
        return self.lives[channel, epoch].pending[int(serial)] if epoch != "-" else {}

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        await self._linger()
        luck = 1.0 if self.is_fair else self.rng.random()
        if luck < 0.06:
            raise StoreUnavailable("not today")
        if luck < 0.10:
            raise CommitUnknown("not stored, but who knows")
        if luck < 0.15:
            await self._store(writes)
            raise CommitUnknown("stored, but who knows")
        if luck < 0.16 and not self.is_exclusive:
            # Stored after everybody has given up on it. (A store of one process answers later questions after that.)
            self.late.append(asyncio.ensure_future(self._store_late(writes, self.rng.uniform(25, 40))))
            await asyncio.sleep(60)
        answers = await self._store(writes)
        await self._linger()
        return answers

    async def _store_late(self, writes: Sequence[Write], delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._store(writes)

    async def _store(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        answers = await super().commit(writes)
        for write, answer in zip(writes, answers, strict=True):
            if isinstance(answer, Committed) and write.entries:
                self.lives.setdefault((write.channel, write.epoch), Life()).take(write)
        return answers

    async def _linger(self) -> None:
        if self.rng.random() < 0.3:
            await asyncio.sleep(self.rng.uniform(0, 0.02))
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)

    async def _read(self, question: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
        await self._linger()
        if not self.is_fair and self.rng.random() < 0.04:
            raise StoreUnavailable("no reading now")
        found = await question(*args, **kwargs)
        await self._linger()
        return found

    async def head(self, *args: Any) -> Any:
        return await self._read(super().head, *args)

    async def changes(self, *args: Any, **kwargs: Any) -> Any:
        return await self._read(super().changes, *args, **kwargs)

    async def messages(self, *args: Any) -> Any:
        return await self._read(super().messages, *args)

    async def page(self, *args: Any, **kwargs: Any) -> Any:
        return await self._read(super().page, *args, **kwargs)

    async def open_channels(self, *args: Any) -> Any:
        return await self._read(super().open_channels, *args)

    async def open_documents(self, *args: Any) -> Any:
        return await self._read(super().open_documents, *args)


# -- the world -------------------------------------------------------------------------------------------------


class Mortal(HubCore):
    """A hub that can die, and then stays dead, whoever still knows it."""

    is_dead = False

    async def start(self) -> None:
        if self.is_dead:
            raise Draining("this process is gone")
        await super().start()

    async def die(self) -> None:
        """As by `kill -9`: nothing is put away."""
        self.is_dead = True
        assert self._runtime is not None
        assert self._runtime.main is not None
        if self._runtime.scheduler is not None:
            self._runtime.scheduler.close()  # the dead offer nothing
        self._runtime.main.cancel()
        await asyncio.wait([self._runtime.main])


class Helper:
    """An agent without a model: it takes turns, is at work for a while, and says that it is done."""

    pattern = "chat:*"
    when_busy: WhenBusy = "parallel"

    def __init__(self, world: World, hub: HubCore, name: str, *, is_local: bool) -> None:
        self.name = name
        self.is_local = is_local
        self.free = 3
        self._world = world
        self._hub = hub

    def begin(self, turn: AssignedTurn) -> None:
        attempts = self._world.attempts.setdefault((turn.channel, turn.message_id), [0])
        assert turn.generation > attempts[-1], "two at work on one message"
        attempts.append(turn.generation)
        self._world.at_work.add(asyncio.create_task(self._work(turn)))

    def ended(self, turn: AssignedTurn, state: str) -> None:
        """It hears of that when it says that it is done."""

    async def _work(self, turn: AssignedTurn) -> None:
        await self._world.pause(2.0)
        answer: Result | HoldfastError = Busy()
        try:
            while isinstance(answer, COME_BACK):
                answered = asyncio.get_running_loop().create_future()
                self._hub.scheduler.end(self, turn, "done", _into(answered))
                answer = await answered
                await asyncio.sleep(0.1)
            assert isinstance(answer, Result | Fenced | Deleted | Finished)
            self._hub.scheduler.freed(self)
        except (LocalError, Draining):
            assert self._hub not in self._world.hubs or self._world.is_over, "its hub lives"


class World:
    """Hubs on one store, and everybody who uses them."""

    def __init__(self, seed: int, *, hubs: int) -> None:
        self.rng = Random(seed)
        self.store = FaultModel(self.rng, is_exclusive=hubs == 1)
        self.limits = Limits(
            channel_bytes=3_000, channel_idle_s=0.5, catch_up_messages=6, history_bytes=400, default_history=5
        )
        self.hubs = [self.new_hub() for _ in range(hubs)]
        self.is_over = False
        self.batches = self.deaths = 0
        self.written: dict[tuple[str, str], list[Part]] = {}  # what must stand in the end
        self.attempts: dict[tuple[str, str], list[int]] = {}  # that began, by message
        self.at_work: set[asyncio.Task[None]] = set()
        self.answered: dict[tuple[str, str], object] = {}  # the answers that commands must have in the end

    def new_hub(self) -> Mortal:
        clock = SeededClock(self.rng)
        return Mortal(self.store, limits=self.limits, clock=clock, drain_s=0.1, hooks_signals=False)

    def hub(self) -> HubCore:
        return self.rng.choice(self.hubs)

    def hub_of(self, caller: Caller) -> HubCore:
        """Writers stay with one hub: a *no* rests on what that hub has read."""
        assert caller.id is not None
        return self.hubs[sum(caller.id.encode()) % len(self.hubs)]

    async def pause(self, most_s: float = 0.1) -> None:
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.uniform(0, most_s))

    async def ask(self, channel: str, message_id: str, request: Request, caller: Caller) -> Result:
        """Ask the hub of this caller, again and again while the answer may still come."""
        while True:
            try:
                answer = await self.hub_of(caller).ask(channel, message_id, request, caller)
            except COME_BACK:
                await asyncio.sleep(self.rng.uniform(0.01, 0.5))
                continue
            self.check_durable(channel, message_id, answer)
            return answer

    def check_durable(self, channel: str, message_id: str, answer: Result) -> None:
        """Whatever was answered is in the log already."""
        epoch, serial = answer.cursor.split(":")
        life = self.store.lives[channel, epoch]
        assert answer.serial <= int(serial) <= life.state.serial
        shown = life.at[int(serial)].get(message_id)
        if answer.message is not None:
            assert shown == answer.message
        if answer.part is not None and answer.length and shown is not None and answer.part < len(shown.parts):
            part = shown.parts[answer.part]
            assert len(part.get("text", part.get("input", ""))) >= answer.length

    def words(self) -> str:
        letters = "".join(self.rng.choice('ab é中🙂\n"') for _ in range(self.rng.randrange(1, 8)))
        return letters * self.rng.choice((1, 1, 1, 10))

    def part(self, number: int) -> Part:
        if self.rng.random() < 0.5:
            return {"type": "text", "text": f"part {number} "}
        return {"type": "data", "name": "n", "data": number}

    # -- who writes --------------------------------------------------------------------------------------------

    async def careful_writer(self, channel: str, message_id: str) -> None:
        """Sends `at`, comes back after errors, and repeats itself."""
        caller = Caller(id=message_id)
        texts = ["", ""]
        parts = [{"type": "text", "text": ""}, {"type": "reasoning", "text": ""}]
        await self.ask(channel, message_id, CreateMessage(status="streaming", parts=parts, lease_s=LONG_S), caller)
        for number in range(self.rng.randrange(5, 25)):
            index = self.rng.randrange(2)
            at = self.rng.randrange(len(texts[index]) + 1) if self.rng.random() < 0.2 else len(texts[index])
            texts[index] += self.words()
            append = AppendText(text=texts[index][at:], at=at, part=index)
            answer = await self.ask(channel, message_id, append, caller)
            assert answer.length == len(texts[index])
            if self.rng.random() < 0.2:
                bar = {"type": "data", "name": "bar", "data": number}
                await self.ask(channel, message_id, PutPart(index=2, part=bar, request=f"bar{number}"), caller)
            await self.pause()
        await self.ask(channel, message_id, FinishMessage(request="end"), caller)
        self.written[channel, message_id] = [{**part, "text": text} for part, text in zip(parts, texts, strict=True)]

    async def blind_writer(self, channel: str, message_id: str) -> None:
        """Sends without `at` and without waiting for answers: what is granted stands there once, in order."""
        caller = Caller(id=message_id)
        await self.ask(channel, message_id, CreateMessage(status="streaming", lease_s=LONG_S), caller)
        hub, granted, sent = self.hub_of(caller), list[int](), 0
        loop = asyncio.get_running_loop()
        for _ in range(self.rng.randrange(2, 8)):
            answers = []
            for _ in range(self.rng.randrange(1, 5)):
                answers.append((sent, loop.create_future()))
                try:
                    hub.submit(channel, message_id, AppendText(text=f"<{sent}>"), caller, _into(answers[-1][1]))
                    if self.rng.random() < 0.3:  # something in between that the store must be asked for
                        other = f"{message_id}.{sent}"
                        hub.submit(channel, other, CreateMessage(text="x"), caller, lambda _: None)
                except (LocalError, Busy, Draining):
                    answers.pop()
                sent += 1
            for number, answer in answers:
                if not isinstance(await answer, HoldfastError):
                    granted.append(number)
            await self.pause()
        await self.ask(channel, message_id, FinishMessage(), caller)
        text = (await self.read(channel, message_id)).text
        tokens = [int(token) for token in text.removeprefix("<").removesuffix(">").split("><") if token]
        assert text == "".join(f"<{number}>" for number in tokens)
        assert tokens == sorted(set(tokens)), "doubled, or out of order"
        assert set(granted) <= set(tokens), "granted, and lost"

    async def local_writer(self, channel: str, message_id: str) -> None:
        """`async with hub.message(…)`: all that was accepted stands there in the end."""
        expected: list[Part] = []
        hub, begun = self.hub(), False
        try:
            async with hub.message(channel, id=message_id) as message:
                begun = True
                for number in range(self.rng.randrange(5, 40)):
                    match self.rng.choices(("append", "open", "replace", "meta", "flush"), (14, 3, 2, 1, 1))[0]:
                        case "append":
                            text = self.words()
                            if not any(part["type"] == "text" for part in expected):
                                expected.append({"type": "text", "text": ""})
                            last = max(index for index, part in enumerate(expected) if part["type"] == "text")
                            expected[last]["text"] += text
                            await message.append(text)
                        case "open":
                            expected.append(self.part(number))
                            await message.part({**expected[-1]})
                        case "replace" if expected:
                            index = self.rng.randrange(len(expected))
                            expected[index] = self.part(number)
                            await message.part({**expected[index]}, index=index)
                        case "meta":
                            await message.update(meta={"number": number})
                        case _:
                            await message.flush()
                    await self.pause()
        except (Draining, LocalError):
            assert not begun or hub not in self.hubs, "its hub lives"
        except StoreUnavailable:
            pass  # the store said nothing for longer than a writer bears
        else:
            self.written[channel, message_id] = expected

    async def editor(self, channel: str, name: str) -> None:
        """Whole messages: created, edited with and without a version, deleted, read."""
        caller = Caller(id=name)
        texts: dict[str, str] = {}
        for number in range(self.rng.randrange(10, 30)):
            try:
                if len(texts) < 3 or self.rng.random() < 0.4:
                    message_id, text = f"{name}.{number}", self.words() * self.rng.choice((1, 1, 8))
                    await self.ask(channel, message_id, CreateMessage(text=text, id=message_id), caller)
                    texts[message_id] = text
                    continue
                message_id = self.rng.choice(sorted(texts))
                if self.rng.random() < 0.3:
                    await self.hub_of(caller).delete(channel, message_id)
                    del texts[message_id]
                elif self.rng.random() < 0.5:
                    version = (await self.read(channel, message_id)).version
                    text = self.words()
                    answer = await self.ask(
                        channel,
                        message_id,
                        UpdateMessage(text=text, if_version=version, request=f"edit{number}"),
                        caller,
                    )
                    assert answer.message is None or answer.message.text == text
                    texts[message_id] = text
                else:
                    await self.ask(channel, message_id, UpdateMessage(meta={"n": number}), caller)
            except (StoreUnavailable, Busy, Draining, LocalError):
                texts.pop(message_id, None)  # perhaps deleted
            except (NotFound, Deleted, IdConflict, VersionConflict):
                assert channel == SHORT_LIVED, "nobody else touches it"
                texts.clear()
            await self.pause()
        if channel != SHORT_LIVED:
            self.written |= {
                (channel, message_id): [{"type": "text", "text": text}] for message_id, text in texts.items()
            }

    async def successor(self, channel: str, message_id: str) -> None:
        """Interrupts a message now and then and goes on with it, in the next generation."""
        caller, server = Caller(id=message_id), Caller(id=message_id, is_server=True)
        await self.ask(channel, message_id, CreateMessage(status="streaming", text="", lease_s=LONG_S), caller)
        text, generation = "", 1
        for _ in range(self.rng.randrange(3, 10)):
            if self.rng.random() < 0.4:
                end = FinishMessage(status="interrupted", generation=generation)
                await self.ask(channel, message_id, end, server)
                take = TakeOver(generation=generation, request=f"take{generation}", lease_s=LONG_S)
                answer = await self.ask(channel, message_id, take, caller)
                generation += 1
                assert (answer.generation, answer.lengths) == (generation, [len(text)])
            piece = self.words()
            append = AppendText(text=piece, at=len(text), generation=generation)
            await self.ask(channel, message_id, append, caller)
            text += piece
            await self.pause()
        await self.ask(channel, message_id, FinishMessage(status="failed", generation=generation), caller)
        self.written[channel, message_id] = [{"type": "text", "text": text}]

    async def commander(self, channel: str, name: str) -> None:
        """Asks, answers, stops what streams, and renews a lease; all of it may be said twice."""
        caller, other = Caller(id=name), Caller(id=f"{name}.other", is_admin=True)  # a stranger may not
        answer_id = f"{name}.answer"
        await self.ask(channel, answer_id, CreateMessage(status="streaming", text="so far", lease_s=LONG_S), caller)
        for number in range(self.rng.randrange(3, 10)):
            key = command_key(f"{name}.{number}")
            send = SendCommand(name="steer", target=self.rng.choice((None, answer_id)), data=number, expires_s=3_600)
            for _ in range(self.rng.choice((1, 1, 2))):
                answer = await self.ask(channel, key, send, caller)
                assert answer.command is not None
                assert answer.command.data == number
            await self.pause()
            if self.rng.random() < 0.3:
                await self.ask(channel, answer_id, RenewLease(lease_s=LONG_S - number), caller)
            if self.rng.random() < 0.8:
                reply = ReplyCommand(ok=bool(number % 2), data=number, request="reply")
                for _ in range(self.rng.choice((1, 1, 2))):
                    await self.ask(channel, key, reply, other)
                with pytest.raises(AlreadyAnswered):
                    await self.ask(channel, key, ReplyCommand(data="late"), other)
                self.answered[channel, key] = number
            await self.pause()
        stop = SendCommand(name="cancel", target=answer_id)
        await self.ask(channel, command_key(f"{name}.stop"), stop, caller)
        for _ in range(200):  # nobody answers: the server carries it out, when the store lets it
            if (await self.read(channel, answer_id)).status != "streaming":
                break
            await asyncio.sleep(0.5)
        with pytest.raises(Finished):
            await self.ask(channel, answer_id, AppendText(text="!", at=6), caller)
        assert (await self.read(channel, answer_id)).status == "cancelled"
        self.written[channel, answer_id] = [{"type": "text", "text": "so far"}]

    async def read(self, channel: str, message_id: str) -> Message:
        """The message, of the store as it is now."""
        while True:
            hub = self.hub()
            try:
                await hub.start()
                await hub.channel(channel).refresh()
                return (await hub.read(channel, message_id))[0]
            except COME_BACK:
                await asyncio.sleep(0.05)

    # -- who watches -------------------------------------------------------------------------------------------

    async def viewer(self, channel: str) -> None:
        """Follows a channel over connections that end in every way, and is strict about what it shows."""
        view, paged = View(), EMPTY
        while True:
            hub = self.hub()
            try:
                await hub.start()
                if len(self.hubs) > 1:
                    await hub.channel(channel).refresh()  # the cursor may be another hub's, of later
                async with _connection(hub, channel, view.cursor, self.rng) as batches:
                    async for batch in batches:
                        if self.rng.random() < 0.1 and not self.is_over:
                            for event in batch.events[: self.rng.randrange(len(batch.events) + 1)]:
                                view.receive(Batch(events=[event]))
                            break
                        view.receive(batch)
                        self.check(channel, view, batch, paged)
                        if self.rng.random() < 0.15:
                            paged = await self.page(hub, channel, view) or paged
                            self.check(channel, view, Batch(events=[]), paged)
                        if self.is_over and await self.is_last(channel, view):
                            return
                        if self.rng.random() < 0.1:
                            break
                        await self.pause(self.rng.choice((0.01, 0.3, 3.0)))
            except COME_BACK:
                pass
            view.cut()
            await self.pause(1.0)

    async def page(self, hub: HubCore, channel: str, view: View) -> str:
        """Read on into the past; the cursor of the page that was taken in."""
        page = await hub.history(channel, before=view.before, limit=self.rng.randrange(1, 4))
        if epoch_of(view.cursor) != epoch_of(page.cursor):
            return ""  # what was asked in one life is not shown in another
        before = view.before
        if not view.receive_page(page):
            assert view.before == before
        return page.cursor

    def check(self, channel: str, view: View, batch: Batch, paged: str) -> None:
        """The view is the truth at its cursor: nothing else, and without a hole."""
        assert view.cursor is not None
        self.batches += 1
        truth = self.store.truth(channel, view.cursor)
        shown = {message.id: message for message in view.messages()}
        assert {one.id: one for one in view.commands()} == self.store.pending(channel, view.cursor)
        for message in shown.values():  # of a page of history it may be newer than the cursor
            assert message == self.store.truth(channel, view.cursor, or_at=message.version)[message.id]
        assert view.before is not None
        is_same_life = epoch_of(paged) == epoch_of(view.cursor)
        later = self.store.truth(channel, view.cursor, or_at=int(paged.split(":")[1]) if is_same_life else 0)
        hidden = [one for one in truth if one not in shown and one in later and truth[one].created >= view.before]
        assert hidden == [], "a silent hole"
        if any(isinstance(event, ChannelAttached) and not event.resumed for event in batch.events):
            streaming = {one.id for one in truth.values() if one.status == "streaming"}
            assert streaming <= set(shown)

    async def is_last(self, channel: str, view: View) -> bool:
        head = await MemoryStore.head(self.store, channel)
        return view.cursor == f"{head.epoch}:{head.serial}"

    # -- what happens besides ----------------------------------------------------------------------------------

    async def gremlin(self) -> None:
        """Frees memory, asks for documents, refreshes and deletes at the worst moments."""
        while not self.is_over:
            await asyncio.sleep(self.rng.uniform(0, 0.2))
            hub = self.hub()
            channel = self.rng.choice((*CHATS, SHORT_LIVED))
            try:
                match self.rng.randrange(5):
                    case 0 | 1:
                        hub.free_memory()
                    case 2:
                        known = list(hub.channel(channel).state.messages)
                        if known:
                            hub.queue(DocumentDue(channel, self.rng.choice(known)))
                    case 3:
                        await hub.channel(channel).refresh()
                    case _:
                        if self.rng.random() < 0.1:
                            await hub.delete_channel(SHORT_LIVED)
            except COME_BACK:
                pass

    async def killer(self) -> None:
        """A hub dies without a word, and another one begins on the same store."""
        while True:
            await asyncio.sleep(self.rng.uniform(1, 4))
            if self.store.is_fair and self.deaths:  # who dies every few seconds gives every lease another term
                return
            old, self.hubs[0] = self.hubs[0], self.new_hub()
            await old.die()
            self.deaths += 1
            await self.begin(self.hubs[0])
            await self.check_dead()

    async def begin(self, hub: HubCore) -> None:
        """Start a hub, again and again while the store refuses."""
        while True:
            try:
                await hub.start()
                break
            except COME_BACK:
                await asyncio.sleep(0.1)
        # A local turn has no lease: what a store keeps of it after its hub gave up waiting is nobody's until a start.
        for is_local in (False, True) if self.store.is_exclusive else (False,):
            hub.scheduler.register(Helper(self, hub, f"helper{is_local:d}", is_local=is_local))

    async def open_now(self) -> list[MessageState | CommandState]:
        """Everything that is open, past the store's faults."""
        store = self.store
        channels = await MemoryStore.open_channels(store)
        return [one for name in channels for one in restored(await MemoryStore.open_documents(store, name))]

    async def check_dead(self) -> None:
        """No message streams whose writer died with its process."""
        for one in await self.open_now():
            writer = one.writer if isinstance(one, MessageState) else None
            assert writer is None or writer.node in (None, self.hubs[0].node)

    async def until_all_turns_are_over(self) -> None:
        """Every question finds somebody in the end, whoever died over it."""
        for _ in range(200):
            found = await self.open_now()
            if not any(isinstance(one, MessageState) and one.claim is not None and one.claim.is_open for one in found):
                break
            await asyncio.sleep(0.5)
        else:
            raise AssertionError("questions that nobody answers")
        await asyncio.gather(*self.at_work)
        assert self.attempts

    async def live(self) -> None:
        """Everything at once, until all is written and seen."""
        for hub in self.hubs:
            await self.begin(hub)
        writers = [
            write(channel, f"{write.__name__[:4]}{number}")
            for channel in CHATS
            for number in range(2)
            for write in (
                self.careful_writer,
                self.blind_writer,
                self.local_writer,
                self.editor,
                self.successor,
                self.commander,
            )
        ]
        writers += [self.editor(SHORT_LIVED, "short")]
        async with asyncio.TaskGroup() as others:
            for channel in (*CHATS, CHATS[0], SHORT_LIVED):
                others.create_task(self.viewer(channel))
            others.create_task(self.gremlin())
            if len(self.hubs) == 1:
                others.create_task(self.killer())
            async with asyncio.TaskGroup() as tasks:
                for writer in writers:
                    tasks.create_task(writer)
            await asyncio.gather(*self.store.late)
            self.store.is_fair = True
            await self.until_all_turns_are_over()
            self.is_over = True
        await self.check_end()

    async def check_end(self) -> None:
        """What was written stands, in the log, in the store, and in what a new hub reads of it."""
        for hub in self.hubs:
            await hub.close()
        hub = self.new_hub()
        for (channel, message_id), parts in self.written.items():
            message, cursor = await hub.read(channel, message_id)
            assert message == self.store.truth(channel, cursor)[message_id]
            assert [part for part in message.parts if part.get("name") != "bar"] == parts
            assert message.status != "streaming"
        for (channel, key), data in self.answered.items():
            live = hub.channel(channel)
            await live.load_messages([key])
            command = live.state.command(key)
            assert command is not None
            assert command.reply is not None
            assert (command.reply.data, command.reply.request) == (data, "reply")
        await hub.close()


def epoch_of(cursor: str | None) -> str | None:
    return cursor.split(":")[0] if cursor is not None else None


def _into(future: asyncio.Future[Any]) -> Callable[[Any], None]:
    """A callback for an answer: what it is, error or not, becomes the future's result, once."""

    answers = []

    def done(answer: Any) -> None:
        answers.append(answer)
        assert len(answers) == 1, "answered twice"
        if not future.cancelled():
            future.set_result(answer)

    return done


@asynccontextmanager
async def _connection(
    hub: HubCore, channel: str, since: str | None, rng: Random
) -> AsyncIterator[AsyncIterator[Batch]]:
    """The batches of one connection; it ends by itself now and then, so that a silent one is not waited for."""
    history = rng.choice((None, 0, 1, 3, 50))
    batches = hub.subscribe(channel, since=since, history=history, flush_ms=rng.choice((0, 0, 40, 250))).batches()

    async def limited() -> AsyncIterator[Batch]:
        while True:
            try:
                async with asyncio.timeout(2.0):
                    batch = await anext(batches)
            except TimeoutError:
                return
            yield batch

    try:
        yield limited()
    finally:
        await batches.aclose()


def run(world: Callable[[], World]) -> World:
    """A world from its beginning to its end, in virtual time."""

    async def live() -> World:
        begun = world()
        async with asyncio.timeout(3_600):
            await begun.live()
        return begun

    def interrupt(*_: object) -> None:
        raise AssertionError("somebody goes round and round without waiting for anything")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(60)  # of real time; a world takes a tenth of a second
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(live())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_hubs_on_one_store_lose_nothing_and_double_nothing(seed: int) -> None:
    world = run(lambda: World(seed, hubs=2))
    assert world.batches > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hub_that_dies_again_and_again_loses_nothing_and_doubles_nothing(seed: int) -> None:
    world = run(lambda: World(seed, hubs=1))
    assert world.batches > 5
    assert world.deaths > 0


# -- one moment at a time --------------------------------------------------------------------------------------

ANN = Caller(id="ann")
SERVER = Caller(id="ann", is_server=True)


class Scripted(MemoryStore):
    """A store in memory whose next commits go as the test says: "ok", "no", "lost", "kept" (and nobody was told)."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[str] = []
        self.gate: asyncio.Event | None = None  # commits wait for it …
        self.committing = asyncio.Event()  # … and say that they do

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        if self.gate is not None:
            self.committing.set()
            await self.gate.wait()
        act = self.script.pop(0) if self.script else "ok"
        if act == "no":
            raise StoreUnavailable("not today")
        if act == "lost":
            raise CommitUnknown("not stored, but who knows")
        answers = await super().commit(writes)
        if act == "kept":
            raise CommitUnknown("stored, but who knows")
        return answers


@asynccontextmanager
async def scripted(**limits: int) -> AsyncIterator[tuple[Mortal, Scripted]]:
    """A hub on a scripted store."""
    store = Scripted()
    hub = Mortal(store, hooks_signals=False, drain_s=0.1, limits=Limits(**limits))
    try:
        yield hub, store
    finally:
        await hub.close()


async def together(hub: HubCore, *asks: tuple[str, Request]) -> list[Result | BaseException]:
    """What comes of requests that are decided in one batch."""
    return await asyncio.gather(*(hub.ask("c", one, request, ANN) for one, request in asks), return_exceptions=True)


async def take(feed: Feed) -> EncodedBatch:
    """What a feed is owed, which it may have to ask the store for once or twice."""
    for _ in range(3):
        try:
            batch = feed.take()
            assert batch is not None
            return batch
        except Behind:
            await feed.catch_up()
    raise AssertionError("it asks the store again and again")


def begun_with(batch: EncodedBatch) -> list[str]:
    """The messages of a new start."""
    attached, *shown = batch.events
    assert isinstance(attached, ChannelAttached)
    assert not attached.resumed
    return [event.message.id for event in shown if isinstance(event, MessageUpdate)]


async def texts(hub: HubCore, message_id: str) -> list[str]:
    return [part["text"] for part in (await hub.read("c", message_id))[0].parts]


async def test_a_viewer_too_far_behind_begins_anew_also_when_the_page_must_be_read_first() -> None:
    async with scripted(catch_up_messages=3) as (hub, _):
        for number in range(10):
            await hub.create("c", id=f"m{number}", text="x")
        cursor = (await hub.info("c")).cursor
        await hub.close()
        feed = await hub.attach("c", parse_cursor(cursor), history=2, wake=lambda: None)
        for number in range(4):
            await hub.delete("c", f"m{number}")
        assert begun_with(await take(feed)) == ["m8", "m9"]


async def test_a_new_start_shows_what_streams_since_long_ago_and_the_newest_page() -> None:
    async with scripted() as (hub, _):
        await hub.ask("c", "old", CreateMessage(status="streaming"), ANN)
        for number in range(5):
            await hub.create("c", id=f"m{number}", text="x")
        await hub.close()
        feed = await hub.attach("c", None, history=2, wake=lambda: None)
        assert begun_with(await take(feed)) == ["old", "m3", "m4"]


async def test_a_message_that_left_memory_is_known_again() -> None:
    async with scripted(channel_bytes=1) as (hub, _):
        await hub.create("c", id="m", text="x")
        hub.free_memory()
        assert hub.channel("c").state.message("m") is None
        with pytest.raises(IdConflict):
            await hub.create("c", id="m", text="other")
        hub.free_memory()
        assert (await hub.update("c", "m", text="y")).text == "y"


async def test_memory_is_not_freed_under_a_commit() -> None:
    async with scripted(channel_bytes=1) as (hub, store):
        await hub.create("c", id="m", text="x")
        store.gate = asyncio.Event()
        update = asyncio.create_task(hub.update("c", "m", text="y"))
        await store.committing.wait()
        hub.free_memory()
        store.gate.set()
        assert (await update).text == "y"


async def test_requests_keep_their_order_through_an_unclear_commit() -> None:
    """The second one, about a message that must be read first, holds up the third; the first one comes back."""
    async with scripted() as (hub, store):
        await hub.ask("c", "m", CreateMessage(text="", status="streaming"), ANN)
        store.script = ["lost"]
        create = CreateMessage(text="x")
        answers = await together(hub, ("m", AppendText(text="1")), ("n", create), ("m", AppendText(text="2")))
        assert [isinstance(answer, Result) for answer in answers] == [True, True, True]
        assert await texts(hub, "m") == ["12"]


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_text_without_a_part_stays_where_it_was_first_decided(act: str) -> None:
    async with scripted() as (hub, store), hub.message("c", id="m") as message:
        store.script = [act]
        await message.append("x")
        await message.part({"type": "text", "text": ""})
        await message.append("y")
        await message.flush()
        assert await texts(hub, "m") == ["x", "y"]


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_an_unclear_update_with_a_version_is_carried_out_once(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.create("c", id="m", text="a")
        store.script = [act]
        assert (await hub.update("c", "m", text="b", if_version=1)).version == 2


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_an_unclear_takeover_is_carried_out_once(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.ask("c", "m", CreateMessage(status="streaming"), ANN)
        await hub.ask("c", "m", FinishMessage(status="interrupted"), SERVER)
        store.script = [act]
        assert (await hub.ask("c", "m", TakeOver(generation=1), ANN)).generation == 2


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_an_unclear_end_refuses_nothing_that_came_before_it(act: str) -> None:
    async with scripted() as (hub, store):
        async with hub.message("c", id="m") as message:
            store.script = [act]
            await message.append("text")
            await message.part({"type": "text", "text": "part"})
        assert await texts(hub, "m") == ["text", "part"]


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_a_start_goes_on_with_a_message_though_its_takeover_was_unclear(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.message("c", id="m").__aenter__()
        await hub.die()
        successor = HubCore(store, hooks_signals=False, drain_s=0.1)
        ended = asyncio.Event()

        @successor.adopt("*")
        async def go_on(writer: MessageWriter) -> None:
            await writer.append("more")
            ended.set()

        store.script = [act]
        await successor.start()
        await ended.wait()
        await successor.close()
        assert await texts(successor, "m") == ["more"]
        await successor.close()


@pytest.mark.parametrize("act", ["ok", "lost", "kept"])
async def test_a_command_is_stored_once_and_answered_once_whatever_becomes_of_its_commits(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.create("c", id="m", text="x")
        store.script = [act]
        command = await hub.command("c", "approve", id="a", target="m", data={"x": 1}, by="ann")
        assert (command.id, command.data, command.from_) == ("a", {"x": 1}, "ann")
        store.script = [act]
        answer = ReplyCommand(data="yes", request="r")
        first = await hub.ask("c", "!a", answer, ANN)
        assert (await hub.ask("c", "!a", answer, ANN)).serial == first.serial
        with pytest.raises(AlreadyAnswered):
            await hub.reply("c", "a")
        assert (await hub.info("c")).serial == first.serial == 3


@pytest.mark.parametrize("act", ["ok", "lost", "kept"])
async def test_a_turn_is_claimed_once_and_by_us_though_the_commit_was_unclear(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.start()
        hub.scheduler.workers._patterns["c"] = 0  # agents answer here, and none is here
        await hub.create("c", id="q", text="question")
        us = Caller(id="agent", writer=Writer(by="agent", node=hub.node), is_server=True)
        store.script = [act]
        assert (await hub.ask("c", "q", ClaimTurn(generation=0), us)).generation == 1
        with pytest.raises(Fenced):
            await hub.ask("c", "q", ClaimTurn(generation=0), SERVER)
        store.script = [act]
        await hub.ask("c", "q", EndTurn(generation=1), us)
        assert (await hub.info("c")).serial == 3


async def test_claims_and_leases_wake_viewers_for_nothing() -> None:
    async with scripted() as (hub, _):
        await hub.start()
        hub.scheduler.workers._patterns["c"] = 0
        await hub.create("c", id="q", text="question")
        await hub.ask("c", "m", CreateMessage(status="streaming", text=""), ANN)
        feeds = [await hub.attach("c", None, history=50, wake=lambda: None) for _ in range(2)]
        for feed in feeds:
            await take(feed)
        await hub.ask("c", "q", ClaimTurn(generation=0, lease_s=15), SERVER)
        await hub.ask("c", "m", RenewLease(lease_s=60), ANN)
        for feed in feeds:
            assert feed.is_behind
            assert feed.take() is None
            assert (feed.is_behind, feed.cursor.serial) == (False, 4)
        await hub.ask("c", "m", AppendText(text="a"), ANN)
        batch = await take(feeds[0])
        assert ([event.serial for event in batch.events], batch.cursor[-2:]) == ([5], ":5")
        back = await hub.attach("c", parse_cursor(batch.cursor[:-2] + ":2"), wake=lambda: None)
        attached, append = (await take(back)).events
        assert isinstance(attached, ChannelAttached)
        assert (attached.resumed, attached.serial, append.serial) == (True, 5, 5)


@pytest.mark.parametrize("target", ["\ud83d", "a b", "!a", ""])
async def test_a_target_that_can_be_none_is_refused_and_holds_nobody_up(target: str) -> None:
    async with scripted() as (hub, _):
        with pytest.raises((InvalidName, InvalidText)):
            await hub.command("c", "steer", target=target)
        assert (await hub.create("c", id="m", text="x")).text == "x"


async def test_an_answer_that_left_memory_is_known_again() -> None:
    async with scripted(channel_bytes=1) as (hub, _):
        await hub.command("c", "approve", id="a")
        await hub.reply("c", "a", data="yes")
        hub.free_memory()
        assert hub.channel("c").state.command("!a") is None
        with pytest.raises(AlreadyAnswered):
            await hub.reply("c", "a", data="no")
        hub.free_memory()
        assert (await hub.command("c", "approve", id="a")).id == "a"
        with pytest.raises(IdConflict):
            await hub.command("c", "steer", id="a")


async def test_a_start_that_failed_half_way_is_made_good_by_the_next() -> None:
    async with scripted() as (hub, store):
        for number in range(2):
            await hub.message("c", id=f"m{number}").__aenter__()
        await hub.die()
        successor = HubCore(store, hooks_signals=False, drain_s=0.1)
        store.script = ["ok", "no"]
        with pytest.raises(StoreUnavailable):
            await successor.start()
        await successor.start()
        messages = (await successor.history("c")).messages
        assert [one.status for one in messages] == ["interrupted", "interrupted"]
        await successor.close()
