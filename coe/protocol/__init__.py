"""Tiers across a network: the Open Inference Protocol's messages, the tensor codec, both ends of a call."""
