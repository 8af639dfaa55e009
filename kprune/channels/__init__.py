"""Channels: which entries of which weights make up a channel, and what a dead channel outputs."""

from .budget import ChannelCut, Costs, check_budget
from .constants import constants
from .followers import add_followers
from .functional import functional
from .graph import ChannelGraph, Mixer, Slot, Tensor
from .groups import ChannelGroup, ChannelGroups, divisor_of, groups_of
from .trace import channel_graph

__all__ = [
    "ChannelCut",
    "ChannelGraph",
    "ChannelGroup",
    "ChannelGroups",
    "Costs",
    "Mixer",
    "Slot",
    "Tensor",
    "add_followers",
    "channel_graph",
    "check_budget",
    "constants",
    "divisor_of",
    "functional",
    "groups_of",
]
