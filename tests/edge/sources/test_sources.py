"""Where examples come from: bundled digits, a folder, JSON lines."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import BOUND_S, until
from hypothesis import given
from hypothesis import strategies as st

from coe.cascade import ConfigError
from coe.zoo import digits
from edge.config import SourceConfig
from edge.sources import Example, jsonlines, open_source
from edge.sources.folder import FolderSource
from edge.sources.jsonlines import JsonLinesSource, parse_line
from edge.sources.open import DigitsSource

PNG = digits.test_examples(1)[0][1]


def everything(source: object) -> list[Example]:
    return list(source.examples(threading.Event()))  # type: ignore[attr-defined]


# Digits


def test_the_bundled_digits_come_in_order_with_their_labels():
    examples = everything(DigitsSource())
    assert [(example.id, example.value, example.truth) for example in examples] == digits.test_examples()
    assert len({example.id for example in examples}) == 1000


def test_repeated_digits_have_names_of_their_own():
    examples = everything(DigitsSource(repeat=2))
    assert len(examples) == len({example.id for example in examples}) == 2000
    assert examples[1000].id == examples[0].id + "#2"


def test_the_digits_end_when_told_to_stop():
    stop = threading.Event()
    source = DigitsSource().examples(stop)
    next(source)
    stop.set()
    assert list(source) == []


# A folder


def test_a_folder_once_gives_its_images_in_the_order_of_their_names(tmp_path):
    for name in ("b.png", "a.JPG", "c.jpeg", "notes.txt", "d.png.part"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    examples = everything(FolderSource(tmp_path))
    assert [(example.id, example.value) for example in examples] == [
        ("a.JPG", b"a.JPG"),
        ("b.png", b"b.png"),
        ("c.jpeg", b"c.jpeg"),
    ]


def test_a_file_that_goes_away_before_it_is_read_is_an_error_of_its_own(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(PNG)
    source = FolderSource(tmp_path).examples(threading.Event())
    assert next(source).error is None
    (tmp_path / "b.png").unlink()
    gone, after = source
    assert (gone.id, gone.value, gone.error) == ("b.png", None, "cannot be read: No such file or directory")
    assert after.value == PNG


def test_a_file_that_is_too_large_is_an_error_and_is_not_read_into_memory(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with (tmp_path / "b.png").open("wb") as large:
        large.truncate(2**42)  # no memory holds that
    good, bad = everything(FolderSource(tmp_path))
    assert good.value == PNG
    assert (bad.id, bad.value, bad.error) == (
        "b.png", None, "cannot be read: expected at most 67,108,864 bytes, got 4,398,046,511,104",
    )  # fmt: skip


def test_no_such_folder_is_a_config_error_unless_it_is_watched(tmp_path):
    FolderSource(tmp_path / "nowhere", watch=True)
    with pytest.raises(ConfigError, match=r"source\.path: expected a folder, got .*nowhere"):
        FolderSource(tmp_path / "nowhere")


class Watching:
    """A watched folder, read on a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.stop = threading.Event()
        self.examples: list[Example] = []
        self._source = FolderSource(path, watch=True, poll_s=0.02)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        for example in self._source.examples(self.stop):
            self.examples.append(example)

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive()


def test_a_watched_folder_gives_what_is_there_and_what_comes(tmp_path):
    (tmp_path / "b.png").write_bytes(PNG)
    with Watching(tmp_path) as watching:
        until(lambda: watching.ids == ["b.png"])
        (tmp_path / "a.png").write_bytes(PNG)
        until(lambda: watching.ids == ["b.png", "a.png"])
        time.sleep(0.1)
    assert watching.ids == ["b.png", "a.png"]
    assert all(example.value == PNG for example in watching.examples)


def test_a_file_written_again_is_taken_again(tmp_path):
    path = tmp_path / "camera.png"
    path.write_bytes(b"first")
    with Watching(tmp_path) as watching:
        until(lambda: len(watching.examples) == 1)
        path.write_bytes(b"the second")
        until(lambda: len(watching.examples) == 2)
    assert [example.value for example in watching.examples] == [b"first", b"the second"]


def test_a_watched_folder_that_goes_away_and_comes_back_is_watched_on(tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    with Watching(folder) as watching:
        folder.rmdir()
        time.sleep(0.06)
        folder.mkdir()
        (folder / "a.png").write_bytes(PNG)
        until(lambda: watching.ids == ["a.png"])


def test_watching_ends_soon_after_it_is_told_to(tmp_path):
    with Watching(tmp_path):
        pass  # its exit asserts that the thread ended


@pytest.mark.parametrize(("once", "watches"), [(False, True), (True, False)])
def test_once_does_not_watch(tmp_path, once, watches):
    source = open_source(SourceConfig("folder", tmp_path, watch=True), once)
    assert isinstance(source, FolderSource)
    assert source.watch is watches


# JSON lines


def line_of(**content: object) -> bytes:
    return json.dumps(content).encode()


def test_the_five_kinds_of_a_line(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    file = parse_line(line_of(id="a", file=str(tmp_path / "a.png"), label=3), "line-1")
    image = parse_line(line_of(image=base64.b64encode(PNG).decode()), "line-2")
    pixels = parse_line(line_of(id=7, pixels=[[0, 255], [17, 4]]), "line-3")
    tensor = parse_line(line_of(id="d", tensor=[0.5, -1, 1e3]), "line-4")
    text = parse_line(line_of(id="e", text="a café"), "line-5")
    assert (file.id, file.value, file.truth, file.error) == ("a", PNG, 3, None)
    assert (image.id, image.value, image.truth) == ("line-2", PNG, None)
    assert (pixels.id, pixels.value.tolist(), pixels.value.dtype) == ("7", [[0, 255], [17, 4]], np.uint8)
    assert (tensor.value.tolist(), tensor.value.dtype) == ([0.5, -1.0, 1000.0], np.float32)
    assert (text.id, text.value) == ("e", "a café".encode())


BAD = {
    b"not json": "Expecting value",
    b'{"id": "a", "file":': "Expecting value",
    b"\xff\xfe": "",
    b"[1, 2]": "expected an object",
    b"3": "expected an object",
    b'{"id": "a"}': "expected one of file, image, pixels, tensor, text, got none",
    b'{"file": "a", "image": "b"}': "got file, image",
    b'{"file": "no/such/file.png"}': "No such file or directory",
    b'{"file": "/"}': "directory",
    b'{"file": "a\\u0000b"}': "null",
    b'{"image": "%%%"}': "image: expected base64",
    b'{"image": 3}': "image: expected base64",
    b'{"image": "a\\u00e9"}': "image: expected base64",
    b'{"pixels": [[0, 256]]}': "pixels: expected whole numbers 0 to 255",
    b'{"pixels": [[-1]]}': "pixels: expected whole numbers 0 to 255",
    b'{"pixels": [[0.5]]}': "pixels: expected whole numbers 0 to 255",
    b'{"pixels": [["17"]]}': "pixels: expected whole numbers 0 to 255",
    b'{"pixels": [[true]]}': "pixels: expected whole numbers 0 to 255",
    b'{"pixels": [[1, 2], [3]]}': "pixels: expected",
    b'{"pixels": [[99999999999999999999]]}': "pixels: expected",
    b'{"pixels": {"a": 1}}': "pixels: expected",
    b'{"pixels": [[NaN]]}': "pixels: expected",
    b'{"tensor": ["a"]}': "tensor: expected",
    b'{"tensor": ["1.5"]}': "tensor: expected",
    b'{"tensor": [[1], 2]}': "tensor: expected",
    b'{"tensor": [null]}': "tensor: expected",
    b'{"text": 3}': "text: expected a string, got 3",
    b'{"text": "\\ud800"}': "surrogates not allowed",
    b'{"tensor": [1], "label": "three"}': 'label "three" is none of the task\'s',
    b'{"tensor": [1], "label": true}': "label: expected a name or a whole number",
    b"[" * 100_000: "",
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:30].decode("ascii", "replace"))
def test_a_bad_line_is_an_example_with_its_reason(line):
    example = parse_line(line, "line-9")
    assert example.value is None
    assert example.error.startswith("cannot be read: ")
    assert BAD[line] in example.error
    assert len(example.error) < 400


def test_a_number_too_large_is_infinity_which_the_door_refuses():
    assert parse_line(b'{"tensor": [-1e99, 1]}', "line-1").value.tolist() == [-np.inf, 1]


def test_a_bad_line_keeps_the_id_it_gave():
    assert parse_line(b'{"id": "mine", "image": 3}', "line-9").id == "mine"
    assert parse_line(b'{"id": null, "image": 3}', "line-9").id == "line-9"


@given(line=st.binary(max_size=80) | st.text(max_size=60).map(str.encode))
def test_whatever_the_line_there_is_an_example(line):
    example = parse_line(line, "line-1")
    assert example.id
    assert (example.value is None) == (example.error is not None)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NESTED = st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=3), LEAVES, max_size=2)
VALUES = LEAVES | NESTED | st.lists(LEAVES | NESTED, max_size=3)


@given(content=st.dictionaries(st.sampled_from(["id", "file", "image", "pixels", "tensor", "label"]), VALUES))
def test_whatever_the_object_there_is_an_example(content):
    example = parse_line(json.dumps(content).encode(), "line-1")
    assert (example.value is None) == (example.error is not None)
    if isinstance(example.value, np.ndarray) and "pixels" in content:
        assert example.value.dtype == np.uint8


class Pipe:
    """A stream of which the test holds the other end."""

    def __init__(self) -> None:
        read, self.write_end = os.pipe()
        self.stream = os.fdopen(read, "rb")
        self.stop = threading.Event()
        self.examples: list[Example] = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        for example in JsonLinesSource(self.stream, poll_s=0.02).examples(self.stop):
            self.examples.append(example)

    def say(self, text: bytes) -> None:
        os.write(self.write_end, text)

    def end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def __enter__(self) -> Pipe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._thread.join(BOUND_S)
        alive = self._thread.is_alive()
        self.stream.close()
        assert not alive


def test_lines_are_taken_as_they_come_however_they_are_cut():
    with Pipe() as pipe:
        pipe.say(b'{"id": "a", "tensor": [1]}\n{"id": "b", "ten')
        until(lambda: len(pipe.examples) == 1)
        pipe.say(b'sor": [2]}\n\n  \n{"id": "c", "tensor": [3]}')
        until(lambda: len(pipe.examples) == 2)
        pipe.end()
        until(lambda: len(pipe.examples) == 3)
    assert [example.id for example in pipe.examples] == ["a", "b", "c"]


def test_lines_without_an_id_are_named_by_their_number():
    with Pipe() as pipe:
        pipe.say(b'{"tensor": [1]}\n\n{"tensor": [2]}\nnonsense\n')
        pipe.end()
    assert [example.id for example in pipe.examples] == ["line-1", "line-3", "line-4"]
    assert [example.error is None for example in pipe.examples] == [True, True, False]


def test_a_line_longer_than_the_pipe_arrives_whole():
    numbers = list(range(60_000))
    with Pipe() as pipe:
        writer = threading.Thread(target=lambda: (pipe.say(line_of(id="long", tensor=numbers) + b"\n"), pipe.end()))
        writer.start()
        writer.join(BOUND_S)
    assert pipe.examples[0].value.tolist() == numbers


def test_a_line_costs_no_more_for_each_part_in_which_it_comes(monkeypatch):
    """Of a line of 50 MB, the 800 parts were joined with each one that came."""
    joined = []

    class Parts(bytes):
        def split(self, *arguments: object) -> list[bytes]:
            joined.append(len(self))
            return super().split(*arguments)

    read = os.read
    monkeypatch.setattr(os, "read", lambda *arguments: Parts(read(*arguments)))
    with Pipe() as pipe:
        writer = threading.Thread(target=lambda: (pipe.say(b'{"text": "' + b"a" * 2_000_000 + b'"}\n'), pipe.end()))
        writer.start()
        writer.join(BOUND_S)
    assert len(pipe.examples[0].value) == 2_000_000
    assert sum(joined) == 2_000_013  # each byte is looked at once


def test_a_line_that_is_too_long_is_one_example_and_the_next_is_read(monkeypatch):
    monkeypatch.setattr(jsonlines, "MOST_LINE_BYTES", 100_000)
    with Pipe() as pipe:
        lines = b"x" * 400_000 + b'\n{"tensor": [1]}\n' + b"y" * 300_000
        writer = threading.Thread(target=lambda: (pipe.say(lines), pipe.end()))
        writer.start()
        writer.join(BOUND_S)
    assert [example.id for example in pipe.examples] == ["line-1", "line-2", "line-3"]
    assert pipe.examples[0].error == "cannot be read: expected a line of at most 100,000 bytes, got a longer one"
    assert pipe.examples[1].value.tolist() == [1]
    assert pipe.examples[2].error == pipe.examples[0].error


def test_a_quiet_stream_does_not_keep_the_source_from_stopping():
    with Pipe() as pipe:
        pipe.say(b'{"tensor": [1]}\n')
        until(lambda: len(pipe.examples) == 1)
        pipe.stop.set()
        until(lambda: not pipe._thread.is_alive())


def test_a_file_on_standard_input_is_read_too(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"tensor": [1]}\n{"tensor": [2]}\n')
    with path.open("rb") as stream:
        assert len(everything(JsonLinesSource(stream))) == 2


def test_a_pipe_is_no_file_to_wait_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    example = parse_line(json.dumps({"file": str(pipe)}).encode(), "a")
    assert example.error is not None
    assert "expected a regular file" in example.error


def test_folders_in_a_folder_are_taken_where_it_says_so(tmp_path):
    for name in ("b.png", "day/a.webp", "day/night/c.JPG", "day/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(name.encode())
    assert [example.id for example in everything(FolderSource(tmp_path))] == ["b.png"]
    below = everything(FolderSource(tmp_path, recursive=True))
    assert [(example.id, example.value) for example in below] == [
        ("b.png", b"b.png"),
        ("day/a.webp", b"day/a.webp"),
        ("day/night/c.JPG", b"day/night/c.JPG"),
    ]


def test_a_watched_folder_finds_files_in_new_folders_in_it(tmp_path):
    stop = threading.Event()
    found = FolderSource(tmp_path, True, 0.01, uses_inotify=True, recursive=True).examples(stop)
    (tmp_path / "a.png").write_bytes(b"a IEND\xaeB`\x82")
    assert next(found).id == "a.png"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "b.png").write_bytes(b"b IEND\xaeB`\x82")
    assert next(found).id == "new/b.png"
    stop.set()
    assert next(found, None) is None
