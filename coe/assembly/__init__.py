"""From a config file to a running cascade: where models, wire and zoo come together."""

from .config import CascadeConfig, LocalTierConfig, RemoteTierConfig, TierConfig, read_cascade
from .open import open_cascade, open_tier, warm_up

__all__ = [
    "CascadeConfig",
    "LocalTierConfig",
    "RemoteTierConfig",
    "TierConfig",
    "open_cascade",
    "open_tier",
    "read_cascade",
    "warm_up",
]
