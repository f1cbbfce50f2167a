"""The agent watched on its own device: Prometheus metrics, and a small page."""
