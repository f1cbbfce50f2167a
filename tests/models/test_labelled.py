"""Labelled examples are read in the forms in which people have them, or refused with the true reason."""

from __future__ import annotations

import base64
import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.cascade.errors import ConfigError, InputError
from coe.models import InputDecoder, InputSpec, TextInputSpec
from coe.models.labelled import TableReader, json_value, number_of, read_labelled
from coe.models.tables import Rows, find_column, read_table

NAMES = ("good", "scratched", "bent")
IMAGE = InputSpec("image", (4, 4, 1))
ROW = InputSpec("tensor", (3,))
WINDOW = InputSpec("tensor", (4, 2))
TEXT = TextInputSpec("text", ())
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


def read(place, spec, **options):
    found = read_labelled(place, spec, **options)
    InputDecoder(spec).batch(found.ids, list(found.values))  # a task takes them as they are read
    return found


def test_a_folder_per_label_and_a_flat_folder(tmp_path):
    for label, name in (("bent", "a.png"), ("bent", ".hidden.png"), ("good", "b.PNG"), ("good", "notes.doc")):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / name).write_bytes(PNG)
    found = read(tmp_path, IMAGE)
    assert (found.ids, found.written) == (("bent/a.png", "good/b.PNG"), ("bent", "good"))
    assert found.numbers(NAMES).tolist() == [2, 0]
    flat = read(tmp_path / "bent", IMAGE)
    assert (flat.ids, flat.written) == (("a.png",), (None,))
    with pytest.raises(ConfigError, match=r"expected a label for every example, got none for a\.png"):
        flat.numbers(NAMES)


def test_a_folder_of_other_files_is_said(tmp_path):
    for name in ("a.webp2", "b.webp2", "c.doc"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"got 3 files: 2 \.webp2, 1 \.doc"):
        read(tmp_path, IMAGE)


@pytest.mark.parametrize("list_name", ["labels.csv", "labels.tsv", "elsewhere.csv"])
def test_a_list_of_files(tmp_path, list_name):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / list_name).write_text(
        "file,label\na.png,scratched\na.png,2\n".replace(",", "\t" if "tsv" in list_name else ",")
    )
    found = read(tmp_path if "labels" in list_name else tmp_path / list_name, IMAGE)
    assert found.numbers(NAMES).tolist() == [1, 2]


EXCEL = "\ufeffId;Width ; Height;Depth;Label\r\n7;0,5;1;2e1;Good\r\n8;-1,25;0;3;2\r\n;;;;\r\n"
TABLES = {
    "pandas": ",a,b,c,label\n0,0.5,1,20,good\n1,-1.25,0,3,bent\n",
    "pandas with a named index": "index,a,b,c,target\n0,0.5,1,20,good\n1,-1.25,0,3,bent\n",
    "Excel, German": "\ufeffId;Width ; Height;Depth;Label\r\n7;0,5;1;2e1;good\r\n8;-1,25;0;3;bent\r\n",
    "Excel with sep=": "sep=;\na;b;c;CLASS\n0,5;1;20;good\n-1,25;0;3;bent\n",
    "tabs and spaces": "a\t b\tc\tlabel\n0.5\t1\t20\t good \n -1.25\t0\t3\tbent\n\n",
    "quoted": '"a","b","c","label"\n"0.5","1","20","good"\n"-1.25","0","3","bent"\n',
    "a label of another name": "a,b,c,state\n0.5,1,20,good\n-1.25,0,3,bent\n",
    "numbers as labels": "a,b,c,label\n0.5,1,20,0.0\n-1.25,0,3,2\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_numbers_as_programs_write_them(tmp_path, kind):
    path = tmp_path / "d.csv"
    path.write_text(TABLES[kind], encoding="utf-8", newline="")
    found = read(path, ROW)
    assert np.stack(found.values).tolist() == [[0.5, 1, 20], [-1.25, 0, 3]]
    assert found.numbers(NAMES).tolist() == [0, 2]


def test_columns_that_are_named_are_taken_of_a_table_that_has_more(tmp_path):
    (tmp_path / "d.csv").write_text("t,c,a,b,state\n7,3,1,2,bent\n")
    found = read(tmp_path / "d.csv", ROW, columns=("a", "b", "c"))
    assert (found.values[0].tolist(), found.written) == ([1, 2, 3], ("bent",))
    (tmp_path / "d.csv").write_text("x,y,z,label\n1,2,3,bent\n")
    assert read(tmp_path / "d.csv", ROW, columns=("a", "b", "c")).values[0].tolist() == [1, 2, 3]


def test_utf16_is_read_and_another_encoding_is_said(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes("text;label\ncafé;good\n".encode("utf-16"))
    assert read(path, TEXT).values == ("café".encode(),)
    path.write_bytes("text;label\ncafé;good\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r'expected a table in UTF-8 text: .*in Excel, as "CSV UTF-8"'):
        read(path, TEXT)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b,label\n1,2,good\n", r"expected 3 numbers an example for the shape \[3\], got 2 columns \(a, b\)"),
        ("a,b,c,label\n1,2,,good\n", 'column c: expected a number, got ""'),
        ("a,b,c,label\n1,2,three,good\n", 'column c: expected a number, got "three"'),
        ("a,b,c,label\n1,2,good\n", "row 1: expected 4 cells as in the header, got 3"),
        ("a,a,c,label\n", 'expected each column once, got "a" twice'),
        ("", "expected a header line, got an empty file"),
        ("a,b,c,label\n", "expected examples, got none"),
        ('a,b,c,label\n1,2,3,"go', "row 1: expected a line of a table"),
    ],
)
def test_what_is_no_such_table_is_said(tmp_path, content, words):
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read(tmp_path / "d.csv", ROW)


def test_labels_that_are_none_of_the_tasks_are_said(tmp_path):
    (tmp_path / "d.csv").write_text("a,b,c,label\n1,2,3,torn\n")
    with pytest.raises(ConfigError, match=r'label "torn" is none of the task\'s \(good, scratched, bent\)'):
        read(tmp_path / "d.csv", ROW).numbers(NAMES)
    with pytest.raises(ValueError, match="label 3 is none of the task's: expected 0 to 2"):
        number_of("3", NAMES)
    assert number_of("1", ("3", "2", "1")) == 2  # a name, before it is a number
    assert number_of(1, ("3", "2", "1")) == 1


def test_texts_in_tables_lines_and_files(tmp_path):
    (tmp_path / "d.tsv").write_text('sentence\tlabel\n"so" he said, 1,5 times \tgood\n')
    assert read(tmp_path / "d.tsv", TEXT).values == (b'"so" he said, 1,5 times ',)
    (tmp_path / "d.csv").write_text('Text,Label\n"so, he said",good\n')
    assert read(tmp_path / "d.csv", TEXT).values == (b"so, he said",)
    (tmp_path / "d.jsonl").write_text('{"text": "so", "label": "good"}\n\n{"id": 7, "text": "no", "label": 1}\n')
    found = read(tmp_path / "d.jsonl", TEXT)
    assert (found.ids, found.numbers(NAMES).tolist()) == (("line-1", "7"), [0, 1])
    (tmp_path / "t" / "bent").mkdir(parents=True)
    (tmp_path / "t" / "bent" / "a.txt").write_text("so")
    assert read(tmp_path / "t", TEXT).written == ("bent",)


def test_json_lines_name_files_beside_them(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "d.jsonl").write_text('{"file": "a.png", "label": 1}\n')
    assert read(tmp_path / "d.jsonl", IMAGE).values == (PNG,)
    (tmp_path / "d.jsonl").write_text('{"file": "a.png", "label": 1}\n{"file": "b.png", "label": 1}\n')
    with pytest.raises(ConfigError, match=r"line 2: .*No such file"):
        read(tmp_path / "d.jsonl", IMAGE)
    assert len(read(tmp_path / "d.jsonl", IMAGE, limit=1)) == 1


@given(st.binary(min_size=1, max_size=200), st.sampled_from([0, 19, 76]), st.booleans())
def test_base64_in_lines_and_data_uris(data, width, is_uri):
    text = base64.b64encode(data).decode()
    text = "\r\n".join(text[at : at + width] for at in range(0, len(text), width)) if width else text
    assert json_value({"image": f"data:image/png;base64,{text}" if is_uri else text + "\n"}) == data


def test_a_data_uri_that_is_no_base64_is_said():
    with pytest.raises(ValueError, match="expected data:image/"):
        json_value({"image": "data:image/svg+xml,<svg/>"})


@pytest.mark.parametrize(
    "y",
    [np.array([1, 0]), np.array([[1], [0]]), np.array([1.0, 0.0]), np.eye(3)[[1, 0]], np.array(["scratched", "good"])],
)
def test_arrays_with_labels_in_any_usual_form(tmp_path, y):
    np.savez(tmp_path / "d.npz", X=np.ones((2, 3), np.float32), y=y)
    found = read(tmp_path / "d.npz", ROW)
    assert (found.ids, found.numbers(NAMES).tolist()) == (("d-0", "d-1"), [1, 0])


def test_arrays_without_labels_and_others(tmp_path):
    np.save(tmp_path / "d.npy", np.zeros((2, 4, 4), np.uint8))
    assert read(tmp_path / "d.npy", IMAGE).written == (None, None)
    np.savez(tmp_path / "d.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(ConfigError, match="expected the arrays x and y, got a, b"):
        read(tmp_path / "d.npz", ROW)
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3)), y=np.zeros(3))
    with pytest.raises(ConfigError, match="as many labels as examples, got 3 and 2"):
        read(tmp_path / "d.npz", ROW)
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    with pytest.raises(ConfigError, match="without Python objects"):
        read(tmp_path / "o.npy", ROW)
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match="without Python objects"):
        read(tmp_path / "e.npz", ROW)
    with pytest.raises(
        ConfigError, match=r"that ends in \.csv, \.tsv, \.jsonl, \.npz, \.npy, got another \(it does not exist"
    ):
        read(tmp_path / "d.parq", ROW)


def test_rows_of_a_sensor_are_put_together(tmp_path):
    rows = [f"{at},{at / 2},{'good' if at < 5 else 'bent'}" for at in range(9)]
    (tmp_path / "d.csv").write_text("\n".join(["ax,ay,label", *rows]) + "\n")
    found = read(tmp_path / "d.csv", WINDOW)
    assert found.written == ("good", "bent")
    assert found.values[1].tolist() == [[4, 2], [5, 2.5], [6, 3], [7, 3.5]]
    by_channel = read(tmp_path / "d.csv", InputSpec("tensor", (1, 2, 4)))
    assert by_channel.values[1].tolist() == [found.values[1].T.tolist()]
    (tmp_path / "w" / "bent").mkdir(parents=True)
    (tmp_path / "w" / "bent" / "one.csv").write_text("ax,ay\n" + "\n".join(f"{at},{at / 2}" for at in range(4, 8)))
    assert read(tmp_path / "w", WINDOW).values[0].tolist() == found.values[1].tolist()


@given(n_rows=st.integers(0, 30), window=st.integers(1, 5), hop=st.integers(1, 8))
def test_windows_begin_each_hop(n_rows, window, hop):
    reader = TableReader(("v",), InputSpec("tensor", (window,)), window=window, hop=hop)
    found = [one[0].tolist() for at in range(n_rows) if (one := reader.add([str(at)])) is not None]
    assert found == [list(range(start, start + window)) for start in range(0, n_rows - window + 1, hop)]


def test_after_a_row_that_is_none_a_window_begins_anew():
    reader = TableReader(("v", "label"), InputSpec("tensor", (2,)))
    assert reader.add(["1", "a"]) is None
    with pytest.raises(InputError, match='column v: expected a number, got "x"'):
        reader.add(["x", "a"])
    assert reader.add(["2", "a"]) is None
    x, label = reader.add(["3", ""])
    assert (x.tolist(), label) == ([2, 3], "a")


def test_columns_are_found_whatever_their_case():
    assert find_column(["Example ID", " LABEL"], ("example_id",)) == "Example ID"
    assert find_column(["Example ID", " LABEL"], ("class", "label")) == " LABEL"
    assert find_column(["a"], ("b",)) is None


@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_the_lines_there_are_rows_or_a_reason(header, rest):
    with contextlib.suppress(ValueError):
        rows = Rows([header, rest])
        for cells in rows:
            assert len(cells) == len(rows.names)


def test_rows_go_on_after_one_that_cannot_be_read():
    rows = Rows(["a,b\n", "1\n", "2,3\n"])
    with pytest.raises(ValueError, match="row 1: expected 2 cells"):
        next(rows)
    assert next(rows) == ["2", "3"]


def test_a_column_of_an_index_is_no_column(tmp_path):
    (tmp_path / "t.csv").write_text("index,a\n5,1\n6,2\n")
    assert list(read_table(tmp_path / "t.csv")) == ["index", "a"]  # it does not count the rows
    (tmp_path / "t.csv").write_text("Unnamed: 0,a\n5,1\n6,2\n")
    assert list(read_table(tmp_path / "t.csv")) == ["a"]


def test_lines_are_read_as_they_are_written(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"tensor": [1, 2, 3]}) + "\n[]\n")
    with pytest.raises(ConfigError, match="line 2: expected an object"):
        read(tmp_path / "d.jsonl", ROW)
