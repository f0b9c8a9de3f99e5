"""Tenuto: a durable realtime transport for AI conversations.

The names in `__all__` are public; type checkers and editors see ordinary imports. Each name is imported on first use:
every import of `tenuto.client` passes through this module, and a process that only runs a client needs no server.
"""

from typing import TYPE_CHECKING

from tenuto._version import __version__

if TYPE_CHECKING:
    from tenuto.agents.turn import Turn
    from tenuto.app import Hub, visitors
    from tenuto.core.errors import TenutoError
    from tenuto.core.limits import Limits
    from tenuto.core.model import Message
    from tenuto.hub import MessageWriter, Subscription
    from tenuto.hub.access.identity import Identity, allow_everyone
    from tenuto.hub.hooks import HookEvent
    from tenuto.hub.keep.policies import Retention

__all__ = [
    "HookEvent",
    "Hub",
    "Identity",
    "Limits",
    "Message",
    "MessageWriter",
    "Retention",
    "Subscription",
    "TenutoError",
    "Turn",
    "__version__",
    "allow_everyone",
    "visitors",
]

if not TYPE_CHECKING:  # only at run time: a type checker would take every name as defined by `__getattr__`
    _HOMES = {
        "HookEvent": "tenuto.hub.hooks",
        "Hub": "tenuto.app",
        "Identity": "tenuto.hub.access.identity",
        "Limits": "tenuto.core.limits",
        "Message": "tenuto.core.model",
        "MessageWriter": "tenuto.hub",
        "Retention": "tenuto.hub.keep.policies",
        "Subscription": "tenuto.hub",
        "TenutoError": "tenuto.core.errors",
        "Turn": "tenuto.agents.turn",
        "allow_everyone": "tenuto.hub.access.identity",
        "visitors": "tenuto.app",
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
