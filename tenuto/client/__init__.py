"""The remote client; it needs the extra `tenuto[client]`.

Layer: client. It imports `core`, `portal` and `development`, and for its handlers `agents` and `sources`; not the hub.
The names of this module are public, and `docs/client.md` documents them; the modules below may change.
"""

from tenuto.client.client import Client, Presence, SyncClient
from tenuto.client.connection import NotTenuto, Timing, UnknownProblem, Unreachable
from tenuto.client.feed import Change, ChannelView, Subscription
from tenuto.client.work import ClaimedTurn
from tenuto.client.writer import RemoteWriter
from tenuto.portal import SyncWriter

__all__ = [
    "Change",
    "ChannelView",
    "ClaimedTurn",
    "Client",
    "NotTenuto",
    "Presence",
    "RemoteWriter",
    "Subscription",
    "SyncClient",
    "SyncWriter",
    "Timing",
    "UnknownProblem",
    "Unreachable",
]
