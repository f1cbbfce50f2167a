"""Tasks with ready-made models: the digits come with the package, the others with the distribution `coe-zoo`."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from coe.cascade.errors import ConfigError, TaskNotInstalled

TASKS = ("digits", "cifar10", "sst2", "tfns")
MODELS = ("digits-torch",)  # folders of models alone, without configs and traces
GROUP = "coe.tasks"  # of the entry points by which an installed distribution offers tasks: name -> package of its files


def find(reference: str) -> Path:
    """The path of a task's file, such as "digits/stroke.onnx", or of its folder, "digits".

    Raises:
        ConfigError: there is no such task.
        TaskNotInstalled: its distribution is not installed.
    """
    task, _, file = reference.partition("/")
    return folder_of(task, reference) / file


def installed() -> dict[str, Path]:
    """The folder of every task that is installed, by name."""
    names = dict.fromkeys((*TASKS, *(entry.name for entry in entry_points(group=GROUP))))
    folders = {}
    for name in names:
        try:
            folders[name] = folder_of(name)
        except ConfigError:
            continue
    return folders


@cache
def folder_of(task: str, reference: str | None = None) -> Path:
    """The folder of a task's files.

    Raises:
        ConfigError: there is no such task.
        TaskNotInstalled: its distribution is not installed.
    """
    if task == "digits":
        return Path(__file__).parent / task
    for entry in entry_points(group=GROUP):
        if entry.name == task:
            try:
                spec = importlib.util.find_spec(entry.value)
            except ModuleNotFoundError:  # its metadata alone is there
                continue
            if spec is not None and spec.submodule_search_locations:
                return Path(next(iter(spec.submodule_search_locations)))
    if task in (*TASKS, *MODELS):
        raise TaskNotInstalled(
            [f'"zoo:{reference or task}" is not installed (run: pip install ./zoo in a checkout of the repository)']
        )
    raise ConfigError([f'expected a bundled task ({", ".join(TASKS)}), got "zoo:{reference or task}"'])
