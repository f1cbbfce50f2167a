"""Rows of a table and windows of a sensor are examples, one after another; and what `--data` names."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.cascade import ConfigError
from coe.cascade.errors import NotUsableNow
from coe.config import Fields, Report
from coe.config.manifest import Task
from coe.models.input_spec import InputSpec
from coe.models.text import TextInputSpec
from edge.sources import Example, SourceConfig, open_data, open_source, read_sources
from edge.sources.folder import FolderSource

STATES = Task("states", ("still", "moving"), InputSpec("tensor", (2, 2)))
TEXTS = Task("texts", ("bad", "good"), TextInputSpec("text", ()))
IMAGES = Task("images", ("bad", "good"), InputSpec("image", (4, 4, 1)))


def configured(tmp_path: Path, task: Task = STATES, **source: Any) -> SourceConfig:
    report = Report("edge.yaml")
    config = read_sources(Fields({"source": source}, report), tmp_path, task)
    report.check()
    return config


def taken(config: SourceConfig) -> list[Example]:
    return list(open_source(config).examples(threading.Event()))


def test_windows_of_a_sensors_rows(tmp_path):
    lines = ["t;ay;ax;state", *(f"{at};{at},5;{-at};{'moving' if at > 2 else 'still'}" for at in range(6)), ""]
    (tmp_path / "s.csv").write_text("\r\n".join(lines), newline="")
    wanted = {"kind": "csv", "path": "s.csv", "columns": ["ax", "ay"], "label": "state"}
    found = taken(configured(tmp_path, **wanted, window=2, hop=1))
    assert [one.id for one in found] == [f"s-{at:05d}" for at in range(2, 7)]
    assert found[0].value.tolist() == [[0, 0.5], [-1, 1.5]]
    assert [one.truth for one in found] == [0, 0, 0, 1, 1]
    assert [one.id for one in taken(configured(tmp_path, **wanted))] == ["s-00002", "s-00004", "s-00006"]


def test_a_row_that_cannot_be_read_is_one_record(tmp_path):
    rows = ["1,2,still", "3,4,still", "x,6,still", "7,8", "9,10,flying", "11,12,flying", "13,14,1", "15,16,1"]
    (tmp_path / "s.csv").write_bytes("\n".join(["a,b,label", *rows]).encode() + b"\n\xff,1,1\n")
    found = taken(configured(tmp_path, kind="csv", path="s.csv"))
    assert [(one.id, one.truth) for one in found if one.value is not None] == [("s-00002", 0), ("s-00008", 1)]
    errors = [one.error for one in found if one.value is None]
    assert errors[0] == 'cannot be read: column a: expected a number, got "x"'
    assert "row 4: expected 3 cells" in errors[1]
    assert 'label "flying" is none of the task\'s (still, moving)' in errors[2]
    assert "expected a number" in errors[3]
    assert len(errors) == 4


def test_a_window_does_not_span_a_row_that_is_missing(tmp_path):
    (tmp_path / "s.csv").write_text("a,b\n1,2\n3\n5,6\n7,8\n")
    found = taken(configured(tmp_path, kind="csv", path="s.csv"))
    assert [None if one.value is None else one.value.tolist() for one in found] == [None, [[5, 6], [7, 8]]]


def test_rows_come_from_standard_input(tmp_path, monkeypatch):
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb") as pipe:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
        config = configured(tmp_path, kind="csv")
        assert config.is_standard_input
        stop = threading.Event()
        examples = open_source(config).examples(stop)
        pipe.write(b"\xef\xbb\xbfid,a,b\nx,1,2\ny,3,4\n")
        pipe.flush()
        first = next(examples)
        assert (first.id, first.value.tolist(), first.truth) == ("y", [[1, 2], [3, 4]], None)
        stop.set()
        assert list(examples) == []


def test_texts_and_files_of_a_table(tmp_path):
    (tmp_path / "t.csv").write_text('id,review,label\na,"so, so",good\n')
    found = taken(configured(tmp_path, TEXTS, kind="csv", path="t.csv", columns="review"))
    assert [(one.id, one.value, one.truth) for one in found] == [("a", b"so, so", 1)]
    (tmp_path / "a.png").write_bytes(b"png")
    (tmp_path / "i.csv").write_text("file,label\na.png,good\nnone.png,good\n")
    found = taken(configured(tmp_path, IMAGES, kind="csv", path="i.csv"))
    assert [(one.id, one.value, one.truth) for one in found] == [("a.png", b"png", 1), ("none.png", None, None)]
    assert found[1].error == "cannot be read: No such file or directory"


def test_arrays(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.arange(8).reshape(2, 2, 2), y=["moving", "flying"])
    found = taken(configured(tmp_path, kind="arrays", path="d.npz"))
    assert [(one.id, one.truth) for one in found] == [("d-0", 1), ("d-1", None)]
    assert found[0].value.tolist() == [[0, 1], [2, 3]]
    assert "flying" in found[1].error


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"kind": "csv", "path": "s.csv", "columns": ["a", "z"]}, "expected the column z, got a, b, c"),
        (
            {"kind": "csv", "path": "s.csv", "columns": ["a"], "window": 3},
            "for the shape [2, 2], got 3 rows of 1 columns (a)",
        ),
        (
            {"kind": "csv", "path": "s.csv"},
            "expected 4 numbers an example for the shape [2, 2], got 3 columns (a, b, c)",
        ),
        ({"kind": "csv", "path": "empty.csv"}, "expected a header line, got an empty file"),
        ({"kind": "arrays"}, "source.path: expected a text, got nothing"),
        ({"kind": "folder", "path": "x", "window": 3}, "source.window: unknown setting"),
    ],
)
def test_a_source_that_does_not_fit_is_said_before_it_runs(tmp_path, source, words):
    (tmp_path / "s.csv").write_text("a,b,c\n1,2,3\n")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ConfigError) as error:
        open_source(configured(tmp_path, **source))
    assert words in str(error.value)


@pytest.mark.parametrize("kind", ["csv", "arrays"])
def test_a_file_that_is_not_there_may_come_later(tmp_path, kind):
    with pytest.raises(NotUsableNow, match="expected a file, got"):
        open_source(configured(tmp_path, kind=kind, path="none.npz"))


def test_what_a_flag_names(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "a.png").write_bytes(b"png")
    labelled = open_data(str(tmp_path), IMAGES)
    assert [(one.id, one.truth) for one in labelled.examples(threading.Event())] == [("good/a.png", 1)]
    assert isinstance(open_data(str(tmp_path / "good"), IMAGES), FolderSource)
    with pytest.raises(ConfigError, match='--data: expected a folder, a file or -, got "nowhere"'):
        open_data("nowhere", IMAGES)
