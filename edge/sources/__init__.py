"""Where examples come from."""

from __future__ import annotations

from .base import Example, Source
from .config import SourceConfig, read_sources
from .open import open_data, open_source

__all__ = ["Example", "Source", "SourceConfig", "open_data", "open_source", "read_sources"]
