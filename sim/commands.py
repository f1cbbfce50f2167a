"""What each study prints and writes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from coe.models.base import import_runtime

from .records import save_recording
from .table import achieved_table, delay_table
from .verdict import savings, verdict

N_EXAMPLES = 1000  # bundled


def delays(options: argparse.Namespace) -> int:
    """`coe-sim --delays`."""
    limit = options.limit or N_EXAMPLES
    if options.out:
        import_runtime("matplotlib", "report", "pip install 'coe-cascade[sim]'")  # not after a minute of measuring
    from .progress import Progress
    from .studies import delays as study
    from .studies import digits as models

    if options.schedule:
        return schedule(options)
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
        options.out.mkdir(parents=True, exist_ok=True)
        _write_json(options.out / "results.json", content)
        save_recording(options.out / "recording.json", result.recording, result.about)
        from .report import write_report

        path = write_report(options.out / "report.html", result, profile)
        text += ["", f"report: {path}"]
    print(json.dumps(content) if options.json else "\n".join(text), flush=True)
    return 0


def schedule(options: argparse.Namespace) -> int:
    """`coe-sim --delays --schedule`."""
    limit = options.limit or N_EXAMPLES
    from .progress import Progress
    from .studies import schedule as study

    result = study.run(options.delays, limit, options.one_way, Progress(1))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        _write_json(options.out / "schedule.json", result.as_json())
    print(json.dumps(result.as_json()) if options.json else study.as_text(result), flush=True)
    return 0


def digits(options: argparse.Namespace) -> int:
    """`coe-sim digits`."""
    from .progress import Progress
    from .studies import digits as models

    profile = models.profile(N_EXAMPLES, Progress(1))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        _write_json(options.out / "digits.json", profile.as_json())
    print(json.dumps(profile.as_json()) if options.json else models.as_text(profile), flush=True)
    return 0


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"coe-sim: wrote {path}", file=sys.stderr)
