"""The CIFAR-10 models as they are bundled: files, manifest and configs agree, and every model answers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from coe import zoo
from coe.cascade import ModelError
from coe.config.manifest import read_manifest
from coe.models import InputDecoder, load
from recipes.cifar10 import FOLDER, MANIFEST

pytest.importorskip("coe_zoo", reason="needs the tasks of coe-zoo: pip install ./zoo")

TARGET_FLOPS = {1: 5.4e6, 2: 2.3e7, 3: 1.2e8, 4: 2.5e8}
MODELS = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))["models"]
BUNDLED = [file for file, entry in MODELS.items() if "made_by" not in entry]
MOST_BYTES = 12_000_000
MOST_TOGETHER = 20_000_000


@pytest.fixture(scope="module")
def manifest():
    return read_manifest(MANIFEST)


@pytest.fixture(scope="module")
def pictures():
    """Plain, striped and noisy ones, (6, 32, 32, 3) uint8."""
    rng = np.random.default_rng(0)
    pictures = np.zeros((6, 32, 32, 3), dtype=np.uint8)
    pictures[1] = 255
    pictures[2, ::4] = (200, 40, 90)
    pictures[3:] = rng.integers(0, 256, (3, 32, 32, 3))
    return pictures


def test_the_manifest_describes_the_task(manifest):
    assert manifest.task.name == "cifar10"
    assert len(manifest.task.labels) == 10
    assert manifest.task.input_spec.model_shape == (3, 32, 32)


def test_every_bundled_file_is_in_the_manifest_and_no_other():
    files = {path.name for path in FOLDER.iterdir() if path.suffix in (".onnx", ".tflite", ".pt")}
    assert files >= set(BUNDLED)
    assert files <= set(MODELS)


@pytest.mark.parametrize("file", BUNDLED)
def test_a_file_is_the_one_its_checksum_says(file):
    assert hashlib.sha256((FOLDER / file).read_bytes()).hexdigest() == MODELS[file]["sha256"]


def test_the_files_stay_small():
    assert sum((FOLDER / file).stat().st_size for file in BUNDLED) <= MOST_BYTES


def test_the_bundled_models_of_all_tasks_together_stay_small():
    sizes = []
    for task in zoo.TASKS:
        manifest = yaml.safe_load((zoo.find(task) / "manifest.yaml").read_text(encoding="utf-8"))
        sizes += [
            (zoo.find(task) / file).stat().st_size for file, one in manifest["models"].items() if "made_by" not in one
        ]
    assert sum(sizes) <= MOST_TOGETHER


@pytest.mark.parametrize("file", MODELS)
def test_flops_are_near_those_of_the_tier(file):
    target = TARGET_FLOPS[MODELS[file]["tier"]]
    assert 0.7 * target <= MODELS[file]["flops"] <= 1.3 * target


def test_tiers_have_three_members_of_different_architectures_and_one_best_model():
    members = {}
    for file, entry in MODELS.items():
        if file == f"{entry['architecture']}.onnx":
            members.setdefault(entry["tier"], set()).add(entry["architecture"])
    assert {tier: len(names) for tier, names in members.items()} == {1: 3, 2: 3, 3: 3, 4: 1}


def test_a_file_that_is_not_bundled_says_what_makes_it(manifest):
    spec = manifest.models["gate.int8.tflite"]
    if spec.path.exists():
        pytest.skip("the recipe has made it here")
    with pytest.raises(ModelError, match=r"it is not bundled; python -m recipes\.cifar10 --data DIR makes it"):
        load(spec)


@pytest.mark.parametrize("file", BUNDLED)
def test_a_model_loads_and_gives_probabilities(file, manifest, pictures):
    spec = manifest.models[file]
    pytest.importorskip({"onnx": "onnxruntime", "tflite": "ai_edge_litert"}[spec.format])
    member = load(spec)
    try:
        batch = InputDecoder(manifest.task.input_spec).batch([str(row) for row in range(len(pictures))], pictures)
        together = member.predict(member.prepare(batch.x))
        alone = np.concatenate([member.predict(member.prepare(picture[None])) for picture in pictures])
    finally:
        member.close()
    assert together.shape == (6, 10)
    assert np.isfinite(together).all()
    assert np.allclose(together.sum(axis=1), 1, atol=1e-2)
    # 8-bit arithmetic may round a batch otherwise than its rows
    assert np.allclose(together, alone, atol=0.1 if "int8" in file else 1e-4)


@pytest.mark.parametrize("file", [file for file in MODELS if MODELS[file]["format"] == "onnx" and "int8" not in file])
def test_the_manifest_counts_what_the_architecture_computes(file):
    pytest.importorskip("torch")
    from recipes import export
    from recipes.cifar10 import networks, training

    network = networks.build(MODELS[file]["architecture"]).eval()
    assert export.flops(network, training.SHAPE) == MODELS[file]["flops"]
    assert export.parameters(network) == MODELS[file]["parameters"]


@pytest.mark.parametrize("file", [file for file in MODELS if MODELS[file]["format"] == "onnx" and "int8" not in file])
def test_a_runtime_sees_32_bit_weights_whatever_the_file_stores(file, tmp_path):
    """Weights stored in 16 bits are cast as the file is loaded, not with each example."""
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(FOLDER / file), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(str(tmp_path / "optimised.onnx")).graph.node
    assert "Cast" not in {node.op_type for node in nodes}


def local_tiers(name):
    """The local tiers of a bundled config, and the model that its remote tier asks for (None without one)."""
    from coe.config import Fields, Report, read_yaml
    from coe.config.cascade import read_cascade

    findings = Report(name)
    config = read_cascade(Fields(read_yaml(FOLDER / name), findings), FOLDER)
    assert findings.findings == []
    assert config.task.name == "cifar10"
    remote = [tier.model for tier in config.tiers if hasattr(tier, "address")]
    return [tier for tier in config.tiers if hasattr(tier, "members")], *(remote or [None])


def test_four_tiers_are_the_reported_cascade():
    """In order, members of the manifest, and the rules that REPORT.md says were chosen."""
    (device, asked), (cloud, _) = local_tiers("edge-four-tiers.yaml"), local_tiers("cloud.yaml")
    assert asked == yaml.safe_load((FOLDER / "cloud.yaml").read_text())["model"]
    for number, tier in enumerate([*device, *cloud], start=1):
        assert {MODELS[member.name]["tier"] for member in tier.members} == {number}
        assert len(tier.members) == (1 if number == 4 else 3)
    needed = ["unanimous" if tier.rule.needed(3) == 3 else "2/3" for tier in [*device, *cloud[:-1]]]
    assert f"\n{', '.join(needed)}.\n" in (FOLDER / "REPORT.md").read_text(encoding="utf-8")


def test_the_edge_config_is_the_plan_that_calibration_chooses():
    pytest.importorskip("pyarrow")
    pytest.importorskip("torch")  # the plan's module knows the recipes
    from recipes.cifar10 import TRACE_CALIBRATION, report
    from sim.traces import read_trace

    flops = {name: float(entry["flops"]) for name, entry in MODELS.items()}
    chosen = report.choose(report.plans(read_trace(TRACE_CALIBRATION), flops), report.LEAST_DECIDED)
    (device,), asked = local_tiers("edge.yaml")
    (*_, best), _ = local_tiers("cloud.yaml")
    assert asked == f"cifar10-{best.name}"
    assert [member.name for member in best.members] == [report.BEST]
    assert {member.name for member in device.members} == set(chosen.members)
    assert device.rule.needed(len(chosen.members)) == len(chosen.members)


def test_the_calibrated_config_is_of_these_very_files():
    from coe.calibration import Calibration

    table = Calibration.read(FOLDER / "calibration.json")
    device, asked = local_tiers("edge-calibrated.yaml")
    (*_, best), _ = local_tiers("cloud.yaml")
    assert asked == f"cifar10-{best.name}"
    members = [[member.name for member in tier.members] for tier in [*device, best]]
    assert members == [[member.name for member in tier] for tier in table.tiers]
    for name, sha256 in ((member.name, member.sha256) for tier in table.tiers for member in tier):
        assert sha256 == MODELS[name]["sha256"] == hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
    assert [tier.rule.threshold for tier in device] == list(table.thresholds)


def test_real_pictures_are_classified_as_recorded(manifest):
    """Only where the data is: COE_CIFAR10 names its folder."""
    if "COE_CIFAR10" not in os.environ:
        pytest.skip("the CIFAR-10 pictures are not bundled; COE_CIFAR10=DIR names a folder that holds them")
    pytest.importorskip("pyarrow")
    from recipes.cifar10 import TRACE, data
    from sim.traces import read_trace

    test = data.load_test(Path(os.environ["COE_CIFAR10"]))
    recorded = read_trace(TRACE)
    rows = np.arange(0, len(test), len(test) // 100)
    assert test.labels.tolist() == recorded.labels.tolist()
    for name, said in recorded.models.items():
        member = load(manifest.models[name])
        answers = member.predict(member.prepare(test.pixels[rows])).argmax(axis=1)
        member.close()
        assert (answers == said.predictions[rows]).mean() >= 0.98
