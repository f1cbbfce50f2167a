"""The agent as a service: signals, reloads, and what systemd is told."""

from .feed import Feed
from .life import GaveUp, Life
from .notify import Notifier
from .pulse import Pulse

__all__ = ["Feed", "GaveUp", "Life", "Notifier", "Pulse"]
