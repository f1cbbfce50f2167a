"""The settings of the logs, the metrics and the traces."""

from __future__ import annotations

import pytest

from cloud.config import ObserveConfig, read_observe
from coe.config import Fields, Report


def reading(**content: object) -> tuple[ObserveConfig, Report]:
    report = Report("cloud.yaml")
    fields = Fields(content, report)
    watch = read_observe(fields)
    fields.finish()
    return watch, report


def test_without_settings_logs_are_plain_metrics_and_page_are_there_and_traces_are_not():
    watch, report = reading()
    assert watch == ObserveConfig()
    assert (watch.log_format, watch.log_requests, watch.metrics, watch.page, watch.traces) == (
        "plain",
        False,
        True,
        True,
        "",
    )
    assert report.findings == []


def test_every_setting_is_read():
    watch, report = reading(
        log={"format": "json", "level": "debug", "requests": True},
        metrics={"enabled": False, "page": False},
        traces={"endpoint": "http://collector:4318", "service": "east", "share": 0.1},
    )
    assert report.findings == []
    assert watch == ObserveConfig("json", "debug", True, False, False, "http://collector:4318/v1/traces", "east", 0.1)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/v1/traces", "https://c/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ("https://c/elsewhere", "https://c/elsewhere"),
    ],
)
def test_an_endpoint_without_a_path_gets_the_usual_one(said, meant):
    assert reading(traces={"endpoint": said})[0].traces == meant


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://c:4317", "http://", "http://c:99999", "http://[::1"])
def test_an_endpoint_that_is_no_url_is_a_finding_with_its_mend(endpoint):
    watch, report = reading(traces={"endpoint": endpoint})
    assert watch.traces == ""
    assert report.findings == [f'traces.endpoint: expected a URL, got "{endpoint}" (write "http://127.0.0.1:4318")']


def test_every_finding_comes_at_once():
    _, report = reading(log={"format": "xml", "levle": "info"}, traces={"share": 2})
    assert len(report.findings) == 3
    assert 'log.levle: unknown setting (did you mean "level"?)' in report.findings


def test_requests_that_the_level_would_leave_out_are_a_warning():
    _, report = reading(log={"level": "warning", "requests": True})
    assert "log.requests" in report.warnings[0]
