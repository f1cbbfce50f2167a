"""Cascade of Ensembles: agreement among small models decides what leaves the device."""

from __future__ import annotations

__version__ = "0.1.0"
