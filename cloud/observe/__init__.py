"""How the server is watched: metrics, the last hour, logs, traces, and the status page."""
