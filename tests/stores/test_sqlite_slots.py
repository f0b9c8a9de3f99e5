"""The form of bytes in slots."""

from hypothesis import given
from hypothesis import strategies as st

from tenuto.stores.sqlite.slots import MAX_DATA, MAX_ROOM, SLOT_BYTES, larger_rooms, opened, room_for, sealed

CLASSES = sorted({room_for(size) for size in range(1, MAX_ROOM + 1)})
sizes = st.integers(1, MAX_ROOM)


@given(sizes)
def test_room_fits_with_little_spare(size: int) -> None:
    assert size <= room_for(size) <= min(MAX_ROOM, size + size // 16)


@given(sizes)
def test_larger_rooms_are_the_next_classes(size: int) -> None:
    room = room_for(size)
    above = [*CLASSES[CLASSES.index(room) + 1 :], MAX_ROOM, MAX_ROOM]
    assert list(larger_rooms(room)) == above[:2]


@given(st.binary(max_size=MAX_DATA), st.integers(0, 100))
def test_sealed_data_is_read_at_its_place_alone(data: bytes, spare: int) -> None:
    room = min(MAX_ROOM, room_for(SLOT_BYTES + len(data)) + spare)
    body = sealed((7, 1, 0), data, room)
    assert len(body) == room
    assert opened((7, 1, 0), body) == data
    assert opened((8, 1, 0), body) != data
