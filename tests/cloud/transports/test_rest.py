"""The REST server: what a plain HTTP client asks of it, and that both servers say the same of the same core."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from loopback import VERSION, request_of, serving
from rest_loopback import Client, binary_message, open_rest, rows_message, table_core

from coe import __version__
from coe.cascade import InputError, TierOverloaded, TierRejected, TierTimeout, TierUnavailable
from coe.cascade.errors import ConfigError, NotAllowed
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import read_outputs
from coe.protocol.core import OUTPUTS, InferenceCore, Request
from coe.protocol.service import path
from coe.protocol.servicer import InferenceServicer
from coe.protocol.status import UnknownModel

USUAL = ["label", "vote", "score", "exit_tier", "members", "tier_votes"]


class Models:
    """A repository of what the core serves, and of one that does not load."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []

    def index(self) -> list[Any]:
        ready = SimpleNamespace(name="table", version=VERSION, state="READY", reason="")
        return [ready, SimpleNamespace(name="gone", version="1", state="UNAVAILABLE", reason="unloaded on request")]

    async def load(self, name: str) -> None:
        if name == "bad":
            raise ConfigError(["bad: its checksum is another"])
        self.done.append(("load", name))

    async def unload(self, name: str) -> None:
        self.done.append(("unload", name))


@pytest.fixture(scope="module")
def core() -> InferenceCore:
    return table_core(100)


@pytest.fixture(scope="module")
def repository() -> Models:
    return Models()


@pytest.fixture(scope="module")
def server(core: InferenceCore, repository: Models) -> Iterator[Client]:
    with open_rest(core, repository=repository) as client:
        yield client


@pytest.fixture(scope="module")
def grpc_answer(core: InferenceCore) -> Iterator[Any]:
    """The gRPC server's outputs, on the same core."""
    with serving(InferenceServicer(core).handler()) as address, grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(path("ModelInfer"), response_deserializer=pb.ModelInferResponse.FromString)

        def ask(rows: list[int], *outputs: str) -> dict[str, np.ndarray]:
            request = request_of("table", np.array(rows)[:, None])
            for name in outputs:
                request.outputs.add(name=name)
            return read_outputs(call(request.SerializeToString(), timeout=10))

        yield ask


def test_a_question_in_json_is_answered_in_json(server: Client):
    reply = server.infer(rows_message(0, 1, id="q-7"))
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    answer = reply.json
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("q-7", "table", VERSION)
    assert [output["name"] for output in answer["outputs"]] == USUAL
    by_name = {output["name"]: output for output in answer["outputs"]}
    assert by_name["label"] == {"name": "label", "datatype": "INT32", "shape": [2], "data": [0, 1]}
    assert by_name["exit_tier"]["data"] == [1, 2]
    assert by_name["members"] == {"name": "members", "datatype": "INT32", "shape": [2, 2], "data": [2, 2, 1, 1]}


def test_the_seconds_it_took_are_parameters(server: Client):
    parameters = server.infer(rows_message(1)).json["parameters"]
    assert {"server_s", "queue_s", "tier_1_s", "tier_2_s"} <= parameters.keys()
    assert all(math.isfinite(value) and value >= 0 for value in parameters.values())


def test_a_tier_that_was_not_visited_is_null(server: Client):
    answer = server.infer(rows_message(0, outputs=[{"name": "tier_votes"}])).json
    assert answer["outputs"][0]["data"] == [1.0, None]


@pytest.mark.parametrize("rows", [[0], [1], [3, 2, 1], list(range(100))], ids=len)
def test_both_transports_give_the_same_outputs_to_the_last_bit(server: Client, grpc_answer: Any, rows: list[int]):
    names = list(OUTPUTS)
    expected = grpc_answer(rows, *names)
    wanted = [{"name": name} for name in names]
    in_json = server.infer(rows_message(*rows, outputs=wanted)).outputs()
    message, tail = binary_message(np.array(rows)[:, None], outputs=wanted, parameters={"binary_data_output": True})
    in_binary = server.infer(message, tail).outputs()
    assert list(expected) == list(in_json) == list(in_binary) == names
    for name in names:
        if expected[name].dtype.hasobject:
            assert [text.decode() for text in expected[name]] == in_json[name].tolist()
            assert expected[name].tolist() == in_binary[name].tolist()
        else:
            assert expected[name].tobytes() == in_binary[name].tobytes()
            assert expected[name].dtype == in_json[name].dtype
            np.testing.assert_array_equal(expected[name], in_json[name], strict=True)


def test_only_the_outputs_asked_for_come(server: Client):
    answer = server.infer(rows_message(2, outputs=[{"name": "label_name"}, {"name": "label"}])).json
    assert [(output["name"], output["data"]) for output in answer["outputs"]] == [
        ("label_name", ["label 2"]),
        ("label", [2]),
    ]


def test_nested_data_is_the_same_as_flat(server: Client):
    tensor = {"name": "input", "datatype": "INT64", "shape": [2, 1], "data": [[0], [1]]}
    assert server.infer({"inputs": [tensor]}).outputs()["label"].tolist() == [0, 1]


def test_without_an_id_none_comes_back(server: Client):
    assert "id" not in server.infer(rows_message(0)).json


def test_a_version_in_the_path_has_to_be_the_servers(server: Client):
    url = "/v2/models/table/versions/{}/infer"
    assert server.post(url.format(VERSION), rows_message(0)).status == 200
    reply = server.post(url.format("another"), rows_message(0))
    assert reply.status == 404
    assert VERSION in reply.error


def test_one_connection_serves_many_calls(server: Client):
    connection = server.connect()
    try:
        for _ in range(3):
            connection.request("GET", "/v2/health/live")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b'{"live":true}')
            assert connection.sock is not None, "the server has closed it"
    finally:
        connection.close()


def test_the_server_and_its_models_are_described(server: Client):
    described = server.get("/v2").json
    extensions = ["model_repository", "binary_tensor_data"]
    assert described == {"name": "coe-cloud", "version": __version__, "extensions": extensions}
    model = server.get("/v2/models/table").json
    assert (model["name"], model["versions"], model["platform"]) == ("table", [VERSION], "coe")
    assert model["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1]}]
    assert {"name": "tier_votes", "datatype": "FP32", "shape": [-1, 2]} in model["outputs"]
    assert server.get(f"/v2/models/table/versions/{VERSION}").json == model


def test_ready_says_whether_it_takes_questions(server: Client, core: InferenceCore):
    paths = ["/v2/health/ready", "/v2/models/table/ready", f"/v2/models/table/versions/{VERSION}/ready"]
    assert [server.get(path).status for path in paths] == [200, 200, 200]
    core.accepts = False
    try:
        assert [server.get(path).status for path in paths] == [503, 503, 503]
        assert server.get("/v2/health/ready").json == {"ready": False}
        assert server.get("/v2/health/live").json == {"live": True}
        assert server.infer(rows_message(0)).status == 503
    finally:
        core.accepts = True
    assert server.get("/v2/models/none/ready").status == 404


def test_the_repository_is_listed_loaded_and_unloaded(server: Client, repository: Models):
    everything = server.ask("POST", "/v2/repository/index").json
    assert [(model["name"], model["state"]) for model in everything] == [("table", "READY"), ("gone", "UNAVAILABLE")]
    assert [model["name"] for model in server.post("/v2/repository/index", {"ready": True}).json] == ["table"]
    assert server.ask("POST", "/v2/repository/models/table/load").status == 200
    assert server.post("/v2/repository/models/table/unload", {"parameters": {"unload_dependents": False}}).status == 200
    assert repository.done == [("load", "table"), ("unload", "table")]
    refused = server.ask("POST", "/v2/repository/models/bad/load")
    assert (refused.status, "checksum" in refused.error) == (409, True)


def test_without_a_repository_the_extension_is_not_offered(core: InferenceCore):
    with open_rest(core) as client:
        assert client.get("/v2").json["extensions"] == ["binary_tensor_data"]
        reply = client.ask("POST", "/v2/repository/index")
        assert (reply.status, "not offered" in reply.error) == (501, True)


class Refusing:
    """A gate that lets nobody in."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def enter(self, request: Request) -> None:
        raise self.error

    def leave(self, request: Request) -> None: ...


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (InputError("no image"), 400, {}),
        (NotAllowed("not you"), 403, {}),
        (UnknownModel("none"), 404, {}),
        (TierRejected("next", "no"), 409, {}),
        (TierOverloaded("best", "full"), 429, {"retry-after": "1"}),
        (TierOverloaded("best", "full", retry_after_s=0.05), 429, {"retry-after": "1"}),
        (TierOverloaded("best", "full", retry_after_s=2.1), 429, {"retry-after": "3"}),
        (TierUnavailable("best", "gone"), 503, {}),
        (TierTimeout("best", "late"), 504, {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_has_its_status(error: Exception, status: int, headers: dict[str, str]):
    with open_rest(table_core(gates=[Refusing(error)])) as client:
        reply = client.infer(rows_message(0))
    assert (reply.status, reply.error) == (status, str(error))
    assert headers.items() <= reply.headers.items()
    assert "retry-after" in headers or "retry-after" not in reply.headers


def test_a_bug_tells_its_number_alone(caplog: pytest.LogCaptureFixture):
    with open_rest(table_core(gates=[Refusing(RuntimeError("secrets/private.onnx"))])) as client:
        reply = client.infer(rows_message(0))
    assert reply.status == 500
    assert "secrets" not in reply.body.decode()
    assert "internal error" in reply.error
    assert reply.error.split()[2] in caplog.text


def test_paths_and_methods_there_are_none_of_are_refused_in_json(server: Client):
    assert (server.get("/v3").status, server.get("/v3").error) == (404, "no such path")
    assert server.get("/v2/models/table/config").status == 404
    assert server.get("/v2/health/live/").status == 404  # a redirect would go where the Host header says
    reply = server.get("/v2/models/table/infer")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert "method" in reply.error


def slow_core(seconds: float, cancelled: list[bool]) -> InferenceCore:
    """A model that takes its time, and notes when it is told to stop."""

    async def decide(batch: Any) -> Any:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        raise TierUnavailable("slow", "it had no answer after all")

    model = table_core().models["table"]
    core = InferenceCore({"table": replace(model, decide=decide)})
    core.accepts = True
    return core


@pytest.mark.parametrize(
    ("message", "headers"),
    [
        ({"parameters": {"timeout": 100_000}}, {}),
        ({}, {"Request-Timeout": "0.1"}),
        ({"parameters": {"timeout": 60_000_000}}, {"Request-Timeout": "0.1"}),
        ({"parameters": {"timeout": 100_000}}, {"Request-Timeout": "60"}),
    ],
    ids=["parameter", "header", "shorter header", "shorter parameter"],
)
def test_a_request_ends_with_its_time(message: dict[str, Any], headers: dict[str, str]):
    cancelled: list[bool] = []
    with open_rest(slow_core(30, cancelled)) as client:
        reply = client.infer(rows_message(0, **message), **headers)
    assert (reply.status, "time is over" in reply.error) == (504, True)
    assert cancelled == [True]


def test_the_core_is_told_how_much_time_is_left():
    seen: list[Request] = []

    class Notes:
        def enter(self, request: Request) -> None:
            seen.append(request)

        def leave(self, request: Request) -> None: ...

    with open_rest(table_core(gates=[Notes()])) as client:
        client.infer(rows_message(0, parameters={"timeout": 5_000_000}))
        client.infer(rows_message(0, parameters={"timeout": 0}))
        client.infer(rows_message(0), **{"Request-Timeout": "2.5"})
    assert seen[0].remaining_s == pytest.approx(5, abs=1)
    assert seen[1].remaining_s is None
    assert seen[2].remaining_s == pytest.approx(2.5, abs=1)
    assert 0 < seen[0].n_bytes < 200


@pytest.mark.parametrize("timeout", [-1, 1.5, "10", True, [[]]])
def test_a_timeout_that_is_none_is_refused(server: Client, timeout: Any):
    reply = server.infer(rows_message(0, parameters={"timeout": timeout}))
    assert (reply.status, "timeout" in reply.error) == (400, True)


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "nan", "inf", "1e999"])
def test_a_timeout_header_that_is_none_is_refused(server: Client, timeout: str):
    reply = server.infer(rows_message(0), **{"Request-Timeout": timeout})
    assert (reply.status, "request-timeout" in reply.error) == (400, True)
