"""In which order members are asked, and in what form examples are sent: as a config says it, and on the wire."""

from __future__ import annotations

import io
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from coe.cascade import Always
from coe.config import Fields, Report
from coe.config.cascade import read_cascade
from coe.config.open import open_tier
from coe.models import InputDecoder, decode_image
from coe.models.inputs import Payload
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_output, read_inputs
from coe.protocol.service import FRAME_BYTES, SERVICE

PICTURES = {"task": "shapes", "labels": ["round", "square"], "input": {"kind": "image", "size": [8, 8], "channels": 3}}
NUMBERS = {"task": "shapes", "labels": ["round", "square"], "input": {"kind": "tensor", "shape": [1]}}
CLOUD = {"name": "cloud", "address": "127.0.0.1:9"}


def read(*tiers, task=PICTURES):
    report = Report("pi.yaml")
    return read_cascade(Fields(task | {"tiers": list(tiers)}, report), Path()), report


@pytest.mark.parametrize(
    ("settings", "payload"),
    [
        ({}, Payload("captured")),
        ({"send": "captured"}, Payload("captured")),
        ({"send": "pixels"}, Payload("pixels")),
        ({"send": "model-size"}, Payload("model-size")),
        ({"send": "png"}, Payload("png")),
        ({"send": "jpeg"}, Payload("jpeg", 85)),
        ({"send": {"jpeg": 50}}, Payload("jpeg", 50)),
    ],
)
def test_a_remote_tier_says_what_is_sent(settings, payload):
    config, report = read(CLOUD | settings)
    assert report.findings == []
    assert config.tiers[0].send == payload


@pytest.mark.parametrize(
    ("send", "finding"),
    [
        ("jpg", 'tiers[0].send: expected one of captured, pixels, model-size, png, jpeg, got "jpg"'),
        ({"jpeg": 0}, "tiers[0].send.jpeg: expected 1 to 100, got 0"),
        ({"jpeg": "high"}, 'tiers[0].send.jpeg: expected a whole number, got "high"'),
        ({}, "tiers[0].send.jpeg: expected a whole number, got nothing (add it)"),
        ({"jpeg": 85, "size": 3}, "tiers[0].send.size: unknown setting (known: jpeg)"),
    ],
)
def test_what_cannot_be_sent_is_a_finding(send, finding):
    _, report = read(CLOUD | {"send": send})
    assert [found[: len(finding)] for found in report.findings] == [finding]


def test_a_task_without_images_sends_its_numbers_as_they_are():
    for send in ("captured", "pixels"):
        assert read(CLOUD | {"send": send}, task=NUMBERS)[1].findings == []
    for send in ("png", "model-size", {"jpeg": 85}):
        (finding,) = read(CLOUD | {"send": send}, task=NUMBERS)[1].findings
        assert finding.startswith("tiers[0].send: expected captured or pixels for a task whose examples are of kind")


def test_a_text_is_sent_as_it_came():
    texts = NUMBERS | {"input": {"kind": "text"}}
    assert read(CLOUD | {"send": "captured"}, task=texts)[1].findings == []
    for send in ("pixels", "png"):
        (finding,) = read(CLOUD | {"send": send}, task=texts)[1].findings
        assert finding.startswith("tiers[0].send: expected captured for a task whose examples are of kind text")


MEMBERS = {"members": ["a.onnx", "b.onnx", "c.onnx"]}


def test_the_order_of_members_is_the_lists_unless_it_is_to_be_measured():
    for settings, order in (({}, "fixed"), ({"order": "fixed"}, "fixed"), ({"order": "measured"}, "measured")):
        config, report = read(MEMBERS | settings, CLOUD)
        assert report.findings == report.warnings == []
        assert config.tiers[0].order == order
    (finding,) = read(MEMBERS | {"order": "cheapest"}, CLOUD)[1].findings
    assert finding.startswith("tiers[0].order: expected one of fixed, measured")


@pytest.mark.parametrize("settings", [{"early": False}, {"parallel": True}])
def test_an_order_that_spares_nobody_is_a_warning(settings):
    (warning,) = read(MEMBERS | {"order": "measured"} | settings, CLOUD)[1].warnings
    assert warning.startswith("tiers[0].order: it matters only where members are asked in turn")


@pytest.fixture
def server():
    """What arrives, byte for byte, at a server that finds everything round."""
    received = []

    def infer(data, context):
        received.append(data)
        response = pb.ModelInferResponse()
        n_rows = pb.ModelInferRequest.FromString(data).inputs[0].shape[0]
        for name, dtype in (("label", np.int32), ("vote", np.float32), ("score", np.float32), ("exit_tier", np.int32)):
            add_output(response, name, np.full(n_rows, 0 if name == "label" else 1, dtype=dtype))
        return response.SerializeToString()

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        methods = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", received
        finally:
            server.stop(None).wait()


def photo(width=20, height=16):
    file = io.BytesIO()
    rows = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    Image.fromarray(rows).save(file, "JPEG", quality=98)
    return file.getvalue()


@pytest.mark.parametrize("send", ["captured", "pixels", "model-size", "png", {"jpeg": 50}])
def test_bytes_sent_are_those_that_arrive_and_can_be_known_before(server, send):
    address, received = server
    config, report = read({"name": "cloud", "address": address, "send": send, "deadline_ms": 60_000})
    assert report.findings == []
    tier = open_tier(config.tiers[0], config)
    try:
        for sizes in ([(20, 16)], [(20, 16), (20, 16)]):
            values = [photo(*size) for size in sizes]
            batch = InputDecoder(config.task.input_spec).batch([f"x{n}" for n in range(len(values))], values)
            before = tier.bytes_of(batch)
            received.clear()
            vote = tier.vote(batch, Always())
            assert vote.call.bytes_sent == len(received[0]) + FRAME_BYTES == before
    finally:
        tier.close()


@pytest.mark.parametrize(
    ("send", "datatype", "shape"),
    [
        ("captured", "BYTES", [1]),
        ("pixels", "UINT8", [1, 16, 20, 3]),
        ("model-size", "UINT8", [1, 8, 8, 3]),
        ("png", "BYTES", [1]),
        ({"jpeg": 50}, "BYTES", [1]),
    ],
)
def test_what_arrives_is_the_form_that_was_asked_for(server, send, datatype, shape):
    address, received = server
    config, _ = read({"name": "cloud", "address": address, "send": send, "deadline_ms": 60_000})
    tier = open_tier(config.tiers[0], config)
    file = photo()
    try:
        tier.vote(InputDecoder(config.task.input_spec).batch(["a"], [file]), Always())
    finally:
        tier.close()
    request = pb.ModelInferRequest.FromString(received[0])
    assert (request.inputs[0].datatype, list(request.inputs[0].shape)) == (datatype, shape)
    (x,) = read_inputs(request, max_rows=10, max_bytes=10_000).values()
    if send == "captured":
        assert x.tolist() == [file]
    if send == "png":
        assert decode_image(x[0], 3).tobytes() == decode_image(file, 3).tobytes()
    if isinstance(send, dict):
        assert x[0].startswith(b"\xff\xd8")
        assert len(x[0]) < len(file)
