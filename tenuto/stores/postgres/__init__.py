"""The store in PostgreSQL, which several processes share.

Layer: stores.
"""
