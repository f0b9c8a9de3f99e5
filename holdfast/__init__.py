"""Holdfast: a durable realtime transport for AI conversations."""

from holdfast._version import __version__
from holdfast.agents.turn import Turn
from holdfast.app import Hub
from holdfast.core.errors import HoldfastError
from holdfast.core.limits import Limits
from holdfast.core.model import Message
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
    "Subscription",
    "Turn",
    "__version__",
    "allow_everyone",
]
