"""Fuzzing: everything that a peer can send, drawn from a seed, against the real thing.

Layer: fuzz.

`python -m fuzz --seconds 60` runs all targets; `--help` says the rest. An input is plain
JSON (a target says of what form), so that each is a file which anybody can read: `corpus/<target>/` holds those that
begin a run, and every one that ever found something. `test_fuzz.py` replays the whole corpus and runs a fixed number
of new inputs of each target.

- `engine`: draws, runs, keeps what reaches new code, makes a finding small; `mutate`: how inputs are changed;
  `coverage`: which lines of what peers talk to follow each other in a run.
- `world`: a hub in virtual time, ASGI by hand, and what must hold of every answer and of the hub after each input.
- targets: `requests` (HTTP, streams, polls), `frames` (WebSocket messages), `identities` (both, at a hub with a
  verifier: tokens, tickets, renewals, marked cursors), `cursors`, `tokens`, `stored` (operations as stores decode
  them), `documents` (a SQLite file with damaged rows); `wire` has two more, which send raw bytes to a real `holdfast
  serve`.
- `town`: what `identities` plays in, and what must hold there; `rights`: what a token grants and what an operation
  needs, written once more, to judge by.

The browser's side is fuzzed by `tests/web/fuzz.test.js`.
"""
