"""The short path of an append to its viewers: it returns exactly the bytes of the long path, or declines.

Layer: tests.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.catch_up import events_since, sole_append
from tenuto.core.events import NO_EPOCH, MessageAppend, encode_json
from tenuto.core.limits import Limits
from tenuto.core.ops import Append
from tenuto.core.state import ChannelState, apply_entry
from tenuto.hub.channel import Channel, EncodedBatch, Ticks
from tenuto.stores.memory import MemoryStore
from tests.core.worlds import Asked, Shelf, World, batches, thing, worlds

LIMIT = 200


class Viewer:
    """A subscriber that takes no batch by itself."""

    def wake(self) -> None: ...


def new_channel(viewers: int) -> Channel:
    """Return a channel that has had viewers, of which `viewers` count as present; no tick wakes them."""
    channel = Channel("c:1", MemoryStore(), Limits(), Ticks(), now_s=0.0, observe=lambda _, keys: None)
    channel.is_loaded = True
    viewer = Viewer()
    channel.remove_feed(viewer, channel.add_feed(viewer, 40))
    channel.watchers = viewers
    return channel


def long_way(batch: EncodedBatch) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the bytes of a batch as the protocol describes them, for SSE and for a WebSocket."""
    *first, last = [
        b"event: %b\ndata: %b\n" % (str(e.__struct_config__.tag).encode(), encode_json(e)) for e in batch.events
    ]
    sse = b"".join([each + b"\n" for each in first]) + last + b"id: %b\n\n" % batch.cursor.encode()
    events = ",".join(encode_json(event).decode() for event in batch.events)
    text = f'{{"type":"events","channel":"{batch.channel}","cursor":"{batch.cursor}","events":[{events}]}}'
    return sse, (text.encode(),)


@given(worlds, st.data())
def test_event_of_a_sole_append_is_that_of_the_catch_up(world: World, data: st.DataObject) -> None:
    shelf, state = Shelf(), ChannelState("c")
    for entry in world.log:
        if data.draw(st.integers(0, 9)) == 0 and state.serial:  # the channel leaves memory, and is read again
            serial, state = state.serial, ChannelState("c", "e", state.serial)
            state.insert(shelf.restore_all())
            assert state.complete_since == serial
        short = sole_append(state, entry)
        since = state.serial
        apply_entry(state, entry)
        shelf.add(entry)
        one = thing(state, entry.op.id)
        if one.created == entry.serial or data.draw(st.booleans()):
            shelf.put_document_of(one)
        long = events_since(state, since, limit=LIMIT)
        assert long is not None
        if short is not None:
            assert long == [short]
        elif type(entry.op) is Append and len(long) == 1 and isinstance(long[0], MessageAppend):
            assert long[0].at != entry.op.at  # the fold has skipped a repeated beginning


@given(batches, st.integers(1, 2), st.data())
def test_kept_append_has_the_bytes_of_the_long_path_whatever_moves_the_state(
    world_batches: list[list[Asked]], viewers: int, data: st.DataObject
) -> None:
    world, channel = World(), new_channel(viewers)
    for batch in world_batches:
        for entry in world.commit(batch):
            way = data.draw(st.sampled_from(("commit", "commit", "commit", "read", "new epoch")))
            if way == "commit":
                channel.committed("e", (entry,), ())
            elif way == "read":  # as another hub's entry: the state moves, and the kept append stays behind
                apply_entry(channel.state, entry)
            else:
                kept, channel.state.epoch = channel.batches.appended, "f"
                assert kept is None or kept[0] == "f" or channel.append_since(channel.state.serial - 1) is None
                channel.state.epoch = "e" if channel.state.serial else NO_EPOCH
                channel.committed("e", (entry,), ())
            for since in range(max(0, channel.state.serial - 3), channel.state.serial + 2):
                short = channel.append_since(since)
                channel.batches.live.clear()
                if short is None:
                    continue
                long = channel.batch_since(since, attach=False)
                assert long is not None
                assert (list(short.events), short.cursor) == (list(long.events), channel.state.cursor)
                assert (short.sse, short.frames) == (long.sse, long.frames) == long_way(long)
