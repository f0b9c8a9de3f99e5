"""The protocol's rules as plain data and pure functions.

Layer: core.

The code here never waits, opens files, reads the clock or draws a random number; a test proves it.
All other folders of the package may import this one, and this one imports none of them.
"""
