"""Holdfast: a durable realtime transport for AI conversations."""

from holdfast._version import __version__

__all__ = ["__version__"]
