"""Real faults with real processes: `python -m chaos`.

You are in `testing`; nothing in the product imports it. Servers, producers, agents and viewers are processes and
sockets as in earnest; what is drawn from a seed is what goes wrong, when, and what is written. Real time decides the
rest, so a seed repeats the faults and not each interleaving. Modules, from the ground up:

- `plan`: what producers write, known to everybody in advance; `script`: what people and agents say, where each token
  tells whose it is;
- `producer`, `agent`, `viewer`: the parties, each also a program; `app`, `locker`, `wrong_clock`: what servers have to
  bear; `heard`: what a viewer was told of presence and commands;
- `processes`, `fault_model`: starting and ending, and bad networks;
- `truth`, `talk`, `world`: what was acknowledged, what may come of a question, and the checks that every run must pass;
- `conversation`: people who ask and stop, agents who answer, in a world;
- `scenarios`: what goes wrong.

Names are looked up when they are asked for: producers start in a fraction of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos.runner import NAMES as NAMES
    from chaos.runner import run as run
    from chaos.world import Failure as Failure
    from chaos.world import Scale as Scale

__all__ = ["NAMES", "Failure", "Scale", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from chaos import runner, world

    return getattr(world if name in ("Failure", "Scale") else runner, name)
