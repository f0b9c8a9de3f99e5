"""The loop: draw an input, run it, keep it if it reached something new, make it small if it found something.

Layer: fuzz.

A run is decided by its target, its seed, the corpus and how many inputs it has: never by the
clock, except where it is told to end after so many seconds (then the inputs are the same, only fewer or more).
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from fuzz import mutate
from fuzz.coverage import Coverage
from fuzz.mutate import Json

CORPUS = Path(__file__).parent / "corpus"
LOOKED_AT = 4  # one run in so many is watched
SHRINK_RUNS = 1_000
RETRIES = 2  # of an input that took too long: the machine may have been at fault
MAX_POOL = 2_000


class Finding(Exception):
    """The product did what it may never do. Its text is what a reader sees; the first word says of which kind."""

    @property
    def kind(self) -> str:
        """What a smaller input must still find."""
        return str(self).partition(":")[0]


class Target(Protocol):
    """Something that takes inputs."""

    name: str
    cpu_s: float  # more processor time than this for one input is a finding
    is_guided: bool  # does it run in this process, where coverage can be seen?

    def seeds(self) -> list[Json]:
        """Inputs to begin with."""

    def generate(self, draw: Random) -> Json:
        """A new input."""

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """A changed copy of `old`, perhaps with something of `other`."""

    def run(self, given: Json) -> None:
        """Raises Finding."""

    def close(self) -> None:
        """Let go of what was started."""


@dataclass
class Found:
    """A finding, and the smallest input that is known for it."""

    target: str
    text: str
    given: Json
    first: Json


@dataclass
class Report:
    """What a run did."""

    target: str
    runs: int = 0
    known: int = 0  # of them, which were known: the first
    known_s: float = 0.0  # which took so long
    spent_s: float = 0.0
    cpu_s: float = 0.0
    kept: list[Json] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    digest: str = ""  # of all inputs, in order


def written(given: Json) -> str:
    """An input as its file holds it: ASCII, so that half characters and bytes survive every editor."""
    return json.dumps(given, indent=1, sort_keys=True) + "\n"


def read_corpus(target: str) -> Iterator[tuple[str, Json]]:
    """The inputs that are kept for a target, by file name."""
    for path in sorted((CORPUS / target).glob("*.json")):
        yield path.stem, json.loads(path.read_text())


def save(target: str, given: Json, *, prefix: str) -> Path:
    """Keep an input under a name that its content gives it."""
    data = written(given)
    path = CORPUS / target / f"{prefix}-{hashlib.sha256(data.encode()).hexdigest()[:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    return path


def check(target: Target, given: Json) -> str | None:
    """Run one input; what it found."""
    for _ in range(1 + RETRIES):
        begun_s = time.process_time()
        text = _run(target, given)
        if text is not None:
            return text
        spent_s = time.process_time() - begun_s
        if spent_s <= target.cpu_s:
            return None
    return f"slow: {spent_s:.1f} s of processor time, {target.cpu_s} s at most"


def fuzz(
    target: Target,
    *,
    seed: int,
    runs: int | None = None,
    seconds: float | None = None,
    max_findings: int = 5,
    tell: Callable[[str], None] = lambda line: None,
    coverage: Coverage | None = None,
) -> Report:
    """Run what is known, and then new inputs, until there were `runs` of them or `seconds` have passed with them."""
    assert runs is not None or seconds is not None
    draw = Random(f"{target.name} {seed}")
    coverage = coverage if coverage is not None else Coverage()
    report = Report(target.name)
    pool = [*target.seeds(), *(given for _, given in read_corpus(target.name))]
    digest = hashlib.sha256()
    begun_s, begun_cpu_s = time.monotonic(), time.process_time()
    known: set[str] = set()
    queue = deque(pool)  # what is known goes first: new inputs are compared with what it reaches
    while len(report.found) < max_findings:
        is_known = bool(queue)
        if report.runs == report.known:
            report.known_s = time.monotonic() - begun_s
        if not is_known and runs is not None and report.runs >= report.known + runs:
            break
        if not is_known and seconds is not None and time.monotonic() - begun_s - report.known_s >= seconds:
            break
        given = queue.popleft() if is_known else _next(target, draw, pool)
        digest.update(written(given).encode())
        # What is known is watched for those that come after it: for none, the clock is looked at instead.
        is_watched = target.is_guided and (runs != 0 if is_known else draw.randrange(LOOKED_AT) == 0)
        if is_watched:
            with coverage.watching() as new:
                text = _run(target, given)  # slow for a reason, so nobody looks at the clock
            if new and text is None and not is_known and len(pool) < MAX_POOL:
                report.kept.append(given)
                pool.append(given)
        else:
            text = check(target, given)
        report.runs += 1
        report.known += is_known
        if text is not None:
            kind = _kind(text)
            if kind in known:
                continue
            known.add(kind)
            tell(f"{target.name}: {text}")
            smaller = shrink(target, given, kind)
            report.found.append(Found(target.name, text, smaller, given))
    report.spent_s = time.monotonic() - begun_s
    if report.runs == report.known:
        report.known_s = report.spent_s
    report.cpu_s = time.process_time() - begun_cpu_s
    report.digest = digest.hexdigest()
    return report


def _run(target: Target, given: Json) -> str | None:
    random.seed(0)  # the product draws delays; a run must not depend on them
    try:
        target.run(given)
    except Finding as finding:
        return str(finding)
    except Exception as error:
        error.add_note(f"this is a mistake of the fuzzer's own, with the input {json.dumps(given)[:4_000]}")
        raise
    return None


def _next(target: Target, draw: Random, pool: list[Json]) -> Json:
    if not pool or draw.random() < 0.15:
        return target.generate(draw)
    # Late ones are those that reached something new: they are looked at more often.
    index = len(pool) - 1 - int(len(pool) * draw.random() ** 1.5)
    given = pool[max(0, index)]
    try:
        for _ in range(draw.choice((1, 1, 2, 3, 6))):
            given = target.change(draw, given, draw.choice(pool))
    except RecursionError:  # nested in one another so often that it cannot be written down
        return target.generate(draw)
    return given


def _kind(text: str) -> str:
    return text.partition(":")[0]


def shrink(target: Target, given: Json, kind: str, *, runs: int = SHRINK_RUNS) -> Json:
    """The smallest input that still finds the same kind of thing, within so many runs."""
    left = runs
    is_smaller = True
    while is_smaller and left > 0:
        is_smaller = False
        for smaller in _smaller(given):
            if left <= 0:
                break
            left -= 1
            text = check(target, smaller)
            if text is not None and _kind(text) == kind:
                given = smaller
                is_smaller = True
                break
    return given


def _smaller(given: Json) -> Iterator[Json]:
    """Copies of `given` with something left out: the largest pieces first."""
    root = [mutate.copied(given)]
    places = [place for place in mutate.places(root) if place[0] is not root]
    weighed = sorted(places, key=lambda place: -len(json.dumps(place[0][place[1]])))
    for holder, key in weighed:
        old = holder[key]
        for new in _simpler(old):
            holder[key] = new
            yield mutate.copied(root[0])
        holder[key] = old
        if isinstance(holder, list):
            del holder[key]
            yield mutate.copied(root[0])
            holder.insert(key, old)
        else:
            items = list(holder.items())
            del holder[key]
            yield mutate.copied(root[0])
            holder.clear()
            holder.update(items)


def _simpler(old: Json) -> Iterator[Json]:
    if isinstance(old, list) and len(old) > 1:
        yield old[: len(old) // 2]
        yield old[len(old) // 2 :]
    elif isinstance(old, list | dict) and len(old) == 1:
        yield next(iter(old.values())) if isinstance(old, dict) else old[0]
    elif isinstance(old, str) and len(old) > 1:
        yield old[: len(old) // 2]
        yield old[len(old) // 2 :]
        if len(old) < 40:
            yield from (old[:at] + old[at + 1 :] for at in range(len(old)))
    elif isinstance(old, int) and not isinstance(old, bool) and old not in (0, 1):
        yield 0
        yield 1
