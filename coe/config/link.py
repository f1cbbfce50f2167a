"""A model of a link, as a config or a file of its own says it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coe.cascade.errors import ConfigError
from coe.link import JITTERS, Link, LinkModel, Loss, Outage, Propagation, Queue, bandwidth, read_recorded

from .fields import Fields, Report, read_yaml, resolve
from .settings import read_settings, setting


@dataclass(frozen=True)
class LinkSettings:
    """A link, or one direction of it."""

    delay_s: float = setting(0, "Mean delay of a message, one way.", unit="ms", high=600_000)
    jitter: str = setting("normal", "Distribution of the delay.", choices=JITTERS)
    jitter_s: float = setting(0, "Standard deviation of the delay.", unit="ms", high=600_000)
    loss: float = setting(0, "Share of the packets of 1,500 bytes that are lost, and sent again.", high=0.9)
    retransmit_s: float = setting(
        200, "Wait before a lost packet is sent again; then twice as long.", unit="ms", low=1, high=60_000
    )
    mbit_per_s: float | None = setting(
        None, "Bandwidth: messages leave one after another.", usual="no limit", low=0.001, high=1e6
    )
    day: tuple[float, ...] = setting((), "Share of `mbit_per_s` in each of equal parts of a day; 24 are hours.")
    trace: Path | None = setting(None, "Recorded bandwidth, of Mahimahi or in a CSV.", usual="none")
    outage_s: float | None = setting(None, "Mean length of an outage.", unit="seconds", low=0.001, usual="none")
    outage_every_s: float = setting(3600, "Mean time between outages.", unit="seconds", low=0.001)
    shared: bool = setting(False, "Both directions take turns on the bandwidth, that of the way up.")

    def models(self, *, up: bool) -> list[LinkModel]:
        """What a message passes in one direction, in order. Raises ConfigError: the trace is none."""
        found: list[LinkModel] = []
        if self.outage_s is not None:
            found.append(Outage(self.outage_every_s, self.outage_s))
        if self.trace is not None:
            found += read_recorded(self.trace, up=up)
        if self.mbit_per_s is not None:
            found.append(bandwidth(self.mbit_per_s * 125_000, self.day))
        if self.loss:
            found.append(Loss(self.loss, self.retransmit_s))
        if self.delay_s:
            found.append(Propagation(self.delay_s, self.jitter, self.jitter_s))
        return found


def read_link(fields: Fields, key: str, folder: Path) -> Link | None:
    """The link that a setting says; None where it is not there, or there are findings.

    It is a section of `LinkSettings`, with what differs by direction in `up:` and `down:`; or the path of a YAML file
    with as much, of a CSV of both directions, or of Mahimahi's file of the way up.
    """
    value = fields.raw(key, None)
    if value is None:
        return None
    before = len(fields.report.findings)
    section = fields.section(key) if not isinstance(value, str) else Fields({}, fields.report, key)
    if isinstance(value, str):
        try:
            path = resolve(value, folder)
            section = Fields(_content(path), fields.report, f"{key}: {path}")
            folder = path.parent
        except ConfigError as error:
            fields.report.findings += str(error).splitlines()
            return None
    ways = [section.section(way, {}) for way in ("up", "down")]
    common = read_settings(LinkSettings, section, folder)
    own = [common, common]
    if len(fields.report.findings) == before:
        shared_keys = {name: each for name, each in section.content.items() if name not in ("up", "down")}
        merged = [Fields({**shared_keys, **way.content}, way.report, way.trail) for way in ways]
        own = [read_settings(LinkSettings, each, folder) for each in merged]
    for way, settings in zip(ways, own, strict=True):
        if settings.jitter_s and not settings.delay_s:
            way.wrong("jitter_ms", "expected a delay_ms that varies, got none (add it: the mean)")
        if 1 >= len(settings.day) > 0 or any(share < 0 for share in settings.day) or not sum(settings.day or [1]):
            way.wrong("day", "expected at least two shares from 0, not all 0")
    if len(fields.report.findings) > before:
        return None
    try:
        return _link(common, *own)
    except ConfigError as error:
        fields.report.findings += [f"{section.trail}: {line}" for line in str(error).splitlines()]
        return None


def _link(common: LinkSettings, up: LinkSettings, down: LinkSettings) -> Link:
    """With one state for both directions of the link's own outages, and of a bandwidth that they share."""
    both: list[LinkModel] = []
    if common.outage_s is not None:
        both.append(Outage(common.outage_every_s, common.outage_s))
        up, down = replace(up, outage_s=None), replace(down, outage_s=None)
    ways = [up.models(up=True), down.models(up=False)]
    if common.shared:
        both += [model for model in ways[0] if isinstance(model, Queue)]
        ways = [[model for model in way if not isinstance(model, Queue)] for way in ways]
    return Link(ways[0], ways[1], both)


def _content(path: Path) -> dict[str, Any]:
    """A YAML file's settings; a recording as the setting that names it."""
    if path.suffix in (".yaml", ".yml"):
        return read_yaml(path)
    return {"trace": str(path)} if path.suffix == ".csv" else {"up": {"trace": str(path)}}


def open_link(setting_: Any) -> Link:
    """The link of `link_model: SETTING`, its paths from here. Raises ConfigError: every finding."""
    report = Report("link")
    link = read_link(Fields({"link_model": setting_}, report), "link_model", Path())
    report.check()
    assert link is not None
    return link
