"""The simulator finds every mutant.

Layer: tests.
"""

from __future__ import annotations

import gc
import re
from types import FunctionType

import pytest

from proof.simulation import World
from tests.simulation import mutants
from tests.simulation.directed import MUTANTS, Mutant, directed

# Number of seeds within which a mutant must be found. At least one seed in ten shows each (measured), most of them more
# than half, so a change of the hub that moves all draws hides it with a chance of 1 in 4,000 at most.
FOUND_WITHIN = 80


def test_each_mutant_is_listed() -> None:
    functions = {one for one in vars(mutants).values() if isinstance(one, FunctionType)}
    assert {one for one in functions if one.__module__ == mutants.__name__} == set(MUTANTS)


@pytest.mark.filterwarnings("ignore")  # a broken hub leaves objects behind that a correct one does not
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another violation proves that as little as a seed that fails without the mutant."""
    violation, features = MUTANTS[mutant]
    others: list[str] = []
    with monkeypatch.context() as patch:
        mutant(patch)
        for seed in range(FOUND_WITHIN):
            found = World(seed, directed(seed, features)).run().violation
            if found is not None and re.search(violation, str(found)):
                break
            others += [f"seed {seed}: {found}"] if found is not None else []
        else:
            pytest.fail(f"no violation {violation!r} in {FOUND_WITHIN} seeds, but {others[:5]}")
        gc.collect()
    whole = World(seed, directed(seed, features)).run()
    assert whole.violation is None, whole.describe(is_as_drawn=False)
