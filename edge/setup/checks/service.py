"""Whether it runs as a service."""

from __future__ import annotations

from collections.abc import Iterator

from ..finding import Finding, ok, warn
from ..system import told_by
from .patient import Patient

UNIT = "coe-edge.service"


def check_service(patient: Patient) -> Iterator[Finding]:
    installed = (patient.system.root / "etc/systemd/system" / UNIT).is_file()
    if not installed:
        yield ok("service", "not installed (coe-edge install-service does it)")
        return
    if not patient.system.runs_systemd():
        yield ok("service", "installed; systemd does not run here")
        return
    states = dict(line.partition("=")[::2] for line in (told_by("systemctl", "show", UNIT) or "").splitlines())
    active, enabled = states.get("ActiveState", "unknown"), states.get("UnitFileState", "unknown")
    told = f"{active}, {enabled} at start"
    restarts = states.get("NRestarts", "0")
    if active != "active":
        yield warn("service", told, f"sudo systemctl start {UNIT}; what it said: journalctl -u {UNIT} -n 50")
    elif restarts not in ("", "0"):
        yield warn("service", f"{told}, restarted {restarts} times", f"see why: journalctl -u {UNIT} -n 200")
    else:
        yield ok("service", told)
