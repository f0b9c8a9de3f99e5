"""`docs/protocol.md` agrees with the code: codes, operations, routes, frames, limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tenuto.core import errors, events
from tenuto.core.errors import TenutoError
from tenuto.transports import codec
from tenuto.transports.operations import OPERATIONS

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def section(number: str) -> str:
    """Return the text of a numbered section."""
    start = re.search(rf"^#+ {re.escape(number)}\.? .*$", TEXT, re.MULTILINE)
    assert start is not None, number
    end = re.search(r"^#+ \d", TEXT[start.end() :], re.MULTILINE)
    return TEXT[start.end() :][: end.start() if end else None]


def rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the table in `text`."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def classes(base: type[TenutoError] = TenutoError) -> Iterator[type[TenutoError]]:
    """Yield each error class of `core.errors`."""
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


def test_the_table_of_errors_is_that_of_the_classes() -> None:
    documented = {code: int(status) for status, codes in rows(section("9")) for code in re.findall(r"`(\w+)`", codes)}
    # Mistakes of the caller in this process are never on the wire.
    ours = [one for one in classes() if not issubclass(one, errors.LocalError)]
    assert documented == {one.code: one.status for one in ours}


def test_every_route_is_documented_and_every_documented_request_is_a_route() -> None:
    message, documented = "/v1/channels/{channel}/messages/{id}", set()
    for request, *_ in rows(section("8.1")):
        found = re.match(r"`(\w+) ([^?`]+)", request)
        assert found is not None, request
        documented.add((found[1], found[2].replace("{m}", message)))
    known = {(one.method, one.path) for one in OPERATIONS if one.method and one.kind != "stream"}
    assert documented == known | {("GET", "/web/…")}


def test_every_event_is_documented_with_its_fields() -> None:
    known = {
        one.__struct_config__.tag: set(one.__struct_fields__)
        for one in (events.ChannelAttached, *events.MessageEvent.__args__)
    }
    table = {name: fields for names, fields in rows(section("3.1")) for name in re.findall(r"`([\w.]+)`", names)}
    for name, fields in known.items():
        assert isinstance(name, str)
        assert fields <= set(re.findall(r"`(\w+)`", table[name])), name


def test_every_frame_of_a_client_is_documented() -> None:
    documented = {name for names, *_ in rows(section("7.2")) for name in re.findall(r"`([\w.]+)`", names)}
    assert documented == {one.frame.__struct_config__.tag for one in OPERATIONS if one.frame is not None}


def test_every_close_code_is_documented() -> None:
    documented = {code for code, *_ in rows(section("7.5"))}
    ours = {
        code
        for name, code in vars(codec).items()
        if name.isupper() and code in range(1001, 5000) and isinstance(code, int)
    }
    assert len(ours) == 9
    assert {str(code) for code in ours} <= documented
