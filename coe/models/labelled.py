"""Labelled examples, in the forms in which people have them, as a task takes them.

A folder per label, or files and a `labels.tsv`; a table (CSV, TSV) of file names, of texts or of numbers; JSON lines;
arrays (.npz, .npy). Rows of a table that hold less than an example are put together: windows of a sensor's rows.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from coe.cascade.errors import ConfigError, InputError, describe_error
from coe.cascade.types import Array, Labels

from .input_spec import InputSpec
from .tables import ID, LABEL, Label, TableReader, as_shape, find_column, number_in, read_table
from .tables import SUFFIXES as TABLES

FILE = ("file", "path", "image", "filename")  # names that a column may have, the first that is there
TEXT = ("text", "sentence")
LISTS = ("labels.tsv", "labels.csv")
LINES = (".jsonl", ".ndjson", ".json")
ARRAYS = (".npz", ".npy")
FILES = {"image": (".png", ".jpg", ".jpeg"), "text": (".txt",), "tensor": (".npy", ".csv")}  # one example each
X, Y = ("x", "examples", "images", "data", "features"), ("y", "labels", "label", "targets", "target")
MOST_BYTES = 64 * 2**20  # of one file that is an example


@dataclass(frozen=True, slots=True)
class LabelledExamples:
    """Examples as captured, with their labels as they are written.

    Args:
        ids: of each, its file or row.
        values: encoded bytes, or arrays, as `InputDecoder.batch` takes them.
        written: a name or a number each; None where it is not known.
        place: where they are from, for errors.
    """

    ids: Sequence[str]
    values: Sequence[bytes | Array]
    written: Sequence[Label]
    place: str

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self, names: Sequence[str]) -> Labels:
        """(B,) each label's number among the task's names.

        Raises:
            ConfigError: a label is not known, or is none of them.
        """
        try:
            found = [number_of(label, names) for label in self.written]
        except ValueError as error:
            raise ConfigError([str(error)], self.place) from None
        if None in found:
            raise ConfigError(
                [f"expected a label for every example, got none for {self.ids[found.index(None)]}"], self.place
            )
        return np.array(found, dtype=np.int64)


def number_of(label: Label, names: Sequence[str]) -> int | None:
    """A label's number: by its name, else as the number that it is; None where there is none.

    Raises:
        ValueError: it is none of the task's.
    """
    if isinstance(label, str):
        label = label.strip() or None
    if label is None:
        return None
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        if not re.fullmatch(r"\d+(\.0+)?", label):  # pandas writes 1.0 where a column has gaps
            raise ValueError(f'label "{label}" is none of the task\'s ({_some(names)})')
        label = int(float(label))
    if not 0 <= label < len(names):
        raise ValueError(
            f"label {label} is none of the task's: expected 0 to {len(names) - 1}, or a name ({_some(names)})"
        )
    return label


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", .." if len(names) > 10 else "")


def read_labelled(place: Path, input_spec: InputSpec, limit: int | None = None) -> LabelledExamples:
    """The examples of a folder or a file, in the order they have there, folders by name.

    Args:
        input_spec: of the task: what an example is.
        limit: the first so many.
    Raises:
        ConfigError: there are none, or one cannot be read; names the file, the row and what was expected.
    """
    suffix = place.suffix.lower()
    try:
        if place.is_dir():
            rows = _in_folder(place, input_spec)
        elif suffix in TABLES:
            rows = _in_table(place, input_spec)
        elif suffix in LINES:
            rows = _in_lines(place, input_spec)
        elif suffix in ARRAYS:
            rows = _in_arrays(place)
        else:
            forms = ", ".join((*TABLES, *LINES[:1], *ARRAYS))
            fix = "correct the name" if place.is_file() else "it does not exist: correct the path"
            raise ConfigError([f"expected a folder, or a file that ends in {forms}, got {place} ({fix})"])
        first = list(islice(rows, limit))
    except (ValueError, InputError) as error:
        raise ConfigError([str(error)], str(place)) from None
    except OSError as error:
        raise ConfigError([f"cannot be read: {describe_error(error)}"], str(place)) from None
    if not first:
        raise ConfigError(["expected examples, got none"], str(place))
    ids, values, written = zip(*first, strict=True)
    return LabelledExamples(ids, values, written, str(place))


Row = tuple[str, bytes | Array, Label]


def _in_folder(folder: Path, spec: InputSpec) -> Iterator[Row]:
    """By the list in it, else by its sub-folders, else the files directly in it, whose labels are not known."""
    listed = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    if listed is not None:
        yield from _in_table(listed, spec, is_list=True)
        return
    paths = [path for path in sorted(folder.glob("*/*")) if _is_example(path, spec)]
    paths = paths or [path for path in sorted(folder.iterdir()) if _is_example(path, spec)]
    if not paths:
        wanted = f"{', '.join(FILES[spec.kind])} files in a folder per label, or a labels.tsv"
        raise InputError(f"expected {wanted}, got {what_is_in(folder)} (or name the file of a table)")
    for path in paths:
        label = path.parent.name if path.parent != folder else None
        yield path.relative_to(folder).as_posix(), read_example(path, spec), label


def _is_example(path: Path, spec: InputSpec) -> bool:
    return path.suffix.lower() in FILES[spec.kind] and path.is_file() and not path.name.startswith(".")


def what_is_in(folder: Path) -> str:
    """What a folder holds, by suffix: "12 files: 9 .webp, 3 .txt"; "nothing"."""
    found = Counter(
        path.suffix.lower() or "without a suffix"
        for path in (*folder.glob("*"), *folder.glob("*/*"))
        if path.is_file() and not path.name.startswith(".")
    )
    if not found:
        return "nothing"
    listed = ", ".join(f"{n} {suffix}" for suffix, n in found.most_common(5))
    return f"{found.total()} files: {listed}{', ..' if len(found) > 5 else ''}"


def read_example(path: Path, spec: InputSpec) -> bytes | Array:
    """The example in one file: its bytes; of a task of numbers, the array in a .npy or .csv.

    Raises:
        InputError: it holds another thing. OSError: it cannot be read.
    """
    if spec.kind != "tensor" or path.suffix.lower() not in (".npy", ".csv"):
        return read_regular(path)
    if path.suffix.lower() == ".npy":
        return _load(path)
    try:
        table = read_table(path)
    except ConfigError as error:
        raise InputError(error.findings[0]) from None
    rows = [
        [number_in(cell, name) for name, cell in zip(table, cells, strict=True)]
        for cells in zip(*table.values(), strict=True)
    ]
    return as_shape(np.array(rows, dtype=np.float32), spec.shape)


def read_regular(path: Path) -> bytes:
    """A regular file's bytes: reading a pipe could wait for ever.

    Raises:
        ValueError: it is none, or too large. OSError: it cannot be read.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # reading a directory is an error itself
        raise ValueError(f"file: expected a regular file, got {path}")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"file: expected at most {MOST_BYTES} bytes, got {status.st_size}")
    return path.read_bytes()


def _in_table(path: Path, spec: InputSpec, *, is_list: bool = False) -> Iterator[Row]:
    """Rows with file names, texts or numbers, as the task is."""
    table = read_table(path, quoted=spec.kind != "text" or path.suffix.lower() != ".tsv")  # as SST-2 is published
    names = tuple(table)
    rows = list(zip(*table.values(), strict=True))
    name, label = (find_column(names, wanted) for wanted in (ID, LABEL))
    ids = table[name] if name else [f"{path.stem}-{number:05d}" for number in range(len(rows))]
    kind = TEXT if spec.kind == "text" and not is_list else FILE
    column = find_column(names, kind)
    if column is None and spec.kind == "tensor" and not is_list:
        reader = TableReader(names, spec)
        for own, cells in zip(ids, rows, strict=True):
            if (found := reader.add(cells)) is not None:
                yield own, *found
        return
    if column is None or (is_list and label is None):
        raise InputError(f"expected the columns {kind[0]} and label, got {', '.join(names)}")
    labels: Sequence[Label] = table[label] if label else [None] * len(rows)
    for own, cell, written in zip(ids, table[column], labels, strict=True):
        if kind is TEXT:
            yield own, cell.encode(), written
        else:
            yield own if name else cell, read_example(path.parent / cell, spec), written


def _in_lines(path: Path, spec: InputSpec) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                content = read_object(line)
                name = str(content.get("id") or f"line-{number}")
                yield name, json_value(content, path.parent), json_label(content)
            except (ValueError, OSError, RecursionError) as error:
                raise InputError(f"line {number}: {describe_error(error)}") from None


JSON_KINDS = ("file", "image", "pixels", "tensor", "text")


def read_object(line: bytes) -> dict[str, Any]:
    """The JSON object in a line; raises ValueError where it is none."""
    content = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(content, dict):
        raise ValueError('expected an object such as {"id": "a", "file": "a.png"}')
    return content


def json_label(content: dict[str, Any]) -> Label:
    """What an object says its label is, a name or a number; raises ValueError where it is neither."""
    label = content.get("label")
    if isinstance(label, bool) or not isinstance(label, str | int | None):
        raise ValueError(f"label: expected a name or a whole number, got {label!r}")
    return label


def json_value(content: dict[str, Any], folder: Path = Path()) -> bytes | Array:
    """The example in an object, in one of JSON_KINDS; relative files start at `folder`.

    Raises:
        ValueError: what was expected. OSError: its file cannot be read.
    """
    kinds = [kind for kind in JSON_KINDS if kind in content]
    if len(kinds) != 1:
        raise ValueError(f"expected one of {', '.join(JSON_KINDS)}, got {', '.join(kinds) or 'none'}")
    kind, value = kinds[0], content[kinds[0]]
    if kind == "file":
        return read_regular(folder / str(value))
    if kind == "text":
        if not isinstance(value, str):
            raise ValueError(f"text: expected a string, got {value!r}")
        return value.encode()
    if kind == "image":
        return _from_base64(value)
    try:
        array = np.array(value)  # keeps the numbers' kind: a direct cast would accept 0.5 and "17" as whole numbers
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{kind}: expected nested lists of numbers, {error}") from None
    if kind == "pixels":
        if array.dtype.kind not in "iu" or not (array.min() >= 0 and array.max() <= 255):
            raise ValueError("pixels: expected whole numbers 0 to 255")
        return array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise ValueError("tensor: expected nested lists of numbers")
    with np.errstate(over="ignore"):  # too large becomes infinity, which the decoder refuses
        return array.astype(np.float32)


def _from_base64(value: Any) -> bytes:
    """The bytes of base64, in lines as `base64` writes them or in a data: URI or not; raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"image: expected base64, got {type(value).__name__}")
    head, comma, rest = value.partition(",")
    if value.startswith("data:"):
        if not comma or not head.endswith(";base64"):
            raise ValueError(f"image: expected data:image/...;base64,..., got {value[:40]!r}")
        value = rest
    try:
        return base64.b64decode(re.sub(r"\s", "", value), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"image: expected base64, {error}") from None


def _in_arrays(path: Path) -> Iterator[Row]:
    """The rows of an .npz's `x` with its `y`, or of an .npy, whose labels are not known."""
    x, y = read_arrays(path)
    if y is not None and len(y) != len(x):
        raise InputError(f"expected as many labels as examples, got {len(y)} and {len(x)}")
    for number, value in enumerate(x):
        yield f"{path.stem}-{number}", value, None if y is None else y[number]


def read_arrays(path: Path) -> tuple[Array, list[Label] | None]:
    """(B, ...) examples, in an .npy left on the disk until they are read; and their labels, where there are any.

    Raises:
        InputError: other arrays. OSError: it cannot be read.
    """
    if path.suffix.lower() == ".npy":
        return _load(path, "r"), None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x, y = find_column(arrays, X), find_column(arrays, Y)
            if x is None:
                raise InputError(
                    f"expected the arrays x and y, got {', '.join(arrays) or 'none'} (np.savez(.., x=x, y=y))"
                )
            return arrays[x], None if y is None else _labels(arrays[y])
    except (ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"expected arrays without Python objects: {error}") from None


def _load(path: Path, mode: Any = None) -> Array:
    try:
        array: Array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"expected an array without Python objects: {error}") from None
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise InputError("expected an array [examples, ...], got another thing")
    return array


def _labels(y: Array) -> list[Label]:
    """Names or numbers from (B,), (B, 1) or one-hot (B, L)."""
    if y.ndim == 2 and y.shape[1] > 1 and (y.sum(axis=1) == 1).all():
        y = y.argmax(axis=1)
    y = y.ravel() if y.ndim == 2 and y.shape[1] == 1 else y
    if y.dtype.kind == "f" and (y == np.floor(y)).all():
        y = y.astype(np.int64)
    if y.ndim != 1 or y.dtype.kind not in "iuUS":
        raise InputError(f"expected labels (names or whole numbers) in y, got {y.dtype} {list(y.shape)}")
    return [one.decode() if isinstance(one, bytes) else one for one in y.tolist()]
