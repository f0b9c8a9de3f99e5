"""The page about the client agrees with the code.

Layer: tests.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from tenuto.client import Client, SyncClient, SyncWriter

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
_SIGNATURE = re.compile(r"`(?:await )?client\.(\w+)\(([^`]*?)\)`")
SIGNATURES = [found for found in _SIGNATURE.findall(PAGE) if found[0] not in ("start", "close")]
# Of the blocking client: calls that need the caller's own loop, and the start and end of the client.
ASYNC_ALONE = {"channel", "work", "agent", "run", "take_waiting", "is_connected", "drain"}


def test_documented_calls_are_those_of_the_client_with_their_arguments() -> None:
    assert {name for name, _ in SIGNATURES} == public(Client) - {"start", "close", "is_connected", "error"}
    assert [call for call in SIGNATURES if not fits(*call)] == []


def fits(method: str, documented: str) -> bool:
    """Return whether a method has the documented parameters, with the documented defaults."""
    parameters = list(inspect.signature(getattr(Client, method)).parameters.values())[1:]
    shown = [part.strip().partition("=") for part in documented.split(",") if part.strip() not in ("*", "")]
    return [name for name, _, _ in shown] == [one.name for one in parameters] and all(
        ast.literal_eval(default) == one.default
        for (_, _, default), one in zip(shown, parameters, strict=True)
        if default not in ("", "…")
    )


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_every_argument_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE.partition("## Writing")[0], re.MULTILINE))
    parameters = dict(inspect.signature(Client).parameters)
    assert list(rows) == [name for name in parameters if name != "url"]
    for name in ("token", "token_provider", "client_id", "timeout_s"):
        assert ast.literal_eval(rows[name].strip("` ")) == parameters[name].default


def test_the_blocking_client_has_the_same_calls() -> None:
    assert public(Client) - public(SyncClient) == ASYNC_ALONE
    assert public(SyncWriter) >= {"append", "part", "update", "flush", "finish", "length", "meta"}
