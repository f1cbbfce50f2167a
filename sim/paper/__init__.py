"""The paper's own tables as data, and what follows from them by its arithmetic and by ours."""

from .recompute import Paper, recompute
from .show import as_part
from .tables import TABLES, Tables, read_tables

__all__ = ["TABLES", "Paper", "Tables", "as_part", "read_tables", "recompute"]
