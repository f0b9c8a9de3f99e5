"""Holdfast: a durable realtime transport for AI conversations.

The names in `__all__` are public; type checkers and editors see ordinary imports. Each name is imported on first use:
every import of `holdfast.client` passes through this module, and a process that only runs a client needs no server.
"""

from typing import TYPE_CHECKING

from holdfast._version import __version__

if TYPE_CHECKING:
    from holdfast.agents.turn import Turn
    from holdfast.app import Hub
    from holdfast.core.errors import HoldfastError
    from holdfast.core.limits import Limits
    from holdfast.core.model import Message
    from holdfast.core.retention import Retention
    from holdfast.hub import MessageWriter, Subscription
    from holdfast.hub.hooks import HookEvent
    from holdfast.hub.identity import Identity, allow_everyone

__all__ = [
    "HoldfastError",
    "HookEvent",
    "Hub",
    "Identity",
    "Limits",
    "Message",
    "MessageWriter",
    "Retention",
    "Subscription",
    "Turn",
    "__version__",
    "allow_everyone",
]

if not TYPE_CHECKING:  # only at run time: a type checker would take every name as defined by `__getattr__`
    _HOMES = {
        "HoldfastError": "holdfast.core.errors",
        "HookEvent": "holdfast.hub.hooks",
        "Hub": "holdfast.app",
        "Identity": "holdfast.hub.identity",
        "Limits": "holdfast.core.limits",
        "Message": "holdfast.core.model",
        "MessageWriter": "holdfast.hub",
        "Retention": "holdfast.core.retention",
        "Subscription": "holdfast.hub",
        "Turn": "holdfast.agents.turn",
        "allow_everyone": "holdfast.hub.identity",
    }

    def __getattr__(name):
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(home), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
