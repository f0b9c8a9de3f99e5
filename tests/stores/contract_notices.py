"""The part of the contract of stores about notices between their instances.

Layer: testing. `StoreContract` contains it.
"""

from __future__ import annotations

import asyncio

import pytest

from tenuto.stores.base import Notice, Store

PATIENCE_S = 20.0


class NoticesContract:
    """The tests of `Store.notify` and `Store.listen`.

    A store that several processes share overrides the fixture `other`: a second instance on the same store. A store
    that one process owns, or that sends no notices, sets `sends_notices` to False.
    """

    sends_notices = True

    @pytest.fixture
    async def other(self, store: Store) -> Store:
        return store

    async def test_notices_reach_the_instances_that_listen(self, store: Store, other: Store) -> None:
        if not self.sends_notices:
            store.listen(lambda notice: pytest.fail(f"an exclusive store sent {notice}"))
            await store.notify([Notice("moved", "c", b"")])
            return
        first: asyncio.Queue[Notice | None] = asyncio.Queue()
        second: asyncio.Queue[Notice | None] = asyncio.Queue()
        store.listen(first.put_nowait)
        other.listen(second.put_nowait)
        small = [Notice("moved", f"c{number}", bytes([number])) for number in range(100)]
        large = [Notice("here", "é" * 100, b"\xff\x00" * 2_100), Notice("signal", "c", b"x" * 4_200)]
        async with asyncio.timeout(PATIENCE_S):
            assert (await first.get(), await second.get()) == (None, None)  # both listen
            await store.notify([])
            await store.notify([*small, *large])
            assert [await second.get() for _ in range(102)] == [*small, *large]
            await other.notify(small)
            while await first.get() != small[-1]:
                pass
