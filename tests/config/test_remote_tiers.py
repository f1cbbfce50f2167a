"""Where a remote tier's hosts are, as a config says it: one address, a name, a list; and what a bad one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.config import Fields, Report
from coe.config.cascade import CascadeConfig, RemoteTierConfig, read_cascade
from coe.config.open import open_tier

TASK = {"task": "shapes", "labels": ["round", "square"], "input": {"kind": "tensor", "shape": [1]}}


def read(report: Report, **settings: object) -> CascadeConfig:
    return read_cascade(Fields(TASK | {"tiers": [settings]}, report), Path())


def tier_of(**settings: object) -> tuple[RemoteTierConfig, list[str]]:
    """The tier, and what its settings were warned of."""
    report = Report("pi.yaml")
    config = read(report, **settings)
    report.check()
    (tier,) = config.tiers
    assert isinstance(tier, RemoteTierConfig)
    return tier, report.warnings


def findings(**settings: object) -> list[str]:
    report = Report("pi.yaml")
    read(report, **settings)
    return report.findings


def test_one_address_is_a_list_of_one():
    tier, _ = tier_of(address="10.0.0.7:8001")
    assert tier.addresses == ("10.0.0.7:8001",)
    assert tier_of(address=["10.0.0.7:8001"])[0].addresses == tier.addresses


def test_several_addresses_are_kept_in_order_and_told_as_one_text():
    tier, warnings = tier_of(address=["10.0.0.2:8001", "10.0.0.1:8001", "gpu.example.org:8001"])
    assert tier.addresses == ("10.0.0.2:8001", "10.0.0.1:8001", "gpu.example.org:8001")
    assert tier.address == "10.0.0.2:8001, 10.0.0.1:8001, gpu.example.org:8001"
    assert not warnings


def test_every_bad_entry_of_a_list_is_a_finding_that_names_it():
    assert findings(address=["10.0.0.1:8001", "nowhere", "10.0.0.1:8001", 8001, "a:0"]) == [
        'tiers[0].address[3]: expected a text, got 8001 (write "8001" in quotes)',
        'tiers[0].address[1]: expected host:port, got "nowhere" (coe-cloud serves on port 8001)',
        'tiers[0].address[2]: expected each host once, got "10.0.0.1:8001" twice',
        'tiers[0].address[4]: expected host:port, got "a:0" (coe-cloud serves on port 8001)',
    ]


@pytest.mark.parametrize(
    ("address", "fix"),
    [
        ("http://gpu-host:8001", "leave http:// out"),
        ("grpc://gpu-host", "leave grpc:// out"),
        ("gpu host:8001", "leave the space out"),
        ("gpu-host: 8001", "leave the space out"),
        (" gpu-host:8001", "leave the space out"),
        ("::1:8001", 'write "[::1]:8001"'),
        ("fe80::1:8001", 'write "[fe80::1]:8001"'),
        ("gpu-host/models:8001", "write a name, such as gpu-host, or an IP address"),
        ("a:b:8001", "write a name, such as gpu-host, or an IP address"),
        (":8001", "coe-cloud serves on port 8001"),
        ("gpu-host", "coe-cloud serves on port 8001"),
    ],
)
def test_a_bad_address_is_told_how_to_write_it(address, fix):
    assert findings(address=address) == [f'tiers[0].address: expected host:port, got "{address}" ({fix})']
    assert findings(address=["a:1", address]) == [f'tiers[0].address[1]: expected host:port, got "{address}" ({fix})']


@pytest.mark.parametrize("address", ["[::1]:8001", "[fe80::1%eth0]:8001", "gpu_host.local:1", "10.0.0.7:65535"])
def test_a_good_address_is_taken(address):
    assert findings(address=address) == []


@pytest.mark.parametrize("address", [[], [None], [["a:1"]], {"a": 1}, 8001, ""])
def test_what_is_neither_an_address_nor_a_list_of_them_is_a_finding(address):
    (finding,) = findings(address=address)
    assert finding.startswith("tiers[0].address")


def test_a_stream_is_asked_for_and_not_over_several_hosts():
    assert tier_of(address="a:1")[0].stream is False
    tier, warnings = tier_of(address="a:1", stream=True)
    assert tier.stream is True
    assert not warnings
    _, (warning,) = tier_of(address=["a:1", "b:1"], stream=True)
    assert warning.startswith("tiers[0].stream: a stream keeps to one host")


def test_the_start_says_every_host():
    said: list[str] = []
    config = read(Report("pi.yaml"), name="cloud", address=["10.0.0.1:8001", "10.0.0.2:8001"])
    open_tier(config.tiers[0], config, said.append).close()
    assert said == ["tier cloud: shapes at 10.0.0.1:8001, 10.0.0.2:8001, deadline 2000 ms"]


def test_a_name_in_a_list_that_nobody_knows_yet_does_not_stop_the_start():
    config = read(Report("pi.yaml"), address=["10.0.0.1:8001", "nowhere.invalid:8001"])
    tier = open_tier(config.tiers[0], config)  # it is looked up again before each probe
    assert tier.name == "cloud"
    tier.close()
