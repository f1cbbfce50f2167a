"""From a config to a running cascade: members loaded, and let go again when one of them cannot be."""

from __future__ import annotations

import hashlib
import re
import time

import numpy as np
import pytest
import yaml
from strategies import LinearModel

from coe.cascade import Batch, ModelError
from coe.config import Fields, Report
from coe.config.cascade import read_cascade
from coe.config.open import open_cascade, open_tier, warm_up
from coe.link import TierBehindLink
from coe.models.onnx import OnnxMember

MODEL = LinearModel()


@pytest.fixture
def folder(tmp_path):
    data = MODEL.onnx()
    (tmp_path / "models").mkdir()
    manifest = {
        "task": "shapes",
        "labels": ["round", "square", "other"],
        "input": {"kind": "image", "size": [4, 4], "channels": 1, "scale": 1 / 255},
        "models": {},
    }
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / "models" / name).write_bytes(data)
        manifest["models"][name] = {"sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / "models" / "manifest.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return tmp_path


def config_of(folder, *tiers, **more):
    report = Report("pi.yaml")
    config = read_cascade(Fields({"task": "models", "tiers": list(tiers), **more}, report), folder)
    report.check()
    return config


DEVICE = {"name": "device", "members": ["models/a.onnx", "models/b.onnx"]}
BEST = {"name": "best", "members": ["models/a.onnx"]}


def examples(n=4):
    pixels = np.random.default_rng(5).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)
    return Batch(tuple(f"x{row}" for row in range(n)), pixels)


def test_a_configured_cascade_decides(folder):
    said = []
    cascade = open_cascade(config_of(folder, DEVICE, BEST), said.append)
    batch = examples()
    decisions = cascade.decide(batch)
    wanted = MODEL(batch.x.transpose(0, 3, 1, 2) / 255).argmax(axis=1)
    assert decisions.labels.tolist() == wanted.tolist()
    assert decisions.exit_tier.tolist() == [1] * 4  # twins agree
    assert said[0].startswith("tier device: a.onnx on onnxruntime ")
    assert "tier device: 2 members vote in turn, stopping early, as listed" in said
    assert said[-1].startswith("tier best: a.onnx on ")
    cascade.close()


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({"parallel": True, "early": False}, "side by side on 2 threads: 1+1"),
        ({"parallel": True}, "side by side on 2 threads: 1+1, stopping early"),
        ({"parallel": True, "threads": 3}, "side by side on 3 threads: 2+1, stopping early"),
        ({"parallel": True, "threads": 1}, "in turn, stopping early, as listed"),
        ({"early": False}, "in turn"),
        ({"early": False, "threads": 2}, "in turn, each on 2 threads"),
        ({}, "in turn, stopping early, as listed"),
        ({"threads": 2}, "in turn, each on 2 threads, stopping early, as listed"),
        ({"order": "fixed"}, "in turn, stopping early, as listed"),
        ({"parallel": True, "order": "measured"}, "side by side on 2 threads: 1+1, stopping early"),
    ],
)
def test_the_start_says_how_members_vote(folder, settings, how):
    said = []
    config = config_of(folder, {**DEVICE, **settings})
    open_tier(config.tiers[0], config, said.append).close()
    assert said[-1] == f"tier device: 2 members vote {how}"


@pytest.fixture
def costs(monkeypatch):
    """Each member's prediction takes so long, by its name; the names are noted as they are asked."""
    seconds = {}
    asked = []
    run = OnnxMember.predict

    def predict(self, x):
        asked.append(self.name)
        time.sleep(seconds.get(self.name, 0))
        return run(self, x)

    monkeypatch.setattr(OnnxMember, "predict", predict)
    return seconds, asked


def test_in_the_measured_order_the_cheapest_is_asked_first_whatever_the_list(folder, costs):
    seconds, asked = costs
    seconds["a.onnx"] = 0.01
    said = []
    config = config_of(folder, DEVICE | {"order": "measured"}, BEST)
    cascade = open_cascade(config, said.append)
    assert [line.split()[2] for line in said[:2]] == ["b.onnx", "a.onnx"]
    order = r"cheapest first: b\.onnx \S+ [um]s, a\.onnx \S+ ms"
    assert re.fullmatch(f"tier device: 2 members vote in turn, stopping early, {order}", said[2])
    asked.clear()
    batch = examples()
    decisions = cascade.decide(batch.take(np.array([0])))
    assert asked == ["b.onnx", "a.onnx"]
    listed = open_cascade(config_of(folder, DEVICE, BEST))
    assert decisions.labels.tolist() == listed.decide(batch).labels[:1].tolist()
    cascade.close()
    listed.close()


def test_in_the_listed_order_nobody_is_timed_and_the_first_is_asked_first(folder, costs):
    _, asked = costs
    cascade = open_cascade(config_of(folder, DEVICE, BEST))
    assert len(asked) == 3 * 2  # each tried on two and on one
    asked.clear()
    cascade.decide(examples(1))
    assert asked == ["a.onnx", "b.onnx"]
    cascade.close()


@pytest.mark.parametrize(
    ("settings", "each"), [({"parallel": True, "threads": 5}, (3, 2)), ({"threads": 5}, (5, 5)), ({}, (1, 1))]
)
def test_each_member_runs_on_its_share_of_the_tiers_threads(folder, settings, each):
    said = []
    config = config_of(folder, {**DEVICE, **settings})
    open_tier(config.tiers[0], config, said.append).close()
    assert [line.split(", ")[-1] for line in said[:2]] == [f"{n} thread(s)" for n in each]


@pytest.mark.parametrize("parallel", [True, False])
def test_a_tier_is_warm_for_the_batches_it_will_be_asked_about(folder, monkeypatch, parallel):
    sizes = []
    config = config_of(folder, {**DEVICE, "parallel": parallel, "delay_ms": 0.001}, BEST)
    cascade = open_cascade(config)
    run = OnnxMember.predict
    monkeypatch.setattr(OnnxMember, "predict", lambda self, x: sizes.append(len(x)) or run(self, x))
    for tier in cascade.tiers:
        warm_up(tier, config.task.input_spec, (1, 32))
    assert sizes == [1, 1, 32, 32, 1, 32]  # two members, then one
    cascade.close()


def test_warming_up_asks_no_remote_tier(folder):
    config = config_of(folder, {"name": "cloud", "address": "127.0.0.1:9"})
    cascade = open_cascade(config)
    warm_up(cascade.tiers[0], config.task.input_spec, (1, 32))
    cascade.close()


@pytest.mark.parametrize(("word", "keeps"), [("answer-local", True), ("fail", False)])
def test_when_unavailable_is_the_cascades_word(folder, word, keeps):
    cascade = open_cascade(config_of(folder, DEVICE, when_unavailable=word))
    assert cascade.keep_last_answer is keeps
    cascade.close()


def test_the_manifests_checksum_is_checked(folder):
    (folder / "models" / "b.onnx").write_bytes(LinearModel(rows=1).onnx())
    with pytest.raises(ModelError, match=r"b\.onnx: expected sha256"):
        open_cascade(config_of(folder, DEVICE))


def test_a_checksum_in_the_config_is_checked_in_its_place(folder):
    data = LinearModel(rows=1).onnx()
    (folder / "models" / "b.onnx").write_bytes(data)
    pinned = {"file": "models/b.onnx", "sha256": hashlib.sha256(data).hexdigest()}
    open_cascade(config_of(folder, {"members": ["models/a.onnx", pinned]})).close()


def test_what_was_loaded_is_closed_when_a_later_member_or_tier_cannot_be(folder, monkeypatch):
    closed = []
    monkeypatch.setattr(OnnxMember, "close", lambda self: closed.append(self.name))
    (folder / "models" / "b.onnx").unlink()
    with pytest.raises(ModelError, match=r"b\.onnx: the model file cannot be read"):
        open_cascade(config_of(folder, BEST | {"confidence": 0.5}, DEVICE))
    assert closed == ["a.onnx", "a.onnx"]


def test_members_of_one_manifest_share_their_input_contract(folder):
    cascade = open_cascade(config_of(folder, DEVICE))
    first, second = cascade.tiers[0].members
    assert first.prepare == second.prepare
    cascade.close()


def test_a_remote_tier_is_dialled_only_when_asked(folder):
    said = []
    remote = {"name": "cloud", "address": "127.0.0.1:9", "deadline_ms": 250, "delay_ms": 100, "delay_one_way": True}
    cascade = open_cascade(config_of(folder, DEVICE, remote), said.append)
    assert cascade.tiers[1].waits
    assert "tier cloud: shapes at 127.0.0.1:9, deadline 250 ms" in said
    assert "tier cloud: an injected delay of 200 ms a round trip" in said
    cascade.close()


def test_a_remote_tier_may_be_behind_a_model_of_a_link(folder):
    said = []
    remote = {"name": "cloud", "address": "127.0.0.1:9", "link_model": {"delay_ms": 20}, "delay_ms": 1}
    cascade = open_cascade(config_of(folder, DEVICE, remote), said.append)
    assert isinstance(cascade.tiers[1].tier, TierBehindLink)
    assert "tier cloud: calls wait as behind a model of a link" in said
    cascade.close()
