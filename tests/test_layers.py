"""Imports run one way only, and each dependency has its place. Read from the source, so nothing is imported here."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

LAYERS = {  # what may import what; the table in DESIGN.md
    "coe.cascade": (),
    "coe.calibration": ("coe.cascade",),
    "coe.link": ("coe.cascade",),
    "coe.models": ("coe.cascade",),
    "coe.protocol": ("coe.cascade",),
    "coe.zoo": ("coe.cascade", "coe.models"),
    "coe.config": ("coe",),
    "edge": ("coe",),
    "cloud": ("coe",),
    "sim": ("coe",),  # it starts edge and cloud as processes
    "recipes": ("coe", "sim"),  # in the repository, not in the package
    "coe": (),  # the version alone: everybody may ask for it
}
THIRD_PARTY = {  # third-party packages that only these may import
    "grpc": ("coe.protocol", "cloud", "edge"),
    "grpc_health": ("coe.protocol", "cloud", "edge"),
    "grpc_reflection": ("cloud",),
    "google": ("coe.protocol", "cloud"),
    "cryptography": ("cloud.security",),
    "starlette": ("cloud.transports",),
    "uvicorn": ("cloud.transports",),
    "httptools": ("cloud.transports",),
    "prometheus_client": ("cloud.observe", "edge.observe"),
    "opentelemetry": ("cloud.observe",),
    "uvloop": ("cloud.server",),
    "segno": ("cloud.phone_address",),
    "onnxruntime": ("coe.models.onnx", "recipes"),
    "ai_edge_litert": ("coe.models.tflite", "recipes"),
    "tflite_runtime": ("coe.models.tflite", "recipes"),
    "torch": ("coe.models.torch", "recipes"),
    "onnx": ("recipes",),
    "mlxtend": ("recipes",),
    "yaml": ("coe.config",),
    "matplotlib": ("sim",),
    "scipy": ("sim",),
    "pandas": ("sim",),
    "tokenizers": ("coe.models.text", "recipes"),
    "safetensors": ("recipes",),
    "cv2": ("edge.sources",),
    "paho": ("edge.sinks",),
    "pyarrow": ("sim.traces", "sim.studies.record", "recipes"),
    "tqdm": ("sim", "recipes"),
}
GENERATED = ("coe.protocol.inference_pb2",)
DYNAMIC = ("import_module", "import_runtime", "__import__")
MAX_LINES = 600


@dataclass(frozen=True)
class Import:
    """One module imported by another; `now`: as that one is imported, not later in a function."""

    target: str
    line: int
    now: bool


def sources() -> dict[str, Path]:
    """Every module of ours, by its dotted name."""
    found = {}
    for program in ("coe", "edge", "cloud", "sim"):
        spec = importlib.util.find_spec(program)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            parts = (program, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer_of(module: str) -> str:
    return next(layer for layer in sorted(LAYERS, key=len, reverse=True) if is_in(module, layer))


def imports(module: str) -> Iterator[Import]:
    """What a module imports, anywhere in it, also by name at run time."""
    yield from _imports_in(TREES[module], module, now=True)


def _imports_in(node: ast.AST, module: str, now: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, now)
        elif isinstance(child, ast.ImportFrom):
            for target in _imported_from(child, module):
                yield Import(target, child.lineno, now)
        elif isinstance(child, ast.Call) and _called(child) in DYNAMIC and child.args:
            name = child.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(name.value, child.lineno, now=False)
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(child)
        yield from _imports_in(child, module, now and not later)


def _imported_from(node: ast.ImportFrom, module: str) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        is_package = SOURCES[module].name == "__init__.py"
        package = module.split(".")[: len(module.split(".")) - node.level + is_package]
        base = ".".join([*package, base] if base else package)
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in SOURCES else base


def _called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def is_ours(target: str) -> bool:
    return target.split(".")[0] in ("coe", "edge", "cloud", "sim")


IMPORTS = {module: list(imports(module)) for module in SOURCES}


def at(module: str, found: Import) -> str:
    return f"{SOURCES[module].name}:{found.line}: {module} imports {found.target}"


def test_a_module_imports_only_from_the_layers_below_its_own():
    wrong = [
        at(module, found)
        for module in SOURCES
        for found in IMPORTS[module]
        if is_ours(found.target)
        and found.target != "coe"
        and not any(is_in(found.target, allowed) for allowed in (layer_of(module), *LAYERS[layer_of(module)]))
    ]
    assert wrong == []


def test_a_third_party_package_is_imported_only_where_it_belongs():
    wrong = [
        at(module, found)
        for module in SOURCES
        for found in IMPORTS[module]
        if not any(is_in(module, place) for place in THIRD_PARTY.get(found.target.split(".")[0], (module,)))
    ]
    assert wrong == []


def test_the_cascade_needs_numpy_and_the_standard_library_alone():
    wrong = [
        at(module, found)
        for module in SOURCES
        if is_in(module, "coe.cascade")
        for found in IMPORTS[module]
        if not is_in(found.target, "coe.cascade")
        and found.target.split(".")[0] not in {"numpy", *sys.stdlib_module_names}
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {}
    for module in SOURCES:
        above = {module.rsplit(".", depth)[0] for depth in range(module.count(".") + 1)}
        needs = set()
        for found in IMPORTS[module]:
            if found.now and found.target in SOURCES:
                parents = {found.target.rsplit(".", depth)[0] for depth in range(found.target.count(".") + 1)}
                needs |= parents - above  # a package is imported before its modules; one's own is under way
        graph[module] = needs
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")
    assert set(order) == set(SOURCES)


def test_a_file_can_be_read_in_one_sitting():
    lines = {
        module: path.read_text(encoding="utf-8").count("\n")
        for module, path in SOURCES.items()
        if module not in GENERATED
    }
    assert {module: count for module, count in lines.items() if count > MAX_LINES} == {}


def test_a_module_is_named_after_what_it_does():
    vague = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert [module for module in SOURCES if vague & set(module.split("."))] == []


def test_the_reader_of_imports_sees_every_way_to_import():
    found = {}
    for module in SOURCES:
        for one in IMPORTS[module]:
            found.setdefault((module, one.target), one)
    assert found["coe.models.onnx", "onnxruntime"].now is False  # by name, through import_runtime
    assert found["coe.models.loading", "coe.models.input_spec"].now is True  # relative
    assert found["coe.config.open", "coe.models.torch"].now is False  # in a function
    assert found["coe.protocol.codec", "coe.protocol.inference_pb2"].now is True  # a module from its package
    assert found["edge.config", "coe.zoo"].now is True
