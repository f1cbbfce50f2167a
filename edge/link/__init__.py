"""The link to the cloud: whether to call at all, when to try again, and what still fits an example's deadline."""

from .config import LinkConfig, read_link
from .linked import LinkedTier, link_up
from .round_trips import RoundTrips, Smoothed
from .state import LinkState, Status

__all__ = ["LinkConfig", "LinkState", "LinkedTier", "RoundTrips", "Smoothed", "Status", "link_up", "read_link"]
