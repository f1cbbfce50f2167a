"""`coe-edge doctor`: everything that could keep this device from its work, each with what mends it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from coe.cascade.errors import ConfigError

from ..config import AgentConfig, default_config, read_config
from .checks import CONFIGURED, LAST, MACHINE, Check, Patient
from .finding import Finding, Printer, fail, ok, warn


def doctor_command(arguments: Sequence[str]) -> int:
    """0: nothing fails; 1: something does."""
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    show: Callable[[Finding], object] = (lambda finding: None) if options.json else Printer(sys.stdout).show
    if not options.json:
        print(f"coe-edge doctor: {path}\n")
    findings = []
    for finding in examine(path):
        findings.append(finding)
        show(finding)
    n_failed = sum(finding.level == "fail" for finding in findings)
    if options.json:
        print(
            json.dumps({"ok": not n_failed, "config": str(path), "checks": [asdict(one) for one in findings]}, indent=2)
        )
    else:
        print(f"\n{summary(findings)}")
    return 1 if n_failed else 0


def examine(path: Path, patient: Patient | None = None) -> Iterator[Finding]:
    """Findings, as they are made.

    Args:
        path: of the config.
        patient: whom to examine; its config is read from `path`.
    """
    patient = patient or Patient()
    config, of_config = _read(path)
    patient = Patient(patient.system, config)
    for check in MACHINE:
        yield from _made(check, patient)
    yield from of_config
    if config is not None:
        for check in CONFIGURED:
            yield from _made(check, patient)
    for check in LAST:
        yield from _made(check, patient)


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("fail", "warn", "ok")}
    if counts["fail"]:
        n = counts["fail"]
        return f"{n} must be mended, {counts['warn']} should be looked at, {counts['ok']} are well"
    if counts["warn"]:
        return f"it would run; {counts['warn']} should be looked at, {counts['ok']} are well"
    return f"all {counts['ok']} are well"


def _read(path: Path) -> tuple[AgentConfig | None, list[Finding]]:
    try:
        config = read_config(path)
    except ConfigError as error:
        return None, [_of_setting(finding, "fail") for finding in error.findings]
    task = config.cascade.task
    told = f"{task.name}: {len(task.labels)} labels, {len(config.cascade.tiers)} tiers, fingerprint {task.fingerprint}"
    return config, [*(_of_setting(warning, "warn") for warning in config.warnings), ok("config", told)]


def _of_setting(finding: str, level: str) -> Finding:
    message, bracket, mend = finding.rpartition(" (")
    made = fail if level == "fail" else warn
    return made("config", message, mend.removesuffix(")")) if bracket else made("config", finding, "mend this setting")


def _made(check: Check, patient: Patient) -> Iterator[Finding]:
    """What a check finds; one that fails itself is a finding, and the next is made."""
    try:
        yield from check(patient)
    except Exception as error:  # noqa: BLE001 - the sick machine is what this is for
        what = check.__name__.removeprefix("check_")
        yield fail(what, f"could not be looked at: {type(error).__name__}: {error}", "please report this line")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge doctor",
        description="Look at this device, its config and its servers; say what is wrong and what mends it.",
        epilog="exit code: 0 it would run, 1 something must be mended",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser
