"""A deterministic simulator: hubs, a store, a network, writers and viewers under one virtual clock and one seed.

Layer: simulation.

The hub, its transports and the client's view are real; time, network, disk and clients are simulated.
`World(seed).run()` is one run, `python -m proof.simulation` runs many seeds. A seed repeats exactly, on any machine: no
module here may depend on the order of a set, on an address, or on real time.

- `clock`: an event loop whose time jumps to the next deadline, and processes that can be killed between two steps;
- `network`: connections that delay, stall, swallow and break, with an ASGI server at one end, and clients' sockets;
- `store`: a store that is slow, fails, leaves outcomes unknown, loses power, and fails over;
- `actors`: the clients: `writers`, `members`, `viewers`, and `agents`;
- `hooks`: functions of the app that the hub calls;
- `bounds`: the most that a hub may hold during a run, and after it; `watchdog`: a step that never ends;
- `plan`: the draws of a seed; `world`: the machines that run hubs, and the run.

The oracles (package `oracle`) judge all that clients receive, and a `Trace` keeps the events for a report.
"""

from __future__ import annotations

from proof.oracle import Violation
from proof.simulation.world import Report, World

__all__ = ["Report", "Violation", "World"]
