"""`coe-sim --delays`: what a cascade saves when the cloud is far away. Paper: Section 5, Figure 5.

A real server and a real agent run as processes on this machine; the agent injects each delay at the hop between
the two. Three systems decide the same examples: the cascade, the best single model in the cloud for every example,
the edge ensemble alone. The virtual clock predicts each row from a run without any delay.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coe import zoo
from coe.cascade import ConfigError
from coe.config import format_seconds
from coe.config.link import open_link
from coe.link import Delay, Link
from coe.zoo.digits import N_TEST
from sim.arguments import count, seconds
from sim.live import CloudProcess, LiveInput, Pace, run_live
from sim.output import (
    ACHIEVED_HEADER,
    DELAY_COLUMNS,
    Progress,
    achieved_cells,
    aligned,
    delay_cells,
    finish,
    print_result,
    require_matplotlib,
    write_json,
)
from sim.records import DelayRow, Record, about, load_recording, recording_of, replay, save_recording, summarise
from sim.systems import SYSTEMS, TITLES, BundledTask, Uplink
from sim.traces import read_trace

if TYPE_CHECKING:
    from .digits import Profile


RATIOS = (  # key, field of DelayRow, in words
    ("latency_ratio", "latency_mean_s", "mean latency"),
    ("communication_ratio", "communication_mean_s", "communication"),
    ("bytes_ratio", "bytes_sent_per_example", "bytes sent"),
)


MOST_OFF = 0.1  # of a measured mean from the predicted one, where two systems are compared
BUSY = "the machine was busy"


def savings(rows: Sequence[DelayRow]) -> list[dict[str, Any]]:
    """Per delay: how many times faster the cascade is than the cloud alone, and how much less it sends.

    No more than 1 / deferred: what is left over is chance, or the wire of other examples. `busy`: one of the two is
    further from its prediction than MOST_OFF, so that their ratio says nothing.
    """
    found = {(row.system, row.delay_s): row for row in rows}
    ratios = []
    for delay_s in dict.fromkeys(row.delay_s for row in rows):
        both = found["cascade", delay_s], found["cloud-only", delay_s]
        ratio: dict[str, Any] = {"delay_s": delay_s, "busy": any(abs(_off(row)) > MOST_OFF for row in both)}
        most = 1 / both[0].deferral_rate if both[0].deferral_rate else float("inf")
        for name, field, _ in RATIOS:  # None where nothing left the device: no number of times less than nothing
            own, cloud = (getattr(row, field) for row in both)
            ratio[name] = min(cloud / own, most) if own else None
        ratios.append(ratio)
    return ratios


def _off(row: DelayRow) -> float:
    """The measured mean against the predicted one, as a share of that."""
    return (row.latency_mean_s - row.predicted_mean_s) / row.predicted_mean_s


def verdict(rows: Sequence[DelayRow]) -> list[str]:
    """Accuracy first, then one line per delay."""
    first = {row.system: row for row in reversed(rows)}
    cascade, cloud, edge = first["cascade"], first["cloud-only"], first["edge-only"]
    lines = [
        f"{1 - cascade.deferral_rate:.1%} of {cascade.n:,} examples were decided on the device; accuracy: cascade "
        f"{cascade.accuracy:.1%}, best single model {cloud.accuracy:.1%}, edge ensemble alone {edge.accuracy:.1%}."
    ]
    for ratio in savings(rows):
        at = format_seconds(ratio["delay_s"])
        if ratio["busy"]:
            means = [
                f"{TITLES[row.system]} {format_seconds(row.latency_mean_s)}, {_off(row):+.0%} of what is predicted"
                for row in rows
                if row.delay_s == ratio["delay_s"] and row.system != "edge-only"
            ]
            lines.append(f"at {at}: {BUSY}: {'; '.join(means)}. No comparison is made; run it again on a quiet one.")
        else:
            times = [f"{words} {ratio[name]:.1f}x lower" for name, _, words in RATIOS if ratio[name] is not None]
            lines.append(f"at {at}, against the cloud alone: {', '.join(times)}")
    return lines


RECORDED = Path(__file__).parents[1] / "recorded"  # of tasks that have no trace

Recording = Mapping[str, Sequence[Record]]


@dataclass(frozen=True, slots=True)
class DelayStudy:
    """What one run of the study gives.

    Args:
        rows: measured (or, with the virtual clock alone, replayed) systems at each delay.
        latencies: (system, delay_s) -> seconds of each example, for the distribution.
        recording: the runs without a delay, which the virtual clock replays.
        about: where the recording was made.
    """

    task: str
    rows: list[DelayRow]
    latencies: dict[tuple[str, float], list[float]]
    recording: Recording
    about: str
    one_way: bool
    link: str = ""  # in words


def run_real(
    live_input: LiveInput, delays_s: Sequence[float], n: int, one_way: bool, progress: Progress, link: Any = None
) -> DelayStudy:
    """Every system at every delay on this machine, beside the virtual clock's prediction.

    Args:
        link: what a config says under `link_model`; None: nothing.
    """
    model = None if link is None else open_link(link)
    bundle = live_input.bundle
    rows: list[DelayRow] = []
    latencies: dict[tuple[str, float], list[float]] = {}
    with CloudProcess(bundle.cloud_config) as server:
        calm = Pace.one_at_a_time()
        run_live(live_input, "cascade", Uplink(server.port), min(n, 100), progress, "warming up", calm)
        recording = {
            system: run_live(live_input, system, Uplink(server.port), n, progress, f"{system}, no delay", calm)
            for system in SYSTEMS
        }
        deferral_rates = {system: sum(record.left_device for record in recording[system]) / n for system in SYSTEMS}
        cost_s = max(float(np.median([record.latency_s for record in records])) for records in recording.values())
        size = float(np.mean([record.bytes_sent for record in recording["cloud-only"]]))
        link_s = 0.0 if model is None else model.mean_call_s(size)
        for delay_s in delays_s:
            delay = Delay(delay_s, one_way)
            for system in SYSTEMS:
                uplink = Uplink(server.port, delay_s, one_way, link=link)
                pace = Pace.of(n, delay.round_trip_s, deferral_rates[system], cost_s, link_s)
                title = f"{system} at {format_seconds(delay_s)}"
                records = run_live(live_input, system, uplink, n, progress, title, pace)
                predicted = _mean_latency(_replayed(system, recording[system], delay, model, pace.interval_s))
                n_tiers = bundle.n_tiers(system)
                rows.append(summarise(system, delay_s, records, predicted, n_tiers=n_tiers, clock="real"))
                latencies[system, delay_s] = [record.latency_s for record in records]
    where = f"{platform.machine()}, Python {platform.python_version()}, {n} examples"
    return DelayStudy(bundle.task, rows, latencies, recording, where, one_way, _behind(link))


def run_virtual(
    bundle: BundledTask, delays_s: Sequence[float], one_way: bool, path: Path | None, link: Any = None
) -> DelayStudy:
    """The study in virtual time, from a recording: no process, no sleeping.

    Args:
        path: a `recording.json` of an earlier real run; None: the bundled one, or what the bundled trace gives.
    """
    recording, where = _recorded(bundle, path)
    model = None if link is None else open_link(link)
    rows: list[DelayRow] = []
    latencies: dict[tuple[str, float], list[float]] = {}
    for delay_s in delays_s:
        for system in SYSTEMS:
            records = _replayed(system, recording[system], Delay(delay_s, one_way), model)
            n_tiers, predicted = bundle.n_tiers(system), _mean_latency(records)
            rows.append(summarise(system, delay_s, records, predicted, n_tiers=n_tiers, clock="virtual"))
            latencies[system, delay_s] = [record.latency_s for record in records]
    return DelayStudy(bundle.task, rows, latencies, recording, where, one_way, _behind(link))


def _behind(link: Any) -> str:
    """What a study says of its link."""
    names = [Path(link).name] if isinstance(link, str) else [Path(way["trace"]).name for way in (link or {}).values()]
    return f", behind {' and '.join(names)}" if names else ""


def _recorded(bundle: BundledTask, path: Path | None) -> tuple[Recording, str]:
    """What the virtual clock replays, and where it was recorded."""
    bundled = RECORDED / f"{bundle.task}.json"
    if path is not None or bundled.exists():
        return load_recording(path or bundled)
    trace = read_trace(Path(f"zoo:{bundle.task}"))
    return recording_of(bundle, trace), about(trace)


def n_steps(delays_s: Sequence[float]) -> int:
    """Live runs of `run_real`, for its progress."""
    return 1 + len(SYSTEMS) * (1 + len(delays_s))


def _mean_latency(records: Sequence[Record]) -> float:
    return float(np.mean([record.latency_s for record in records]))


def _replayed(
    system: str, recording: Sequence[Record], delay: Delay, link: Link | None, interval_s: float = 0.0
) -> list[Record]:
    return replay(recording, delay, has_device_tier=system != "cloud-only", link=link, interval_s=interval_s)


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
    parser.add_argument(
        "--trace", type=Path, metavar="TRACE", help="of the schedule, in virtual time: a table of predictions"
    )
    parser.add_argument("--tiers", nargs="+", metavar="TIER", help="of the trace: 'a,b,c@2/3' 'd'; as of replay")
    parser.add_argument(
        "--link", type=Path, metavar="FILE", help="calls wait as behind this link: YAML of link_model, CSV, Mahimahi's"
    )
    parser.add_argument("--link-down", type=Path, metavar="FILE", help="Mahimahi's recording of the way back")
    parser.add_argument("--clock", choices=("real", "virtual"), default="real", help="default: real")
    parser.add_argument("--recording", type=Path, help="what the virtual clock replays; default: the bundled one")
    parser.add_argument("--limit", type=count, metavar="N", help="examples; default 1000")
    parser.add_argument("--task", choices=zoo.TASKS, default=DIGITS, help=f"default: {DIGITS}")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="labelled examples of another task, for the real clock; as of record"
    )


def run_command(options: argparse.Namespace) -> int:
    zoo.find(options.task)  # a task that is not installed is the first error
    _refuse_without_effect(options)
    if options.trace is not None:
        options.clock = "virtual"
    options.link = _link_setting(options.link, options.link_down)
    options.delays = options.delays or _delays(DEFAULT)
    return _schedule(options) if options.schedule else _study(options)


def _study(options: argparse.Namespace) -> int:
    require_matplotlib(options)
    from . import digits as models

    if options.clock == "virtual":
        bundle = BundledTask.of(options.task)
        result = run_virtual(bundle, options.delays, options.one_way, options.recording, options.link)
        profile = None
    else:
        result, profile = _measured(options)
    content = {
        "rows": [asdict(row) for row in result.rows],
        "clock": options.clock,
        "one_way": options.one_way,
        "link": options.link,
        "recorded_on": result.about,
        "savings": savings(result.rows),
        "models": None if profile is None else asdict(profile),
    }
    rows = aligned(list(DELAY_COLUMNS), list(map(delay_cells, result.rows)), text_columns=2)
    achieved = aligned(ACHIEVED_HEADER, achieved_cells(result.rows), text_columns=2)
    text = [rows, "", achieved, "", *verdict(result.rows)]
    if options.clock == "virtual":
        text.append(f"replayed in virtual time, from a recording on {result.about}")
    if profile is not None:
        text = [models.as_text(profile), "", *text]
    if options.out:
        from .delay_report import write_report

        write_json(options.out, "results.json", content)  # first: a minute of measuring is in it
        save_recording(options.out / "recording.json", result.recording, result.about)
        text += ["", f"report: {write_report(options.out / 'report.html', result, profile)}"]
    return print_result(options, content, "\n".join(text))


def _measured(options: argparse.Namespace) -> tuple[DelayStudy, Profile | None]:
    """The study on real programs; of the digits, what each bundled model does besides."""
    from . import digits as models

    bundle = BundledTask.of(options.task)
    steps = n_steps(options.delays)
    with _live_input(options, bundle) as (live_input, n):
        progress = Progress(steps + bundle.is_self_sourced)
        profile = models.profile(n, progress) if bundle.is_self_sourced else None
        return run_real(live_input, options.delays, n, options.one_way, progress, options.link), profile


@contextmanager
def _live_input(options: argparse.Namespace, bundle: BundledTask) -> Iterator[tuple[LiveInput, int]]:
    """The examples asked for, and how many they are."""
    from .record import read_data, read_models, write_lines

    n = options.limit or N_TEST
    if bundle.is_self_sourced:
        yield LiveInput(bundle), n
        return
    task = read_models([options.task]).task
    data = read_data(str(options.data), task, n)
    with tempfile.TemporaryDirectory(prefix="coe-sim-") as folder:
        yield LiveInput(bundle, write_lines(data, task, Path(folder) / "examples.jsonl")), len(data.ids)


def _schedule(options: argparse.Namespace) -> int:
    from . import parallel, schedule

    if options.trace is not None:
        trace = read_trace(options.trace)
        specs = parallel.cascade_of(trace, options.tiers)
        result = schedule.of_trace(trace, specs, options.delays, options.one_way)
    else:
        bundle = BundledTask.chain_of(options.task)
        schedule.spread(options.delays, bundle.n_tiers("cascade"))  # too few are found before the work
        if options.clock == "virtual":
            recording, _ = _recorded(bundle, options.recording)
            n_tiers, records = bundle.n_tiers("cascade"), recording["cascade"]
            result = schedule.of_recording(records, options.task, n_tiers, options.delays, options.one_way)
        else:
            with _live_input(options, bundle) as (live_input, n):
                result = schedule.run_real(live_input, options.delays, n, options.one_way, Progress(1))
    return finish(options, "schedule.json", asdict(result), schedule.as_text(result))


def _refuse_without_effect(options: argparse.Namespace) -> None:
    """An option that would be passed over is an error, not a surprise."""
    is_real, is_digits = options.clock == "real", options.task == DIGITS
    limit, data, schedule = options.limit, options.data, options.schedule
    folder = f"a folder of labelled examples of {options.task}"
    findings = {
        "--link-down: it goes with the recording of the way up (add --link)": options.link_down and not options.link,
        "--link: the schedule has a delay for each tier (leave it out)": options.link and schedule,
        "--recording: the real clock replays nothing (add --clock virtual, or leave it out)":
            options.recording and is_real,
        "--trace: it goes with --schedule (coe-sim replay has all else of a trace)": options.trace and not schedule,
        "--tiers: they are those of a trace (add --trace)": options.tiers and not options.trace,
        "--trace: it is replayed in virtual time (leave --task, --data, --recording and --limit out)":
            options.trace and (not is_digits or data or limit or options.recording),
        "--limit: the virtual clock replays the whole recording (leave it out)": limit is not None and not is_real,
        f"--limit: expected a whole number from 1 to {N_TEST}, got {limit}": is_digits and (limit or 0) > N_TEST,
        "--data: the digits are bundled (leave it out, or name another task with --task)": is_digits and data,
        f"--data: expected {folder}, got none (they are not bundled; or replay the trace: --clock virtual)":
            is_real and not (is_digits or data),
        "--data: the virtual clock decides no examples anew (leave it out)": data and not is_real,
    }  # fmt: skip
    if found := [finding for finding, is_so in findings.items() if is_so]:
        raise ConfigError(found)


def _link_setting(up: Path | None, down: Path | None) -> Any:
    """What a config says under `link_model`, found to be right; None without a link."""
    if up is None:
        return None
    ways = {"up": {"trace": str(up.resolve())}, "down": {"trace": str((down or up).resolve())}}
    setting = str(up.resolve()) if down is None else ways
    open_link(setting)
    return setting


def _delays(text: str) -> list[float]:
    found = seconds(text)
    if not all(0 < delay_s <= 60 for delay_s in found):
        raise argparse.ArgumentTypeError("expected delays above 0 and up to 60s")
    return found
