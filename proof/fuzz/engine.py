"""The fuzzing loop: draw an input, run it, and shrink it if it found a bug.

Layer: fuzz.

The target, the seed, the corpus and the number of inputs determine a run. The clock does not, except for a limit in
seconds: it changes only how many of the same inputs are run.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from proof.fuzz import mutate
from proof.fuzz.mutate import Json

CORPUS = Path(__file__).parent / "corpus"
SHRINK_RUNS = 1_000
RETRIES = 2  # further tries of an input that took too long: the machine may be the cause


class Finding(Exception):
    """The product broke an invariant. The text is for a reader; its first word is the kind."""


class Target(Protocol):
    """A consumer of inputs."""

    name: str
    cpu_s: float  # more processor time than this for one input is a finding

    def seeds(self) -> list[Json]:
        """Return the inputs of the first round."""

    def generate(self, draw: Random) -> Json:
        """Return a new input."""

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Return a changed copy of `old`, perhaps with a piece of `other`."""

    def run(self, given: Json) -> None:
        """Run one input. Raises Finding."""

    def close(self) -> None:
        """Release all resources."""


class InProcess:
    """A target that runs in this process, and holds no resource."""

    cpu_s = 3.0

    def close(self) -> None:
        """Do nothing."""


@dataclass
class Found:
    """A finding, with the smallest known input for it."""

    target: str
    text: str
    given: Json


@dataclass
class Report:
    """The result of a run."""

    target: str
    runs: int = 0
    known: int = 0  # number of runs with known inputs, those of the seeds and the corpus
    spent_s: float = 0.0
    found: list[Found] = field(default_factory=list)


def written(given: Json) -> str:
    """Return an input as its file holds it: in ASCII, so that lone surrogates and bytes survive every editor."""
    return json.dumps(given, indent=1, sort_keys=True) + "\n"


def read_corpus(target: str) -> Iterator[tuple[str, Json]]:
    """Yield the kept inputs of a target, by file name."""
    for path in sorted((CORPUS / target).glob("*.json")):
        yield path.stem, json.loads(path.read_text())


def save(target: str, given: Json, *, prefix: str) -> Path:
    """Keep an input under a name made from its content."""
    data = written(given)
    path = CORPUS / target / f"{prefix}-{hashlib.sha256(data.encode()).hexdigest()[:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    return path


def check(target: Target, given: Json) -> str | None:
    """Run one input. Return the text of its finding, or None."""
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
    report_line: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run the known inputs, and then new ones until `runs` inputs or `seconds` of new inputs are reached."""
    draw = Random(f"{target.name} {seed}")
    pool = [*target.seeds(), *(given for _, given in read_corpus(target.name))]
    report = Report(target.name, known=len(pool))
    begun_s = new_s = time.monotonic()
    kinds: set[str] = set()
    while len(report.found) < max_findings:
        is_known = report.runs < report.known
        if report.runs == report.known:
            new_s = time.monotonic()
        if not is_known and runs is not None and report.runs >= report.known + runs:
            break
        if not is_known and seconds is not None and time.monotonic() - new_s >= seconds:
            break
        given = pool[report.runs] if is_known else _next(target, draw, pool)
        text = check(target, given)
        report.runs += 1
        if text is not None and (kind := _kind(text)) not in kinds:
            kinds.add(kind)
            report_line(f"{target.name}: {text}")
            report.found.append(Found(target.name, text, shrink(target, given, kind)))
    report.spent_s = time.monotonic() - begun_s
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
    given = draw.choice(pool)
    try:
        for _ in range(draw.choice((1, 1, 2, 3, 6))):
            given = target.change(draw, given, draw.choice(pool))
    except RecursionError:  # nested too deep to be written down
        return target.generate(draw)
    return given


def _kind(text: str) -> str:
    return text.partition(":")[0]


def shrink(target: Target, given: Json, kind: str, *, runs: int = SHRINK_RUNS) -> Json:
    """Return the smallest input that still finds the same kind, within `runs` attempts."""
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
    """Yield copies of `given` with a piece left out, the largest pieces first."""
    root = [mutate.copied(given)]
    positions = [position for position in mutate.positions(root) if position[0] is not root]
    weighed = sorted(positions, key=lambda position: -len(json.dumps(position[0][position[1]])))
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
