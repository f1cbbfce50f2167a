"""What YAML would misread without a word is an error with its line in every file that a user writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.config import read_config as read_server
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
