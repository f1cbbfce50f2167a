"""`coe-cloud` as a real process: starting, serving, draining, chains of servers, and the user's mistakes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from programs import Cloud, Program, closed_port, until

from cloud.config import default_config, read_config
from coe.cascade import Always, Batch, Cascade, Confidence, TierUnavailable
from coe.config.manifest import read_manifest
from coe.config.open import open_cascade
from coe.models.inputs import InputDecoder
from coe.protocol import inference_pb2 as pb
from coe.protocol.remote import RemoteTier
from coe.protocol.service import SERVICE, path
from coe.zoo import digits


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud")) as program:
        yield program


def a_batch(n: int) -> Batch:
    examples = digits.test_examples(n)
    decoder = InputDecoder(read_manifest(digits.MANIFEST).task.input_spec)
    return decoder.batch([name for name, _, _ in examples], [png for _, png, _ in examples])


@contextmanager
def remote(port: int, model: str = "digits", deadline_s: float = 20.0) -> Iterator[RemoteTier]:
    fingerprint = read_manifest(digits.MANIFEST).task.fingerprint
    address = f"127.0.0.1:{port}"
    tier = RemoteTier("cloud", address, model, Always(), n_labels=10, fingerprint=fingerprint, deadline_s=deadline_s)
    try:
        yield tier
    finally:
        tier.close()


def test_it_says_when_it_is_ready_and_what_it_serves(server):
    assert f"coe-cloud: ready on 127.0.0.1:{server.port}: digits, digits-medium, digits-best" in server.said
    assert "tier medium: pyramid.onnx on onnxruntime" in server.said
    assert server.complained == ""


def test_it_is_healthy_and_ready(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for name in ("", SERVICE, "digits"):
            told = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert told.status == health_pb2.HealthCheckResponse.SERVING
        ready = pb.ServerReadyResponse.FromString(channel.unary_unary(path("ServerReady"))(b"", timeout=10))
        assert ready.ready


@pytest.mark.parametrize("model", ["digits", "digits-medium", "digits-best"])
def test_it_decides_the_bundled_digits(server, model):
    with remote(server.port, model) as tier:
        vote = tier.vote(a_batch(200), Always())
    truth = [label for _, _, label in digits.test_examples(200)]
    assert (vote.labels == truth).mean() > 0.9
    assert vote.n_members == {"digits": 3, "digits-medium": 3, "digits-best": 1}[model]
    assert vote.call.server_s < 20


def test_many_rows_are_each_the_answer_to_that_row_alone(server):
    batch = a_batch(24)
    with remote(server.port, "digits-medium") as tier:
        whole = tier.vote(batch, Always())
        ones = [tier.vote(batch.take(np.array([row])), Always()) for row in range(24)]
    assert [int(one.labels[0]) for one in ones] == whole.labels.tolist()
    assert [int(one.count[0]) for one in ones] == whole.count.tolist()


def test_sigterm_drains_a_call_under_way_finishes_and_new_ones_are_refused(tmp_path):
    """Many large calls are under way as SIGTERM comes; each one ends with all its answers or was never taken."""
    batch = a_batch(200)
    outcomes: list[object] = []

    def keep_asking(tier: RemoteTier) -> None:
        while True:
            try:
                outcomes.append(len(tier.vote(batch, Always())))
            except TierUnavailable as error:
                outcomes.append(error)
                return

    with Cloud(tmp_path) as server, remote(server.port) as tier:
        askers = [threading.Thread(target=keep_asking, args=(tier,), daemon=True) for _ in range(2)]
        for asker in askers:
            asker.start()
        until(lambda: len(outcomes) >= 2)
        server.send(signal.SIGTERM)
        assert server.end() == 0
        for asker in askers:
            asker.join(20)
        assert not any(asker.is_alive() for asker in askers)
    assert "coe-cloud: draining, at most 10 s\ncoe-cloud: stopped\n" in server.said
    assert all("draining" in line for line in server.complained.splitlines())
    assert {outcome for outcome in outcomes if isinstance(outcome, int)} == {200}
    cut_off = [error for error in outcomes if isinstance(error, TierUnavailable) and "Socket closed" in str(error)]
    assert not cut_off


@pytest.mark.slow
def test_control_c_stops_it_as_sigterm_does(tmp_path):
    with Cloud(tmp_path) as server:
        server.send(signal.SIGINT)
        assert server.end() == 0
    assert server.said.endswith("coe-cloud: stopped\n")


def complaint(folder: Path, *arguments: object) -> tuple[int, list[str]]:
    with Program("cloud.main", arguments, folder) as program:
        code = program.end()
    return code, program.complained.splitlines()


def test_a_port_that_is_taken_is_one_line_and_exit_2(server, tmp_path):
    code, lines = complaint(tmp_path, "serve", "--grpc-port", server.port)
    assert code == 2
    ours = [line for line in lines if line.startswith("coe-cloud: ")]
    assert ours == [
        f"coe-cloud: expected a free port, got 127.0.0.1:{server.port} which cannot be bound (set --grpc-port)"
    ]
    assert "Traceback" not in "\n".join(lines)


@pytest.mark.parametrize("port", [99999, *(pytest.param(port, marks=pytest.mark.slow) for port in (-1, "many"))])
def test_a_port_that_cannot_be_is_the_users_error(tmp_path, port):
    code, lines = complaint(tmp_path, "serve", "--grpc-port", port)
    assert code == 2
    assert "Traceback" not in "\n".join(lines)


def test_every_mistake_in_a_config_is_told_at_once_without_a_traceback(tmp_path):
    config = tmp_path / "bad.yaml"
    config.write_text(
        """
task: zoo:digits
tires: []
tiers:
  - {name: medium, members: [zoo:digits/pyramid.onnx], agreement: unanimous}
  - {name: best, members: [zoo:digts/resnet.onnx]}
limits: {max_batch: 0}
""",
        encoding="utf-8",
    )
    code, lines = complaint(tmp_path, "serve", "--config", config, "--grpc-port", 0)
    assert code == 2
    assert all(line.startswith(f"coe-cloud: {config}: ") for line in lines)
    findings = "\n".join(lines)
    for part in ("tiers[0].agreement: one member", "tiers[1].members[0]", "limits.max_batch", "tires: unknown setting"):
        assert part in findings
    assert 'did you mean "tiers"?' in findings


@pytest.mark.parametrize(
    "content", ["tiers: [", *(pytest.param(text, marks=pytest.mark.slow) for text in ("- a\n", ""))]
)
def test_a_config_that_is_no_mapping_is_one_line(tmp_path, content):
    config = tmp_path / "bad.yaml"
    config.write_text(content, encoding="utf-8")
    code, lines = complaint(tmp_path, "serve", "--config", config)
    assert (code, len(lines)) == (2, 1)


def test_a_model_file_that_changed_is_one_line_and_exit_2(tmp_path):
    config = tmp_path / "cloud.yaml"
    (tmp_path / "best.onnx").write_bytes(b"not what it was")
    member = '{file: best.onnx, sha256: "' + "0" * 64 + '"}'
    config.write_text(f"task: zoo:digits\ntiers:\n  - members: [{member}]\n", encoding="utf-8")
    code, lines = complaint(tmp_path, "serve", "--config", config, "--grpc-port", 0)
    assert code == 2
    assert len(lines) == 1
    assert "expected sha256 0000000000000000.." in lines[0]


def test_models_lists_what_would_be_served_and_stops(tmp_path):
    with Program("cloud.main", ["models"], tmp_path) as program:
        assert program.end() == 0
    lines = program.said.splitlines()
    fingerprint = read_manifest(digits.MANIFEST).task.fingerprint
    assert lines[:2] == [
        f"task digits: 10 labels, fingerprint {fingerprint}",
        "model digits: the whole cascade, 2 tier(s)",
    ]
    for name in ("digits-medium", "digits-best", "pyramid.onnx", "resnet.onnx"):
        assert name in program.said


CHAIN = """
task: zoo:digits
model: digits
tiers:
  - {{name: medium, members: [zoo:digits/pyramid.onnx, zoo:digits/lattice.onnx, zoo:digits/ripple.onnx], {rule}}}
  - {{name: best, address: "127.0.0.1:{port}", model: digits-best, deadline_ms: 10000}}
"""


@pytest.mark.slow
def test_a_chain_of_two_servers_answers_as_one_cascade_and_the_first_alone_when_the_second_dies(server, tmp_path):
    batch = a_batch(16)
    ones = [batch.take(np.array([row])) for row in range(16)]
    at_home = open_cascade(read_config(default_config()).cascade)
    medium, best = at_home.tiers
    scores = sorted(medium.vote(one, Confidence(1.0)).score[0] for one in ones)
    threshold = (float(scores[7]) + float(scores[8])) / 2  # about half of the examples go all the way
    medium.rule = Confidence(threshold)
    wanted = [Cascade([medium, best]).decide(one)[0] for one in ones]
    at_home.close()
    assert {decision.exit_tier for decision in wanted} == {1, 2}
    rule = f"confidence: {threshold!r}"

    first = tmp_path / "first.yaml"
    with Cloud(tmp_path) as second:
        first.write_text(CHAIN.format(rule=rule, port=second.port), encoding="utf-8")
        with Cloud(tmp_path, first) as program, remote(program.port) as tier:
            votes = [tier.vote(one, Always()) for one in ones]
            assert [int(vote.labels[0]) for vote in votes] == [decision.label for decision in wanted]
            assert [int(vote.exit_tier[0]) for vote in votes] == [decision.exit_tier for decision in wanted]
            assert not any(vote.degraded for vote in votes)
            assert tier.n_tiers == 2

            second.process.kill()
            second.end()
            votes = [tier.vote(one, Always()) for one in ones]
            for vote, decision in zip(votes, wanted, strict=True):
                assert vote.exit_tier.tolist() == [1]
                if decision.exit_tier == 1:
                    assert (int(vote.labels[0]), vote.degraded) == (decision.label, None)
                else:
                    assert vote.degraded[0].startswith("unavailable: tier best: UNAVAILABLE")
            program.send(signal.SIGTERM)
            assert program.end() == 0


def test_a_chain_whose_second_server_is_not_there_starts_all_the_same(tmp_path):
    config = tmp_path / "chain.yaml"
    config.write_text(CHAIN.format(rule="confidence: 1.0", port=closed_port()), encoding="utf-8")
    with Cloud(tmp_path, config) as program, remote(program.port) as tier:
        vote = tier.vote(a_batch(5), Always())
    assert len(vote) == 5
    assert all(reason.startswith("unavailable: ") for reason in vote.degraded)
