"""Settings files: YAML into checked fields, every finding at once, each with its trail and its fix."""

from __future__ import annotations

from .fields import Fields, Report, format_seconds, format_yaml, parse_seconds, read_yaml

__all__ = ["Fields", "Report", "format_seconds", "format_yaml", "parse_seconds", "read_yaml"]
