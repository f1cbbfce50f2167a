"""`coe-sim --delays`: the delay study, on real programs or from a recording, and the schedule study."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from coe import zoo
from coe.cascade import ConfigError
from coe.settings import parse_seconds
from coe.zoo.digits import N_TEST

from .arguments import count
from .output import finish, require_plots, say, write_json

if TYPE_CHECKING:
    from ..studies.delays import DelayStudy
    from ..studies.digits import Profile

DIGITS = "digits"
DEFAULT = "1us,10ms,100ms,1000ms"  # the paper's


def add(parser: argparse.ArgumentParser) -> None:
    """Its options belong to coe-sim itself: it is the study that a first visitor runs."""
    parser.add_argument(
        "--delays",
        nargs="?",
        const=DEFAULT,
        type=_delays,
        metavar="LIST",
        help=f"the delay study; times with units, default {DEFAULT}",
    )
    parser.add_argument("--one-way", action="store_true", help="charge each delay in each direction")
    parser.add_argument(
        "--schedule",
        action="store_true",
        help="spread the delays over the tiers, each on a server of its own: smallest first, largest last",
    )
    parser.add_argument("--clock", choices=("real", "virtual"), default="real", help="default: real")
    parser.add_argument("--recording", type=Path, help="what the virtual clock replays; default: the bundled one")
    parser.add_argument("--limit", type=count, metavar="N", help="examples; default 1000")
    parser.add_argument("--task", choices=zoo.TASKS, default=DIGITS, help=f"default: {DIGITS}")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="labelled examples of another task, for the real clock; as of record"
    )


def run(options: argparse.Namespace) -> int:
    _refuse_without_effect(options)
    return _schedule(options) if options.schedule else _study(options)


def _study(options: argparse.Namespace) -> int:
    require_plots(options)
    from ..records import save_recording
    from ..studies import delays as study
    from ..studies import digits as models
    from ..systems import Bundle
    from ..table import achieved_table, delay_table
    from ..verdict import savings, verdict

    if options.clock == "virtual":
        result = study.run_virtual(Bundle.of(options.task), options.delays, options.one_way, options.recording)
        profile = None
    else:
        result, profile = _measured(options)
    content = {
        "rows": [row.as_json() for row in result.rows],
        "clock": options.clock,
        "one_way": options.one_way,
        "recorded_on": result.about,
        "savings": savings(result.rows),
        "models": None if profile is None else profile.as_json(),
    }
    text = [delay_table(result.rows), "", achieved_table(result.rows), "", *verdict(result.rows)]
    if options.clock == "virtual":
        text.append(f"replayed in virtual time, from a recording on {result.about}")
    if profile is not None:
        text = [models.as_text(profile), "", *text]
    if options.out:
        from ..report import write_report

        write_json(options.out, "results.json", content)  # first: a minute of measuring is in it
        save_recording(options.out / "recording.json", result.recording, result.about)
        text += ["", f"report: {write_report(options.out / 'report.html', result, profile)}"]
    return say(options, content, "\n".join(text))


def _measured(options: argparse.Namespace) -> tuple[DelayStudy, Profile | None]:
    """The study on real programs; of the digits, what each bundled model does besides."""
    from ..live import Stage
    from ..progress import Progress
    from ..recording import read_data, read_models, write_lines
    from ..studies import delays as study
    from ..studies import digits as models
    from ..systems import Bundle

    bundle = Bundle.of(options.task)
    n_steps = study.n_steps(options.delays)
    if bundle.is_self_sourced:
        limit = options.limit or N_TEST
        progress = Progress(n_steps + 1)
        profile = models.profile(limit, progress)
        return study.run_real(Stage(bundle), options.delays, limit, options.one_way, progress), profile
    task = read_models([options.task]).task
    data = read_data(str(options.data), task, options.limit or N_TEST)
    with tempfile.TemporaryDirectory(prefix="coe-sim-") as folder:
        stage = Stage(bundle, write_lines(data, task, Path(folder) / "examples.jsonl"))
        progress = Progress(n_steps)
        return study.run_real(stage, options.delays, len(data.ids), options.one_way, progress), None


def _schedule(options: argparse.Namespace) -> int:
    from ..progress import Progress
    from ..studies import schedule as study

    result = study.run(options.delays, options.limit or N_TEST, options.one_way, Progress(1))
    return finish(options, "schedule.json", result.as_json(), study.as_text(result))


def _refuse_without_effect(options: argparse.Namespace) -> None:
    """An option that would be passed over is an error, not a surprise."""
    findings = []
    if options.recording and options.clock == "real":
        findings.append("--recording: the real clock replays nothing (add --clock virtual, or leave it out)")
    if options.schedule and options.clock == "virtual":
        findings.append("--schedule: it is measured on the real clock only (leave --clock virtual out)")
    if options.limit is not None and options.clock == "virtual":
        findings.append("--limit: the virtual clock replays the whole recording (leave it out)")
    if options.task == DIGITS and options.limit is not None and options.limit > N_TEST:
        findings.append(f"--limit: expected a whole number from 1 to {N_TEST}, got {options.limit}")
    if options.task == DIGITS and options.data:
        findings.append("--data: the digits are bundled (leave it out, or name another task with --task)")
    if options.task != DIGITS and options.schedule:
        findings.append("--schedule: it is measured on the digits only (leave --task out)")
    if options.task != DIGITS and options.clock == "real" and not options.data and not options.schedule:
        findings.append(
            f"--data: expected a folder of labelled examples of {options.task}, got none "
            "(they are not bundled; or replay the trace: --clock virtual)"
        )
    if options.data and options.clock == "virtual":
        findings.append("--data: the virtual clock decides no examples anew (leave it out)")
    if findings:
        raise ConfigError(findings)


def _delays(text: str) -> list[float]:
    try:
        found = [parse_seconds(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not all(0 < delay_s <= 60 for delay_s in found):
        raise argparse.ArgumentTypeError("expected delays above 0 and up to 60s")
    return found
