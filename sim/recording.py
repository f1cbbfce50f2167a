"""Making a trace: every model on every example of a data set, once; batches for speed, or one by one for latencies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe import zoo
from coe.assembly import CascadeConfig, LocalTierConfig, read_cascade
from coe.cascade import Batch, ConfigError, Member
from coe.cascade.types import Array
from coe.models import Door, ModelSpec, Task, load
from coe.settings import Fields, Report, read_yaml
from coe.zoo import digits

from .progress import Progress
from .traces import Answers, Trace
from .traces.text import read_table

BATCH = 64
REPEATS = 3  # of each timing: the best counts
SUFFIXES = (".png", ".jpg", ".jpeg")
LISTS = ("labels.tsv", "labels.csv")


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
    specs = {spec.name: spec for tier in tiers for spec in tier.members}
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
    """The bundled digits by their name, or a folder: one sub-folder per label, or files and a labels.tsv.

    Raises:
        ConfigError: no such folder, or a label that the task does not have.
    """
    if reference == "digits":
        ids, values, labels = zip(*digits.test_examples(limit), strict=True)
        return DataSet(ids, values, labels)
    folder = Path(reference)
    if not folder.is_dir():
        raise ConfigError([f'--data: expected "digits" or a folder, got "{reference}" (create it, or mend the path)'])
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

    Args:
        latencies: time each example alone, preparation included, one thread: the best of three.
    """
    batch = Door(models.task.contract).batch(data.ids, data.values)
    answers = {}
    for spec in models.specs:
        member = load(spec)
        progress.start(spec.name, len(batch) * (1 + REPEATS * latencies))
        try:
            outputs = []
            for start in range(0, len(batch), BATCH):
                outputs.append(member.predict(member.prepare(batch.x[start : start + BATCH])))
                progress.show(start)
            told = _answers(np.concatenate(outputs))
            if latencies:
                told = replace(told, latency_s=_timed(member, batch, progress))
        finally:
            member.close()
        progress.end()
        answers[spec.name] = told
    sizes = np.array([len(value) for value in data.values], dtype=np.int32)
    return Trace(name, tuple(data.ids), np.array(data.labels, dtype=np.int32), answers, sizes)


def _answers(outputs: Array) -> Answers:
    predictions = outputs.argmax(axis=1)
    scores = outputs[np.arange(len(predictions)), predictions]
    return Answers(predictions.astype(np.int32), scores.astype(np.float32), outputs.astype(np.float16))


def _timed(member: Member, batch: Batch, progress: Progress) -> NDArray[np.float32]:
    """(B,) seconds."""
    times = np.empty((REPEATS, len(batch)), dtype=np.float32)
    for repeat in range(REPEATS):
        for row in range(len(batch)):
            started = time.perf_counter()
            member.predict(member.prepare(batch.x[row : row + 1]))
            times[repeat, row] = time.perf_counter() - started
        progress.show(len(batch) * (2 + repeat))
    best: NDArray[np.float32] = times.min(axis=0)
    return best
