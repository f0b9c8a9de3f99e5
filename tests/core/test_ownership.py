"""The rights of each caller on each message, as tables (`docs/protocol.md`, 8.3; `docs/security.md`).

Layer: tests.

Transports check capabilities; these are the rules behind them. A column is
a caller, a row is a request, a cell is "ok" or the code of the refusal.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tenuto.core.errors import Deleted, Fenced, Forbidden, NotWriter, TenutoError
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import (
    AppendText,
    Caller,
    ClaimTurn,
    CreateMessage,
    DeleteMessage,
    EndTurn,
    FinishMessage,
    PutPart,
    RenewLease,
    Request,
    TakeOver,
    UpdateMessage,
)
from tests.core.harness import ADMIN, ANN, APP, BOB, NAMELESS, LogHarness, text_part

HUB = Caller(is_server=True)
EVE = Caller(id="eve", may_read=False)  # may not learn which messages exist

WHO = {
    "owner": ANN,
    "other": BOB,
    "admin": ADMIN,
    "app": APP,
    "server": HUB,
    "nameless": NAMELESS,
    "blind": EVE,
    "blind_owner": replace(ANN, may_read=False),
}

REQUESTS: dict[str, Request] = {
    "append": AppendText(text="more"),
    "append_again": AppendText(text="te", at=0),
    "part": PutPart(index=0, part=text_part("other")),
    "finish": FinishMessage(),
    "lease": RenewLease(lease_s=60),
    "update": UpdateMessage(text="other"),
    "update_in_1": UpdateMessage(text="other", generation=1),
    "takeover": TakeOver(),
    "delete": DeleteMessage(),
    "create": CreateMessage(text="text"),
    "end": EndTurn(generation=1),
    "claim": ClaimTurn(generation=0),
}

STREAMING = """
             owner      other       admin       app        server     nameless    blind      blind_owner
append       ok         not_writer  not_writer  ok         ok         not_writer  not_found  ok
append_again ok         not_writer  not_writer  ok         ok         not_writer  not_found  ok
part         ok         not_writer  not_writer  ok         ok         not_writer  not_found  ok
finish       ok         not_writer  not_writer  ok         ok         not_writer  not_found  ok
lease        ok         not_writer  not_writer  ok         ok         not_writer  not_found  ok
update       streaming  forbidden   streaming   streaming  streaming  forbidden   not_found  streaming
update_in_1  ok         forbidden   not_writer  ok         ok         forbidden   not_found  ok
takeover     streaming  streaming   ok          streaming  ok         streaming   not_found  streaming
delete       ok         forbidden   ok          ok         ok         forbidden   not_found  ok
"""

COMPLETE = """
             owner      other       admin       app        server     nameless    blind      blind_owner
append       finished   not_writer  not_writer  finished   finished   not_writer  not_found  finished
append_again ok         not_writer  not_writer  ok         ok         not_writer  not_found  ok
part         finished   not_writer  not_writer  finished   finished   not_writer  not_found  finished
finish       ok         not_writer  not_writer  ok         ok         not_writer  not_found  ok
lease        finished   not_writer  not_writer  finished   finished   not_writer  not_found  finished
update       ok         forbidden   ok          ok         ok         forbidden   not_found  ok
update_in_1  ok         forbidden   ok          ok         ok         forbidden   not_found  ok
takeover     finished   finished    finished    finished   finished   finished    not_found  finished
delete       ok         forbidden   ok          ok         ok         forbidden   not_found  ok
create       ok         id_conflict id_conflict id_conflict id_conflict id_conflict id_conflict ok
end          finished   finished    finished    finished   finished   finished    not_found  finished
claim        finished   finished    finished    finished   finished   finished    not_found  finished
"""

INTERRUPTED = """
             owner      other       admin       app        server     nameless    blind      blind_owner
append       finished   not_writer  not_writer  finished   finished   not_writer  not_found  finished
append_again ok         not_writer  not_writer  ok         ok         not_writer  not_found  ok
finish       finished   not_writer  not_writer  finished   finished   not_writer  not_found  finished
lease        finished   not_writer  not_writer  finished   finished   not_writer  not_found  finished
update       ok         forbidden   ok          ok         ok         forbidden   not_found  ok
takeover     ok         ok          ok          ok         ok         ok          not_found  ok
delete       ok         forbidden   ok          ok         ok         forbidden   not_found  ok
"""

# A writer that lost the message gets `fenced`, also if its identity is another one: it must stop.
TAKEN_OVER_BY_CAROL = """
             owner      other       admin       app        server     nameless    blind      blind_owner
append       fenced     not_writer  not_writer  fenced     fenced     not_writer  not_found  fenced
append_again fenced     not_writer  not_writer  fenced     fenced     not_writer  not_found  fenced
part         fenced     not_writer  not_writer  fenced     fenced     not_writer  not_found  fenced
finish       fenced     not_writer  not_writer  fenced     fenced     not_writer  not_found  fenced
lease        fenced     not_writer  not_writer  fenced     fenced     not_writer  not_found  fenced
update       streaming  forbidden   streaming   streaming  streaming  forbidden   not_found  streaming
update_in_1  fenced     forbidden   not_writer  fenced     fenced     forbidden   not_found  fenced
takeover     streaming  streaming   ok          streaming  ok         streaming   not_found  streaming
delete       ok         forbidden   ok          ok         ok         forbidden   not_found  ok
"""

DELETED = """
             owner      other       admin       app        server     nameless    blind      blind_owner
append_again deleted    deleted     deleted     deleted    deleted    deleted     not_found  deleted
delete       ok         ok          ok          ok         ok         ok          not_found  ok
claim        deleted    deleted     deleted     deleted    deleted    deleted     not_found  deleted
"""

WITHOUT_AUTHOR = """
             other       admin       app        server     nameless    blind
append       not_writer  not_writer  finished   finished   not_writer  not_found
update       forbidden   ok          ok         ok         forbidden   not_found
delete       forbidden   ok          ok         ok         forbidden   not_found
"""

# Anonymous callers cannot be distinguished: one may write another's streaming message.
ANONYMOUS_STREAMING = """
             other       admin       app        server     nameless
append       not_writer  not_writer  ok         ok         ok
finish       not_writer  not_writer  ok         ok         ok
update_in_1  forbidden   not_writer  ok         ok         ok
delete       forbidden   ok          ok         ok         ok
"""

ANONYMOUS_DONE = """
             other       admin       app        server     nameless
finish       not_writer  not_writer  ok         ok         ok
update       forbidden   ok          ok         ok         forbidden
delete       forbidden   ok          ok         ok         forbidden
"""

# A process of the app writes in the name of ann: the person ann is not its writer.
IN_PROCESS = """
             owner      other       admin       app        server     nameless    blind
append       not_writer not_writer  not_writer  ok         ok         not_writer  not_found
part         not_writer not_writer  not_writer  ok         ok         not_writer  not_found
finish       not_writer not_writer  not_writer  ok         ok         not_writer  not_found
lease        not_writer not_writer  not_writer  ok         ok         not_writer  not_found
update_in_1  not_writer forbidden   not_writer  ok         ok         forbidden   not_found
takeover     streaming  streaming   ok          streaming  ok         streaming   not_found
delete       ok         forbidden   ok          ok         ok         forbidden   not_found
"""

TAKEN_TURN = """
             owner       other       admin       app        server     nameless    blind
end          not_writer  ok          not_writer  ok         ok         not_writer  not_found
"""

UNKNOWN_MESSAGE = """
             owner      other       admin       app        server     nameless    blind
claim        not_found  not_found   not_found   not_found  not_found  not_found   not_found
end          not_found  not_found   not_found   not_found  not_found  not_found   not_found
"""


def streaming(harness: LogHarness) -> None:
    harness.stream("m", "text")


def complete(harness: LogHarness) -> None:
    harness.create("m", text="text")


def interrupted(harness: LogHarness) -> None:
    harness.stream("m", "text")
    harness.interrupt("m")


def taken_over_by_carol(harness: LogHarness) -> None:
    interrupted(harness)
    harness.take_over("m", caller=Caller(id="carol"))


def deleted(harness: LogHarness) -> None:
    complete(harness)
    harness.delete("m")


def nobody_s(harness: LogHarness) -> None:
    harness.create("m", text="text", caller=replace(APP, id=None, writer=WriterIdentity(node="here")))


def nameless_streaming(harness: LogHarness) -> None:
    harness.stream("m", "text", caller=NAMELESS)


def nameless_done(harness: LogHarness) -> None:
    nameless_streaming(harness)
    harness.finish("m", caller=NAMELESS)


def in_process(harness: LogHarness) -> None:
    harness.stream("m", "text", caller=Caller(id="ann", writer=WriterIdentity(by="ann", node="here"), is_app=True))


def taken_turn(harness: LogHarness) -> None:
    harness.is_served = True
    complete(harness)
    harness.claim("m", caller=replace(HUB, id="bob"), lease_s=15)


def never_was(harness: LogHarness) -> None:
    harness.create("n", text="other")


def cells(table: str) -> list[tuple[str, str, str]]:
    """Yield row, column and content of every cell."""
    head, *rows = (line.split() for line in table.strip().splitlines())
    return [(row[0], who, cell) for row in rows for who, cell in zip(head, row[1:], strict=True)]


def all_cells() -> list[object]:
    tables: list[tuple[Callable[[LogHarness], None], str]] = [
        (streaming, STREAMING),
        (complete, COMPLETE),
        (interrupted, INTERRUPTED),
        (taken_over_by_carol, TAKEN_OVER_BY_CAROL),
        (deleted, DELETED),
        (nobody_s, WITHOUT_AUTHOR),
        (nameless_streaming, ANONYMOUS_STREAMING),
        (nameless_done, ANONYMOUS_DONE),
        (in_process, IN_PROCESS),
        (taken_turn, TAKEN_TURN),
        (never_was, UNKNOWN_MESSAGE),
    ]
    return [
        pytest.param(prepare, row, who, cell, id=f"{prepare.__name__}-{row}-{who}")
        for prepare, table in tables
        for row, who, cell in cells(table)
    ]


@pytest.mark.parametrize(("prepare", "row", "who", "cell"), all_cells())
def test_request_is_granted_or_refused_as_in_the_table(
    prepare: Callable[[LogHarness], None], row: str, who: str, cell: str
) -> None:
    harness = LogHarness()
    prepare(harness)
    before = len(harness.log)
    assert outcome(harness, REQUESTS[row], WHO[who]) == cell
    assert cell == "ok" or len(harness.log) == before


def outcome(harness: LogHarness, request: Request, caller: Caller) -> str:
    try:
        harness.ask("m", request, caller)
    except TenutoError as error:
        return error.code
    return "ok"


def test_only_the_new_writer_writes_in_its_generation() -> None:
    harness = LogHarness()
    taken_over_by_carol(harness)
    carol = Caller(id="carol")
    harness.append("m", "!", generation=2, caller=carol)
    harness.renew("m", 60, generation=2, caller=carol)
    for caller in (ANN, BOB, ADMIN):  # ANN is the author
        with pytest.raises(NotWriter):
            harness.append("m", "?", generation=2, caller=caller)
    with pytest.raises(NotWriter):
        harness.update("m", text="mine again", generation=2, caller=ANN)
    harness.finish("m", generation=2, caller=carol)
    assert harness.text("m") == "text!"


def test_new_writer_may_edit_the_finished_message() -> None:
    harness = LogHarness()
    taken_over_by_carol(harness)
    carol = Caller(id="carol")
    harness.finish("m", generation=2, caller=carol)
    harness.update("m", text="carol's", caller=carol)
    harness.update("m", text="ann's", caller=ANN)
    with pytest.raises(Forbidden):
        harness.update("m", text="bob's", caller=BOB)
    assert harness.text("m") == "ann's"


def test_admin_takes_over_a_streaming_message_and_writes_it() -> None:
    harness = LogHarness()
    harness.stream("m", "text")
    result = harness.take_over("m", caller=ADMIN, lease_s=20)
    assert (result.generation, result.lengths) == (2, [4])
    assert harness.known("m").writer == WriterIdentity(by="root", node=None, lease_ms=20_000)
    harness.append("m", " more", generation=2, caller=ADMIN)
    with pytest.raises(Fenced):
        harness.append("m", " late", at=4)
    assert harness.text("m") == "text more"


def test_two_writers_in_one_process_are_distinguished_by_name() -> None:
    harness = LogHarness()
    one, two = (Caller(id=name, writer=WriterIdentity(by=name, node="here")) for name in ("one", "two"))
    harness.stream("m", caller=one)
    harness.append("m", "x", caller=one)
    with pytest.raises(NotWriter):
        harness.append("m", "y", caller=two)


@pytest.mark.parametrize("asked", [UpdateMessage(text="forged"), DeleteMessage()])
def test_person_with_an_agents_name_does_not_own_its_answers(asked: Request) -> None:
    harness = LogHarness()
    agent = Caller(id="assistant", writer=WriterIdentity(by="assistant", node="here"), is_app=True)
    harness.create("answer", role="assistant", text="so it is", caller=agent)
    namesake = Caller(id="assistant", may_write=False)
    with pytest.raises(Forbidden):
        harness.ask("answer", asked, namesake)
    assert harness.text("answer") == "so it is"
    # a message of a person stays that person's, even if an agent has the same id
    harness.create("question", role="user", text="is it so?", caller=namesake)
    harness.ask("question", asked, namesake)


def test_caller_without_read_access_learns_that_its_own_message_was_deleted() -> None:
    harness = LogHarness()
    harness.stream("m", caller=EVE)
    harness.append("m", "x", caller=EVE)
    harness.delete("m", caller=ADMIN)
    with pytest.raises(Deleted):
        harness.append("m", "y", caller=EVE)
