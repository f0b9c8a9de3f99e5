"""The running system: live channels, committer, feeds, writers.

Layer: hub.
"""

from tenuto.hub.hub import HubCore, Subscription
from tenuto.hub.pending import ChannelInfo
from tenuto.hub.writer import MessageWriter

__all__ = ["ChannelInfo", "HubCore", "MessageWriter", "Subscription"]
