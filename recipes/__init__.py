"""How the bundled models were made, and readers of data sets. In the repository and its tests, not in the package."""

from pathlib import Path

ZOO = Path(__file__).parents[1] / "zoo" / "coe_zoo"  # the files of the second distribution
