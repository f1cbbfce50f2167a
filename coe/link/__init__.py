"""What lies between a device and a server: models of a link, injected delays, and the clocks that wait."""

from .bandwidth import Queue, Steps, bandwidth
from .clock import Backoff, Clock, RealClock, VirtualClock
from .link import PACKET_BYTES, Link, LinkModel, OneWay
from .loss import Loss
from .outage import Outage
from .propagation import JITTERS, Propagation
from .recorded import Opportunities, RoundTrips, read_recorded
from .tier import Delay, DelayedTier, TierBehindLink

__all__ = [
    "JITTERS",
    "PACKET_BYTES",
    "Backoff",
    "Clock",
    "Delay",
    "DelayedTier",
    "Link",
    "LinkModel",
    "Loss",
    "OneWay",
    "Opportunities",
    "Outage",
    "Propagation",
    "Queue",
    "RealClock",
    "RoundTrips",
    "Steps",
    "TierBehindLink",
    "VirtualClock",
    "bandwidth",
    "read_recorded",
]
