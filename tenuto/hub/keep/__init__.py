"""Keeping: lists, backups, retention, export, import and removal of stored channels, and the control of a running hub.

Layer: hub.
"""
