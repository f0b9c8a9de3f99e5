"""The simulator finds every mutant.

Layer: tests.
"""

from __future__ import annotations

import gc
import re
from types import FunctionType

import pytest

from simulation import World
from simulation.plan import Plan
from tests.simulation import mutants
from tests.simulation.mutants import DIRECTED, MUTANTS, NEEDS, SHOWN_BY, Mutant

FOUND_WITHIN = 300  # number of seeds within which a mutant must be found


def test_each_mutant_is_listed() -> None:
    functions = {one for one in vars(mutants).values() if isinstance(one, FunctionType)}
    assert {one for one in functions if one.__module__ == mutants.__name__} == set(MUTANTS)


@pytest.mark.filterwarnings("ignore")  # a broken hub leaves objects behind that a correct one does not
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another violation proves that as little as a seed that fails without the mutant."""
    others: list[str] = []
    planned = DIRECTED.get(mutant, Plan.drawn)
    with monkeypatch.context() as patch:
        mutant(patch)
        for seed in (*([SHOWN_BY[mutant]] if mutant in SHOWN_BY else []), *range(FOUND_WITHIN)):
            plan = planned(seed)
            if mutant in NEEDS and not NEEDS[mutant](plan):
                continue
            violation = World(seed, plan).run().violation
            if violation is not None and re.search(MUTANTS[mutant], str(violation)):
                break
            others += [f"seed {seed}: {violation}"] if violation is not None else []
        else:
            pytest.fail(f"no violation {MUTANTS[mutant]!r} in {FOUND_WITHIN} seeds, but {others[:5]}")
        gc.collect()
    whole = World(seed, planned(seed)).run()
    assert whole.violation is None, whole.describe(is_as_drawn=mutant not in DIRECTED)
