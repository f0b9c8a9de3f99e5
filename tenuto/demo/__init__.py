"""The demo: a chat that survives reloads and crashes, with an agent that needs no model.

Layer: demo.

`passages` finds text in this project's own documentation, `agent` turns it into an answer with a pace, and `app`
serves both with a web page. No other part of the package imports this one, so all of it may change freely.
"""
