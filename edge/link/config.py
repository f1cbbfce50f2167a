"""How the agent treats its link to the cloud.

link:
  failures: 3               # in a row, that stop calls: the device then answers by itself, at once
  rebuild_after: 3          # calls in a row past their deadline, that have the connection made anew
  backoff_ms: [200, 30000]  # between probes of a link that is down: the first wait and the longest, each +-25%
  probe_ms: 2000            # deadline of a probe; by default the tier's own, at least a second
  reserve_ms: 5             # of an example's deadline, kept for the device's own answer
"""

from __future__ import annotations

from dataclasses import dataclass

from coe.settings import Fields

LONGEST_MS = 3_600_000


@dataclass(frozen=True)
class LinkConfig:
    """When a link counts as down, and how it is tried again; the module's docstring has the settings.

    Args:
        backoff_s: between probes: the first wait, and the longest.
        probe_s: deadline of a probe; None: that of the tier's calls, at least a second.
        reserve_s: kept of an example's deadline.
    """

    failures: int = 3
    rebuild_after: int = 3
    backoff_s: tuple[float, float] = (0.2, 30.0)
    probe_s: float | None = None
    reserve_s: float = 0.005


def read_link(fields: Fields) -> LinkConfig:
    """The section `link:` of an agent's config."""
    usual = LinkConfig()
    probe_ms = fields.number("probe_ms", None, 10, 600_000)
    config = LinkConfig(
        failures=fields.integer("failures", usual.failures, 1, 1000),
        rebuild_after=fields.integer("rebuild_after", usual.rebuild_after, 1, 1000),
        backoff_s=_read_backoff(fields, usual.backoff_s),
        probe_s=None if probe_ms is None else probe_ms / 1000,
        reserve_s=fields.number("reserve_ms", usual.reserve_s * 1000, 0, 60_000) / 1000,
    )
    fields.finish()
    return config


def _read_backoff(fields: Fields, usual: tuple[float, float]) -> tuple[float, float]:
    n_before = len(fields.report.findings)
    waits = fields.numbers("backoff_ms", tuple(seconds * 1000 for seconds in usual))
    if len(fields.report.findings) > n_before:
        return usual
    if len(waits) != 2 or not 1 <= waits[0] <= waits[1] <= LONGEST_MS:
        got = f"[{', '.join(f'{wait:g}' for wait in waits)}]"
        expected = f"expected two waits from 1 to {LONGEST_MS}, the first no longer than the second"
        fields.wrong("backoff_ms", f"{expected}, got {got} (write [200, 30000])")
        return usual
    return waits[0] / 1000, waits[1] / 1000
