"""Routes of an app, and the adapters of other wire formats, with the real clients.

Layer: tests.
"""
