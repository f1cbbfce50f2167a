"""A setting is written once: what reads it, and the tables and samples that are made of it."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from coe.config import Fields, Report
from coe.config.settings import REQUIRED, read_settings, setting, settings_of

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Inner:
    share: float = setting(0.5, "Of it.", high=1)


@dataclass(frozen=True)
class Outer:
    name: str = setting(REQUIRED, "Its name.")
    wait_s: float = setting(250, "How long.", unit="ms", low=1, high=1000)
    age_s: float = setting(2, "How old.", unit="h")
    max_bytes: int = setting(1.5, "How large.", unit="MiB")
    sent_bytes: int = setting(1, "How much.", unit="MB", key="sent_mb_per_day")
    count: int = setting(3, "How many.", low=1, high=9)
    mode: str = setting("a", "Which.", choices=("a", "b"))
    on: bool = setting(False, "Whether.")
    hosts: tuple[str, ...] = setting(("x",), "Where.")
    path: Path | None = setting(None, "A file.")
    port: int = setting(80, "Of it.", within="server", high=99)
    inner: Inner = setting(Inner(), "Its inner part.")
    more: Inner | None = setting(None, "Another one.")
    known: str = "by the caller"


def read(content, folder=Path("/etc/coe"), **given):
    report = Report("a.yaml")
    return read_settings(Outer, Fields(content, report), folder, **given), report.findings


def test_a_dataclass_has_its_defaults_in_seconds_and_bytes():
    outer = Outer("a")
    assert (outer.wait_s, outer.age_s, outer.max_bytes, outer.sent_bytes) == (0.25, 7200, 3 * 2**19, 10**6)
    assert read({"name": "a"}) == (outer, [])


def test_each_setting_is_read_under_its_key_in_its_unit():
    outer, findings = read(
        {
            "name": "b", "wait_ms": 20, "age_h": 0.5, "max_mb": 2, "sent_mb_per_day": 0.1, "count": 9, "mode": "b",
            "on": True, "hosts": "y", "path": "f", "server": {"port": 8}, "inner": {"share": 1}, "more": {},
        },
        known="here",
    )  # fmt: skip
    assert findings == []
    assert outer == Outer(
        "b", 0.02, 1800, 2**21, 10**5, 9, "b", True, ("y",), Path("/etc/coe/f"), 8, Inner(1), Inner(), "here"
    )


def test_all_that_is_wrong_is_found_at_once_with_its_trail_and_its_range():
    content = {
        "wait_ms": 0, "count": 1.5, "mode": "c", "path": "~nobody-of-this-name/x", "inner": {"shar": 1},
        "more": {"share": 2}, "server": {"port": 100, "prt": 1}, "wait_s": 3,
    }  # fmt: skip
    _, findings = read(content)
    assert findings == [
        "name: expected a text, got nothing (add it)",
        "wait_ms: expected 1 to 1000, got 0",
        "count: expected a whole number, got 1.5",
        'mode: expected one of a, b, got "c"',
        'path: expected a path, got "~nobody-of-this-name/x" (no such user)',
        "server.port: expected 0 to 99, got 100",
        'inner.shar: unknown setting (did you mean "share"?)',
        "more.share: expected 0 to 1, got 2",
        'wait_s: unknown setting (did you mean "wait_ms"?)',
        'server.prt: unknown setting (did you mean "port"?)',
    ]


def test_what_the_caller_gives_is_not_read_and_what_is_not_to_be_said_here_is_unknown():
    outer, findings = read({"name": 3}, name="given")
    assert outer.name == "given"
    assert [finding.partition(" (")[0] for finding in findings] == ["name: unknown setting"]
    report = Report("a.yaml")
    inner = read_settings(Inner, Fields({"share": 1}, report), only=())
    assert (inner, len(report.findings)) == (Inner(), 1)


def test_a_setting_is_known_by_the_key_that_is_written():
    assert list(settings_of(Outer))[:5] == ["name", "wait_ms", "age_h", "max_mb", "sent_mb_per_day"]
    assert "known" not in settings_of(Outer)


@pytest.mark.skipif(not (ROOT / ".ci" / "settings").exists(), reason="the pages are in the checkout")
def test_the_tables_and_samples_are_fresh():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "settings", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not (ROOT / "docs" / "configure.md").exists(), reason="the pages are in the checkout")
def test_every_setting_is_on_the_page():
    shown: set[str] = set()
    for spec in re.findall(r"<!-- settings: (.*?) -->", (ROOT / "docs" / "configure.md").read_text(encoding="utf-8")):
        for name, attributes in re.findall(r"([\w.]+)(?:\(([\w, ]*)\))?", spec):
            shown |= {f"{name}.{one}" for one in attributes.split(", ")} if attributes else {name}
    missing = []
    for path in sorted(one for program in ("coe", "edge", "cloud") for one in (ROOT / program).rglob("*.py")):
        if "import " not in (text := path.read_text(encoding="utf-8")) or " = setting(" not in text:
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        classes = [cls for cls in vars(module).values() if dataclasses.is_dataclass(cls) and isinstance(cls, type)]
        for cls in (cls for cls in classes if cls.__module__ == module.__name__ and not cls.__name__.startswith("_")):
            for each, _ in settings_of(cls).values():
                inner = vars(module).get(str(each.type).removesuffix(" | None"))
                is_section = dataclasses.is_dataclass(inner) and inner.__module__ != "coe.protocol.credentials"
                whole = f"{module.__name__}.{cls.__name__}"
                if each.name in cls.__annotations__ and not is_section and not {whole, f"{whole}.{each.name}"} & shown:
                    missing.append(f"{whole}.{each.name}")
    assert missing == []
