"""What may not leave, and who says so, in words: what was kept under another policy is not sent under this one."""

from __future__ import annotations

import hashlib

from coe.assembly import CascadeConfig, LocalTierConfig

from .config import FieldConfig
from .hold_back import hook_source


def policy_of(field: FieldConfig, cascade: CascadeConfig) -> str:
    """ "" where all examples may leave. It changes with the classes, the hook's code and the device's models."""
    if not field.never_send and not field.hook:
        return ""
    names = sorted(cascade.task.labels[label] for label in field.never_send)
    models = hashlib.sha256()
    for tier in cascade.tiers:
        if isinstance(tier, LocalTierConfig):
            for spec in tier.members:
                with spec.path.open("rb") as file:
                    models.update(hashlib.file_digest(file, "sha256").digest())
    hook = f"{field.hook} {hook_source(field.hook, field.folder)}" if field.hook else ""
    return f"never_send {names}; hook {hook}; models {models.hexdigest()}"
