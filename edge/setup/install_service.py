"""`coe-edge install-service`: the agent's systemd unit, and its installation."""

from __future__ import annotations

import argparse
import os
import pwd
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coe.cascade.errors import ConfigError
from coe.config import read_yaml
from edge.config import AgentConfig, default_config, read_config
from edge.sources import SourceConfig

from .system import System

UNIT_NAME = "coe-edge.service"
UNITS = Path("etc/systemd/system")
STATE_DIRECTORY = "coe-edge"  # /var/lib/coe-edge
WATCHDOG_S = 30
BEYOND_GRACE_S = 15  # from the end of the drain to the end of the process, besides the time of the sinks

UNIT_TEMPLATE = """\
# Written by `coe-edge install-service`. Your own changes go to a file beside it: systemctl edit {name}
[Unit]
Description=Cascade of Ensembles: the agent of {config}
# Not network-online.target: the agent decides by itself until there is a network.
After=network.target time-sync.target
# Restarts for ever: nobody is there to start it again.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={folder}
{who}
StateDirectory={state}
StateDirectoryMode=0750
UMask=0027
Environment=PYTHONUNBUFFERED=1

# The agent notifies systemd that it is alive; if a member hangs, it stops that, and systemd restarts it.
WatchdogSec={watchdog_s}
TimeoutStartSec=180
Restart={restart}
RestartSec=3
# From 3 s to 5 minutes between restarts; a systemd before 254 ignores these two, and waits 3 s each time.
RestartSteps=8
RestartMaxDelaySec=300
# 2: a person must edit something; a restart would not fix it
RestartPreventExitStatus=2
# The drain: grace_s of the config, then the last answers.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec={stop_s}

# What the agent may do on this machine.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome={home}
{writable}PrivateTmp={private_tmp}
PrivateDevices={private_devices}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class ServiceUnit:
    """The agent's systemd unit.

    Args:
        command: the program and its first arguments; paths are absolute.
        user: that runs it; "": a user that systemd creates for it (DynamicUser).
    """

    config: AgentConfig
    command: tuple[str, ...]
    user: str

    def text(self) -> str:
        """The unit file."""
        path = self.config.path.absolute()
        writable = "".join(f"ReadWritePaths={_quoted('-' + str(folder))}\n" for folder in self.writable)
        uses_camera = any(part.camera is not None for part in self.config.source.each)
        return UNIT_TEMPLATE.format(
            name=UNIT_NAME,
            config=_escaped(str(path)),
            command=" ".join(map(_quoted, (*self.command, "--config", str(path)))),
            folder=_escaped(str(path.parent)),
            who=self._who(uses_camera),
            state=STATE_DIRECTORY,
            watchdog_s=WATCHDOG_S,
            restart="always" if any(map(_is_endless, self.config.source.each)) else "on-failure",
            stop_s=round(self.config.grace_s + max(sink.flush_s for sink in self.config.sinks)) + BEYOND_GRACE_S,
            home="read-only" if self._is_at_home() else "yes",
            writable=writable,
            private_tmp="no" if any(_is_in(path, "/tmp", "/var/tmp") for path in self._paths()) else "yes",
            private_devices="no" if uses_camera else "yes",
        )

    @property
    def writable(self) -> list[Path]:
        """Folders that the config makes it write to, besides the service's own state directory."""
        config = self.config
        folders = [sink.path.absolute().parent for sink in config.sinks if sink.path is not None]
        folders += [config.field.harvest.path.absolute()] if config.field.harvest is not None else []
        for part in config.source.each:
            folders += [part.server.path.parent] if part.server is not None and part.server.path is not None else []
        if self._has("state"):
            folders.append(config.state.absolute())
        if config.spool is not None and self._has("path", section="spool"):
            folders.append(config.spool.path.absolute().parent)
        kept = [folder for folder in dict.fromkeys(folders) if not _is_in(folder, f"/var/lib/{STATE_DIRECTORY}")]
        return [folder for folder in kept if not any(_is_in(folder, str(other)) for other in kept if other != folder)]

    def _has(self, key: str, section: str = "") -> bool:
        """True if the config file has the key; otherwise the path follows from systemd's state directory."""
        content = read_yaml(self.config.path)
        place = content.get(section) if section else content
        return isinstance(place, dict) and key in place

    def secret_files(self) -> Iterator[Path]:
        """Files that nobody but the service's user should be able to read."""
        for tier in self.config.cascade.remote_tiers:
            yield from filter(None, (tier.security.key, tier.security.token_file))
        for sink in self.config.sinks:
            if sink.mqtt is not None:
                yield from filter(None, (sink.mqtt.password_file, *(sink.mqtt.tls or ())[2:]))
            if sink.webhook is not None and sink.webhook.token_file is not None:
                yield sink.webhook.token_file

    def files_to_read(self) -> Iterator[Path]:
        """Files and folders that the service must be able to read."""
        yield self.config.path.absolute()
        yield Path(self.command[0])
        for local in self.config.cascade.local_tiers:
            yield from (spec.path.absolute() for spec in local.members)
        for remote in self.config.cascade.remote_tiers:
            yield from filter(None, (remote.security.ca, remote.security.certificate))
        for part in self.config.source.each:
            if part.path is not None:
                yield part.path.absolute()
        for sink in self.config.sinks:
            yield from filter(None, (sink.mqtt.tls or ())[:2] if sink.mqtt is not None else ())
            yield from filter(None, (sink.webhook.ca,) if sink.webhook is not None else ())
        place = self.config.field.privacy_filter.rpartition(":")[0]
        if place.endswith(".py"):
            yield (self.config.field.folder / Path(place).expanduser()).absolute()
        yield from self.secret_files()

    def _paths(self) -> list[Path]:
        return [*(path.absolute() for path in self.files_to_read()), *self.writable]

    def _is_at_home(self) -> bool:
        return any(_is_in(path, "/home", "/root", "/run/user") for path in self._paths())

    def _who(self, uses_camera: bool) -> str:
        lines = [f"User={self.user}"] if self.user else ["DynamicUser=yes"]
        if uses_camera:
            lines.append("SupplementaryGroups=video")
        return "\n".join(lines)


def _is_endless(source: SourceConfig) -> bool:
    """True if it does not end by itself, so that an end is to be followed by a restart."""
    device = None if source.camera is None else source.camera.device
    is_live = isinstance(device, int) or (device or "").startswith("/dev/") or "://" in (device or "")
    return source.watch or source.server is not None or (device is not None and is_live)


def _is_in(path: Path, *folders: str) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """A word of a command line, quoted as in systemd.syntax(7)."""
    text = _escaped(text).replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def install_service_command(arguments: Sequence[str]) -> int:
    """0: installed, or only printed; 1: a systemctl command failed."""
    options = _parser().parse_args(arguments)
    path = (options.config or default_config()).absolute()
    service = ServiceUnit(read_config(path), _program(), _user(options, path))
    if options.print:
        print(service.text(), end="")
        return 0
    target = options.root / UNITS / UNIT_NAME
    commands = _commands(options.root)
    _show(service, target, commands)
    if not (options.yes or _wants_it()):
        print("\nnothing was done (--yes does it)")
        return 0
    return _install(service, target, commands)


def _program() -> tuple[str, ...]:
    """The command that starts this agent: the script beside this Python, or its module."""
    script = Path(sys.executable).parent / "coe-edge"
    return (str(script),) if script.is_file() else (sys.executable, "-m", "edge.main")


def _user(options: argparse.Namespace, path: Path) -> str:
    """The user given by the flags, else the config's owner; "" for root's, for which systemd creates a user.

    Raises:
        ConfigError: there is no user of that name.
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
    """The commands to run once the unit is written; none for another root."""
    return [] if root != Path("/") else [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", UNIT_NAME]]


def _show(service: ServiceUnit, target: Path, commands: list[list[str]]) -> None:
    print(service.text())
    print("steps:")
    print(f"  write {target}{' in place of the one there' if target.exists() else ''}")
    for command in commands:
        print(f"  {shlex.join(command)}")
    for warning in _warnings(service):
        print(f"warning: {warning}")


def _warnings(service: ServiceUnit) -> list[str]:
    found = []
    if service.config.source.is_standard_input:
        found.append("a service has no standard input: it would end at once (set `source:` to a folder, for example)")
    if not service.user:
        closed = next((path for path in service.files_to_read() if not _is_open_to_all(path)), None)
        if closed is not None:
            found.append(f"a user created by systemd cannot read {closed} (--user NAME runs it as one who can)")
    for folder in service.writable:
        if not folder.is_dir():
            found.append(f"{folder} is not there, and would not be writable before the next start (mkdir -p {folder})")
    return found


def _is_open_to_all(path: Path) -> bool:
    """True if any user may read a file, by its mode and those of the folders above it."""
    try:
        modes = [folder.stat().st_mode for folder in path.resolve().parents]
        return all(mode & 0o001 for mode in modes) and bool(path.stat().st_mode & 0o004)
    except OSError:
        return True  # it does not exist: another warning is for that


def _wants_it() -> bool:
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        return False
    try:
        return input("\ngo on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _install(service: ServiceUnit, target: Path, commands: list[list[str]]) -> int:
    if commands and os.geteuid() != 0:
        command = shlex.join([*_program(), "install-service", *sys.argv[2:]])
        raise ConfigError([f"expected to be run by root, who alone may write {target} (sudo {command})"])
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".new")
    draft.write_text(service.text(), encoding="utf-8")
    os.replace(draft, target)
    print(f"wrote {target}")
    if commands and not System().runs_systemd():
        print("systemd does not run here: the unit is not started")
        return 0
    for step in commands:
        if subprocess.run(step, check=False).returncode:
            print(f"failed: {shlex.join(step)} (see: journalctl -u {UNIT_NAME} -n 50)", file=sys.stderr)
            return 1
    if commands:
        print(f"running; its log: journalctl -u {UNIT_NAME} -f; new settings: sudo systemctl reload {UNIT_NAME}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge install-service",
        description="Run the agent as a systemd service, now and after each start. It first shows what it would do.",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user", metavar="NAME", help="user that runs it; default: the config's owner")
    who.add_argument("--system", action="store_true", help="a user that systemd creates for it")
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    parser.add_argument("--print", action="store_true", help="the unit alone, on standard output")
    parser.add_argument("--root", type=Path, default=Path("/"), help="write into another root, and start nothing")
    return parser
