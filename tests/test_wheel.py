"""What the two distributions hold: built from a copy of the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_BYTES = 8_000_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "zoo" / "pyproject.toml").exists(), reason="the sources are in the checkout"),
]


def built(source: Path, folder: Path, *names: str) -> zipfile.ZipFile:
    """The wheel of the distribution in `source`, made of these of its files and folders."""
    copy = folder / "source"
    copy.mkdir()
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "page", "minilm*"))
        else:
            shutil.copy(source / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").iterdir()
    return zipfile.ZipFile(wheel)


def test_the_wheel_holds_the_programs_and_the_demo_alone(tmp_path: Path):
    names = ("coe", "edge", "cloud", "sim", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
    with built(ROOT, tmp_path, *names) as wheel:
        held = wheel.namelist()
        assert {name.split("/")[0] for name in held} == {"coe", "edge", "cloud", "sim", held[-1].split("/")[0]}
        assert not [name for name in held if "cifar10" in name or "sst2" in name or "tfns" in name or "recipes" in name]
        assert "coe/zoo/digits/manifest.yaml" in held
        assert Path(str(wheel.filename)).stat().st_size <= MOST_BYTES


def test_the_other_tasks_are_a_wheel_of_their_own(tmp_path: Path):
    with built(ROOT / "zoo", tmp_path, "coe_zoo", "pyproject.toml") as wheel:
        held = wheel.namelist()
        for task in ("cifar10", "sst2", "tfns"):
            assert {f"coe_zoo/{task}/{name}" for name in ("manifest.yaml", "edge.yaml", "test.parquet")} <= set(held)
        assert {f"coe_zoo/cifar10/{name}" for name in ("calibration.json", "edge-calibrated.yaml")} <= set(held)
        (points,) = (name for name in held if name.endswith("entry_points.txt"))
        assert "cifar10 = coe_zoo.cifar10" in wheel.read(points).decode()
