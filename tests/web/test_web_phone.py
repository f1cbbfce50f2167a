"""A phone as a device of the cascade, in a real browser: the same answers as a Pi, with and without a network."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from phone import CHROMIUM, CONFIG, DIST, Hub, Phone, closed_port, needs_a_phone, server, until
from programs import Program, edge

from coe import zoo
from coe.cascade import Decisions
from coe.config.open import open_cascade
from coe.models.inputs import InputDecoder
from coe.zoo.digits import FOLDER, test_examples
from edge.config import default_config, read_config

pytestmark = needs_a_phone
pytest.importorskip("onnxruntime")

PI = """
task: zoo:digits
tiers:
  - name: device
    members: [zoo:digits/mosaic.onnx, zoo:digits/stroke.onnx, zoo:digits/loom.onnx]
    agreement: unanimous
  - {name: cloud, address: "127.0.0.1:%d", model: digits, deadline_ms: 20000}
source: {kind: digits}
"""
VIOLATES = """(what) => new Promise((resolve) => {
  document.addEventListener('securitypolicyviolation', (event) => resolve(event.effectiveDirective), { once: true });
  const script = document.createElement('script');
  script.textContent = 'document.title = "taken over"';
  if (what === 'inline') document.body.append(script);
  else fetch('http://localhost:1/').catch(() => undefined);
})"""
WEBGPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
SAME = ("id", "label", "exit_tier", "asked", "members", "degraded")
Examples = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def digits() -> Examples:
    return [(name, png) for name, png, _ in test_examples()]


@pytest.fixture(scope="module")
def here(digits) -> Decisions:
    """What the device's own tier says of every digit, as `coe-edge` would alone."""
    config = read_config(default_config())
    cascade = open_cascade(config.cascade)
    batch = InputDecoder(config.cascade.task.input_spec).batch([name for name, _ in digits], [png for _, png in digits])
    run = cascade.start(batch)
    run.step()
    told = run.decisions()
    cascade.close()
    return told


@pytest.fixture(scope="module")
def disagreed(digits, here) -> Examples:
    """The digits on which the three small models disagree."""
    return [digit for digit, vote in zip(digits, here.vote, strict=True) if vote < 1]


def decided_by_a_pi(folder: Path, hub: Hub, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `coe-edge` says of the same files, with the same models and the same server; by id."""
    config = folder / "pi.yaml"
    config.write_text(PI % hub.grpc_port, encoding="utf-8")
    with edge(folder, config) as program:
        assert program.end() == 0, program.complained
        records = {record["id"]: record for record in program.records if "label" in record}
    return {name: records[name] for name in names}


def check_same(phones: list[dict[str, Any]], pis: dict[str, dict[str, Any]]) -> None:
    for row in phones:
        record = pis[row["id"]]
        assert {key: row[key] for key in SAME} == {key: record[key] for key in SAME}
        assert row["vote"] == pytest.approx(record["vote"], abs=1e-6)
        assert row["tier_votes"] == pytest.approx(record["tier_votes"], abs=1e-6)
        assert row["score"] == pytest.approx(record["score"], abs=1e-4)


def outputs_here(examples: Examples, path: Path | None = None) -> np.ndarray:
    """(B, M, L) float32: what each member of a device says, by the Python runtime; the bundled digits' by itself."""
    config = read_config(path or default_config())
    cascade = open_cascade(config.cascade)
    decoder = InputDecoder(config.cascade.task.input_spec)
    rows = [decoder.batch([name], [png]).x for name, png in examples]
    members = cascade.tiers[0].members  # type: ignore[attr-defined]
    outputs = np.stack([[member.predict(member.prepare(x))[0] for member in members] for x in rows])
    cascade.close()
    return outputs


def test_digits_are_decided_as_by_coe_edge(phone, hub, digits, disagreed, tmp_path):
    chosen = digits[:40] + disagreed[:10]
    phone.open(hub.url)
    rows = phone.decide(chosen)
    check_same(rows, decided_by_a_pi(tmp_path, hub, [name for name, _ in chosen]))
    assert sum(row["exit_tier"] > 1 for row in rows) >= 10
    assert np.abs(np.array(phone.outputs(chosen)) - outputs_here(chosen)).max() < 1e-4
    assert phone.complaints == []


@pytest.mark.slow
def test_a_thousand_digits_are_decided_as_by_coe_edge(phone, hub, digits, tmp_path):
    phone.open(hub.url)
    rows = [row for at in range(0, len(digits), 100) for row in phone.decide(digits[at : at + 100])]
    check_same(rows, decided_by_a_pi(tmp_path, hub, [name for name, _ in digits]))
    assert len(rows) == 1000
    told = np.concatenate([np.array(phone.outputs(digits[at : at + 100])) for at in range(0, len(digits), 100)])
    assert np.abs(told - outputs_here(digits)).max() < 1e-4


@pytest.mark.slow
def test_without_a_network_the_page_opens_and_decides_and_what_waited_is_corrected_once(
    phone, start, digits, disagreed
):
    waiting = disagreed[:6]
    with start() as hub:
        phone.open(hub.url)
        phone.ready_for_no_network()
    phone.page.reload()  # the server is gone
    phone.ready()
    rows = phone.decide(digits[:10] + waiting)
    assert len(rows) == 16
    alone = [row for row in rows if row["degraded"]]
    assert {row["id"] for row in alone} == {name for name, _ in waiting} | {
        name for name, _ in digits[:10] if name in dict(disagreed)
    }
    assert all(row["degraded"].startswith("unavailable: ") and row["exit_tier"] == 1 for row in alone)
    assert phone.text("#waiting") == f"{len(alone)} examples wait for the cloud."
    with start(like=hub) as again:
        phone.page.evaluate("window.coe.wake()")
        phone.page.wait_for_selector("#waiting:has-text('Nothing waits')")
        kept = {one["id"]: one for one in phone.kept()}
        assert again.examples_answered() == len(alone)  # each was asked about once
        for row in alone:
            assert kept[row["id"]]["correctedAt"] is not None
            assert kept[row["id"]]["before"] == row["label"]
        phone.page.reload()
        phone.ready()
        live = phone.decide(waiting)
        assert again.examples_answered() == len(alone) + len(waiting)
        assert [kept[row["id"]]["label"] for row in live] == [row["label"] for row in live]
        assert [kept[row["id"]]["exitTier"] for row in live] == [row["exit_tier"] for row in live]
    assert phone.complaints == []


@pytest.mark.slow
def test_what_waits_outlives_the_page_and_goes_by_itself_when_the_cloud_answers_again(phone, start, disagreed):
    with start() as hub:
        phone.open(hub.url)
    phone.decide(disagreed[:3])
    phone.page.close()
    with start(like=hub):
        other = Phone(phone.context)
        other.open(hub.url)
        other.page.wait_for_selector("#waiting:has-text('Nothing waits')")
        assert sorted(one["id"] for one in other.kept() if one["correctedAt"]) == sorted(n for n, _ in disagreed[:3])
        assert "by the cloud" in other.text("#recent")


@pytest.mark.slow
def test_only_the_server_is_ever_asked_and_the_policy_is_not_broken(phone, hub, disagreed):
    phone.open(hub.url)
    phone.ready_for_no_network()
    phone.decide(disagreed[:1])
    assert {urlsplit(url).netloc for url in phone.asked} == {urlsplit(hub.url).netloc}
    assert phone.complaints == []
    assert [phone.page.evaluate(VIOLATES, what) for what in ("fetch", "inline")] == ["connect-src", "script-src-elem"]


@pytest.mark.slow
def test_a_new_build_takes_over_once_no_page_of_the_old_one_is_open(phone, tmp_path, disagreed):
    page = tmp_path / "dist"
    shutil.copytree(DIST, page)
    with Hub(tmp_path, f"{CONFIG}device: {{page: {page}}}\n", closed_port(), closed_port()) as hub:
        phone.open(hub.url)
        phone.ready_for_no_network()
        document, worker = page / "index.html", page / "sw.js"
        document.write_text(document.read_text(encoding="utf-8").replace("coe device</title>", "anew</title>"))
        for packed in (*page.glob("*.gz"), *page.glob("*.br")):
            packed.unlink()
        worker.write_text(worker.read_text(encoding="utf-8").replace('"build":"', '"build":"new-'))
        phone.page.reload()
        phone.ready()
        assert phone.page.title() == "coe device"
        installed = (
            "async () => { const all = await navigator.serviceWorker.getRegistrations(); return !!all[0].waiting; }"
        )
        until(lambda: phone.page.evaluate(installed))
        phone.page.close()
        other = Phone(phone.context)
        until(lambda: _title(other, hub.url) == "anew")
        other.ready()
        assert other.decide(disagreed[:1])[0]["exit_tier"] > 1


def _title(phone: Phone, url: str) -> str:
    phone.page.goto(url)
    return str(phone.page.title())


@pytest.mark.slow
def test_the_page_can_be_installed(phone, hub):
    phone.open(hub.url)
    phone.ready_for_no_network()
    inside = phone.context.new_cdp_session(phone.page)
    manifest = inside.send("Page.getAppManifest")
    assert manifest["errors"] == []
    assert json.loads(manifest["data"])["display"] == "standalone"
    assert inside.send("Page.getInstallabilityErrors")["installabilityErrors"] in (
        [],
        [{"errorId": "in-incognito", "errorArguments": []}],
    )


def draw_a_seven(phone: Phone) -> None:
    box = phone.page.locator("#pad").bounding_box()
    x, y, side = box["x"], box["y"], box["width"]
    mouse = phone.page.mouse
    mouse.move(x + side * 0.3, y + side * 0.25)
    mouse.down()
    mouse.move(x + side * 0.7, y + side * 0.25, steps=8)
    mouse.move(x + side * 0.45, y + side * 0.8, steps=12)
    mouse.up()


@pytest.mark.slow
def test_a_drawn_digit_is_decided_and_told_in_words(phone, hub):
    phone.open(hub.url)
    draw_a_seven(phone)
    phone.page.wait_for_selector("#said:has-text('7')")
    assert "Decided on this phone" in phone.text("#where")
    assert phone.text("#why") == "3 of 3 members agreed. Nothing was sent."
    votes = phone.text("#votes")
    for member in ("mosaic", "stroke", "loom"):
        assert f"{member} said 7" in votes
    assert "100%" in phone.text("#tally")
    answer = phone.page.locator("#answer")
    assert answer.get_attribute("aria-live") == "polite"


@pytest.mark.slow
def test_the_pad_can_be_drawn_on_with_keys_alone(phone, hub):
    phone.open(hub.url)
    for _ in range(30):  # tab, until the pad has the focus
        phone.page.keyboard.press("Tab")
        if phone.page.evaluate("() => document.activeElement.id") == "pad":
            break
    for _ in range(10):
        phone.page.keyboard.press("ArrowDown")
    phone.page.keyboard.press("Enter")
    phone.page.wait_for_selector("#said:has-text('1')")
    phone.page.keyboard.press("Escape")
    assert phone.text("#keys").startswith("Arrow keys") is False  # cleared: the pen is put away


@pytest.mark.slow
def test_the_members_disagreement_is_told_with_who_said_what(phone, hub, disagreed):
    (name, png), *_ = disagreed
    phone.open(hub.url)
    phone.source("photo")
    phone.page.set_input_files("#file", {"name": f"{name}.png", "mimeType": "image/png", "buffer": png})
    phone.page.wait_for_selector("#where:has-text('Decided in the cloud')")
    assert "of it for the cloud" in phone.text("#cost")
    assert phone.page.locator("#votes li").count() == 3
    assert phone.page.locator("#votes [aria-label='against it:']").count() >= 1


@pytest.mark.slow
def test_a_photo_of_another_size_and_turn_is_prepared_as_on_a_pi(phone, hub):
    from PIL import Image

    digit = Image.open(FOLDER / "test" / "0000.png").convert("RGB").resize((640, 480), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    written = io.BytesIO()
    digit.save(written, "JPEG", quality=95, exif=exif)
    example = [("turned", written.getvalue())]
    phone.open(hub.url)
    told = np.array(phone.outputs(example))
    assert np.abs(told - outputs_here(example)).max() < 0.02  # browsers decode JPEG a level apart


@pytest.mark.slow
@pytest.mark.skipif("cifar10" not in zoo.installed(), reason="no bundled task of colour images: pip install ./zoo")
def test_a_task_of_colour_images_runs_as_on_a_pi_and_has_no_pad(phone, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(10)
    examples = []
    for number, size in enumerate([(32, 32), (48, 40), (30, 90), (200, 133)]):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        coarse.save(written := io.BytesIO(), "PNG")
        examples.append((f"colours-{number}", written.getvalue()))
    with server(tmp_path, config=zoo.find("cifar10/cloud.yaml").read_text(encoding="utf-8")) as hub:
        phone.open(hub.url)
        assert phone.page.is_hidden("#tab-pad")
        told = np.array(phone.outputs(examples))
        assert all(row["degraded"] is None for row in phone.decide(examples))
    assert np.abs(told - outputs_here(examples, zoo.find("cifar10/edge.yaml"))).max() < 1e-4
    assert phone.complaints == []


@pytest.mark.slow
def test_what_is_no_image_is_refused_in_words(phone, hub):
    phone.open(hub.url)
    phone.source("photo")
    phone.page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    phone.page.wait_for_selector("#why:has-text('expected a PNG or JPEG image')")
    phone.page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n"})
    phone.page.wait_for_selector("#why:has-text('cannot be decoded')")


@pytest.mark.slow
def test_the_camera_gives_shots_and_live_frames(phone, hub):
    phone.open(hub.url)
    phone.source("camera")
    phone.page.locator("#shoot").click()
    phone.page.wait_for_selector("#recent li[data-id^=shot-]", state="attached")
    phone.page.locator("#live").click()
    phone.page.wait_for_selector("#recent li[data-id^=frame-] ~ li[data-id^=frame-]", state="attached")
    assert phone.page.locator("#live").get_attribute("aria-pressed") == "true"
    phone.page.locator("#live").click()
    assert phone.page.locator("#live").get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_nothing_is_wider_than_a_small_phone(pick_up, hub, disagreed, scheme):
    phone = pick_up(color_scheme=scheme, viewport={"width": 360, "height": 740})
    phone.open(hub.url)
    draw_a_seven(phone)
    phone.page.wait_for_selector("#said:has-text('7')")
    phone.page.locator("#corner summary").click()
    phone.page.wait_for_selector("#corner-content table")
    for size in ("100%", "200%"):  # also for those who read large letters
        phone.page.evaluate("(size) => { document.documentElement.style.fontSize = size; }", size)
        assert phone.page.evaluate("() => document.documentElement.scrollWidth") <= 360, size


@pytest.mark.slow
def test_on_webgpu_it_is_the_same_answers(browser, hub, digits):
    chromium = browser.browser_type.launch(executable_path=CHROMIUM, args=["--no-sandbox", *WEBGPU])
    try:
        phone = Phone(chromium.new_context())
        phone.open(hub.url)
        phone.page.locator("#corner summary").click()
        choice = phone.page.get_by_role("button", name="WebGPU")
        if not phone.page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
            pytest.skip("this Chromium has no WebGPU adapter, not even one in software")
        choice.click()  # waits until it can be chosen
        phone.page.wait_for_url(hub.url)
        phone.ready()
        phone.page.locator("#corner summary").click()
        phone.page.wait_for_selector("#corner caption:has-text('webgpu')")
        told = np.array(phone.outputs(digits[:20]))
        assert np.abs(told - outputs_here(digits[:20])).max() < 1e-3
        assert (told.argmax(axis=2) == outputs_here(digits[:20]).argmax(axis=2)).all()
    finally:
        chromium.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_anybody_out(browser, hub, disagreed, scheme):
    if not AXE.is_file():
        pytest.skip(f"no axe-core in {AXE.parent} (npm ci, in web/)")
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": 360, "height": 740})
    phone = Phone(context)
    phone.open(hub.url)
    phone.page.add_script_tag(path=AXE)
    phone.page.locator("#corner summary").click()
    phone.page.wait_for_selector("#corner-content table")
    for name in ("pad", "camera", "photo"):
        phone.source(name)
        if name == "photo":
            (_, png), *_ = disagreed
            phone.page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png})
            phone.page.wait_for_selector("#where:has-text('cloud')")
        told = phone.page.evaluate("() => axe.run()")
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in told["violations"]] == []
    context.close()


@pytest.mark.slow
def test_a_token_is_asked_for_where_the_server_wants_one(phone, start, disagreed, tmp_path):
    certs = tmp_path / "certs"
    with Program("cloud.main", ["certs", "token", certs, "phone-1"], tmp_path) as issued:
        assert issued.end() == 0, issued.complained
        token = issued.said.strip()
    with start(more=f"security: {{tokens: {certs / 'tokens.yaml'}}}\n") as hub:
        phone.page.goto(hub.url)
        phone.page.wait_for_selector("#identity:visible")
        assert phone.text("#identity-why") == "The server wants a token."
        phone.page.fill("#token", "wrong")
        phone.page.locator("#identity button").click()
        phone.page.wait_for_selector("#identity-why:has-text('does not know this token')")
        phone.page.fill("#token", "a €")
        phone.page.locator("#identity button").click()
        phone.page.wait_for_selector("#identity-why:has-text('cannot be sent')")
        phone.page.fill("#token", token)
        phone.page.locator("#identity button").click()
        phone.ready()
        (row,) = phone.decide(disagreed[:1])
        assert (row["exit_tier"] > 1, row["degraded"]) == (True, None)
        scanned = Phone(phone.context.browser.new_context())
        scanned.open(f"{hub.url}#token={token}")
        assert "token" not in scanned.page.url
        assert scanned.decide(disagreed[:1])[0]["degraded"] is None
        scanned.context.close()


@pytest.mark.slow
def test_a_model_that_was_tampered_with_does_not_run(phone, hub):
    phone.context.route("**/models/*.onnx", lambda route: route.fulfill(body=b"something else"))
    phone.page.goto(hub.url)
    phone.page.wait_for_selector("#trouble:has-text('expected sha256')")
    assert phone.page.evaluate("() => window.coe === undefined")


@pytest.mark.slow
def test_a_client_certificate_is_enough_where_the_server_asks_for_one(browser, tmp_path, disagreed):
    certs = tmp_path / "certs"
    for arguments in (["init", certs, "--host", "localhost"], ["device", certs, "phone-1"]):
        with Program("cloud.main", ["certs", *arguments], tmp_path) as program:
            assert program.end() == 0, program.complained
    tls = f"{{certificate: {certs}/server.pem, key: {certs}/server.key, client_ca: {certs}/ca.pem}}"
    with server(tmp_path, f"security: {{tls: {tls}, allow: [phone-*]}}\n") as hub:
        origin = f"https://localhost:{hub.http_port}"
        shown = {"origin": origin, "certPath": certs / "phone-1.pem", "keyPath": certs / "phone-1.key"}
        context = browser.new_context(ignore_https_errors=True, client_certificates=[shown])
        phone = Phone(context)
        phone.open(f"{origin}/device/")
        (row,) = phone.decide(disagreed[:1])
        assert (row["exit_tier"] > 1, row["degraded"]) == (True, None)
        context.close()
