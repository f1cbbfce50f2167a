"""Making a trace: every model on every example of a data set, once; batches for speed, or one by one for latencies."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coe import zoo
from coe.assembly import CascadeConfig, LocalTierConfig, read_cascade
from coe.cascade import Batch, ConfigError, Member
from coe.cascade.types import Array
from coe.models import Door, ModelSpec, Task, load
from coe.settings import Fields, Report, read_yaml
from coe.zoo import digits
from coe.zoo.cifar10 import data as cifar10
from coe.zoo.readers.imagenet import read_imagenet
from coe.zoo.readers.swag import read_swag
from coe.zoo.text import data as texts

from .progress import Progress
from .traces import Answers, Trace
from .traces.text import read_table

BATCH = 64
REPEATS = 3  # of each timing: the best counts
SUFFIXES = (".png", ".jpg", ".jpeg")
DIGITS = tuple(map(str, range(10)))  # labels of the bundled examples
TEXT_COLUMNS = ("text", "sentence")
LISTS = ("labels.tsv", "labels.csv")
READERS = {"imagenet": read_imagenet, "swag": read_swag}  # PREFIX:PATH
PUBLISHED = {"cifar10": cifar10.test_examples}  # the test split, of the data set as it is published
TEXTS = {"sst2": "sst2_dev.tsv", "tfns": "tfns_valid.parquet"}  # the same, of tasks whose test split is a table


@dataclass(frozen=True, slots=True)
class Models:
    """The local models of one or more configs, in their order, each once."""

    task: Task
    specs: Sequence[ModelSpec]


@dataclass(frozen=True, slots=True)
class DataSet:
    """Examples as captured, with their labels."""

    ids: Sequence[str]
    values: Sequence[bytes]
    labels: Sequence[int]


def read_models(references: Sequence[str]) -> Models:
    """The local tiers of configs (edge or cloud), or of a bundled task by its name ("digits").

    Raises:
        ConfigError: every finding of a config; no local tier; models of different tasks.
    """
    configs: list[CascadeConfig] = []
    for reference in references:
        bundled = reference in zoo.TASKS
        paths = [zoo.find(f"{reference}/{name}.yaml") for name in ("edge", "cloud")] if bundled else [Path(reference)]
        configs += [_read(path) for path in paths]
    tiers = [tier for config in configs for tier in config.tiers if isinstance(tier, LocalTierConfig)]
    specs: dict[str, ModelSpec] = {}
    for spec in (spec for tier in tiers for spec in tier.members):
        if specs.setdefault(spec.name, spec).path != spec.path:
            raise ConfigError(
                [f"--models: expected one file of each name, got {specs[spec.name].path} and {spec.path}"]
            )
    if not specs:
        raise ConfigError(
            [f"--models: expected local tiers, got none in {', '.join(references)} (name their server's)"]
        )
    labels = {config.task.labels for config in configs}
    if len(labels) > 1:
        raise ConfigError([f"--models: expected one task, got {len(labels)} with different labels (record them apart)"])
    return Models(configs[0].task, list(specs.values()))


def _read(path: Path) -> CascadeConfig:
    report = Report(str(path))
    config = read_cascade(Fields(read_yaml(path), report), path.parent)
    report.check()
    return config


def read_data(reference: str, task: Task, limit: int | None) -> DataSet:
    """The bundled digits by their name, or a folder: one sub-folder per label, or files and a labels.tsv, or the
    data set of a bundled task in the form that its recipe reads; or imagenet:FOLDER, swag:FILE.csv, as published;
    of texts, a table (.tsv, .csv, .parquet) with the columns label and text or sentence.

    Raises:
        ConfigError: no such folder, or a label that the task does not have.
    """
    if reference == "digits":
        if task.labels != DIGITS:
            raise ConfigError([f"--data: expected examples of {task.name}, got the bundled digits (name a folder)"])
        ids, values, labels = zip(*digits.test_examples(limit), strict=True)
        return DataSet(ids, values, labels)
    kind, _, place = reference.partition(":")
    if kind in READERS and place:
        return _read_as(kind, Path(place), task, limit)
    folder = Path(reference)
    if task.contract.kind == "text" and folder.is_file():
        return _read_texts(folder, task, limit)
    if task.contract.kind == "text" and folder.is_dir():
        return _read_texts(_table_in(folder, task), task, limit)
    if not folder.is_dir():
        raise ConfigError([f'--data: expected "digits" or a folder, got "{reference}" (create it, or mend the path)'])
    if (found := _published(folder, task, limit)) is not None:
        return found
    listed = next((folder / name for name in LISTS if (folder / name).exists()), None)
    pairs = _by_list(listed) if listed else _by_folder(folder)
    if not pairs:
        raise ConfigError([f"{folder}: expected PNG or JPEG files in a folder per label, or a labels.tsv, got none"])
    numbers = {name: number for number, name in enumerate(task.labels)}
    unknown = sorted({label for _, label in pairs if label not in numbers and not _is_number(label, len(numbers))})
    if unknown:
        known = ", ".join(task.labels[:10]) + (", .." if len(task.labels) > 10 else "")
        raise ConfigError([f'{folder}: label "{unknown[0]}" is none of the task\'s ({known})'])
    pairs = pairs[:limit]
    return DataSet(
        [path.relative_to(folder).as_posix() for path, _ in pairs],
        [path.read_bytes() for path, _ in pairs],
        [numbers[label] if label in numbers else int(label) for _, label in pairs],
    )


def _read_as(kind: str, path: Path, task: Task, limit: int | None) -> DataSet:
    """A data set as it is published; its labels are numbered as the task's are."""
    found = READERS[kind](path, limit)
    if len(found.names) != len(task.labels):
        raise ConfigError([f"--data: {path}: expected {len(task.labels)} labels as the task, got {len(found.names)}"])
    return DataSet(found.ids, found.values, found.labels)


def _table_in(folder: Path, task: Task) -> Path:
    """The table of a bundled task's test texts, in the folder that its recipe reads."""
    name = TEXTS.get(task.name)
    if name and (folder / name).is_file():
        return folder / name
    there = f"{name} in it, or " if name else ""
    raise ConfigError(
        [f"--data: {folder}: expected {there}a table of texts (.tsv, .csv, .parquet), got a folder (name the file)"]
    )


def _read_texts(path: Path, task: Task, limit: int | None) -> DataSet:
    """A table of texts; the first of TEXT_COLUMNS that it has."""
    reasons: list[ConfigError] = []
    for column in TEXT_COLUMNS:
        table = texts.Task(task.name, task.name, task.labels, path.name, path.name, column, 0, 0, "")
        try:
            found = texts.read(table, path)
        except ConfigError as error:
            reasons.append(error)
        except ValueError as error:
            raise ConfigError([f"expected labels as numbers: {error}"], str(path)) from None
        else:
            values = [text.encode() for text in found.texts[:limit]]
            return DataSet(found.ids[:limit], values, found.labels[:limit].tolist())
    raise reasons[0]


def _published(folder: Path, task: Task, limit: int | None) -> DataSet | None:
    """The test split of a bundled task; None where the folder does not hold its data set."""
    if task.name not in PUBLISHED:
        return None
    try:
        ids, values, labels = zip(*PUBLISHED[task.name](folder, limit), strict=True)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError([f"--data: {error}"]) from None
    return DataSet(ids, values, labels)


def write_lines(data: DataSet, task: Task, path: Path) -> Path:
    """The examples as JSON lines, as `coe-edge` reads them from standard input."""
    is_text = task.contract.kind == "text"
    with path.open("w", encoding="utf-8") as file:
        for name, value, label in zip(data.ids, data.values, data.labels, strict=True):
            content = {"text": value.decode()} if is_text else {"image": base64.b64encode(value).decode()}
            file.write(json.dumps({"id": name, **content, "label": label}) + "\n")
    return path


def _is_number(label: str, n_labels: int) -> bool:
    return label.isdigit() and int(label) < n_labels


def _by_folder(folder: Path) -> list[tuple[Path, str]]:
    return [
        (path, path.parent.name)
        for path in sorted(folder.glob("*/*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]


def _by_list(path: Path) -> list[tuple[Path, str]]:
    table = read_table(path)
    if not {"file", "label"} <= set(table):
        raise ConfigError([f"expected the columns file and label, got {', '.join(table)}"], str(path))
    return [(path.parent / name, label) for name, label in zip(table["file"], table["label"], strict=True)]


def record(models: Models, data: DataSet, progress: Progress, *, latencies: bool, name: str) -> Trace:
    """Every model's prediction, score and probabilities, and the bytes of every example.

    The data set is read in pieces, each once, and need not fit into memory.

    Args:
        latencies: have each example answered alone, as a device does, and time it, preparation included, one thread:
            the best of three. In batches the answers of a model that is quantised as it runs can differ a little.
    """
    door = Door(models.task.contract)
    members: list[Member] = []
    try:
        members += map(load, models.specs)
        progress.start(f"{len(members)} models", len(data.ids))
        told: list[list[Answers]] = [[] for _ in members]
        sizes: list[int] = []
        for start in range(0, len(data.ids), BATCH):
            values = data.values[start : start + BATCH]
            batch = door.batch(data.ids[start : start + BATCH], list(values))
            sizes += [len(value) for value in values] if batch.captured is None else map(len, batch.captured)
            for member, pieces in zip(members, told, strict=True):
                pieces.append(_alone(member, batch) if latencies else _answers(member.predict(member.prepare(batch.x))))
            progress.show(start + len(batch))
        progress.end()
    finally:
        for member in members:
            member.close()
    answers = {spec.name: _joined(pieces) for spec, pieces in zip(models.specs, told, strict=True)}
    labels = np.array(data.labels, dtype=np.int32)
    return Trace(name, tuple(data.ids), labels, answers, np.array(sizes, dtype=np.int32))


def _joined(pieces: Sequence[Answers]) -> Answers:
    columns: dict[str, Any] = {}
    for name in Answers.__slots__:
        parts = [getattr(piece, name) for piece in pieces]
        columns[name] = None if any(part is None for part in parts) else np.concatenate(parts)
    return Answers(**columns)


def _answers(outputs: Array) -> Answers:
    predictions = outputs.argmax(axis=1)
    scores = outputs[np.arange(len(predictions)), predictions]
    return Answers(predictions.astype(np.int32), scores.astype(np.float32), outputs.astype(np.float16))


def _alone(member: Member, batch: Batch) -> Answers:
    """Every example by itself, with its seconds."""
    times = np.empty((REPEATS, len(batch)), dtype=np.float32)
    outputs: list[Array] = []
    for repeat in range(REPEATS):
        outputs = []
        for row in range(len(batch)):
            started = time.perf_counter()
            outputs.append(member.predict(member.prepare(batch.x[row : row + 1])))
            times[repeat, row] = time.perf_counter() - started
    return replace(_answers(np.concatenate(outputs)), latency_s=times.min(axis=0))
