"""The page about the client agrees with the code.

Layer: tests.

"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import tenuto.client
from tenuto.client import ChannelView, Client, SyncClient, SyncWriter

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SIGNATURE = re.compile(r"`(?:await )?client\.(\w+)\(([^`]*?)\)`")
SIGNATURES = [found for found in _SIGNATURE.findall(PAGE) if found[0] not in ("start", "close")]
# Of the blocking client: calls that need the caller's own loop, and the start and end of the client.
ASYNC_ALONE = {"channel", "work", "agent", "run", "take_waiting", "is_connected", "drain"}


@pytest.mark.parametrize("source", _BLOCK.findall(PAGE))
def test_a_program_compiles(source: str) -> None:
    compile(source, "client.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize(("method", "documented"), SIGNATURES)
def test_documented_call_accepts_the_documented_arguments(method: str, documented: str) -> None:
    parameters = list(inspect.signature(getattr(Client, method)).parameters.values())[1:]
    shown = [part.strip() for part in documented.split(",") if part.strip() not in ("*", "")]
    assert [part.partition("=")[0] for part in shown] == [parameter.name for parameter in parameters]
    for part, parameter in zip(shown, parameters, strict=True):
        default = part.partition("=")[2]
        if default and default != "…":
            assert ast.literal_eval(default) == parameter.default


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_every_call_is_documented() -> None:
    documented = {name for name, _ in SIGNATURES}
    assert public(Client) - documented == {"start", "close", "is_connected", "error"}


def test_every_argument_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE.partition("## Writing")[0], re.MULTILINE))
    parameters = dict(inspect.signature(Client).parameters)
    assert list(rows) == [name for name in parameters if name != "url"]
    for name in ("token", "token_provider", "client_id", "timeout_s"):
        assert ast.literal_eval(rows[name].strip("` ")) == parameters[name].default


def test_every_public_name_is_documented() -> None:
    without = {"Presence", "SyncWriter"}  # given by calls whose use is shown
    assert [name for name in tenuto.client.__all__ if f"`{name}" not in PAGE and name not in without] == []


def test_names_of_a_view_are_documented() -> None:
    of_the_feed = {"channel", "receive", "cut", "failed"}
    shown = PAGE.partition("| of a `ChannelView`")[2].partition("A `Change`")[0]
    assert [name for name in public(ChannelView) - of_the_feed if not re.search(rf"\b{name}\b", shown)] == []


def test_the_blocking_client_has_the_same_calls() -> None:
    assert public(Client) - public(SyncClient) == ASYNC_ALONE
    assert public(SyncWriter) >= {"append", "part", "update", "flush", "finish", "length", "meta"}
