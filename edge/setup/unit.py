"""The systemd unit of an agent: what it may do is what its config needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coe.assembly import LocalTierConfig, RemoteTierConfig
from coe.settings import read_yaml

from ..config import AgentConfig

NAME = "coe-edge.service"
STATE = "coe-edge"  # /var/lib/coe-edge
WATCHDOG_S = 30
BEYOND_GRACE_S = 15  # from the end of the drain to the end of the process, besides what sinks still send

UNIT = """\
# Written by `coe-edge install-service`. Your own changes go to a file beside it: systemctl edit {name}
[Unit]
Description=Cascade of Ensembles: the agent of {config}
# Not network-online.target: it decides by itself until there is a network.
After=network.target time-sync.target
StartLimitIntervalSec=300
StartLimitBurst=10

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

# It says that it is alive; a member that hangs ends that, and systemd starts the agent anew.
WatchdogSec={watchdog_s}
TimeoutStartSec=180
Restart=on-failure
RestartSec=3
# 2: the config is wrong; starting again would not mend it
RestartPreventExitStatus=2
# The drain: grace_s of the config, then the last answers.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec={stop_s}

# What it may do on this machine.
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
class Service:
    """What a unit is made from.

    Args:
        command: the program and its first arguments, all absolute.
        user: who runs it; "": a user of its own, made by systemd (DynamicUser).
    """

    config: AgentConfig
    command: tuple[str, ...]
    user: str

    def unit(self) -> str:
        """Its text."""
        path = self.config.path.absolute()
        writable = "".join(f"ReadWritePaths={_quoted(str(folder))}\n" for folder in self.writable)
        uses_camera = any(part.camera is not None for part in self.config.source.parts or (self.config.source,))
        return UNIT.format(
            name=NAME,
            config=str(path).replace("%", "%%"),
            command=" ".join(map(_quoted, (*self.command, "--config", str(path)))),
            folder=_escaped(str(path.parent)),
            who=self._who(uses_camera),
            state=STATE,
            watchdog_s=WATCHDOG_S,
            stop_s=round(self.config.grace_s + max(sink.flush_s for sink in self.config.sinks)) + BEYOND_GRACE_S,
            home="read-only" if self._is_at_home() else "yes",
            writable=writable,
            private_tmp="no" if any(_is_in(path, "/tmp", "/var/tmp") for path in self._paths()) else "yes",
            private_devices="no" if uses_camera else "yes",
        )

    @property
    def writable(self) -> list[Path]:
        """Folders of the config in which it writes; that of its state is its own anyway."""
        config = self.config
        folders = [sink.path.absolute().parent for sink in config.sinks if sink.path is not None]
        folders += [config.field.harvest.path.absolute()] if config.field.harvest is not None else []
        for part in config.source.parts or (config.source,):
            folders += [part.door.path.parent] if part.door is not None and part.door.path is not None else []
        if self._has("state"):
            folders.append(config.state.absolute())
        if config.spool is not None and self._has("path", section="spool"):
            folders.append(config.spool.path.absolute().parent)
        kept = [folder for folder in dict.fromkeys(folders) if not _is_in(folder, f"/var/lib/{STATE}")]
        return [folder for folder in kept if not any(_is_in(folder, str(other)) for other in kept if other != folder)]

    def _has(self, key: str, section: str = "") -> bool:
        """Whether the config sets it itself; else it is where systemd says, as the service starts."""
        content = read_yaml(self.config.path)
        place = content.get(section) if section else content
        return isinstance(place, dict) and key in place

    def secrets(self) -> Iterator[Path]:
        """Files that are only for whoever runs it."""
        for tier in self.config.cascade.tiers:
            if isinstance(tier, RemoteTierConfig):
                yield from filter(None, (tier.security.key, tier.security.token_file))
        for sink in self.config.sinks:
            if sink.mqtt is not None:
                yield from filter(None, (sink.mqtt.password_file, *(sink.mqtt.tls or ())[2:]))
            if sink.webhook is not None and sink.webhook.token_file is not None:
                yield sink.webhook.token_file

    def read(self) -> Iterator[Path]:
        """Files and folders that it must be able to read."""
        yield self.config.path.absolute()
        yield Path(self.command[0])
        for tier in self.config.cascade.tiers:
            if isinstance(tier, LocalTierConfig):
                yield from (spec.path.absolute() for spec in tier.members)
            else:
                yield from filter(None, (tier.security.ca, tier.security.certificate))
        for part in self.config.source.parts or (self.config.source,):
            if part.path is not None:
                yield part.path.absolute()
        for sink in self.config.sinks:
            yield from filter(None, (sink.mqtt.tls or ())[:2] if sink.mqtt is not None else ())
            yield from filter(None, (sink.webhook.ca,) if sink.webhook is not None else ())
        place = self.config.field.hook.rpartition(":")[0]
        if place.endswith(".py"):
            yield (self.config.field.folder / Path(place).expanduser()).absolute()
        yield from self.secrets()

    def _paths(self) -> list[Path]:
        return [*(path.absolute() for path in self.read()), *self.writable]

    def _is_at_home(self) -> bool:
        return any(_is_in(path, "/home", "/root", "/run/user") for path in self._paths())

    def _who(self, uses_camera: bool) -> str:
        lines = [f"User={self.user}"] if self.user else ["DynamicUser=yes"]
        if uses_camera:
            lines.append("SupplementaryGroups=video")
        return "\n".join(lines)


def _is_in(path: Path, *folders: str) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """One word of a command line, as systemd.syntax(7) has it."""
    text = text.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
