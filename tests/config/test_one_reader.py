"""What YAML would misread without a word is an error with its line in every file that a user writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.config import read_config as read_server
from cloud.main import main as serve
from cloud.security.identity import read_tokens
from coe.cascade import ConfigError
from coe.config import Fields, Report
from coe.config.manifest import read_manifest, read_task
from edge.config import read_config as read_agent
from sim.studies.gpu_cost import read_prices
from sim.traces.costs import costs_in

EDGE = """task: zoo:digits
tiers:
  - {name: device, members: [zoo:digits/mosaic.onnx]}
"""
READERS = {
    "an agent's config": read_agent,
    "a server's config": read_server,
    "a manifest": read_manifest,
    "device tokens": read_tokens,
    "a trace's costs": lambda path: costs_in(str(path), ()),
    "prices": read_prices,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("task: zoo:digits", 'line 4, column 1: "task" is given twice, first in line 1 (leave one out)'),
        ("off: {}", "line 4, column 1: YAML reads the key off as true or false"),
        ("state: 1:30", "line 4, column 8: YAML reads 1:30 as 90"),
    ],
)
def test_a_trap_is_named_with_its_line(tmp_path: Path, reader, line, finding):
    path = tmp_path / "a.yaml"
    path.write_text(f"{EDGE}{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        READERS[reader](path)
    assert str(caught.value).startswith(f"{path}: {finding}")


@pytest.mark.parametrize(
    ("reader", "opened"),
    [(read_server, "security: {}"), (read_agent, "never_send: []"), (read_agent, "privacy_filter:")],
)
def test_a_second_section_does_not_open_what_the_first_closed(tmp_path: Path, reader, opened):
    path = tmp_path / "a.yaml"
    key = opened.partition(":")[0]
    path.write_text(f"{key}: something\n{EDGE}{opened}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f'line 5, column 1: "{key}" is given twice, first in line 1'):
        reader(path)


def test_labels_that_yaml_takes_for_truth_values_are_to_be_quoted():
    report = Report("manifest.yaml")
    read_task(Fields({"task": "doors", "labels": [False, True], "input": {"kind": "tensor", "shape": [1]}}, report))
    assert report.findings == [
        "labels[0]: expected a text, got false (write it in quotes: YAML reads no and off as false)",
        "labels[1]: expected a text, got true (write it in quotes: YAML reads yes and on as true)",
    ]


@pytest.mark.parametrize(
    ("host", "fix"),
    [
        ("http://0.0.0.0", "leave http:// out"),
        ("gpu host", "leave the space out"),
        ("0.0.0.0:8001", "write a name, such as gpu-host, or an IP address"),
    ],
)
def test_a_servers_host_is_a_name_or_an_ip_address(tmp_path: Path, host, fix, capsys):
    path = tmp_path / "cloud.yaml"
    path.write_text(f'{EDGE}server: {{host: "{host}"}}\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_server(path)
    assert caught.value.findings == [f'server.host: expected a name or an IP address, got "{host}" ({fix})']
    with pytest.raises(SystemExit):
        serve(["serve", "--host", host])
    assert f'argument --host: expected a name or an IP address, got "{host}" ({fix})' in capsys.readouterr().err


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "::1", "[::1]", "::", "gpu-host.example"])
def test_a_servers_good_host_is_taken(tmp_path: Path, host):
    path = tmp_path / "cloud.yaml"
    path.write_text(f'{EDGE}server: {{host: "{host}"}}\n', encoding="utf-8")
    assert read_server(path).host == host


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://a collector:4318", "http://::1:4318", "http://"])
def test_an_endpoint_of_traces_is_a_url(tmp_path: Path, endpoint):
    path = tmp_path / "cloud.yaml"
    path.write_text(f'{EDGE}traces: {{endpoint: "{endpoint}"}}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"traces\.endpoint: expected a URL, got "):
        read_server(path)
