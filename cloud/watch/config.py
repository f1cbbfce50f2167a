"""The `log:`, `metrics:` and `traces:` settings.

log: {format: plain, level: info, requests: false}
metrics: {enabled: true, page: true}
traces: {endpoint: "http://127.0.0.1:4318", service: coe-cloud, share: 1.0}
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from coe.settings import Fields

LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Watch:
    """How the server is watched.

    Args:
        log_format: "plain" or "json".
        log_requests: one line for every request answered; those that failed have one in any case.
        metrics: offer them to Prometheus; page: offer the status page. Both on the HTTP port.
        traces: OTLP over HTTP goes there; "": nowhere.
        trace_share: of the traces begun here that are kept; a device's trace says itself whether it is.
    """

    log_format: str = "plain"
    log_level: str = "info"
    log_requests: bool = False
    metrics: bool = True
    page: bool = True
    traces: str = ""
    trace_service: str = "coe-cloud"
    trace_share: float = 1.0


def read(fields: Fields) -> Watch:
    """The settings of a config file; findings go to its report."""
    log, metrics, traces = (fields.section(key, {}) for key in ("log", "metrics", "traces"))
    watch = Watch(
        log_format=log.choice("format", ("plain", "json"), "plain"),
        log_level=log.choice("level", LEVELS, "info"),
        log_requests=log.flag("requests", False),
        metrics=metrics.flag("enabled", True),
        page=metrics.flag("page", True),
        traces=_endpoint(traces),
        trace_service=traces.text("service", "coe-cloud"),
        trace_share=traces.number("share", 1.0, high=1.0),
    )
    if watch.log_requests and watch.log_level not in ("debug", "info"):
        log.warn("requests", f"requests are logged at info, which level {watch.log_level} leaves out (set level: info)")
    for section in (log, metrics, traces):
        section.finish()
    return watch


def _endpoint(traces: Fields) -> str:
    """Where traces go, as OTLP over HTTP wants it said; "" where they go nowhere."""
    endpoint = traces.text("endpoint", "")
    if not endpoint:
        return ""
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if not is_url:
        traces.wrong("endpoint", f'expected a URL, got "{endpoint}" (write "http://127.0.0.1:4318")')
        return ""
    return endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
