"""The demo: a chat that anybody can try to break, with an agent that needs no model.

`passages` finds text in this project's own documentation, `agent` turns it into an answer with a pace, `app`
puts both behind a web page. Nothing else in the package imports from here, so all of it may change freely.
"""
