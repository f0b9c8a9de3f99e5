"""Tools for the tests of applications and stores: the contract of stores, and a proxy that breaks connections.

Layer: testing.

No module of the product imports it. Names are looked up on first use, so the proxy works without pytest.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenuto.testing.contract import StoreContract as StoreContract
    from tenuto.testing.contract_retention import RetentionContract as RetentionContract
    from tenuto.testing.proxy import FaultProxy as FaultProxy

__all__ = ["FaultProxy", "RetentionContract", "StoreContract"]

# before the first import, so that pytest shows the values of a failed assertion in the contract
if "pytest" in sys.modules:
    names = ("contract", "contract_holds", "contract_notices", "contract_retention")
    sys.modules["pytest"].register_assert_rewrite(*(f"tenuto.testing.{name}" for name in names))


def __getattr__(name: str) -> Any:
    if name == "StoreContract":
        from tenuto.testing.contract import StoreContract

        return StoreContract
    if name == "RetentionContract":
        from tenuto.testing.contract_retention import RetentionContract

        return RetentionContract
    if name == "FaultProxy":
        from tenuto.testing.proxy import FaultProxy

        return FaultProxy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
