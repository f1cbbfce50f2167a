"""python -m recipes.readers FOLDER --task NAME: the manifest of an exported model, beside its file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from coe.config.program import run_program

from . import models
from .models import model_files, write_manifest


def main(arguments: Sequence[str] | None = None) -> int:
    return run_program("recipes.readers", _run, sys.argv[1:] if arguments is None else arguments)


def _run(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.readers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="with config.json and model.onnx, as Hugging Face or timm write them")
    parser.add_argument("--task", required=True, help="what the model decides; the same for all models of a cascade")
    options = parser.parse_args(given)
    described = (
        models.describe_timm(options.folder)
        if models.is_timm(options.folder)
        else models.describe_huggingface(options.folder)
    )
    path = write_manifest(described, options.task, model_files(options.folder))
    for note in described.notes:
        print(note)
    print(f"wrote {path}: {len(described.labels)} labels, input {described.input['kind']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
