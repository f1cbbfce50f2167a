"""Honest in the field: what may not leave, how often agreement is wrong, and whether the world has changed."""
