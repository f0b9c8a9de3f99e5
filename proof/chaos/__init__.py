"""Real faults with real processes: `python -m proof.chaos`.

Layer: chaos.

Servers, producers, agents and viewers are real processes and sockets. A seed determines the faults, their moments and
the written texts; real time decides the rest, so a seed repeats the faults, but not each interleaving. Modules, from
the ground up:

- `producer` and `agent`, which are programs, and `viewer`: the parties; `app`: the application of `tenuto serve --app`;
  `locker` and `wrong_clock`: other programs that disturb a server;
- `processes`, `faults`: processes that start and end, and bad networks;
- `world`: one run, with the checks that every run must pass;
- `conversation`: users that ask and cancel, and agents that answer;
- `scenarios` (with `run`), `agent_scenarios`, `backup_scenario`: the kinds of faults;
- `cluster_scenario`: several nodes on one PostgreSQL behind nginx, with `cluster_faults` and the checks of
  `cluster_stage`; below them `cluster` (nodes), `cluster_app` (their app), `engines`,
  `postgres_server`, `nginx` and `people`.

The package `oracle` judges texts and views. This file imports nothing: a producer starts fast.
"""
