"""The state machine of message writers, and its law: the stored message is exactly the accepted content.

Layer: tests.

The requests of the machine are decided and folded by the real core; only the failures between both are drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenuto.core.errors import (
    Busy,
    Draining,
    Fenced,
    Finished,
    InvalidRequest,
    LocalError,
    Mismatch,
    NotFound,
    NotText,
    StoreUnavailable,
    TenutoError,
    TooLarge,
)
from tenuto.core.limits import Limits
from tenuto.core.model import Part
from tenuto.core.outgoing import Outgoing, OutgoingRequest, OutgoingState, Owner, content_of
from tenuto.core.outgoing_remote import MAX_REFILLS, RemoteOutgoing, _stored_length
from tenuto.core.requests import AppendText, FinishMessage, PutPart
from tenuto.core.text import PartState
from tests.core.harness import APP, LogHarness
from tests.core.writing import Action, Expected, Made, contents, lanes, tried

LIMITS = Limits(append_bytes=400)  # pieces of 100 characters, so that some text needs several
VERBS = {"append": "accept_text", "part": "accept_part", "update": "accept_update"}


def new_log(**meta: Any) -> LogHarness:
    """Return a channel with an empty streaming message `m`."""
    harness = LogHarness(batches=True)
    harness.stream("m", caller=APP, meta=meta)
    harness.commit()
    return harness


def opened(kind: type[Outgoing] = Outgoing, harness: LogHarness | None = None) -> Outgoing:
    """Return a writer that is open at the end of message `m`."""
    outgoing = kind("m", LIMITS, "n")
    outgoing.load((harness or new_log()).message("m"), 1)
    outgoing.open()
    return outgoing


def opened_remote(harness: LogHarness | None = None) -> RemoteOutgoing:
    outgoing = opened(RemoteOutgoing, harness)
    assert isinstance(outgoing, RemoteOutgoing)
    outgoing.epoch = "e1"
    return outgoing


def accept(outgoing: Outgoing, expected: Expected, action: Action, owners: dict[int, Owner]) -> None:
    for name, arguments, made in expected.accept(action):
        if name == "begin":
            owners[expected.lane] = outgoing.begin_attempt()
        elif name in ("end", "fail"):
            owner = owners.pop(expected.lane)
            if name == "fail":
                outgoing.fail_attempt(owner)
            outgoing.end_attempt(owner)
        else:
            arguments = tuple(one.index if isinstance(one, Made) else one for one in arguments)
            owner_or_none = [owners.get(expected.lane)] if name != "update" else []
            index = getattr(outgoing, VERBS[name])(*arguments, *owner_or_none)
            if made is not None:
                made.index = index


def requests(outgoing: Outgoing, max_bytes: int = 10_000) -> list[Any]:
    return [one.request for one in outgoing.requests_to_send(max_bytes)]


# The law in process -----------------------------------------------------------------------------------------------

commits = st.tuples(st.just("commit"), st.sampled_from(["stored", "failed", "unknown"]))
outcomes = st.sampled_from([("commit", outcome) for outcome in ("stored", "failed", "unknown", "unknown")])


def commit(outgoing: Outgoing, harness: LogHarness, outcome: str, max_bytes: int = 10_000) -> None:
    """Decide the writer's requests as one batch. With an unknown outcome it is stored, and decided again later."""
    sent = requests(outgoing, max_bytes)
    if outcome == "failed":  # the store stays as it was, and the requests stay in flight
        return
    for request in sent:
        harness.ask("m", request, APP)
    harness.commit()
    if outcome == "stored":
        outgoing.stored(len(sent))


# A part is replaced while text for it is in a commit with an unknown outcome.
@example([("append", "the "), ("commit", "unknown"), ("rewrite", "new "), ("commit", "unknown")], 10_000)
@example([("append", "the "), ("commit", "stored"), ("append", "x"), ("rewrite", "new "), ("commit", "unknown")], 1)
# Half a character goes with the text that a rewrite drops.
@example([("append", "\ud83d"), ("rewrite", "new "), ("append", "\ude00")], 10_000)
# Half a character has reserved the text part when another part opens.
@example([("append", "\ud83d"), ("bar", 1)], 10_000)
# Text of the attempt is in a commit with an unknown outcome, and so are the requests after it.
@example(
    [
        *[("begin", None), ("append", "the "), ("commit", "unknown"), ("fail", None)],
        *[("append", "中文"), ("commit", "unknown"), ("commit", "unknown")],
    ],
    10_000,
)
# Two attempts fail behind a text, and each is a part of its own; the third one has two appends.
@example(
    [
        *[("append", "\n"), *[("begin", None), ("append", "the "), ("fail", None)] * 2],
        *[("append", "中文"), ("append", "the ")],
    ],
    10_000,
)
@given(
    st.lists(contents | contents | commits, max_size=30) | st.lists(tried | outcomes | lanes, min_size=5, max_size=30),
    st.sampled_from([1, 200, 10_000]),
)
def test_stored_message_is_the_accepted_content_after_failed_commits(todo: list[Action], max_bytes: int) -> None:
    harness, expected, owners = new_log(), Expected(), dict[int, Owner]()
    outgoing = opened(Outgoing, harness)
    for action in todo:
        if action[0] == "commit":
            commit(outgoing, harness, action[1], max_bytes)
        else:
            accept(outgoing, expected, action, owners)
    outgoing.accept_end(meta={"end": 1})
    expected.meta["end"] = 1
    assert outgoing.meta == expected.meta
    for _ in range(1_000):
        commit(outgoing, harness, "stored", max_bytes)
        if outgoing.state is OutgoingState.ENDED:
            break
    expected.check(harness.message("m"))
    assert outgoing.unstored_bytes == 0


# The law over a network -------------------------------------------------------------------------------------------

responses = st.tuples(st.just("respond"), st.sampled_from(["stored", "stored", "busy"]))
cuts = st.tuples(st.just("cut"), st.integers(0, 8))
losses = st.tuples(st.just("lose"), st.none())
events = st.one_of(responses, responses, responses, cuts, losses)
troubles = st.sampled_from(
    [*[("respond", "stored")] * 3, ("respond", "busy"), ("cut", 0), ("cut", 1), ("cut", 8), ("lose", None)]
)


class Network:
    """A server that decides each request on its own, and a connection that can be cut around each decision."""

    def __init__(self) -> None:
        self.harness = new_log(kept=1)
        self.outgoing = opened_remote(self.harness)
        self.epoch = "e1"
        self._pending: deque[OutgoingRequest] = deque()

    def step(self, kind: str, value: Any) -> None:
        """Let the server respond to the oldest request, cut the connection, or lose the server's log."""
        self.send()
        match kind:
            case "respond" if self._pending:
                one = self._pending.popleft()
                error = Busy("try again") if value == "busy" else self._decide(one)
                if error is None:
                    self.outgoing.request_stored(one)
                else:
                    self.outgoing.request_failed(one, error)
                self._continue()
            case "cut":
                self._cut(value)
            case "lose":
                self._cut(0, is_lost=True)

    def send(self) -> None:
        self._pending.extend(self.outgoing.requests_to_send(10_000))
        assert len(self._pending) <= RemoteOutgoing.max_in_flight

    def _cut(self, arrived: int, *, is_lost: bool = False) -> None:
        """Decide the first `arrived` requests; no response to any request comes through."""
        pending, self._pending = tuple(self._pending), deque()
        for number, one in enumerate(pending):
            if number < arrived:
                self._decide(one)
            self.outgoing.request_failed(one, StoreUnavailable("the connection broke"))
        self.outgoing.disconnected(StoreUnavailable("the connection broke"))
        if is_lost:
            self.harness = new_log(kept=1)
            self.epoch += "x"
        self._see()

    def _decide(self, one: OutgoingRequest) -> TenutoError | None:
        try:
            self.harness.ask("m", one.request, APP)
        except TenutoError as error:
            return error
        finally:
            self.harness.commit()
        return None

    def _continue(self) -> None:
        if self.outgoing.trouble is not None and not self.outgoing.in_flight:
            if self.outgoing.is_lost:
                self._see()
            else:
                self.outgoing.resume()

    def _see(self) -> None:
        self.outgoing.seen(self.harness.message("m"), self.epoch)


# Half a character waits while a part before it is replaced.
@example([("bar", 0), ("append", "\ud83d"), ("bar", 0), ("append", "\ude00")], [])
# The last value of a part, or of a key, must stay last when an earlier one was refused for now.
@example([("bar", 1), ("bar", 2), ("respond", "busy"), ("bar", 3)], [])
@example([("meta", {"a": 1}), ("meta", {"a": 2}), ("respond", "busy")], [])
# Text for a replaced part must not be added to the earlier one, which is as long.
@example(
    [("append", "the "), ("respond", "stored"), ("rewrite", "new "), ("append", "\n"), ("respond", "busy")],
    [("respond", "stored")],
)
@example(
    [("append", "the "), ("respond", "stored"), ("append", "\n"), ("rewrite", "new "), ("respond", "busy")],
    [("respond", "stored")],
)
# All content may be there already, with no request left.
@example([("meta", {"a": None}), ("respond", "stored"), ("lose", None)], [])
# A refill needs several requests.
@example([("append", "x" * 300), ("respond", "stored"), ("lose", None)], [("lose", None)])
# A lost log has neither the attempt nor what another task wrote beside it; text stands behind the sign of the attempt.
@example(
    [
        *[("begin", None), ("append", "the "), ("bar", 1), ("lane", 1), ("bar", 2), ("lane", 0), ("fail", None)],
        *[("think", "the "), ("lose", None), ("begin", None), ("append", "x"), ("lane", 1), ("append", "the ")],
    ],
    [],
)
@given(
    st.lists(contents | events | events, max_size=40) | st.lists(tried | troubles | lanes, min_size=5, max_size=30),
    st.lists(events, max_size=10) | st.lists(troubles, max_size=10),
)
def test_stored_message_is_the_accepted_content_after_cuts_refusals_and_losses(
    todo: list[Action], at_the_end: list[Action]
) -> None:
    network, expected, owners = Network(), Expected({"kept": 1}), dict[int, Owner]()
    outgoing = network.outgoing
    for action in todo:
        if action[0] in ("respond", "cut", "lose"):
            network.step(*action)
        else:
            accept(outgoing, expected, action, owners)
            network.send()
    text = outgoing.text if not expected.has_failed else ""
    outgoing.accept_end()
    for kind, value in at_the_end + [("respond", "stored")] * 1_000:
        network.step(kind, value)
        if outgoing.state is OutgoingState.ENDED:
            break
    message = network.harness.message("m")
    expected.check(message, may_lose=True)
    assert outgoing.text == message.text
    assert message.text.replace("\ufffd", "").startswith(text.replace("\ufffd", ""))  # halves end at the end
    assert outgoing.unstored_bytes == 0


def test_server_that_stays_behind_its_own_word_is_refused() -> None:
    harness = new_log()
    outgoing = opened_remote(harness)
    for _ in range(MAX_REFILLS + 1):
        outgoing.accept_text("a")
        for sent in outgoing.requests_to_send(10_000):
            outgoing.request_failed(sent, Mismatch("another text"))
        outgoing.seen(harness.message("m"), "e1")
    with pytest.raises(Mismatch):
        outgoing.accept_text("b")


def test_part_that_is_written_again_waits_for_its_replacement() -> None:
    harness = new_log()
    outgoing = opened_remote(harness)
    outgoing.accept_text("abc" * 40)
    harness.part("m", 0, {"type": "text", "text": "z" * 100}, caller=APP)
    harness.commit()
    outgoing.disconnected(StoreUnavailable("the connection broke"))
    assert outgoing.seen(harness.message("m"), "e2")
    assert [type(request) for request in requests(outgoing)] == [PutPart]
    outgoing.request_stored(outgoing.in_flight[0])
    assert requests(outgoing) == [AppendText(text="bc" + "abc" * 6, at=100, part=0, generation=1)]


def test_attempt_that_a_restored_server_still_shows_is_superseded_again() -> None:
    harness = new_log()
    outgoing = opened_remote(harness)
    trying = outgoing.begin_attempt()
    outgoing.accept_text("old", owner=trying)
    outgoing.accept_part({"type": "data", "name": "bar", "data": 1}, owner=trying)
    outgoing.fail_attempt(trying)
    outgoing.accept_text("new")
    harness.part("m", 0, {"type": "text", "text": "old"}, caller=APP)
    harness.part("m", 1, {"type": "data", "name": "bar", "data": 1}, caller=APP)
    harness.commit()
    outgoing.disconnected(StoreUnavailable("the connection broke"))
    assert outgoing.seen(harness.message("m"), "e2")
    while sent := outgoing.requests_to_send(10_000):
        for one in sent:
            harness.ask("m", one.request, APP)
            harness.commit()
            outgoing.request_stored(one)
    old = [{"type": "text", "text": "old"}, {"type": "data", "name": "bar", "data": 1}]
    assert harness.message("m").parts == [
        {"type": "attempt", "parts": old, "characters": 3},
        {"type": "text", "text": "new"},
    ]


@pytest.mark.parametrize("is_late", [False, True])
def test_first_text_of_a_part_goes_with_the_request_that_supersedes_by_it_unless_that_was_sent(is_late: bool) -> None:
    outgoing = opened_remote()
    trying = outgoing.begin_attempt()
    outgoing.accept_text("old", owner=trying)
    assert len(requests(outgoing)) == 1
    outgoing.fail_attempt(trying)
    index = outgoing.accept_part({"type": "text", "text": ""})
    assert requests(outgoing) == []  # the old text is in flight
    outgoing.request_stored(outgoing.in_flight[0])
    assert (requests(outgoing), outgoing.unstored_bytes) == ([], 0)  # it waits for its text
    if is_late:
        outgoing.accept_update({"late": True})
    else:
        outgoing.accept_text("new", index)
    (sent,) = requests(outgoing)
    assert sent.parts == [{"type": "text", "text": "" if is_late else "new"}]
    outgoing.request_failed(outgoing.in_flight[0], StoreUnavailable("the server may have stored it"))
    outgoing.accept_text(" text", index)
    outgoing.resume()
    assert requests(outgoing) == [sent]
    outgoing.request_stored(outgoing.in_flight[0])
    assert [(one.text, one.at) for one in requests(outgoing)[is_late:]] == [(" text", 0 if is_late else 3)]
    for one in tuple(outgoing.in_flight):
        outgoing.request_stored(one)
    assert outgoing.unstored_bytes == 0


@pytest.mark.parametrize("kind", [Outgoing, RemoteOutgoing])
def test_empty_name_of_a_field_is_an_ordinary_one_in_a_part_without_text(kind: type[Outgoing]) -> None:
    outgoing = opened(kind)
    outgoing.accept_part({"type": "source", "": 1})
    assert [request.part for request in requests(outgoing)] == [{"type": "source", "": 1}]
    assert _stored_length(PartState({"type": "source", "": 1}, 0, 0), {"type": "source", "": 2}) is None


@pytest.mark.parametrize("write", [lambda one: one.accept_text("a"), lambda one: one.accept_end()], ids=["text", "end"])
def test_message_that_ended_elsewhere_refuses_further_content(write: Callable[[Outgoing], None]) -> None:
    harness = new_log()
    outgoing = opened_remote(harness)
    write(outgoing)
    harness.finish("m", "cancelled", caller=APP)
    harness.commit()
    outgoing.disconnected(StoreUnavailable("the connection broke"))
    outgoing.seen(harness.message("m"), "e2")
    assert isinstance(outgoing.error, Finished)


# Which requests go together ---------------------------------------------------------------------------------------


def test_end_waits_for_all_requests_over_a_network_and_for_none_in_process() -> None:
    local, remote = opened(), opened_remote()
    for outgoing in (local, remote):
        outgoing.accept_text("x")
        outgoing.accept_end()
    assert [type(one) for one in requests(local)] == [AppendText, FinishMessage]
    assert [type(one) for one in requests(remote)] == [PutPart]


def test_requests_in_flight_are_bounded_by_bytes_and_by_number() -> None:
    outgoing = opened()
    for _ in range(20):
        outgoing.accept_part({"type": "source", "id": "x" * 73})  # 100 bytes
    assert len(requests(outgoing, 250)) == 3
    assert len(requests(outgoing)) == Outgoing.max_in_flight


# States -----------------------------------------------------------------------------------------------------------


def in_state(state: OutgoingState) -> Outgoing:
    """Return a writer in `state`, reached through its verbs."""
    if state is OutgoingState.NEW:
        return Outgoing("m", LIMITS, "n")
    outgoing = opened()
    if state is OutgoingState.REFUSED:
        outgoing.refuse(Fenced("generation 1 of message 'm' is stale, the current one is 2"))
    if state in (OutgoingState.ENDING, OutgoingState.ENDED):
        outgoing.accept_end()
    if state is OutgoingState.ENDED:
        outgoing.requests_to_send(10_000)
        outgoing.stored(1)
    return outgoing


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (OutgoingState.NEW, LocalError),
        (OutgoingState.ENDING, LocalError),
        (OutgoingState.ENDED, LocalError),
        (OutgoingState.REFUSED, Fenced),
    ],
)
@pytest.mark.parametrize(
    "accepting",
    [
        lambda outgoing: outgoing.accept_text("x"),
        lambda outgoing: outgoing.accept_part({"type": "text", "text": "x"}),
        lambda outgoing: outgoing.accept_update({"a": 1}),
        lambda outgoing: outgoing.accept_end(),
    ],
    ids=["text", "part", "update", "end"],
)
def test_content_is_accepted_in_the_open_state_only(
    state: OutgoingState, error: type[TenutoError], accepting: Callable[[Outgoing], None]
) -> None:
    outgoing = in_state(state)
    assert outgoing.state is state
    before = outgoing.unstored_bytes
    with pytest.raises(error):
        accepting(outgoing)
    assert outgoing.unstored_bytes == before


def test_requests_stay_until_they_are_stored_and_a_refusal_drops_them() -> None:
    outgoing = opened()
    outgoing.accept_text("x")
    sent = requests(outgoing)
    assert requests(outgoing) == sent
    outgoing.accept_text("y")
    outgoing.refuse(TooLarge("message 'm' would have 9 bytes, the limit is 8"))
    assert (requests(outgoing), outgoing.unstored_bytes) == ([], 0)
    assert outgoing.state is OutgoingState.REFUSED
    outgoing.close()
    with pytest.raises(LocalError, match="has ended"):
        outgoing.accept_text("z")


def test_late_response_changes_no_refused_writer() -> None:
    outgoing = opened_remote()
    outgoing.accept_text("x")
    (one,) = outgoing.requests_to_send(10_000)
    outgoing.refuse(Draining("the client is closed"))
    outgoing.request_stored(one)
    outgoing.request_failed(one, NotFound("message 'm' does not exist"))
    assert isinstance(outgoing.error, Draining)
    assert outgoing.unstored_bytes == 0


# Content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Outgoing, RemoteOutgoing])
@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda outgoing: outgoing.accept_text(b"bytes"), InvalidRequest),
        (lambda outgoing: outgoing.accept_text("x", 7), LocalError),
        (lambda outgoing: outgoing.accept_text("x", -1), LocalError),
        (lambda outgoing: outgoing.accept_text("x", 0), NotText),
        (lambda outgoing: outgoing.accept_part({"type": "odd"}), InvalidRequest),
        (lambda outgoing: outgoing.accept_part({"type": "text"}, 9), LocalError),
        (lambda outgoing: outgoing.accept_update([1]), InvalidRequest),
        (lambda outgoing: outgoing.accept_update({"a": "x" * 20_000}), TooLarge),
        (lambda outgoing: outgoing.accept_end("bogus"), InvalidRequest),
        (lambda outgoing: outgoing.accept_end("interrupted"), InvalidRequest),
        (lambda outgoing: outgoing.accept_end(meta={"a": object()}), InvalidRequest),
    ],
)
def test_mistake_is_raised_by_its_call_and_changes_no_state(
    kind: type[Outgoing], mistake: Callable[[Outgoing], None], error: type[TenutoError]
) -> None:
    outgoing = opened(kind)
    outgoing.accept_part({"type": "data", "name": "n", "data": 1})
    before = outgoing.unstored_bytes
    with pytest.raises(error):
        mistake(outgoing)
    assert outgoing.state is OutgoingState.OPEN
    assert (outgoing.unstored_bytes, len(requests(outgoing))) == (before, 1)


def test_part_larger_than_a_request_is_refused_over_a_network() -> None:
    outgoing = opened_remote()
    with pytest.raises(TooLarge):
        outgoing.accept_part({"type": "data", "name": "n", "data": "x" * LIMITS.request_bytes})


def test_index_from_before_a_supersede_names_no_later_part() -> None:
    outgoing = opened()
    kept = outgoing.accept_part({"type": "data", "name": "n", "data": 0})
    trying = outgoing.begin_attempt()
    old = outgoing.accept_part({"type": "text", "text": "old"}, owner=trying)
    beside = outgoing.accept_part({"type": "data", "name": "n", "data": 5})
    outgoing.fail_attempt(trying)
    outgoing.end_attempt(trying)
    new = outgoing.accept_part({"type": "data", "name": "n", "data": 1})
    outgoing.accept_text("new")
    assert outgoing.accept_part({"type": "data", "name": "n", "data": 6}, beside) == 2
    with pytest.raises(LocalError, match="part 1 of message 'm' was superseded; write it again, with part"):
        outgoing.accept_text("more", old)
    assert outgoing.accept_part({"type": "data", "name": "n", "data": 2}, old) == 5
    assert outgoing.accept_part({"type": "data", "name": "n", "data": 3}, kept) == 0
    assert outgoing.accept_part({"type": "data", "name": "n", "data": 4}, new) == 3


def taken_over(*parts: Part, kind: type[Outgoing] = Outgoing) -> tuple[LogHarness, Any]:
    """Return a later writer of message `m`, to which an earlier one has written a text, and `parts`."""
    harness = new_log()
    first = opened(harness=harness)
    first.accept_text("left ")
    for part in parts:
        first.accept_part(part)
    while first.unstored_bytes:
        commit(first, harness, "stored")
    then = kind("m", LIMITS, "o")
    then.load(harness.message("m"), 2)
    then.generation = 1  # no other writer has taken it over
    then.open()
    return harness, then


def counted(harness: LogHarness, outgoing: Outgoing) -> list[str]:
    """Return the texts of message `m` that count, once all requests are stored."""
    while outgoing.unstored_bytes:
        commit(outgoing, harness, "stored")
    return [part["text"] for part in harness.message("m").parts if part["type"] == "text"]


@pytest.mark.parametrize("is_attached", [False, True], ids=["continued", "attached"])
def test_text_of_another_task_stands_behind_the_text_that_an_attempt_takes_up(is_attached: bool) -> None:
    harness, then = taken_over()
    trying = then.begin_attempt()
    (index,) = then.reopen_left(trying, lengths={} if is_attached else None)
    then.accept_text("of a task")
    then.accept_text("on", index, trying)
    then.accept_part({"type": "text", "text": "left on", "joins": [5]}, index, trying)
    assert counted(harness, then) == ["left on", "of a task"]


@pytest.mark.parametrize("part", [None, 0])
def test_text_that_follows_a_restored_stream_replaces_what_an_earlier_writer_added_behind_it(part: int | None) -> None:
    harness, then = taken_over()
    trying = then.begin_attempt()
    content = content_of([{"type": "text", "text": "le"}])
    assert then.restore({0: 2}, content, trying) == {0: {"type": "text", "text": "le"}}
    then.end_attempt(trying)
    assert (counted(harness, then), then.length) == (["left "], 2)
    for text in ("gal", "ly"):
        then.accept_text(text, part)
    assert counted(harness, then) == ["legally"]


def test_text_behind_a_restored_stream_does_not_count_in_another_epoch_either() -> None:
    (_, then), harness = taken_over(kind=RemoteOutgoing), new_log()
    then.restore({0: 2}, content_of([{"type": "text", "text": "le"}]), then.begin_attempt())
    then.seen(harness.message("m"), "e2")
    assert (counted(harness, then), then.length) == (["left "], 2)
    then.accept_text("gal", 0)
    assert (counted(harness, then), then.length) == (["legal"], 5)


def test_text_behind_a_restored_stream_supersedes_a_step_that_the_answer_has_no_more() -> None:
    harness, then = taken_over({"type": "tool", "call": "c", "name": "step", "state": "done"})
    then.begin_again({}, supersedes=False, steps=["c"])
    then.restore({0: 5}, content_of([{"type": "text", "text": "left "}]), then.begin_attempt())
    then.accept_text("on")
    assert counted(harness, then) == ["left ", "on"]
    assert [part["type"] for part in harness.message("m").parts] == ["text", "attempt", "text"]


@pytest.mark.parametrize("is_attached", [False, True], ids=["continued", "attached"])
def test_text_added_before_an_attempt_outlives_it_and_an_attached_response_follows_it(is_attached: bool) -> None:
    harness, then = taken_over()
    then.accept_text("note " if is_attached else "left ")
    around = then.begin_attempt()
    trying = then.begin_attempt(around)
    assert then.reopen_left(trying, lengths={} if is_attached else None) == {}
    then.accept_text("tried", owner=trying)
    then.end_attempt(trying)
    then.fail_attempt(around)
    then.end_attempt(around)
    then.accept_part({"type": "text", "text": "end"})
    assert counted(harness, then) == ["note " if is_attached else "left ", "end"]


@pytest.mark.parametrize("is_attached", [False, True], ids=["continued", "attached"])
def test_text_added_to_what_was_left_stands_behind_a_later_part_until_an_attempt_begins(is_attached: bool) -> None:
    harness, then = taken_over()
    then.accept_text("and \ud83d")
    then.accept_part({"type": "data", "name": "n", "data": 1})
    for text in ("\ude00 ", "more "):
        then.accept_text(text)
    assert counted(harness, then) == ["left and ", "😀 more "]
    trying = then.begin_attempt()
    assert then.reopen_left(trying, lengths={} if is_attached else None) == {}
    then.accept_text("tried", owner=trying)
    assert counted(harness, then) == ["and 😀 more ", "tried"]


def test_parts_before_a_response_that_is_attached_to_again_belong_to_the_message() -> None:
    _, then = taken_over({"type": "text", "text": "of the response"})
    trying = then.begin_attempt()
    assert list(then.reopen_left(trying, 1, lengths={})) == [1]
    assert (then.has_left(), then.reopen_left(trying)) == (False, {})


def test_thoughts_that_are_added_to_those_left_are_not_written_again_as_text() -> None:
    harness, then = taken_over({"type": "reasoning", "text": "Hm"})
    then.accept_text(", yes", 1)
    assert then.reopen_left(then.begin_attempt()) == {}
    then.accept_part({"type": "data", "name": "n", "data": 1})
    assert counted(harness, then) == []


def test_text_that_another_task_adds_after_a_question_stands_behind_it() -> None:
    """A client has the parts up to the question as a response, which has ended: it would miss what they get later."""
    harness = new_log()
    outgoing = opened(harness=harness)
    beside = outgoing.begin_attempt()
    outgoing.accept_text("Beside, ", owner=beside)
    outgoing.accept_part({"type": "data", "name": "call", "data": 1})
    outgoing.close_text()
    outgoing.accept_text("more. ", owner=beside)
    assert counted(harness, outgoing) == ["Beside, ", "more. "]
