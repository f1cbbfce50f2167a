"""JSON lines in a file: rotated, followed, and whole whatever happens to the disk."""

from __future__ import annotations

import gzip
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.sinks import SinkConfig, jsonlines, open_sinks
from edge.sinks.jsonlines import JsonLinesFile, Rotation, parts_of


def lines_in(path: Path) -> list[bytes]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert data.endswith(b"\n") or not data
    return data.splitlines()


def everything(path: Path) -> list[int]:
    """The numbers of all records kept, the oldest file first."""
    old = sorted(path.parent.glob(f"{path.name}.*"), key=lambda part: -int(part.name.split(".")[2]))
    return [json.loads(line)["n"] for part in [*old, path] for line in lines_in(part)]


def sized(number: int, n_bytes: int) -> dict[str, object]:
    return {"n": number, "fill": "x" * n_bytes}


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=40),
    max_bytes=st.integers(1, 600),
    reopened=st.sets(st.integers(0, 39)),
)
def test_records_in_are_records_out_whatever_their_sizes(tmp_path_factory, sizes, max_bytes, reopened):
    path = tmp_path_factory.mktemp("sink") / "decisions.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # the power stays on
        writer = JsonLinesFile(path, Rotation(max_bytes, keep=1000))
        for number, n_bytes in enumerate(sizes):
            writer.write(sized(number, n_bytes))
            if number in reopened:
                writer.close()
                writer = JsonLinesFile(path, Rotation(max_bytes, keep=1000))
        writer.close()
    assert everything(path) == list(range(len(sizes)))
    for part in path.parent.iterdir():
        assert part.stat().st_size <= max_bytes or len(lines_in(part)) == 1


def test_only_so_many_old_files_are_kept_and_the_latest_is_1(tmp_path):
    path = tmp_path / "decisions.jsonl"
    writer = JsonLinesFile(path, Rotation(50, keep=3))
    for number in range(10):
        writer.write(sized(number, 40))
    writer.close()
    assert sorted(part.name for part in tmp_path.iterdir()) == [path.name + end for end in ("", ".1", ".2", ".3")]
    assert json.loads((tmp_path / "decisions.jsonl.1").read_text())["n"] == 8
    assert everything(path) == [6, 7, 8, 9]
    assert writer.n_rotations == 9


def test_old_files_are_compressed_whole_and_keep_their_order(tmp_path):
    path = tmp_path / "decisions.jsonl"
    writer = JsonLinesFile(path, Rotation(50, keep=4, compress=True))
    for number in range(6):
        writer.write(sized(number, 40))
        assert writer._rotated is not None
        writer._rotated.close()
        os.utime(path, (1000 + number, 1000 + number))
    writer.close()
    assert sorted(part.name for part in tmp_path.iterdir())[1:] == [f"{path.name}.{n}.gz" for n in (1, 2, 3, 4)]
    assert everything(path) == [1, 2, 3, 4, 5]
    assert [json.loads(lines_in(part)[0])["n"] for part in parts_of(path)] == [1, 2, 3, 4, 5]
    assert (tmp_path / f"{path.name}.1.gz").stat().st_mtime == 1004  # of its last record, not of its compressing


def test_a_file_that_is_not_compressed_yet_is_not_waited_for(tmp_path, monkeypatch):
    """The next one grows a little longer instead."""
    path = tmp_path / "decisions.jsonl"
    writer = JsonLinesFile(path, Rotation(50, keep=4, compress=True))
    assert writer._rotated is not None
    monkeypatch.setattr(type(writer._rotated), "is_busy", True)
    for number in range(3):
        writer.write(sized(number, 40))
    assert len(lines_in(path)) == 3
    writer.close()


def test_a_file_that_was_moved_away_is_left_and_a_new_one_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "FOLLOW_S", 0.0)
    path = tmp_path / "decisions.jsonl"
    writer = JsonLinesFile(path)
    writer.write(sized(0, 1))
    path.rename(tmp_path / "decisions.jsonl.1")  # as logrotate does
    writer.write(sized(1, 1))
    path.unlink()
    writer.write(sized(2, 1))
    writer.close()
    assert everything(path) == [0, 2]


def test_a_file_that_was_cut_off_is_gone_on_with(tmp_path, monkeypatch):
    """As logrotate's copytruncate does: what was before does not count for the next rotation."""
    monkeypatch.setattr(jsonlines, "FOLLOW_S", 0.0)
    path = tmp_path / "decisions.jsonl"
    writer = JsonLinesFile(path, Rotation(100))
    writer.write(sized(0, 60))
    os.truncate(path, 0)
    writer.write(sized(1, 60))
    writer.close()
    assert everything(path) == [1]
    assert writer.n_rotations == 0


@contextmanager
def files_end_at(n_bytes: int) -> Iterator[None]:
    """As a disk does that is full in the middle of a line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_that_did_not_fit_leaves_nothing_behind(tmp_path):
    path = tmp_path / "decisions.jsonl"
    writer = JsonLinesFile(path)
    writer.write(sized(0, 50))
    with files_end_at(100), pytest.raises(OSError, match="File too large") as caught:
        writer.write(sized(1, 50))
    assert caught.value.filename == str(path)
    writer.write(sized(2, 50))
    writer.close()
    assert everything(path) == [0, 2]


def test_where_a_file_cannot_be_set_aside_its_records_stay(tmp_path):
    path = tmp_path / "decisions.jsonl"
    (tmp_path / "decisions.jsonl.1").mkdir()
    (tmp_path / "decisions.jsonl.1" / "full").touch()
    writer = JsonLinesFile(path, Rotation(50, keep=1))
    writer.write(sized(0, 40))
    with pytest.raises(OSError, match=r"decisions\.jsonl"):
        writer.write(sized(1, 40))
    (tmp_path / "decisions.jsonl.1" / "full").unlink()
    (tmp_path / "decisions.jsonl.1").rmdir()
    writer.write(sized(2, 40))
    writer.close()
    assert everything(path) == [0, 2]


def test_what_is_no_regular_file_is_written_and_nothing_more(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = JsonLinesFile(tmp_path / "pipe", Rotation(10))
    for number in range(3):
        writer.write(sized(number, 10))
    assert os.read(reader, 1000).count(b"\n") == 3
    assert (writer.mark(), list(writer.since("")), writer.missing({"k"})) == ("", [], {"k"})
    os.close(reader)
    with pytest.raises(OSError, match=r"no program reads it: .*pipe"):
        writer.write(sized(3, 10))
    writer.close()


def test_the_config_opens_it_with_its_rotation(tmp_path):
    path = tmp_path / "decisions.jsonl"
    sinks = open_sinks([SinkConfig(path=path, rotation=Rotation(10, keep=2))], ())
    assert sinks.health()[0].name == str(path)
    assert sinks.writers[0]._rotated.rotation == Rotation(10, keep=2)
    sinks.close()
