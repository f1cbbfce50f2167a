"""python -m recipes.cifar10 --data DIR [--out DIR]: trains and exports the four-tier cascade; --test reports on it.

DIR holds `cifar-10-batches-py`, or cifar10_train.npz and cifar10_test.npz. Training takes an hour or two on two
cores that know bfloat16; networks are kept in the checkpoints' folder as they are trained, and a run that was
stopped resumes at the next one. Test pictures are not read until a last run with --test, which changes no model: it
records what the exported ones say of calibration and test, and writes REPORT.md. --report writes REPORT.md again from
the traces that are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from coe_zoo.networks import Network

from recipes.bundle import log, read_entries
from sim.traces import Answers, Trace, write_parquet

from . import FOLDER, data, report, training
from .training import RECIPES, TEACHER, TIERS, exported, logits_of, teacher_logits, timed_training, write_manifest

ORDER = sorted(TIERS, key=lambda name: (name != TEACHER, TIERS[name]))  # the teacher first, then from tier 1 on
NPZ_NOTE = """\
The pictures were read from lossy JPEG files (luma as at quality 75, chroma subsampled), not from the original pixels,
and test is a random half of the 10,000 test pictures: compare with published accuracies with care. One picture in
5,000 is 0.02%; differences of less than half a percent are within noise."""
BATCHES_NOTE = "The pictures are the original ones."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.cifar10", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the pictures")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write into (default: this one)")
    parser.add_argument("--checkpoints", type=Path, default=Path("cifar10-checkpoints"), help="default: %(default)s")
    parser.add_argument("--only", choices=ORDER, action="append", help="train this network alone, and export none")
    parser.add_argument("--threads", type=int, default=2, help="of the training (default: %(default)s)")
    parser.add_argument("--test", action="store_true", help="report on what was exported; train and export nothing")
    parser.add_argument("--report", action="store_true", help="as --test, from the traces that were recorded before")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    learning = data.load_learning(options.data)
    if options.test or options.report:
        kept = [training.kept(name, options.checkpoints) for name in TIERS]
        seconds = {one.name: one.seconds for one in kept if one is not None}
        note = NPZ_NOTE if (options.data / data.TEST_NPZ).exists() else BATCHES_NOTE
        if not options.report:
            record(options.out, learning, data.load_test(options.data))
        report.write(options.out, seconds, len(learning.train), note)
        return
    ready = [trained(name, learning, options.checkpoints) for name in options.only or ORDER]
    if not options.only:
        entries = [entry for one in ready for entry in exported(one, learning, options.out)]
        write_manifest(options.out, entries)


def record(folder: Path, learning: data.Learning, test: data.Split) -> None:
    """Writes the two traces, of the files that the manifest in `folder` names."""
    in_traces = {file for tier in report.FOUR_TIERS for file in tier}
    members = [folder / entry.file for entry in read_entries(folder) if entry.file in in_traces]
    for split_name, split in (("calibration", learning.calibration), ("test", test)):
        x = split.x()
        answers = {}
        for member in members:
            answers[member.name] = Answers.of(*training.one_by_one(member, x))
            log(f"{member.name} has answered {len(split):,} pictures")
        labels = split.labels.astype(np.int32)
        write_parquet(
            Trace(split_name, split.ids, labels, answers, split.payload_bytes), folder / f"{split_name}.parquet"
        )


def trained(name: str, learning: data.Learning, folder: Path) -> training.Trained:
    """The network `name`: as it was kept, or trained now and kept."""
    found = training.kept(name, folder)
    if found is not None:
        return found
    pixels = torch.from_numpy(learning.calibration.pixels)

    def on_epoch(name: str, epoch: int, loss: float, network: Network) -> None:
        answers = logits_of(network, pixels).argmax(dim=1).numpy()  # (B,)
        accuracy = (answers == learning.calibration.labels).mean()
        log(f"{name}: epoch {epoch} of {RECIPES[name].epochs}, loss {loss:.3f}, {accuracy:.2%} on calibration")

    teacher = soft_labels(learning, folder) if RECIPES[name].teacher_share else None
    network, seconds = timed_training(name, learning.train, teacher, on_epoch)
    found = training.Trained(name, network, seconds)
    training.keep(found, folder)
    log(f"{name}: trained in {seconds:.0f} s")
    return found


def soft_labels(learning: data.Learning, folder: Path) -> torch.Tensor:
    """(N_VIEWS, B, 10), what the best model says of each view of the train pictures."""
    found = training.kept_logits(folder)
    if found is None:
        teacher = trained(TEACHER, learning, folder).network
        found = teacher_logits(teacher, learning.train, lambda number: log(f"{TEACHER} has answered view {number}"))
        training.keep_logits(found, folder)
    return found


if __name__ == "__main__":
    main()
