"""The recipe of a text task, as its `python -m` runs it: trains, exports, and at the end records and reports."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from coe.models.text import Tokens
from recipes.bundle import log
from sim.traces import Answers, Trace, write_parquet

from . import data, export, networks, report, training
from .data import Split, Task
from .export import exported, opened
from .training import FILES, SMALL, TEACHER, TIERS, VIEW_SEED, VIEWS, Trained, recipe_of, untrained

CONFIGS = ("edge.yaml", "cloud.yaml")
ORDER = (TEACHER, *SMALL)


def run(task: Task, folder: Path, described: str, arguments: Sequence[str] | None = None) -> None:
    """The recipe's command line.

    Args:
        folder: where the task is bundled.
        described: the first line of its help.
    """
    parser = argparse.ArgumentParser(prog=f"python -m recipes.{task.name}", description=described)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {task.learning} and {task.test}")
    parser.add_argument("--out", type=Path, default=folder, help="folder to write into (default: this one)")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path(f"{task.name}-checkpoints"), help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=2, help="of the training (default: %(default)s)")
    parser.add_argument("--test", action="store_true", help="report on what was exported; train and export nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for made in (options.checkpoints, options.out):
        made.mkdir(parents=True, exist_ok=True)
    learning, calibration = data.load_learning(task, options.data)
    if options.test:
        record(options.out, calibration, data.load_test(task, options.data))
        write_report(task, options.out, options.checkpoints, len(learning))
        return
    for name in ORDER:
        entry = exported(
            trained(task, name, learning, calibration, options.checkpoints), task, calibration, options.out
        )
        log(f"{entry.file}: {entry.calibration_accuracy:.2%} on calibration")
    for name in CONFIGS:
        if options.out.resolve() != folder.resolve():
            shutil.copyfile(folder / name, options.out / name)


def record(folder: Path, calibration: Split, test: Split) -> None:
    """Writes the two traces, of the members that the manifest in `folder` names."""
    for split_name, split in (("calibration", calibration), ("test", test)):
        answers = {}
        for name in TIERS:
            member = opened(folder, FILES[name])
            answers[FILES[name]] = Answers.of(*export.one_by_one(member, split.texts))
            member.close()
            log(f"{FILES[name]} has answered {len(split):,} texts")
        sizes = np.array([len(text.encode()) for text in split.texts], dtype=np.int32)
        labels = split.labels.astype(np.int32)
        write_parquet(Trace(split_name, split.ids, labels, answers, sizes), folder / f"{split_name}.parquet")


def write_report(task: Task, folder: Path, kept: Path, n_train: int) -> None:
    """Writes REPORT.md, of the manifest, the traces in `folder` and the networks kept in `kept`."""
    networks = [training.kept(name, len(task.labels), kept) for name in ORDER]
    report.write(task, folder, {one.name: one.seconds for one in networks if one is not None}, n_train)


def trained(task: Task, name: str, learning: Split, calibration: Split, folder: Path) -> Trained:
    """The network `name`: as it was kept, or trained now and kept."""
    found = training.kept(name, len(task.labels), folder)
    if found is not None:
        return found
    if name == TEACHER:
        tokenizer = (networks.minilm_folder() / "tokenizer.json").read_bytes()
        lesson = training.from_labels(learning, len(task.labels))
    else:
        tokenizer = networks.trained_tokenizer(SMALL[name].tokenizer, learning.texts)
        on_texts, spans = teacher_answers(task, learning, calibration, folder)
        lesson = training.from_teacher(learning, on_texts, spans, SMALL[name].recipe.teacher_share)
    tokens = Tokens(tokenizer, Path(name), task.max_length)

    def on_epoch(epoch: int, loss: float, network: nn.Module) -> None:
        right = (training.answers(network, tokens, calibration.texts).argmax(axis=1) == calibration.labels).mean()
        log(f"{name}: epoch {epoch} of {recipe_of(name).epochs}, loss {loss:.3f}, {right:.2%} on calibration")

    network = untrained(name, tokenizer, len(task.labels), task.max_length)
    network, seconds = training.timed_training(network, tokens, lesson, recipe_of(name), on_epoch)
    found = Trained(name, network, tokenizer, seconds)
    training.keep(found, folder)
    return found


def teacher_answers(
    task: Task, learning: Split, calibration: Split, folder: Path
) -> tuple[training.Probabilities, training.Lesson]:
    """What MiniLM says of the train texts, and of parts of them."""
    found = training.kept_answers(folder)
    if found is None:
        teacher = trained(task, TEACHER, learning, calibration, folder)
        tokens = Tokens(teacher.tokenizer, Path(TEACHER), task.max_length)
        parts = training.spans_of(learning.texts, VIEWS, VIEW_SEED)
        on_texts = training.answers(teacher.network, tokens, learning.texts)
        found = on_texts, training.Lesson(parts, training.answers(teacher.network, tokens, parts))
        training.keep_answers(*found, folder)
        log(f"{TEACHER} has answered {len(learning):,} train texts and {len(parts):,} parts of them")
    return found
