"""configs/*.yaml: what they show commented out can be switched on, and shows the default unless it says otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloud.config import ServerConfig
from cloud.config import read_config as read_server
from coe.cascade import ConfigError
from edge.config import AgentConfig, read_config

CONFIGS = Path(__file__).parent.parent.parent.parent / "configs"
TEXTS = {name: (CONFIGS / name).read_text(encoding="utf-8") for name in ("pi.yaml", "cloud.yaml")}
OFF = (
    "audit",
    "drift",
    "harvest",
    "same_scene",
    "watch",
    "token_file",
    "spool",
    "security",
    "device: cpu",
    "source:",
    "sink: {",
)
EXAMPLE = "(default: "


def shown(text: str) -> list[str]:
    """Each setting that is commented out, with the lines of its section."""
    found: list[str] = []
    for line in text.splitlines():
        if re.match(r" *# [a-z_]+:($| )", line):  # "#   task:" is the long form
            found.append(line)
        elif found and line.startswith("#   ") and found[-1].splitlines()[0].endswith(":"):
            found[-1] += f"\n{line}"
    return found


def switched_on(folder: Path, name: str, setting: str) -> AgentConfig | ServerConfig:
    """The config with one commented setting in force, in place of the one of that name that is there."""
    indent, key = re.match(r"( *)# ([a-z_]+):", setting).groups()  # type: ignore[union-attr]
    told = "\n".join(line.replace("# ", "", 1) for line in setting.splitlines())
    text = TEXTS[name].replace(setting, "@")
    lines = [line for line in text.splitlines() if not line.startswith(f"{indent}{key}:")]
    if key in ("confidence", "calibration"):
        lines = [line for line in lines if "agreement:" not in line]
    text = "\n".join(lines).replace("@", told)
    if key == "spool":
        text += "\nwhen_unavailable: spool\n"
    (folder / "pi-1.token").write_text("a-token\n")
    (folder / "pi-1.token").chmod(0o600)
    (folder / "rules.py").write_text("def private(value, votes):\n    return False\n")
    (folder / "phone.yaml").write_text((CONFIGS / "pi.yaml").read_text())
    (folder / "web" / "dist").mkdir(parents=True, exist_ok=True)
    (folder / "web" / "dist" / "index.html").touch()
    return read(folder, name, text)


def read(folder: Path, name: str, text: str) -> AgentConfig | ServerConfig:
    path = folder / name
    path.write_text(text + "\n", encoding="utf-8")
    return read_config(path) if name == "pi.yaml" else read_server(path)


CASES = [(name, setting) for name, text in TEXTS.items() for setting in shown(text)]


def test_they_show_many_settings():
    assert sum(len(setting.splitlines()) for _, setting in CASES) > 90


@pytest.mark.parametrize(("name", "setting"), CASES, ids=[setting.split("#")[1].strip()[:40] for _, setting in CASES])
def test_each_setting_that_is_shown_can_be_switched_on(tmp_path, name, setting):
    if setting.startswith("# security:"):  # `coe-cloud certs` makes its files
        with pytest.raises(ConfigError) as caught:
            switched_on(tmp_path, name, setting)
        assert all("certs/" in finding for finding in caught.value.findings)
        return
    if setting.startswith("# calibration:"):  # `coe-sim plan` makes the table, for the models at hand
        with pytest.raises(ConfigError, match=r"calibration: .*calibration\.json: cannot be read"):
            switched_on(tmp_path, name, setting)
        return
    config = switched_on(tmp_path, name, setting)
    assert config.warnings == ()
    if EXAMPLE not in setting and not setting.lstrip(" #").startswith(OFF):
        assert config == read(tmp_path, name, TEXTS[name]), "it is said to be the default"
