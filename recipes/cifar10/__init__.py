"""CIFAR-10: ten models in four tiers. `python -m recipes.cifar10 --data DIR` trains and exports them all again."""

from .. import ZOO

FOLDER = ZOO / "cifar10"
MANIFEST = FOLDER / "manifest.yaml"
TRACE = FOLDER / "test.parquet"
TRACE_CALIBRATION = FOLDER / "calibration.parquet"
