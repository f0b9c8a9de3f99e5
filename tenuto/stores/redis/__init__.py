"""The bus over Redis or Valkey, which carries notices between nodes.

Layer: stores.
"""
