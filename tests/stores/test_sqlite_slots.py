"""The form of bytes in slots."""

from hypothesis import given
from hypothesis import strategies as st

from tenuto.stores.sqlite.slots import MAX_DATA, MAX_ROOM, SLOT_BYTES, opened, room_for, sealed


@given(st.binary(max_size=MAX_DATA), st.integers(0, 100))
def test_sealed_data_is_read_at_its_place_alone(data: bytes, spare: int) -> None:
    room = min(MAX_ROOM, room_for(SLOT_BYTES + len(data)) + spare)
    body = sealed((7, 1, 0), data, room)
    assert len(body) == room
    assert opened((7, 1, 0), body) == data
    assert opened((8, 1, 0), body) != data
