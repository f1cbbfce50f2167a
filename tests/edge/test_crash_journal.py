"""What was under way when the process ended: tried once more, then passed over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from fakes import DECODER, UNANIMOUS, Far, ListSink, Numbers, Seat

from coe.cascade import Cascade, LocalTier, TierUnavailable
from edge.agent import CRASHED, Agent
from edge.crash_journal import N_SLOTS, CrashJournal


def crashed_on(path, *names):
    """A process that ended while it decided these."""
    journal = CrashJournal(path)
    for name in names:
        journal.begin(name)
    journal.close()


def test_an_example_is_given_up_after_the_process_ended_on_it_twice(tmp_path):
    path = tmp_path / "state" / "under-way"
    for n_crashes in range(3):
        journal = CrashJournal(path)
        assert journal.is_given_up("a.png") is (n_crashes >= 2)
        assert not journal.is_given_up("b.png")
        journal.close()
        if n_crashes < 2:
            crashed_on(path, "a.png")


def test_a_start_that_does_not_come_to_it_does_not_count(tmp_path):
    path = tmp_path / "under-way"
    crashed_on(path, "a.png")
    for _ in range(3):
        CrashJournal(path).close()
    assert not CrashJournal(path).is_given_up("a.png")


def test_what_was_decided_is_not_suspected_any_more(tmp_path):
    path = tmp_path / "under-way"
    for _ in range(4):
        crashed_on(path, "a.png")
        journal = CrashJournal(path)
        if not journal.is_given_up("a.png"):
            journal.end(journal.begin("a.png"))
        journal.close()
        assert not CrashJournal(path).is_given_up("a.png")


@pytest.mark.parametrize("name", ["x" * 255, "x" * 5000, "\udcff\udc80.png", "ü" * 127, "a\nb"])
def test_any_name_can_be_recorded(tmp_path, name):
    path = tmp_path / "under-way"
    crashed_on(path, name)
    crashed_on(path, name)
    assert CrashJournal(path).is_given_up(name)
    assert not CrashJournal(path).is_given_up(name[:-1])


def test_those_that_do_not_come_again_make_room(tmp_path):
    path = tmp_path / "under-way"
    crashed_on(path, *(f"{number}" for number in range(N_SLOTS)))
    crashed_on(path, "new")
    crashed_on(path, "new")
    assert CrashJournal(path).is_given_up("new")


def test_more_at_a_time_than_there_is_room_for_are_not_recorded(tmp_path):
    journal = CrashJournal(tmp_path / "under-way")
    slots = [journal.begin(f"{number}") for number in range(N_SLOTS + 2)]
    assert slots[-2:] == [-1, -1]
    for slot in slots:
        journal.end(slot)
    assert journal.begin("again") >= 0


def test_a_file_of_something_else_is_no_reason_not_to_start(tmp_path):
    path = tmp_path / "under-way"
    path.write_bytes(b"\xff" * 1000)
    journal = CrashJournal(path)
    journal.end(journal.begin("a"))


def test_where_it_cannot_be_written_the_agent_goes_on_and_it_is_logged_once(tmp_path, caplog):
    (tmp_path / "state").write_text("not a folder")
    journal = CrashJournal(tmp_path / "state" / "under-way")
    sink = ListSink()
    agent = Agent(Cascade([LocalTier("device", [Seat(1)], UNANIMOUS)]), DECODER, sink)
    agent.journal = journal
    assert agent.run(Numbers(5)).n_decided == 5
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("an example that crashes the process is not passed over")


def test_a_disk_that_fails_later_is_logged_once(tmp_path, caplog):
    journal = CrashJournal(tmp_path / "under-way")
    os.close(journal._file)
    for _ in range(3):
        journal.end(journal.begin("a"))
    assert len(caplog.records) == 1


def test_the_agent_names_what_it_decides_and_nothing_that_waits_for_a_server(tmp_path):
    path = tmp_path / "under-way"

    def names():
        journal = CrashJournal(path)
        found = set(journal._suspects)
        journal.close()
        return found

    seen = {}

    class Looking(Seat):
        def predict(self, x):
            seen.setdefault(int(x[0, 0]), []).append(names())
            return super().predict(x)

    def far(batch):
        seen["far", batch.ids[0]] = names()
        raise TierUnavailable("cloud", "it is gone")

    agent = Agent(
        Cascade([LocalTier("device", [Looking(1), Seat(2), Looking(3)], UNANIMOUS), Far(far)]),
        DECODER,
        ListSink(),
        max_in_flight=0,
    )
    agent.journal = CrashJournal(path)
    agent.run(Numbers(2))
    assert seen == {0: [{b"x0"}, {b"x0"}], 1: [{b"x1"}, {b"x1"}], ("far", "x1"): set()}
    assert names() == set()


def test_an_example_that_was_given_up_has_a_record_and_is_no_suspect_after_it(tmp_path):
    path = tmp_path / "under-way"
    crashed_on(path, "x2")
    crashed_on(path, "x2")
    sink = ListSink()
    agent = Agent(Cascade([LocalTier("device", [Seat(1)], UNANIMOUS)]), DECODER, sink)
    agent.journal = CrashJournal(path)
    agent.run(Numbers(4))
    assert {outcome.id: outcome.error for outcome in sink.outcomes} == {
        "x0": None,
        "x1": None,
        "x2": CRASHED,
        "x3": None,
    }
    agent.journal.close()
    assert not CrashJournal(path).is_given_up("x2")


AGENT = textwrap.dedent("""
    import os, signal, sys
    from coe.models import onnx
    predict = onnx.OnnxMember.predict

    def crash(self, x):
        if float(x.std()) < 1e-6 and float(x.mean()) != 0:  # the one image of one shade that is not black
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        return predict(self, x)

    onnx.OnnxMember.predict = crash
    from edge.main import main
    sys.exit(main(sys.argv[2:]))
""")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["SIGSEGV", "SIGKILL"])
def test_a_file_that_crashes_the_process_is_tried_once_more_and_then_passed_over(tmp_path, by):
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(9):
        photo = Image.new("L", (28, 28), 200)
        if number != 4:
            photo.putpixel((number, 3), 0)
        photo.save(photos / f"{number}.png")
    config = tmp_path / "pi.yaml"
    config.write_text(
        "task: zoo:digits\n"
        "tiers: [{name: device, members: [zoo:digits/mosaic.onnx, zoo:digits/stroke.onnx], early: false}]\n"
        f"source: {{kind: folder, path: {photos}}}\n"
        f"sink: {{kind: jsonlines, path: {tmp_path / 'out.jsonl'}}}\n"
        f"state: {tmp_path / 'state'}\n"
    )
    command = [sys.executable, "-c", AGENT, by, "--config", str(config), "--once"]
    ends = [subprocess.run(command, capture_output=True, text=True, timeout=120, check=False) for _ in range(3)]
    number = -getattr(signal, by)
    assert [end.returncode for end in ends] == [number, number, 0], ends[-1].stderr
    assert "example 4.png was being decided; it is tried once more" in ends[1].stderr
    assert "example 4.png was being decided; it is passed over" in ends[2].stderr
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {record["id"] for record in records} == {f"{number}.png" for number in range(9)}
    assert [(record["id"], record["error"]) for record in records if record.get("error")] == [("4.png", CRASHED)]
