"""The machine: Python, packages, cores, memory, heat, clock."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from importlib import metadata

from coe.cascade.errors import RuntimeMissing
from coe.models.tflite import find_interpreter

from ..finding import Finding, fail, ok, warn
from ..system import cores, is_clock_synchronised, size, told_by
from .patient import Patient

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


def check_python(patient: Patient) -> Iterator[Finding]:
    system = patient.system
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


def check_packages(patient: Patient) -> Iterator[Finding]:
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
    formats = {spec.format for tier in patient.local_tiers for spec in tier.members} or {"onnx"}
    for kind in sorted({RUNTIME_OF.get(kind, kind) for kind in formats}):
        versions = [f"{name} {version}" for name in PACKAGES[kind] if (version := _version(name))]
        if not versions:
            yield fail("packages", f"no runtime for {kind} models", f"pip install {PACKAGES[kind][0]}")
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
        yield fail("packages", "TFLite's interpreter cannot be used with the packages that are there", error.mend)


def check_cores(patient: Patient) -> Iterator[Finding]:
    n_cores = cores()
    told = f"{n_cores} to be used"
    for tier in patient.local_tiers:
        if tier.threads > n_cores:
            mend = f"threads: {n_cores} in that tier, or leave it out"
            yield warn("cores", f"tier {tier.name} has {tier.threads} threads for {told}", mend)
            return
    yield ok("cores", told)


def check_memory(patient: Patient) -> Iterator[Finding]:
    memory = patient.system.memory_bytes()
    if "MemAvailable" not in memory:
        return
    free, swap = memory["MemAvailable"], memory.get("SwapTotal", 0)
    told = f"{size(free)} free of {size(memory.get('MemTotal', 0))}, swap {size(swap)}"
    if free < SCARCE_BYTES:
        yield warn("memory", told, "end other programs; three small models take up to 120 MB")
    else:
        yield ok("memory", told)


def check_heat(patient: Patient) -> Iterator[Finding]:
    """Temperature, and whether a Raspberry Pi is slowed down by it or by its supply."""
    temperatures = patient.system.temperatures()
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


def check_clock(patient: Patient) -> Iterator[Finding]:
    stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(patient.system.now))
    if patient.system.now < NO_RTC:
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
