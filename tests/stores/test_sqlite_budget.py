"""The bytes that the SQLite store writes and keeps, per byte of text."""

import pytest

from tenuto.stores.base import Write
from tenuto.stores.sqlite.store import SqliteStore
from tests.stores.contract import MINUTE_MS, Chat, append, create, delete, finish, texts
from tests.stores.files import call_on_thread

TOKEN = "word "


class Answers:
    """Stream messages side by side, one in each channel, each batch in one commit."""

    def __init__(self, store: SqliteStore, count: int) -> None:
        self.store = store
        self.chats = [Chat(store, f"chat:{number:08d}", epoch="abcdef01") for number in range(count)]
        self.rounds = 0
        self.text_bytes = 0

    async def begin(self) -> None:
        for chat in self.chats:
            await chat.do(create(self.id, streaming=True))

    async def stream(self, tokens: int, text: str = TOKEN) -> None:
        for _ in range(tokens):
            await self._commit([chat.write(append(self.id, text)) for chat in self.chats])
            self.text_bytes += len(text) * len(self.chats)

    async def end(self) -> None:
        await self._commit([chat.write(finish(self.id), documents=[self.id]) for chat in self.chats])

    @property
    def id(self) -> str:
        return f"01JD0000000000000000000{self.rounds:03d}"

    async def _commit(self, writes: list[Write]) -> None:
        await self.store.commit(writes)
        for chat, write in zip(self.chats, writes, strict=True):
            chat.take(write)


@pytest.mark.parametrize(("messages", "tokens"), [(1, 400), (8, 200), (40, 60)])
async def test_rows_hold_at_most_three_times_the_text_and_20_bytes_per_commit_and_message(
    store: SqliteStore, messages: int, tokens: int
) -> None:
    answers = Answers(store, messages)
    await answers.begin()
    before = store.stats()["row_bytes"]
    await answers.stream(tokens)
    await answers.end()
    budget = 3 * answers.text_bytes + 20 * messages * (tokens + 1)
    assert store.stats()["row_bytes"] - before <= budget


async def test_large_text_takes_few_statements_and_the_slots_of_a_deleted_one_again(store: SqliteStore) -> None:
    chat, statements = Chat(store, "c"), list[str]()
    await call_on_thread(store, lambda engine: engine._file.db.set_trace_callback(statements.append))
    text = "".join(map(str, range(100_000)))
    await chat.do(create("a", text), documents=["a"])
    assert (len(statements) < 40, await texts(store, "c", "a")) == (True, [text])
    await chat.do(delete("a"), documents=["a"])
    await chat.do(create("b", text + text), documents=["b"])  # the first half in the slots of "a"
    assert await texts(store, "c", "b") == [text + text]


async def test_the_log_does_not_grow_while_messages_get_documents(store: SqliteStore) -> None:
    answers = Answers(store, 3)
    sizes = []
    for _ in range(20):
        await answers.begin()
        await answers.stream(60)
        await answers.end()
        answers.rounds += 1
        sizes.append((store.stats()["log_rows"], store.stats()["log_slots"]))
    assert {rows for rows, _ in sizes} == {0}
    # Serials take more bytes as they rise, and slots for shorter rows are left over; but only a few times.
    assert sizes[-1][1] == sizes[7][1] < 2 * 61


async def test_an_endless_message_pins_no_more_than_a_minute_of_the_log(store: SqliteStore) -> None:
    answers = Answers(store, 2)
    await answers.begin()
    rows = []
    for minute in range(12):
        for second in range(0, 60, 5):
            await answers.stream(5)
            due = await store.tidy(minute * MINUTE_MS + second * 1_000)
            for chat in answers.chats:
                await chat.write_documents(due)
        rows.append(store.stats()["log_slots"])
    assert max(rows) < 4 * 60
    assert rows[-1] == rows[-4]
