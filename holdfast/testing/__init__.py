"""What we ship for tests: the contract of stores, and a proxy that breaks connections.

You are in `testing`; nothing in the product imports it. Names are looked up when they are asked for, so that the
proxy can be used where pytest is not installed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.testing.contract import StoreContract as StoreContract
    from holdfast.testing.proxy import FaultProxy as FaultProxy

__all__ = ["FaultProxy", "StoreContract"]

if "pytest" in sys.modules:  # before anything imports it, so that a failure of the contract shows the values
    sys.modules["pytest"].register_assert_rewrite("holdfast.testing.contract")


def __getattr__(name: str) -> Any:
    if name == "StoreContract":
        from holdfast.testing.contract import StoreContract

        return StoreContract
    if name == "FaultProxy":
        from holdfast.testing.proxy import FaultProxy

        return FaultProxy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
