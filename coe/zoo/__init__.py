"""Bundled models, the recipes that made them, and the real examples they are tried on."""

from __future__ import annotations

from pathlib import Path

from coe.cascade.errors import ConfigError

FOLDER = Path(__file__).parent
TASKS = ("digits", "cifar10", "sst2", "tfns")


def find(reference: str) -> Path:
    """The path of a bundled file, such as "digits/stroke.onnx", or of a task's folder, "digits".

    Raises:
        ConfigError: there is no such task.
    """
    task = reference.split("/")[0]
    if task not in TASKS:
        raise ConfigError([f'expected a bundled task ({", ".join(TASKS)}), got "zoo:{reference}"'])
    return FOLDER / reference
