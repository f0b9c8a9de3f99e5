"""People: the members and signals of channels, in this hub and from other nodes.

Layer: hub.
"""
