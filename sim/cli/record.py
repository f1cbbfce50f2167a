"""`coe-sim record`: models and a data set become a trace."""

from __future__ import annotations

import argparse
from pathlib import Path

from coe.cascade import ConfigError
from coe.models.base import import_runtime

from . import arguments
from .output import say, tell


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser(
        "record",
        help="run models over a data set once, into a trace",
        description="Every model's prediction, score and probabilities on every example, as one Parquet file.",
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="the .parquet file to write")
    parser.add_argument(
        "--models", nargs="+", default=["digits"], metavar="CONFIG", help="edge or cloud YAMLs, or digits (default)"
    )
    parser.add_argument(
        "--data",
        default="digits",
        metavar="DIR",
        help="a folder with one per label or a labels.tsv; a table of texts; imagenet:DIR; swag:FILE; default: digits",
    )
    parser.add_argument("--latencies", action="store_true", help="time every example alone: best of three, one thread")
    parser.add_argument("--limit", type=arguments.count, metavar="N", help="the first N examples")
    parser.add_argument("--json", action="store_true", help="only JSON on standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from .. import recording
    from ..progress import Progress
    from ..table import aligned
    from ..traces import write_parquet
    from ..traces.parquet import MEND

    if options.trace.suffix != ".parquet":
        raise ConfigError([f"expected a name that ends in .parquet, got {options.trace}"])
    import_runtime("pyarrow", "Parquet", MEND)  # not after minutes of recording
    models = recording.read_models(options.models)
    data = recording.read_data(options.data, models.task, options.limit)
    progress = Progress(1)
    name = options.trace.stem
    trace = recording.record(models, data, progress, latencies=options.latencies, name=name)
    write_parquet(trace, options.trace)
    tell(f"wrote {options.trace}, {options.trace.stat().st_size:,} bytes")
    single = {model: trace.accuracy(model) for model in trace.models}
    content = {"n": len(trace), "single": single, "path": str(options.trace)}
    return say(options, content, aligned(("model", "accuracy"), [[key, f"{at:.2%}"] for key, at in single.items()]))
