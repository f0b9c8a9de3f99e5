"""A page that is loaded, and one that resumes, within a streaming answer: the bytes that it receives, and how soon.

One viewer of the load client at a time, on a system without other work. The clock runs from before the connection is
opened until the bytes arrive that complete the text. A browser's work is not included.
"""

import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bench.common import NAMES, Row, Void, failed
from bench.load import Latencies, Load, Viewer
from bench.peers.system import Ours, on_core
from bench.peers.xadd import Xadd
from bench.proc import CLIENT_CORE, BenchError
from bench.tokens import WIDTH

_QUIET_S = 0.15  # after this time without bytes, all have arrived
_PATIENCE_S = 5.0  # longest wait for a server that has not sent all of the text


class Loaded(NamedTuple):
    seconds: float
    bytes: int  # size of bodies and payloads, without framing


def new_page(kind: str, channel: str) -> Viewer:
    """Return a page that is not loaded yet."""
    return Viewer(kind, channel, Latencies(array("d"), WIDTH))


def load(client: Load, page: Viewer, port: int, text: str) -> Loaded:
    """Open the page, from its cursor if it has one, wait until it holds `text`, and leave.

    Raises `Void` unless it ends with exactly that text.
    """
    before, started_s = page.checker.payload_bytes, time.monotonic()
    connection = client.dial(page, port)
    found: Loaded | None = None
    while True:
        client.turn(_QUIET_S)
        if found is None and page.text == text:
            found = Loaded(client.last_read_s - started_s, page.checker.payload_bytes - before)
        is_late = time.monotonic() > started_s + _PATIENCE_S
        if is_late or (found is not None and time.monotonic() >= client.last_read_s + _QUIET_S):
            break
    client.hang_up(connection)
    if page.checker.violations:
        raise Void(f"a viewer of {page.kind} received invalid data: {page.checker.violations[0]}")
    if found is None or page.text != text:
        raise Void(f"a viewer of {page.kind} shows {len(page.text)} of {len(text)} characters, or other text")
    return found


def follow(client: Load, pages: Sequence[Viewer], port: int, grow: Callable[[], str]) -> None:
    """Attach the pages to an answer before it begins, let it grow, and leave when they have all of it."""
    connections = [client.dial(page, port) for page in pages]
    client.until_attached(connections, time.monotonic() + _PATIENCE_S)
    text, until_s = grow(), time.monotonic() + _PATIENCE_S
    while any(page.text != text for page in pages):
        if time.monotonic() > until_s:
            raise Void("a page that follows an answer shows other text")
        client.turn(_QUIET_S)
    for connection in connections:
        client.hang_up(connection)


def page_rows(systems: Sequence[Ours | Xadd], *, tokens: int, rounds: int) -> list[Row]:
    """Return the rows. An answer grows to `tokens`; the pages that resume have missed the last quarter."""
    missed = tokens // 4
    loads: list[Row] = []
    resumes: list[Row] = []
    for system in systems:
        for kind in system.kinds:
            who = f"{system.name}, {NAMES.get(kind, 'SSE')}"
            try:
                found = list(_visits(system, kind, tokens, missed, rounds))
            except (BenchError, OSError) as error:
                resumes.append(failed(f"reload and resume: {who}", error))
                continue
            loads.append(_row(f"reload at {tokens:,} tokens, in mid-stream: {who}", [one for one, _ in found]))
            resumes.append(_row(f"resume after {missed:,} missed tokens: {who}", [one for _, one in found]))
    return [*loads, *resumes]


def _visits(system: Ours | Xadd, kind: str, tokens: int, missed: int, rounds: int) -> Iterator[tuple[Loaded, Loaded]]:
    """Yield for each round how a new page is loaded, and how one resumes that followed the answer from its begin."""
    client, channel = Load(), f"bench:page-{kind}"
    pages = [new_page(kind, channel) for _ in range(rounds)]
    with on_core(CLIENT_CORE):
        follow(client, pages, system.port, lambda: system.grow(channel, tokens - missed))
        text = system.grow(channel, missed)
        for page in pages:
            resumed = load(client, page, system.port, text)
            yield load(client, new_page(kind, channel), system.port, text), resumed


def _row(what: str, loads: list[Loaded]) -> Row:
    size = statistics.median(each.bytes for each in loads)
    return Row(what, f"{size:,.0f} B, {statistics.median(each.seconds * 1000 for each in loads):.1f} ms")
