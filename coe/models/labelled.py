"""Labelled examples, in the forms in which people have them, as a task takes them.

A folder per label, or files and a `labels.tsv`; a table (CSV, TSV) of file names, of texts or of numbers; JSON lines;
arrays (.npz, .npy). Rows of a table that hold less than an example are put together: windows of a sensor's rows.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
import re
import stat
from collections import Counter, deque
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
from .inputs import SUFFIXES as IMAGES
from .tables import SUFFIXES as TABLES
from .tables import find_column, read_table

LABEL = ("label", "class", "target", "y")  # names that a column may have, the first that is there
ID = ("id", "example_id")
FILE = ("file", "path", "image", "filename")
TEXT = ("text", "sentence")
LISTS = ("labels.tsv", "labels.csv")
LINES = (".jsonl", ".ndjson", ".json")
ARRAYS = (".npz", ".npy")
FILES = {"image": IMAGES, "text": (".txt",), "tensor": (".npy", ".csv")}  # one example each
X, Y = ("x", "examples", "images", "data", "features"), ("y", "labels", "label", "targets", "target")
MOST_BYTES = 64 * 2**20  # of one file that is an example

Label = str | int | None  # as written: a name, or a number; None: it is not known


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


def read_labelled(
    place: Path, input_spec: InputSpec, limit: int | None = None, columns: Sequence[str] = ()
) -> LabelledExamples:
    """The examples of a folder or a file, in the order they have there, folders by name.

    Args:
        input_spec: of the task: what an example is.
        limit: the first so many.
        columns: of a table, those of numbers, where it has them all.
    Raises:
        ConfigError: there are none, or one cannot be read; names the file, the row and what was expected.
    """
    rows = list(islice(rows_in(place, input_spec, columns), limit))
    if not rows:
        raise ConfigError(["expected examples, got none"], str(place))
    ids, values, written = zip(*rows, strict=True)
    return LabelledExamples(ids, values, written, str(place))


Row = tuple[str, bytes | Array, Label]


def rows_in(place: Path, spec: InputSpec, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Id, value and label of each example as they are read, as `read_labelled` says; it has the errors, too."""
    suffix = place.suffix.lower()
    try:
        if place.is_dir():
            yield from _in_folder(place, spec)
        elif suffix in TABLES:
            yield from _in_table(place, spec, columns)
        elif suffix in LINES:
            yield from _in_lines(place)
        elif suffix in ARRAYS:
            yield from _in_arrays(place)
        else:
            forms = ", ".join((*TABLES, *LINES[:1], *ARRAYS))
            fix = "rename it" if place.is_file() else "it does not exist: correct the path"
            raise InputError(f"expected a folder, or a file that ends in {forms}, got another ({fix})")
    except (ValueError, InputError) as error:
        raise ConfigError([str(error)], str(place)) from None
    except OSError as error:
        raise ConfigError([f"cannot be read: {describe_error(error)}"], str(place)) from None


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


def _in_table(path: Path, spec: InputSpec, columns: Sequence[str] = (), *, is_list: bool = False) -> Iterator[Row]:
    table = read_table(path, quoted=spec.kind != "text" or path.suffix.lower() != ".tsv")  # as SST-2 is published
    label = ""
    if spec.kind == "tensor" and not is_list and find_column(table, (*LABEL, *FILE)) is None:
        words = [name for name, cells in table.items() if cells and not _is_number(cells[0])]
        label = words[0] if len(words) == 1 else ""  # the one column that holds no numbers
    reader = TableReader(
        tuple(table), spec, path.parent, columns if {*columns} <= {*table} else (), label, is_list=is_list
    )
    for number, cells in enumerate(zip(*table.values(), strict=True), start=1):
        try:
            found = reader.add(cells)
        except (InputError, ValueError, OSError) as error:
            raise InputError(f"row {number}: {describe_error(error)}") from None
        if found is not None:
            yield reader.id_of(cells) or f"{path.stem}-{number:05d}", *found


class TableReader:
    """Makes examples of the rows of a table: of numbers, of texts, or of the names of files.

    Where a row has fewer numbers than an example, `window` rows in turn are one, and the next one begins `hop` rows
    later; its label is the one that most of its rows have.

    Args:
        names: of the table's columns.
        folder: where relative file names start.
        columns: of numbers, in the model's order, or the one of the texts or files; (): all but the label's and the
            id's, or the first of TEXT or FILE.
        label: the label's column; "": one of LABEL, where there is one.
        window, hop: rows; 0: as many as the task's shape asks for, and as many as the window.
        is_list: of files, each with a label, whatever the task's examples are.
    Raises:
        InputError: the columns do not give what the task takes.
    """

    def __init__(
        self,
        names: Sequence[str],
        spec: InputSpec,
        folder: Path = Path(),
        columns: Sequence[str] = (),
        label: str = "",
        window: int = 0,
        hop: int = 0,
        *,
        is_list: bool = False,
    ) -> None:
        missing = [name for name in (*columns, *([label] if label else [])) if name not in names]
        if missing:
            raise InputError(f"expected the column {missing[0]}, got {', '.join(names)}")
        self._spec, self._folder = spec, folder
        found, own = label or find_column(names, LABEL), find_column(names, ID)
        self._label = names.index(found) if found and found not in columns else None
        self._id = names.index(own) if own and own not in columns else None
        kind = TEXT if spec.kind == "text" and not is_list else FILE
        column = (columns or (find_column(names, kind),))[0]
        self._holds = "text" if kind is TEXT else "file"
        if spec.kind == "tensor" and not is_list and (columns or column is None):
            self._holds = "numbers"
            self.columns = tuple(columns) or tuple(name for name in names if name not in (found, own))
        elif column is None or (is_list and found is None):
            raise InputError(f"expected the columns {kind[0]} and label, got {', '.join(names)}")
        else:
            self.columns = (column,)
        self._places = [names.index(name) for name in self.columns]
        self.window = self._window(window) if self._holds == "numbers" else 1
        self.hop = hop or self.window
        self._rows: deque[list[float]] = deque(maxlen=self.window)
        self._labels: deque[Label] = deque(maxlen=self.window)
        self._skip = 0  # rows before the next window begins

    def _window(self, window: int) -> int:
        shape, n, n_columns = list(self._spec.shape), math.prod(self._spec.shape), len(self.columns)
        found = window or (n // n_columns if n_columns and n % n_columns == 0 else 0)
        if not found or found * n_columns != n:
            listed = f"{', '.join(self.columns[:8])}{', ..' if n_columns > 8 else ''}"
            got = f"{f'{window} rows of ' if window else ''}{n_columns} columns ({listed})"
            raise InputError(
                f"expected {n} numbers an example for the shape {shape}, got {got} (name them: `columns:`)"
            )
        return found

    def begin_anew(self) -> None:
        """The next window begins with the next row: one in between is missing."""
        self._rows.clear()
        self._labels.clear()
        self._skip = 0

    def id_of(self, cells: Sequence[str]) -> str:
        """The row's own name; "" where it has none."""
        if self._id is not None:
            return cells[self._id].strip()
        return cells[self._places[0]] if self._holds == "file" else ""

    def add(self, cells: Sequence[str]) -> tuple[bytes | Array, Label] | None:
        """The example that this row completes, and its label; None where it completes none.

        Raises:
            InputError: a cell is no number; the next window begins after this row.
            OSError, ValueError: its file cannot be read.
        """
        label: Label = None if self._label is None else cells[self._label].strip() or None
        cell = cells[self._places[0]]
        if self._holds == "text":
            return cell.encode(), label
        if self._holds == "file":
            return read_example(self._folder / cell, self._spec), label
        try:
            row = [number_in(cells[place], name) for place, name in zip(self._places, self.columns, strict=True)]
        except InputError:
            self.begin_anew()
            raise
        if self._skip:
            self._skip -= 1
            return None
        self._rows.append(row)
        self._labels.append(label)
        if len(self._rows) < self.window:
            return None
        x = as_shape(np.array(self._rows, dtype=np.float32), self._spec.shape)
        label = Counter(self._labels).most_common(1)[0][0]
        for _ in range(min(self.hop, self.window)):
            self._rows.popleft()
            self._labels.popleft()
        self._skip = max(0, self.hop - self.window)
        return x, label


def as_shape(rows: Array, shape: tuple[int, ...]) -> Array:
    """(*shape) from (W, C) rows of channels: as they are, by channel where the shape is (C, W), or flat.

    Raises:
        InputError: it holds another number of them.
    """
    if rows.size != math.prod(shape):
        raise InputError(f"expected numbers for the shape {list(shape)}, got {' x '.join(map(str, rows.shape))}")
    inner = tuple(dim for dim in shape if dim != 1)
    by_channel = rows.ndim == 2 and inner == rows.shape[::-1] and inner != rows.shape
    return np.ascontiguousarray(rows.T if by_channel else rows).reshape(shape)


def _is_number(cell: str) -> bool:
    with contextlib.suppress(InputError):
        return number_in(cell, "") is not None
    return False


def number_in(cell: str, name: str) -> float:
    """The number in a cell; raises InputError, which names the column."""
    try:
        return float(cell)
    except ValueError:
        raise InputError(f'column {name}: expected a number, got "{cell}"') from None


def _in_lines(path: Path) -> Iterator[Row]:
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
