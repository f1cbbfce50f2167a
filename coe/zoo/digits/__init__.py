"""Handwritten digits: the bundled models, their manifest and 1,000 test digits.

Nothing here needs a runtime or a data package: manifest, model files and PNG files are read from this folder.
`python -m recipes.digits` trains and exports all of them again (needs `pip install 'coe-cascade[recipes]'`).
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.yaml"
N_TEST = 1000  # bundled


def test_examples(limit: int | None = None) -> list[tuple[str, bytes, int]]:  # noqa: PT028
    """The bundled test digits in order, as (id, PNG bytes, label); the first `limit` of them if given."""
    lines = (FOLDER / "test" / "labels.tsv").read_text(encoding="utf-8").splitlines()[1:]  # drop the header
    examples = []
    for line in lines[:limit]:
        name, label = line.split("\t")
        png = (FOLDER / "test" / name).read_bytes()
        examples.append((f"digit-{Path(name).stem}", png, int(label)))
    return examples


# pytest would collect a function of this name from any test module that imports it.
test_examples.__test__ = False  # type: ignore[attr-defined]
