"""python -m recipes.readers.to_onnx CHECKPOINT FOLDER: a transformer of `transformers` as ONNX, ready to be read.

CHECKPOINT is a folder that `save_pretrained` or a trainer wrote (or a hub's name), of a model for sequence
classification or multiple choice. FOLDER gets FOLDER.onnx, tokenizer.json and config.json; `python -m recipes.readers
FOLDER --task NAME` makes the manifest. Needs `pip install torch transformers onnx`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coe.cascade.errors import ConfigError
from coe.config.program import run_program
from coe.models.loading import import_runtime
from recipes.export import OPSET, write_onnx

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HEADS = ("ForSequenceClassification", "ForMultipleChoice")
N_CHOICES = 4
PRODUCER = "recipes.readers"


class Positional(nn.Module):
    """The model with its inputs by place, and its logits alone."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def export(checkpoint: str, folder: Path) -> Path:
    """Writes the folder; the ONNX file takes any batch and any length."""
    transformers = import_runtime("transformers", "transformers", "pip install transformers")
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    architecture = (config.architectures or [""])[0]
    head = next((name for name in HEADS if architecture.endswith(name)), None)
    if head is None:
        raise ConfigError([f"{checkpoint}: expected a model {' or '.join(HEADS)}, got {architecture or 'none'}"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, use_fast=True)
    # Attention as plain operators: what the exporter can write for every one of these models.
    model = getattr(transformers, f"AutoModel{head}").from_pretrained(checkpoint, attn_implementation="eager").eval()
    names = [name for name in INPUTS if name in tokenizer.model_input_names]
    rows = (2, N_CHOICES, 8) if head == "ForMultipleChoice" else (2, 8)
    ids = torch.full(rows, 5, dtype=torch.long)
    inputs = tuple(ids if name == "input_ids" else torch.ones_like(ids) * (name == "attention_mask") for name in names)
    free = {0: "batch", len(rows) - 1: "tokens"}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{folder.name}.onnx"  # models are told apart by the names of their files
    _write(Positional(model, names), inputs, names, free, path)
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    return path


def _write(
    model: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], free: dict[int, str], path: Path
) -> None:
    import onnx

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, and of sizes that a trace reads once
        torch.onnx.export(
            model,
            inputs,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes={**dict.fromkeys(names, free), "logits": {0: "batch"}},
        )
    write_onnx(onnx.load(str(path)), path, PRODUCER)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_program("recipes.readers.to_onnx", _run, sys.argv[1:] if arguments is None else arguments)


def _run(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.readers.to_onnx", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint", help="a folder, or a hub's name")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(given)
    print(f"wrote {export(options.checkpoint, options.folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
