"""The servicer: good requests answered in full, bad ones refused with a reason, and the server goes on."""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import VERSION, bytes_column, request_of, served, servicer, serving
from PIL import Image
from strategies import Broken, one_hot, rows, table_tier

from coe.cascade import Always, Batch, Cascade, Decisions, LocalTier, TierUnavailable
from coe.cascade.types import Array
from coe.models.input_spec import InputSpec
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_input, get_parameters, read_outputs, set_parameter
from coe.protocol.core import MEMBER_OUTPUTS, OUTPUTS, Answer, ResponseEncoder
from coe.protocol.service import METHODS, path
from coe.zoo import digits

REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
MAX_ROWS, MAX_BYTES = 8, 2**16
SECRET = "secrets/private.onnx"


class FirstNumber:
    """A member that votes for the first number of an example, modulo its labels."""

    name = "first-number"
    n_labels = 3

    def prepare(self, x: Array) -> Array:
        return x

    def predict(self, x: Array) -> Array:
        """(B, 3)."""
        first = np.array([np.asarray(row).ravel()[0] for row in x], dtype=np.float64)
        return one_hot((np.abs(first) % 3).astype(np.int64))

    def close(self) -> None:
        pass


def two_tiers() -> Cascade:
    """Row 0 leaves at tier 1; row 1 at tier 2."""
    disagree = [one_hot([2, 0, 1]), one_hot([2, 1, 1])]
    return Cascade([table_tier(disagree, Fraction(1), "medium"), table_tier([one_hot([0, 1, 1])], Always(), "best")])


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleNamespace]:
    seen: list[Batch] = []
    cascade = two_tiers()

    def remember(batch: Batch) -> Decisions:
        seen.append(batch)
        return cascade.decide(batch)

    def broken(batch: Batch) -> Decisions:
        raise RuntimeError(f"cannot read {SECRET}")

    images = Cascade([LocalTier("images", [FirstNumber()], Always())])
    gone = Broken(TierUnavailable("best", "connection refused"))
    falls_back = Cascade([table_tier([one_hot([0]), one_hot([1])], Fraction(1)), gone])
    service = servicer(
        served("table", cascade, 3),
        served("remember", remember, 3),
        served("broken", broken, 3),
        served("falls-back", falls_back, 3),
        served("numbers", images, 3),
        served("floats", images, 3, InputSpec("tensor", (2,))),
        served("image", images, 3, InputSpec("image", (28, 28, 1))),
        max_rows=MAX_ROWS,
        max_bytes=MAX_BYTES,
    )
    with serving(service.handler()) as address, grpc.insecure_channel(address) as channel:
        yield SimpleNamespace(channel=channel, seen=seen, service=service)


def call(server: SimpleNamespace, request: bytes | pb.ModelInferRequest, timeout: float = 10) -> pb.ModelInferResponse:
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return pb.ModelInferResponse.FromString(server.channel.unary_unary(path("ModelInfer"))(data, timeout=timeout))


def ask(server: SimpleNamespace, method: str, **fields: object):
    request_type, response_type = METHODS[method]
    request = request_type(**fields).SerializeToString()
    return response_type.FromString(server.channel.unary_unary(path(method))(request, timeout=10))


def refused(server: SimpleNamespace, request: bytes | pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(server, request)
    return caught.value.code(), caught.value.details()


def is_well(server: SimpleNamespace) -> bool:
    return read_outputs(call(server, request_of("table", rows(2).x)))["label"].tolist() == [2, 1]


# Good requests


def test_a_good_request_has_the_outputs_every_caller_can_use(server):
    response = call(server, request_of("table", rows(3).x, VERSION, id="call 7"))
    outputs = read_outputs(response)
    assert list(outputs) == ["label", "vote", "score", "exit_tier", "members", "tier_votes"]
    assert outputs["label"].tolist() == [2, 1, 1]
    assert outputs["exit_tier"].tolist() == [1, 2, 1]
    assert outputs["vote"].tolist() == [1, 1, 1]
    assert outputs["members"].tolist() == [[2, 2], [1, 1], [2, 2]]
    np.testing.assert_array_equal(outputs["tier_votes"], [[1, np.nan], [0.5, 1], [1, np.nan]])
    assert (response.model_name, response.model_version, response.id) == ("table", VERSION, "call 7")


def test_the_outputs_are_of_the_datatypes_that_the_metadata_announces(server):
    told = ask(server, "ModelMetadata", name="table")
    announced = {output.name: (output.datatype, list(output.shape)) for output in told.outputs}
    assert set(announced) == set(OUTPUTS)
    request = request_of("table", rows(2).x)
    for name in OUTPUTS:
        request.outputs.add(name=name)
    for output in call(server, request).outputs:
        datatype, shape = announced[output.name]
        width = [-1] if output.name in MEMBER_OUTPUTS else output.shape[1:]  # members of the tiers reached
        assert (output.datatype, [-1, *width]) == (datatype, shape)
        assert output.shape[0] == 2


def test_only_the_outputs_asked_for_come_back_in_that_order_and_once(server):
    request = request_of("table", rows(2).x)
    for name in ("label_name", "label", "label_name"):
        request.outputs.add(name=name)
    outputs = read_outputs(call(server, request))
    assert list(outputs) == ["label_name", "label"]
    assert outputs["label_name"].tolist() == [b"label 2", b"label 1"]


def test_a_degraded_answer_says_why_without_being_asked(server):
    outputs = read_outputs(call(server, request_of("falls-back", rows(1).x)))
    assert outputs["degraded"].tolist() == [b"unavailable: tier best: connection refused"]
    assert outputs["label"].tolist() == [0]


def test_the_timings_travel_as_parameters(server):
    told = get_parameters(call(server, request_of("table", rows(2).x)).parameters)
    assert set(told) == {"tier_1_s", "tier_2_s", "queue_s", "batch_rows", "server_s"}
    assert all(isinstance(value, float) and 0 <= value < 10 for value in told.values())
    assert told["tier_1_s"] + told["tier_2_s"] <= told["server_s"]


def test_unknown_parameters_are_ignored(server):
    request = request_of("table", rows(2).x)
    for key, value in {"priority": 3, "sequence_id": "s", "binary_data": True, "x": 0.5}.items():
        set_parameter(request.parameters, key, value)
    request.parameters["empty"].SetInParent()
    set_parameter(request.inputs[0].parameters, "content_type", "np")
    assert read_outputs(call(server, request))["label"].tolist() == [2, 1]


def test_typed_contents_are_read_like_raw_ones(server):
    request = pb.ModelInferRequest(model_name="table")
    request.inputs.add(name="anything", datatype="INT64", shape=[2, 1]).contents.int64_contents.extend([0, 1])
    assert read_outputs(call(server, request))["label"].tolist() == [2, 1]


def test_an_image_is_taken_encoded_and_as_pixels(server):
    png = digits.test_examples(1)[0][1]
    encoded = read_outputs(call(server, request_of("image", bytes_column(png, png))))
    pixels = read_outputs(call(server, request_of("image", np.full((1, 28, 28, 1), 2, np.uint8))))
    assert encoded["label"].shape == (2,)
    assert pixels["label"].tolist() == [2]


def test_images_of_several_sizes_go_in_one_request(server):
    def png(width: int, shade: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.full((8, width), shade, np.uint8)).save(out, "PNG")
        return out.getvalue()

    outputs = read_outputs(call(server, request_of("image", bytes_column(png(4, 1), png(9, 2)))))
    assert outputs["label"].tolist() == [1, 2]


def test_the_deadline_of_the_call_becomes_that_of_the_batch(server):
    server.seen.clear()
    before = time.monotonic()
    call(server, request_of("remember", rows(1).x), timeout=5)
    (batch,) = server.seen
    assert before + 4 < batch.deadline < time.monotonic() + 5.05


def test_a_call_without_a_deadline_has_none_inside(server):
    server.seen.clear()
    server.channel.unary_unary(path("ModelInfer"))(request_of("remember", rows(1).x).SerializeToString())
    (batch,) = server.seen
    assert batch.deadline - time.monotonic() > 1e6


def test_the_server_says_that_it_lives_is_ready_and_who_it_is(server):
    assert ask(server, "ServerLive").live
    assert ask(server, "ServerReady").ready
    assert ask(server, "ModelReady", name="table").ready
    assert not ask(server, "ModelReady", name="nobody").ready
    assert ask(server, "ServerMetadata").name == "coe-cloud"
    told = ask(server, "ModelMetadata", name="table", version=VERSION)
    assert (told.name, list(told.versions), told.platform) == ("table", [VERSION], "coe")
    assert [entry.name for entry in told.inputs] == ["input"]


def test_a_server_that_is_not_ready_says_so_but_lives():
    service = servicer(served("table", two_tiers(), 3))
    service.plane.accepts = False
    with serving(service.handler()) as address, grpc.insecure_channel(address) as channel:
        fake = SimpleNamespace(channel=channel)
        assert ask(fake, "ServerLive").live
        assert not ask(fake, "ServerReady").ready
        assert not ask(fake, "ModelReady", name="table").ready


# Bad requests


def two_inputs() -> pb.ModelInferRequest:
    request = request_of("table", rows(1).x)
    add_input(request, "second", rows(1).x)
    return request


def unknown_output() -> pb.ModelInferRequest:
    request = request_of("table", rows(1).x)
    request.outputs.add(name="logits")
    return request


def cut_off_image() -> pb.ModelInferRequest:
    png = digits.test_examples(1)[0][1]
    return request_of("image", bytes_column(png, png[:-40]))


def wrong_raw_size() -> pb.ModelInferRequest:
    request = request_of("table", rows(2).x)
    request.inputs[0].shape[0] = 3
    return request


def huge_shape() -> pb.ModelInferRequest:
    request = request_of("table", rows(1).x)
    request.inputs[0].shape[:] = [1, 2**40]
    return request


def overlong_element() -> pb.ModelInferRequest:
    request = request_of("image", bytes_column(b"abc"))
    request.raw_input_contents[0] = struct.pack("<I", 2**31) + b"abc"
    return request


NAN, BIG = np.array([[0, np.nan]], np.float32), np.array([[1e300, 0]])
BAD: dict[str, tuple[Callable[[], pb.ModelInferRequest], str]] = {
    "no inputs": (lambda: pb.ModelInferRequest(model_name="table"), "one tensor"),
    "two inputs": (two_inputs, "one tensor"),
    "no rows": (lambda: request_of("table", rows(0).x), "at least one row"),
    "no images": (lambda: request_of("image", bytes_column()), "at least one row"),
    "too many rows": (lambda: request_of("table", rows(MAX_ROWS + 1).x), f"at most {MAX_ROWS} rows"),
    "too many bytes": (lambda: request_of("image", np.zeros((8, 100, 100, 1), np.uint8)), f"{MAX_BYTES} bytes"),
    "another dtype": (lambda: request_of("image", np.zeros((1, 28, 28, 1), np.int32)), "expected"),
    "another shape": (lambda: request_of("table", np.zeros((1, 2), np.int64)), "expected shape"),
    "bytes for a tensor": (lambda: request_of("table", bytes_column(b"0")), "expected a tensor"),
    "float image of another size": (lambda: request_of("image", np.zeros((1, 1, 9, 9), np.float32)), "expected shape"),
    "three channels": (lambda: request_of("image", np.zeros((1, 28, 28, 3), np.uint8)), "expected uint8 pixels"),
    "an image without pixels": (lambda: request_of("image", np.zeros((1, 0, 28, 1), np.uint8)), "expected uint8"),
    "not a number": (lambda: request_of("floats", NAN), "finite"),
    "infinity": (lambda: request_of("floats", NAN * 0 + np.inf), "finite"),
    "too large for float32": (lambda: request_of("floats", BIG), "too large"),
    "an unknown output": (unknown_output, "one of label, vote"),
    "an image cut off": (cut_off_image, "example row 1: expected a PNG or JPEG"),
    "text for an image": (lambda: request_of("image", bytes_column("drôle".encode())), "expected a PNG or JPEG"),
    "an empty image": (lambda: request_of("image", bytes_column(b"")), "got 0 bytes"),
    "contents shorter than the shape": (wrong_raw_size, "24 bytes"),
    "a shape beyond memory": (huge_shape, "bytes"),
    "an element beyond the contents": (overlong_element, "elements within the contents"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_a_reason(server, name):
    make, reason = BAD[name]
    code, details = refused(server, make())
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert reason in details
    assert is_well(server)


@pytest.mark.parametrize(
    ("model", "version", "reason"),
    [("nobody", "", "expected one of table, remember"), ("table", "other", f"expected version {VERSION}")],
)
def test_an_unknown_model_or_version_is_not_found(server, model, version, reason):
    code, details = refused(server, request_of(model, rows(1).x, version))
    assert code == grpc.StatusCode.NOT_FOUND
    assert reason in details
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, "ModelMetadata", name=model, version=version)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("text", ["m" * 100_000, "é\n\r\0\u2028" * 5000])
@pytest.mark.parametrize("where", ["model", "version", "output", "input"])
def test_an_absurdly_long_name_is_refused_with_a_short_reason(server, where, text):
    model, version = text if where == "model" else "table", text if where == "version" else ""
    request = request_of(model, rows(1).x, version)
    if where == "output":
        request.outputs.add(name=text)
    if where == "input":
        request.inputs[0].name, request.inputs[0].datatype = text, text
    code, details = refused(server, request)
    assert code in REFUSALS
    assert len(details) < 1000


@given(data=st.binary(max_size=200))
@settings(max_examples=200)
def test_random_bytes_are_refused_and_the_server_goes_on(server, data):
    code, details = refused(server, data)
    assert code in REFUSALS
    assert "expected" in details
    assert is_well(server)


@given(
    data=st.data(),
    base=st.sampled_from(["numbers", "image", "floats"]),
    how=st.sampled_from(["flip", "cut", "insert", "repeat"]),
)
@settings(max_examples=300)
def test_a_damaged_request_is_answered_or_refused_but_never_a_bug(server, data, base, how):
    png = bytes_column(digits.test_examples(1)[0][1])
    values = {"numbers": rows(2).x, "image": png, "floats": np.zeros((1, 2), np.float32)}
    whole = request_of(base, values[base], VERSION, id="x").SerializeToString()
    at = data.draw(st.integers(0, len(whole) - 1))
    some = data.draw(st.binary(min_size=1, max_size=4))
    damaged = {
        "flip": whole[:at] + some + whole[at + len(some) :],
        "cut": whole[:at],
        "insert": whole[:at] + some + whole[at:],
        "repeat": whole + whole[at:],
    }[how]
    try:
        call(server, damaged)
    except grpc.RpcError as error:
        code, details = error.code(), error.details()
    else:
        return
    assert code in REFUSALS
    assert "expected" in details


def test_a_bug_inside_leaves_an_error_id_and_no_internal_text(server, caplog):
    with caplog.at_level(logging.ERROR, logger="coe.protocol.status"):
        code, details = refused(server, request_of("broken", rows(1).x))
    assert code == grpc.StatusCode.INTERNAL
    assert SECRET not in details
    assert "RuntimeError" not in details
    error_id = re.fullmatch(r"internal error ([0-9a-f]{12}) \(the server's log has the details\)", details)[1]
    (record,) = [record for record in caplog.records if record.name == "coe.protocol.status"]
    assert error_id in record.getMessage()
    assert SECRET in str(record.exc_info[1])
    assert is_well(server)


def test_two_bugs_have_two_ids(server, caplog):
    with caplog.at_level(logging.CRITICAL, logger="coe.protocol.status"):
        details = {refused(server, request_of("broken", rows(1).x))[1] for _ in range(2)}
    assert len(details) == 2


def test_a_message_over_the_limit_never_reaches_the_servicer():
    with (
        serving(servicer(served("table", two_tiers(), 3)).handler(), max_message_bytes=4096) as address,
        grpc.insecure_channel(address) as channel,
    ):
        fake = SimpleNamespace(channel=channel)
        code, details = refused(fake, request_of("table", np.zeros((1024, 1), np.int64)))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in details
        assert is_well(fake)


def test_not_visited_tiers_are_told_as_nan_even_where_no_row_went_there(server):
    outputs = read_outputs(call(server, request_of("table", rows(1).x)))
    assert outputs["tier_votes"].shape == (1, 2)
    assert math.isnan(outputs["tier_votes"][0, 1])


def test_answers_of_different_width_are_each_laid_out_by_their_own():
    encoder, model = ResponseEncoder(), SimpleNamespace(name="m", version="v")
    for width in (2, 3, 2):  # a tier that turns out to be a cascade of two widens the next answers
        votes = np.ones((1, width), dtype=np.float32)
        content = encoder.fill(Answer(model, "", {"tier_votes": votes}, {"server_s": 0.5}))
        response = pb.ModelInferResponse.FromString(content)
        assert list(response.outputs[0].shape) == [1, width]
        assert response.raw_output_contents == [votes.tobytes()]
