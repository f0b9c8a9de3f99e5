"""The remote client: `pip install "holdfast[client]"`.

Layer: client. It needs `core` and `portal` only: it knows the protocol (`docs/protocol.md`), but not the hub.
The names of this module are public, and `docs/client.md` documents them; the modules below may change.
"""

from holdfast.client.client import Client
from holdfast.client.presence import Presence
from holdfast.client.problems import NotHoldfast, UnknownProblem, Unreachable
from holdfast.client.subscription import Subscription
from holdfast.client.sync import SyncClient
from holdfast.client.timing import Timing
from holdfast.client.view import Change, ChannelView
from holdfast.client.work import ClaimedTurn
from holdfast.client.writer import RemoteWriter
from holdfast.portal import SyncWriter

__all__ = [
    "Change",
    "ChannelView",
    "ClaimedTurn",
    "Client",
    "NotHoldfast",
    "Presence",
    "RemoteWriter",
    "Subscription",
    "SyncClient",
    "SyncWriter",
    "Timing",
    "UnknownProblem",
    "Unreachable",
]
