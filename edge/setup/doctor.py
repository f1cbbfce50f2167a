"""`coe-edge doctor`: checks of the machine, the models, the folders, the link and the service."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from coe.cascade.errors import CascadeError, ConfigError, RuntimeMissing
from coe.cascade.types import Batch
from coe.config import format_seconds
from coe.config.cascade import LocalTierConfig
from coe.config.open import open_tier
from coe.models.loading import read_verified
from coe.models.tflite import find_interpreter
from edge.config import AgentConfig, default_config, read_config
from edge.sinks import SinkConfig
from edge.sources import SourceConfig, open_source

from .findings import Check, CheckContext, Finding, Printer, fail, from_error, ok, warn
from .server_checks import check_certificates, check_tiers, check_tokens
from .system import cores, is_clock_synchronised, size, told_by

OLDEST = (3, 11)
HOT, TOO_HOT = 70.0, 80.0  # degrees Celsius; a Raspberry Pi slows down from 80
SCARCE_BYTES = 150e6  # an agent with three small models takes up to 120 MB
NO_RTC = 1704067200.0  # 2024: a clock before that was never set

PACKAGES = {"onnx": ("onnxruntime",), "tflite": ("ai-edge-litert", "tflite-runtime"), "torch": ("torch",)}
RUNTIME_OF = {"torch-export": "torch", "torchscript": "torch"}
THROTTLED = {  # bits of `vcgencmd get_throttled`
    0: "the supply gives too little voltage now",
    1: "its clock is capped now",
    2: "it is slowed down now",
    3: "it is at its soft limit of heat now",
    16: "the supply gave too little voltage since the start",
    18: "it was slowed down since the start",
}


def check_python(context: CheckContext) -> Iterator[Finding]:
    system = context.system
    version = ".".join(map(str, system.python))
    told = f"{version}, {system.bits}-bit, {system.machine}"
    if system.bits < 64:
        yield fail(
            "Python",
            f"{told}: not supported, since ONNX Runtime and LiteRT have no wheels for 32 bits",
            "install the 64-bit Raspberry Pi OS (Pi 3, 4, 5 and Zero 2 W can run it)",
        )
    elif system.python[:2] < OLDEST:
        yield fail("Python", f"{told}: too old", "install Python 3.11 or later (Raspberry Pi OS 12 or later has it)")
    else:
        board = f"; {system.model}" if system.model else ""
        yield ok("Python", told + board)


def check_packages(context: CheckContext) -> Iterator[Finding]:
    """What is required of us is there in such a version, and a runtime for each format of the config's models."""
    found, bad = [], []
    for name, bounds in _required():
        version = _version(name)
        if version is None:
            bad.append(f"{name} is not installed")
        elif not _is_within(version, bounds):
            bad.append(f"{name} {version} is not {bounds}")
        else:
            found.append(f"{name} {version}")
    if bad:
        yield fail("packages", "; ".join(bad), "pip install --upgrade 'coe-cascade[edge]'")
    formats = {spec.format for tier in context.local_tiers for spec in tier.members} or {"onnx"}
    for kind in sorted({RUNTIME_OF.get(kind, kind) for kind in formats}):
        versions = [f"{name} {version}" for name in PACKAGES[kind] if (version := _version(name))]
        if not versions:
            package = "'coe-cascade[tflite]'" if kind == "tflite" else PACKAGES[kind][0]
            yield fail("packages", f"no runtime for {kind} models", f"pip install {package}")
        found += versions
        if kind == "tflite" and versions:
            yield from _check_interpreter()
    if found:
        yield ok("packages", ", ".join(found))


def _check_interpreter() -> Iterator[Finding]:
    """That TFLite's interpreter works with the NumPy that is there."""
    try:
        find_interpreter()
    except RuntimeMissing as error:
        yield fail("packages", "TFLite's interpreter cannot be used with the packages that are there", error.fix)


def check_cores(context: CheckContext) -> Iterator[Finding]:
    n_cores = cores()
    told = f"{n_cores} to be used"
    for tier in context.local_tiers:
        if tier.threads > n_cores:
            fix = f"threads: {n_cores} in that tier, or leave it out"
            yield warn("cores", f"tier {tier.name} has {tier.threads} threads for {told}", fix)
            return
    yield ok("cores", told)


def check_memory(context: CheckContext) -> Iterator[Finding]:
    memory = context.system.memory_bytes()
    if "MemAvailable" not in memory:
        return
    free, swap = memory["MemAvailable"], memory.get("SwapTotal", 0)
    told = f"{size(free)} free of {size(memory.get('MemTotal', 0))}, swap {size(swap)}"
    if free < SCARCE_BYTES:
        yield warn("memory", told, "end other programs; three small models take up to 120 MB")
    else:
        yield ok("memory", told)


def check_heat(context: CheckContext) -> Iterator[Finding]:
    """Temperature, and whether a Raspberry Pi is slowed down by it or by its supply."""
    temperatures = context.system.temperatures()
    throttled = told_by("vcgencmd", "get_throttled")
    flags = int(throttled.partition("=")[2], 16) if throttled and re.fullmatch(r"\w+=0x[0-9a-f]+", throttled) else 0
    said = [text for bit, text in THROTTLED.items() if flags >> bit & 1]
    if temperatures:
        said.insert(0, f"{max(temperatures):.0f} degrees C")
    if not said:
        return
    told = "; ".join(said)
    if flags & 1 or flags >> 16 & 1:
        yield warn("heat and power", told, "use the supply made for this Pi, and a short thick cable")
    elif flags or max(temperatures) >= TOO_HOT:
        yield warn("heat and power", told, "cool it: a heat sink or a fan; decisions are slower meanwhile")
    elif max(temperatures) >= HOT:
        yield warn("heat and power", f"{told}: near the {TOO_HOT:.0f} at which it slows down", "give it air, or a fan")
    else:
        yield ok("heat and power", told)


def check_clock(context: CheckContext) -> Iterator[Finding]:
    stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(context.system.now))
    if context.system.now < NO_RTC:
        told = f"{stamp}: it was never set, and certificates would seem to be not valid yet"
        yield fail("clock", told, "connect to a network with a time server, or: sudo date -s '2026-01-31 12:00'")
        return
    synchronised = is_clock_synchronised()
    if synchronised is False:
        told = f"{stamp}, not set by a time server"
        yield warn("clock", told, "sudo timedatectl set-ntp true (decisions are stamped with it; TLS needs it)")
    else:
        yield ok("clock", stamp if synchronised is None else f"{stamp}, set by a time server")


def _required() -> list[tuple[str, str]]:
    """Packages that this one needs whatever is configured, with the versions it asks for."""
    try:
        lines = metadata.requires("coe-cascade") or []
    except metadata.PackageNotFoundError:
        return []
    plain = [line for line in lines if ";" not in line]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)\s*\(?([^()]*)\)?", line.strip()) for line in plain]
    return [(match[1], match[2].strip()) for match in found if match]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_within(version: str, bounds: str) -> bool:
    """Of bounds such as ">=1.76.0,<8"; others than these two kinds pass."""
    have = _numbers(version)
    for bound in filter(None, (bound.strip() for bound in bounds.split(","))):
        if bound.startswith(">=") and have < _numbers(bound[2:]):
            return False
        if bound.startswith("<") and not bound.startswith("<=") and have >= _numbers(bound[1:]):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3]]
    return tuple(found + [0] * (3 - len(found)))


N_TIMED = 20


def check_models(context: CheckContext) -> Iterator[Finding]:
    if not context.local_tiers:
        yield warn("models", "none on this device: every example goes to a server", "add a tier with `members:`")
    for tier in context.local_tiers:
        yield from _check_tier(context, tier)


def _check_tier(context: CheckContext, tier: LocalTierConfig) -> Iterator[Finding]:
    what = f"tier {tier.name}"
    unpinned = [spec.name for spec in tier.members if spec.sha256 is None]
    try:
        for spec in tier.members:
            read_verified(spec)
        started = time.perf_counter()
        opened = open_tier(tier, context.the_config.cascade)
    except RuntimeMissing as error:
        yield fail(what, f"the {error.runtime} runtime is not installed", error.fix)
        return
    except CascadeError as error:
        yield from_error(what, error, "mend `members:`, or the model file")
        return
    try:
        loaded_s = time.perf_counter() - started
        batch = Batch(("blank",), context.the_config.cascade.task.input_spec.blank())
        decided_s = []
        for _ in range(N_TIMED):
            started = time.perf_counter()
            opened.vote(batch, opened.rule)
            decided_s.append(time.perf_counter() - started)
    finally:
        opened.close()
    n = len(tier.members)
    told = f"{n} model{'s' if n > 1 else ''} loaded in {format_seconds(loaded_s)}; a decision takes "
    told += format_seconds(statistics.median(decided_s))
    if unpinned:
        fix = f"write `sha256:` of them in a manifest beside them (sha256sum {' '.join(unpinned)})"
        yield warn(what, f"{told}; no checksum is known for {', '.join(unpinned)}", fix)
    else:
        yield ok(what, f"{told}; checksums match")


REACH_S = 3.0
FEW_BYTES, TOO_FEW_BYTES = 200e6, 5e6


def check_source(context: CheckContext) -> Iterator[Finding]:
    source = context.the_config.source
    for part in source.parts or (source,):
        what = f"source {part.kind}"
        told: list[str] = []
        try:
            open_source(part, tell=told.append)  # nothing is taken from it
        except CascadeError as error:
            yield from_error(what, error, "mend `source:`")
            continue
        if told:
            message, _, fix = told[0].removeprefix("warning: ").rpartition(" (")
            yield warn(what, message, fix.removesuffix(")")) if message else warn(what, fix, "mend `source:`")
        else:
            yield ok(what, _source_summary(part))


def _source_summary(source: SourceConfig) -> str:
    if source.path is None:
        return "there"
    if not source.path.is_dir():
        return f"{source.path} is there"
    return f"{source.path} is there, {'watched' if source.watch else 'read once'}"


def check_sinks(context: CheckContext) -> Iterator[Finding]:
    for sink in context.the_config.sinks:
        what = f"sink {sink.kind}"
        if sink.mqtt is not None or sink.webhook is not None:
            yield _reach(what, sink)
        elif sink.path is None:
            yield ok(what, "standard output")
        elif why := _why_not_writable(sink.path):
            yield fail(what, f"{sink.path}: {why}", f"mkdir -p {sink.path.parent}, and let this user write there")
        else:
            yield ok(what, f"{sink.path} can be written")


def _reach(what: str, sink: SinkConfig) -> Finding:
    """Whether somebody listens where a sink sends to; what it needs to be installed, too."""
    if sink.mqtt is not None:
        if importlib.util.find_spec("paho") is None:
            return fail(what, "the package paho-mqtt is not installed", "pip install 'coe-cascade[mqtt]'")
        host, port = sink.mqtt.host, sink.mqtt.port
    else:
        assert sink.webhook is not None
        parts = urlsplit(sink.webhook.url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), REACH_S).close()
    except OSError as error:
        kept = f"until it can be reached, the latest {sink.max_queued:,} records wait in memory"
        return warn(what, f"{host}:{port} cannot be reached: {error.strerror or error}", f"mend the address; {kept}")
    return ok(what, f"{host}:{port} can be reached")


def check_disk(context: CheckContext) -> Iterator[Finding]:
    """Room where files grow."""
    for place in _growing(context):
        there = _nearest(place)
        if there is None:
            continue
        free = shutil.disk_usage(there).free
        told = f"{size(free)} free at {there}"
        if free < TOO_FEW_BYTES:
            yield fail("disk", told, "make room: decisions could not be written")
        elif free < FEW_BYTES:
            yield warn("disk", told, "make room, or bound what is kept")
        else:
            yield ok("disk", told)


def _growing(context: CheckContext) -> list[Path]:
    """Folders in which files grow, each disk once."""
    config = context.the_config
    folders = [sink.path.parent for sink in config.sinks if sink.path is not None]
    folders += [config.state, *([config.spool.path.parent] if config.spool is not None else [])]
    folders += [config.field.harvest.path] if config.field.harvest is not None else []
    disks: dict[int, Path] = {}
    for folder in folders:
        there = _nearest(folder)
        if there is not None:
            disks.setdefault(there.stat().st_dev, folder)
    return list(disks.values())


def _nearest(path: Path) -> Path | None:
    """The folder, or the nearest above it that is there."""
    return next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), None)


def _why_not_writable(path: Path) -> str:
    """ "" where a file can be written; nothing is written to find out."""
    if path.is_dir():
        return "expected a file, got a folder"
    if path.exists():
        return "" if os.access(path, os.W_OK) else "this user may not write it"
    if not path.parent.is_dir():
        return "its folder is not there"
    return "" if os.access(path.parent, os.W_OK | os.X_OK) else "this user may not write in its folder"


UNIT = "coe-edge.service"


def check_service(context: CheckContext) -> Iterator[Finding]:
    installed = (context.system.root / "etc/systemd/system" / UNIT).is_file()
    if not installed:
        yield ok("service", "not installed (coe-edge install-service does it)")
        return
    if not context.system.runs_systemd():
        yield ok("service", "installed; systemd does not run here")
        return
    states = dict(line.partition("=")[::2] for line in (told_by("systemctl", "show", UNIT) or "").splitlines())
    active, enabled = states.get("ActiveState", "unknown"), states.get("UnitFileState", "unknown")
    told = f"{active}, {enabled} at start"
    restarts = states.get("NRestarts", "0")
    if active != "active":
        yield warn("service", told, f"sudo systemctl start {UNIT}; what it said: journalctl -u {UNIT} -n 50")
    elif restarts not in ("", "0"):
        yield warn("service", f"{told}, restarted {restarts} times", f"see why: journalctl -u {UNIT} -n 200")
    else:
        yield ok("service", told)


MACHINE: tuple[Check, ...] = (check_python, check_packages, check_cores, check_memory, check_heat, check_clock)
CONFIGURED: tuple[Check, ...] = (  # need a config that can be read
    check_models,
    check_source,
    check_sinks,
    check_disk,
    check_certificates,
    check_tokens,
    check_tiers,
)
LAST: tuple[Check, ...] = (check_service,)

__all__ = ["CONFIGURED", "LAST", "MACHINE", "Check", "CheckContext"]


def doctor_command(arguments: Sequence[str]) -> int:
    """0: nothing fails; 1: something does."""
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    show: Callable[[Finding], object] = (lambda finding: None) if options.json else Printer(sys.stdout).show
    if not options.json:
        print(f"coe-edge doctor: {path}\n")
    findings = []
    for finding in run_checks(path):
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


def run_checks(path: Path, context: CheckContext | None = None) -> Iterator[Finding]:
    """Findings, as they are made.

    Args:
        path: of the config.
        patient: whom to examine; its config is read from `path`.
    """
    context = context or CheckContext()
    config, of_config = _read(path)
    context = CheckContext(context.system, config)
    for check in MACHINE:
        yield from _run_check(check, context)
    yield from of_config
    if config is not None:
        for check in CONFIGURED:
            yield from _run_check(check, context)
    for check in LAST:
        yield from _run_check(check, context)


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
        return None, [_config_finding(finding, "fail") for finding in error.findings]
    task = config.cascade.task
    told = f"{task.name}: {len(task.labels)} labels, {len(config.cascade.tiers)} tiers, fingerprint {task.fingerprint}"
    return config, [*(_config_finding(warning, "warn") for warning in config.warnings), ok("config", told)]


def _config_finding(finding: str, level: str) -> Finding:
    message, bracket, fix = finding.rpartition(" (")
    made = fail if level == "fail" else warn
    return made("config", message, fix.removesuffix(")")) if bracket else made("config", finding, "mend this setting")


def _run_check(check: Check, context: CheckContext) -> Iterator[Finding]:
    """What a check finds; one that fails itself is a finding, and the next is made."""
    try:
        yield from check(context)
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
