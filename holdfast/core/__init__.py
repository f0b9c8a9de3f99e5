"""What the protocol means: plain data and pure functions.

Nothing in here waits, opens anything, asks for the time or draws a random number; a test proves it.
Everybody else in the package builds on this folder, and this folder on nobody.
"""
