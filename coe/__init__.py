"""Cascade of Ensembles: where small models agree, that is the answer; what they disagree on goes to larger ones.

    import coe

    tiers = [["a.onnx", "b.onnx", "c.onnx"], "large.onnx"]
    cascade = coe.Cascade(tiers, labels=["good", "bad"], input=coe.Image(96, 96))
    cascade.predict(["part-1.png", "part-2.png"])  # ["good", "bad"]

Names are loaded when they are first used: `import coe` alone imports nothing else. docs/python.md has more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coe.api import Cascade, Decision, Decisions, Ensemble, Remote, load
    from coe.cascade.errors import (
        CascadeError,
        ConfigError,
        InputError,
        ModelError,
        RuntimeMissing,
        TierError,
        TierOverloaded,
        TierRejected,
        TierTimeout,
        TierUnavailable,
    )
    from coe.cascade.rule import Agreement, Confidence
    from coe.examples import Image, Tensor, Text

__version__ = "0.1.0"

__all__ = [
    "Agreement",
    "Cascade",
    "CascadeError",
    "Confidence",
    "ConfigError",
    "Decision",
    "Decisions",
    "Ensemble",
    "Image",
    "InputError",
    "ModelError",
    "Remote",
    "RuntimeMissing",
    "Tensor",
    "Text",
    "TierError",
    "TierOverloaded",
    "TierRejected",
    "TierTimeout",
    "TierUnavailable",
    "load",
]

_RULES = ("Agreement", "Confidence")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'coe' has no attribute {name!r}")
    is_error = name.endswith("Error") or name.startswith("Tier") or name == "RuntimeMissing"
    module = "coe.cascade.errors" if is_error else "coe.cascade.rule" if name in _RULES else "coe.api"
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
