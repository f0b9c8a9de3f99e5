"""Granted and refused requests, one rule at a time (`docs/protocol.md`, 8.2, 8.3 and 11).

Layer: tests.

Refusals are raised; a refused request leaves the batch as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from tenuto.core.errors import (
    AuthorMismatch,
    Finished,
    ForbiddenStatus,
    Gap,
    IdConflict,
    InvalidName,
    InvalidRequest,
    InvalidText,
    Mismatch,
    NoPart,
    NotText,
    TenutoError,
    TooLarge,
    VersionConflict,
)
from tenuto.core.limits import Limits
from tenuto.core.ops import Append, SetPart, Takeover, WriterIdentity
from tenuto.core.requests import (
    AppendText,
    Caller,
    CreateMessage,
    ExpireLease,
    FinishMessage,
    PutPart,
    ReplyCommand,
    Request,
    SendCommand,
    UpdateMessage,
)
from tests.core.harness import ANN, BOB, SERVER, LogHarness, data_part, nested, text_part, tool_part

HALF = "\ud83d"  # half of a surrogate pair


# -- create ----------------------------------------------------------------------------------------------------


def test_the_same_create_again_is_success_after_edits_and_a_takeover(harness: LogHarness) -> None:
    harness.stream("m")
    harness.append("m", "text")
    harness.interrupt("m")
    harness.take_over("m")
    harness.update("m", meta={"x": 1}, generation=2, caller=BOB)
    again = harness.stream("m")
    assert (again.ops, again.serial, again.generation) == ((), 1, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"text": "ho"},
        {"text": "hi", "role": "assistant"},
        {"text": "hi", "status": "streaming"},
        {"text": "hi", "meta": {"a": 2}},
        {"text": "hi", "meta": {"a": 1}, "parent": None},
        {"text": "hi", "meta": {"a": 1}, "reply_to": "x"},
        {"parts": [{"type": "text", "text": "hi"}], "meta": {"a": 1}},
    ],
)
def test_a_create_with_other_content_as_sent_is_a_conflict(harness: LogHarness, other: dict[str, Any]) -> None:
    harness.create("m", text="hi", meta={"a": 1})
    with pytest.raises(IdConflict):
        harness.create("m", **other)


def test_author_that_the_client_names_must_be_the_caller_and_is_no_part_of_the_content(harness: LogHarness) -> None:
    ann = Caller(id="ann")
    harness.ask("m", CreateMessage(text="hi", if_author="ann"), ann)
    assert harness.known("m").author == "ann"
    assert harness.ask("m", CreateMessage(text="hi"), ann).ops == ()
    assert harness.ask("m", CreateMessage(text="hi", if_author="ann"), ann).ops == ()
    for caller in (Caller(id="bob"), Caller()):
        for message_id in ("m", "new"):  # also of a message that is stored: the outbox of its author keeps it
            with pytest.raises(AuthorMismatch):
                harness.ask(message_id, CreateMessage(text="hi", if_author="ann"), caller)
    for author in ("a" * 65, ""):
        with pytest.raises(InvalidName):
            harness.ask("new", CreateMessage(text="hi", if_author=author), ann)


def test_lease_does_not_expire_after_an_entry_that_the_hub_did_not_know(harness: LogHarness) -> None:
    harness.stream("m", lease_s=15)
    last = harness.known("m").last
    expire = ExpireLease(end=FinishMessage(status="interrupted", reason="writer_gone", generation=1), last=last)
    harness.append("m", "alive")
    assert harness.ask("m", expire, SERVER).ops == ()
    harness.ask("m", replace(expire, last=harness.known("m").last), SERVER)
    assert harness.known("m").status == "interrupted"


@pytest.mark.parametrize(
    ("key", "request_", "error"),
    [
        *(("n", CreateMessage(status=status), InvalidRequest) for status in ("cancelled", "failed", "bogus")),
        *(("m", FinishMessage(status=status), InvalidRequest) for status in ("streaming", "bogus", "")),
        ("m", FinishMessage(status="failed", reason="x" * 5_000), TooLarge),
        ("m", AppendText(text="x", part=-1), InvalidRequest),
        ("m", PutPart(index=-1, part=text_part()), InvalidRequest),
        ("m", UpdateMessage(text="b", parts=[text_part("b")], generation=1), InvalidRequest),
    ],
)
def test_value_outside_the_rules_is_refused(
    harness: LogHarness, key: str, request_: Request, error: type[TenutoError]
) -> None:
    harness.stream("m", "x")
    with pytest.raises(error):
        harness.ask(key, request_)


@pytest.mark.parametrize("bad", ["", "a/b", "a b", "x" * 65, ".", "é", HALF])
def test_name_or_id_outside_the_rules_is_refused_in_each_field(harness: LogHarness, bad: str) -> None:
    harness.stream("m")
    harness.command("c", "approve")
    for key, request in (
        (bad, CreateMessage(text="hi")),
        ("n", CreateMessage(parent=bad)),
        ("n", CreateMessage(reply_to=bad)),
        ("m", PutPart(index=0, part=text_part(), request=bad)),
        ("m", UpdateMessage(generation=1, request=bad)),
        ("m", FinishMessage(request=bad)),
        (f"!{bad}", SendCommand(name="steer")),
        ("!d", SendCommand(name=bad)),
        ("!d", SendCommand(name="steer", target=bad)),
        ("!d", SendCommand(name="cancel", target=bad)),
        ("!c", ReplyCommand(request=bad)),
    ):
        with pytest.raises((InvalidName, InvalidText)):
            harness.ask(key, request)
    assert len(harness.log) == 2


def test_null_in_meta_removes_a_key_at_the_top_only(harness: LogHarness) -> None:
    harness.create("m", meta={"gone": None, "kept": {"inner": None}})
    assert harness.message("m").meta == {"kept": {"inner": None}}


# -- append ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "at"), [("x", 0), ("help", 0), ("loX", 4), ("hello?", 0)])
def test_other_text_at_the_same_offset_is_a_mismatch(harness: LogHarness, text: str, at: int) -> None:
    harness.stream("m", "hello world")
    with pytest.raises(Mismatch) as refusal:
        harness.append("m", text, at=at)
    assert refusal.value.details == {"length": 11}


def test_the_first_append_opens_a_text_part_as_an_entry_of_its_own(harness: LogHarness) -> None:
    harness.stream("m", parts=[tool_part()])
    harness.now_ms = 2_000
    result = harness.append("m", "hi", at=0)
    assert result.ops == (SetPart(id="m", index=1, part=text_part("hi"), at_ms=2_000),)
    assert (result.part, result.length) == (1, 2)


def test_text_without_an_index_stands_behind_the_last_part_and_a_repeat_of_any_request_changes_nothing(
    harness: LogHarness,
) -> None:
    harness.stream("m", "Look: ")
    told: list[tuple[Request, int | None]] = [
        (AppendText(text="it ", at=6), 0),
        (PutPart(index=1, part=tool_part(), request="r1"), None),
        (AppendText(text="rains", at=9), 2),
        (AppendText(text=".", at=14), 2),
        (PutPart(index=3, part=data_part(), request="r2"), None),
        (AppendText(text=" Bye", at=15), 4),
    ]
    for number, (request, part) in enumerate(told, 1):
        assert harness.ask("m", request).part == part
        stored = len(harness.log)
        for earlier, place in told[:number]:
            assert harness.ask("m", earlier).part == place
        assert len(harness.log) == stored
    assert harness.append("m", "s. Bye, you", at=13).length == 24
    assert harness.append("m", "!").ops == (Append(id="m", part=4, at=9, text="!", at_ms=1_000),)
    for refused, at in ((Gap, 26), (Mismatch, 14)):
        with pytest.raises(refused) as refusal:
            harness.append("m", "x", at=at)
        assert refusal.value.details == {"length": 25}
    harness.finish("m")
    assert [harness.ask("m", one).length for one, part in told if part is not None] == [25] * 4
    texts = [one["text"] for one in harness.message("m").parts if one["type"] == "text"]
    assert texts == ["Look: it ", "rains.", " Bye, you!"]


@pytest.mark.parametrize("request_", [AppendText(text="x", part=2), PutPart(index=3, part=text_part())])
def test_missing_part_is_refused_with_the_number_of_parts(harness: LogHarness, request_: Request) -> None:
    harness.stream("m", parts=[text_part(), tool_part()])
    with pytest.raises(NoPart) as refusal:
        harness.ask("m", request_)
    assert refusal.value.details == {"parts": 2}


@pytest.mark.parametrize("part", [{"type": "source", "url": "u"}, {"type": "file"}, data_part("x")])
def test_append_to_a_part_without_text_is_refused(harness: LogHarness, part: dict[str, Any]) -> None:
    harness.stream("m", parts=[part])
    with pytest.raises(NotText):
        harness.append("m", "x", part=0)


# -- update ----------------------------------------------------------------------------------------------------


def test_if_version_refuses_when_the_message_has_changed_since(harness: LogHarness) -> None:
    harness.create("m", text="a")
    harness.update("m", text="b", if_version=1)
    with pytest.raises(VersionConflict) as refusal:
        harness.update("m", text="c", if_version=1)
    assert refusal.value.details == {"version": 2}


# -- finish ----------------------------------------------------------------------------------------------------


def test_only_the_server_creates_and_finishes_as_interrupted(harness: LogHarness) -> None:
    with pytest.raises(ForbiddenStatus):
        harness.create("m", status="interrupted")
    harness.stream("m")
    with pytest.raises(ForbiddenStatus):
        harness.finish("m", "interrupted")
    harness.finish("m", "interrupted", caller=SERVER)
    assert harness.message("m").status == "interrupted"


# -- takeover -------------------------------------------------------------------------------------------------


def test_a_takeover_of_an_interrupted_message_streams_again_in_the_next_generation(harness: LogHarness) -> None:
    harness.stream("m", parts=[text_part("abc"), data_part(), tool_part("é")])
    harness.interrupt("m")
    result = harness.take_over("m", lease_s=20)
    expected = Takeover(id="m", generation=2, writer=WriterIdentity(by="bob", node=None, lease_ms=20_000), at_ms=1_000)
    assert result.ops == (expected,)
    assert (result.generation, result.lengths) == (2, [3, 0, 1])
    message = harness.message("m")
    assert (message.status, message.reason, message.author) == ("streaming", None, "ann")


# -- the order of refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        AppendText(text="x", part=7),
        AppendText(text="x", part=1),
        AppendText(text="x", at=99),
        AppendText(text="b", at=0),
        AppendText(text="ab", at=0),
        AppendText(text="b", at=1),
        PutPart(index=9, part=text_part()),
        FinishMessage(status="failed"),
    ],
)
def test_finished_is_reported_before_other_errors(harness: LogHarness, request_: Request) -> None:
    harness.create("m", parts=[text_part("a"), data_part()])
    with pytest.raises(Finished):
        harness.ask("m", request_)


def test_repeat_takes_precedence_over_fenced_and_finished(harness: LogHarness) -> None:
    harness.stream("m")
    first = harness.part("m", 0, text_part("x"), request="r")
    harness.interrupt("m")
    harness.take_over("m")
    harness.finish("m", generation=2, caller=BOB)
    assert harness.part("m", 0, text_part("x"), request="r").serial == first.serial


# -- request ids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        PutPart(index=0, part=text_part("x"), request="r"),
        UpdateMessage(text="x", generation=1, request="r"),
        FinishMessage(request="r"),
    ],
)
def test_a_repeated_request_gets_its_first_serial_and_stores_nothing(harness: LogHarness, request_: Request) -> None:
    harness.stream("m")
    first = harness.ask("m", request_)
    again = harness.ask("m", request_)
    assert (first.serial, again.serial, again.ops, again.generation) == (2, 2, (), 1)


def test_a_message_keeps_its_last_16_requests(harness: LogHarness) -> None:
    harness.stream("m")
    serials = [harness.part("m", 0, text_part("x"), request=f"r{number}").serial for number in range(17)]
    kept = [harness.part("m", 0, text_part("x"), request=f"r{number}").serial for number in range(1, 17)]
    assert kept == serials[1:]
    assert harness.part("m", 0, text_part("x"), request="r0").serial == 19


# -- limits ----------------------------------------------------------------------------------------------------


def test_the_text_of_an_append_is_bounded_in_bytes() -> None:
    harness = LogHarness(Limits(append_bytes=8))
    harness.stream("m")
    harness.append("m", "中中ab")
    with pytest.raises(TooLarge) as refusal:
        harness.append("m", "中中中")
    assert refusal.value.details == {"limit": 8}


def test_message_is_bounded_in_bytes_for_each_kind_of_change() -> None:
    harness = LogHarness(Limits(message_bytes=1_000))
    harness.stream("m", "a" * 400)
    harness.append("m", "é" * 200)
    grow: Callable[[], object]
    for grow in (
        lambda: harness.append("m", "x" * 250),
        lambda: harness.part("m", 1, text_part("x" * 250)),
        lambda: harness.part("m", 0, text_part("x" * 1_001)),
        lambda: harness.update("m", text="x" * 1_001, generation=1),
        lambda: harness.create("n", text="x" * 1_001),
    ):
        with pytest.raises(TooLarge) as refusal:
            grow()
        assert refusal.value.details == {"limit": 1_000}


def test_number_of_parts_is_bounded() -> None:
    harness = LogHarness(Limits(parts=2))
    harness.stream("m", parts=[data_part(), data_part()])
    open_another: Callable[[], object]
    for open_another in (
        lambda: harness.append("m", "x"),
        lambda: harness.part("m", 2, data_part()),
        lambda: harness.update("m", parts=[data_part()] * 3, generation=1),
        lambda: harness.create("n", parts=[data_part()] * 3),
    ):
        with pytest.raises(TooLarge) as refusal:
            open_another()
        assert refusal.value.details == {"limit": 2}


def test_meta_is_bounded_after_it_is_merged() -> None:
    harness = LogHarness(Limits(meta_bytes=50))
    harness.stream("m", meta={"a": "x" * 30})
    merge: Callable[[], object]
    for merge in (
        lambda: harness.update("m", meta={"b": "x" * 30}, generation=1),
        lambda: harness.finish("m", meta={"b": "x" * 30}),
        lambda: harness.create("n", meta={"a": "x" * 60}),
        lambda: harness.create("n", meta={"usage": {"x" * 60: 1}}),  # no stream is written into a user's message
    ):
        with pytest.raises(TooLarge):
            merge()
    harness.update("m", meta={"a": None, "b": "x" * 30}, generation=1)
    assert harness.message("m").meta == {"b": "x" * 30}
    harness.update("m", meta={"$attempt": [*range(200)], "usage": {"input_tokens": 1}}, generation=1)
    with pytest.raises(TooLarge):
        harness.finish("m", meta={"usage": {"x" * 33_000: 1}})


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        *((bad, InvalidRequest) for bad in (nested(65), nested(100_000), 2**63, -(2**63) - 1, object())),
        *((float(bad), InvalidRequest) for bad in ("nan", "inf", "-inf")),
        ({1: 2}, InvalidRequest),
        (HALF, InvalidText),
        ({HALF: 1}, InvalidText),
    ],
    ids=range(11),
)
def test_value_that_json_cannot_carry_is_refused(harness: LogHarness, bad: object, error: type[TenutoError]) -> None:
    harness.stream("m")
    harness.command("c", "mine")
    asks: list[tuple[str, Request]] = [
        ("n", CreateMessage(meta={"x": bad})),
        ("n", CreateMessage(parts=[data_part(bad)])),
        ("n", CreateMessage(parts=[{"type": "file", "x": bad}])),
        ("m", PutPart(index=0, part=data_part(bad))),
        ("m", PutPart(index=0, part={**tool_part(), "output": bad})),
        ("m", UpdateMessage(parts=[{"type": "source", "x": bad}], generation=1)),
        ("m", UpdateMessage(meta={"x": bad}, generation=1)),
        ("m", FinishMessage(meta={"x": bad})),
        ("!d", SendCommand(name="mine", data={"x": bad})),
        ("!c", ReplyCommand(data=[bad])),
        ("!c", ReplyCommand(error=[bad])),
    ]
    for key, request in asks:
        with pytest.raises(error):
            harness.ask(key, request)
    assert len(harness.log) == 2


@pytest.mark.parametrize("half", [HALF, "a" + HALF, "\ude42", "\ude42" + HALF])
def test_half_a_surrogate_pair_is_refused_in_each_text(harness: LogHarness, half: str) -> None:
    harness.stream("m", "")
    asks: list[tuple[str, Request]] = [
        ("n", CreateMessage(text=half)),
        ("n", CreateMessage(parts=[text_part(half)])),
        ("m", AppendText(text=half)),
        ("m", PutPart(index=0, part=text_part(half))),
        ("m", PutPart(index=0, part=tool_part(half))),
        ("m", UpdateMessage(text=half, generation=1)),
        ("m", FinishMessage(reason=half)),
    ]
    for message_id, request in asks:
        with pytest.raises(InvalidText):
            harness.ask(message_id, request)
    assert len(harness.log) == 1


def test_later_changes_to_an_apps_objects_do_not_reach_the_log(harness: LogHarness) -> None:
    meta: dict[str, Any] = {"x": {"y": 1}}
    part: dict[str, Any] = {"type": "source", "tags": ["a"]}
    bar: dict[str, Any] = {"type": "data", "name": "bar", "data": {"done": 1}}
    harness.stream("m", meta=meta, parts=[part, bar])
    harness.update("m", meta={"z": meta}, generation=1)
    before = harness.message("m")
    meta["x"]["y"] = 2
    part["tags"].append("b")
    bar["data"]["done"] = 2
    assert harness.message("m") == before


def test_callers_are_distinguished_by_id_alone(harness: LogHarness) -> None:
    harness.create("m", text="hi")
    assert harness.create("m", text="hi", caller=Caller(id=ANN.id, is_server=True)).ops == ()
