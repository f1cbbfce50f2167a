"""What the doctor looks at, in order. To add a check: a function that fits `Check`, and its name in `CHECKS`."""

from .link import check_certificates, check_tiers, check_tokens
from .machine import check_clock, check_cores, check_heat, check_memory, check_packages, check_python
from .models import check_models
from .patient import Check, Patient
from .places import check_disk, check_sinks, check_source
from .service import check_service

MACHINE: tuple[Check, ...] = (check_python, check_packages, check_cores, check_memory, check_heat, check_clock)
CONFIGURED: tuple[Check, ...] = (  # need a config that can be read
    check_models,
    check_source,
    check_sinks,
    check_disk,
    check_certificates,
    check_tokens,
    check_tiers,
)
LAST: tuple[Check, ...] = (check_service,)

__all__ = ["CONFIGURED", "LAST", "MACHINE", "Check", "Patient"]
