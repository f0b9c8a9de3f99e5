"""Exports and imports: the same lines after a round trip, a whole file or none of it, errors that name the line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, AsyncMock

import msgspec
import pytest
from click.testing import CliRunner

from proof.simulation.store import SharedMemoryStore
from tenuto.agents.turn import Turn
from tenuto.cli.main import main
from tenuto.core.errors import IdConflict, InvalidName, InvalidRequest, LocalError, StoreUnusable, TooLarge
from tenuto.core.events import Page
from tenuto.core.limits import Limits
from tenuto.core.model import ROLES
from tenuto.hub import HubCore
from tenuto.hub.keep import exports, retention
from tenuto.stores.base import Committed, CommitUnknown, Conflict, Write
from tenuto.stores.memory import MemoryStore
from tests.core.harness import nested, text_part
from tests.hub.hubs import new_hub
from tests.virtual import virtual_clock, virtually

CHANNEL = "chat:1"
DAY_MS = 24 * 3_600_000


async def exported(hub: HubCore, channel: str = CHANNEL) -> bytes:
    return b"".join([line async for line in hub.archive.export(channel)])


def lines_of(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def with_end(lines: list[Any]) -> bytes:
    """Return `lines`, whose last is an end, as a file with the right counts and checksum."""
    data = b"".join(json.dumps(one).encode() + b"\n" for one in lines[:-1])
    counts = {f"{kind}s": sum(one["type"] == kind for one in lines) for kind in ("message", "command")}
    return data + json.dumps({**lines[-1], **counts, "sha256": hashlib.sha256(data).hexdigest()}).encode() + b"\n"


PARTS: list[dict[str, Any]] = [
    {"type": "text", "text": "one\u2028\x01"},
    {"type": "reasoning", "text": ""},
    {"type": "tool", "call": "c1", "name": "pay", "output": [1.0, 2**63 - 1, -0.5, None, True]},
    {"type": "data", "name": "d", "data": {"": "\U0001f642"}},
    {"type": "source", "url": "https://example.org/"},
    {"type": "file", "url": "data:,a", "media_type": "text/plain"},
]


async def test_messages_of_each_role_and_end_stay_the_same_with_each_kind_of_part(hub: HubCore, tmp_path: Path) -> None:
    other = HubCore("memory://", hooks_signals=False, drain_s=0)
    fields: dict[str, Any] = {"parts": PARTS, "author": "ann", "meta": {"a": {"b": 1e300}}, "reply_to": "m0"}
    await hub.create(CHANNEL, id="m0", **fields)
    for number, (role, end) in enumerate(zip(ROLES, ("complete", "cancelled", "failed", "failed"), strict=True), 1):
        await hub.message(CHANNEL, id=f"m{number}", role=role, parent="absent" if number > 1 else None, **fields).open()
        await hub.finish(CHANNEL, f"m{number}", status=end, reason="why" if number > 2 else None)
    before = (await hub.history(CHANNEL)).messages
    (file := tmp_path / "file").write_bytes(await exported(hub))
    await other.archive.import_file(file)
    assert await exported(other) == file.read_bytes()
    after = (await other.history(CHANNEL)).messages
    assert [(one.parts, one.meta, one.status, one.reason, one.role, one.author) for one in after] == [
        (one.parts, one.meta, one.status, one.reason, one.role, one.author) for one in before
    ]
    await other.close()


LOST = {"status": "failed", "reason": "damaged", "created_at": 0, "parts": []}
COMMAND = {"type": "command", "id": "c", "name": "ask", "created_at": 1, "expires_at": 2**40, "reply": {"ok": True}}

# Each makes a bad file of the lines of a good one; an object has fields of the second message.
BAD: dict[str, tuple[Callable[[list[Any]], bytes] | dict[str, Any], str]] = {
    "nothing": (lambda lines: b"", "line 1 of .*was cut"),
    "no export": (lambda lines: b"{}\n", "line 1 of .*not the header"),
    "a newer format": (
        lambda lines: with_end([{**lines[0], "format": 2, "more": 1}, *lines[1:]]),
        "line 1 of .*format 2, this version reads format 1; import it with a newer",
    ),
    "cut in a line": (lambda lines: with_end(lines)[:-20], "line 5 of .*was cut here.*copy it or export"),
    "a changed letter": (
        lambda lines: with_end(lines).replace(b"message 1", b"message I"),
        "line 5 of .*checksum is not that of the lines before it",
    ),
    "a missing line": (
        lambda lines: b"".join(with_end(lines).splitlines(keepends=True)[::4]),
        "line 2 of .*has 0 messages and 0 commands, 0 of them damaged; its end names 3, 0 and 0",
    ),
    "fewer damaged messages than its end names": (
        lambda lines: with_end([*lines[:2], {**lines[2], **LOST}, *lines[3:-1], {**lines[-1], "damaged": 2}]),
        "line 5 of .*3 messages and 0 commands, 1 of them damaged; its end names 3, 0 and 2",
    ),
    "a line after the end": (lambda lines: with_end(lines) + b"\n", "line 6 of .*after the end"),
    "a long line": (lambda lines: with_end(lines).replace(b"\n", b"\n" + b"x" * 10**7, 1), "line 2 of .*longer than"),
    "not JSON": (lambda lines: with_end(lines).replace(b'"role"', b"role"), "line 2 of .*not a message"),
    "not UTF-8": (lambda lines: with_end(lines).replace(b"message 1", b"\xff"), "line 3 of .*not a message"),
    "deep": (
        lambda lines: with_end(lines).replace(b'"m1"', b'"m1", "meta": {"a": ' + b"[" * 99_999),
        "line 3 of .*not a message",
    ),
    "a command": (lambda lines: with_end([*lines[:4], COMMAND, *lines[4:]]), "line 5 of .*expires"),
    "nested": ({"meta": {"a": nested(70)}}, "line 3 of .*nested deeper than 64"),
    "an unknown field": ({"serial": 1}, "line 3 of .*serial"),
    "a bad id": ({"id": "../x"}, "line 3 of"),
    "an id twice": ({"id": "m0"}, "line 3 of .*earlier line"),
    "a role": ({"role": "admin"}, "line 3 of .*role must be"),
    "a status": ({"status": "streaming"}, "line 3 of .*status must"),
    "the future": ({"updated_at": 10**15}, "line 3 of .*at most a day ahead of the present"),
    "parts": ({"parts": 300 * [{"type": "text", "text": ""}]}, "line 3 of .*300 parts, the limit is 256"),
    "a large message": ({"parts": [text_part("x" * 10_001)]}, "line 3 of .*the limit is 10000"),
}
KINDS = {
    **dict.fromkeys(("a long line", "parts", "a large message"), TooLarge),
    "a bad id": InvalidName,
    "an id twice": IdConflict,
}  # of the errors that are no InvalidRequest


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_file_is_refused_whole(name: str, tmp_path: Path) -> None:
    hub = HubCore("memory://", hooks_signals=False, limits=Limits(message_bytes=10_000))
    path = await exported_messages(tmp_path, 3)
    lines = lines_of(path.read_bytes())
    make, match = BAD[name]
    await hub.archive.import_file(path, channel="whole")
    path.write_bytes(make(lines) if callable(make) else with_end([*lines[:2], {**lines[2], **make}, *lines[3:]]))
    with pytest.raises(KINDS.get(name, InvalidRequest), match=match) as refused:
        await hub.archive.import_file(path, channel="other")
    assert isinstance(refused.value.details["line"], int)
    assert (await hub.info("other")).serial == 0
    assert await hub.store.notes("import:") == {}
    path.write_bytes(with_end(lines))
    await hub.archive.import_file(path, channel="other")
    with pytest.raises(LocalError, match="cannot be read: No such file"):
        await hub.archive.import_file(tmp_path / "none")
    await hub.close()


async def test_messages_that_come_and_go_during_an_export_are_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "PAGE", 2)
    hub = HubCore(store := Interrupted(), hooks_signals=False)
    for number in range(3):
        await hub.create(CHANNEL, id=f"m{number}", text="x")

    async def change() -> None:
        for _ in range(5):
            await hub.create(CHANNEL, text="comes")
        await hub.delete(CHANNEL, "m0")
        store.meanwhile = None

    store.meanwhile = change
    assert [one["id"] for one in lines_of(await exported(hub))[1:-1]] == ["m0", "m1", "m2"]
    assert len((await hub.history(CHANNEL)).messages) == 7
    await hub.close()


@virtually
async def test_a_round_after_an_import_takes_no_reply_of_an_earlier_round(tmp_path: Path) -> None:
    hub, rounds = new_hub(), list[tuple[int, bool]]()

    @hub.agent("chat:*")
    async def bot(turn: Turn) -> None:
        rounds.append((turn.generation, (await turn.ask("approve", timeout_s=10)).ok))

    await hub.create(CHANNEL, id="m1", text="?")
    await asyncio.sleep(1)
    for _ in range(2):
        (asked,) = hub.channel(CHANNEL).state.pending_commands()
        await hub.reply(CHANNEL, asked.command().id, ok=True)
        await asyncio.sleep(1)
        await hub.command(CHANNEL, "regenerate", target="m1")
        await asyncio.sleep(1)
    await asyncio.sleep(20)
    (file := tmp_path / "file").write_bytes(await exported(hub))
    await hub.delete_channel(CHANNEL)
    await hub.archive.import_file(file)
    assert await exported(hub) == file.read_bytes()
    for _ in range(2):
        await hub.command(CHANNEL, "regenerate", target="m1")
        await asyncio.sleep(20)
    assert rounds == [(1, True), (129, True), (257, False), (385, False), (513, False)]


class Interrupted(MemoryStore):
    """A store that calls `meanwhile` before its second commit, and after each list of commands."""

    commits = 0
    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        self.commits += 1
        if self.commits == 2 and self.meanwhile is not None:
            await self.meanwhile()
        return await super().commit(writes)

    async def commands(self, channel: str, *, after: str | None, limit: int) -> list[str]:
        found = await super().commands(channel, after=after, limit=limit)
        if self.meanwhile is not None:
            await self.meanwhile()
        return found


async def test_retention_waits_for_the_end_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "BATCH", 2)
    monkeypatch.setattr(retention, "PAUSE_S", 0)
    hub = HubCore(store := Interrupted(), hooks_signals=False, retention={"*": "1d"})
    file = await exported_messages(tmp_path, 3)
    header, *messages, end = lines_of(file.read_bytes())
    old = [{**one, **dict.fromkeys(("created_at", "updated_at"), one["created_at"] - 2 * DAY_MS)} for one in messages]
    file.write_bytes(with_end([header, *old, end]))
    await hub.create("other", text="shows that the clock is right")
    store.commits = 0
    store.meanwhile = partial(hub.retainer._round, hub.runtime)
    async with asyncio.timeout(60):
        assert (await hub.archive.import_file(file)).messages == 3
    await store.meanwhile()
    assert await texts(hub) == []
    await hub.close()


async def test_no_part_of_an_import_is_in_the_history_or_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "BATCH", 2)
    hub = HubCore(store := Interrupted(), hooks_signals=False)
    file = await exported_messages(tmp_path, 3)
    read: list[asyncio.Task[Page]] = []
    listed = []

    async def look() -> None:
        read.append(asyncio.create_task(hub.history("copy")))
        for _ in range(5):
            listed.append((await hub.archive.channels()).channels)
            await asyncio.sleep(0)  # the history would be read by now

    await hub.start()
    store.meanwhile = look
    await hub.archive.import_file(file, channel="copy")
    store.meanwhile = None
    assert len((await read[0]).messages) == 3
    assert listed == [[]] * 5
    assert [one.channel for one in (await hub.archive.channels()).channels] == ["copy"]
    await hub.close()


DYING = """
import asyncio, os, signal, sys
from tenuto.hub import HubCore
from tenuto.hub.keep import exports
from tenuto.stores.sqlite.store import SqliteStore

exports.BATCH = 2
path, file, moment, count = sys.argv[1:]

class Dying(SqliteStore):
    left = int(count)

    async def commit(self, writes):
        self.left -= 1
        if not self.left:
            if moment == "after":
                await super().commit(writes)
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().commit(writes)

asyncio.run(HubCore(Dying(path), hooks_signals=False).archive.import_file(file))
"""


@pytest.mark.parametrize(("moment", "count"), [("after", 1), ("before", 3)])
async def test_a_killed_import_leaves_no_part_of_it(moment: str, count: int, hub: HubCore, tmp_path: Path) -> None:
    file, path = await exported_messages(tmp_path, 6), tmp_path / "hub.db"
    dying = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING, path, file, moment, str(count))
    assert await asyncio.wait_for(dying.wait(), 60) == -signal.SIGKILL
    listed = await asyncio.to_thread(CliRunner().invoke, main, ["channels", "--json", "--store", f"sqlite:///{path}"])
    assert (listed.exit_code, listed.output) == (0, "")
    if count > 1:  # a command that reads changes nothing
        refused = await asyncio.to_thread(CliRunner().invoke, main, ["export", CHANNEL, "--store", f"sqlite:///{path}"])
        assert (refused.exit_code, "has a part of an import that has not ended" in refused.stderr) == (1, True), refused

    assert (await hub.info(CHANNEL)).serial == 0
    assert await hub.store.notes("import:") == {}
    await hub.archive.import_file(file)
    assert await exported(hub) == file.read_bytes()


async def exported_messages(path: Path, count: int, letter: str = "m") -> Path:
    """Write an export of `count` messages, whose ids begin with `letter`, into the folder `path`; return the file."""
    hub = new_hub()
    for number in range(count):
        await hub.create(CHANNEL, id=f"{letter}{number}", text=f"message {number}")
    (file := path / f"{letter}.jsonl").write_bytes(await exported(hub))
    await hub.close()
    return file


async def texts(hub: HubCore) -> list[str]:
    return [one.text for one in (await hub.history(CHANNEL)).messages[::-1]]


async def test_a_damaged_note_about_an_import_concerns_only_its_channel(
    hub: HubCore, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await exported_messages(tmp_path, 2)
    await hub.create("bad", id="m", text="perhaps a part")
    await hub.archive.import_file(file, channel="part")
    part = msgspec.msgpack.encode(exports._Running(after=(2, "m1"), run="r"))
    await hub.store.note({"import:bad": b"\xc1", "import:empty": b"", "import:part": part})
    await hub.close()
    caplog.clear()
    notes = AsyncMock(wraps=hub.store.notes)
    monkeypatch.setattr(hub.store, "notes", notes)

    messages = [one.text for one in (await hub.history("bad")).messages]
    assert (messages, (await hub.history("part")).messages) == (["perhaps a part"], [])
    reads = [one.args[0] for one in notes.await_args_list]
    assert [one for one in reads if one.startswith("import:")] == ["import:"]  # each note is read once
    assert list(await hub.store.notes("import:")) == ["import:bad"]
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert line.startswith("an import that has not ended was not undone: note 'import:bad' is damaged")
    with pytest.raises(StoreUnusable, match="delete the channel and import the file again, or restore a backup"):
        await hub.archive.import_file(file, channel="bad")
    await hub.delete_channel("bad")
    assert (await hub.archive.import_file(file, channel="bad")).messages == 2
    assert await hub.store.notes("import:") == {}


@virtually
async def test_a_node_undoes_an_import_that_has_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = new_hub(SharedMemoryStore(now_ms=virtual_clock().now_ms))
    await hub.archive.import_file(await exported_messages(tmp_path, 1), channel="copy")
    mend = AsyncMock(wraps=exports.mend_import, side_effect=[TimeoutError, DEFAULT, DEFAULT])
    monkeypatch.setattr(exports, "mend_import", mend)
    for run in ("r1", "r2"):  # the second note of an import that goes on
        note = msgspec.msgpack.encode(exports._Running(after=(1, "m0"), run=run))
        await hub.store.note(dict.fromkeys(("import:bad", "import:copy"), note))
        await asyncio.sleep(exports.STOPPED_S)
        assert len((await hub.history("copy")).messages) == 1
    await asyncio.sleep(exports.STOPPED_S + 1)  # the failure of the first does not keep the second
    assert ((await hub.history("copy")).messages, list(await hub.store.notes("import:"))) == ([], ["import:bad"])
    await asyncio.sleep(exports.STOPPED_S)
    assert await hub.store.notes("import:") == {}


class _Overtaking(SharedMemoryStore):
    """A store that several hubs may have open. The first commit waits until the second import has reached `moment`."""

    def __init__(self, moment: tuple[str, int]) -> None:
        super().__init__()
        self.moment = moment
        self.calls = Counter[str]()
        self.first_waits, self.may_go_on, self.first_is_stored = (asyncio.Event() for _ in range(3))

    async def reach(self, call: str) -> None:
        self.calls[call] += 1
        if (call, self.calls[call]) == self.moment:
            self.may_go_on.set()
            await self.first_is_stored.wait()

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        await self.reach("commit")
        if is_first := not self.first_waits.is_set():
            self.first_waits.set()
            await self.may_go_on.wait()
        result = await super().commit(writes)
        if is_first:
            self.first_is_stored.set()
        return result

    async def note(self, values: Mapping[str, bytes | None], **how: Any) -> bool:
        if any(name.startswith(exports.NOTE) for name in values):
            await self.reach("note")
        return await super().note(values, **how)


# Behind the two notes of the first import, the second one takes the last of them, removes it, and puts its own.
@pytest.mark.parametrize("moment", [("note", 5), ("commit", 2)])
@pytest.mark.parametrize("batch", [2, 200])
async def test_of_two_files_in_one_channel_at_once_no_part_stays(
    moment: tuple[str, int], batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "BATCH", batch)
    files = [await exported_messages(tmp_path, 3), await exported_messages(tmp_path, 5, "n")]
    store = _Overtaking(moment)
    first, second, reader = (HubCore(store, hooks_signals=False) for _ in range(3))
    held_up = asyncio.create_task(first.archive.import_file(files[0]))
    await asyncio.wait_for(store.first_waits.wait(), 60)
    for running in (second.archive.import_file(files[1]), held_up):
        with pytest.raises(IdConflict):
            await running
    assert await texts(reader) == []
    assert await store.notes(exports.NOTE) == {}
    assert (await reader.archive.import_file(files[1])).messages == 5
    for hub in (first, second, reader):
        await hub.close()


async def test_a_first_commit_that_lands_late_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubCore(store := SharedMemoryStore(), hooks_signals=False)

    async def unclear(writes: Sequence[Write]) -> list[Committed | Conflict]:
        async def land_before(*about: Any, **how: Any) -> bool:
            monkeypatch.undo()
            await store.commit(writes)
            return await store.note(*about, **how)

        monkeypatch.setattr(store, "note", land_before)
        raise CommitUnknown("connection lost")

    monkeypatch.setattr(store, "commit", unclear)
    with pytest.raises(CommitUnknown):
        await hub.archive.import_file(await exported_messages(tmp_path, 3))
    assert (await texts(hub), await store.notes(exports.NOTE)) == ([], {})
    await hub.close()


async def test_an_overtaken_import_or_undo_removes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await exported_messages(tmp_path, 3)  # the same one twice, so only the epoch tells the two apart
    store = _Overtaking(("none", 0))
    first, second = (HubCore(store, hooks_signals=False) for _ in range(2))
    held_up = asyncio.create_task(first.archive.import_file(file))
    await asyncio.wait_for(store.first_waits.wait(), 60)
    assert (await second.archive.import_file(file)).messages == 3
    store.may_go_on.set()
    with pytest.raises(IdConflict):
        await held_up
    assert len(await texts(second)) == 3

    async def overtaken(*about: Any, **how: Any) -> bool:
        monkeypatch.undo()
        is_taken = await store.note(*about, **how)
        await second.archive.import_file(file)
        return is_taken

    await store.note({"import:chat:1": msgspec.msgpack.encode(exports._Running(after=(3, "m2")))})
    monkeypatch.setattr(store, "note", overtaken)
    await exports.undo_import(store, CHANNEL)
    assert len(await texts(second)) == 3
    for hub in (first, second):
        await hub.close()
