"""The traces that come with the project: two in the folder of each bundled task that has any.

`coe/zoo/TASK/test.parquet` holds what every member of the task's tiers said of the test split,
`coe/zoo/TASK/calibration.parquet` of the split on which choices are made; both have the columns of a trace, with
probabilities, latencies and payload bytes, and name their models as the manifest beside them does, so that FLOPs are
known too. Commands call them `zoo:TASK/test.parquet` and `zoo:TASK/calibration.parquet`; TASK alone is the first.
"""

from __future__ import annotations

from pathlib import Path

from coe import zoo
from coe.cascade import ConfigError
from coe.models import read_manifest

from .costs import Costs
from .trace import Trace

PREFIX = "zoo:"
TEST, CALIBRATION = "test.parquet", "calibration.parquet"


def tasks() -> list[str]:
    """The bundled tasks that have traces."""
    return [task for task in zoo.TASKS if (zoo.FOLDER / task / TEST).exists()]


def task_of(reference: str) -> str | None:
    """The bundled task that a reference names; None: it is a path of the user's."""
    if reference.startswith(PREFIX):
        return reference.removeprefix(PREFIX).split("/")[0]
    return reference if reference in zoo.TASKS and not Path(reference).exists() else None


def find_trace(reference: str) -> tuple[Path, str]:
    """The file of a bundled trace, and its name for titles: "cifar10-test".

    Raises:
        ConfigError: no such task, or no such trace in its folder.
    """
    named = reference.removeprefix(PREFIX)
    task, _, file = named.partition("/")
    path = zoo.find(f"{task}/{file or TEST}")
    if path.name not in (TEST, CALIBRATION) or not path.exists():
        known = ", ".join(f"{PREFIX}{task}/{name}" for task in tasks() for name in (TEST, CALIBRATION))
        raise ConfigError([f'expected a bundled trace ({known}), got "{reference}" (or write the path of a file)'])
    return path, f"{task}-{path.stem}"


def flops_of(task: str, trace: Trace) -> Costs | None:
    """What the task's manifest counts for the models of a trace; None where it does not know them all."""
    models = read_manifest(zoo.find(task)).models
    known = {name: models[name].flops for name in trace.models if name in models}
    found = {name: flops for name, flops in known.items() if flops is not None}
    if len(found) < len(trace.models):
        return None
    return Costs("flops", found, f"two for each multiply-add of one example (coe/zoo/{task}/manifest.yaml)")
