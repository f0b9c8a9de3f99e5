"""The running system: live channels, committer, feeds, writers.

Layer: hub.
"""

from holdfast.hub.hub import HubCore
from holdfast.hub.results import ChannelInfo
from holdfast.hub.subscription import Subscription
from holdfast.hub.writer import MessageWriter

__all__ = ["ChannelInfo", "HubCore", "MessageWriter", "Subscription"]
