"""The permissions as data: every operation of every transport, the capabilities it needs, and the message it is about.

Layer: tests.

`test_permissions` runs each cell against the real app on every transport that offers the operation,
and compares the tables of `docs/security.md` with the result of `tables()`; `python -m
tests.transports.permissions` writes them there. An operation that is missing here fails a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- permissions: begin -->", "<!-- permissions: end -->"

Json = dict[str, Any]

_C = "/v1/channels/{channel}"
_M = _C + "/messages/{id}"
_TOOL = {"type": "tool", "call": "c1", "name": "search", "input": "{}"}
_TEXT = {"type": "text", "text": "other"}

# Whose rules, as the page says them.
WRITER = "its writer: who began it, or took it over"
OWN = "one's own; with `admin` anybody's"
LEFT = "anybody's that was interrupted; with `admin` one that streams"
KNOWN = "a target one may read, or began"
ANSWER = (
    "of what one may read, or asked; to `cancel` and `steer` as whoever is at work on the target (writes it with "
    "`append`, has its turn, or writes all that answers it), with `admin`, or, where there is no target, with `append`"
)
MEMBER = "the client's own id, or that with `~` and a suffix"
TURN = "a turn of one's own"
ANY = ""


# The capabilities of a worker.
TO_WORK = ("agent", "subscribe", "append")


class Operation(NamedTuple):
    """Something that a client can request. `about` is the object of the test's world that it changes or reads."""

    name: str
    needs: tuple[str, ...]  # each of them, on the channel
    http: str | None = None  # method and path
    body: Json | None = None  # of HTTP, and the fields of the frame unless those are named
    frame: str | None = None
    fields: Json | None = None
    whose: str = ANY
    about: str = ""
    refused: str = "forbidden"  # where a capability is missing
    has_turn: bool = False  # the socket asked for work before, and got a turn
    also: tuple[str, ...] = ()  # needed, too, where the message is such; judged after whose it is


OPERATIONS = (
    Operation("create a message", ("publish",), f"POST {_C}/messages", {"text": "x"}, "create"),
    Operation(
        "… that streams",
        ("publish", "append"),
        f"POST {_C}/messages",
        {"status": "streaming"},
        "create",
    ),
    Operation(
        "… of another role than `user`",
        ("publish", "append"),
        f"POST {_C}/messages",
        {"role": "assistant", "text": "x"},
        "create",
    ),
    Operation(
        "… with tool or source parts", ("publish", "append"), f"POST {_C}/messages", {"parts": [_TOOL]}, "create"
    ),
    Operation("append text", ("append",), f"POST {_M}/append", {"text": "!"}, "append", None, WRITER, "growing"),
    Operation(
        "put a part",
        ("append",),
        f"PUT {_M}/parts/0",
        _TEXT,
        "part",
        {"part": 0, "value": _TEXT},
        WRITER,
        "growing",
    ),
    Operation("finish", ("append",), f"POST {_M}/finish", {}, "finish", None, WRITER, "growing"),
    Operation("renew the lease", ("append",), f"POST {_M}/lease", {"lease_s": 60}, "lease", None, WRITER, "growing"),
    Operation("take over", ("append",), f"POST {_M}/takeover", {}, "takeover", None, LEFT, "interrupted"),
    Operation("change", ("publish",), f"PATCH {_M}", {"text": "other"}, "update", None, OWN, "done"),
    Operation(
        "… to tool or source parts",
        ("publish", "append"),
        f"PATCH {_M}",
        {"parts": [{"type": "source", "url": "https://example.com"}]},
        "update",
        None,
        OWN,
        "done",
    ),
    Operation(
        "… while it streams",
        ("publish",),
        f"PATCH {_M}",
        {"text": "other", "generation": 1},
        "update",
        None,
        "its writer, with `append`",
        "done",
        also=("append",),
    ),
    Operation("delete", ("publish",), f"DELETE {_M}", None, "delete", None, OWN, "done"),
    Operation("read a message", ("history",), f"GET {_M}", about="done"),
    Operation("read pages", ("history",), f"GET {_C}/messages", frame="history"),
    Operation("ask where a channel stands", ("history",), f"GET {_C}"),
    Operation("delete a channel", ("admin",), f"DELETE {_C}"),
    Operation("follow a channel: SSE, `attach`", ("subscribe",), f"GET {_C}/events", frame="attach"),
    Operation("… long poll", ("subscribe",), f"GET {_C}/poll"),
    Operation("follow one answer", ("subscribe", "history"), f"GET {_M}/events", about="done"),
    Operation("get a ticket", ("subscribe",), "POST /v1/tickets", {"channel": "{channel}"}),
    Operation("see who is here", ("subscribe",), f"GET {_C}/presence"),
    Operation(
        "be present", ("presence",), f"PUT {_C}/presence/{{id}}", {}, "presence", {"member": "{id}"}, MEMBER, "me"
    ),
    Operation(
        "leave",
        ("presence",),
        f"DELETE {_C}/presence/{{id}}",
        None,
        "presence",
        {"member": "{id}", "leave": True},
        MEMBER,
        "me",
    ),
    Operation("signal", ("presence",), f"POST {_C}/signals", {"name": "typing"}, "signal"),
    Operation(
        "send a command",
        ("command",),
        f"POST {_C}/commands",
        {"name": "steer", "target": "{id}"},
        "command",
        None,
        KNOWN,
        "growing",
    ),
    Operation(
        "answer a command", ("command",), f"POST {_C}/commands/{{id}}/reply", {}, "reply", None, ANSWER, "command"
    ),
    Operation(
        "take turns",
        ("agent", "subscribe", "append"),
        frame="work",
        fields={"pattern": "{channel}"},
        whose="all that the pattern names",
    ),
    Operation(
        "renew a turn",
        ("agent",),
        frame="turn.renew",
        fields={"channel": "{channel}", "message": "{id}", "generation": 1},
        whose=TURN,
        about="turn",
        refused="invalid_request",
        has_turn=True,
    ),
    Operation(
        "take a message into a turn",
        ("agent",),
        frame="turn.take",
        fields={"channel": "{channel}", "message": "{id}"},
        whose=TURN,
        about="turn",
        refused="invalid_request",
        has_turn=True,
    ),
    Operation(
        "end a turn",
        ("agent",),
        frame="turn.done",
        fields={"channel": "{channel}", "message": "{id}", "generation": 1},
        whose=TURN,
        about="turn",
        refused="invalid_request",
        has_turn=True,
    ),
    Operation("read `/metrics` from elsewhere", ("admin",), "GET /metrics", whose="of all channels"),
)

# Paths that need no identity, and frames that need no capability.
OPEN_PATHS = ("/healthz", "/readyz")
OPEN_FRAMES = ("auth", "detach", "pong")

# The callers, each with all capabilities that the operation needs.
CALLERS = {
    "owner": "began it",
    "reader": "may read here",
    "admin": "may read, and holds `admin`",
    "stranger": "may neither read here nor began it",
    "blind": "began it, and may not read here",
}

# The states of the message.
STATES = {
    "growing": "streams",
    "done": "is complete",
    "interrupted": "was interrupted",
    "taken": "streams, taken over by somebody else",
    "local": "streams, written by the app in the owner's name",
    "app": "is the app's own",
    "deleted": "was deleted",
    "never": "never was",
}

# Rows are operations and callers, columns are states of the message; a cell is `ok` or the code of the refusal.
OWNERSHIP = """
operation          caller    growing    done       interrupted taken      local      app        deleted   never
append text        owner    ok         finished   finished    fenced     not_writer not_writer deleted   not_found
append text        reader   not_writer not_writer not_writer  not_writer not_writer not_writer deleted   not_found
append text        admin    not_writer not_writer not_writer  not_writer not_writer not_writer deleted   not_found
append text        stranger not_found  not_found  not_found   not_found  not_found  not_found  not_found not_found
append text        blind    ok         finished   finished    fenced     not_writer not_found  deleted   not_found
put a part         owner    ok         finished   finished    fenced     not_writer not_writer deleted   not_found
put a part         reader   not_writer not_writer not_writer  not_writer not_writer not_writer deleted   not_found
put a part         admin    not_writer not_writer not_writer  not_writer not_writer not_writer deleted   not_found
put a part         stranger not_found  not_found  not_found   not_found  not_found  not_found  not_found not_found
put a part         blind    ok         finished   finished    fenced     not_writer not_found  deleted   not_found
finish             owner    ok         ok         finished    fenced     not_writer not_writer deleted   not_found
finish             reader   not_writer not_writer not_writer  not_writer not_writer not_writer deleted   not_found
finish             admin    not_writer not_writer not_writer  not_writer not_writer not_writer deleted   not_found
finish             stranger not_found  not_found  not_found   not_found  not_found  not_found  not_found not_found
finish             blind    ok         ok         finished    fenced     not_writer not_found  deleted   not_found
renew the lease    owner    ok         finished   finished    fenced     not_writer not_writer deleted   not_found
renew the lease    reader   not_writer not_writer not_writer  not_writer not_writer not_writer deleted   not_found
renew the lease    admin    not_writer not_writer not_writer  not_writer not_writer not_writer deleted   not_found
renew the lease    stranger not_found  not_found  not_found   not_found  not_found  not_found  not_found not_found
renew the lease    blind    ok         finished   finished    fenced     not_writer not_found  deleted   not_found
take over          owner    streaming  finished   ok          streaming  streaming  finished   deleted   not_found
take over          reader   streaming  finished   ok          streaming  streaming  finished   deleted   not_found
take over          admin    ok         finished   ok          ok         ok         finished   deleted   not_found
take over          stranger not_found  not_found  not_found   not_found  not_found  not_found  not_found not_found
take over          blind    streaming  finished   ok          streaming  streaming  not_found  deleted   not_found
change             owner    streaming  ok         ok          streaming  streaming  forbidden  deleted   not_found
change             reader   forbidden  forbidden  forbidden   forbidden  forbidden  forbidden  deleted   not_found
change             admin    streaming  ok         ok          streaming  streaming  ok         deleted   not_found
change             stranger not_found  not_found  not_found   not_found  not_found  not_found  not_found not_found
change             blind    streaming  ok         ok          streaming  streaming  not_found  deleted   not_found
… while it streams owner    ok         ok         ok          fenced     not_writer forbidden  deleted   not_found
… while it streams reader   forbidden  forbidden  forbidden   forbidden  forbidden  forbidden  deleted   not_found
… while it streams admin    not_writer ok         ok          not_writer not_writer ok         deleted   not_found
… while it streams stranger not_found  not_found  not_found   not_found  not_found  not_found  not_found not_found
… while it streams blind    ok         ok         ok          fenced     not_writer not_found  deleted   not_found
delete             owner    ok         ok         ok          ok         ok         forbidden  ok        not_found
delete             reader   forbidden  forbidden  forbidden   forbidden  forbidden  forbidden  ok        not_found
delete             admin    ok         ok         ok          ok         ok         ok         ok        not_found
delete             stranger not_found  not_found  not_found   not_found  not_found  not_found  not_found not_found
delete             blind    ok         ok         ok          ok         ok         not_found  ok        not_found
send a command     owner    ok         ok         ok          ok         ok         ok         deleted   not_found
send a command     reader   ok         ok         ok          ok         ok         ok         deleted   not_found
send a command     admin    ok         ok         ok          ok         ok         ok         deleted   not_found
send a command     stranger not_found  not_found  not_found   not_found  not_found  not_found  not_found not_found
send a command     blind    ok         ok         ok          ok         ok         not_found  deleted   not_found
"""


class Cell(NamedTuple):
    """The reply to one caller."""

    operation: str
    caller: str
    state: str
    outcome: str


def cells() -> Iterator[Cell]:
    """Every cell of `OWNERSHIP`."""
    for name, caller, outcomes in _rows():
        for state, outcome in zip(STATES, outcomes, strict=True):
            yield Cell(name, caller, state, outcome)


def _rows() -> Iterator[tuple[str, str, list[str]]]:
    head, *lines = OWNERSHIP.strip().splitlines()
    assert head.split() == ["operation", "caller", *STATES]
    width = head.index("caller")
    for line in lines:
        caller, *outcomes = line[width:].split()
        yield line[:width].strip(), caller, outcomes


def operation(name: str) -> Operation:
    """The operation of that name."""
    return next(one for one in OPERATIONS if one.name == name)


# The page


def tables() -> str:
    """The tables of `docs/security.md`."""
    return f"{_needs_table()}\n{_ownership_table()}"


def shown(path: str) -> str:
    """A method and path as the page writes them."""
    return path.replace(_M, "{m}").replace(_C, "{c}").replace("/parts/0", "/parts/{n}")


def _needs_table() -> str:
    lines = ["| operation | HTTP | frame | needs | of whose |", "|---|---|---|---|---|"]
    for one in OPERATIONS:
        path = f"`{shown(one.http)}`" if one.http is not None else ""
        frame = f"`{one.frame}`" if one.frame is not None else ""
        needs = ", ".join(f"`{needed}`" for needed in one.needs)
        lines.append(f"| {one.name} | {path} | {frame} | {needs} | {one.whose} |")
    return "\n".join(lines) + "\n"


def _ownership_table() -> str:
    """Operations with the same replies share a row, and so do callers."""
    grouped: dict[tuple[str, ...], dict[str, list[str]]] = {}
    answers: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, caller, outcomes in _rows():
        answers.setdefault(name, {})[caller] = tuple(outcomes)
    for name, by_caller in answers.items():
        for caller, outcome in by_caller.items():
            grouped.setdefault(outcome, {}).setdefault(caller, []).append(name)
    lines = [
        f"| who | asks to | {' | '.join(STATES.values())} |",
        f"|---|---|{'---|' * len(STATES)}",
    ]
    for caller, who in CALLERS.items():
        for outcome, callers in grouped.items():
            if caller in callers:
                names = ", ".join(one if one[0] != "…" else f"change {one[2:]}" for one in callers[caller])
                told = " | ".join("yes" if one == "ok" else f"`{one}`" for one in outcome)
                lines.append(f"| {who} | {names} | {told} |")
    return "\n".join(lines) + "\n"


def page_with(text: str) -> str:
    """Return the page with `text` between its marks."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN + "\n")
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(tables()))
