"""What a package offers by name, and what importing it does not drag in."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest


def packages() -> list[str]:
    """Packages of ours that declare their public names."""
    found = []
    for program in ("coe", "edge", "cloud", "sim"):
        spec = importlib.util.find_spec(program)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        walked = pkgutil.walk_packages(spec.submodule_search_locations, f"{program}.", onerror=lambda name: None)
        found += [program, *(module.name for module in walked if module.ispkg)]
    return [name for name in found if "__all__" in source_of(name)]


def source_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


PACKAGES = packages()


def in_order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_the_library_packages_declare_their_names():
    assert {"coe.cascade", "coe.config", "coe.models"} <= set(PACKAGES)


def test_every_public_name_is_there_and_in_order():
    modules = {package: importlib.import_module(package) for package in PACKAGES}
    offered = {package: list(module.__all__) for package, module in modules.items()}
    assert offered == {package: sorted(set(names), key=in_order) for package, names in offered.items()}
    missing = [
        f"{package}.{name}"
        for package, module in modules.items()
        for name in module.__all__
        if getattr(module, name) is None
    ]
    assert missing == []


def test_a_library_package_re_exports_its_public_names_and_nothing_else():
    library = [package for package in PACKAGES if package.startswith("coe.")]
    imported = {
        package: sorted(
            alias.asname or alias.name
            for node in ast.parse(source_of(package)).body
            if isinstance(node, ast.ImportFrom) and node.module != "__future__"
            for alias in node.names
        )
        for package in library
    }
    assert imported == {package: sorted(importlib.import_module(package).__all__) for package in library}


def test_a_package_says_what_it_is():
    assert [package for package in PACKAGES if not importlib.import_module(package).__doc__] == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("coe.cascade", ["grpc", "PIL", "onnxruntime", "torch", "yaml", "coe.config", "coe.models", "coe.protocol"]),
        ("coe.config", ["grpc", "PIL", "onnxruntime", "torch"]),
        ("coe.models", ["grpc", "PIL", "onnxruntime", "torch", "ai_edge_litert", "tokenizers"]),
        ("coe.protocol.codec", ["grpc", "PIL", "onnxruntime", "torch", "yaml"]),
        ("coe.zoo.digits", ["grpc", "PIL", "onnxruntime", "torch", "mlxtend"]),
        ("coe.config.open", ["PIL", "onnxruntime", "torch", "matplotlib", "tokenizers"]),
        (
            "edge.main",
            ["torch", "matplotlib", "scipy", "pandas", "cloud", "sim", "tokenizers", "cv2", "paho", "sqlite3"],
        ),
        ("cloud.main", ["torch", "matplotlib", "scipy", "pandas", "edge", "sim", "tokenizers"]),
    ],
)
def test_importing_a_module_does_not_drag_in_what_it_does_not_need(module, absent):
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=240)
    assert (told.stderr, told.stdout.strip()) == ("", "[]")
