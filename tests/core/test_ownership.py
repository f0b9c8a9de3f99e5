"""The rights of each caller on each message, as tables (`docs/protocol.md`, 8.3; `docs/security.md`).

Layer: tests.

Transports check capabilities; these are the rules behind them. A column is
a caller, a row is a request, a cell is "ok" or the code of the refusal.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tenuto.core.errors import TenutoError
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
    SendCommand,
    TakeOver,
    UpdateMessage,
)
from tests.core.harness import ADMIN, AGENT, ANN, APP, BOB, NAMELESS, PERSON, LogHarness, text_part

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
    "carol": Caller(id="carol"),
    "one": Caller(id="one", writer=WriterIdentity(by="one", node="here")),
    "two": Caller(id="two", writer=WriterIdentity(by="two", node="here")),
    "namesake": replace(PERSON, id="agent"),
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
    "append_2": AppendText(text="!", generation=2),
    "append_3": AppendText(text="!", generation=3),
    "lease_2": RenewLease(lease_s=60, generation=2),
    "update_2": UpdateMessage(text="other", generation=2),
    "finish_2": FinishMessage(generation=2),
    "command": SendCommand(name="approve", target="m"),
}
# rows that one row stands for
GROUPS = {
    "*write": ("append", "append_again", "part", "finish", "lease"),
    "*change": ("update", "update_in_1", "takeover", "command"),
    "*content": ("append", "part", "lease"),
    "*edit": ("update", "update_in_1", "delete"),
}

# States of the message `m`, each with its table.
TABLES = """
streaming     owner       other       admin       app         server      nameless    blind       blind_owner
*write        ok          not_writer  not_writer  ok          ok          not_writer  not_found   ok
update        streaming   forbidden   streaming   streaming   streaming   forbidden   not_found   streaming
update_in_1   ok          forbidden   not_writer  ok          ok          forbidden   not_found   ok
takeover      streaming   streaming   ok          streaming   ok          streaming   not_found   streaming
delete        ok          forbidden   ok          ok          ok          forbidden   not_found   ok
command       ok          ok          ok          ok          ok          ok          not_found   ok

complete      owner       other       admin       app         server      nameless    blind       blind_owner
*content      finished    not_writer  not_writer  finished    finished    not_writer  not_found   finished
append_again  ok          not_writer  not_writer  ok          ok          not_writer  not_found   ok
finish        ok          not_writer  not_writer  ok          ok          not_writer  not_found   ok
*edit         ok          forbidden   ok          ok          ok          forbidden   not_found   ok
takeover      finished    finished    finished    finished    finished    finished    not_found   finished
create        ok          id_conflict id_conflict id_conflict id_conflict id_conflict id_conflict ok
end           finished    finished    finished    finished    finished    finished    not_found   finished
claim         finished    finished    finished    finished    finished    finished    not_found   finished
command       ok          ok          ok          ok          ok          ok          not_found   ok

interrupted   owner       other       admin       app         server      nameless    blind       blind_owner
*content      finished    not_writer  not_writer  finished    finished    not_writer  not_found   finished
append_again  ok          not_writer  not_writer  ok          ok          not_writer  not_found   ok
finish        finished    not_writer  not_writer  finished    finished    not_writer  not_found   finished
*edit         ok          forbidden   ok          ok          ok          forbidden   not_found   ok
takeover      ok          ok          ok          ok          ok          ok          not_found   ok
command       ok          ok          ok          ok          ok          ok          not_found   ok

# A writer that lost the message gets `fenced`, also if its identity is another one: it must stop.
taken_over    owner       other       admin       app         server      nameless    blind       blind_owner
*write        fenced      not_writer  not_writer  fenced      fenced      not_writer  not_found   fenced
update        streaming   forbidden   streaming   streaming   streaming   forbidden   not_found   streaming
update_in_1   fenced      forbidden   not_writer  fenced      fenced      forbidden   not_found   fenced
takeover      streaming   streaming   ok          streaming   ok          streaming   not_found   streaming
delete        ok          forbidden   ok          ok          ok          forbidden   not_found   ok
command       ok          ok          ok          ok          ok          ok          not_found   ok

taken_over    carol       owner       other       admin
append_2      ok          not_writer  not_writer  not_writer
append_3      fenced      fenced      not_writer  not_writer
lease_2       ok          not_writer  not_writer  not_writer
update_2      ok          not_writer  forbidden   not_writer
finish_2      ok          not_writer  not_writer  not_writer

taken_over_and_done carol       owner       other
*write              fenced      fenced      not_writer
update              ok          ok          forbidden

taken_by_admin owner       admin
append         fenced      fenced
append_2       not_writer  ok

deleted       owner       other       admin       app         server      nameless    blind       blind_owner
*write        deleted     deleted     deleted     deleted     deleted     deleted     not_found   deleted
*change       deleted     deleted     deleted     deleted     deleted     deleted     not_found   deleted
delete        ok          ok          ok          ok          ok          ok          not_found   ok
claim         deleted     deleted     deleted     deleted     deleted     deleted     not_found   deleted
create        deleted     deleted     deleted     deleted     deleted     deleted     id_conflict deleted

without_author other       admin       app         server      nameless    blind
*content       not_writer  not_writer  finished    finished    not_writer  not_found
finish         not_writer  not_writer  ok          ok          not_writer  not_found
*edit          forbidden   ok          ok          ok          forbidden   not_found
takeover       finished    finished    finished    finished    finished    not_found
command        ok          ok          ok          ok          ok          not_found

# Anonymous callers cannot be distinguished: one may write another's streaming message.
anonymous     other       admin       app         server      nameless
append        not_writer  not_writer  ok          ok          ok
finish        not_writer  not_writer  ok          ok          ok
update_in_1   forbidden   not_writer  ok          ok          ok
delete        forbidden   ok          ok          ok          ok

anonymous_done other       admin       app         server      nameless
finish         not_writer  not_writer  ok          ok          ok
update         forbidden   ok          ok          ok          forbidden
delete         forbidden   ok          ok          ok          forbidden

# A process of the app writes in the name of ann: the person ann is not its writer.
in_process    owner       other       admin       app         server      nameless    blind       blind_owner
*write        not_writer  not_writer  not_writer  ok          ok          not_writer  not_found   not_writer
update        streaming   forbidden   streaming   streaming   streaming   forbidden   not_found   streaming
update_in_1   not_writer  forbidden   not_writer  ok          ok          forbidden   not_found   not_writer
takeover      streaming   streaming   ok          streaming   ok          streaming   not_found   streaming
delete        ok          forbidden   ok          ok          ok          forbidden   not_found   ok
command       ok          ok          ok          ok          ok          ok          not_found   ok

of_one        one         two
append        ok          not_writer

# A person with an agent's name owns none of its answers, but its own messages.
by_agent      namesake
update        forbidden
delete        forbidden

by_namesake   namesake
update        ok
delete        ok

taken_turn    owner       other       admin       app         server      nameless    blind
end           not_writer  ok          not_writer  ok          ok          not_writer  not_found

never         owner       other       admin       app         server      nameless    blind
*write        not_found   not_found   not_found   not_found   not_found   not_found   not_found
*change       not_found   not_found   not_found   not_found   not_found   not_found   not_found
delete        not_found   not_found   not_found   not_found   not_found   not_found   not_found
claim         not_found   not_found   not_found   not_found   not_found   not_found   not_found
end           not_found   not_found   not_found   not_found   not_found   not_found   not_found
"""


def prepare(state: str, harness: LogHarness) -> None:
    """Bring the message `m` into a state of `TABLES`."""
    match state:
        case "streaming":
            harness.stream("m", "text")
        case "complete":
            harness.create("m", text="text")
        case "interrupted":
            harness.stream("m", "text")
            harness.interrupt("m")
        case "taken_over":
            prepare("interrupted", harness)
            harness.take_over("m", caller=WHO["carol"])
        case "taken_over_and_done":
            prepare("taken_over", harness)
            harness.finish("m", generation=2, caller=WHO["carol"])
        case "taken_by_admin":
            harness.stream("m", "text")
            harness.take_over("m", caller=ADMIN)
        case "deleted":
            harness.create("m", text="text")
            harness.delete("m")
        case "without_author":
            harness.create("m", text="text", caller=replace(APP, id=None, writer=WriterIdentity(node="here")))
        case "anonymous":
            harness.stream("m", "text", caller=NAMELESS)
        case "anonymous_done":
            harness.stream("m", "text", caller=NAMELESS)
            harness.finish("m", caller=NAMELESS)
        case "in_process":
            writer = WriterIdentity(by="ann", node="here")
            harness.stream("m", "text", caller=Caller(id="ann", writer=writer, is_app=True))
        case "of_one":
            harness.stream("m", caller=WHO["one"])
        case "by_agent":
            harness.create("m", role="assistant", text="text", caller=replace(AGENT, is_server=False, is_app=True))
        case "by_namesake":
            harness.create("m", role="user", text="text", caller=WHO["namesake"])
        case "taken_turn":
            harness.is_served = True
            harness.create("m", text="text")
            harness.claim("m", caller=replace(HUB, id="bob"), lease_s=15)
        case _:
            harness.create("n", text="other")


LINES = [
    [line.split() for line in table.splitlines() if not line.startswith("#")] for table in TABLES.strip().split("\n\n")
]


@pytest.mark.parametrize("lines", LINES, ids=lambda lines: lines[0][0])
def test_request_is_granted_or_refused_as_in_the_table(lines: list[list[str]]) -> None:
    found, expected = dict[tuple[str, str], str](), dict[tuple[str, str], str]()
    (state, *columns), *rows = lines
    for name, *contents in rows:
        for row in GROUPS.get(name, (name,)):
            for who, cell in zip(columns, contents, strict=True):
                harness = LogHarness()
                prepare(state, harness)
                before = len(harness.log)
                expected[row, who] = cell
                found[row, who] = outcome(harness, REQUESTS[row], WHO[who])
                assert cell == "ok" or len(harness.log) == before, (row, who)
    assert found == expected


def outcome(harness: LogHarness, request: Request, caller: Caller) -> str:
    try:
        harness.ask("!c" if isinstance(request, SendCommand) else "m", request, caller)
    except TenutoError as error:
        return error.code
    return "ok"
