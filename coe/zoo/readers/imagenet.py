"""The validation images of ImageNet-1K, as they are published and as they are usually laid out.

- `val/n01440764/ILSVRC2012_val_00000293.JPEG`: a folder for each synset;
- `val/ILSVRC2012_val_00000293.JPEG` with `LOC_val_solution.csv` and `LOC_synset_mapping.txt` (Kaggle's), or with
  `ILSVRC2012_validation_ground_truth.txt` and the `meta.mat` of the same development kit.

Labels are numbered as models number them: synsets in order of their ids. The ground truth's own numbers are others;
`meta.mat` says which synset each stands for.
"""

import csv
import re
from pathlib import Path

from coe.cascade.errors import ConfigError

from .files import FileBytes, Labelled
from .matlab import read_struct

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
