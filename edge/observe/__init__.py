"""Prometheus metrics and a status page of the agent, on its own device."""
