"""`coe-edge bench` as a user runs it: what it prints, what it writes, and its errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coe.config.program import run_program
from coe.models import InputDecoder
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_input
from coe.protocol.service import FRAME_BYTES, INPUT
from coe.zoo import digits
from edge.config import read_config
from edge.profile.command import TierReport, bench_command, tier_lines
from edge.profile.plans import Plan, PlanTiming

CONFIG = """\
# the front door
task: zoo:digits
tiers:
  - name: device        # on the Pi
    members:            # the dearest first
      - zoo:digits/loom.onnx
      - zoo:digits/stroke.onnx   # the second
    agreement: unanimous
    threads: 2          # a guess
  - name: cloud
    address: "127.0.0.1:1"
    model: digits
source: {kind: stdin}
"""
QUICK = ("--seconds", "0.05")


@pytest.fixture(autouse=True)
def _one_plan_once(monkeypatch):
    """One core to use and one round, which is soon over; a test says where it wants more."""
    monkeypatch.setattr("edge.profile.plans.cores", lambda: 1)
    monkeypatch.setattr("edge.profile.plans.ROUNDS", 1)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "pi.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, png, _ in digits.test_examples(12):
        (folder / f"{name}.png").write_bytes(png)
    return folder


def bench(*arguments):
    return run_program("coe-edge", bench_command, [str(argument) for argument in arguments])


def measured(capsys, *arguments):
    assert bench("--json", *QUICK, *arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_it_times_each_member_and_each_plan_and_chooses_one(config, images, capsys, monkeypatch):
    monkeypatch.setattr("edge.profile.plans.cores", lambda: 2)
    monkeypatch.setattr("edge.profile.plans.ROUNDS", 2)
    values = measured(capsys, "--config", config, "--data", images)
    assert values["n_examples"] == 12
    assert 0 < values["decode_s"] < 1
    (tier,) = values["tiers"]
    assert (tier["name"], tier["members"]) == ("device", ["loom.onnx", "stroke.onnx"])
    tried = [(plan["parallel"], plan["threads"]) for plan in tier["plans"]]
    assert tried == [(False, 1), (False, 2), (True, 2)]
    assert all(plan["seconds"] > 0 for plan in tier["plans"])
    assert [len(plan["members"]) for plan in tier["plans"]] == [2, 2, 0]
    assert (tier["chosen"]["parallel"], tier["chosen"]["threads"]) in tried
    assert tier["settings"]["parallel"] == tier["chosen"]["parallel"]
    assert tier["settings"]["threads"] == tier["chosen"]["threads"]


def test_rounds_that_differ_much_are_told_of():
    plan = PlanTiming(Plan(False, 1), "in turn on 1 thread", 1e-3, (1e-3,))
    settings = {"parallel": False, "threads": 1}
    for spread, is_told in ((1.2, False), (2.0, True)):
        one = replace(plan, spread=spread)
        lines = tier_lines(TierReport("device", ("a.onnx",), (one,), one, "why", None, settings))
        assert ("rounds of one plan differ by up to 2.0x" in "".join(lines)) == is_told


def request_bytes(x, model="digits"):
    version = read_manifest_fingerprint()
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    add_input(request, INPUT, x)
    return len(request.SerializeToString()) + FRAME_BYTES


def read_manifest_fingerprint():
    from coe.config.manifest import read_manifest

    return read_manifest(digits.FOLDER).task.fingerprint


def test_it_counts_the_bytes_of_each_way_to_send_and_what_changes_here(config, images, capsys):
    values = measured(capsys, "--config", config, "--data", images)
    ways = {way["payload"]: way for way in values["payloads"]}
    assert list(ways) == [
        "captured", "pixels", "model-size", "png", "jpeg 95", "jpeg 85", "jpeg 75", "jpeg 50",
    ]  # fmt: skip
    files = [path.read_bytes() for path in sorted(images.iterdir())]
    columns = [np.array([file], dtype=object) for file in files]
    assert ways["captured"]["bytes"] == pytest.approx(np.mean([request_bytes(column) for column in columns]))
    input_spec = read_config(config).cascade.task.input_spec
    pixels = [InputDecoder(input_spec).batch(["a"], [file]).x for file in files]
    assert ways["pixels"]["bytes"] == pytest.approx(np.mean([request_bytes(x) for x in pixels]))
    for name in ("captured", "pixels", "model-size", "png"):  # these lose nothing of a digit
        assert (ways[name]["labels_changed"], ways[name]["decisions_changed"]) == (0, 0)
    assert all(way["cloud_changed"] is None for way in ways.values())
    assert ways["jpeg 95"]["bytes"] > ways["jpeg 50"]["bytes"]


def test_a_way_to_send_that_changes_labels_is_seen_to(config, tmp_path, capsys, monkeypatch):
    from coe.models.inputs import Payload

    folder = tmp_path / "images"
    folder.mkdir()
    for name, png, _ in digits.test_examples(40):
        (folder / f"{name}.png").write_bytes(png)
    monkeypatch.setattr("edge.profile.payloads.PAYLOADS", (Payload("captured"), Payload("jpeg", 1)))
    _, worst = measured(capsys, "--config", config, "--data", folder)["payloads"]
    assert worst["labels_changed"] > 0
    assert worst["decisions_changed"] > 0


def test_the_tables_say_it_in_words(config, images, capsys):
    assert bench(*QUICK, "--config", config, "--data", images) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^tier device$", out, re.M)
    assert re.search(r"^  loom\.onnx +[\d.]+ (us|ms)", out, re.M)
    assert re.search(r"^  in turn on 1 thread +[\d.]+ (us|ms) +[\d.]+x", out, re.M)
    assert re.search(r"^take: .* \(.*\)$", out, re.M)
    assert re.search(r"^in the config, at this tier: parallel: (true|false), threads: \d", out, re.M)
    assert re.search(r"^  jpeg 50 +\d+ +[\d.]+x +[\d.]+% +[\d.]+% +-$", out, re.M)
    assert "the cloud's labels were not compared: nothing was sent there (--ask-cloud sends these examples)" in out
    assert re.search(r"coe-edge: 12 examples of .*; \d+ core", err)
    assert re.search(r"coe-edge: decoding and checking one takes [\d.]+ (us|ms), which no plan below includes", err)
    assert "coe-edge: tier device: round 1 of 1: in turn on 1 thread: " in err


def test_write_puts_the_plan_into_the_config_and_keeps_every_comment(config, images, capsys):
    assert bench(*QUICK, "--config", config, "--data", images, "--write", "--json") == 0
    out, err = capsys.readouterr()
    settings = json.loads(out)["tiers"][0]["settings"]
    assert settings.items() >= {"parallel": False, "threads": 1}.items()
    tier = read_config(config).cascade.tiers[0]
    assert (tier.parallel, tier.threads, tier.order) == (False, 1, settings["order"])
    assert f"{config}: written: the plan of device" in err
    after = config.read_text(encoding="utf-8")
    kept = [line for line in CONFIG.splitlines() if "threads:" not in line]
    assert [line for line in after.splitlines() if line in kept] == kept
    assert "    threads: 1          # a guess\n" in after
    assert "    parallel: false\n" in after
    assert sorted(path.name for path in config.parent.iterdir()) == ["images", "pi.yaml"]


def test_a_config_that_cannot_be_changed_safely_is_as_it_was_and_the_lines_are_printed(config, images, capsys):
    text = CONFIG.replace("agreement: unanimous", "agreement: &all unanimous").replace("model: digits", "model: *all")
    config.write_text(text, encoding="utf-8")
    assert bench(*QUICK, "--config", config, "--data", images, "--write") == 1
    out, err = capsys.readouterr()
    assert config.read_text(encoding="utf-8") == text
    assert "in the config, at this tier: parallel: " in out
    assert f"{config} is unchanged: it uses YAML anchors" in err


def test_the_bundled_config_is_not_written_to(capsys):
    assert bench("--write") == 2
    assert "--write: expected --config as well" in capsys.readouterr().err


def test_on_the_bundled_digits_it_says_which_split_that_is(config, capsys):
    values = measured(capsys, "--config", config, "--data", "digits", "--limit", "5")
    assert values["examples"] == "5 bundled digits, a test split: look, but choose nothing by it"
    assert values["n_examples"] == 5


def test_without_data_members_are_timed_on_a_blank_example_and_all_are_asked(config, capsys):
    values = measured(capsys, "--config", config)
    assert values["examples"].startswith("a blank example (no --data)")
    assert (values["payloads"], values["decode_s"]) == ([], None)
    assert values["tiers"][0]["order"] is None
    assert all(plan["seconds"] > 0 for plan in values["tiers"][0]["plans"])


def test_a_config_with_the_digits_as_source_runs_on_these(config, capsys):
    config.write_text(CONFIG.replace("{kind: stdin}", "{kind: digits}"), encoding="utf-8")
    assert measured(capsys, "--config", config, "--limit", "3")["n_examples"] == 3


def test_examples_may_come_as_json_lines_on_standard_input(config, images, tmp_path, capsys, monkeypatch):
    lines = [json.dumps({"id": path.name, "file": str(path)}) for path in sorted(images.iterdir())[:4]]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with (tmp_path / "lines.jsonl").open(encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        values = measured(capsys, "--config", config, "--data", "-")
    assert (values["n_examples"], values["examples"]) == (4, "4 examples of standard input")


def test_images_that_cannot_be_read_are_left_out_and_told(config, images, capsys):
    (images / "broken.png").write_bytes(b"not a picture")
    assert bench("--json", *QUICK, "--config", config, "--data", images) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n_examples"] == 12
    assert "coe-edge: 1 file(s) could not be read and are left out" in err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "in a folder per label, or a labels.tsv, got nothing"),
        ({"a.png": b"x"}, "--data: expected examples the task takes, got none: example a.png: expected a PNG or JPEG"),
        (None, '--data: expected a folder, a file or -, got "'),
    ],
)
def test_data_that_is_no_data_is_the_users_error_in_one_line(config, tmp_path, capsys, files, message):
    folder = tmp_path / "data"
    if files is not None:
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
    assert bench(*QUICK, "--config", config, "--data", folder) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--seconds", "soon"], ["--limit", "0"], ["--data"]])
def test_arguments_that_cannot_be_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        bench(*arguments)
    assert ended.value.code == 2
    assert "coe-edge bench: error: " in capsys.readouterr().err


@pytest.fixture
def cloud(tmp_path):
    """The port of a real coe-cloud with the bundled digits."""
    log = tmp_path / "cloud.log"
    with log.open("wb") as words:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloud.main", "serve", "--grpc-port", "0"], stdout=words, stderr=words
        )
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"ready on \S+:(\d+): ", log.read_text(encoding="utf-8"))):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < end
            time.sleep(0.02)
        yield int(found[1])
    finally:
        process.kill()
        process.wait(30)


def test_where_the_cloud_is_asked_its_labels_are_compared_too_and_otherwise_nothing_is_sent(
    config, images, cloud, capsys
):
    config.write_text(CONFIG.replace("127.0.0.1:1", f"127.0.0.1:{cloud}"), encoding="utf-8")
    arguments = ("--config", config, "--data", images)
    assert all(way["cloud_changed"] is None for way in measured(capsys, *arguments)["payloads"])
    ways = {way["payload"]: way for way in measured(capsys, *arguments, "--ask-cloud")["payloads"]}
    assert all(way["cloud_changed"] is not None for way in ways.values())
    assert [ways[name]["cloud_changed"] for name in ("captured", "pixels", "model-size", "png")] == [0, 0, 0, 0]


def test_why_the_cloud_could_not_be_asked_is_said(config, images, capsys):
    assert bench(*QUICK, "--config", config, "--data", images, "--ask-cloud") == 0
    assert "the cloud's labels were not compared: tier cloud: " in capsys.readouterr().out


def test_the_cloud_is_not_asked_where_some_examples_may_not_leave(config, images, capsys):
    config.write_text(CONFIG + 'never_send: ["7"]\n', encoding="utf-8")
    assert bench(*QUICK, "--config", config, "--data", images, "--ask-cloud") == 2
    assert "--ask-cloud: all examples would be sent" in capsys.readouterr().err
    assert bench(*QUICK, "--config", config, "--data", images) == 0


def test_it_reads_a_config_as_the_agent_does(config, capsys):
    config.write_text(CONFIG.replace("agreement", "agrement"), encoding="utf-8")
    assert bench("--config", config) == 2
    assert 'tiers[0].agrement: unknown setting (did you mean "agreement"?)' in capsys.readouterr().err
    assert bench("--config", Path("nowhere.yaml")) == 2
