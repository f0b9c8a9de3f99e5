"""Access: the identity of a caller, what proves it, and how much it may use.

Layer: hub.
"""
