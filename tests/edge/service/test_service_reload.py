"""Real agents that are told to read their settings again, and to stop, in the middle of their work."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import BOUND_S, Cloud, Program, closed_port, edge, edge_config, until

from coe.zoo import digits

NEARLY_ALL = "confidence: 1.0"  # about every example would go to the cloud
NONE_AT_ALL = "confidence: 0.0"  # no example would
EXAMPLES = digits.test_examples(40)


class Pipe:
    """Lines to an agent's standard input, which stays open."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()

    def put(self, name: str, number: int = 0) -> None:
        png = base64.b64encode(EXAMPLES[number % len(EXAMPLES)][1]).decode()
        os.write(self._writing, (json.dumps({"id": name, "image": png}) + "\n").encode())

    def __enter__(self) -> Pipe:
        return self

    def end(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def __exit__(self, *_: object) -> None:
        self.end()
        os.close(self.reading)


@contextmanager
def silent_server() -> Iterator[int]:
    """A port where connections are taken and nothing is ever answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


def config_with(folder: Path, rule: str, *more: str, port: int = 0, deadline_ms: int = 5000) -> Path:
    return edge_config(folder, port or closed_port(), *more, source="{kind: stdin}", rule=rule, deadline_ms=deadline_ms)


def reloaded(agent: Program, times: int = 1) -> None:
    until(lambda: agent.complained.count("edge.yaml: reloaded") >= times, lambda: agent.complained)


def decided(agent: Program, n: int) -> list[dict]:
    until(lambda: len(agent.records) >= n, lambda: (agent.said, agent.complained))
    return agent.records


def test_new_settings_are_used_from_the_next_example_on_and_the_tally_goes_on(tmp_path):
    config = config_with(tmp_path, NEARLY_ALL)
    with Pipe() as pipe, edge(tmp_path, config, "--verbose", stdin=pipe.reading) as agent:
        pipe.put("before")
        assert decided(agent, 1)[0]["degraded"]
        config_with(tmp_path, NONE_AT_ALL)
        agent.send(signal.SIGHUP)
        reloaded(agent)
        pipe.put("after")
        assert decided(agent, 2)[1]["degraded"] is None
        pipe.end()
        assert agent.end() == 0
    assert "2 examples, 2 decided" in agent.complained
    assert "1 degraded" in agent.complained


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("agrement: 2/3", 'tiers[0].agrement: unknown setting (did you mean "agreement"?)'),
        pytest.param("early: [", "not YAML", marks=pytest.mark.slow),
        pytest.param("threads: 0\n    early: 7", "tiers[0].early: expected true or false", marks=pytest.mark.slow),
    ],
)
def test_wrong_settings_are_told_in_one_line_and_the_old_ones_go_on(tmp_path, text, told):
    config = config_with(tmp_path, NONE_AT_ALL)
    with Pipe() as pipe, edge(tmp_path, config, stdin=pipe.reading) as agent:
        pipe.put("before")
        decided(agent, 1)
        config_with(tmp_path, text)
        agent.send(signal.SIGHUP)
        until(lambda: "not reloaded" in agent.complained)
        pipe.put("after")
        assert decided(agent, 2)[1]["degraded"] is None
        pipe.end()
        assert agent.end() == 0
    lines = [line for line in agent.complained.splitlines() if "warning" not in line]
    assert len(lines) == 1
    assert told in lines[0]
    assert "the settings before stay" in lines[0]


def test_settings_that_cannot_be_opened_bring_the_old_ones_back(tmp_path):
    config = config_with(tmp_path, NONE_AT_ALL)
    with Pipe() as pipe, edge(tmp_path, config, stdin=pipe.reading) as agent:
        pipe.put("before")
        decided(agent, 1)
        good = config.read_text(encoding="utf-8")
        config.write_text(good.replace('path: "-"', "path: none/such/out.jsonl"), encoding="utf-8")
        agent.send(signal.SIGHUP)
        until(lambda: "not reloaded" in agent.complained)
        config.write_text(good.replace("stroke.onnx", "no-such.onnx"), encoding="utf-8")
        agent.send(signal.SIGHUP)
        until(lambda: agent.complained.count("not reloaded") == 2)
        pipe.put("after")
        decided(agent, 2)
        pipe.end()
        assert agent.end() == 0
    assert "no-such.onnx" in agent.complained
    assert "Traceback" not in agent.complained


def test_settings_before_that_cannot_be_opened_any_more_are_waited_for(tmp_path):
    """As where the disk of the old sink went away: neither ends the agent, and a reload still takes new settings."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "disk").mkdir()
    port, sink = closed_port(), str(tmp_path / "disk" / "out.jsonl")
    folder = f"{{kind: folder, path: {tmp_path / 'photos'}, watch: true}}"
    config = edge_config(tmp_path, port, source="{kind: digits}", rule=NONE_AT_ALL)
    digits_to_stdout = config.read_text(encoding="utf-8")
    edge_config(tmp_path, port, source=folder, rule=NONE_AT_ALL, sink=sink)
    before = config.read_text(encoding="utf-8")
    with edge(tmp_path, config) as agent:
        until((tmp_path / "disk" / "out.jsonl").exists, lambda: agent.complained)
        (tmp_path / "disk").rename(tmp_path / "away")
        config.write_text(before.replace(sink, str(tmp_path / "none" / "out.jsonl")), encoding="utf-8")
        agent.send(signal.SIGHUP)
        until(lambda: "not started yet" in agent.complained, lambda: agent.complained)
        config.write_text("no config", encoding="utf-8")
        agent.send(signal.SIGHUP)
        until(lambda: agent.complained.count("not reloaded") == 2, lambda: agent.complained)
        config.write_text(digits_to_stdout.replace("stroke.onnx", "no-such.onnx"), encoding="utf-8")
        agent.send(signal.SIGHUP)
        until(lambda: "no-such.onnx" in agent.complained, lambda: agent.complained)
        config.write_text(digits_to_stdout, encoding="utf-8")
        agent.send(signal.SIGHUP)
        assert agent.end() == 0  # the digits come to an end
    assert len(agent.records) == 1000
    assert "Traceback" not in agent.complained


def test_reloads_in_a_stream_of_lines_lose_none_and_decide_none_twice(tmp_path):
    config = config_with(tmp_path, NONE_AT_ALL)
    n = 400
    with Pipe() as pipe, edge(tmp_path, config, stdin=pipe.reading) as agent:
        pipe.put("first")
        decided(agent, 1)

        def pour() -> None:
            for number in range(n):
                pipe.put(f"x{number}", number)
                if number % 20 == 0:
                    time.sleep(0.02)
            pipe.end()

        pouring = threading.Thread(target=pour)
        pouring.start()
        for turn in range(1, 4):
            agent.send(signal.SIGHUP)
            until(lambda turn=turn: agent.complained.count("reloaded") >= turn or agent.process.poll() is not None)
        pouring.join(BOUND_S)
        assert agent.end() == 0
    counted = Counter(record["id"] for record in agent.records)
    assert counted == Counter(["first", *(f"x{number}" for number in range(n))])
    assert agent.complained.count("edge.yaml: reloaded") >= 1


@pytest.mark.slow
def test_a_watched_folder_is_not_decided_again_after_a_reload(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, png, _ in EXAMPLES[:5]:
        (photos / f"{name}.png").write_bytes(png)
    source = f"{{kind: folder, path: {photos}, watch: true}}"
    config = edge_config(tmp_path, closed_port(), source=source, rule=NONE_AT_ALL)
    with edge(tmp_path, config) as agent:
        decided(agent, 5)
        agent.send(signal.SIGHUP)
        reloaded(agent)
        (photos / "late.png").write_bytes(EXAMPLES[6][1])
        decided(agent, 6)
        agent.send(signal.SIGTERM)
        assert agent.end() == 0
    assert sorted(record["id"] for record in agent.records) == sorted(
        [*(f"{name}.png" for name, _, _ in EXAMPLES[:5]), "late.png"]
    )


@pytest.mark.slow
def test_another_source_takes_the_place_of_the_one_before(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(EXAMPLES[0][1])
    port = closed_port()
    source = f"{{kind: folder, path: {photos}, watch: true}}"
    config = edge_config(tmp_path, port, source=source, rule=NONE_AT_ALL)
    with edge(tmp_path, config, "--verbose") as agent:
        decided(agent, 1)
        edge_config(tmp_path, port, source="{kind: digits}", rule=NONE_AT_ALL)
        agent.send(signal.SIGHUP)
        assert agent.end() == 0  # the digits come to an end
    assert len(agent.records) == 1001
    assert "1,001 examples" in agent.complained


@pytest.mark.slow
def test_where_the_new_settings_cannot_be_opened_the_source_before_is_back_too(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    source = f"{{kind: folder, path: {photos}, watch: true}}"
    port = closed_port()
    config = edge_config(tmp_path, port, source=source, rule=NONE_AT_ALL)
    with edge(tmp_path, config) as agent:
        (photos / "a.png").write_bytes(EXAMPLES[0][1])
        decided(agent, 1)
        edge_config(tmp_path, port, source="{kind: digits}", rule=NONE_AT_ALL, sink=str(tmp_path / "none" / "o.jsonl"))
        agent.send(signal.SIGHUP)
        until(lambda: "not reloaded" in agent.complained)
        (photos / "b.png").write_bytes(EXAMPLES[1][1])
        until(lambda: "b.png" in {record["id"] for record in agent.records}, lambda: agent.complained)
        agent.send(signal.SIGTERM)
        assert agent.end() == 0
    assert {record["id"] for record in agent.records} == {"a.png", "b.png"}


@pytest.mark.slow
def test_a_reload_waits_for_the_answers_that_are_under_way(tmp_path):
    with Cloud(tmp_path) as server:
        delayed = f"{NEARLY_ALL}\n  - {{name: far, address: '127.0.0.1:{server.port}', model: digits, delay_ms: 700}}"
        config = config_with(tmp_path, delayed, port=server.port)
        with Pipe() as pipe, edge(tmp_path, config, stdin=pipe.reading) as agent:
            pipe.put("before")
            decided(agent, 1)
            for number in range(5):
                pipe.put(f"x{number}", number)
            time.sleep(0.3)
            agent.send(signal.SIGHUP)
            reloaded(agent)
            records = agent.records
            assert sorted(record["id"] for record in records) == ["before", *(f"x{number}" for number in range(5))]
            assert not any(record["degraded"] for record in records)
            assert any("bytes_sent" in record.get("call", {}) for record in records)
            pipe.end()
            assert agent.end() == 0
    assert len(agent.records) == 6


def test_a_stopped_agent_waits_so_long_for_a_dead_server_and_then_answers_by_itself(tmp_path):
    with silent_server() as port:
        config = config_with(tmp_path, NEARLY_ALL, "grace_s: 0.5", port=port, deadline_ms=60_000)
        with Pipe() as pipe, edge(tmp_path, config, stdin=pipe.reading) as agent:
            for number in range(6):
                pipe.put(f"x{number}", number)
            until(lambda: "device answers by itself" in agent.complained)  # the greeting's deadline has passed
            started = time.monotonic()
            agent.send(signal.SIGTERM)
            assert agent.end() == 0
            assert time.monotonic() - started < 20
    records = agent.records
    assert sorted(record["id"] for record in records) == [f"x{number}" for number in range(6)]
    there = [record for record in records if record["degraded"]]
    assert there
    assert {record["degraded"].split(":")[0] for record in there} == {"unavailable"}
    assert (
        f"{len(there)} examples still wait for a server after 0.5 s; the device answers them itself" in agent.complained
    )


@pytest.mark.slow
def test_a_stopped_agent_takes_the_answers_that_come_in_time(tmp_path):
    with Cloud(tmp_path) as server:
        delayed = f"{NEARLY_ALL}\n  - {{name: far, address: '127.0.0.1:{server.port}', model: digits, delay_ms: 700}}"
        config = config_with(tmp_path, delayed, port=server.port)
        with Pipe() as pipe, edge(tmp_path, config, stdin=pipe.reading) as agent:
            pipe.put("before")
            decided(agent, 1)
            for number in range(5):
                pipe.put(f"x{number}", number)
            time.sleep(0.3)
            agent.send(signal.SIGTERM)
            assert agent.end() == 0
    assert len(agent.records) == 6
    assert not any(record["degraded"] for record in agent.records)
    assert agent.complained == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(tmp_path, number):
    with silent_server() as port:
        config = config_with(tmp_path, NEARLY_ALL, "grace_s: 600", port=port, deadline_ms=600_000)
        with Pipe() as pipe, edge(tmp_path, config, stdin=pipe.reading) as agent:
            pipe.put("waits")
            until(lambda: "device answers by itself" in agent.complained)
            agent.send(number)
            time.sleep(0.5)
            assert agent.process.poll() is None
            agent.send(number)
            assert agent.end() == -number


@pytest.mark.slow
def test_an_agent_whose_sink_fails_can_be_stopped(tmp_path):
    with silent_server() as port:
        config = config_with(tmp_path, NEARLY_ALL, port=port, deadline_ms=300)
        text = config.read_text(encoding="utf-8").replace('path: "-"', "path: /dev/full")
        config.write_text(text, encoding="utf-8")
        with Pipe() as pipe, edge(tmp_path, config, stdin=pipe.reading) as agent:
            pipe.put("waits")
            until(lambda: "No space left" in agent.complained)
            agent.send(signal.SIGTERM)
            assert agent.end() == 1
