"""The end of a file of records: torn lines are cut off, whole ones are found again."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edge.sinks import SinkConfig, jsonlines
from edge.sinks.open import open_writer

WHOLE = [{"id": "a", "label": 1}, {"id": "b", "corrects": "17-1", "text": "né\u2028"}, {"id": "c"}]


def lines(records: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def written(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


@given(cut=st.integers(0, len(lines(WHOLE))))
def test_a_file_cut_anywhere_ends_with_a_whole_line_once_it_is_opened(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("sink") / "decisions.jsonl"
    path.write_bytes(lines(WHOLE)[:cut])
    writer = open_writer(SinkConfig(path=path))
    writer.write({"id": "next"})
    writer.close()
    n_whole = sum(len(lines(WHOLE[:n])) - 1 <= cut for n in (1, 2, 3))  # a line that lacks its end alone is whole
    assert written(path) == [*["a", "b", "c"][:n_whole], "next"]


def test_a_torn_line_longer_than_what_is_read_at_once_is_cut_off(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(lines(WHOLE) + b'{"id": "' + b"x" * 3 * jsonlines.CHUNK_BYTES)
    assert jsonlines.repair_last_line(path) == 3 * jsonlines.CHUNK_BYTES + 8
    assert path.read_bytes() == lines(WHOLE)


def test_what_is_no_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert jsonlines.repair_last_line(tmp_path / "pipe") == 0
    assert jsonlines.repair_last_line(tmp_path / "nothing") == 0
    assert jsonlines.missing_from(tmp_path / "nothing", {"k"}) == {"k"}


def test_corrections_that_are_in_the_file_or_in_what_was_rotated_away_are_not_missing(tmp_path):
    path = tmp_path / "decisions.jsonl"
    with gzip.open(tmp_path / "decisions.jsonl.2.gz", "wb") as file:
        file.write(lines([{"id": "w", "corrects": "2"}]))
    (tmp_path / "decisions.jsonl.1").write_bytes(lines([{"id": "x", "corrects": "1"}] * 2))
    path.write_bytes(lines([{"id": "y", "corrects": "0"}, {"id": "3", "spooled": "3"}] + [{"id": "z"}] * 5000))
    writer = open_writer(SinkConfig(path=path))
    assert set(writer.missing({"0", "1", "2", "3", "4"})) == {"3", "4"}
    writer.close()


def test_the_search_for_corrections_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "SEARCH_BYTES", 10_000)
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(
        lines([{"id": "x", "corrects": "far"}] + [{"id": "x" * 100}] * 500 + [{"id": "y", "corrects": "k"}])
    )
    assert jsonlines.missing_from(path, {"far", "k"}) == {"far"}


@given(
    sizes=st.lists(st.integers(0, 200), min_size=1, max_size=40),
    marked=st.integers(0, 40),
    rotations=st.sets(st.integers(0, 40), max_size=3),
)
def test_records_since_a_mark_are_those_written_after_it_through_every_rotation(
    tmp_path_factory, sizes, marked, rotations
):
    path = tmp_path_factory.mktemp("sink") / "decisions.jsonl"
    marked = min(marked, len(sizes))
    path.touch()
    mark = ""
    for number, size in enumerate(sizes):
        if number in rotations:
            rotate(path)
        if number == marked:
            mark = jsonlines.mark_of(path)
        with path.open("ab") as file:
            file.write(lines([{"id": number, "text": "x" * size}]))
        os.utime(path, ns=(number, number))  # two in the same tick of the clock are in no order
    if marked < len(sizes):
        assert [record["id"] for record in jsonlines.since(path, mark)] == list(range(marked, len(sizes)))
    assert [record["id"] for record in jsonlines.since(path, "")] == list(range(len(sizes)))


def rotate(path: Path) -> None:
    n = len(list(path.parent.iterdir()))
    for number in range(n - 1, 0, -1):
        path.with_name(f"{path.name}.{number}").rename(path.with_name(f"{path.name}.{number + 1}"))
    path.rename(path.with_name(f"{path.name}.1"))
    path.touch()


def test_a_mark_in_the_middle_of_a_line_that_was_being_written_begins_at_the_next(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(lines(WHOLE)[:10])
    mark = jsonlines.mark_of(path)
    path.write_bytes(lines(WHOLE))
    assert [record["id"] for record in jsonlines.since(path, mark)] == ["b", "c"]
