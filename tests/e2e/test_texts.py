"""Texts end to end: JSON lines to a real agent, what its members disagree on as UTF-8 to a real server."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from programs import Cloud, closed_port, edge
from text_models import onnx_model, write_task

PAGE = re.compile(r"status page on (http://\S+:\d+)/")
# One member knows no "good": on such texts the three disagree.
DEVICE = {"a.onnx": onnx_model(), "b.onnx": onnx_model(), "c.onnx": onnx_model(knows=["bad"])}
TEXTS = {"kept": "a bad film", "sent": "a good film", "foreign": "café café good"}

EDGE = """
task: manifest.yaml
tiers:
  - name: device
    members: [a.onnx, b.onnx, c.onnx]
  - {{name: cloud, address: "127.0.0.1:{port}", deadline_ms: 5000}}
source: {{kind: stdin}}
sink: {{path: "-"}}
"""
CLOUD = """
task: manifest.yaml
tiers:
  - name: best
    members: [best.onnx]
server: {http_port: 0}
limits: {max_text_bytes: 100}
"""


def folder_of(tmp_path: Path, name: str, models: dict[str, bytes], config: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    write_task(folder, models)
    path = folder / f"{name}.yaml"
    path.write_text(config, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloud")
    with Cloud(folder, folder_of(folder, "cloud", {"best.onnx": onnx_model()}, CLOUD)) as program:
        yield program


def decided(tmp_path: Path, port: int, lines: list[str]) -> dict[str, dict]:
    config = folder_of(tmp_path, "edge", DEVICE, EDGE.format(port=port))
    with edge(tmp_path, config, stdin="".join(f"{line}\n" for line in lines).encode()) as agent:
        assert agent.end() == 0, agent.complained
    return {record["id"]: record for record in agent.records}


def as_lines(texts: dict[str, str]) -> list[str]:
    return [json.dumps({"id": name, "text": text}) for name, text in texts.items()]


def test_texts_are_decided_on_the_device_or_sent_on_as_they_are(server, tmp_path):
    records = decided(tmp_path, server.port, as_lines(TEXTS))
    assert {name: record["exit_tier"] for name, record in records.items()} == {"kept": 1, "sent": 2, "foreign": 2}
    names = {name: record["name"] for name, record in records.items()}
    assert names == {"kept": "negative", "sent": "positive", "foreign": "positive"}
    assert not any(record["degraded"] for record in records.values())
    sent = {name: records[name]["call"]["bytes_sent"] for name in ("sent", "foreign")}
    assert sent["foreign"] - sent["sent"] == len("café café good".encode()) - len(b"a good film")
    assert sent["sent"] <= len(b"a good film") * 1.05 + 64


def test_a_line_that_is_no_text_is_an_error_of_its_own(server, tmp_path):
    lines = [*as_lines({"empty": " ", "good": "bad film"}), json.dumps({"id": "tensor", "tensor": [1.0]})]
    records = decided(tmp_path, server.port, lines)
    assert records["good"]["exit_tier"] == 1
    assert "expected a text, got an empty one" in records["empty"]["error"]
    assert "expected a text, got float32" in records["tensor"]["error"]


def test_without_its_server_the_device_answers_by_itself(tmp_path):
    records = decided(tmp_path, closed_port(), as_lines(TEXTS))
    assert records["sent"]["degraded"].startswith("unavailable")
    assert (records["sent"]["exit_tier"], records["sent"]["name"]) == (1, "positive")  # two of three


def ask(server: Cloud, data: list[str]) -> tuple[int, dict]:
    page = PAGE.search(server.said)
    assert page, server.said
    body = {"inputs": [{"name": "input", "shape": [len(data)], "datatype": "BYTES", "data": data}]}
    url, kind = f"{page[1]}/v2/models/films/infer", {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), kind)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_rest_server_takes_texts_as_json(server):
    status, answer = ask(server, ["a bad film", "a good film", "café good"])
    assert status == 200
    labels = next(output["data"] for output in answer["outputs"] if output["name"] == "label")
    assert labels == [0, 1, 1]


def test_the_server_says_that_it_takes_texts_as_bytes(server):
    page = PAGE.search(server.said)
    assert page, server.said
    with urllib.request.urlopen(f"{page[1]}/v2/models/films", timeout=30) as answer:
        (offered,) = json.load(answer)["inputs"]
    assert (offered["datatype"], offered["shape"]) == ("BYTES", [-1])


@pytest.mark.parametrize(
    ("text", "words"), [("x" * 101, "expected a text of at most 100 bytes, got 101"), ("", "got an empty one")]
)
def test_the_server_refuses_what_is_too_long_or_empty(server, text, words):
    status, answer = ask(server, ["a good film", text])
    assert status == 400
    assert words in answer["error"]
