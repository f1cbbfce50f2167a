"""Tiers on a Ray cluster: the contract of every engine, two nodes, replicas that are killed, a user's mistakes."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from contract import EngineContract, ask, callers, request_of, wrong
from ray_process import RayCloud, RayCluster, RayProgram, parent_of, replicas_of
from table_models import CONFIG, write_config

from cloud.engines.ray import ALL_INTERFACES
from coe.protocol.channel import reachable
from coe.protocol.codec import read_outputs

from programs import Program, closed_port, until  # isort: skip - `contract` says where it is

TWICE = CONFIG + "engine: {tiers: {medium: {replicas: 2, num_cpus: 0.5}}, ingress: {replicas: 2}}\n"
SPREAD = CONFIG + "engine: {tiers: {medium: {num_cpus: 1}, best: {num_cpus: 1}}}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RayCloud]:
    folder = tmp_path_factory.mktemp("ray")
    with RayCloud(folder, write_config(folder)) as program:
        yield program


@pytest.mark.slow
class TestRay(EngineContract):
    """As the contract has it."""

    def test_it_says_what_runs_where_and_that_the_port_is_open_to_all(self, server):
        assert f"ready on {reachable(ALL_INTERFACES)}:" in server.said
        assert "numbers, numbers-medium, numbers-best" in server.said
        assert "tier medium: a.onnx on onnxruntime" in server.said
        assert "tier best: 1 replica(s), each with num_cpus 1, num_gpus 0" in server.said


@pytest.mark.slow
def test_replicas_that_are_killed_lose_no_request(tmp_path):
    with RayCloud(tmp_path, write_config(tmp_path, TWICE)) as program:
        over = threading.Event()
        threads, came = callers(program.port, over)
        try:
            for deployment, n_replicas in (("medium", 2), ("best", 1), ("ingress", 2)):
                until(lambda name=deployment, n=n_replicas: len(program.replicas(name)) == n, within_s=120)
                wanted = len(came) + 3 * len(threads)
                os.kill(program.replicas(deployment)[0], signal.SIGKILL)
                until(lambda n=wanted: len(came) >= n, within_s=120)
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
        assert wrong(came) == []


@pytest.mark.slow
def test_on_sigterm_calls_under_way_are_answered_and_later_ones_told_to_go_elsewhere(tmp_path):
    with RayCloud(tmp_path, write_config(tmp_path)) as program:
        over = threading.Event()
        threads, came = callers(program.port, over)
        try:
            time.sleep(1)
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(60) == 0
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
        assert program.said.endswith("coe-cloud: draining, at most 10 s\ncoe-cloud: stopped\n")
        assert program.complained == ""
        assert any(isinstance(one, tuple) for one in came)
        assert [one for one in wrong(came) if not str(one).startswith("UNAVAILABLE")] == []


@pytest.mark.slow
def test_a_cluster_of_two_nodes_serves_it_and_goes_on_without_it(tmp_path):
    with RayCluster(tmp_path, 1, 1) as cluster:
        with RayCloud(tmp_path, write_config(tmp_path, SPREAD), "--address", cluster.address) as program:
            over = threading.Event()
            threads, came = callers(program.port, over)
            nodes = {parent_of(pid) for name in ("medium", "best") for pid in replicas_of(cluster.process.pid, name)}
            time.sleep(2)
            over.set()
            for thread in threads:
                thread.join(60)
            assert len(nodes) == 2, "both tiers are on one node"
            assert wrong(came) == []
            assert {row for row, _ in came} == {0, 1, 2, 3}
            program.process.send_signal(signal.SIGINT)
            assert program.process.wait(60) == 0
        assert cluster.process.poll() is None
        assert not replicas_of(cluster.process.pid, "medium")
        assert not replicas_of(cluster.process.pid, "ingress")


@pytest.mark.slow
def test_where_the_next_server_is_gone_the_tier_on_the_cluster_asks_its_other_members(tmp_path):
    gone = CONFIG.replace("members: [d.onnx]", f'address: "127.0.0.1:{closed_port()}"').replace("2/3", "unanimous")
    with RayCloud(tmp_path, write_config(tmp_path, gone)) as program:
        request = request_of(np.array([[2.0]], np.float32))  # its first two members disagree, which settles it
        columns = read_outputs(ask(program, "ModelInfer", request))
    assert columns["label"].tolist() == [1]
    assert columns["members"].tolist() == [[3, 3]]
    assert columns["vote"].tolist() == pytest.approx([2 / 3])
    assert b"unavailable: tier best" in columns["degraded"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--address", "127.0.0.1:9"], "--address: expected a Ray cluster, got 127.0.0.1:9"),
        ([], "d.onnx"),
    ],
)
def test_a_mistake_of_the_users_is_a_line_and_exit_code_2(tmp_path, arguments, words):
    config = write_config(tmp_path)
    if not arguments:
        (tmp_path / "d.onnx").write_bytes(b"no model")
    serve = ["serve", "--engine", "ray", "--insecure", "--grpc-port", "0", "--config", config, *arguments]
    with RayProgram(tmp_path, "-m", "cloud.main", *serve) as program:
        assert program.process.wait(120) == 2
        told = program.complained.splitlines()
    assert len(told) == 1, told
    assert words in told[0]


def test_without_ray_it_says_what_to_install(tmp_path):
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("Ray is installed here")
    with Program("cloud.main", ["serve", "--engine", "ray", "--insecure", "--grpc-port", 0], tmp_path) as program:
        assert program.end() == 2
        told = "coe-cloud: the Ray Serve runtime is not installed: pip install 'coe-cascade[ray]'\n"
        assert program.complained == told


def test_an_address_is_for_ray_alone(tmp_path):
    with Program("cloud.main", ["serve", "--address", "auto", "--grpc-port", 0], tmp_path) as program:
        assert program.end() == 2
        assert program.complained.startswith("coe-cloud: --address: expected with --engine ray alone")
