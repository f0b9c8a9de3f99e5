"""Proof that the simulator sees what it must: every bug of `planted` is found.

Layer: tests.

"""

from __future__ import annotations

import gc
import re

import pytest

from simulation import World
from simulation.world import Plan
from tests.simulation.mutants import MUTANTS, NEEDS, SHOWN_BY, Mutant
from tests.simulation.story import story

FOUND_WITHIN = 300  # seeds, within which every planted bug must show itself

# The ten of which everybody who builds such a system makes one.
WELL_KNOWN = {
    "deliver before commit": "deliver_before_the_commit",
    "forget the epoch": "forget_the_epoch",
    "off by one in the tail": "begin_one_past_the_cursor",
    "join across an edit": "join_across_an_edit",
    "answer before the commit": "answer_before_the_commit",
    "move the cursor page by page in a catch-up": "move_the_cursor_with_every_event",
    "reload beside a commit in flight": "reload_beside_a_commit",
    "decide on arrival": "decide_on_arrival",
    "label an update with its own entry's serial": "label_an_update_with_its_own_serial",
    "trust the wake-up": "trust_the_wake_up",
}


def test_the_well_known_mistakes_have_mutants() -> None:
    assert len(WELL_KNOWN) == 10
    assert set(WELL_KNOWN.values()) <= {mutant.__name__ for mutant in MUTANTS}


@pytest.mark.filterwarnings("ignore")  # what a broken hub leaves lying about says nothing of a whole one
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_mutant_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it does: a run that fails in another way, and one that fails without it, too, is no proof."""
    seen: list[str] = []
    with monkeypatch.context() as patch:
        mutant(patch)
        for seed in (*([SHOWN_BY[mutant]] if mutant in SHOWN_BY else []), *range(FOUND_WITHIN)):
            plan = Plan.drawn(seed)
            if mutant in NEEDS and not NEEDS[mutant](plan):
                continue
            violation = World(seed, plan).run().violation
            if violation is not None and re.search(MUTANTS[mutant], str(violation)):
                break
            seen += [f"seed {seed}: {violation}"] if violation is not None else []
        else:
            pytest.fail(f"{MUTANTS[mutant]!r} was not seen in {FOUND_WITHIN} seeds, but {seen[:5]}")
        gc.collect()
    whole = World(seed).run()
    assert whole.violation is None, story(whole)
