"""Where examples come from."""

from .base import Example, Source
from .open import open_source

__all__ = ["Example", "Source", "open_source"]
