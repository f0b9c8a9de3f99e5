"""The running system: live channels, committer, feeds, writers.

Layer: hub.
"""

from tenuto.hub.hub import HubCore
from tenuto.hub.results import ChannelInfo
from tenuto.hub.subscription import Subscription
from tenuto.hub.writer import MessageWriter

__all__ = ["ChannelInfo", "HubCore", "MessageWriter", "Subscription"]
