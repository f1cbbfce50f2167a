"""`coe-sim record`: every model on every example of a data set, once, into a trace."""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from coe import zoo
from coe.cascade import Batch, ConfigError, Member
from coe.cascade.types import Array, Labels
from coe.config import Fields, Report, read_yaml
from coe.config.cascade import CascadeConfig, LocalTierConfig, read_cascade
from coe.config.manifest import Task
from coe.models import InputDecoder, ModelSpec, load
from coe.models.labelled import read_labelled
from coe.models.loading import import_runtime
from coe.models.tables import read_table
from coe.zoo import digits
from sim import arguments
from sim.output import Progress, aligned, log, print_result
from sim.traces import Answers, Trace, write_parquet
from sim.traces.files import INSTALL_HINT

BATCH = 64
REPEATS = 3  # of each timing: the best counts
DIGITS = tuple(map(str, range(10)))  # labels of the bundled examples
TEXT_COLUMNS = ("text", "sentence")
READERS = {"imagenet": "read_imagenet", "swag": "read_swag"}  # PREFIX:PATH -> function of recipes.readers.datasets
# Of tasks whose data set is read as it is published: the module whose test_examples does, and what its folder holds.
PUBLISHED = {"cifar10": ("recipes.cifar10.data", ("cifar-10-batches-py", "test_batch", "cifar10_test.npz"))}
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
    values: Sequence[bytes | Array]
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
    specs = {spec.path: spec for tier in tiers for spec in tier.members}
    if not specs:
        given = ", ".join(references)
        raise ConfigError([f"--models: expected local tiers, got none in {given} (name their server's)"])
    labels = {config.task.labels for config in configs}
    if len(labels) > 1:
        raise ConfigError([f"--models: expected one task, got {len(labels)} with different labels (record them apart)"])
    return Models(configs[0].task, _each_by_a_name(list(specs.values())))


def _each_by_a_name(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """The models, those of one name in different folders by as much of their paths as tells them apart."""
    parts = 1
    named = {spec.path: spec.name for spec in specs}
    while len(set(named.values())) < len(specs):
        parts += 1
        n = Counter(named.values())
        named = {
            path: name if n[name] == 1 else "/".join(path.absolute().parts[-parts:]) for path, name in named.items()
        }
    return [replace(spec, name=named[spec.path]) for spec in specs]


def _read(path: Path) -> CascadeConfig:
    report = Report(str(path))
    config = read_cascade(Fields(read_yaml(path), report), path.parent)
    report.check()
    return config


def read_data(reference: str, task: Task, limit: int | None) -> DataSet:
    """The bundled digits by their name; what `read_labelled` reads: a folder per label, a table, JSON lines, arrays;
    the data set of a bundled task in the form that its recipe reads; or imagenet:FOLDER, swag:FILE.csv, as published;
    of texts, a .parquet with the columns label and text or sentence.

    Raises:
        ConfigError: no such folder, or a label that the task does not have.
    """
    if reference == "digits":
        if task.labels != DIGITS:
            raise ConfigError([f"--data: expected examples of {task.name}, got the bundled digits (name a folder)"])
        ids, values, labels = zip(*digits.test_examples(limit), strict=True)
        return DataSet(ids, values, labels)
    kind, _, published = reference.partition(":")
    if kind in READERS and published:
        return _read_as(kind, Path(published), task, limit)
    place = Path(reference)
    if not place.exists():
        expected = f'expected "digits", a folder or a file, got "{reference}"'
        raise ConfigError([f"--data: {expected} (create it, or correct the path)"])
    if place.is_dir():
        if (found := _published(place, task, limit)) is not None:
            return found
        listed = place / TEXTS.get(task.name, "labels.tsv")
        place = listed if task.name in TEXTS and listed.is_file() else place
    if place.suffix == ".parquet":
        ids, texts, numbers = read_texts(place, TEXT_COLUMNS, len(task.labels))
        return DataSet(ids[:limit], [text.encode() for text in texts[:limit]], numbers[:limit].tolist())
    examples = read_labelled(place, task.input_spec, limit)
    return DataSet(examples.ids, examples.values, examples.numbers(task.labels).tolist())


def _read_as(kind: str, path: Path, task: Task, limit: int | None) -> DataSet:
    """A data set as it is published; its labels are numbered as the task's are."""
    found = getattr(_recipe("recipes.readers.datasets"), READERS[kind])(path, limit)
    if len(found.names) != len(task.labels):
        raise ConfigError([f"--data: {path}: expected {len(task.labels)} labels as the task, got {len(found.names)}"])
    return DataSet(found.ids, found.values, found.labels)


def _recipe(module: str) -> Any:
    """A reader of a published data set. These are in the repository, with the recipes, and not in the package."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "recipes":
            raise
        raise ConfigError(
            ["--data: readers of published data sets are in the repository, not in the package (run in a checkout)"]
        ) from None


def read_texts(path: Path, columns: Sequence[str], n_labels: int) -> tuple[tuple[str, ...], tuple[str, ...], Labels]:
    """Ids, texts and labels (B,) of a table: .parquet, .tsv (without quoting, as SST-2 is published) or .csv.

    Args:
        columns: names that the column of the texts may have; the first that is there. The label's is `label`, the
            id's `id`, made up where there is none.
    Raises:
        ConfigError: it is missing, or has other columns or labels.
    """
    if path.suffix == ".parquet":
        parquet = import_runtime("pyarrow.parquet", "Parquet", INSTALL_HINT)
        table: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    else:
        table = dict(read_table(path, quoted=path.suffix != ".tsv"))
    known = set(table)
    text = next((column for column in columns if column in known), None)
    missing = [*([" or ".join(columns)] if text is None else []), *({"label"} - known)]
    if text is None or missing:
        expected = f"the columns {columns[0]} and label"
        raise ConfigError([f"expected {expected}, got none of {', '.join(missing)}"], str(path))
    try:
        labels = np.array([int(label) for label in table["label"]], dtype=np.int64)
    except (ValueError, TypeError) as error:
        raise ConfigError([f"expected labels as numbers: {error}"], str(path)) from None
    if not ((labels >= 0) & (labels < n_labels)).all():
        raise ConfigError([f"expected labels 0 to {n_labels - 1}, got {sorted(set(labels.tolist()))}"], str(path))
    own = table.get("id", [None] * len(labels))
    ids = tuple(str(name or f"{path.stem}-{number:05d}") for number, name in enumerate(own))
    return ids, tuple(map(str, table[text])), labels


def _published(folder: Path, task: Task, limit: int | None) -> DataSet | None:
    """The test split of a bundled task; None where the folder does not hold its data set."""
    module, names = PUBLISHED.get(task.name, ("", ()))
    if not any((folder / name).exists() for name in names):
        return None
    try:
        ids, values, labels = zip(*_recipe(module).test_examples(folder, limit), strict=True)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError([f"--data: {error}"]) from None
    return DataSet(ids, values, labels)


def write_lines(data: DataSet, task: Task, path: Path) -> Path:
    """The examples as JSON lines, as `coe-edge` reads them from standard input."""
    is_text = task.input_spec.kind == "text"
    with path.open("w", encoding="utf-8") as file:
        for name, value, label in zip(data.ids, data.values, data.labels, strict=True):
            if isinstance(value, bytes):
                content: dict[str, Any] = (
                    {"text": value.decode()} if is_text else {"image": base64.b64encode(value).decode()}
                )
            else:
                content = {"pixels" if value.dtype == np.uint8 else "tensor": value.tolist()}
            file.write(json.dumps({"id": name, **content, "label": label}) + "\n")
    return path


def record(models: Models, data: DataSet, progress: Progress, *, latencies: bool, name: str) -> Trace:
    """Every model's prediction, score and probabilities, and the bytes of every example.

    The data set is read in pieces, each once, and need not fit into memory.

    Args:
        latencies: have each example answered alone, as a device does, and time it, preparation included, one thread:
            the best of three. In batches the answers of a model that is quantised as it runs can differ a little.
    """
    decoder = InputDecoder(models.task.input_spec)
    members: list[Member] = []
    try:
        members += map(load, models.specs)
        progress.start(f"{len(members)} models", len(data.ids))
        recorded: list[list[Answers]] = [[] for _ in members]
        sizes: list[int] = []
        for start in range(0, len(data.ids), BATCH):
            values = data.values[start : start + BATCH]
            batch = decoder.batch(data.ids[start : start + BATCH], list(values))
            sizes += [row.nbytes for row in batch.x] if batch.captured is None else map(len, batch.captured)
            for member, pieces in zip(members, recorded, strict=True):
                together = None if latencies else Answers.of(member.predict(member.prepare(batch.x)))
                pieces.append(together or _alone(member, batch))
            progress.show(start + len(batch))
        progress.end()
    finally:
        for member in members:
            member.close()
    answers = {spec.name: _joined(pieces) for spec, pieces in zip(models.specs, recorded, strict=True)}
    labels = np.array(data.labels, dtype=np.int32)
    return Trace(name, tuple(data.ids), labels, answers, np.array(sizes, dtype=np.int32))


def _joined(pieces: Sequence[Answers]) -> Answers:
    columns: dict[str, Any] = {}
    for name in Answers.__slots__:
        parts = [getattr(piece, name) for piece in pieces]
        columns[name] = None if any(part is None for part in parts) else np.concatenate(parts)
    return Answers(**columns)


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
    return Answers.of(np.concatenate(outputs), times.min(axis=0))


NAME = "record"
HELP = "run models over a data set once, into a trace"
DESCRIPTION = "Every model's prediction, score and probabilities on every example, as one Parquet file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, metavar="TRACE", help="the .parquet file to write")
    parser.add_argument(
        "--models", nargs="+", default=["digits"], metavar="CONFIG", help="edge or cloud YAMLs, or digits (default)"
    )
    parser.add_argument(
        "--data",
        default="digits",
        metavar="PLACE",
        help="a folder with one per label or a labels.tsv; a .csv, .jsonl or .npz; imagenet:DIR; swag:FILE; "
        "default: digits",
    )
    parser.add_argument("--latencies", action="store_true", help="time every example alone: best of three, one thread")
    parser.add_argument("--limit", type=arguments.count, metavar="N", help="the first N examples")
    parser.add_argument("--json", action="store_true", help="only JSON on standard output")


def run_command(options: argparse.Namespace) -> int:
    if options.trace.suffix != ".parquet":
        raise ConfigError([f"expected a name that ends in .parquet, got {options.trace}"])
    import_runtime("pyarrow", "Parquet", INSTALL_HINT)  # not after minutes of recording
    models = read_models(options.models)
    data = read_data(options.data, models.task, options.limit)
    trace = record(models, data, Progress(1), latencies=options.latencies, name=options.trace.stem)
    write_parquet(trace, options.trace)
    log(f"wrote {options.trace}, {options.trace.stat().st_size:,} bytes")
    single = {model: trace.accuracy(model) for model in trace.models}
    content = {"n": len(trace), "single": single, "path": str(options.trace)}
    text = aligned(("model", "accuracy"), [[key, f"{at:.2%}"] for key, at in single.items()])
    return print_result(options, content, text)
