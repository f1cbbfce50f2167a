"""`coe-edge doctor`: checks of the machine, and of a config's models, source, sinks, disk, servers and service."""

from __future__ import annotations

import argparse
import importlib
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
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from coe.cascade.errors import CascadeError, ConfigError, RuntimeMissing
from coe.cascade.types import Batch
from coe.config import format_seconds
from coe.config.cascade import LocalTierConfig, rule_in_words
from coe.config.open import open_tier
from coe.config.program import mismatch_of
from coe.models.loading import read_verified
from coe.models.tflite import find_interpreter
from edge.config import AgentConfig, default_config, read_config
from edge.profile.plans import cores
from edge.sinks import SinkConfig
from edge.sources import SourceConfig, open_source
from edge.sources.inotify import why_not_watched

from .accuracy import EXAMPLES, check_examples
from .findings import Check, CheckContext, Finding, Level, Printer, fail, from_error, ok, split_fix, warn
from .install_service import UNIT_NAME, UNITS
from .server_checks import REACH_S, check_certificates, check_tiers, check_tokens
from .system import format_size, is_clock_synchronised, output_of

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
N_TIMED = 20  # decisions
FEW_BYTES, TOO_FEW_BYTES = 200e6, 5e6


def check_python(context: CheckContext) -> Iterator[Finding]:
    system = context.system
    version = ".".join(map(str, system.python))
    message = f"{version}, {system.bits}-bit, {system.machine}"
    if system.bits < 64:
        yield fail(
            "Python",
            f"{message}: not supported, since ONNX Runtime and LiteRT have no wheels for 32 bits",
            "install the 64-bit Raspberry Pi OS (Pi 3, 4, 5 and Zero 2 W can run it)",
        )
    elif system.python[:2] < OLDEST:
        yield fail("Python", f"{message}: too old", "install Python 3.11 or later (Raspberry Pi OS 12 or later has it)")
    else:
        board = f"; {system.model}" if system.model else ""
        yield ok("Python", message + board)


def check_packages(context: CheckContext) -> Iterator[Finding]:
    """Installed versions of the required packages, and of a runtime for each format of the config's models."""
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
    if context.config is not None and any(part.server for part in context.config.source.each):
        yield from _check_import("grpc_health.v1.health")
    if found:
        yield ok("packages", ", ".join(found))


def _check_import(module: str) -> Iterator[Finding]:
    """A finding if a package that the config needs is missing, or does not fit the others."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever an import raises
        text = mismatch_of(error) or f"{type(error).__name__}: {error} (pip install --upgrade 'coe-cascade[edge]')"
        yield fail("packages", *split_fix(text, ""))


def _check_interpreter() -> Iterator[Finding]:
    """A finding if TFLite's interpreter does not work with the NumPy that is installed."""
    try:
        find_interpreter()
    except RuntimeMissing as error:
        yield fail("packages", "TFLite's interpreter does not work with the installed packages", error.fix)


def check_cores(context: CheckContext) -> Iterator[Finding]:
    n_cores = cores()
    message = f"{n_cores} to be used"
    for tier in context.local_tiers:
        if tier.threads > n_cores:
            fix = f"threads: {n_cores} in that tier, or leave it out"
            yield warn("cores", f"tier {tier.name} has {tier.threads} threads for {message}", fix)
            return
    yield ok("cores", message)


def check_memory(context: CheckContext) -> Iterator[Finding]:
    memory = context.system.memory_bytes()
    if "MemAvailable" not in memory:
        return
    free, swap = memory["MemAvailable"], memory.get("SwapTotal", 0)
    message = f"{format_size(free)} free of {format_size(memory.get('MemTotal', 0))}, swap {format_size(swap)}"
    if free < SCARCE_BYTES:
        yield warn("memory", message, "end other programs; three small models take up to 120 MB")
    else:
        yield ok("memory", message)


def check_heat(context: CheckContext) -> Iterator[Finding]:
    """Temperature, and if a Raspberry Pi is slowed down by heat or by its power supply."""
    temperatures = context.system.temperatures()
    throttled = re.fullmatch(r"\w+=0x([0-9a-f]+)", output_of("vcgencmd", "get_throttled"))
    flags = int(throttled[1], 16) if throttled else 0
    facts = [f"{max(temperatures):.0f} degrees C"] if temperatures else []
    facts += [text for bit, text in THROTTLED.items() if flags >> bit & 1]
    if not facts:
        return
    message = "; ".join(facts)
    if flags & 1 or flags >> 16 & 1:
        yield warn("heat and power", message, "use the supply made for this Pi, and a short thick cable")
    elif flags or max(temperatures) >= TOO_HOT:
        yield warn("heat and power", message, "cool it: a heat sink or a fan; decisions are slower meanwhile")
    elif max(temperatures) >= HOT:
        yield warn(
            "heat and power", f"{message}: near the {TOO_HOT:.0f} at which it slows down", "give it air, or a fan"
        )
    else:
        yield ok("heat and power", message)


def check_clock(context: CheckContext) -> Iterator[Finding]:
    stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(context.system.now))
    if context.system.now < NO_RTC:
        message = f"{stamp}: it was never set, and certificates would seem to be not valid yet"
        yield fail("clock", message, "connect to a network with a time server, or: sudo date -s '2026-01-31 12:00'")
        return
    synchronised = is_clock_synchronised()
    if synchronised is False:
        fix = "sudo timedatectl set-ntp true (decisions are stamped with it; TLS needs it)"
        yield warn("clock", f"{stamp}, not set by a time server", fix)
    else:
        yield ok("clock", stamp if synchronised is None else f"{stamp}, set by a time server")


def _required() -> list[tuple[str, str]]:
    """Packages that this one requires with any config, and the bounds of their versions."""
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
    """True if a version is within bounds such as ">=1.76.0,<8"; only these two operators are checked."""
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
        yield from_error(what, error, "correct `members:`, or replace the model file")
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
    message = f"{n} model{'s' if n > 1 else ''} loaded in {format_seconds(loaded_s)}; a decision takes "
    message += f"{format_seconds(statistics.median(decided_s))}; it "
    message += rule_in_words(tier, is_last=tier is context.the_config.cascade.tiers[-1])
    if unpinned:
        fix = f"write `sha256:` of them in a manifest beside them (sha256sum {' '.join(unpinned)})"
        yield warn(what, f"{message}; no checksum is known for {', '.join(unpinned)}", fix)
    else:
        yield ok(what, f"{message}; checksums match")


def check_source(context: CheckContext) -> Iterator[Finding]:
    for part in context.the_config.source.each:
        what = f"source {part.kind}"
        try:
            open_source(part, once=True)  # takes no example from it
        except CascadeError as error:
            yield from_error(what, error, "correct `source:`")
            continue
        is_watched = part.path is not None and part.watch and not part.poll
        reason = why_not_watched(part.path) if part.path is not None and is_watched else ""
        if reason:
            yield warn(what, f"{reason}: it is scanned twice a second", "`poll: true` says that this is meant")
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
    """A warning unless a sink's server accepts connections; a failure if its package is not installed."""
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
        kept = "latest" if sink.drop == "oldest" else "first"
        fix = f"correct the address; until it can be reached, the {kept} {sink.max_queued:,} records wait on the disk"
        return warn(what, f"{host}:{port} cannot be reached: {error.strerror or error}", fix)
    return ok(what, f"{host}:{port} can be reached")


def check_disk(context: CheckContext) -> Iterator[Finding]:
    """Free space on each disk that the agent writes to."""
    for there in _growing(context.the_config):
        free = shutil.disk_usage(there).free
        message = f"{format_size(free)} free at {there}"
        if free < TOO_FEW_BYTES:
            yield fail("disk", message, "make room: decisions could not be written")
        elif free < FEW_BYTES:
            yield warn("disk", message, "make room, or bound what is kept")
        else:
            yield ok("disk", message)


def _growing(config: AgentConfig) -> list[Path]:
    """Existing folders in or below which files grow, one on each disk."""
    folders = [sink.path.parent for sink in config.sinks if sink.path is not None]
    folders += [config.state, *([config.spool.path.parent] if config.spool is not None else [])]
    folders += [config.field.harvest.path] if config.field.harvest is not None else []
    disks: dict[int, Path] = {}
    for folder in folders:
        there = _nearest(folder)
        if there is not None:
            disks.setdefault(there.stat().st_dev, there)
    return list(disks.values())


def _nearest(path: Path) -> Path | None:
    """The folder itself, or else the nearest above it that exists."""
    return next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), None)


def _why_not_writable(path: Path) -> str:
    """The reason why a file cannot be written; "" if it can. Writes nothing."""
    if path.is_dir():
        return "expected a file, got a folder"
    if path.exists():
        return "" if os.access(path, os.W_OK) else "this user may not write it"
    if not path.parent.is_dir():
        return "its folder is not there"
    return "" if os.access(path.parent, os.W_OK | os.X_OK) else "this user may not write in its folder"


def check_service(context: CheckContext) -> Iterator[Finding]:
    if not (context.system.root / UNITS / UNIT_NAME).is_file():
        yield ok("service", "not installed (coe-edge install-service does it)")
        return
    if not context.system.runs_systemd():
        yield ok("service", "installed; systemd does not run here")
        return
    states = dict(line.partition("=")[::2] for line in output_of("systemctl", "show", UNIT_NAME).splitlines())
    active, enabled = states.get("ActiveState", "unknown"), states.get("UnitFileState", "unknown")
    message = f"{active}, {enabled} at start"
    restarts = states.get("NRestarts", "0")
    if active != "active":
        yield warn("service", message, f"sudo systemctl start {UNIT_NAME}; its log: journalctl -u {UNIT_NAME} -n 50")
    elif restarts not in ("", "0"):
        yield warn("service", f"{message}, restarted {restarts} times", f"see why: journalctl -u {UNIT_NAME} -n 200")
    else:
        yield ok("service", message)


MACHINE: tuple[Check, ...] = (check_python, check_packages, check_cores, check_memory, check_heat, check_clock)
CONFIGURED: tuple[Check, ...] = (  # need a config that can be read
    check_models,
    check_examples,
    check_source,
    check_sinks,
    check_disk,
    check_certificates,
    check_tokens,
    check_tiers,
)
LAST: tuple[Check, ...] = (check_service,)


def doctor_command(arguments: Sequence[str]) -> int:
    """0: no check fails; 1: one does."""
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    show: Callable[[Finding], object] = (lambda finding: None) if options.json else Printer(sys.stdout).show
    if not options.json:
        print(f"coe-edge doctor: {path}\n")
    findings = []
    for finding in run_checks(path, CheckContext(examples=options.examples)):
        findings.append(finding)
        show(finding)
    n_failed = sum(finding.level == "fail" for finding in findings)
    if options.json:
        checks = [asdict(finding) for finding in findings]
        print(json.dumps({"ok": not n_failed, "config": str(path), "checks": checks}, indent=2))
    else:
        print(f"\n{summary(findings)}")
    return 1 if n_failed else 0


def run_checks(path: Path, context: CheckContext | None = None) -> Iterator[Finding]:
    """The findings of all checks, each as soon as it is known.

    Args:
        path: of the config.
        context: the machine to check; its config is read from `path`.
    """
    config, of_config = _read(path)
    context = replace(context or CheckContext(), config=config)
    for check in MACHINE:
        yield from _run_check(check, context)
    yield from of_config
    for check in (*CONFIGURED, *LAST) if config is not None else LAST:
        yield from _run_check(check, context)


def summary(findings: Sequence[Finding]) -> str:
    """How many findings there are of each level: the last line of the output."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("fail", "warn", "ok")}
    if counts["fail"]:
        return f"{counts['fail']} must be fixed, {counts['warn']} should be looked at, {counts['ok']} are fine"
    if counts["warn"]:
        return f"it would run; {counts['warn']} should be looked at, {counts['ok']} are fine"
    return f"all {counts['ok']} are fine"


def _read(path: Path) -> tuple[AgentConfig | None, list[Finding]]:
    """The config, None if it is wrong, and the findings of its reading."""

    def finding(level: Level, text: str) -> Finding:
        message, fix = split_fix(text, "correct this setting")
        return Finding("config", level, message, fix)

    try:
        config = read_config(path)
    except ConfigError as error:
        return None, [finding("fail", text) for text in error.findings]
    task, n_tiers = config.cascade.task, len(config.cascade.tiers)
    summary = f"{task.name}: {len(task.labels)} labels, {n_tiers} tiers, fingerprint {task.fingerprint}"
    return config, [*(finding("warn", text) for text in config.warnings), ok("config", summary)]


def _run_check(check: Check, context: CheckContext) -> Iterator[Finding]:
    """The findings of a check; an error in the check itself is one of them, so that the other checks still run."""
    try:
        yield from check(context)
    except Exception as error:  # noqa: BLE001 - a broken machine is what this is for
        what = check.__name__.removeprefix("check_")
        yield fail(what, f"could not be checked: {type(error).__name__}: {error}", "please report this line")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge doctor",
        description="Check this device, its config and its servers; print what is wrong and how to fix it.",
        epilog="exit code: 0 it would run, 1 something must be fixed",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument("--examples", type=Path, metavar="PLACE", help=EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
