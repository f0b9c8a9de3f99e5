"""A deterministic simulator: hubs, a store, a network, writers and viewers under one virtual clock and one seed.

Layer: testing.

What runs is the real hub, its transports and the real view; only time, the network, the disk and
the people are simulated. `World(seed).run()` is one run, `python -m simulation` many. The same seed does the
same again, to the byte, on any machine: nothing in here may depend on the order of a set, on an address, on real time.

- `clock`: an event loop whose time jumps to the next deadline, and processes that can be killed between two steps;
- `network`: connections that delay, stall, swallow and break, with an ASGI server at one end;
- `store`: a store that is slow, fails, does not say whether it stored, and loses power;
- `actors`, `viewers`: writers, editors and viewers, each of which resends and reconnects as a good client does;
- `leases`, `people`, `turns`, `hooks`: writers with leases and their successors; members, and those who send commands;
  agents; the functions of the app that hear of what was stored;
- `checks`: what must hold, compared with an independent fold of what the store took (`truth`);
- `bounds`: what a hub may hold while all this goes on; `watchdog`: a step that never ends;
- `ledger`: who was heard of when, and what is due: leases, turns, commands and presence;
- `world`: all of them together, and the plan that a seed draws.
"""

from __future__ import annotations

from simulation.trace import Violation
from simulation.world import Report, World

__all__ = ["Report", "Violation", "World"]
