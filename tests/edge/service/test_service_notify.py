"""What the service manager is told, over a real socket, by the parts and by a real agent."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from manager import Manager
from programs import closed_port, edge, edge_config, until

from edge.supervisor import SystemdNotifier, Watchdog


@pytest.fixture(params=[False, True], ids=["path", "abstract"])
def manager(request, tmp_path):
    with Manager(tmp_path, abstract=request.param) as listening:
        yield listening


def test_readiness_reload_and_stop_are_told_as_sd_notify_has_them(manager):
    notifier = SystemdNotifier.of({"NOTIFY_SOCKET": manager.address})
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready("12 examples")
    notifier.reloading()
    notifier.stopping()
    manager.until("STOPPING")
    assert manager.heard[0] == {"READY": "1", "STATUS": "12 examples"}
    assert manager.heard[1].keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert before_us <= int(manager.heard[1]["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_status_stays_one_line(manager):
    SystemdNotifier(manager.address).status("a\nREADY=1")
    manager.until("STATUS", "a READY=1")
    assert "READY" not in manager.heard[0]


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_without_a_socket_of_this_machine_nobody_is_told(address):
    notifier = SystemdNotifier.of({"NOTIFY_SOCKET": address})
    assert notifier.address == ""
    notifier.ready()


def test_a_manager_that_has_gone_away_is_no_matter_of_ours(tmp_path):
    SystemdNotifier(str(tmp_path / "gone")).ready()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_ours_only_where_the_manager_says_so(environment, seconds):
    assert SystemdNotifier.of({"NOTIFY_SOCKET": "/run/x", **environment}).watchdog_s == seconds


@pytest.mark.parametrize("manager", [False], indirect=True)
def test_the_pulse_stops_while_an_example_takes_too_long_and_goes_on_after_it(manager):
    busy: list[float | None] = [None]
    with Watchdog(SystemdNotifier(manager.address, watchdog_s=0.4), lambda: "fine", lambda: busy[0]):
        manager.until("WATCHDOG", more=3)
        busy[0] = time.monotonic() - 10
        manager.listen(0.3)  # what was on its way
        n_before = len(manager.said("WATCHDOG"))
        manager.listen(0.6)
        assert len(manager.said("WATCHDOG")) == n_before
        assert manager.said("STATUS")[-1].startswith("hangs: busy with one example for 1")
        busy[0] = None
        manager.until("WATCHDOG")


def test_a_pulse_with_no_watchdog_tells_the_status_alone(manager):
    with Watchdog(SystemdNotifier(manager.address), lambda: "fine", lambda: None):
        manager.until("STATUS", "fine")
    assert manager.said("WATCHDOG") == []


@pytest.mark.parametrize("manager", [True], indirect=True)
def test_a_real_agent_tells_ready_and_its_status_and_that_it_stops(manager, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    config = edge_config(tmp_path, closed_port(), source="{kind: stdin}")
    reading, writing = os.pipe()
    with edge(tmp_path, config, stdin=reading) as agent:
        manager.until("READY")
        manager.until("WATCHDOG", more=2)
        assert "0 examples" in manager.said("STATUS")[-1]
        agent.send(signal.SIGHUP)
        manager.until("RELOADING")
        manager.until("READY")
        agent.send(signal.SIGTERM)
        manager.until("STOPPING")
        assert agent.end() == 0
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("manager", [False], indirect=True)
def test_ready_is_not_told_by_an_agent_that_cannot_start(manager, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    config = edge_config(tmp_path, closed_port(), sink=str(tmp_path / "none" / "out.jsonl"))
    with edge(tmp_path, config, "--once") as agent:
        assert agent.end() == 1
    manager.listen(0.05)
    assert manager.heard == []


@pytest.mark.parametrize("manager", [False], indirect=True)
def test_a_state_folder_that_cannot_be_written_yet_is_waited_for(manager, tmp_path, monkeypatch):
    """As one on a disk that is not mounted yet: the agent says so once, stays, and starts once it can."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    (tmp_path / "photos").mkdir()
    (tmp_path / "disk").write_text("no folder")
    source = f"{{kind: folder, path: {tmp_path / 'photos'}, watch: true}}"
    config = edge_config(tmp_path, closed_port(), f"state: {tmp_path / 'disk' / 'state'}", source=source)
    with edge(tmp_path, config) as agent:
        until(lambda: "not started yet, tried again until it works: " in agent.complained)
        manager.until("READY")
        assert "not started yet" in manager.said("STATUS")[-1]
        (tmp_path / "disk").unlink()
        until(lambda: (tmp_path / "disk" / "state").is_dir(), lambda: agent.complained)
        manager.until("READY")
        agent.send(signal.SIGTERM)
        assert agent.end() == 0
        assert agent.complained.count("not started yet") == 1


@pytest.mark.parametrize("manager", [False], indirect=True)
def test_a_signal_ends_an_agent_that_waits_to_start(manager, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    (tmp_path / "photos").mkdir()
    (tmp_path / "disk").write_text("no folder")
    source = f"{{kind: folder, path: {tmp_path / 'photos'}, watch: true}}"
    config = edge_config(tmp_path, closed_port(), f"state: {tmp_path / 'disk' / 'state'}", source=source)
    with edge(tmp_path, config) as agent:
        manager.until("READY")
        agent.send(signal.SIGTERM)
        assert agent.end() == 0


@pytest.mark.slow
def test_a_member_that_hangs_ends_the_signs_of_life_and_is_not_waited_for(tmp_path, monkeypatch):
    """Its ONNX file loops as often as its input says: not at all on zeros, as it is tried, and for days on ones."""
    config = _hanging(tmp_path)
    with Manager(tmp_path) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        monkeypatch.setenv("WATCHDOG_USEC", "500000")
        with edge(
            tmp_path, config, stdin=b'{"id": "good", "tensor": [0, 0]}\n{"id": "bad", "tensor": [1, 1]}\n'
        ) as agent:
            manager.until("READY")
            until(lambda: agent.said.count("\n") == 1, lambda: agent.complained)
            manager.listen(0.5)
            n_before = len(manager.said("WATCHDOG"))
            manager.listen(0.8)
            assert len(manager.said("WATCHDOG")) == n_before  # systemd would end it now
            assert manager.said("STATUS")[-1].startswith("hangs: busy with one example")
            agent.send(signal.SIGTERM)
            assert agent.end() == 1
        assert "an example was still being decided on this device after 0.2 s" in agent.complained
        assert "Traceback" not in agent.complained


def _hanging(folder) -> object:
    from onnx import TensorProto, helper, numpy_helper, save

    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Add", ["sum", "tiny"], ["sum_out"]),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), value("sum", TensorProto.FLOAT, [1])],
        [value("goes_on", TensorProto.BOOL, []), value("sum_out", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.zeros(1, dtype=np.float32), "tiny")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
            helper.make_node("Mul", ["total", "many"], ["scaled"]),
            helper.make_node("Cast", ["scaled"], ["times"], to=TensorProto.INT64),
            helper.make_node("Loop", ["times", "", "zero"], ["nothing"], body=body),
            helper.make_node("Add", ["x", "nothing"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["y"], axis=1),
        ],
        "hanging",
        [value("x", TensorProto.FLOAT, ["batch", 2])],
        [value("y", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.array(1e15, dtype=np.float32), "many"),
            numpy_helper.from_array(np.zeros(1, dtype=np.float32), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, folder / "hanging.onnx")
    config = folder / "hanging.yaml"
    config.write_text(
        """
task: hanging
labels: [a, b]
input: {kind: tensor, shape: [2]}
tiers: [{name: device, members: [hanging.onnx]}]
source: {kind: stdin}
grace_s: 0.2
""",
        encoding="utf-8",
    )
    return config
