"""configs/pi.yaml: what it shows commented out can be switched on, and shows the default where it says so."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edge.config import AgentConfig, read_config

CONFIG = Path(__file__).parent.parent.parent.parent / "configs" / "pi.yaml"
TEXT = CONFIG.read_text(encoding="utf-8")
SHOWN = [line for line in TEXT.splitlines() if re.match(r" *# [a-z_]+: ", line)]  # "#   task:" is the long form
NOT_DEFAULT = (
    "confidence",
    "delay_ms",
    "deadline_ms: 500",
    "source",
    "sink: {path: d",
    "sink: {kind",
    "state",
    "never_send",
)
OFF = ("audit", "drift", "harvest", "watch", "token_file", "spool", "when_unavailable: spool")


def switched_on(folder: Path, line: str) -> AgentConfig:
    """The config with one commented setting in force, in place of the one of that name that is there."""
    indent, told = line.split("#", 1)[0], line.split("#", 1)[1].strip()
    key = told.split(":", 1)[0]
    setting = indent + told
    lines = [other for other in TEXT.splitlines() if not other.startswith(f"{indent}{key}:")]
    if key == "confidence":
        lines = [other for other in lines if "agreement:" not in other]
    text = "\n".join(setting if other == line else other for other in lines)
    if key == "spool":
        text += "\nwhen_unavailable: spool\n"
    (folder / "pi-1.token").write_text("a-token\n")
    (folder / "pi-1.token").chmod(0o600)
    path = folder / "pi.yaml"
    path.write_text(text + "\n", encoding="utf-8")
    return read_config(path)


def test_it_shows_many_settings():
    assert len(SHOWN) > 35


@pytest.mark.parametrize("line", SHOWN, ids=lambda line: line.split("#")[1].strip()[:40])
def test_each_setting_that_is_shown_can_be_switched_on(tmp_path, line):
    config = switched_on(tmp_path, line)
    assert config.warnings == ()
    told = line.split("#", 1)[1].strip()
    if told.startswith(NOT_DEFAULT) or told.startswith(OFF):
        return
    (tmp_path / "plain").mkdir()
    plain = tmp_path / "pi.yaml"
    plain.write_text(TEXT, encoding="utf-8")
    default = read_config(plain)
    assert replace(config, path=default.path) == default, "it is said to be the default"
