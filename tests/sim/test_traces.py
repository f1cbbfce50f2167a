"""Reading and writing traces, and what is said of a table that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces_of import traces

from coe.cascade import ConfigError
from sim.traces import Trace, read_costs, read_trace, write_parquet

pytest.importorskip("pyarrow")

LONG = """example_id\tlabel\tmodel\tprediction\tscore
x\t1\tsmall\t1\t0.5
y\t0\tsmall\t1\t0.6
y\t0\tlarge\t0\t0.9
x\t1\tlarge\t1\t0.8
"""


def written(folder: Path, text: str, name: str = "trace.tsv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def assert_same(one: Trace, other: Trace) -> None:
    assert one.ids == other.ids
    assert list(one.models) == list(other.models)
    assert np.array_equal(one.labels, other.labels)
    for name in one.models:
        for column in ("predictions", "scores", "probabilities", "latency_s"):
            mine, theirs = getattr(one.models[name], column), getattr(other.models[name], column)
            assert (mine is None) == (theirs is None), (name, column)
            assert mine is None or np.array_equal(mine, theirs), (name, column)


@given(traces(max_rows=20))
def test_a_trace_that_is_written_is_read_back_the_same(tmp_path_factory, trace):
    path = tmp_path_factory.mktemp("trace") / "t.parquet"
    write_parquet(trace, path)
    assert_same(read_trace(path), trace)


def test_latencies_and_payloads_are_kept(tmp_path: Path):
    table = LONG.replace("score\n", "score\tlatency_s\tpayload_bytes\n")
    lines = [f"{line}\t0.001\t{300 + len(line)}" if "\t0." in line else line for line in table.splitlines()]
    trace = read_trace(written(tmp_path, "\n".join(lines) + "\n"))
    write_parquet(trace, tmp_path / "t.parquet")
    again = read_trace(tmp_path / "t.parquet")
    assert_same(again, trace)
    assert again.latency_s("small") == pytest.approx(0.001)
    assert again.payload_bytes.tolist() == trace.payload_bytes.tolist() == [300 + len("x\t1\tsmall\t1\t0.5")] * 2


def test_rows_may_come_in_any_order(tmp_path: Path):
    trace = read_trace(written(tmp_path, LONG))
    assert trace.ids == ("x", "y")
    assert trace.labels.tolist() == [1, 0]
    assert trace.models["large"].predictions.tolist() == [1, 0]
    assert trace.models["large"].scores.tolist() == pytest.approx([0.8, 0.9])
    assert trace.accuracy("small") == 0.5


def test_csv_and_lists_of_probabilities_are_read(tmp_path: Path):
    text = "example_id,label,model,prediction,probabilities\nx,1,a,1,0.25 0.75\ny,0,a,0,0.5 0.5\n"
    trace = read_trace(written(tmp_path, text, "t.csv"))
    assert trace.models["a"].probabilities.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert trace.has_probabilities


def test_a_wide_table_of_exits_has_a_model_for_each_column(tmp_path: Path):
    trace = read_trace(written(tmp_path, "example_id\tlabel\texit0\texit1\nx\t1\t0\t1\ny\t0\t0\t0\n"))
    assert list(trace.models) == ["exit0", "exit1"]
    assert trace.models["exit0"].predictions.tolist() == [0, 0]
    assert not trace.has_scores


def test_a_wide_parquet_table_is_read_too(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    columns = {"example_id": ["x", "y"], "label": [1, 0], "exit0": [0, 0], "exit1": [1, 0], "note": ["a", "b"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "wide.parquet")
    assert list(read_trace(tmp_path / "wide.parquet").models) == ["exit0", "exit1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("label\t", "truth\t"), "column label: expected this column, got none"),
        (("x\t1\tsmall\t1", "x\tcat\tsmall\t1"), 'column label, row 1: expected a number, got "cat"'),
        (("x\t1\tsmall\t1", "x\t-1\tsmall\t1"), "column label, row 1: expected a label 0, 1, 2 .., got -1"),
        (("x\t1\tsmall\t1", "x\t0\tsmall\t1"), r"column label, row 4: expected one label for x, got \[0, 1\]"),
        (("y\t0\tlarge\t0", "y\t0\tlarge\t0.5"), "column prediction, row 3: expected a label"),
        (("y\t0\tlarge\t0", "x\t1\tlarge\t0"), "column example_id, row 4: expected x once for model large"),
        (("y\t0\tlarge\t0\t0.9\n", ""), "column model: expected every model on every example, got none of large on y"),
        (("\t0.6", "\t"), "column score, row 2: expected a number for every example of small or for none, got nothing"),
        (("\t0.6", "\tinf"), "column score, row 2: expected a number"),
        (("\t0.6", ""), "row 2: expected 5 cells as in the header, got 4"),
    ],
)
def test_what_is_wrong_is_named_by_file_column_and_row(tmp_path: Path, change: tuple[str, str], words: str):
    path = written(tmp_path, LONG.replace(*change))
    with pytest.raises(ConfigError, match=words) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


EXPORTS = {  # one trace as programs write it
    "pandas": ",example_id,label,model,prediction,score\n0,x,1,a,1,0.75\n1,y,0,a,1,0.5\n",
    "a named index": "index,example_id,label,model,prediction,score\n0,x,1,a,1,0.75\n1,y,0,a,1,0.5\n",
    "Excel, German": "\ufeffExample ID;Label;Model;Prediction;SCORE\r\nx;1;a;1;0,75\r\ny;0;a;1;0,5\r\n",
    "spaces": "example_id, label, model, prediction, score\nx, 1, a , 1, 0.75\n y, 0, a, 1, 0.5\n\n",
    "quoted, other columns": '"example_id","label","model","prediction","score","note"\n"x","1","a","1","0.75","u,v"\n'
    '"y","0","a","1","0.5",""\n',
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_tables_of_excel_and_pandas_are_read(tmp_path: Path, kind: str):
    trace = read_trace(written(tmp_path, EXPORTS[kind], "t.csv"))
    assert (trace.ids, trace.labels.tolist(), list(trace.models)) == (("x", "y"), [1, 0], ["a"])
    assert trace.models["a"].scores.tolist() == [0.75, 0.5]


@pytest.mark.parametrize("name", ["confidence", "Prob"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_may_be_the_score_is_asked_about(tmp_path: Path, name: str, suffix: str):
    import pyarrow
    import pyarrow.parquet

    columns = {"example_id": ["x"], "label": [1], "model": ["a"], "prediction": [1], name: [0.5]}
    path = tmp_path / f"t{suffix}"
    if suffix == ".csv":
        path.write_text(",".join(columns) + "\nx,1,a,1,0.5\n")
    else:
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(ConfigError, match=f'column score: expected this column beside "{name}", got none \\(rename'):
        read_trace(path)


GOOD = {"example_id": ["x", "y"], "label": [1, 0], "model": ["a", "a"], "prediction": [1, 0]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"example_id": ["x", None]}, "column example_id, row 2: expected a name, got nothing"),
        ({"model": [None, None]}, "column model, row 1: expected a name, got nothing"),
        ({"model": [["a"], ["a"]]}, "column model: expected names, got list"),
        ({"label": [1, None]}, "column label, row 2: expected a label 0, 1, 2 .., got nothing"),
        ({"label": ["cat", "dog"]}, "column label: expected numbers, got string"),
        ({"probabilities": ["0.5 0.5", "1 0"]}, "column probabilities: expected a list of numbers a row, got string"),
        ({"probabilities": [["a"], ["b"]]}, "column probabilities: expected a list of numbers a row, got list"),
        ({"probabilities": [[0.5, None], [1, 0]]}, "column probabilities, row 1: expected one number per label"),
        ({"score": [0.5, float("nan")]}, "column score, row 2: expected a number for every example"),
    ],
)
def test_nonsense_in_parquet_is_one_clear_line(tmp_path: Path, change: dict, words: str):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(GOOD | change), path)
    with pytest.raises(ConfigError, match=words) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


def test_an_index_of_pandas_is_no_model(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    wide = {"Example_ID": ["x"], "label": [1], "exit0": [0], "__index_level_0__": [7]}
    pyarrow.parquet.write_table(pyarrow.table(wide), tmp_path / "w.parquet")
    assert list(read_trace(tmp_path / "w.parquet").models) == ["exit0"]


def test_prices_in_any_usual_spelling(tmp_path: Path):
    trace = read_trace(written(tmp_path, LONG))
    (tmp_path / "costs.yaml").write_text("flops: {small: 1.0e9, large: 2E10}\n")
    (costs,) = read_costs(str(tmp_path / "costs.yaml"), trace)
    assert costs.of == {"small": 1e9, "large": 2e10}
    (tmp_path / "p.csv").write_text("task;model;price_usd_per_10k_calls\ntrace;small;1.0e-1\ntrace;large;2,5\n")
    (costs, *_) = read_costs(str(tmp_path / "p.csv"), trace)
    assert costs.of == {"small": 0.1, "large": 2.5}


@pytest.mark.parametrize("name", ["trace.parquet", "trace.tsv"])
def test_a_file_that_is_no_trace_is_a_clear_error(tmp_path: Path, name: str):
    path = tmp_path / name
    with pytest.raises(ConfigError, match="no such file"):
        read_trace(path)
    path.write_bytes(b"\xff nothing of the kind")
    with pytest.raises(ConfigError, match="expected a"):
        read_trace(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="expected a"):
        read_trace(path)


def test_probabilities_of_different_length_are_named(tmp_path: Path):
    text = "example_id,label,model,prediction,probabilities\nx,1,a,1,0.25 0.75\ny,0,a,0,0.5\n"
    with pytest.raises(ConfigError, match="column probabilities, row 2: expected 2 numbers, got 1"):
        read_trace(written(tmp_path, text, "t.csv"))


def test_without_pyarrow_the_error_names_the_installation(tmp_path: Path, monkeypatch):
    import sys

    path = written(tmp_path, "", "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Exception, match=r"pip install 'coe-cascade\[sim\]'"):
        read_trace(path)


@given(traces(), st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 5))
def test_a_split_keeps_every_example_once_and_the_share_of_every_label(trace, share, seed):
    chosen, rest = trace.split(share, np.random.default_rng(seed))
    assert sorted(chosen.ids + rest.ids) == sorted(trace.ids)
    for label in set(trace.labels.tolist()):
        n = int((trace.labels == label).sum())
        assert abs(int((chosen.labels == label).sum()) - share * n) <= 1
    again, _ = trace.split(share, np.random.default_rng(seed))
    assert again.ids == chosen.ids
