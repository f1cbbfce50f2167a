"""coe-sim, and a trace on disk that always is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from simulator import Program

from sim.traces import Answers, Trace, write_parquet


@pytest.fixture
def sim(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture(scope="session")
def synthetic() -> Trace:
    """Four models that find the same examples hard: three weaker, one good, with probabilities and latencies."""
    rng = np.random.default_rng(7)
    n, n_labels = 600, 6
    labels = rng.integers(0, n_labels, n).astype(np.int32)
    hard = rng.random(n)
    models = {}
    for name, skill, seconds in (("a", 0.7, 1e-3), ("b", 0.68, 1.5e-3), ("c", 0.72, 2e-3), ("best", 0.86, 2e-2)):
        knows = hard + rng.normal(0, 0.15, n) < skill
        guesses = np.where(knows, labels, rng.integers(0, n_labels, n))
        sure = np.clip(1.2 - hard + rng.normal(0, 0.1, n), 0.25, 0.98)
        probabilities = np.repeat(((1 - sure) / (n_labels - 1))[:, None], n_labels, axis=1)
        probabilities[np.arange(n), guesses] = sure
        probabilities = probabilities.astype(np.float16)
        top = probabilities[np.arange(n), guesses].astype(np.float32)
        latency_s = rng.normal(seconds, seconds / 20, n).astype(np.float32)
        models[name] = Answers(guesses.astype(np.int32), top, probabilities, latency_s)
    sizes = rng.integers(200, 400, n).astype(np.int32)
    return Trace("synthetic", tuple(f"e{row:03d}" for row in range(n)), labels, models, sizes)


@pytest.fixture(scope="session")
def trace_path(synthetic: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("traces") / "synthetic.parquet"
    write_parquet(synthetic, path)
    return path


@pytest.fixture(scope="session")
def plain_path(synthetic: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with top-1 scores alone, as a text file."""
    path = tmp_path_factory.mktemp("traces") / "plain.tsv"
    lines = ["example_id\tlabel\tmodel\tprediction\tscore"]
    for name, said in synthetic.models.items():
        columns = zip(synthetic.ids, synthetic.labels, said.predictions, said.scores, strict=True)
        lines += [f"{example}\t{label}\t{name}\t{prediction}\t{score}" for example, label, prediction, score in columns]
    path.write_text("\n".join(lines) + "\n")
    return path
