"""What all tests share.

You are in `tests`, which mirrors the package. Tests never sleep to wait for something; they await it.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# One machine is slow, another slower: time says nothing about a property. `HYPOTHESIS_PROFILE=long` looks harder.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
