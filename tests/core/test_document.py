"""Documents: a message as a store keeps it, and the way back (`docs/decisions/0001`).

Layer: tests.

`Shelf` (in `worlds`) keeps documents as a store does: the newest head, all segments since the
last fresh document, and the entries since.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from tenuto.core.document import MessageHead, Segment, Stored, document, mark_documented, restore
from tenuto.core.events import encode_json
from tenuto.core.state import MessageState
from tenuto.core.text import MARK_BYTES, Text
from tests.core.harness import BOB, LogHarness, data_part, text_part, tool_part
from tests.core.worlds import everything_of_message as everything


def stored(message: MessageState) -> Stored:
    """Return the message's document, through bytes and back, without earlier segments."""
    message.documented = 0
    kept = document(message)
    segments = msgspec.msgpack.decode(msgspec.msgpack.encode(kept.segments), type=list[Segment])
    return Stored(id=kept.id, head=kept.head, segments=segments, entries=[])


def full() -> LogHarness:
    """Build a message with a part of each type."""
    harness = LogHarness()
    harness.stream(
        "m", parts=[text_part("é中🙂"), tool_part("{"), data_part({"x": None}), text_part()], meta={"a": {"b": 1}}
    )
    harness.append("m", "more", part=0)
    harness.append("m", '"q"}', part=1)
    harness.now_ms = 2_000
    harness.part("m", 2, {"type": "file", "url": "u"}, request="r1")
    harness.interrupt("m")
    harness.take_over("m", request="r2")
    harness.append("m", "end", generation=2, caller=BOB)
    harness.finish("m", "failed", reason="no", meta={"c": 2}, generation=2, request="r3", caller=BOB)
    return harness


def test_fields_that_a_newer_version_adds_change_no_message() -> None:
    kept = stored(full().known("m"))
    head = msgspec.msgpack.decode(kept.head)
    parts = head[MessageHead.__struct_fields__.index("parts")]
    for longer in (head, parts[0]):
        longer += [None, 7, "new"]
    segments = [[*segment, "new"] for segment in msgspec.msgpack.decode(msgspec.msgpack.encode(kept.segments))]
    newer = Stored(
        id=kept.id, head=msgspec.msgpack.encode(head), segments=msgspec.convert(segments, list[Segment]), entries=[]
    )
    assert everything(restore(newer)) == everything(restore(kept))


def test_claim_of_a_question_with_a_photo_writes_no_photo_again() -> None:
    harness = LogHarness()
    photo = {"type": "file", "media_type": "image/png", "url": "data:image/png;base64," + "é" * 5_000}
    harness.create("m", parts=[text_part("what?"), photo, data_part({"x": 1})])
    message = harness.known("m")
    first = document(message)
    mark_documented(message, first.version)
    later = document(message)
    assert len(later.head) < 500
    assert not later.segments
    assert first.segments[1].text is message.parts[1].fields["url"]  # a copy would stop the event loop for 3 ms
    restored_message = restore(Stored(id="m", head=later.head, segments=first.segments, entries=[]))
    assert everything(restored_message) == everything(message)
    assert restored_message.size_bytes == message.size_bytes


def test_entries_that_the_document_covers_change_nothing() -> None:
    harness = full()
    kept = document(harness.known("m"))
    back = restore(Stored(id="m", head=kept.head, segments=kept.segments, entries=harness.log))
    assert everything(back) == everything(harness.known("m"))


@pytest.mark.parametrize(("piece", "bytes_each"), [("x", 1), ("é", 2), ("\n", 2), ("\x01", 6), ("tok🙂 ", 8)])
def test_stored_marks_stand_about_every_256_bytes_of_json(piece: str, bytes_each: int) -> None:
    harness = LogHarness()
    harness.stream("m", "")
    for _ in range(2_000):
        harness.append("m", piece)
    text = restore(stored(harness.known("m"))).parts[0].text
    assert isinstance(text, Text)
    whole = str(text)
    lengths = [0, *(length for _, length in text.marks_after(0))]
    gaps = [len(encode_json(whole[a:b])) - 2 for a, b in pairwise(lengths)]
    assert all(MARK_BYTES <= gap < MARK_BYTES + bytes_each for gap in gaps[:-1])
    assert lengths[-1] == len(whole)
    for serial in range(1, 2_002):
        missing = whole[text.length_at(serial) : (serial - 1) * len(piece)]
        assert len(encode_json(missing)) - 2 < MARK_BYTES


def test_a_part_that_was_set_with_text_is_known_as_it_was_set_behind_its_document() -> None:
    harness = LogHarness()
    harness.stream("m", "a")
    harness.part("m", 0, text_part("set "))
    harness.append("m", "and appended")
    back = restore(stored(harness.known("m")))
    assert back.parts[0].as_changed() == harness.known("m").parts[0].as_changed() == text_part("set ")
