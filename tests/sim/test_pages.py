"""The pages of studies: what they claim, what they explain, and that everybody can read them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from simulator import Program

from coe.config import format_seconds
from sim.output import DELAY_COLUMNS, SYMBOLS, document
from sim.records import DelayRow
from sim.studies.delays import BUSY, savings, verdict

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def row(system: str, delay_s: float, latency_s: float, **changes: object) -> DelayRow:
    kept = {"cascade": 0.98, "cloud-only": 0.0, "edge-only": 1.0}[system]
    made = DelayRow(
        system=system, delay_s=delay_s, n=1000, accuracy=0.99, deferral_rate=1 - kept, exits=(kept, 1 - kept),
        latency_mean_s=latency_s, latency_p50_s=latency_s, latency_p95_s=latency_s, latency_p99_s=latency_s,
        communication_mean_s=latency_s, bytes_sent_per_example=1000 * (1 - kept), bytes_received_per_example=0.0,
        predicted_mean_s=latency_s, achieved_delay_s=delay_s, achieved_delay_p99_s=delay_s, n_degraded=0, clock="real",
    )  # fmt: skip
    return replace(made, **changes)


def rows(delay_s: float, cascade_s: float, cloud_s: float, **changes: object) -> list[DelayRow]:
    return [
        row("cascade", delay_s, cascade_s, **changes),
        row("cloud-only", delay_s, cloud_s),
        row("edge-only", delay_s, 1e-4),
    ]


def test_no_saving_is_above_one_in_deferred():
    (one,) = savings(rows(0.1, 0.001, 0.1, communication_mean_s=1e-6, bytes_sent_per_example=1.0))
    assert (one["latency_ratio"], one["communication_ratio"], one["bytes_ratio"]) == pytest.approx((50, 50, 50))
    (one,) = savings(rows(0.1, 0.01, 0.1))
    assert one["latency_ratio"] == pytest.approx(10)


def test_a_busy_machine_is_a_warning_and_no_headline():
    both = rows(0.01, 0.001, 0.01) + rows(0.1, 0.01, 0.1, predicted_mean_s=0.008)
    assert [one["busy"] for one in savings(both)] == [False, True]
    lines = verdict(both)
    assert "at 10 ms, against the cloud alone: mean latency 10.0x lower" in lines[1]
    assert f"at 100 ms: {BUSY}: cascade of ensembles 10 ms, +25% of what is predicted" in lines[2]
    assert not any("100 ms, against the cloud alone" in line for line in lines)


def test_the_headline_names_its_delay_and_shows_all(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from sim.studies.delay_report import write_report
    from sim.studies.delays import DelayStudy

    each = {at: rows(at, at / 10, at) for at in (1e-6, 0.01, 0.1)}
    each[1.0] = rows(1.0, 0.1, 1.0, predicted_mean_s=0.05)
    every = [one for own in each.values() for one in own]
    latencies = {(one.system, one.delay_s): [one.latency_mean_s] * 3 for one in every}
    study = DelayStudy("digits", every, latencies, {}, "here", one_way=False)
    page = write_report(tmp_path / "report.html", study, None).read_text()
    assert (
        "lower mean latency than the cloud alone at 100 ms (1 us: 10.0x, 10 ms: 10.0x, 100 ms: 10.0x, 1 s: busy)"
        in page
    )
    assert "<p class=warning>at 1 s: " in page
    assert "<title>Where a cascade answers, and what that saves: digits</title>" in page


def test_traces_of_one_name_are_both_in_the_report(plain_path: Path, tmp_path: Path, sim: Program):
    pytest.importorskip("matplotlib")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(plain_path, tmp_path / folder / "test.tsv")
    paths = [tmp_path / folder / "test.tsv" for folder in ("a", "b", "b")]
    sim("report", *paths, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>Studies of cascades: a-test, b-test, b-test-2</h1>" in page
    for name in ("a-test", "b-test", "b-test-2"):
        assert f"Wrong agreements: {name}<" in page
        assert (tmp_path / "out" / f"{name}-errors.json").is_file()


def test_a_page_explains_the_symbols_in_it_and_no_others():
    page = document("t", "<p>by reach, in 3 us</p><svg><text>theta</text></svg>")
    assert "<dt>reach</dt>" in page
    assert "<dt>us</dt>" in page
    assert "<dt>theta</dt>" not in page
    assert "prefers-color-scheme: dark" in page
    plain = {"delay", "system", "mean", "accuracy", "p95", "p99"}  # words, and what p50 explains
    assert set(DELAY_COLUMNS) - plain <= set(SYMBOLS)
    assert format_seconds(1e-6) == "1 us"


@pytest.mark.slow
def test_reports_are_readable_on_a_phone_and_keep_nobody_out(trace_path: Path, tmp_path: Path, sim: Program):
    if CHROMIUM is None or not AXE.is_file():
        pytest.skip("no Chromium, or no axe-core (npm ci, in web/)")
    playwright = pytest.importorskip("playwright.sync_api")
    sim("--delays", "--clock", "virtual", "--out", tmp_path / "delays")
    sim("report", trace_path, "--out", tmp_path / "studies")
    sim("paper", "--out", tmp_path / "studies")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for folder in ("delays", "studies"):
            for scheme in ("light", "dark"):
                context = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 800})
                page = context.new_page()
                page.goto(f"file://{tmp_path / folder / 'report.html'}")
                assert page.evaluate("document.documentElement.scrollWidth") == 390
                page.add_script_tag(path=AXE)
                found = page.evaluate("() => axe.run()")["violations"]
                assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
        browser.close()
