"""SST-2: is a sentence of a film review positive? Three small models, and what they and MiniLM said of held-out texts.

Nothing here needs a runtime or a data package: manifest, model files and traces are read from this folder. The texts
are not bundled, nor is MiniLM: `python -m coe.zoo.sst2 --data DIR` trains and exports all models again.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.yaml"
