"""python -m coe.zoo.readers FOLDER --task NAME: the manifest of an exported model, beside its file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from coe.settings.programs import run_program

from . import huggingface, timm
from .described import model_files, write_manifest


def main(arguments: Sequence[str] | None = None) -> int:
    return run_program("coe.zoo.readers", _run, sys.argv[1:] if arguments is None else arguments)


def _run(given: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m coe.zoo.readers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="with config.json and model.onnx, as Hugging Face or timm write them")
    parser.add_argument("--task", required=True, help="what the model decides; the same for all models of a cascade")
    options = parser.parse_args(given)
    described = timm.describe(options.folder) if timm.is_timm(options.folder) else huggingface.describe(options.folder)
    path = write_manifest(described, options.task, model_files(options.folder))
    for note in described.notes:
        print(note)
    print(f"wrote {path}: {len(described.labels)} labels, input {described.input['kind']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
