"""The text tasks' data: tiny files of both published forms, and how they are split."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from coe.cascade import ConfigError
from recipes.text import data

TASK = data.Task("films", "Films", ("bad", "good"), "train.tsv", "dev.tsv", "sentence", 3, 16, "")
SHARED = Path(os.environ.get("COE_DATA", "../shared/data"))


def write_tsv(path: Path, rows: list[tuple[str, str, int]]) -> None:
    lines = ["id\tsentence\tlabel", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write_tsv(tmp_path / "train.tsv", [(f"t{n}", f'the "{n}" caf\u00e9', n % 2) for n in range(10)])
    write_tsv(tmp_path / "dev.tsv", [("d0", "fine", 1)])
    return tmp_path


def test_quotes_are_letters_and_texts_are_utf_8(folder):
    read = data.read(TASK, folder / "train.tsv")
    assert read.texts[3] == 'the "3" café'
    assert read.ids[3] == "t3"
    assert read.labels.tolist() == [0, 1] * 5


def test_train_and_calibration_have_nothing_in_common_and_are_the_same_each_time(folder):
    train, calibration = data.load_learning(TASK, folder)
    assert (len(train), len(calibration)) == (7, 3)
    assert not set(train.ids) & set(calibration.ids)
    assert data.load_learning(TASK, folder)[1].ids == calibration.ids
    assert data.load_test(TASK, folder).texts == ("fine",)


def test_a_text_that_comes_twice_is_on_one_side():
    texts = tuple(f"text {n % 20}" for n in range(40))
    every = data.Split(tuple(map(str, range(40))), texts, np.zeros(40, dtype=np.int64))
    train, calibration = data.split(every, 10)
    assert not set(train.texts) & set(calibration.texts)
    assert len(train) + len(calibration) == 40


def test_parquet_and_csv_are_read_too(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"sentence": ["a\tb", "caf\u00e9"], "label": arrow.array([1, 0], arrow.int8())}
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text('sentence,label\n"a\tb",1\ncaf\u00e9,0\n', encoding="utf-8")
    for name in ("a.parquet", "a.csv"):
        read = data.read(TASK, tmp_path / name)
        assert (read.ids, read.texts, read.labels.tolist()) == (("a-00000", "a-00001"), ("a\tb", "café"), [1, 0])


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"expected Films's train.tsv in .*, found none \(name its folder\)"):
        data.load_learning(TASK, tmp_path)
    write_tsv(tmp_path / "train.tsv", [("t0", "fine", 2)])
    with pytest.raises(ConfigError, match=r"expected labels 0 to 1, got \[2\]"):
        data.load_learning(TASK, tmp_path)
    (tmp_path / "train.tsv").write_text("id\ttext\tlabel\nt0\tfine\t1\n")
    with pytest.raises(ConfigError, match="expected the columns sentence and label, got none of sentence"):
        data.load_learning(TASK, tmp_path)


@pytest.mark.parametrize(("name", "sizes"), [("sst2", (5920, 1000, 872)), ("tfns", (8112, 1431, 1194))])
def test_the_published_files_are_read(name, sizes):
    import importlib

    pytest.importorskip("pyarrow")
    pytest.importorskip("torch")  # the recipe's module
    task = importlib.import_module(f"recipes.{name}").TASK
    if not (SHARED / task.learning).exists():
        pytest.skip(f"{task.learning} is not here (name its folder in COE_DATA)")
    train, calibration = data.load_learning(task, SHARED)
    test = data.load_test(task, SHARED)
    assert (len(train), len(calibration), len(test)) == sizes
    assert not set(train.texts) & set(calibration.texts)
    assert not set(test.ids) & {*train.ids, *calibration.ids}
