"""A real MLServer as a tier: what it answers, refuses and breaks, and what the cascade does when it is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlserver_process import MLServer

from coe.cascade import Always, Batch, Cascade, ConfigError, Decisions, TierRejected, TierUnavailable
from coe.config import Fields, Report
from coe.config.cascade import read_cascade
from coe.config.open import open_cascade
from coe.models.inputs import InputDecoder
from coe.protocol.remote import RemoteTier

LOCAL = {"name": "best", "members": ["zoo:digits/resnet.onnx"]}  # what MLServer serves, as a tier of our own
DEVICE = {"name": "device", "members": ["zoo:digits/loom.onnx"], "confidence": 0.9}


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory) -> Iterator[MLServer]:
    with MLServer(tmp_path_factory.mktemp("mlserver")) as process:
        yield process


@contextmanager
def tier_at(mlserver: MLServer, model: str, decoder: InputDecoder, *, prepares: bool = True) -> Iterator[RemoteTier]:
    prepare = decoder.input_spec.prepare if prepares else None
    options: dict[str, Any] = {"n_labels": 10, "deadline_s": 20.0, "prepare": prepare}
    tier = RemoteTier("cloud", mlserver.address, model, Always(), **options)
    try:
        yield tier
    finally:
        tier.close()


@contextmanager
def cascade_of(*tiers: dict[str, Any]) -> Iterator[Cascade]:
    """As the programs open it from a config file."""
    report = Report("pi.yaml")
    config = read_cascade(Fields({"task": "zoo:digits", "tiers": list(tiers)}, report), Path())
    report.check()
    cascade = open_cascade(config)
    try:
        yield cascade
    finally:
        cascade.close()


@pytest.fixture(scope="module")
def best(hundred: Batch) -> Decisions:
    with cascade_of(LOCAL) as cascade:
        return cascade.decide(hundred)


@pytest.mark.parametrize(
    ("model", "datatype", "shape"),
    [
        ("digits", "FP32", [-1, 1, 28, 28]),
        ("digits-half", "FP16", [-1, 1, 28, 28]),
        ("digits-pixels", "UINT8", [-1, 28, 28, 1]),
    ],
)
def test_it_answers_as_the_same_model_does_here(
    mlserver, decoder: InputDecoder, hundred: Batch, best, model, datatype, shape
):
    with tier_at(mlserver, model, decoder) as tier:
        metadata = tier.metadata()
        vote = tier.vote(hundred, Always())
    (entry,) = metadata.inputs
    assert (entry.name, entry.datatype, list(entry.shape)) == ("pixels", datatype, shape)
    np.testing.assert_array_equal(vote.labels, best.labels)
    np.testing.assert_allclose(vote.score, best.score, atol=2e-3 if datatype == "FP16" else 1e-5)
    assert vote.asked.tolist() == vote.count.tolist() == [1] * 100
    assert vote.call.bytes_sent > hundred.x.size


def test_it_may_take_files_as_captured(mlserver, decoder: InputDecoder, hundred: Batch, pngs):
    with tier_at(mlserver, "files", decoder) as tier:
        labels = tier.vote(hundred, Always()).labels
    assert labels.tolist() == [len(png) % 10 for png in pngs]


def test_a_model_of_another_input_size_is_rejected_before_it_is_asked(mlserver, decoder: InputDecoder, hundred: Batch):
    with tier_at(mlserver, "digits-other", decoder) as tier:
        with pytest.raises(TierRejected, match=r"expected rows of \[3, 28, 28\], got \[1, 28, 28\]"):
            tier.vote(hundred, Always())


def test_what_its_model_refuses_is_a_rejection_with_its_words(mlserver, decoder: InputDecoder):
    wide = Batch(("a",), np.zeros((1, 1, 28, 30), np.float32))
    with tier_at(mlserver, "free", decoder, prepares=False) as tier:
        with pytest.raises(TierRejected, match=r"INVALID_ARGUMENT: a digit is \[1, 28, 28\], this is \[1, 28, 30\]"):
            tier.vote(wide, Always())


def test_a_bug_of_its_model_makes_the_tier_unavailable(mlserver, decoder: InputDecoder, hundred: Batch):
    with tier_at(mlserver, "broken", decoder) as tier:
        with pytest.raises(TierUnavailable, match="INTERNAL: a bug of the model's own"):
            tier.vote(hundred, Always())


@pytest.mark.parametrize(
    ("model", "words"),
    [("nonsense", "has no such model: Model nonsense"), ("silent", "its inputs: expected one, got none")],
)
def test_a_model_that_cannot_be_asked_is_a_config_error_at_start(mlserver, decoder: InputDecoder, model, words):
    with tier_at(mlserver, model, decoder) as tier, pytest.raises(ConfigError, match=words):
        tier.metadata()


def test_a_cascade_with_a_tier_there_decides_as_one_that_is_all_here_until_it_is_killed(tmp_path, hundred: Batch):
    with cascade_of(DEVICE, LOCAL) as cascade:
        wanted = cascade.decide(hundred)
    assert set(wanted.exit_tier.tolist()) == {1, 2}
    deferred = wanted.exit_tier == 2
    with MLServer(tmp_path) as process:
        there = {"name": "best", "address": process.address, "model": "digits", "deadline_ms": 20000}
        with cascade_of(DEVICE, there) as cascade:
            decisions = cascade.decide(hundred)
            process.kill()
            alone = cascade.decide(hundred)
    np.testing.assert_array_equal(decisions.labels, wanted.labels)
    np.testing.assert_array_equal(decisions.exit_tier, wanted.exit_tier)
    assert not decisions.is_degraded
    np.testing.assert_array_equal(alone.labels[~deferred], wanted.labels[~deferred])
    assert alone.exit_tier.tolist() == [1] * 100
    for reason, was_deferred in zip(alone.reasons(), deferred, strict=True):
        assert (reason or "").startswith("unavailable: tier best: UNAVAILABLE") == was_deferred
