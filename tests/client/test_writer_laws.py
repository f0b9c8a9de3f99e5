"""The law of writing over a network: whatever is cut, refused or lost, what is stored is what was accepted.

Layer: tests.

The hub is a real one; connections end after a drawn number of frames, the frame that would be the
last is lost, and requests are refused for now as a busy server does.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from holdfast import Hub, Message
from holdfast.client import RemoteWriter
from tests.client.wire import PATIENCE_S, Wire, client_of, memory_hub

PIECES = ["the ", "🙂", "e\u0301", "中文", "\n", "\ud83d", "\ude00", "x" * 300]
REFUSALS = ["busy", "store_unavailable", "too_many"]

appends = st.tuples(st.just("append"), st.sampled_from(PIECES))
thoughts = st.tuples(st.just("think"), st.sampled_from(PIECES[:5]))
bars = st.tuples(st.just("bar"), st.integers(0, 9))
metas = st.tuples(st.just("meta"), st.dictionaries(st.sampled_from("ab"), st.none() | st.integers(0, 3), min_size=1))
rests = st.tuples(st.sampled_from(["flush", "yield"]), st.none())
actions = st.lists(st.one_of(appends, appends, thoughts, bars, bars, metas, rests), max_size=25)
lives = st.lists(st.integers(1, 12), max_size=12)
refusals = st.lists(st.booleans(), max_size=20)


class Twin:
    """What a message should be, kept in the simplest way; and the writer that is told the same."""

    def __init__(self, writer: RemoteWriter) -> None:
        self._writer = writer
        self.parts: list[list[Any]] = []  # type and content
        self.meta: dict[str, Any] = {}
        self._places: dict[str, int] = {}

    async def do(self, action: tuple[str, Any]) -> None:
        kind, value = action
        match kind:
            case "append":
                if "text" not in self._places:
                    self._open("text", "")
                self._part("text")[1] += value
                await self._writer.append(value)
            case "think":
                if "reasoning" not in self._places:
                    self._close_text_first()
                    await self._writer.part({"type": "reasoning", "text": ""})
                    self._open("reasoning", "")
                self._part("reasoning")[1] += value
                await self._writer.append(value, part=self._places["reasoning"])
            case "bar":
                index = self._places.get("data")
                if index is None:
                    self._close_text_first()
                    self._open("data", None)
                self._part("data")[1] = value
                await self._writer.part({"type": "data", "name": "bar", "data": value}, index=index)
            case "meta":
                self.meta = {k: v for k, v in {**self.meta, **value}.items() if v is not None}
                await self._writer.update(meta=value)
            case "flush":
                await self._writer.flush()
            case "yield":
                await asyncio.sleep(0)

    def _open(self, kind: str, content: Any) -> None:
        self._places[kind] = len(self.parts)
        self.parts.append([kind, content])

    def _part(self, kind: str) -> list[Any]:
        return self.parts[self._places[kind]]

    def _close_text_first(self) -> None:
        """Half a character that was to open the text part becomes what it is when another part opens before it."""
        if self.parts and self.parts[-1] == ["text", "\ud83d"]:
            self.parts[-1][1] = "\ufffd"

    def check(self, message: Message, status: str) -> None:
        assert [_content(part) for part in message.parts] == [[kind, _whole(value)] for kind, value in self.parts]
        assert message.meta == self.meta
        assert message.status == status


def _content(part: dict[str, Any]) -> list[Any]:
    return [part["type"], part.get("text", part.get("data"))]


def _whole(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def refusing(refused: list[bool]) -> Any:
    """Refuses requests for now, as it is told of each of the first ones."""
    asked = iter(range(1_000_000))

    def refuse(frame: dict[str, Any]) -> str | None:
        if frame["type"] in ("pong", "attach", "detach", "create"):
            return None
        number = next(asked)
        return REFUSALS[number % 3] if number < len(refused) and refused[number] else None

    return refuse


async def write(hub: Hub, todo: list[tuple[str, Any]], cuts: list[int], refused: list[bool]) -> None:
    wire, viewers = Wire(hub, cuts), Wire(hub, reversed(cuts))
    wire.refuse = refusing(refused)
    async with asyncio.timeout(PATIENCE_S), client_of(wire) as client, client_of(viewers) as other:
        view = other.channel("c")
        async with client.message("c") as message:
            twin = Twin(message)
            for action in todo:
                await twin.do(action)
        stored, _ = await hub.read("c", message.id)
        twin.check(stored, "complete")
        async for _ in view:
            if view.messages == [stored]:
                break
        assert view.gaps == 0
    await wire.end()
    await viewers.end()


# What is refused for now is sent again after what flew with it: the last value of a part, or of a key, must stay last.
@example([("bar", 1), ("bar", 2), ("bar", 3)], [], [False, True])
@example([("meta", {"a": 1}), ("meta", {"a": 2})], [], [True])
@given(actions, lives, refusals)
def test_whatever_is_cut_or_refused_for_now_what_was_accepted_is_stored(
    todo: list[tuple[str, Any]], cuts: list[int], refused: list[bool]
) -> None:
    async def run() -> None:
        hub = memory_hub(flush_ms=0)
        await write(hub, todo, cuts, refused)
        await hub.close()

    asyncio.run(run())


# What was accepted may be there already, with nothing left to store.
@example([], [("meta", {"a": None}), ("flush", None)], [])
@given(actions, actions, lives)
def test_a_log_that_is_lost_is_written_anew(
    before: list[tuple[str, Any]], after: list[tuple[str, Any]], cuts: list[int]
) -> None:
    async def run() -> None:
        first, second = memory_hub(), memory_hub()
        wire = Wire(first, cuts)
        async with asyncio.timeout(PATIENCE_S), client_of(wire) as client:
            async with client.message("c", meta={"kept": 1}) as message:
                twin = Twin(message)
                twin.meta = {"kept": 1}
                for action in before:
                    await twin.do(action)
                wire.app = second
                wire.cut()
                for action in after:
                    await twin.do(action)
            stored, _ = await second.read("c", message.id)
            twin.check(stored, "complete")
        await wire.end()
        await first.close()
        await second.close()

    asyncio.run(run())
