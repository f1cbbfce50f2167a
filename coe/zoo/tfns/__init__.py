"""Twitter Financial News: bearish, bullish or neutral? Three small models, and what they and MiniLM said of tweets.

Nothing here needs a runtime or a data package: manifest, model files and traces are read from this folder. The tweets
are not bundled, nor is MiniLM: `python -m coe.zoo.tfns --data DIR` trains and exports all models again.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.yaml"
