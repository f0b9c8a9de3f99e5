"""The store in an SQLite file: one process, one worker thread, synced commits.

Layer: stores.
"""
