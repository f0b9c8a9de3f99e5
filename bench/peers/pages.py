"""Rows of pages that are loaded, or that resume, within a streaming answer, on several systems in turn."""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.common import Row, failed
from bench.peers.reload import Loaded, Page, follow, load
from bench.peers.system import System, on_core
from bench.proc import CLIENT_CORE, BenchError

__all__ = ["page_rows"]


@dataclass
class _Visits:
    """One kind of viewer of one system."""

    system: System
    kind: str
    channel: str
    text: str = ""
    loads: list[Loaded] = field(default_factory=list)
    resumes: list[Loaded] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)  # pages that followed from the beginning, and will resume
    failed: Row | None = None  # after an error there are no figures, and no further requests

    def attempt(self, do: Callable[[], None]) -> None:
        """Call `do`, unless an earlier step has failed. After an error other systems are still measured."""
        if self.failed is not None:
            return
        try:
            do()
        except (BenchError, OSError) as error:
            self.failed = failed(f"reload and resume: {self}", error)

    def begin(self, *, tokens: int, missed: int, pages: int) -> None:
        """Grow the answer, with pages that follow it until `missed` tokens before its end."""
        if self.kind in self.system.resuming:
            self.pages = [Page(self.system, self.kind, self.channel) for _ in range(pages)]
        follow(self.pages, lambda: self.system.grow(self.channel, tokens - missed))
        self.text = self.system.grow(self.channel, missed)

    def visit(self, n: int) -> None:
        """Resume one page, and load a new one."""
        if self.pages:
            self.resumes.append(load(self.pages[n], self.text))
        if self.system.keeps_history:
            self.loads.append(load(Page(self.system, self.kind, self.channel), self.text))

    def __str__(self) -> str:
        return f"{self.system.name}, {NAMES[self.kind]}"


NAMES = {
    "ours-sse": "SSE",
    "ours-ws": "WebSocket",
    "centrifugo-sse": "SSE",
    "centrifugo-ws": "WebSocket",
    "nchan-sse": "SSE",
    "nchan-ws": "WebSocket",
    "nchan-ws-meta": "WebSocket with ids",
    "socketio": "WebSocket",
    "xadd-sse": "SSE",
}


def page_rows(systems: Sequence[System], *, tokens: int, rounds: int) -> list[Row]:
    """Return the rows. An answer grows to `tokens`; the pages that resume have missed the last quarter."""
    missed = tokens // 4
    all_visits = [_Visits(system, kind, f"bench:page-{kind}") for system in systems for kind in _page_kinds(system)]
    with on_core(CLIENT_CORE):
        for visits in all_visits:
            visits.attempt(functools.partial(visits.begin, tokens=tokens, missed=missed, pages=rounds))
        for n in range(rounds):
            for visits in all_visits:
                visits.attempt(functools.partial(visits.visit, n))
    whole = [visits for visits in all_visits if visits.failed is None]
    return [
        *(_load_row(visits, tokens) for visits in whole),
        *(_resume_row(visits, missed, tokens) for visits in whole if visits.resumes),
        *(visits.failed for visits in all_visits if visits.failed is not None),
    ]


def _page_kinds(system: System) -> list[str]:
    return list(dict.fromkeys((*system.kinds, *system.resuming)))


def _load_row(visits: _Visits, tokens: int) -> Row:
    what = f"reload at {tokens:,} tokens, in mid-stream: {visits}"
    if not visits.loads:
        return Row(what, "not applicable", note="it sends no earlier messages to a new viewer")
    return _row(what, visits.loads, len(visits.text.encode()))


def _resume_row(visits: _Visits, missed: int, tokens: int) -> Row:
    text_bytes = len(visits.text.encode()) * missed // tokens
    return _row(f"resume after {missed:,} missed tokens: {visits}", visits.resumes, text_bytes)


def _row(what: str, loads: list[Loaded], text_bytes: int) -> Row:
    times = [each.seconds * 1000 for each in loads]
    sizes = [each.bytes for each in loads]
    return Row(
        what,
        f"{statistics.median(sizes):,.0f} B, {statistics.median(times):.1f} ms",
        note=f"{statistics.median(sizes) / text_bytes:.2f} × the text of {text_bytes:,} B; with all framing "
        f"{statistics.median(each.wire_bytes for each in loads):,.0f} B; "
        f"{min(times):.1f}–{max(times):.1f} ms in {len(loads)} loads",
        raw=tuple(
            f"{each.bytes:,} B ({each.wire_bytes:,} with framing), {each.seconds * 1000:.2f} ms" for each in loads
        ),
    )
