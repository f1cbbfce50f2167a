"""ImageNet-1K's validation images and SWAG, as they are published.

The format: a header of 128 bytes, then elements, each a type, a size and its data, padded to 8 bytes; small ones have
their data in the tag. A matrix is an element of elements: its flags, dimensions, name, and contents.

- `val/n01440764/ILSVRC2012_val_00000293.JPEG`: a folder for each synset;
- `val/ILSVRC2012_val_00000293.JPEG` with `LOC_val_solution.csv` and `LOC_synset_mapping.txt` (Kaggle's), or with
  `ILSVRC2012_validation_ground_truth.txt` and the `meta.mat` of the same development kit.

Labels are numbered as models number them: synsets in order of their ids. The ground truth's own numbers are others;
`meta.mat` says which synset each stands for.

Columns: video-id, fold-ind, startphrase, sent1, sent2, gold-source, ending0 .. ending3, label. An example travels as
a JSON object in UTF-8, {"context": .., "endings": [.., .., .., ..]}: what the model reads is `sent1`, and each ending
after `sent2`, its beginning. Zellers et al., "SWAG: A Large-Scale Adversarial Dataset", EMNLP 2018.
"""

from __future__ import annotations

import csv
import json
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from coe.cascade.errors import ConfigError


class FileBytes(Sequence[bytes]):
    """The bytes of many files; each is read when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> FileBytes: ...

    def __getitem__(self, place: int | slice) -> bytes | FileBytes:
        return FileBytes(self.paths[place]) if isinstance(place, slice) else self.paths[place].read_bytes()


@dataclass(frozen=True, slots=True)
class Labelled:
    """Examples as published: encoded images, or texts in UTF-8.

    Args:
        labels: numbers from 0, in the order of `names`.
        names: of the labels.
    """

    ids: Sequence[str]
    values: Sequence[bytes]
    labels: Sequence[int]
    names: Sequence[str]


HEADER, TAG = 128, 8
MATRIX, COMPRESSED = 14, 15
STRUCT, TEXT = 2, 4  # classes of a matrix
FORMATS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q", 16: "B", 17: "H"}
MOST_BYTES = 64 * 2**20  # of a file, unpacked


def read_struct(path: Path, name: str) -> dict[str, list[float | str]]:
    """The fields of the struct array `name`, each with one value per element: a number, or a text.

    A field of anything else (a list, another struct) is an empty text.

    Raises:
        ValueError: the file is no such file, or has no such array.
    """
    data = path.read_bytes()
    if len(data) < HEADER or data[126:128] != b"IM":
        raise ValueError(f"{path}: expected a MATLAB 5 file (little-endian), got {len(data)} bytes of something else")
    try:
        for kind, body in _elements(data[HEADER:]):
            if kind == COMPRESSED:
                kind, body = next(_elements(_unpacked(body)))
            if kind == MATRIX and (found := _struct(body, name)) is not None:
                return found
    except (struct.error, zlib.error, StopIteration, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a MATLAB 5 file, got a damaged one: {error}") from None
    raise ValueError(f"{path}: expected the struct array {name}, got none")


def _unpacked(body: bytes) -> bytes:
    packer = zlib.decompressobj()
    data = packer.decompress(body, MOST_BYTES)
    if packer.unconsumed_tail:
        raise zlib.error(f"more than {MOST_BYTES} bytes")
    return data


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, data) of each element in a row of them."""
    at = 0
    while at + TAG <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:  # a small one: size and type share the first four bytes
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += TAG
            continue
        yield kind, data[at + TAG : at + TAG + size]
        at += TAG + (size if kind == COMPRESSED else -(-size // 8) * 8)


def _struct(body: bytes, name: str) -> dict[str, list[float | str]] | None:
    """The fields, of the struct array of that name; None of another matrix."""
    parts = _elements(body)
    (_, flags), (_, dimensions), (_, own) = next(parts), next(parts), next(parts)
    if flags[0] != STRUCT or own.decode() != name:
        return None
    count = 1
    for size in struct.unpack(f"<{len(dimensions) // 4}i", dimensions):
        count *= size
    (width,) = struct.unpack("<i", next(parts)[1])
    names = next(parts)[1]
    fields = [names[at : at + width].split(b"\0")[0].decode() for at in range(0, len(names), width)]
    found: dict[str, list[float | str]] = {field: [] for field in fields}
    for _ in range(count):
        for field in fields:
            found[field].append(_value(next(parts)[1]))
    return found


def _value(body: bytes) -> float | str:
    """A number or a text; an empty text where a matrix is neither."""
    if not body:
        return ""
    parts = _elements(body)
    flags = next(parts)[1]
    next(parts)
    next(parts)
    kind, data = next(parts, (0, b""))
    if flags[0] == TEXT:
        return data.decode("utf-16-le" if kind in (4, 17) else "utf-8")
    if kind not in FORMATS or flags[0] <= 3:
        return ""
    numbers = struct.unpack(f"<{len(data) // struct.calcsize(FORMATS[kind])}{FORMATS[kind]}", data)
    return float(numbers[0]) if len(numbers) == 1 else ""


VAL = ("val", "ILSVRC/Data/CLS-LOC/val", ".")
BESIDE = (".", "data", "ILSVRC2012_devkit_t12/data")
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
SYNSET = re.compile(r"n\d{8}")
SUFFIXES = (".jpeg", ".jpg", ".png")
N_SYNSETS = 1000


def read_imagenet(folder: Path, limit: int | None = None) -> Labelled:
    """The images in order of their names, the first `limit` if given; their files are read as they are needed.

    Raises:
        ConfigError: the folder has neither layout, or a label that its lists do not have.
    """
    val = next((folder / place for place in VAL if (folder / place).is_dir()), folder)
    folders = sorted(path for path in val.iterdir() if path.is_dir() and SYNSET.fullmatch(path.name))
    if folders:
        pairs = [(path, one.name) for one in folders for path in sorted(one.iterdir()) if _is_image(path)]
        synsets = _mapped(folder) or [one.name for one in folders]
    else:
        images = sorted(path for path in val.iterdir() if _is_image(path))
        pairs, synsets = _listed(folder, images)
    number = {synset: place for place, synset in enumerate(synsets)}
    unknown = sorted({synset for _, synset in pairs} - set(number))
    if unknown or not pairs:
        got = f"{unknown[0]}, which is none of the {len(synsets)} synsets" if unknown else "no image"
        raise ConfigError(
            [f"{folder}: expected the validation images of ImageNet-1K, got {got} (see docs/own-models.md)"]
        )
    pairs = sorted(pairs, key=lambda pair: pair[0].name)[:limit]
    paths = [path for path, _ in pairs]
    return Labelled([path.stem for path in paths], FileBytes(paths), [number[name] for _, name in pairs], synsets)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _listed(folder: Path, images: list[Path]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Images of a flat folder with their synsets, and all synsets in order."""
    solution, truth = _beside(folder, SOLUTION), _beside(folder, TRUTH)
    if solution is not None and (synsets := _mapped(folder)):
        with solution.open(encoding="utf-8", newline="") as file:
            said = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
        unlisted = [path.name for path in images if path.stem not in said]
        if unlisted:
            raise ConfigError([f"{solution}: expected every image, got none of {unlisted[0]} (mend the list)"])
        return [(path, said[path.stem]) for path in images], synsets
    meta = _beside(folder, META)
    if truth is not None and meta is not None:
        return _by_truth(images, truth, meta)
    raise ConfigError(
        [f"{folder}: expected a folder for each synset, or {SOLUTION} and {MAPPING}, or {TRUTH} and {META} beside "
         "the images, got neither (put them there)"]
    )  # fmt: skip


def _by_truth(images: list[Path], truth: Path, meta: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """By the development kit: line i is the number of image i, and meta.mat the synset of each number."""
    try:
        fields = read_struct(meta, "synsets")
        numbers = [int(line) for line in truth.read_text(encoding="utf-8").split()]
        synset = {int(number): str(name) for number, name in zip(fields["ILSVRC2012_ID"], fields["WNID"], strict=True)}
    except (ValueError, KeyError) as error:
        raise ConfigError([f"{truth.parent}: expected {TRUTH} and {META} as published: {error}"]) from None
    if len(numbers) != len(images):
        raise ConfigError(
            [f"{truth}: expected a line for each of {len(images)} images, got {len(numbers)} (all are needed)"]
        )
    unknown = [number for number in numbers if number not in synset]
    if unknown:
        raise ConfigError([f"{truth}: expected numbers that {META} has, got {unknown[0]}"])
    leaves = sorted(name for number, name in synset.items() if number <= N_SYNSETS)  # those above have children
    return [(path, synset[number]) for path, number in zip(images, numbers, strict=True)], leaves


def _mapped(folder: Path) -> list[str]:
    """The synsets of the mapping file in its order; none where there is no such file."""
    path = _beside(folder, MAPPING)
    if path is None:
        return []
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _beside(folder: Path, name: str) -> Path | None:
    return next((folder / place / name for place in BESIDE if (folder / place / name).exists()), None)


N_ENDINGS = 4
ENDINGS = tuple(f"ending{number}" for number in range(N_ENDINGS))
NEEDED = ("sent1", "sent2", *ENDINGS, "label")


def read_swag(path: Path, limit: int | None = None) -> Labelled:
    """The rows of the file in their order, the first `limit` if given.

    Raises:
        ConfigError: names the column or the row that is not as published.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(
                    [f"expected the column {missing[0]}, got {', '.join(reader.fieldnames or ())}"], str(path)
                )
            rows = [row for _, row in zip(range(limit or 2**31), reader, strict=False)]
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([f"expected SWAG's CSV in UTF-8: {error}"], str(path)) from None
    ids, values, labels = [], [], []
    for number, row in enumerate(rows, start=1):
        label = row["label"]
        if label not in ("0", "1", "2", "3") or any(row[name] is None for name in NEEDED):
            raise ConfigError(
                [f'row {number}: expected a label 0 to 3 and all columns, got the label "{label}"'], str(path)
            )
        ids.append(f"{row.get('video-id') or 'row'}-{row.get('fold-ind') or number}")
        content = {"context": row["sent1"], "endings": [f"{row['sent2']} {row[name]}".strip() for name in ENDINGS]}
        values.append(json.dumps(content, ensure_ascii=False).encode())
        labels.append(int(label))
    return Labelled(ids, values, labels, tuple(map(str, range(N_ENDINGS))))
