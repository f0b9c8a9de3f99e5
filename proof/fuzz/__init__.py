"""Fuzzing: every input that a peer can send, drawn from a seed, run against the real hub or server.

Layer: fuzz.

`python -m proof.fuzz --seconds 60` runs all targets; `--help` lists the options. An input is plain JSON in the target's
own form, so each is a readable file. `corpus/<target>/` holds the inputs that begin a run and every input that ever
found a bug. `tests/fuzz/test_fuzz.py` replays the whole corpus and runs a fixed number of new inputs per target.

- `engine`: draws and runs inputs, and shrinks findings; `mutate`: changes inputs.
- `world`: a hub in virtual time, ASGI by hand, and the invariants of each response and of the hub after each input.
- targets: `requests` (HTTP, streams, polls) and `frames` (WebSocket messages); `wire` has two more, which send raw
  bytes to a real `tenuto serve`.

`tests/web/fuzz.test.js` fuzzes the browser client.
"""
