"""The systems that are measured beside Holdfast: one module each, which says how it is started and what it is asked.

Layer: bench.

`system` holds what all have in common; `ours`, `nchan`, `socketio` and `xadd` are the systems;
`packages` fetches what is not Debian's; `viewers` are their wire formats for the one load client (`load`).
A peer that is not there, or does not start, is said and fails the run (`BenchError`): it is never left out in silence.
Safe to change: how a peer is configured, if it is fairer so; say why beside it.
"""
