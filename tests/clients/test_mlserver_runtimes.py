"""MLServer's own runtimes for scikit-learn and XGBoost as tiers: classes, probabilities, a regression's float."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mlserver_process import MLServer, mlserver_python, write_model

from coe.cascade import Always, Batch, ConfigError, Vote
from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder
from coe.protocol.remote import RemoteTier

NAMES = ("setosa", "versicolor", "virginica")
FLOWERS = InputDecoder(InputSpec("tensor", (4,)))
pytestmark = pytest.mark.slow

TRAIN = """
import json, sys
import joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
data, folder, answers = load_iris(), sys.argv[1], {}
x, y = data.data, data.target
for name, target in (("numbers", y), ("names", data.target_names[y]), ("two", (y == 2).astype(int))):
    model = LogisticRegression(max_iter=500).fit(x, target)
    joblib.dump(model, f"{folder}/{name}.joblib")
    answers[name] = model.predict(x[::7]).tolist(), model.predict_proba(x[::7]).tolist()
try:
    import mlserver_xgboost, xgboost
except ImportError:
    pass
else:
    model = xgboost.XGBClassifier(n_estimators=5).fit(x, y)
    model.save_model(f"{folder}/trees.json")
    answers["trees"] = model.predict(x[::7]).tolist(), model.predict_proba(x[::7]).tolist()
    booster = xgboost.train({"objective": "multi:softmax", "num_class": 3}, xgboost.DMatrix(x, y), 5)
    booster.save_model(f"{folder}/booster.ubj")
    answers["booster"] = booster.predict(xgboost.DMatrix(x[::7])).tolist(), None
json.dump({"x": x[::7].tolist(), "answers": answers}, open(f"{folder}/answers.json", "w"))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    """Models that MLServer's Python made, what they say there, and the rows."""
    folder = tmp_path_factory.mktemp("trained")
    python = mlserver_python()
    if subprocess.run([python, "-c", "import mlserver_sklearn"], capture_output=True, check=False).returncode:
        pytest.skip("needs mlserver-sklearn beside MLServer: .ci/mlserver installs it")
    subprocess.run([python, "-c", TRAIN, str(folder)], check=True)
    return folder, json.loads((folder / "answers.json").read_text())


@pytest.fixture(scope="module")
def mlserver(trained, tmp_path_factory) -> Iterator[MLServer]:
    folder, content = trained

    def lay_out(repository: Path) -> None:
        x = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        kinds = {"trees": "mlserver_xgboost.XGBoostModel", "booster": "mlserver_xgboost.XGBoostModel"}
        files = {"trees": "trees.json", "booster": "booster.ubj"}
        for name in content["answers"]:
            implementation = kinds.get(name, "mlserver_sklearn.SKLearnModel")
            uri = str(folder / files.get(name, f"{name}.joblib"))
            settings = {"name": name, "implementation": implementation, "parameters": {"uri": uri}, "inputs": x}
            write_model(repository, settings)
        write_model(repository, settings | {"name": "silent", "inputs": []})

    with MLServer(tmp_path_factory.mktemp("mlserver"), lay_out) as process:
        yield process


@contextmanager
def tier_at(mlserver: MLServer, model: str, labels: tuple[str, ...] = NAMES, output: str = "") -> Iterator[RemoteTier]:
    how = {"n_labels": len(labels), "labels": labels, "output": output, "prepare": FLOWERS.input_spec.prepare}
    tier = RemoteTier("cloud", mlserver.address, model, Always(), deadline_s=20.0, **how)
    try:
        yield tier
    finally:
        tier.close()


def asked(mlserver: MLServer, x: list, model: str, labels: tuple[str, ...] = NAMES, output: str = "") -> Vote:
    rows = np.array(x, dtype=np.float32)
    with tier_at(mlserver, model, labels, output) as tier:
        return tier.vote(Batch(tuple(map(str, range(len(rows)))), rows), Always())


@pytest.mark.parametrize("model", ["numbers", "names"])
def test_classes_of_scikit_learn(mlserver, trained, model):
    said = trained[1]["answers"][model][0]
    vote = asked(mlserver, trained[1]["x"], model)
    assert vote.labels.tolist() == [NAMES.index(one) if isinstance(one, str) else one for one in said]
    assert np.isnan(vote.score).all()


@pytest.mark.parametrize("model", ["numbers", "names", "two"])
def test_probabilities_of_scikit_learn_where_they_are_asked_for(mlserver, trained, model):
    labels = ("other", "virginica") if model == "two" else NAMES
    vote = asked(mlserver, trained[1]["x"], model, labels, "predict_proba")
    said = np.array(trained[1]["answers"][model][1])
    assert vote.labels.tolist() == said.argmax(axis=1).tolist()
    np.testing.assert_allclose(vote.score, said.max(axis=1), atol=1e-5)


@pytest.mark.parametrize("model", ["trees", "booster"])
def test_classes_of_xgboost(mlserver, trained, model):
    if model not in trained[1]["answers"]:
        pytest.skip("needs mlserver-xgboost beside MLServer")
    vote = asked(mlserver, trained[1]["x"], model)
    assert vote.labels.tolist() == [int(one) for one in trained[1]["answers"][model][0]]


def test_a_model_that_names_no_input_is_refused_with_what_to_add(mlserver):
    with tier_at(mlserver, "silent") as tier, pytest.raises(ConfigError, match=r"add .* to the model's model-settings"):
        tier.metadata()


def test_its_answer_in_words(mlserver):
    with tier_at(mlserver, "names") as tier:
        assert tier.describe_answer(FLOWERS.blank()).endswith(", its score not known")
