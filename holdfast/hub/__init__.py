"""The running system: live channels, committer, feeds, writers.

Layer: hub.
"""

from holdfast.hub.hub import ChannelInfo, HubCore
from holdfast.hub.subscription import Subscription
from holdfast.hub.writer import MessageWriter

__all__ = ["ChannelInfo", "HubCore", "MessageWriter", "Subscription"]
