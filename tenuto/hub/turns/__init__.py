"""Turns: which agent works on which user message, in this hub and beside other nodes.

Layer: hub.
"""
