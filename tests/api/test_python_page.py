"""The snippets of docs/python.md and of README run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coe.zoo import digits

DOCS = Path(__file__).parents[2] / "docs"
SNIPPET = re.compile(r"<!-- run: (\w+) -->\n```python\n(.*?)```", re.DOTALL)


def snippets(page):
    """The code of each group, in order; a group's snippets share their names."""
    groups = {}
    for group, code in SNIPPET.findall(page.read_text(encoding="utf-8")):
        groups.setdefault(group, []).append(code)
    return groups


PAGE = snippets(DOCS / "python.md")


def run(code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("digit.png").write_bytes(digits.test_examples(1)[0][1])
    names = {}
    exec(compile("\n".join(code), "docs/python.md", "exec"), names)
    return names


def test_the_page_has_every_snippet():
    assert {group: len(code) for group, code in PAGE.items()} == {"digits": 1, "parts": 4, "endpoint": 1}


def test_five_lines(monkeypatch, tmp_path, capsys):
    run(PAGE["digits"], monkeypatch, tmp_path)
    assert capsys.readouterr().out.startswith("['1'] [1] [1.]")


def test_three_scikit_learn_models_and_where_examples_exit(monkeypatch, tmp_path, capsys):
    pytest.importorskip("sklearn")
    names = run(PAGE["parts"], monkeypatch, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1,000 examples; left at tier 1: [\d.]+%, tier 2: [\d.]+%", printed[11 + 1])
    shares = names["decisions"].exit_shares()
    assert 0.4 < shares[0] < 0.95
    assert names["table"].n == 1000
    assert names["table"].bound is not None
    assert names["careful"].decide(names["x"][1000:]).exit_shares()[0] < shares[0]
    tiers = [line for line in printed if re.match(r"tier [12]: ", line)]
    assert len(tiers) == 2
    assert [line for line in printed if line.startswith("tier 1 voted 1.00")]


def test_an_endpoint(monkeypatch, tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("multipart", reason="python-multipart, which FastAPI needs for files")
    from starlette.testclient import TestClient

    app = run(PAGE["endpoint"], monkeypatch, tmp_path)["app"]
    client = TestClient(app)
    name, png, label = digits.test_examples(3)[2]
    answer = client.post("/digit", files={"image": (name, png)})
    assert (answer.status_code, answer.json()["name"]) == (200, str(label))
    refused = client.post("/digit", files={"image": (name, b"no image")})
    assert (refused.status_code, "expected a PNG or JPEG" in refused.json()["detail"]) == (422, True)
