"""The section `link:`: what it means when it is left out, and what is said of a wrong setting."""

from __future__ import annotations

import pytest

from coe.cascade import ConfigError
from coe.config import Fields, Report
from edge.link import LinkConfig, read_link


def read(**settings: object) -> LinkConfig:
    report = Report("pi.yaml")
    config = read_link(Fields(settings, report, "link"))
    report.check()
    return config


def test_without_settings_it_is_as_documented():
    assert read() == LinkConfig(failures=3, rebuild_after=3, backoff_s=(0.2, 30.0), probe_s=None, reserve_s=0.005)


def test_every_setting_is_read():
    limits = {"max_mb_per_month": 500, "max_examples_per_hour": 30}
    config = read(failures=5, rebuild_after=2, backoff_ms=[100, 4000], probe_ms=500, reserve_ms=20, **limits)
    assert config == LinkConfig(5, 2, (0.1, 4.0), 0.5, 0.02, 5e8, 30)


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"failures": 0}, "link.failures: expected 1 to 1000, got 0"),
        ({"rebuild_after": "3"}, 'link.rebuild_after: expected a whole number, got "3"'),
        ({"probe_ms": 1}, "link.probe_ms: expected 10 to 600000, got 1"),
        ({"reserve_ms": -1}, "link.reserve_ms: expected 0 to 60000, got -1"),
        ({"max_mb_per_month": 0}, "link.max_mb_per_month: expected 0.001 to"),
        ({"max_examples_per_hour": 0}, "link.max_examples_per_hour: expected 1 to 1000000000, got 0"),
        ({"backoff_ms": 200}, "link.backoff_ms: expected two waits from 1 to 3600000"),
        ({"backoff_ms": [300, 200]}, r"the first no longer than the second, got [300, 200] (write [200, 30000])"),
        ({"backoff_ms": [0, 200]}, "expected two waits from 1 to 3600000"),
        ({"backoff_ms": ["a", 2]}, 'link.backoff_ms[0]: expected a number, got "a"'),
        ({"backof_ms": [1, 2]}, 'link.backof_ms: unknown setting (did you mean "backoff_ms"?)'),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_should_be(settings, finding):
    with pytest.raises(ConfigError) as caught:
        read(**settings)
    assert finding in str(caught.value)
    assert len(caught.value.findings) == 1
