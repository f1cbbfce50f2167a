"""What lies beside the code: the model files and their manifest."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from coe.zoo import bundle, export
from coe.zoo.bundle import Entry
from coe.zoo.cifar10 import measure
from coe.zoo.cifar10.checkpoints import Trained
from coe.zoo.cifar10.data import LABELS, MEAN, SIDE, STD, Learning
from coe.zoo.cifar10.quantise import to_int8_onnx
from coe.zoo.cifar10.train import RECIPES, TEACHER, TIERS
from coe.zoo.measure import flops, parameters

PRODUCER = "coe.zoo.cifar10"
SHAPE = (3, SIDE, SIDE)  # of one picture, as models take it
INPUT = {
    "kind": "image",
    "size": [SIDE, SIDE],
    "channels": 3,
    "layout": "NCHW",
    "dtype": "float32",
    "scale": 1 / 255,
    "mean": list(MEAN),
    "std": list(STD),
}
DISTILLED = [name for name in TIERS if RECIPES[name].teacher_share]
HEADER = f"""\
# The models of the CIFAR-10 task, written by `python -m coe.zoo.cifar10`; do not edit.
# All learned from the same 45,000 train pictures; {", ".join(DISTILLED)}
# also, to a part, from {TEACHER}'s answers to them (distillation). calibration_accuracy is that of the file itself on
# the 5,000 calibration pictures. An example is (32, 32, 3) uint8 RGB pixels, or a JPEG or PNG of them.
"""
SUFFIXES = {  # what is exported, by tier
    1: ("onnx", "int8.onnx", "tflite", "int8.tflite"),
    2: ("onnx", "int8.tflite"),
    3: ("onnx",),
    4: ("onnx",),
}
NOT_BUNDLED = {1: ("tflite",), 2: ("int8.tflite",)}  # for their size; the recipe makes them, as the manifest says
MADE_BY = "python -m coe.zoo.cifar10 --data DIR"
N_RANGES = 512  # train pictures on which 8-bit files read the ranges of their activations
MOST_APART = 1e-2  # between the probabilities of weights in 16 and in 32 bits


def exported(one: Trained, learning: Learning, folder: Path, say: Callable[[str], None]) -> list[Entry]:
    """Writes the network's files and measures each of them on calibration."""
    tier = TIERS[one.name]
    for suffix in SUFFIXES[tier]:
        _export(one, suffix, learning, folder)
    x, labels = learning.calibration.x(), learning.calibration.labels
    entries = []
    for suffix in SUFFIXES[tier]:
        file = f"{one.name}.{suffix}"
        accuracy = float((measure.answers(folder / file, x).argmax(axis=1) == labels).mean())
        say(f"{file}: {accuracy:.2%} on calibration, {(folder / file).stat().st_size:,} bytes")
        made_by = MADE_BY if suffix in NOT_BUNDLED.get(tier, ()) else None
        entries.append(
            Entry(file, one.name, tier, flops(one.network, SHAPE), parameters(one.network), accuracy, made_by)
        )
    return entries


def _export(one: Trained, suffix: str, learning: Learning, folder: Path) -> None:
    path = folder / f"{one.name}.{suffix}"
    if suffix == "onnx":
        export.to_onnx(one.network, path, SHAPE, PRODUCER)
        x = learning.calibration.x()
        exact = measure.answers(path, x)
        export.to_onnx(one.network, path, SHAPE, PRODUCER, half=True)
        apart = float(np.abs(measure.answers(path, x) - exact).max())
        if apart > MOST_APART:  # keep the weights as they are
            export.to_onnx(one.network, path, SHAPE, PRODUCER)
    elif suffix == "int8.onnx":
        pictures = learning.train.take(np.arange(N_RANGES)).x()
        to_int8_onnx(folder / f"{one.name}.onnx", path, pictures, PRODUCER)
    else:
        export.to_tflite(one.network, path, SHAPE, int8=suffix == "int8.tflite")


def write_manifest(folder: Path, entries: list[Entry]) -> None:
    """Writes manifest.yaml."""
    bundle.write_manifest(folder, HEADER, {"task": "cifar10", "labels": list(LABELS), "input": INPUT}, entries)
