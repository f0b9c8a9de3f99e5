"""A real PostgreSQL server in a folder of its own, for tests.

Layer: tests.
"""

from __future__ import annotations

import pytest

from proof.chaos.engines import PROGRAMS, Postgres, running_postgres

__all__ = ["Postgres", "needs_postgres", "running_postgres"]

needs_postgres = pytest.mark.skipif(
    not (PROGRAMS / "initdb").exists(), reason="PostgreSQL is not installed; CI installs it"
)
