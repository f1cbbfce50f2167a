"""What lies beside a text task's code: model files, their tokenizers and the manifest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe.models import LoadedMember, load, read_manifest
from coe.zoo import bundle
from coe.zoo.text import export, measure
from coe.zoo.text.checkpoints import Trained
from coe.zoo.text.data import Split, Task
from coe.zoo.text.members import FILES, SMALL, TEACHER, TIERS, tokenizer_file


@dataclass(frozen=True, slots=True)
class Entry(bundle.Entry):
    """One model file's line in the manifest.

    Args:
        tokenizer: the file beside it.
        max_length: tokens it sees of a text, at most.
    """

    tokenizer: str = ""
    max_length: int = 0

    def as_yaml(self, folder: Path) -> dict[str, Any]:
        # Not `bundle.Entry.as_yaml` through super(), which a dataclass with slots does not know in its methods.
        digest = hashlib.sha256((folder / self.tokenizer).read_bytes()).hexdigest()
        own = {
            "kind": "text",
            "tokenizer": self.tokenizer,
            "tokenizer_sha256": digest,
            "max_length": self.max_length,
        }
        return {**bundle.Entry.as_yaml(self, folder), "input": own}


def exported(one: Trained, task: Task, calibration: Split, folder: Path) -> Entry:
    """Writes the network's file and tokenizer, and its line in the manifest; measures the file on calibration."""
    file, producer = FILES[one.name], f"coe.zoo.{task.name}"
    (folder / tokenizer_file(one.name)).write_bytes(one.tokenizer)
    if one.name == TEACHER:
        export.to_int8_onnx(one.network, folder / file, producer)
    else:
        export.to_onnx(one.network, folder / file, producer, bits=8)
    entry = _entry(one, task, 0.0, 1)
    write_manifest(task, folder, [entry])  # a member is opened by it
    with_tokens = opened(folder, file)
    try:
        accuracy = float((_answers(with_tokens, calibration) == calibration.labels).mean())
        length = measure.mean_length(with_tokens, calibration.texts)
    finally:
        with_tokens.close()
    entry = _entry(one, task, accuracy, length)
    write_manifest(task, folder, [entry])
    return entry


def _entry(one: Trained, task: Task, accuracy: float, n_tokens: int) -> Entry:
    return Entry(
        file=FILES[one.name],
        architecture=one.name,
        tier=TIERS[one.name],
        flops=measure.flops(one.network, n_tokens),
        parameters=sum(weights.numel() for weights in one.network.parameters()),
        calibration_accuracy=accuracy,
        tokenizer=tokenizer_file(one.name),
        max_length=task.max_length,
        made_by=f"python -m coe.zoo.{task.name} --data DIR" if one.name == TEACHER else None,
    )


def opened(folder: Path, file: str) -> LoadedMember:
    """The member as a config would open it: verified by the manifest, on one thread."""
    return load(read_manifest(folder).models[file])


def _answers(member: LoadedMember, split: Split) -> Any:
    """(B,) labels, each text alone: an 8-bit model's answer may hang on what is computed beside it."""
    outputs, _ = measure.one_by_one(member, split.texts, repeats=1)
    return outputs.argmax(axis=1)


def write_manifest(task: Task, folder: Path, entries: list[Entry]) -> None:
    """Writes manifest.yaml."""
    header = f"""\
# The models of the {task.title} task, written by `python -m coe.zoo.{task.name}`; do not edit.
# All learned from the same train texts; {", ".join(SMALL)} also, to a part, from {TEACHER}'s answers to them and to
# parts of them (distillation). calibration_accuracy is that of the file itself on the calibration texts, FLOPs are
# those for a text of average length there. {FILES[TEACHER]} and its tokenizer are not bundled: the recipe makes them.
"""
    contract = {"task": task.name, "labels": list(task.labels), "input": {"kind": "text"}}
    bundle.write_manifest(folder, header, contract, entries)
