"""The cascade part of a config: what it means, and all that is wrong with it at once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coe import zoo
from coe.cascade import Agreement, Always, Confidence, ConfigError
from coe.config import Fields, Report
from coe.config.cascade import LocalTierConfig, RemoteTierConfig, read_cascade
from coe.config.fields import resolve
from coe.link import Delay
from coe.models import InputSpec, RunOptions
from coe.models.inputs import Payload

SHA = "ab" * 32
OTHER = "cd" * 32
MANIFEST = f"""
task: shapes
labels: [round, square, other]
input: {{kind: image, size: [4, 4], channels: 1}}
models:
  a.onnx: {{sha256: {SHA}, flops: 100, parameters: 10}}
  b.bin: {{format: tflite, sha256: {SHA}, output: logits}}
  c.onnx: {{sha256: {SHA}, input: {{kind: image, size: [8, 8], channels: 1}}}}
  weights.pt: {{sha256: {SHA}, architecture: linear}}
  program.pt2: {{sha256: {SHA}}}
"""
GOOD = """
task: models
tiers:
  - name: device
    members: [models/a.onnx, models/b.bin, models/c.onnx]
    agreement: 2/3
  - name: cloud
    address: 10.0.0.7:8001
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "manifest.yaml").write_text(MANIFEST, encoding="utf-8")
    return tmp_path


def read(text, folder, **options):
    report = Report("pi.yaml")
    fields = Fields(yaml.safe_load(text), report)
    config = read_cascade(fields, folder, **options)
    fields.finish()
    return config, report


def good(text, folder, **options):
    config, report = read(text, folder, **options)
    assert report.findings == []
    return config


def findings(text, folder):
    return read(text, folder)[1].findings


def tiers(*entries, task="models"):
    return yaml.safe_dump({"task": task, "tiers": list(entries)})


CLOUD = {"name": "cloud", "address": "10.0.0.7:8001"}
TWO = ["models/a.onnx", "models/b.bin"]


def test_a_good_config_is_read_in_full(folder):
    config = good(GOOD, folder)
    assert config.task.name == "shapes"
    assert config.task.labels == ("round", "square", "other")
    assert config.keep_last_answer
    device, cloud = config.tiers
    assert isinstance(device, LocalTierConfig)
    assert isinstance(cloud, RemoteTierConfig)
    assert (device.name, device.rule) == ("device", Agreement(Fraction(2, 3)))
    assert (device.parallel, device.early, device.options) == (False, True, RunOptions())
    assert [member.path for member in device.members] == [
        folder / "models" / name for name in ("a.onnx", "b.bin", "c.onnx")
    ]
    assert (cloud.name, cloud.address, cloud.model, cloud.rule) == ("cloud", "10.0.0.7:8001", "shapes", Always())
    assert (cloud.deadline_s, cloud.send, cloud.n_tiers, cloud.delay) == (2.0, Payload("captured"), 1, None)


def test_every_setting_of_a_tier_is_read(folder):
    device = {
        "name": "device",
        "members": TWO,
        "agreement": "1 of 2",
        "threads": 4,
        "providers": ["cuda", "cpu"],
        "device": "cuda:1",
        "parallel": True,
        "early": False,
    }
    cloud = {
        **CLOUD,
        "model": "digits-best",
        "deadline_ms": 300,
        "send": "pixels",
        "tiers": 2,
        "delay_ms": 100,
        "delay_one_way": True,
    }
    text = tiers(device, cloud) + "when_unavailable: fail\n"
    config = good(text, folder)
    local, remote = config.tiers
    assert not config.keep_last_answer
    assert (local.parallel, local.early) == (True, False)
    assert (local.threads, local.options) == (4, RunOptions(providers=("cuda", "cpu"), device="cuda:1"))
    assert (remote.model, remote.deadline_s, remote.send) == ("digits-best", 0.3, Payload("pixels"))
    assert (remote.n_tiers, remote.delay) == (2, Delay(0.1, one_way=True))


def test_a_tiers_own_word_on_parallel_comes_before_the_programs(folder):
    text = tiers({"name": "a", "members": TWO}, {"name": "b", "members": TWO, "parallel": False})
    assert [tier.parallel for tier in good(text, folder, parallel=True).tiers] == [True, False]


@pytest.mark.parametrize(
    ("settings", "threads"),
    [({}, 1), ({"parallel": True}, 2), ({"parallel": True, "threads": 5}, 5), ({"threads": 3}, 3)],
)
def test_unless_stated_a_tier_has_a_thread_for_each_member_that_runs_at_a_time(folder, settings, threads):
    config, report = read(tiers({"members": TWO, **settings}), folder)
    assert config.tiers[0].threads == threads
    assert report.warnings == []


def test_members_side_by_side_on_one_thread_are_a_contradiction_and_a_warning(folder):
    text = tiers({"name": "a", "members": TWO, "parallel": True, "threads": 1}, {"members": TWO, "threads": 1})
    config, report = read(text, folder, parallel=True)
    assert report.findings == []
    assert report.warnings == [
        "tiers[0].parallel: one thread runs one member at a time (threads: 2 runs all side by side)"
    ]
    assert [tier.threads for tier in config.tiers] == [1, 1]


@pytest.mark.parametrize(
    ("agreement", "rule"),
    [
        (None, Agreement(Fraction(1))),
        ("unanimous", Agreement(Fraction(1))),
        ("majority", Agreement(Fraction(2, 3))),
        ("2 of 3", Agreement(Fraction(2, 3))),
        (0.66, Agreement(Fraction(66, 100))),
    ],
)
def test_a_tier_before_the_last_defers_by_its_agreement_or_by_unanimity(folder, agreement, rule):
    device = {"name": "device", "members": [*TWO, "models/c.onnx"]}
    if agreement is not None:
        device["agreement"] = agreement
    assert good(tiers(device, CLOUD), folder).tiers[0].rule == rule


def test_a_tier_can_defer_by_confidence_also_with_one_member(folder):
    text = tiers({"name": "device", "members": ["models/a.onnx"], "confidence": 0.9}, CLOUD)
    assert good(text, folder).tiers[0].rule == Confidence(0.9)


def test_a_remote_tier_before_the_last_can_defer_too(folder):
    text = tiers({**CLOUD, "agreement": "2 of 3"}, {**CLOUD, "name": "hq"})
    assert [tier.rule for tier in good(text, folder).tiers] == [Agreement(Fraction(2, 3)), Always()]


def test_a_task_can_be_written_out_without_a_manifest(tmp_path):
    text = """
task: shapes
labels: [round, square]
input: {kind: tensor, shape: [16]}
tiers:
  - members: [a.onnx]
"""
    config = good(text, tmp_path)
    assert config.task.input_spec == InputSpec("tensor", (16,), "NHWC")
    (member,) = config.tiers[0].members
    assert (member.path, member.labels, member.sha256, member.pinned) == (
        tmp_path / "a.onnx",
        ("round", "square"),
        None,
        False,
    )


def test_paths_start_at_the_configs_folder_and_home_is_known(folder, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert resolve("models/a.onnx", folder) == folder / "models/a.onnx"
    assert resolve("../a.onnx", folder) == folder / "../a.onnx"
    assert resolve("/data/a.onnx", folder) == Path("/data/a.onnx")
    assert resolve("~/a.onnx", folder) == Path("/somewhere/a.onnx")


def test_zoo_references_are_bundled_files(folder):
    assert resolve("zoo:digits", folder) == Path(zoo.__file__).parent / "digits"
    assert resolve("zoo:digits/stroke.onnx", folder) == Path(zoo.__file__).parent / "digits" / "stroke.onnx"
    with pytest.raises(ConfigError, match=r'expected a bundled task \(digits.*\), got "zoo:cifar/a.onnx"'):
        resolve("zoo:cifar/a.onnx", folder)


def test_the_bundled_digits_are_a_task_with_members(tmp_path):
    if not (Path(zoo.__file__).parent / "digits" / "manifest.yaml").is_file():
        pytest.skip("the bundled digits have no manifest yet")
    members = [f"zoo:digits/{name}.onnx" for name in ("stroke", "loom", "mosaic")]
    config = good(tiers({"name": "device", "members": members}, CLOUD, task="zoo:digits"), tmp_path)
    assert config.task.labels == tuple("0123456789")
    assert all(member.sha256 and not member.pinned for member in config.tiers[0].members)


# --- what the manifest says, and what the config says on top -------------------------------------------------


def member_of(folder, member):
    return good(tiers({"members": [member]}), folder).tiers[0].members[0]


def test_a_members_manifest_says_what_it_is_and_what_it_hashes_to(folder):
    member = member_of(folder, "models/b.bin")
    assert (member.format, member.output, member.sha256, member.pinned) == ("tflite", "logits", SHA, False)
    assert member_of(folder, "models/c.onnx").input_spec == InputSpec("image", (8, 8, 1))
    assert member_of(folder, {"file": "models/a.onnx"}).flops == 100


def test_a_checksum_in_the_config_pins_the_file(folder):
    member = member_of(folder, {"file": "models/program.pt2", "sha256": OTHER})
    assert (member.format, member.sha256, member.pinned) == ("torch-export", OTHER, True)
    assert not member_of(folder, "models/program.pt2").pinned
    assert not member_of(folder, {"file": "models/program.pt2"}).pinned


def test_a_file_without_a_manifest_entry_is_declared_in_the_config(folder):
    member = member_of(folder, {"file": "other/d.bin", "format": "onnx", "output": "logits", "sha256": OTHER})
    assert (member.format, member.output, member.sha256, member.pinned) == ("onnx", "logits", OTHER, True)
    assert member.input_spec == InputSpec("image", (4, 4, 1))


def test_what_the_config_states_of_a_member_comes_before_its_manifest(folder):
    member = member_of(
        folder,
        {
            "file": "models/b.bin",
            "output": "probabilities",
            "flops": 7,
            "parameters": 8,
            "calibration_accuracy": 0.5,
            "input": {"kind": "image", "size": [6, 6], "channels": 1},
        },
    )
    assert (member.output, member.flops, member.parameters, member.calibration_accuracy) == ("probabilities", 7, 8, 0.5)
    assert member.input_spec == InputSpec("image", (6, 6, 1))
    assert (member.format, member.sha256, member.pinned) == ("tflite", SHA, False)  # the manifest's, as not stated


# --- what is wrong -------------------------------------------------------------------------------------------


def test_all_that_is_wrong_is_found_at_once_each_with_its_trail(folder):
    text = """
task: models
teirs: 3
when_unavailable: panic
tiers:
  - name: device
    members: [models/a.onnx, {file: models/b.bin, sha256: short}, {fil: x.onnx}]
    agreement: 3/2
    thread: 2
    threads: 0
  - members: [models/a.onnx]
    address: 10.0.0.7:8001
  - name: cloud
    address: nowhere
    deadline_ms: {}
    send: captured
"""
    found = findings(text, folder)
    assert 'tiers[0].members[1].sha256: expected 64 hex digits, got "short" (sha256sum b.bin)' in found
    assert "tiers[0].members[2].file: expected a text, got nothing (add it)" in found
    assert any(line.startswith("tiers[0].members[2].fil: unknown setting") for line in found)
    assert any(line.startswith("tiers[0].agreement: expected a share in (0, 1], got 3/2") for line in found)
    assert 'tiers[0].thread: unknown setting (did you mean "threads"?)' in found
    assert "tiers[0].threads: expected 1 to 256, got 0" in found
    both = "expected `members:` (a local tier) or `address:` (a remote one), got both or neither"
    assert f"tiers[1]: {both}" in found
    assert 'tiers[2].address: expected host:port, got "nowhere" (coe-cloud serves on port 8001)' in found
    assert "tiers[2].deadline_ms: expected a number, got a mapping" in found
    assert 'when_unavailable: expected one of answer-local, fail, got "panic"' in found
    assert 'teirs: unknown setting (did you mean "tiers"?)' in found


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("task: models", "tiers: expected a list of sections, got nothing (add it)"),
        ("{task: models, tiers: []}", "tiers: expected at least one tier, got none"),
        ("{task: models, tiers: {name: a}}", "tiers: expected a list, got a mapping"),
        ("{task: models, tiers: [3]}", "tiers[0]: expected a mapping, got 3"),
        ("{tiers: [{address: 'a:1'}]}", "task: expected a text, got nothing (add it)"),
        ("{task: '', tiers: [{address: 'a:1'}]}", 'task: expected a text, got ""'),
    ],
)
def test_a_config_without_a_cascade_says_what_is_missing(folder, text, finding):
    assert finding in findings(text, folder)


def test_a_task_that_is_not_there_is_one_finding_with_its_path(folder):
    (finding,) = findings(tiers({"members": ["models/a.onnx"]}, task="elsewhere"), folder)
    assert finding == f"task: {folder / 'elsewhere'}: cannot be read: No such file or directory"
    (finding,) = findings(tiers({"members": ["models/a.onnx"]}, task="zoo:cifar"), folder)
    assert finding.startswith("task: expected a bundled task (digits")
    assert finding.endswith('got "zoo:cifar"')


def test_every_finding_of_a_broken_manifest_is_passed_on(folder):
    (folder / "models" / "manifest.yaml").write_text("{task: 3, labels: [a], input: {}, models: {}}", encoding="utf-8")
    found = findings(tiers({"members": ["models/a.onnx"]}), folder)
    path = folder / "models" / "manifest.yaml"
    assert f'task: {path}: task: expected a text, got 3 (write "3" in quotes)' in found
    assert f"tiers[0].members[0]: {path}: labels: expected two labels or more, all different, got 1" in found


@pytest.mark.parametrize(
    ("members", "trail", "message"),
    [
        ([], "members", "expected at least one model file, got none"),
        (["models/a.onnx", None], "members[1]", "expected a mapping, got nothing"),
        ([3], "members[0]", "expected a mapping, got 3"),
        (["models/d.h5"], "members[0].format", "expected a model format"),
        (["zoo:cifar/a.onnx"], "members[0].file", 'got "zoo:cifar/a.onnx"'),
        (["~nobody-of-this-name/a.onnx"], "members[0].file", "no such user"),
        ([{"file": "models/a.onnx", "sh256": SHA}], "members[0].sh256", 'did you mean "sha256"?'),
        (
            [{"file": "models/a.onnx", "output": "softmax"}],
            "members[0].output",
            "expected one of probabilities, logits",
        ),
    ],
)
def test_a_wrong_member_is_named_by_its_place(folder, members, trail, message):
    found = findings(tiers({"name": "device", "members": members}), folder)
    assert any(line.startswith(f"tiers[0].{trail}: ") and message in line for line in found), found


def test_one_member_may_stand_without_a_list(folder):
    assert len(good(tiers({"members": "models/a.onnx"}), folder).tiers[0].members) == 1


def test_a_member_of_other_labels_than_the_task_is_refused(folder):
    (folder / "more").mkdir()
    more = MANIFEST.replace("[round, square, other]", "[round, other, square]")
    (folder / "more" / "manifest.yaml").write_text(more, encoding="utf-8")
    (finding,) = findings(tiers({"members": ["more/a.onnx"]}), folder)
    assert finding == "tiers[0].members[0].file: its manifest has other labels (3) than the task (3)"


@pytest.mark.parametrize(
    "takes", [{"kind": "image", "size": [4, 4], "channels": 3}, {"kind": "tensor", "shape": [4, 4, 1]}]
)
def test_a_member_that_cannot_take_the_tasks_examples_is_refused(folder, takes):
    (finding,) = findings(tiers({"members": [{"file": "models/a.onnx", "input": takes}]}), folder)
    assert finding.startswith("tiers[0].members[0].file: it takes ")
    assert "the task's examples are image [4, 4, 1]" in finding


def test_one_member_before_the_last_tier_would_never_defer_and_is_refused(folder):
    (finding,) = findings(tiers({"members": ["models/a.onnx"]}, CLOUD), folder)
    assert finding == (
        "tiers[0].agreement: one member always agrees with itself, so this tier would never defer "
        "(add members, or set `confidence:`)"
    )


def test_the_decimal_trap_is_a_warning_with_its_trail(folder):
    device = {"name": "device", "members": [*TWO, "models/c.onnx"], "agreement": 0.67}
    config, report = read(tiers(device, CLOUD), folder)
    assert report.findings == []
    assert report.warnings == [
        'tiers[0].agreement: 0.67 of 3 members needs 3 votes, because 2/3 < 0.67; write "2/3" if 2 of 3 was meant'
    ]
    assert config.tiers[0].rule == Agreement(Fraction(67, 100))


def test_an_agreement_on_the_last_tier_has_no_effect_and_says_so(folder):
    config, report = read(tiers({"members": TWO, "agreement": "2/3"}), folder)
    assert report.findings == []
    assert report.warnings == ["tiers[0].agreement: the last tier always answers, so this has no effect (leave it out)"]
    assert config.tiers[0].rule == Always()


def test_a_count_of_another_number_of_members_is_refused(folder):
    (finding,) = findings(tiers({"members": TWO, "agreement": "2 of 3"}, CLOUD), folder)
    assert finding.startswith('tiers[0].agreement: expected a count of this tier\'s 2 members, got "2 of 3"')


def test_majority_of_a_remote_tier_is_refused_because_its_members_are_not_known_here(folder):
    (finding,) = findings(tiers({**CLOUD, "agreement": "majority"}, {**CLOUD, "name": "hq"}), folder)
    assert finding.startswith('tiers[0].agreement: expected a fraction for a remote tier, got "majority"')


@pytest.mark.parametrize("address", ["host", "host:", ":8001", "host:http", "host:0", "host:65536", "host:²", "h:-1"])
def test_an_address_is_a_host_and_a_port(folder, address):
    (finding,) = findings(tiers({"address": address}), folder)
    assert finding == f'tiers[0].address: expected host:port, got "{address}" (coe-cloud serves on port 8001)'


@pytest.mark.parametrize("address", ["localhost:8001", "10.0.0.7:1", "[::1]:8001", "gpu.example.org:65535"])
def test_every_usual_address_is_accepted(folder, address):
    assert good(tiers({"address": address}), folder).tiers[0].address == address


def test_settings_of_the_other_kind_of_tier_are_unknown(folder):
    found = findings(tiers({"members": TWO, "deadline_ms": 5}), folder)
    assert [line.split(" (")[0] for line in found] == ["tiers[0].deadline_ms: unknown setting"]
    found = findings(tiers({**CLOUD, "parallel": True}), folder)
    assert [line.split(" (")[0] for line in found] == ["tiers[0].parallel: unknown setting"]


def test_tiers_of_one_name_are_refused(folder):
    (finding,) = findings(tiers({"name": "a", "members": TWO}, {"name": "a", "members": TWO}), folder)
    assert finding == 'tiers: expected each tier to have its own name, got "a" twice'


LOCAL = ["name", "members", "agreement", "confidence", "threads", "providers", "device", "parallel", "early"]
REMOTE = ["address", "model", "deadline_ms", "send", "tiers", "delay_ms", "delay_one_way", "link_model"]
SETTINGS = st.sampled_from([*LOCAL, *REMOTE, "file", "sha256", "input", "odd"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 10**10)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["models/a.onnx", "a:1", "2/3", "zoo:digits/x.onnx", "~", "pixels"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SETTINGS, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(SETTINGS, VALUES, max_size=5) | VALUES, max_size=3), VALUES)
def test_whatever_a_config_holds_it_is_read_or_refused_with_findings(tmp_path_factory, entries, task):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    if not folder.exists():
        (folder / "models").mkdir(parents=True)
        (folder / "models" / "manifest.yaml").write_text(MANIFEST, encoding="utf-8")
    report = Report("pi.yaml")
    config = read_cascade(Fields({"task": task, "tiers": entries}, report), folder)
    assert report.findings or len(config.tiers) == len(entries)
