"""The running system: live channels, committer, feeds, writers.

Layer: hub.
"""

from tenuto.hub.feed import Subscription
from tenuto.hub.hub import HubCore
from tenuto.hub.pending import ChannelInfo
from tenuto.hub.writer import MessageWriter

__all__ = ["ChannelInfo", "HubCore", "MessageWriter", "Subscription"]
