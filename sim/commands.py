"""What each study prints and writes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from coe.models.base import import_runtime
from coe.zoo.digits import N_TEST

from .records import save_recording
from .table import achieved_table, delay_table
from .verdict import savings, verdict


def delays(options: argparse.Namespace) -> int:
    """`coe-sim --delays`."""
    limit = options.limit or N_TEST
    if options.out:
        import_runtime("matplotlib", "report", "pip install 'coe-cascade[sim]'")  # not after a minute of measuring
    from .progress import Progress
    from .studies import delays as study
    from .studies import digits as models

    if options.clock == "virtual":
        result = study.run_virtual(options.delays, options.one_way, options.recording)
        profile = None
    else:
        progress = Progress(study.n_steps(options.delays) + 1)
        profile = models.profile(limit, progress)
        result = study.run_real(options.delays, limit, options.one_way, progress)
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
        from .report import write_report

        _write_json(options.out, "results.json", content)  # first: a minute of measuring is in it
        save_recording(options.out / "recording.json", result.recording, result.about)
        text += ["", f"report: {write_report(options.out / 'report.html', result, profile)}"]
    return _say(options, content, "\n".join(text))


def schedule(options: argparse.Namespace) -> int:
    """`coe-sim --delays --schedule`."""
    limit = options.limit or N_TEST
    from .progress import Progress
    from .studies import schedule as study

    result = study.run(options.delays, limit, options.one_way, Progress(1))
    return _finish(options, "schedule.json", result.as_json(), study.as_text(result))


def digits(options: argparse.Namespace) -> int:
    """`coe-sim digits`."""
    from .progress import Progress
    from .studies import digits as models

    profile = models.profile(N_TEST, Progress(1))
    return _finish(options, "digits.json", profile.as_json(), models.as_text(profile))


def _finish(options: argparse.Namespace, name: str, content: dict[str, Any], text: str) -> int:
    """The JSON as `name` in the folder asked for, then the result on standard output."""
    if options.out:
        _write_json(options.out, name, content)
    return _say(options, content, text)


def _say(options: argparse.Namespace, content: dict[str, Any], text: str) -> int:
    """JSON alone, or the text, on standard output."""
    print(json.dumps(content) if options.json else text, flush=True)
    return 0


def _write_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"coe-sim: wrote {path}", file=sys.stderr)
