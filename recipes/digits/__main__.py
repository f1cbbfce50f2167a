"""python -m recipes.digits [--out DIR] [--only NAME] [--extra HARVEST]: trains and exports the bundled models again.

Six to ten minutes on two cores; the same files each time on the same machine and versions. `--only NAME`
trains one network and replaces its files and their lines in the manifest; its teacher is then the best.pt beside DIR
(zoo/coe_zoo/digits_torch by default). `--extra HARVEST` adds the examples that a device deferred, with the labels the
cloud gave them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from coe_zoo.networks import Network, build
from torch.multiprocessing import get_context  # shares tensors between processes instead of copying them

from coe.zoo.digits import FOLDER
from recipes import ZOO, export
from recipes.bundle import ModelEntry, log
from recipes.export import flops, parameters

from . import report, training
from .training import (
    BEST_COPIES,
    BEST_SEED,
    N_THREADS,
    SHAPE,
    STUDENT_COPIES,
    STUDENT_SEED,
    TEACHER,
    epoch_done,
    logits_of,
    settle,
    train,
    write_manifest,
    write_test_digits,
)

TIERS = {"stroke": 1, "loom": 1, "mosaic": 1, "pyramid": 2, "lattice": 2, "ripple": 2, "resnet": 3}
BEST_FILE = "best.pt"
BEST_FOLDER = ZOO / "digits_torch"
BEST_HEADER = """\
# The digits' best model as torch weights, written by `python -m recipes.digits`; do not edit. Its network is
# coe_zoo.networks; resnet.onnx of the digits is exported of it, and the other networks learn from it.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.digits", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write into (default: this one)")
    parser.add_argument("--only", choices=[*TIERS], help="train this network alone")
    parser.add_argument("--extra", type=Path, metavar="HARVEST", help="train on what a device harvested, too")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    digits = training.load()
    if options.extra:
        digits = replace(digits, train=training.with_harvest(digits.train, options.extra))
    settle(0, N_THREADS)
    if not options.only:
        write_test_digits(folder, digits.test)
    names = [options.only] if options.only else sorted(TIERS, key=lambda name: -TIERS[name])
    labels = torch.from_numpy(digits.train.labels)
    entries: list[ModelEntry] = []
    if TEACHER in names:
        copies = training.copies(digits.train.pixels, BEST_COPIES, BEST_SEED)  # (C, B, 28, 28)
        teacher = train(TEACHER, copies, labels, report=epoch_done)
        best_folder(folder).mkdir(parents=True, exist_ok=True)
        torch.save(teacher.state_dict(), best_folder(folder) / BEST_FILE)
        entries += exported(TEACHER, teacher, folder, digits.calibration)
    else:
        teacher = kept_teacher(folder)
    students = [name for name in names if name != TEACHER]
    if students:
        copies = training.copies(digits.train.pixels, STUDENT_COPIES, STUDENT_SEED)  # (C, B, 28, 28)
        log(f"{TEACHER} answers {copies.shape[0] * copies.shape[1]:,} distorted digits")
        soft = logits_of(teacher, copies)  # (C, B, 10)
        with ProcessPoolExecutor(N_THREADS, mp_context=get_context("spawn")) as workers:
            tasks = {name: workers.submit(train, name, copies, labels, soft, epoch_done) for name in students}
            for name, task in tasks.items():
                entries += exported(name, task.result(), folder, digits.calibration)
    write_manifest(folder, [entry for entry in entries if entry.file != BEST_FILE])
    if TEACHER in names:
        write_manifest(best_folder(folder), [entry for entry in entries if entry.file == BEST_FILE], BEST_HEADER)
    if not options.only:
        log("measuring")
        report.write(folder, digits)
    log(f"done in {time.monotonic() - started:.0f} s")


def best_folder(folder: Path) -> Path:
    """Where the best model's torch weights go: they are of the second distribution, not of the package."""
    return BEST_FOLDER if folder == FOLDER else folder / BEST_FOLDER.name


def kept_teacher(folder: Path) -> Network:
    """The best model as it was trained before."""
    path = best_folder(folder) / BEST_FILE
    if not path.exists():
        raise SystemExit(f"{path}: missing, and it teaches the others; run without --only first")
    teacher = build(TEACHER)
    teacher.load_state_dict(torch.load(path, weights_only=True))
    return teacher.eval()


def exported(name: str, network: Network, folder: Path, calibration: training.Split) -> list[ModelEntry]:
    """Writes the network's files and measures each of them on calibration."""
    export.to_onnx(network, folder / f"{name}.onnx", SHAPE, "coe.zoo.digits")
    files = [f"{name}.onnx"]
    if TIERS[name] == 1:
        export.to_tflite(network, folder / f"{name}.tflite", SHAPE)
        export.to_tflite(network, folder / f"{name}.int8.tflite", SHAPE, int8=True)
        files += [f"{name}.tflite", f"{name}.int8.tflite"]
    if name == TEACHER:
        files.append(BEST_FILE)
    entries = []
    for file in files:
        path = (best_folder(folder) if file == BEST_FILE else folder) / file
        outputs = report.opened(path, name)(calibration.x())  # (B, 10)
        accuracy = float((outputs.argmax(axis=1) == calibration.labels).mean())
        log(f"{file}: {accuracy:.1%} on calibration, {path.stat().st_size:,} bytes")
        entries.append(ModelEntry(file, name, TIERS[name], flops(network, SHAPE), parameters(network), accuracy))
    return entries


if __name__ == "__main__":
    main()
