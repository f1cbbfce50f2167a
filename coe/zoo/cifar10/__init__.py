"""CIFAR-10: the bundled four-tier cascade, its manifest, and what its members said of held-out pictures.

Nothing here needs a runtime or a data package: manifest, model files and traces are read from this folder. The
pictures themselves are not bundled. `python -m coe.zoo.cifar10 --data DIR` trains and exports all models again.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.yaml"
TRACE = FOLDER / "test.parquet"
TRACE_CALIBRATION = FOLDER / "calibration.parquet"
