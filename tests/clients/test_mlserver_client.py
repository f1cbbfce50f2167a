"""MLServer's client (its stubs, types, converters and codecs, in its own Python) asks a real `coe-cloud`."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import Any

import numpy as np
import pytest
from mlserver_process import HERE, mlserver_python
from programs import BOUND_S, Cloud

from coe import __version__
from coe.cascade import Decisions
from coe.config.manifest import Task

N = 20  # examples that it asks about


@pytest.fixture(scope="module")
def told(server: Cloud, pngs, floats) -> dict[str, Any]:
    """What it made of our answers."""
    images = [base64.b64encode(png).decode() for png in pngs[:N]]
    command = [mlserver_python(), str(HERE / "ask_with_mlserver.py"), f"127.0.0.1:{server.port}", "digits"]
    given = json.dumps({"images": images, "floats": floats[:N].tolist()})
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=2 * BOUND_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_finds_the_server_live_ready_and_described(told, task: Task):
    greeting = told["greeting"]
    assert [greeting[key] for key in ("live", "ready", "model_ready", "other_ready")] == [True, True, True, False]
    assert (greeting["server"]["name"], greeting["server"]["version"]) == ("coe-cloud", __version__)
    model = greeting["model"]
    assert (model["name"], model["versions"], model["platform"]) == ("digits", [task.fingerprint], "coe")
    (entry,) = model["inputs"]
    assert (entry["name"], entry["datatype"], entry["shape"]) == ("input", "BYTES", [-1])
    assert {"label", "score", "label_name"} <= {entry["name"] for entry in model["outputs"]}


@pytest.mark.parametrize("form", ["files, raw", "files, typed", "numbers, raw", "numbers, typed"])
def test_it_gets_the_decisions_made_with_no_wire_in_between(told, task: Task, at_home: Decisions, form):
    answer = told["answers"][form]
    assert (answer["id"], answer["model"], answer["version"]) == ("from mlserver", "digits", task.fingerprint)
    columns = answer["columns"]
    assert np.ravel(columns["label"]).tolist() == at_home.labels[:N].tolist()
    assert np.ravel(columns["exit_tier"]).tolist() == at_home.exit_tier[:N].tolist()
    np.testing.assert_allclose(np.ravel(columns["score"]), at_home.score[:N], rtol=1e-5)
    assert np.shape(columns["tier_votes"]) == (N, 2)


def test_it_may_send_halves(told, at_home: Decisions):
    assert np.ravel(told["answers"]["halves, raw"]["columns"]["label"]).tolist() == at_home.labels[:N].tolist()


def test_it_gets_the_outputs_it_asked_for(told, at_home: Decisions):
    columns = told["answers"]["chosen"]["columns"]
    assert list(columns) == ["score", "label_name"]
    assert columns["label_name"] == [str(label) for label in at_home.labels[:N]]


def test_it_is_refused_with_status_and_words(told):
    refusals = told["refusals"]
    assert {what: status for what, (status, _) in refusals.items()} == {
        "another model": "NOT_FOUND",
        "another version": "NOT_FOUND",
        "another shape": "INVALID_ARGUMENT",
        "another datatype": "INVALID_ARGUMENT",
    }
    assert "got 'nonsense'" in refusals["another model"][1]
    assert "expected shape [1, 28, 28], got [1, 28, 27]" in refusals["another shape"][1]


def test_it_can_list_the_repository(told, task: Task):
    names = ["digits", "digits-medium", "digits-best"]
    assert sorted(told["index"]) == sorted([name, task.fingerprint, "READY"] for name in names)
