"""Settings files: YAML into checked fields, every finding at once, each with its trail and its mend."""

from .fields import Fields, Report, read_yaml
from .units import format_seconds, parse_seconds

__all__ = ["Fields", "Report", "format_seconds", "parse_seconds", "read_yaml"]
