"""A real agent and a real server, on the bundled digits: together, apart, and torn apart in the middle."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Cloud, Program, closed_port, edge, edge_config, records_in, until

from coe.zoo import digits

# A single "very sure" rule makes about every example go to the cloud, whatever the bundled models are.
NEARLY_ALL = "confidence: 1.0"
ALL_IDS = sorted(name for name, _, _ in digits.test_examples())


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud")) as program:
        yield program


def accuracy(records: list[dict[str, Any]]) -> float:
    return sum(record["label"] == record["truth"] for record in records) / len(records)


def answered_there(record: dict[str, Any]) -> bool:
    return "bytes_sent" in record.get("call", {}) and not record.get("degraded")


def check_each(records: list[dict[str, Any]], n_members: int = 3) -> None:
    """What must hold of every decision, whatever the models say."""
    for record in records:
        assert "error" not in record
        assert record["name"] == str(record["label"])
        assert 0 < record["vote"] <= 1
        assert 1 <= record["asked"] <= record["members"]
        assert record["latency_s"] > 0
        assert len(record["tier_votes"]) == record["exit_tier"]
        if record["degraded"]:
            assert record["exit_tier"] == 1
            assert record["asked"] == record["members"] == n_members
            assert record["degraded"].split(":")[0] in ("unavailable", "timeout")
        elif answered_there(record):
            assert record["exit_tier"] >= 2
            assert record["tier_votes"][0] < 1 or record["asked"] <= n_members
        else:
            assert record["exit_tier"] == 1


def test_every_digit_is_decided_exactly_once_and_the_numbers_add_up(server, tmp_path):
    with edge(tmp_path, edge_config(tmp_path, server.port), "--verbose") as agent:
        assert agent.end() == 0
    records = agent.records
    assert sorted(record["id"] for record in records) == ALL_IDS
    assert agent.said.endswith("\n")
    check_each(records)
    assert not any(record["degraded"] for record in records)
    exits = Counter(record["exit_tier"] for record in records)
    n_there = sum(map(answered_there, records))
    assert set(exits) <= {1, 2, 3}
    assert n_there == exits[2] + exits[3]
    assert 0.5 < exits[1] / 1000 < 1
    assert accuracy(records) > 0.93
    on_the_device = [record for record in records if record["exit_tier"] == 1]
    assert all(record["vote"] == 1.0 for record in on_the_device)  # unanimous

    sent = sum(record["call"]["bytes_sent"] for record in records if answered_there(record))
    payload = {name: len(png) for name, png, _ in digits.test_examples()}
    assert sent <= sum(payload[record["id"]] * 1.05 + 64 for record in records if answered_there(record))
    assert f"1,000 examples, 1,000 decided (tier 1: {exits[1]}" in agent.complained
    assert f"in {n_there} calls" in agent.complained
    assert f"accuracy {accuracy(records):.2%} of 1,000" in agent.complained


def test_without_a_terminal_it_is_quiet(server, tmp_path):
    with edge(tmp_path, edge_config(tmp_path, server.port), "--limit", 40) as agent:
        assert agent.end() == 0
    assert agent.complained == ""
    assert len(agent.records) == 40


def test_ordered_decisions_come_in_the_order_of_the_digits(server, tmp_path):
    config = edge_config(tmp_path, server.port, "ordered: true", "max_in_flight: 8", rule=NEARLY_ALL)
    with edge(tmp_path, config, "--limit", 200) as agent:
        assert agent.end() == 0
    assert [record["id"] for record in agent.records] == ALL_IDS[:200]


@pytest.mark.slow
def test_a_server_killed_in_the_middle_costs_no_example_its_decision(tmp_path):
    sink = tmp_path / "decisions.jsonl"
    with Cloud(tmp_path) as server:
        config = edge_config(
            tmp_path, server.port, source="{kind: digits, interval_ms: 1.5}", rule="confidence: 0.97", sink=str(sink)
        )
        with edge(tmp_path, config, "--verbose") as agent:
            until(lambda: sink.exists() and sink.read_bytes().count(b"\n") >= 250, lambda: agent.complained)
            server.send(signal.SIGKILL)
            server.end()
            n_before = len(records_in(sink.read_text()))
            assert agent.end() == 0
    records = records_in(sink.read_text())
    assert n_before < 900, "the agent was nearly done before the server was killed"
    assert sorted(record["id"] for record in records) == ALL_IDS
    check_each(records)
    there = [record for record in records if answered_there(record)]
    degraded = [record for record in records if record["degraded"]]
    kept = [record for record in records if not answered_there(record) and not record["degraded"]]
    assert len(there) + len(degraded) + len(kept) == 1000
    assert there
    assert degraded
    assert all(answered_there(record) is False for record in degraded)
    assert accuracy(records) > 0.9
    summary = agent.complained
    assert "1,000 examples, 1,000 decided" in summary
    assert f"{len(degraded):,} degraded: a tier gave no answer" in summary
    assert f"{len(kept) / 1000:.1%} kept on the device" in summary
    assert f"in {len(there):,} calls" in summary


@pytest.mark.slow
def test_a_server_that_comes_back_on_its_port_is_asked_again(tmp_path):
    sink = tmp_path / "decisions.jsonl"

    def records() -> list[dict[str, Any]]:
        return records_in(sink.read_text()) if sink.exists() else []

    with Cloud(tmp_path) as server:
        config = edge_config(
            tmp_path,
            server.port,
            source="{kind: digits, repeat: 1000, interval_ms: 3}",
            rule=NEARLY_ALL,
            sink=str(sink),
        )
        with edge(tmp_path, config) as agent:
            until(lambda: any(map(answered_there, records())), lambda: agent.complained)
            server.send(signal.SIGKILL)
            server.end()
            until(lambda: any(record["degraded"] for record in records()), lambda: agent.complained)
            with Cloud(tmp_path, port=server.port):
                n = len(records())
                until(lambda: any(map(answered_there, records()[n:])), lambda: agent.complained)
                agent.send(signal.SIGTERM)
                assert agent.end() == 0
    done = records()
    assert len({record["id"] for record in done}) == len(done)
    check_each(done)
    losses = [at for at, record in enumerate(done) if record["degraded"]]
    assert any(map(answered_there, done[: losses[0]]))
    assert any(map(answered_there, done[losses[-1] :]))


def test_an_agent_without_any_server_decides_by_itself_and_says_so(tmp_path):
    config = edge_config(tmp_path, closed_port())
    with edge(tmp_path, config, "--limit", 300) as agent:
        assert agent.end() == 0
    records = agent.records
    assert sorted(record["id"] for record in records) == ALL_IDS[:300]
    check_each(records)
    assert {record["exit_tier"] for record in records} == {1}
    assert all(record["degraded"] is None or record["degraded"].startswith("unavailable: ") for record in records)
    assert accuracy(records) > 0.9
    assert agent.complained.splitlines()[0].startswith("coe-edge: warning: tier cloud: UNAVAILABLE")


def test_where_no_answer_is_better_than_the_devices_own_failures_are_errors(tmp_path):
    config = edge_config(tmp_path, closed_port(), "when_unavailable: fail", rule=NEARLY_ALL)
    with edge(tmp_path, config, "--limit", 20) as agent:
        agent.end()
    errors = [record for record in agent.records if "error" in record]
    assert len(agent.records) == 20
    assert errors
    assert all(record["error"].startswith("unavailable: tier cloud: ") for record in errors)
    assert all("label" not in record for record in errors)


def test_a_deadline_for_the_whole_example_is_kept(server, tmp_path):
    """A deadline that has passed before the call: the device answers by itself, and no byte is sent."""
    config = edge_config(tmp_path, server.port, "deadline_ms: 1", "max_in_flight: 1", rule=NEARLY_ALL)
    with edge(tmp_path, config, "--limit", 100) as agent:
        assert agent.end() == 0
    assert len(agent.records) == 100
    check_each(agent.records)
    assert any((record["degraded"] or "").startswith("timeout: ") for record in agent.records)


def test_a_dry_run_checks_everything_and_asks_the_cloud_who_it_is(server, tmp_path):
    with edge(tmp_path, edge_config(tmp_path, server.port), "--dry-run") as agent:
        assert agent.end() == 0
    assert "task digits: 10 labels, fingerprint" in agent.said
    assert "tier device: stroke.onnx on onnxruntime" in agent.said
    assert ": digits on coe" in agent.said
    assert agent.said.endswith("ready\n")
    assert not agent.complained


def test_a_dry_run_without_a_server_is_exit_1_and_says_which(tmp_path):
    with edge(tmp_path, edge_config(tmp_path, closed_port()), "--dry-run") as agent:
        assert agent.end() == 1
    assert "tier cloud: FAILED tier cloud: UNAVAILABLE" in agent.said
    assert "Traceback" not in agent.complained


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_limit_is_the_number_of_decisions(server, tmp_path, n):
    with edge(tmp_path, edge_config(tmp_path, server.port), "--limit", n) as agent:
        assert agent.end() == 0
    assert sorted(record["id"] for record in agent.records) == ALL_IDS[:n]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_in_a_run_lets_every_example_taken_be_written(server, tmp_path, number, code):
    sink = tmp_path / "decisions.jsonl"
    source = "{kind: digits, repeat: 1000, interval_ms: 1}"
    config = edge_config(tmp_path, server.port, source=source, rule=NEARLY_ALL, sink=str(sink))
    with edge(tmp_path, config, "--verbose") as agent:
        until(lambda: sink.exists() and sink.read_bytes().count(b"\n") >= 50, lambda: agent.complained)
        agent.send(number)
        assert agent.end() == code
    records = records_in(sink.read_text())
    n = len(records)
    assert sink.read_text().endswith("\n")
    assert sorted(record["id"] for record in records) == ALL_IDS[:n]  # no gap: all that were taken
    assert not any(record["degraded"] for record in records)
    assert f"{n:,} examples, {n:,} decided" in agent.complained


def lines_of(*contents: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(content).encode() + b"\n" for content in contents)


def test_json_lines_piped_into_it_are_decided_and_bad_ones_fail_alone(server, tmp_path):
    examples = digits.test_examples(3)
    photo = tmp_path / "photo.png"
    photo.write_bytes(examples[0][1])
    given = lines_of(
        {"id": "a", "file": str(photo), "label": examples[0][2]},
        {"id": "b", "image": base64.b64encode(examples[1][1]).decode()},
        {"id": "c", "pixels": [[0] * 28] * 28},
        {"id": "d", "tensor": [[[0.0] * 28] * 28]},
        {"id": "wrong shape", "tensor": [1, 2, 3]},
        {"id": "cut off", "image": base64.b64encode(examples[1][1][:-30]).decode()},
        {"id": "gone", "file": str(tmp_path / "gone.png")},
    )
    config = edge_config(tmp_path, server.port, "ordered: true", source="{kind: stdin}")
    with edge(tmp_path, config, stdin=given + b"nonsense\n") as agent:
        assert agent.end() == 0
    records = {record["id"]: record for record in agent.records}
    assert list(records) == ["a", "b", "c", "d", "wrong shape", "cut off", "gone", "line-8"]
    assert all("label" in records[name] for name in "abcd")
    assert records["a"]["truth"] == examples[0][2]
    assert records["wrong shape"]["error"] == "example wrong shape: expected shape [1, 28, 28], got [3]"
    assert "expected a PNG or JPEG" in records["cut off"]["error"]
    assert records["gone"]["error"] == "cannot be read: No such file or directory"
    assert records["line-8"]["error"].startswith("cannot be read: ")


def test_a_limit_on_standard_input_ends_with_its_last_example_though_the_pipe_stays_open(server, tmp_path):
    read, write = os.pipe()
    try:
        png = base64.b64encode(digits.test_examples(1)[0][1]).decode()
        os.write(write, lines_of({"id": "a", "image": png}, {"id": "b", "image": png}))
        config = edge_config(tmp_path, server.port, source="{kind: stdin}")
        with edge(tmp_path, config, "--limit", 2, stdin=read) as agent:
            assert agent.end() == 0
        assert sorted(record["id"] for record in agent.records) == ["a", "b"]
    finally:
        os.close(read)
        os.close(write)


def test_once_takes_what_is_in_a_watched_folder_and_ends(server, tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    for name, png, _ in digits.test_examples(4):
        (folder / f"{name}.png").write_bytes(png)
    (folder / "broken.png").write_bytes(b"no image")
    config = edge_config(tmp_path, server.port, source="{kind: folder, path: camera, watch: true}")
    with edge(tmp_path, config, "--once") as agent:
        assert agent.end() == 0
    assert len(agent.records) == 5
    assert [record["id"] for record in agent.records if "error" in record] == ["broken.png"]


def test_a_watched_folder_is_decided_as_it_fills_until_sigterm(server, tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    config = edge_config(tmp_path, server.port, source="{kind: folder, path: camera, watch: true}")
    with edge(tmp_path, config) as agent:
        for at, (name, png, _) in enumerate(digits.test_examples(2), start=1):
            (folder / f"{name}.png").write_bytes(png)
            until(lambda: len(agent.records) == at, lambda: agent.complained)  # noqa: B023 - called here
        agent.send(signal.SIGTERM)
        assert agent.end() == 0
    assert len(agent.records) == 2


@pytest.mark.parametrize(
    ("closed", "code", "n_lines", "told"),
    [("1>&-", 2, 0, "coe-edge: sink: standard output is closed (set sink.path to a file)\n"), ("2>&-", 0, 1, "")],
)
def test_a_stream_that_was_closed_beforehand_is_no_bug(server, tmp_path, closed, code, n_lines, told):
    config = edge_config(tmp_path, server.port)
    command = f'"$0" -m edge.main --config "{config}" --limit 1 {closed}'
    shell = subprocess.run(["bash", "-c", command, sys.executable], capture_output=True, text=True, timeout=30)
    assert (shell.returncode, shell.stdout.count("\n"), shell.stderr) == (code, n_lines, told)


def test_a_reader_that_goes_away_ends_it_with_a_line_and_not_as_done(server, tmp_path):
    """As `coe-edge | head -1` does: the decisions after it are nowhere."""
    config = edge_config(tmp_path, server.port)
    command = f'"$0" -m edge.main --config "{config}"; echo "code $?" >&2'
    shell = subprocess.run(
        ["bash", "-c", f"{{ {command}; }} | head -1", sys.executable], capture_output=True, text=True, timeout=30
    )
    assert len(shell.stdout.splitlines()) == 1
    assert shell.stderr == "coe-edge: standard output: the program that read it has ended\ncode 1\n"


OTHER_TASK = """
task: letters
labels: [a, b, c, d, e, f, g, h, i, j]
input: {{kind: image, size: [28, 28], channels: 1, layout: NCHW, scale: 0.00392156862745098}}
model: digits
tiers:
  - members: [{{file: {model}}}]
"""


@pytest.mark.slow
def test_a_server_of_another_task_is_one_line_and_the_device_decides_by_itself(tmp_path):
    (tmp_path / "best.onnx").write_bytes((digits.FOLDER / "resnet.onnx").read_bytes())
    cloud_config = tmp_path / "letters.yaml"
    cloud_config.write_text(OTHER_TASK.format(model=tmp_path / "best.onnx"), encoding="utf-8")
    with Cloud(tmp_path, cloud_config) as server:
        for more in ([], ["--dry-run"]):
            with edge(tmp_path, edge_config(tmp_path, server.port), *more) as agent:
                assert agent.end() == (2 if more else 0)
            (line,) = agent.complained.splitlines()
            assert "serves digits for another task: expected fingerprint " in line
            if not more:
                assert "tier cloud refuses, the device answers by itself and asks again later" in line


def complaint(folder: Path, config: Path, *arguments: object) -> list[str]:
    with edge(folder, config, *arguments) as agent:
        assert agent.end() == 2
    assert agent.said == ""
    return agent.complained.splitlines()


def test_an_unknown_setting_is_one_line_that_names_the_nearest(tmp_path):
    config = edge_config(tmp_path, 1, "max_in_fligth: 3")
    assert complaint(tmp_path, config) == [
        f'coe-edge: {config}: max_in_fligth: unknown setting (did you mean "max_in_flight"?)'
    ]


def test_every_mistake_is_told_at_once(tmp_path):
    config = edge_config(
        tmp_path, 1, "ordered: perhaps", "deadline_ms: 0", source="{kind: digts}", rule="agreement: 3/2"
    )
    lines = complaint(tmp_path, config)
    assert [line.split(": ")[2] for line in lines] == ["tiers[0].agreement", "source.kind", "deadline_ms", "ordered"]
    assert 'did you mean "digits"?' in lines[1]


def test_a_config_that_is_not_there_is_one_line(tmp_path):
    nowhere = tmp_path / "nowhere.yaml"
    assert complaint(tmp_path, nowhere) == [f"coe-edge: {nowhere}: cannot be read: No such file or directory"]


@pytest.mark.parametrize("limit", ["0", *(pytest.param(text, marks=pytest.mark.slow) for text in ("-3", "many", "²"))])
def test_a_limit_that_is_none_is_the_users_error(tmp_path, limit):
    with Program("edge.main", ["--limit", limit], tmp_path) as agent:
        assert agent.end() == 2
    assert "Traceback" not in agent.complained


def test_a_sink_that_cannot_be_written_is_one_line(tmp_path):
    path = tmp_path / "nowhere" / "decisions.jsonl"
    with edge(tmp_path, edge_config(tmp_path, 1, sink=str(path)), "--once") as agent:
        assert agent.end() == 1  # it may be there at the next start
    assert agent.complained.splitlines() == [f"coe-edge: {path}: No such file or directory"]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_exit_1(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with edge(tmp_path, edge_config(tmp_path, closed_port(), sink="/dev/full"), "--once") as agent:
        assert agent.end() == 1
    assert "Traceback" not in agent.complained
    assert agent.complained.splitlines()[-1] == "coe-edge: /dev/full: No space left on device"
