"""The form of entries in a row of the log."""

from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.ops import Append, Op, SetPart
from tenuto.stores.sqlite.log import CommitLog, Row, Tracked, _entries, _read_items
from tenuto.stores.sqlite.slots import MAX_ROOM

TRACKED = Tracked("c", 70_000, "m1", 0)


def rows_of(ops: list[Op]) -> list[Row]:
    return CommitLog.rows((TRACKED, serial, op) for serial, op in enumerate(ops, start=1))


def read_back(rows: list[Row]) -> list[Op]:
    """Return the operations in `rows`, read in the wrong order."""
    items = [item for row in reversed(rows) for item in _read_items(row.data, 1)]
    return [entry.op for entry in _entries(TRACKED, items)]


appends = st.builds(
    Append, id=st.just("m1"), part=st.integers(0, 3), at=st.integers(0, 2**40), text=st.text(min_size=1, max_size=60)
)


@given(st.lists(appends, min_size=1, max_size=60))
def test_written_row_is_read_back(ops: list[Op]) -> None:
    assert read_back(rows_of(ops)) == ops


@given(st.integers(1, 30_000), st.sampled_from("xé中🙂"))
def test_a_large_operation_takes_several_rows(length: int, character: str) -> None:
    text = character * length
    ops: list[Op] = [
        Append(id="m1", part=0, at=7, text=text),
        SetPart(id="m1", index=1, part={"type": "data", "name": "n", "data": text}, at_ms=1),
        Append(id="m1", part=2, at=9, text=text),
    ]
    rows = rows_of(ops)
    assert max(row.room for row in rows) <= MAX_ROOM
    assert read_back(rows) == ops


def test_an_append_costs_at_most_20_bytes_besides_its_text() -> None:
    tracked = Tracked("c", 2**32 - 1, "m1", 0)
    op = Append(id="m1", part=1, at=2**23, text="word ")
    (row,) = CommitLog.rows([(tracked, 2**32 - 1, op)] * 100)
    assert row.room <= 100 * (20 + len(op.text))
