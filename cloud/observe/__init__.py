"""How the server is observed: metrics, the last hour, logs, traces, and the status page."""
