"""The log refuses entries that the rules of the protocol forbid.

Layer: tests.
"""

from __future__ import annotations

import pytest

from proof.oracle import Violation
from proof.oracle.log import GENERATION, StoredLogs, marks
from tenuto.core.ops import Append, Claim, Delete, Entry, Finish, Op, Reply, Takeover, Update, WriterIdentity
from tenuto.stores.base import Write
from tests.oracle.entries import create, write

BEFORE: tuple[Op, ...] = (create("m"), create("done", status="complete"))


@pytest.mark.parametrize(
    "op",
    [
        create("m"),
        Append(id="m", part=0, at=3, text="x"),
        Append(id="m", part=0, at=1, text="i!"),
        Append(id="m", part=1, at=0, text="x"),
        Append(id="done", part=0, at=2, text="x"),
        Append(id="unknown", part=0, at=0, text="x"),
        Finish(id="done", status="failed", reason=None, meta={}, at_ms=2),
        Takeover(id="m", generation=3, writer=WriterIdentity()),
        Delete(id="unknown"),
        Append(id="m", part=0, at=2, text=marks(2, 2, 1)),
        Append(id="m", part=0, at=2, text=marks(1, 3, 1)),
        Finish(id="m", status="complete", reason=None, meta={}, at_ms=2, request=f"r{GENERATION}2"),
        Claim(id="done", state="taken", generation=1),
        Reply(id="!unknown", ok=True, data=None, error=None, by=None),
        Update(id="m", parts=[{"type": "attempt", "parts": [{"type": "text", "text": "no"}]}], meta={}, at_ms=2),
        Update(id="m", parts=[{"type": "attempt", "parts": []}], meta={}, at_ms=2),
    ],
    ids=lambda op: f"{type(op).__name__}-{op.id}",
)
def test_forbidden_entry_is_a_violation(op: Op) -> None:
    stored = StoredLogs()
    with pytest.raises(Violation):
        stored.apply(write(stored, *BEFORE, op))


def test_gap_in_the_serials_is_a_violation() -> None:
    stored = StoredLogs()
    with pytest.raises(Violation):
        stored.apply(Write(channel="c", epoch="e1", expected=0, entries=[Entry(2, create("m"))]))
