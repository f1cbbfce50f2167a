"""`coe-edge install-service`: the agent as a systemd service. Says first what it would do."""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from coe.cascade.errors import ConfigError

from ..config import default_config, read_config
from .system import System
from .unit import NAME, Service

UNITS = Path("etc/systemd/system")


def install_service_command(arguments: Sequence[str]) -> int:
    """0: done, or shown; 1: systemd would not."""
    options = _parser().parse_args(arguments)
    path = (options.config or default_config()).absolute()
    service = Service(read_config(path), _program(), _user(options, path))
    if options.print:
        print(service.unit(), end="")
        return 0
    target = options.root / UNITS / NAME
    commands = _commands(options.root)
    _show(service, target, commands)
    if not (options.yes or _wants_it()):
        print("\nnothing was done (--yes does it)")
        return 0
    return _install(service, target, commands)


def _program() -> tuple[str, ...]:
    """How to start this same agent: the script beside this Python, or its module."""
    script = Path(sys.executable).parent / "coe-edge"
    return (str(script),) if script.is_file() else (sys.executable, "-m", "edge.main")


def _user(options: argparse.Namespace, path: Path) -> str:
    """Who runs it: as told; else whoever the config belongs to, but root, for whom systemd makes a user of its own.

    Raises:
        ConfigError: there is nobody of that name.
    """
    if options.system:
        return ""
    if options.user:
        try:
            return pwd.getpwnam(options.user).pw_name
        except KeyError:
            raise ConfigError([f"--user: expected a user of this machine, got {options.user}"]) from None
    owner = path.stat().st_uid
    try:
        return pwd.getpwuid(owner).pw_name if owner else ""
    except KeyError:
        return ""


def _commands(root: Path) -> list[list[str]]:
    """What is run after the unit is written; nothing where it is for another root."""
    if root != Path("/"):
        return []
    return [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", NAME]]


def _show(service: Service, target: Path, commands: list[list[str]]) -> None:
    print(service.unit())
    print("steps:")
    print(f"  write {target}{' in place of the one there' if target.exists() else ''}")
    for command in commands:
        print(f"  {shlex.join(command)}")
    for warning in _warnings(service):
        print(f"warning: {warning}")


def _warnings(service: Service) -> list[str]:
    found = []
    if service.config.source.kind == "stdin":
        found.append("a service has no standard input: it would end at once (set `source:` to a folder, say)")
    if not service.user:
        closed = next((path for path in service.read() if not _is_open_to_all(path)), None)
        if closed is not None:
            found.append(f"a user made by systemd cannot read {closed} (--user NAME runs it as one who can)")
    for folder in service.writable:
        if not folder.is_dir():
            found.append(f"{folder} is not there, and the service would not start (mkdir -p {folder})")
    return found


def _is_open_to_all(path: Path) -> bool:
    """Whether anybody may read it, by its mode and those of the folders above it."""
    try:
        modes = [folder.stat().st_mode for folder in path.resolve().parents]
        return all(mode & 0o001 for mode in modes) and bool(path.stat().st_mode & 0o004)
    except OSError:
        return True  # not there: another warning's business


def _wants_it() -> bool:
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        return False
    try:
        return input("\ngo on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _install(service: Service, target: Path, commands: list[list[str]]) -> int:
    if commands and os.geteuid() != 0:
        told = shlex.join([*_program(), "install-service", *sys.argv[2:]])
        raise ConfigError([f"expected to be run by root, who alone may write {target} (sudo {told})"])
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".new")
    draft.write_text(service.unit(), encoding="utf-8")
    os.replace(draft, target)
    print(f"wrote {target}")
    if commands and not System().runs_systemd():
        print("systemd does not run here: the unit is not started")
        return 0
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            print(f"failed: {shlex.join(command)} (see: journalctl -u {NAME} -n 50)", file=sys.stderr)
            return 1
    if commands:
        print(f"running; what it says: journalctl -u {NAME} -f; new settings: sudo systemctl reload {NAME}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge install-service",
        description="Run the agent as a systemd service, now and after each start. Shows first what it would do.",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user", metavar="NAME", help="who runs it; default: the config's owner")
    who.add_argument("--system", action="store_true", help="a user that systemd makes for it")
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    parser.add_argument("--print", action="store_true", help="the unit alone, on standard output")
    parser.add_argument("--root", type=Path, default=Path("/"), help="write into another root, and start nothing")
    return parser
