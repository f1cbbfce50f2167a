"""`web/vectors/`, which the page's tests run: what is committed is what the Python implementation answers now."""

from __future__ import annotations

import base64
import json
from typing import Any

import conformance
import numpy as np
import PIL
import pytest

from cloud.transports.rest_messages import RequestLimits, read_request
from coe.config import Fields, Report
from coe.config.manifest import read_input_spec

pytestmark = pytest.mark.skipif(not conformance.FOLDER.is_dir(), reason="no web/vectors beside these tests")


def committed(name: str) -> Any:
    return json.loads((conformance.FOLDER / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["rule.json", "protocol.json"])
def test_the_committed_vectors_are_what_the_python_rule_gives(name):
    told = json.loads(json.dumps(conformance.FILES[name]()))
    for key, cases in committed(name).items():
        assert told[key] == cases, f"{name}: {key} (python tests/web/conformance.py)"


def test_the_committed_pixels_are_what_pillow_makes_of_them():
    """Before Pillow 13 the passes of a resize went in another order, which may show in the last of 255 levels."""
    told, level = conformance.pixel_vectors(), 0 if int(PIL.__version__.split(".")[0]) >= 13 else 1
    known = committed("pixels.json")
    assert told["greys"] == known["greys"]
    for now, then in zip(told["prepared"], known["prepared"], strict=True):
        assert {**now, "ready": ""} == {**then, "ready": ""}
        input_spec = read_input_spec(Fields({"kind": "image", **now["input"]}, Report("vectors")))
        step = level if input_spec.dtype == "uint8" else level * abs(input_spec.scale) / min(input_spec.std) * 1.001
        dtype = np.uint8 if input_spec.dtype == "uint8" else np.dtype("<f4")
        before, after = (np.frombuffer(base64.b64decode(one["ready"]), dtype).astype(float) for one in (then, now))
        np.testing.assert_allclose(after, before, rtol=0, atol=step)


def test_there_are_thousands_of_cases_with_the_edges_among_them():
    rule = committed("rule.json")
    assert len(rule["votes"]) + len(rule["cascades"]) + len(rule["agreements"]) + len(rule["settled"]["bits"]) > 3000
    ties = [case for case in rule["votes"] if 2 * case["whole"][1] <= case["whole"][2] and case["whole"][2] > 1]
    early = [case for case in rule["votes"] if case["vote"][2] < case["vote"][3]]
    degraded = [case for case in rule["cascades"] if case.get("degraded")]
    failed = [case for case in rule["cascades"] if "error" in case]
    assert min(len(ties), len(early), len(degraded)) > 100
    assert len(failed) > 5


def test_the_questions_are_read_as_what_the_page_means():
    for case in committed("protocol.json")["questions"]:
        body = base64.b64decode(case["body"])
        limits = RequestLimits(max_rows=8, max_bytes=2**20, max_json_bytes=2**20)
        request, _ = read_request(body, str(case["header_length"]), model="m", version="v", limits=limits)
        assert request.id == case["id"]
        assert list(request.inputs["input"]) == [base64.b64decode(case["captured"])]
