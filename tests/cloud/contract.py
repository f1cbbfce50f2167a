"""What a server promises its callers, whatever engine runs its tiers.

A class of tests for each engine takes these over, and has a fixture `server`: a program that serves
`table_models.CONFIG`, with its `port`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from strategies import rows, table_tier
from table_models import BEST, MEDIUM, NOT_A_NUMBER

from coe import __version__
from coe.cascade import Agreement, Always, Batch, Cascade, TierRejected, TierUnavailable
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_input, read_outputs
from coe.protocol.remote import RemoteTier
from coe.protocol.service import METHODS, SERVICE, path

BOUND_S = 90.0


def at_home() -> Cascade:
    medium = table_tier(MEDIUM, Agreement(Fraction(2, 3)), "medium")
    return Cascade([medium, table_tier(BEST, Always(), "best")])


def numbers(*values: int) -> Batch:
    """Rows of the tables, as the models take them."""
    return Batch(tuple(map(str, values)), np.array(values, np.float32)[:, None])


@contextmanager
def remote(server: Any, model: str = "numbers", **options: Any) -> Iterator[RemoteTier]:
    fields = {"n_labels": 3, "deadline_s": BOUND_S} | options
    tier = RemoteTier("cloud", f"127.0.0.1:{server.port}", model, Always(), **fields)
    try:
        yield tier
    finally:
        tier.close()


def ask(server: Any, method: str, request: Any = None, **options: Any) -> Any:
    """One call, with nothing of our own client in between."""
    request_type, response_type = METHODS[method]
    data = request if isinstance(request, bytes) else (request or request_type()).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        return response_type.FromString(channel.unary_unary(path(method))(data, timeout=BOUND_S, **options))


def request_of(values: Any, **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(**{"model_name": "numbers"} | fields)
    add_input(request, "input", np.asarray(values))
    return request


def refusal(server: Any, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, method, request)
    return caught.value.code(), caught.value.details()


class EngineContract:
    """Every test is run for each engine."""

    def test_the_whole_cascade_answers_as_the_same_cascade_at_home(self, server):
        wanted = at_home().decide(rows(4))
        with remote(server) as tier:
            vote = tier.vote(numbers(0, 1, 2, 3), Always())
            assert tier.n_tiers == 2
        assert vote.labels.tolist() == wanted.labels.tolist() == [0, 1, 1, 2]
        assert vote.exit_tier.tolist() == wanted.exit_tier.tolist() == [1, 1, 1, 2]
        np.testing.assert_array_equal(vote.tier_votes, wanted.tier_votes)
        assert vote.asked.tolist() == wanted.asked.tolist()
        np.testing.assert_allclose(vote.score, wanted.score)

    def test_a_tier_served_alone_asks_all_its_members_for_the_vote_is_what_is_wanted(self, server):
        with remote(server, "numbers-medium") as tier:
            whole = tier.vote(numbers(0, 1, 2, 3), Always())
            ones = [tier.vote(numbers(row), Always()) for row in range(4)]
        assert whole.asked.tolist() == [3, 3, 3, 3]
        assert whole.count.tolist() == [3, 2, 2, 1]
        assert [vote.count.tolist() for vote in ones] == [[3], [2], [2], [1]]

    def test_a_cascade_split_over_two_of_its_models_answers_as_one(self, server):
        with remote(server, "numbers-medium") as medium, remote(server, "numbers-best") as best:
            medium.rule = Agreement(Fraction(2, 3))
            split = Cascade([medium, best]).decide(numbers(0, 1, 2, 3))
        wanted = at_home().decide(rows(4))
        assert split.labels.tolist() == wanted.labels.tolist()
        assert split.exit_tier.tolist() == wanted.exit_tier.tolist()

    def test_many_callers_at_once_each_get_their_own(self, server):
        wanted = at_home().decide(rows(4)).labels.tolist()
        wrong: list[object] = []

        def caller(first: int, tier: RemoteTier) -> None:
            for turn in range(4):
                asked = [(first + turn + step) % 4 for step in range(1 + (first + turn) % 3)]
                try:
                    labels = tier.vote(numbers(*asked), Always()).labels.tolist()
                    if labels != [wanted[row] for row in asked]:
                        wrong.append((asked, labels))
                except Exception as error:  # noqa: BLE001 - told to the test
                    wrong.append(error)

        with remote(server) as tier:
            threads = [threading.Thread(target=caller, args=(number, tier)) for number in range(24)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(BOUND_S * 2)
        assert not wrong

    def test_a_row_that_cannot_be_answered_is_its_own_callers(self, server):
        outcomes: dict[int, object] = {}

        def caller(number: int, tier: RemoteTier) -> None:
            row = NOT_A_NUMBER if number % 4 == 0 else number % 4
            try:
                outcomes[number] = tier.vote(numbers(row), Always()).labels.tolist()
            except TierUnavailable as error:  # its own models failed, which is no fault of the caller
                outcomes[number] = str(error)

        with remote(server) as tier:
            threads = [threading.Thread(target=caller, args=(number, tier)) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(BOUND_S)
        for number, outcome in outcomes.items():
            if number % 4 == 0:
                assert "INTERNAL: " in str(outcome)
            else:
                assert outcome == [[0, 1, 1, 2][number % 4]]
        assert len(outcomes) == 16

    def test_a_hundred_rows_in_one_request_are_a_hundred_answers_in_order(self, server):
        asked = [row % 4 for row in range(100)]
        with remote(server) as tier:
            labels = tier.vote(numbers(*asked), Always()).labels.tolist()
        assert labels == [[0, 1, 1, 2][row] for row in asked]

    def test_a_request_id_comes_back_and_so_do_the_outputs_asked_for_by_name(self, server):
        request = request_of(np.array([[3.0]], np.float32), id="pi-7/42")
        answer = ask(server, "ModelInfer", request)
        assert answer.id == "pi-7/42"
        assert answer.model_name == "numbers"
        usual = ["label", "vote", "score", "exit_tier", "members", "tier_votes"]
        assert [output.name for output in answer.outputs] == usual
        assert answer.parameters["server_s"].double_param > 0
        for name in ("label_name", "exit_tier"):
            request.outputs.add(name=name)
        columns = read_outputs(ask(server, "ModelInfer", request))
        assert {name: column.tolist() for name, column in columns.items()} == {
            "label_name": [b"two"],
            "exit_tier": [2],
        }

    def test_it_is_live_and_ready_and_so_are_its_models_but_no_other(self, server):
        assert ask(server, "ServerLive").live
        assert ask(server, "ServerReady").ready
        for name in ("numbers", "numbers-medium", "numbers-best"):
            assert ask(server, "ModelReady", pb.ModelReadyRequest(name=name)).ready
        assert not ask(server, "ModelReady", pb.ModelReadyRequest(name="nobody")).ready
        assert not ask(server, "ModelReady", pb.ModelReadyRequest(name="numbers", version="other")).ready

    def test_its_health_is_serving_for_the_server_and_each_model(self, server):
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            for name in ("", SERVICE, "numbers", "numbers-medium", "numbers-best"):
                told = check(health_pb2.HealthCheckRequest(service=name), timeout=BOUND_S)
                assert told.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError) as caught:
                check(health_pb2.HealthCheckRequest(service="nobody"), timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    def test_it_says_what_it_is_and_what_its_models_take_and_give(self, server):
        told = ask(server, "ServerMetadata")
        assert (told.name, told.version) == ("coe-cloud", __version__)
        assert "binary_tensor_data" in told.extensions
        model = ask(server, "ModelMetadata", pb.ModelMetadataRequest(name="numbers"))
        assert (model.name, model.platform, len(model.versions)) == ("numbers", "coe", 1)
        assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs] == [("input", "FP32", [-1, 1])]
        shapes = {one.name: (one.datatype, list(one.shape)) for one in model.outputs}
        assert shapes["label"] == ("INT32", [-1])
        assert shapes["tier_votes"] == ("FP32", [-1, 2])
        alone = ask(server, "ModelMetadata", pb.ModelMetadataRequest(name="numbers-best"))
        assert {one.name: list(one.shape) for one in alone.outputs}["tier_votes"] == [-1, 1]
        assert alone.versions == model.versions

    @pytest.mark.parametrize(
        ("request_", "code", "text"),
        [
            (pb.ModelInferRequest(model_name="nobody"), "NOT_FOUND", "expected one of numbers, numbers-medium"),
            (request_of(np.zeros((1, 1), np.float32), model_version="other"), "NOT_FOUND", "expected version"),
            (pb.ModelInferRequest(model_name="numbers"), "INVALID_ARGUMENT", "expected one tensor, got 0"),
            (request_of(np.zeros((0, 1), np.float32)), "INVALID_ARGUMENT", "at least one row"),
            (request_of(np.zeros((1, 2), np.float32)), "INVALID_ARGUMENT", "expected"),
            (b"\xff\xff", "INVALID_ARGUMENT", "expected ModelInferRequest, got bytes that are none"),
        ],
    )
    def test_what_it_cannot_answer_it_refuses_with_a_status_and_a_reason(self, server, request_, code, text):
        got, details = refusal(server, "ModelInfer", request_)
        assert (got.name, text in details) == (code, True), details

    def test_an_output_nobody_knows_is_refused(self, server):
        request = request_of(np.zeros((1, 1), np.float32))
        request.outputs.add(name="wisdom")
        code, details = refusal(server, "ModelInfer", request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "expected one of label, vote" in details

    def test_metadata_of_a_model_nobody_knows_is_refused(self, server):
        code, details = refusal(server, "ModelMetadata", pb.ModelMetadataRequest(name="nobody"))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "got 'nobody'" in details

    def test_limits_of_rows_and_of_the_message_are_the_configs(self, server):
        with remote(server) as tier:
            with pytest.raises(TierRejected, match="at most 200 rows"):
                tier.vote(numbers(*[0] * 201), Always())
            with pytest.raises(TierRejected, match="larger than max"):
                tier.vote(numbers(*[0] * 20_000), Always())
            assert tier.vote(numbers(*[1] * 200), Always()).labels.tolist() == [1] * 200

    def test_a_method_that_is_not_there_is_unimplemented(self, server):
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path("ModelDream"))(b"", timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def callers(port: int, until: threading.Event, n: int = 8) -> tuple[list[threading.Thread], list[object]]:
    """Callers in a closed loop, until the event; and what came of their calls: row and labels, or an error's code."""
    came: list[object] = []

    def caller(number: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_retries", 0)]) as channel:
            infer = channel.unary_unary(path("ModelInfer"))
            turn = number
            while not until.is_set():
                turn += 1
                data = request_of(np.array([[turn % 4]], np.float32)).SerializeToString()
                try:
                    answer = infer(data, timeout=BOUND_S * 2)
                except grpc.RpcError as error:
                    came.append(f"{error.code().name}: {error.details()}")
                else:
                    label = int(read_outputs(pb.ModelInferResponse.FromString(answer))["label"][0])
                    came.append((turn % 4, label))

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    return threads, came


def wrong(came: list[object]) -> list[object]:
    """The calls that were not answered rightly."""
    return [one for one in came if not isinstance(one, tuple) or one[1] != [0, 1, 1, 2][one[0]]]
