"""The exception that every oracle raises.

Layer: oracle.
"""

from __future__ import annotations


class Violation(AssertionError):
    """A rule that must always hold is broken."""
