"""The laws of the log and the fold, each as a property.

You are in `tests`. A failure that shrinks to something instructive becomes a vector in `tests/vectors/`.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.cursor import NO_EPOCH
from holdfast.core.events import Batch, decode_event, encode_json
from holdfast.core.ops import decode_op, encode_op
from holdfast.core.owed import events_since, new_start, newest_messages, resumed
from holdfast.core.state import ChannelState, apply_entry
from holdfast.core.view import View
from tests.core.worlds import LIMITS, Asked, Shelf, World, batches, everything, fold

LIMIT = 200


@given(batches, st.data())
def test_snapshot_plus_tail_equals_the_whole_log(world_batches: list[list[Asked]], data: st.DataObject) -> None:
    world = World()
    for batch in world_batches:
        world.commit(batch)
    cut = data.draw(st.integers(0, len(world.log)))
    shelf = Shelf()
    state = ChannelState("c")
    for place, entry in enumerate(world.log):
        apply_entry(state, entry)
        shelf.add(entry)
        message = state.messages[entry.op.id]
        if message.created == entry.serial or (place <= cut and data.draw(st.booleans())):
            shelf.put_document_of(message)
    restored = ChannelState("c")
    restored.insert(shelf.restore(message_id) for message_id in state.messages)
    assert everything(restored) == everything(state)


@given(batches, st.data())
def test_marks_of_a_restored_text_are_never_beyond_what_a_viewer_has(
    world_batches: list[list[Asked]], data: st.DataObject
) -> None:
    world, shelf = World(), Shelf()
    lengths: dict[tuple[str, int, int], int] = {}  # message, part, serial → length it had then
    for batch in world_batches:
        for entry in world.commit(batch):
            shelf.add(entry)
        for message in world.state.messages.values():
            if message.id not in shelf.documents or data.draw(st.booleans()):
                shelf.put_document_of(message)
            for index, part in enumerate(message.parts):
                lengths[message.id, index, world.state.serial] = part.length
    for (message_id, index, serial), length in lengths.items():
        known = shelf.restore(message_id)
        if known.deleted or index >= len(known.parts):
            continue
        part = known.parts[index]
        if part.text is not None and part.changed <= serial:
            assert part.text.length_at(serial) <= length


@given(batches)
def test_joining_changes_no_content(world_batches: list[list[Asked]]) -> None:
    joined, single = World(), World()
    for batch in world_batches:
        joined.commit(batch)
        for one in batch:
            single.commit([one])
    assert _content(joined) == _content(single)


def _content(world: World) -> dict[str, tuple[object, ...]]:
    messages = world.messages()
    order = sorted(messages, key=lambda one: messages[one].created)
    return {
        one: (messages[one].parts, messages[one].status, messages[one].meta, messages[one].reason, messages[one].role)
        for one in order
    }


@given(batches, st.data())
def test_applying_an_entry_or_a_run_of_them_again_changes_nothing(
    world_batches: list[list[Asked]], data: st.DataObject
) -> None:
    world = World()
    for batch in world_batches:
        world.commit(batch)
    state = fold(world.log)
    before = everything(state)
    start = data.draw(st.integers(0, len(world.log)))
    fold(world.log[start:], state)
    assert everything(state) == before


@given(batches)
def test_encode_then_decode_is_identity(world_batches: list[list[Asked]]) -> None:
    world = World()
    for batch in world_batches:
        world.commit(batch)
    assert [decode_op(encode_op(entry.op)) for entry in world.log] == [entry.op for entry in world.log]
    events = events_since(world.state, 0, limit=LIMIT) or []
    assert [decode_event(encode_json(event)) for event in events] == events


class Watched:
    """A world, and viewers whose connections fail in every way: the server's half of law 5."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.world = World()
        self.shelf = Shelf()
        self.state = self.world.state

    def commit(self, batch: list[Asked]) -> None:
        for entry in self.world.commit(batch):
            self.shelf.add(entry)
        for message in self.state.messages.values():
            if message.id not in self.shelf.documents or message.documented < max(
                message.edited, message.finished, message.taken_over, message.version if message.deleted else 0
            ):
                self.shelf.put_document_of(message)

    def restart(self) -> None:
        """Everything in memory is gone; what comes back has coarse marks and no tail."""
        old = self.world.state
        state = ChannelState("c", old.epoch, old.serial)
        state.newest = old.newest
        state.insert(self.shelf.restore(one) for one in old.messages)
        state.complete_since, state.history_from, state.has_older = 0, 1, False
        self.world.state = self.state = state

    def batch_for(self, view: View, limit: int) -> Batch:
        state = self.state
        since = int(view.cursor.split(":")[1]) if view.cursor is not None else None
        missed = events_since(state, since, limit=limit) if since is not None else None
        if missed is not None:
            return Batch(events=[resumed(state), *missed], cursor=str(state.cursor))
        page = newest_messages(state, 2, LIMITS)
        assert page is not None
        attached, updates = new_start(state, *page)
        return Batch(events=[attached, *updates], cursor=str(state.cursor))

    def check(self, view: View, *, is_complete: bool, is_new: bool = False) -> None:
        truth = self.world.messages()
        for shown in view.messages():
            for index, part in enumerate(shown.parts):
                text = part.get("text", part.get("input", ""))
                had = self.world.had[shown.id, index]
                assert any(one.startswith(text) for one in had), (shown.id, index, text, had)
            if is_complete:
                assert shown == truth[shown.id]
        if is_new:
            streaming = {one.id for one in truth.values() if one.status == "streaming"}
            assert streaming <= {one.id for one in view.messages()}


@settings(max_examples=4 * settings.default.max_examples)
@given(batches, st.data())
def test_every_viewer_ends_with_the_server_s_state_and_always_shows_a_prefix(
    world_batches: list[list[Asked]], data: st.DataObject
) -> None:
    watched = Watched(data)
    views = [View(), View()]
    sent: list[list[Batch]] = [[], []]
    for batch in world_batches:
        watched.commit(batch)
        if data.draw(st.integers(0, 9)) == 0:
            watched.restart()
        if data.draw(st.integers(0, 9)) == 0:
            watched.state.tail.restart(watched.state.serial)
        for view, log in zip(views, sent, strict=True):
            _show(watched, view, log, data)
    for view in views:
        view.cut()
        view.receive(watched.batch_for(view, LIMIT))
        watched.check(view, is_complete=True)


def _show(watched: Watched, view: View, log: list[Batch], data: st.DataObject) -> None:
    """One visit of a viewer: nothing, a batch, a batch cut short, or an old one again."""
    match data.draw(st.sampled_from(("nothing", "whole", "whole", "cut", "again"))):
        case "whole":
            batch = watched.batch_for(view, data.draw(st.sampled_from((1, LIMIT))))
            is_new = not batch.events[0].resumed  # type: ignore[union-attr]
            if is_new:
                log.clear()  # a new start is a new connection's or ends what was before it: nothing older follows
            log.append(batch)
            view.receive(batch)
            watched.check(view, is_complete=True, is_new=is_new)
        case "cut":
            batch = watched.batch_for(view, LIMIT)
            for event in batch.events[: data.draw(st.integers(0, len(batch.events)))]:
                view.receive(Batch(events=[event]))
                watched.check(view, is_complete=False)
            view.cut()
        case "again" if log:
            old = data.draw(st.sampled_from(log))
            attached = old.events[0]
            # A new start again would be one, and so would be the word that the channel is empty.
            if attached.resumed and attached.epoch != NO_EPOCH:  # type: ignore[union-attr]
                view.receive(Batch(events=old.events))
                watched.check(view, is_complete=False)
        case _:
            pass
