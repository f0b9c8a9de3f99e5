"""The systems that are measured beside Tenuto: one module each, with its start and its requests.

Layer: bench.

`system` holds the common interface, and Tenuto; `nchan` and `xadd` (its app: `xadd_app`) are the other systems.
`publisher` writes to them, and `viewers` has their wire formats for the load client. A peer that is missing or does not
start is reported and fails the run (`BenchError`): it is never left out silently. Safe to change: the configuration of
a peer, if that is fairer; write the reason beside it.
"""
