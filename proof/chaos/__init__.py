"""Real faults with real processes: `python -m proof.chaos`.

Layer: chaos.

Servers, producers, agents and viewers are real processes and sockets. A seed determines the faults, their moments and
the written texts; real time decides the rest, so a seed repeats the faults, but not each interleaving. Modules, from
the ground up:

- `producer` and `agent`, which are programs, and `viewer`: the parties; `app`: the apps of `tenuto serve --app`;
- `processes`, `proxies`, `engines`: processes that start and end, bad networks, and PostgreSQL, Redis and nginx;
- `world`: one run, with the checks that every run must pass;
- `conversation`: users that ask, and agents that answer;
- `scenarios` (with `run`): the kinds of faults of one server; `cluster`: several nodes on one PostgreSQL behind nginx;
  `finish` and its app `finish_app`: an answer that finishes, whatever ends.

The package `oracle` judges texts and views. This file imports nothing: a producer starts fast.
"""
