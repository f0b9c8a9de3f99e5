"""Nodes: several hubs on one store, which learn of one another through it.

Layer: hub.
"""
