"""What the pages and pictures name is there: files, links, headings; README's lines of Python run."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/images/architecture.svg")]
PATH = re.compile(r"(?:coe|edge|cloud|sim|recipes|zoo|tests|bench|proto|configs|docs|web|\.ci)/[\w./-]*+(?![*{])")
NAME = re.compile(r"(?<![\w./-])(?:coe|edge|cloud|sim|recipes)(?:\.(?!yaml|py\b|tasks\b)[a-zA-Z_]\w*)+(?![\w*/])")
PACKAGES = ("coe", "edge", "cloud", "sim")
CLASS = r"\b[A-Z][a-z]+[A-Z]\w+\b"  # of two words at least
BUILT = {"web/dist"}  # where Node is

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="the pages are in the checkout")


def named_paths(text: str) -> set[str]:
    """Paths of this repository in `code`, or in a picture's labels."""
    quoted = re.findall(r"`([^`\n]+)`", text) + re.findall(r'class="path"[^>]*>([^<]+)<', text)
    return {found.rstrip("./") for one in quoted if not one.startswith("coe-") for found in PATH.findall(one)}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_file_that_a_page_names_is_there():
    missing = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in PAGES
        for path in sorted(named_paths(page.read_text(encoding="utf-8")))
        if path not in BUILT and not (ROOT / path).exists()
    ]
    assert missing == []


def test_every_python_name_of_a_page_is_there():
    missing = []
    for page in PAGES:
        for quoted in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            missing += [f"{page.relative_to(ROOT)}: {name}" for name in NAME.findall(quoted) if not is_there(name)]
    assert missing == []


def is_there(name: str) -> bool:
    """True if a dotted name is a module of ours, or stands in one."""
    module, inner = ROOT / name.split(".")[0], name.split(".")[1:]
    while inner and ((module / inner[0]).is_dir() or (module / f"{inner[0]}.py").exists()):
        module /= inner.pop(0)
    source = module.with_suffix(".py") if module.with_suffix(".py").exists() else module / "__init__.py"
    return not inner or re.search(rf"\b{inner[0]}\b", source.read_text(encoding="utf-8")) is not None


def test_every_class_that_the_architecture_names_is_there():
    picture = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = {*re.findall(CLASS, " ".join(re.findall(r">([^<]+)<", picture))), *re.findall(rf"`({CLASS})s?\b", page)}
    sources = [path.read_text(encoding="utf-8") for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    known = set(re.findall(r"^class (\w+)", "\n".join(sources), re.MULTILINE))
    assert named >= {"InputDecoder", "RemoteTier", "TierBatcher"}
    assert named - known == set()


def test_every_link_of_a_page_leads_somewhere():
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            url = urllib.parse.urlsplit(target)
            other = (page.parent / url.path) if url.path else page
            if url.scheme:
                continue
            if not other.exists() or (url.fragment and url.fragment not in anchors(other)):
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert dead == []


def test_the_lines_of_python_in_readme_run(tmp_path, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx")
    from PIL import Image

    (code,) = re.findall(r"<!-- run: readme -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b.onnx", "c.onnx"):  # of the three colours, the brightest
        onnx.save(brightest_channel(onnx), name)
    Image.fromarray(np.full((96, 96, 3), (0, 255, 0), dtype=np.uint8)).save("part.png")
    exec(compile(code, "README.md", "exec"), {})
    assert (
        capsys.readouterr().out.splitlines()[0] == "['scratched']"
    )  # and the server, which is not there, is not asked


def brightest_channel(onnx):
    """A model (B, 3, 96, 96) -> (B, 3) probabilities."""
    make = onnx.helper
    graph = make.make_graph(
        [
            make.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
            make.make_node("Softmax", ["means"], ["y"]),
        ],
        "brightest",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 96, 96])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
