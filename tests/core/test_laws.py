"""The laws of the log and the fold, each as a property.

Layer: tests.

A failure that shrinks to something instructive becomes a vector in `tests/vectors/`.
"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.catch_up import events_since, new_start, newest_messages, resumed
from tenuto.core.decide import decide, plain_append
from tenuto.core.draft import Draft
from tenuto.core.errors import TenutoError
from tenuto.core.events import EMPTY, NO_EPOCH, Batch, CommandReply, CommandSent, ServerEvent, encode_json
from tenuto.core.limits import Limits
from tenuto.core.ops import Append, Claim, Lease, WriterIdentity, decode_op, encode_op
from tenuto.core.requests import AppendText, Caller
from tenuto.core.state import ChannelState, MessageState, apply_entry
from tenuto.core.view import View
from tests.core.worlds import IDS, LIMITS, Asked, Shelf, World, batches, everything, fold, thing, worlds

LIMIT = 200


@given(worlds, st.data())
def test_snapshot_plus_tail_equals_the_whole_log(world: World, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(world.log)))
    shelf = Shelf()
    state = ChannelState("c")
    for place, entry in enumerate(world.log):
        apply_entry(state, entry)
        shelf.add(entry)
        one = thing(state, entry.op.id)
        if one.created == entry.serial or (place <= cut and data.draw(st.booleans())):
            shelf.put_document_of(one)
    restored = ChannelState("c")
    restored.insert(shelf.restore_all())
    assert everything(restored) == everything(state)
    assert list(restored.messages) == [one.id for one in sorted(state.messages.values(), key=_version)]
    assert restored.pending_commands() != [] or state.pending_commands() == []


def _version(message: MessageState) -> int:
    return message.version


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
    seen: dict[str, tuple[object, ...]] = {
        one.id: (one.parts, one.status, one.meta, one.reason, one.role, one.parent) for one in world.messages().values()
    }
    hidden = {one.id + " hidden": (one.claim, one.writer, one.generation) for one in world.truth.messages.values()}
    commands = {
        sent.id: (sent.name, sent.target, sent.data, reply and (reply.ok, reply.data, reply.error))
        for sent, reply in ((one.sent, one.reply) for one in world.truth.commands.values())
    }
    return {**seen, **hidden, **commands}


@given(worlds, st.data())
def test_applying_an_entry_or_a_run_of_them_again_changes_nothing(world: World, data: st.DataObject) -> None:
    state = fold(world.log)
    before = everything(state)
    start = data.draw(st.integers(0, len(world.log)))
    fold(world.log[start:], state)
    assert everything(state) == before


@given(worlds)
def test_every_entry_but_claims_and_leases_is_one_event(world: World) -> None:
    state = ChannelState("c")
    for entry in world.log:
        versions = {one.id: one.version for one in state.messages.values()}
        order = list(state.messages)
        apply_entry(state, entry)
        assert state.serial == entry.serial
        events = events_since(state, entry.serial - 1, limit=LIMIT)
        if isinstance(entry.op, Claim | Lease):
            assert events == []
            assert {one.id: one.version for one in state.messages.values()} == versions
            assert list(state.messages) == order
        else:
            assert [event.serial for event in events or ()] == [entry.serial]
        assert thing(state, entry.op.id) in (*state.messages.values(), *state.commands.values())


@given(worlds, st.data())
def test_catch_up_since_any_serial_is_ordered_and_has_each_change_once(world: World, data: st.DataObject) -> None:
    since = data.draw(st.integers(0, len(world.log)))
    events = events_since(world.state, since, limit=LIMIT)
    assert events is not None
    serials = [event.serial for event in events]
    assert serials == sorted(serials)
    assert all(since < serial <= world.state.serial for serial in serials)
    sent = [event.command for event in events if isinstance(event, CommandSent)]
    received = [event for event in events if isinstance(event, CommandReply)]
    created = {one.id[1:]: one.created for one in world.truth.commands.values()}
    assert {one.id: one for one in sent} == {
        one: command for one, command in world.commands().items() if created[one] > since
    }
    assert received == [reply for reply in world.replies() if reply.serial > since]
    assert len(sent) == len({one.id for one in sent})


@given(worlds)
def test_encode_then_decode_is_identity(world: World) -> None:
    assert [decode_op(encode_op(entry.op)) for entry in world.log] == [entry.op for entry in world.log]
    events = events_since(world.state, 0, limit=LIMIT) or []
    assert [msgspec.json.decode(encode_json(event), type=ServerEvent) for event in events] == events


class Watched:
    """A world, and viewers whose connections fail in every way: the server's half of law 5."""

    def __init__(self) -> None:
        self.world = World()
        self.shelf = Shelf()
        self.state = self.world.state

    def commit(self, batch: list[Asked]) -> None:
        self.load()  # decisions are made with all they need in memory
        for entry in self.world.commit(batch):
            self.shelf.add(entry)
        for message in self.state.messages.values():
            if message.id not in self.shelf.documents or message.documented < max(
                message.edited, message.finished, message.taken_over, message.version if message.deleted else 0
            ):
                self.shelf.put_document_of(message)
        for command in self.state.commands.values():
            if command.id not in self.shelf.documents:
                self.shelf.put_document_of(command)

    def restart(self) -> None:
        """Drop all memory; restored state has coarse marks and no first values of parts."""
        old = self.world.state
        state = ChannelState("c", old.epoch, old.serial)
        state.newest = old.newest
        state.insert(self.shelf.restore_all())
        state.complete_since, state.history_from = 0, 1
        self.world.state = self.state = state

    def load(self) -> None:
        """Restore state that had left memory."""
        state = self.state
        state.insert(one for one in self.shelf.restore_all() if not state.knows(one.id))
        state.complete_since, state.history_from = 0, 1

    def batch_for(self, view: View, limit: int) -> Batch:
        state = self.state
        since = serial_of(view) if view.cursor is not None else None
        if since is None or since < state.complete_since:
            self.load()
        missed = events_since(state, since, limit=limit) if since is not None else None
        if missed is not None:
            return Batch(events=[resumed(state), *missed], cursor=state.cursor)
        self.load()
        page = newest_messages(state, 2, LIMITS)
        assert page is not None
        attached, updates = new_start(state, *page)
        return Batch(events=[attached, *updates], cursor=state.cursor)

    def check(self, view: View, *, is_complete: bool, is_new: bool = False) -> None:
        truth = self.world.messages()
        for shown in view.messages():
            for index, part in enumerate(shown.parts):
                text = part.get("text", part.get("input", ""))
                had = self.world.had[shown.id, index]
                assert any(one.startswith(text) for one in had), (shown.id, index, text, had)
            if is_complete:
                assert shown == truth[shown.id]
        commands = self.world.commands()
        for command in view.commands():
            assert command == commands[command.id]
        if is_complete:
            assert {command.id: command for command in view.commands()} == self.world.pending()
        if is_new:
            streaming = {one.id for one in truth.values() if one.status == "streaming"}
            assert streaming <= {one.id for one in view.messages()}


class Viewer:
    """A view, the batches that it received, and the replies among them."""

    def __init__(self) -> None:
        self.view = View()
        self.sent: list[Batch] = []  # the batches since the last new start
        self.received: list[CommandReply] = []

    def receive(self, batch: Batch) -> None:
        if self.view.cursor == str(EMPTY):
            self.received.clear()  # the channel was empty, so a new start follows: its log may be of another epoch
        self.view.receive(batch)
        self.received += [one for one in self.view.passed if isinstance(one, CommandReply)]

    def check_received(self, world: World, since: int | None) -> None:
        """Check that each reply since `since` came once and unchanged; None: it was a new start."""
        replies = world.replies()
        assert len({one.id for one in self.received}) == len(self.received), "received twice"
        assert all(one in replies for one in self.received)
        assert {one.id for one in self.received}.isdisjoint(command.id for command in self.view.commands())
        if since is not None:
            assert all(one in self.received for one in replies if one.serial > since), "missed"


@given(batches, st.data())
def test_every_viewer_ends_with_the_server_s_state_and_always_shows_a_prefix(
    world_batches: list[list[Asked]], data: st.DataObject
) -> None:
    watched = Watched()
    viewers = [Viewer(), Viewer()]
    for batch in world_batches:
        watched.commit(batch)
        match data.draw(st.integers(0, 19)):
            case 0 | 1:
                watched.restart()
            case 2 | 3:
                for part in (part for message in watched.state.messages.values() for part in message.parts):
                    part.first = None
            case 4 | 5:
                watched.state.trim(0)
        for viewer in viewers:
            _show(watched, viewer, data)
    for viewer in viewers:
        viewer.view.cut()
        _take(watched, viewer, LIMIT)


def serial_of(view: View) -> int:
    """Return the last serial that a view has seen."""
    assert view.cursor is not None
    return int(view.cursor.split(":")[1])


def _take(watched: Watched, viewer: Viewer, limit: int) -> None:
    """A whole batch arrives."""
    since = serial_of(viewer.view) if viewer.view.cursor is not None else None
    batch = watched.batch_for(viewer.view, limit)
    is_new = not batch.events[0].resumed  # type: ignore[union-attr]
    if is_new:
        viewer.sent.clear()  # a new start ends the earlier view, so no older batch follows it
    viewer.sent.append(batch)
    viewer.receive(batch)
    watched.check(viewer.view, is_complete=True, is_new=is_new)
    viewer.check_received(watched.world, None if is_new else since)


def _show(watched: Watched, viewer: Viewer, data: st.DataObject) -> None:
    """One visit of a viewer: no batch, a batch, an interrupted batch, or an old one again."""
    match data.draw(st.sampled_from(("nothing", "whole", "whole", "cut", "again"))):
        case "whole":
            _take(watched, viewer, data.draw(st.sampled_from((1, LIMIT))))
        case "cut":
            batch = watched.batch_for(viewer.view, LIMIT)
            for event in batch.events[: data.draw(st.integers(0, len(batch.events)))]:
                viewer.receive(Batch(events=[event]))
                watched.check(viewer.view, is_complete=False)
                viewer.check_received(watched.world, None)
            viewer.view.cut()
        case "again" if viewer.sent:
            old = data.draw(st.sampled_from(viewer.sent))
            attached = old.events[0]
            # A second new start would be one too, and so would the notice that the channel is empty.
            if attached.resumed and attached.epoch != NO_EPOCH:  # type: ignore[union-attr]
                viewer.receive(Batch(events=old.events))
                watched.check(viewer.view, is_complete=False)
                viewer.check_received(watched.world, None)
        case _:
            pass


TIGHT = Limits(append_bytes=7, message_bytes=40)
texts_of_any_kind = st.text(st.sampled_from("ab é中🙂\ud800"), max_size=5)


@given(worlds, st.data())
def test_fast_path_for_appends_returns_the_decision_or_none(world: World, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(tuple(world.state.messages) or IDS))
    message = world.state.messages.get(key)
    lengths = [part.length for part in message.parts] if message is not None else []
    generation = message.generation if message is not None else 1
    part = data.draw(st.sampled_from((*range(len(lengths)), 0, 0, 0, 2, None)))
    length = lengths[part] if part is not None and part < len(lengths) else 0
    request = AppendText(
        text=data.draw(texts_of_any_kind),
        at=data.draw(st.sampled_from((*[length] * 6, None, max(0, length - 1), length + 1))),
        part=part,
        generation=data.draw(st.sampled_from((*[generation] * 6, None, 1, 2))),
    )
    limits = data.draw(st.sampled_from((LIMITS, TIGHT)))
    writer = Caller(id="w", writer=WriterIdentity(by="w", node="n"), is_app=True)
    short = plain_append(world.state, key, request, limits)
    try:
        ops = decide(Draft(world.state), key, request, caller=writer, now_ms=0, limits=limits).ops
    except TenutoError:
        ops = ()
    is_in_place = None not in (request.at, request.part, request.generation)
    is_whole = bool(ops) and isinstance(ops[0], Append) and ops[0].text == request.text
    assert short == (ops[0] if is_in_place and is_whole else None)
