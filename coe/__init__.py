"""Cascade of Ensembles: agreement among small models decides what leaves the device."""

__version__ = "0.1.0"
