"""The permissions as data: every operation of every transport, its needs, and the rule about ownership.

Layer: tests.

`test_permissions` asks for each against the real app, on every transport that offers it, and compares the table of
`docs/security.md` with the result of `tables()`; `python -m tests.transports.permissions` writes it there.
An operation that is missing here fails a test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- permissions: begin -->", "<!-- permissions: end -->"

Json = dict[str, Any]

_C = "/v1/channels/{channel}"
_M = _C + "/messages/{id}"
_REPLY = _C + "/commands/{id}/reply"
_MEMBER = _C + "/presence/{id}"
_TOOL = {"type": "tool", "call": "c1", "name": "search", "input": "{}"}
_TEXT = {"type": "text", "text": "other"}
_SOURCE = {"type": "source", "url": "https://example.com"}
_ANSWER = {"role": "assistant", "text": "x"}
_PUT = {"part": 0, "value": _TEXT}
_IN_1 = {"text": "other", "generation": 1}
_LEAVE = {"member": "{id}", "leave": True}
_ASK = {"name": "approve", "target": "{id}"}
_AGAIN = {"name": "regenerate", "target": "{id}", "options": {"seed": 1}}  # the target is no question

# Rules about ownership, in the words of the page.
WRITER = "its writer"  # the page defines it before the table
OWN = "own messages; with `admin` all"
IN_1 = "its writer, with `append`, while it streams; then as for `change`"
LEFT = "every interrupted message; with `admin` also a streaming one"
KNOWN = "a target that the caller may read, created or writes"
REPLY = (
    "commands that the caller may read, or sent, or on whose target it works. A reply to `cancel` or `steer` needs one "
    "of these: the caller works on the target (as its writer with `append`, the holder of its turn, or the writer of "
    "all its answers); the caller has `admin`; or the command has no target, and the caller has `append`"
)
MEMBER = "the client's own id, or that with `~` and a suffix"
TURN = "the caller's own turn"
OF_PATTERN = "all channels of the pattern"
EVERY_CHANNEL = "all channels"
LISTED = "the channels on which the caller has one of the two"
ANY = ""


# The capabilities of a worker, and those for messages that no person writes.
TO_WORK = ("agent", "subscribe", "append")
_BOTH = ("publish", "append")


class Operation(NamedTuple):
    """An operation that a client can request. `about` names its target in the test's world."""

    name: str
    needs: tuple[str, ...]  # the capabilities that the operation needs on the channel, all of them
    http: str | None = None  # method and path
    body: Json | None = None  # the body of HTTP; also the fields of the frame, unless `fields` is set
    frame: str | None = None
    fields: Json | None = None
    whose: str = ANY
    about: str = ""
    refused: str = "forbidden"  # the code if a capability is missing
    has_turn: bool = False  # the socket requested work before, and has a turn
    allowed: str = "ok"  # the code if no capability is missing, in a hub with a store in memory
    instead: tuple[str, ...] = ()  # each of them replaces the needed capabilities
    also: tuple[str, ...] = ()  # further needs of such a message, checked after ownership


def _of_turn(name: str, frame: str, **fields: Any) -> Operation:
    """Return an operation of an agent on a turn."""
    fields = {"channel": "{channel}", "message": "{id}", **fields}
    refused = "invalid_request"
    return Operation(name, ("agent",), None, None, frame, fields, TURN, "turn", refused=refused, has_turn=True)


OPERATIONS = (
    Operation("create a message", ("publish",), f"POST {_C}/messages", {"text": "x"}, "create"),
    Operation("… that streams", _BOTH, f"POST {_C}/messages", {"status": "streaming"}, "create"),
    Operation("… of another role than `user`", _BOTH, f"POST {_C}/messages", _ANSWER, "create"),
    Operation("… with tool or source parts", _BOTH, f"POST {_C}/messages", {"parts": [_TOOL]}, "create"),
    Operation("append text", ("append",), f"POST {_M}/append", {"text": "!"}, "append", None, WRITER, "growing"),
    Operation("put a part", ("append",), f"PUT {_M}/parts/0", _TEXT, "part", _PUT, WRITER, "growing"),
    Operation("finish", ("append",), f"POST {_M}/finish", {}, "finish", None, WRITER, "growing"),
    Operation("renew the lease", ("append",), f"POST {_M}/lease", {"lease_s": 60}, "lease", None, WRITER, "growing"),
    Operation("take over", ("append",), f"POST {_M}/takeover", {}, "takeover", None, LEFT, "interrupted"),
    Operation("change", ("publish",), f"PATCH {_M}", {"text": "other"}, "update", None, OWN, "done"),
    Operation("… to tool or source parts", _BOTH, f"PATCH {_M}", {"parts": [_SOURCE]}, "update", None, OWN, "done"),
    Operation("… with generation", ("publish",), f"PATCH {_M}", _IN_1, "update", None, IN_1, "done", also=("append",)),
    Operation("delete", ("publish",), f"DELETE {_M}", None, "delete", None, OWN, "done"),
    Operation("read a message", ("history",), f"GET {_M}", about="done"),
    Operation("read pages", ("history",), f"GET {_C}/messages", frame="history"),
    Operation("list channels", ("history",), "GET /v1/channels", whose=LISTED, instead=("admin",)),
    Operation("read a channel's position", ("history",), f"GET {_C}"),
    Operation("export a channel", ("history", "admin"), f"GET {_C}/export", about="done"),
    Operation("delete a channel", ("admin",), f"DELETE {_C}"),
    Operation("forget a person", ("admin",), "POST /v1/forget", {"client_id": "ann"}, whose=EVERY_CHANNEL),
    Operation("verify the store", ("admin",), "POST /v1/verify", {}, whose=EVERY_CHANNEL, allowed="invalid_request"),
    Operation("inspect the hub", ("admin",), "GET /v1/inspect", whose=EVERY_CHANNEL),
    Operation("follow a channel: SSE, `attach`", ("subscribe",), f"GET {_C}/events", frame="attach"),
    Operation("… long poll", ("subscribe",), f"GET {_C}/poll"),
    Operation("follow one answer", ("subscribe", "history"), f"GET {_M}/events", about="done"),
    Operation("get a ticket", ("subscribe",), "POST /v1/tickets", {"channel": "{channel}"}),
    Operation("read presence", ("subscribe",), f"GET {_C}/presence"),
    Operation("be present", ("presence",), f"PUT {_MEMBER}", {}, "presence", {"member": "{id}"}, MEMBER, "me"),
    Operation("leave", ("presence",), f"DELETE {_MEMBER}", None, "presence", _LEAVE, "the same", "me"),
    Operation("signal", ("presence",), f"POST {_C}/signals", {"name": "typing"}, "signal"),
    Operation("send a command", ("command",), f"POST {_C}/commands", _ASK, "command", None, KNOWN, "growing"),
    Operation(
        *("… with options", ("command", "publish"), f"POST {_C}/commands", _AGAIN, "command", None, ANY, "growing"),
        allowed="invalid_request",
    ),
    Operation("reply to a command", ("command",), f"POST {_REPLY}", {}, "reply", None, REPLY, "command"),
    Operation("take turns", TO_WORK, frame="work", fields={"pattern": "{channel}"}, whose=OF_PATTERN),
    _of_turn("renew a turn", "turn.renew", generation=1),
    _of_turn("take a message into a turn", "turn.take"),
    _of_turn("end a turn", "turn.done", generation=1),
    Operation("read `/metrics`", ("admin",), "GET /metrics", whose=EVERY_CHANNEL),
)

# Requests and frames that need no identity, or no capability.
OPEN_PATHS = ("/v1", "/v1/visitor", "/healthz", "/readyz")
OPEN_FRAMES = ("auth", "detach", "pong")

# States of a message, and operations on it, with their names in the tables of `tests/core/test_ownership.py`.
STATES = {
    "growing": "streaming",
    "done": "complete",
    "interrupted": "interrupted",
    "taken": "taken_over",
    "local": "in_process",
    "app": "without_author",
    "deleted": "deleted",
    "never": "never",
}
OF_OWNERS = {
    "append text": "append",
    "put a part": "part",
    "renew the lease": "lease",
    "finish": "finish",
    "take over": "takeover",
    "change": "update",
    "… with generation": "update_in_1",
    "delete": "delete",
    "send a command": "command",
}


def operation(name: str) -> Operation:
    """Return the operation of that name."""
    return next(one for one in OPERATIONS if one.name == name)


# The page


def tables() -> str:
    """Return the table of `docs/security.md`; the page states the rules about ownership in words."""
    lines = ["| operation | HTTP | frame | needs | on which targets |", "|---|---|---|---|---|"]
    for one in OPERATIONS:
        shown = (one.http or "").replace(_M, "{m}").replace(_C, "{c}").replace("/parts/0", "/parts/{n}")
        path = f"`{shown}`" if shown else ""
        frame = f"`{one.frame}`" if one.frame is not None else ""
        needs = ", ".join(f"`{needed}`" for needed in one.needs) + "".join(f" or `{other}`" for other in one.instead)
        lines.append(f"| {one.name} | {path} | {frame} | {needs} | {one.whose} |")
    return "\n".join(lines) + "\n"


def page_with(text: str) -> str:
    """Return the page with `text` between its marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN + "\n")
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(tables()))
