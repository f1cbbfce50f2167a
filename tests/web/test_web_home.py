"""The page on a home network: no HTTPS, a server or a storage that is not well, proxies, two tabs, slow answers.

Quick: one server and one browser for all. What the server answers is changed on its way, in the browser.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from phone import INSECURE, Hub, Phone, needs_a_phone, until

from coe.config.open import open_cascade
from coe.models.inputs import InputDecoder
from coe.zoo.digits import test_examples
from edge.config import default_config, read_config

pytestmark = needs_a_phone
pytest.importorskip("onnxruntime")
INFER = "**/v2/models/**"
FULL = "IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError'); };"
BLOCKED = """
for (const name of ['indexedDB', 'localStorage', 'caches']) {
  Object.defineProperty(window, name, { get() { throw new DOMException('blocked', 'SecurityError'); } });
}"""


@pytest.fixture(scope="module")
def disagreed() -> list[tuple[str, bytes]]:
    """Some digits on which the three small models disagree."""
    config = read_config(default_config())
    cascade, found = open_cascade(config.cascade), []
    decoder = InputDecoder(config.cascade.task.input_spec)
    for name, png, _ in test_examples(400):
        run = cascade.start(decoder.batch([name], [png]))
        run.step()
        if not run.is_done:
            found.append((name, png))
    cascade.close()
    return found


@pytest.fixture
def fresh(pick_up) -> Callable[..., Phone]:
    """A phone whose requests a test may answer itself."""
    return lambda **options: pick_up(service_workers="block", **options)


def draw(phone: Phone, *strokes: tuple[tuple[float, float], ...]) -> None:
    """Each stroke a line through points in shares of the pad."""
    box = phone.page.locator("#pad").bounding_box()
    mouse = phone.page.mouse
    for first, *rest in strokes:
        mouse.move(box["x"] + box["width"] * first[0], box["y"] + box["height"] * first[1])
        mouse.down()
        for x, y in rest:
            mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y, steps=6)
        mouse.up()


SEVEN = ((0.3, 0.25), (0.7, 0.25), (0.45, 0.8))


def photo(phone: Phone, example: tuple[str, bytes]) -> None:
    phone.source("photo")
    phone.page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": example[1]})


def recent(phone: Phone) -> list[str]:
    return [str(text) for text in phone.page.locator("#recent li span").all_inner_texts()]


def test_over_plain_http_from_another_name_drawing_is_decided(fresh, hub: Hub):
    phone = fresh()
    phone.open(f"http://{INSECURE}:{hub.http_port}/device/")
    assert phone.page.evaluate("isSecureContext") is False
    draw(phone, SEVEN)
    phone.page.wait_for_selector("#said:has-text('7')")
    assert phone.complaints == []


def test_a_browser_without_simd_is_called_too_old(fresh, hub: Hub):
    phone = fresh()
    phone.page.add_init_script("WebAssembly.validate = () => false")
    phone.page.goto(hub.url)
    phone.page.wait_for_selector("#trouble:has-text('too old')")
    assert phone.page.is_hidden("#work")


def test_a_browser_without_newer_functions_works(fresh, hub: Hub, disagreed):
    phone = fresh()
    phone.page.add_init_script("""
      delete PointerEvent.prototype.getCoalescedEvents; delete AbortSignal.timeout; delete window.BroadcastChannel;
      for (const name of ['locks', 'storage']) Object.defineProperty(navigator, name, { value: undefined });""")
    phone.open(hub.url)
    draw(phone, SEVEN)
    phone.page.wait_for_selector("#said:has-text('7')")
    (row,) = phone.decide(disagreed[:1])
    assert row["degraded"] is None
    assert phone.complaints == []


def test_a_drawing_of_several_strokes_is_one_decision_and_the_next_stroke_begins_another(fresh, hub: Hub):
    phone = fresh()
    phone.open(hub.url)
    draw(phone, ((0.35, 0.2), (0.3, 0.5), (0.65, 0.5)), ((0.6, 0.2), (0.6, 0.85)))  # a four
    phone.page.wait_for_selector("#said:has-text('4')")
    assert len(recent(phone)) == 1
    draw(phone, SEVEN)
    phone.page.wait_for_selector("#said:has-text('7')")
    assert len(recent(phone)) == 2


def test_with_keys_enter_decides_and_nothing_before(fresh, hub: Hub):
    phone = fresh()
    phone.open(hub.url)
    phone.page.locator("#pad").focus()
    for _ in range(10):
        phone.page.keyboard.press("ArrowDown")
    phone.page.wait_for_timeout(1200)  # longer than a pen rests
    assert recent(phone) == []
    phone.page.keyboard.press("Enter")
    phone.page.wait_for_selector("#said:has-text('1')")
    phone.page.keyboard.press("Enter")
    assert len(recent(phone)) == 1


def test_clear_resets_the_answer(fresh, hub: Hub):
    phone = fresh()
    phone.open(hub.url)
    draw(phone, SEVEN)
    phone.page.wait_for_selector("#said:has-text('7')")
    phone.page.locator("#clear").click()
    assert phone.text("#said") == "?"
    assert phone.text("#where") == "Nothing decided yet"
    assert phone.page.is_hidden("#seen")


def held_back(phone: Phone) -> Callable[[], None]:
    """The next call is answered when what this returns is called; those after it at once."""
    waiting: list[Any] = []

    def handle(route: Any) -> None:
        if waiting:
            route.continue_()
        else:
            waiting.append(route)

    phone.context.route(INFER, handle)

    def let_go() -> None:
        until(lambda: phone.page.wait_for_timeout(20) or waiting)
        waiting[0].continue_()

    return let_go


def asked(phone: Phone, hub: Hub, example: tuple[str, bytes]) -> tuple[Phone, Callable[[], None]]:
    """The phone while it asks about the example, and what lets the answer come."""
    phone.open(hub.url)
    let_go = held_back(phone)
    photo(phone, example)
    phone.page.wait_for_selector("#where:has-text('The members disagree')")
    return phone, let_go


def test_an_older_answer_goes_to_the_list_and_not_over_a_newer_one(fresh, hub: Hub, disagreed):
    phone, let_go = asked(fresh(), hub, disagreed[0])
    phone.source("pad")
    draw(phone, SEVEN)
    phone.page.wait_for_selector("#said:has-text('7')")
    let_go()
    phone.page.wait_for_selector("#recent li ~ li", state="attached")
    assert phone.text("#said") == "7"
    assert "on this phone" in phone.text("#where")


def test_what_is_cleared_while_it_is_asked_about_is_not_shown(fresh, hub: Hub, disagreed):
    phone, let_go = asked(fresh(), hub, disagreed[0])
    phone.source("pad")
    phone.page.locator("#clear").click()
    let_go()
    phone.page.wait_for_selector("#recent li", state="attached")
    assert phone.text("#said") == "?"


LOGIN = {"status": 404, "content_type": "text/html", "body": "<h1>Please log in</h1>"}
OTHERS = [
    LOGIN,
    LOGIN | {"status": 200},
    LOGIN | {"status": 403},
    {"status": 400, "content_type": "application/json", "body": '{"error": "no", "by": "a proxy"}'},
]


@pytest.mark.parametrize("answer", OTHERS, ids=["404", "200", "403", "a JSON of its own"])
def test_what_a_proxy_answers_loses_nothing(fresh, hub: Hub, disagreed, answer):
    phone = fresh()
    phone.open(hub.url)
    phone.context.route(INFER, lambda route: route.fulfill(**answer))
    (row,) = phone.decide(disagreed[:1])
    assert row["degraded"].startswith("unavailable")
    phone.page.evaluate("window.coe.wake()")
    phone.page.wait_for_selector("#waiting:has-text('1 example waits')")
    phone.context.unroute(INFER)
    phone.page.evaluate("window.coe.wake()")
    phone.page.wait_for_selector("#waiting:has-text('Nothing waits')")
    assert "by the cloud" in recent(phone)[0]


def test_what_the_server_itself_refuses_is_given_up_with_its_reason(fresh, hub: Hub, disagreed):
    phone = fresh()
    phone.open(hub.url)
    phone.context.route(INFER, lambda route: route.abort())
    phone.decide(disagreed[:1])
    phone.context.unroute(INFER)
    refusal = {"status": 409, "content_type": "application/json", "body": json.dumps({"error": "of another task"})}
    phone.context.route(INFER, lambda route: route.fulfill(**refusal))
    phone.page.evaluate("window.coe.wake()")
    phone.page.wait_for_selector("#recent li:has-text('of another task')", state="attached")
    assert "Nothing waits" in phone.text("#waiting")


def test_a_reload_while_the_cloud_is_asked_loses_nothing(fresh, hub: Hub, disagreed):
    phone, gate = fresh(), threading.Event()
    phone.open(hub.url)
    phone.context.route(
        INFER, lambda route: route.continue_() if gate.is_set() else None
    )  # the first is never answered
    photo(phone, disagreed[0])
    phone.page.wait_for_selector("#where:has-text('The members disagree')")
    until(lambda: phone.page.wait_for_timeout(20) or phone.kept())
    gate.set()
    phone.page.reload()
    phone.ready()
    phone.page.wait_for_selector("#recent li:has-text('by the cloud')", state="attached")
    phone.page.wait_for_selector("#waiting:has-text('Nothing waits')")


def test_two_tabs_show_the_same(fresh, hub: Hub, disagreed):
    phone = fresh()
    phone.open(hub.url)
    other = Phone(phone.context)
    other.open(hub.url)
    phone.context.route(INFER, lambda route: route.abort())
    phone.decide(disagreed[:1])
    other.page.wait_for_selector("#waiting:has-text('1 example waits')")
    assert recent(other) == ["◐ this phone alone"]
    phone.context.unroute(INFER)
    other.page.evaluate("window.coe.wake()")
    phone.page.wait_for_selector("#waiting:has-text('Nothing waits')")
    phone.page.wait_for_selector("#recent li:has-text('by the cloud')", state="attached")


@pytest.mark.parametrize("storage", [FULL, BLOCKED], ids=["full", "blocked"])
def test_a_storage_that_takes_nothing_costs_no_answer_and_what_waits_is_in_memory(fresh, hub: Hub, disagreed, storage):
    phone = fresh()
    phone.page.add_init_script(storage)
    phone.open(hub.url)
    draw(phone, SEVEN)
    phone.page.wait_for_selector("#said:has-text('7')")
    phone.page.wait_for_selector("#storage:has-text('keeps nothing')")
    phone.context.route(INFER, lambda route: route.abort())
    phone.decide(disagreed[:1])
    phone.page.wait_for_selector("#waiting:has-text('1 example waits')")
    phone.context.unroute(INFER)
    phone.page.evaluate("window.coe.wake()")
    phone.page.wait_for_selector("#waiting:has-text('Nothing waits')")
    assert "by the cloud" in recent(phone)[0]
    assert phone.complaints == []


def test_by_this_phone_alone_changes_once_it_is_confirmed_and_the_bytes_count(fresh, hub: Hub, disagreed):
    phone = fresh()
    phone.open(hub.url)
    phone.context.route(INFER, lambda route: route.abort())
    photo(phone, disagreed[0])
    phone.page.wait_for_selector("#where:has-text('by this phone alone')")
    assert "1 by it alone" in phone.text("#tally")
    phone.context.unroute(INFER)
    phone.page.evaluate("window.coe.wake()")
    phone.page.wait_for_selector("#where:has-text('Asked again')")
    assert "alone" not in phone.text("#tally")
    phone.page.wait_for_selector("#tally .card:has-text('Bytes saved') .value:text-is('0 B')")  # all of it was sent
    assert phone.text("#since").startswith("since ")


def test_tiers_are_numbered_as_by_coe_edge(fresh, hub: Hub, disagreed):
    phone = fresh()
    phone.open(hub.url)
    (row,) = phone.decide(disagreed[:1])
    photo(phone, disagreed[0])
    phone.page.wait_for_selector(f"#where:has-text('in the cloud, tier {row['exit_tier']}')")


def test_the_camera_stops_while_the_page_is_hidden(fresh, hub: Hub):
    phone = fresh()
    phone.open(hub.url)
    phone.source("camera")
    runs = "() => document.getElementById('video').srcObject?.getTracks()[0].readyState === 'live'"
    until(lambda: phone.page.evaluate(runs))
    phone.page.evaluate("window.track = document.getElementById('video').srcObject.getTracks()[0]; 1")
    hide = """(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
      document.dispatchEvent(new Event('visibilitychange')); }"""
    phone.page.evaluate(hide, True)
    until(lambda: phone.page.evaluate("window.track.readyState") == "ended")
    phone.page.evaluate(hide, False)
    until(lambda: phone.page.evaluate(runs))


def test_the_pad_is_there_before_the_models_and_what_is_drawn_is_decided_with_them(fresh, hub: Hub):
    phone, gate = fresh(), threading.Event()
    held: list[Any] = []
    phone.context.route("**/*.onnx", lambda route: route.continue_() if gate.is_set() else held.append(route))
    phone.page.goto(hub.url)
    phone.page.wait_for_selector("#state-text:has-text('loading, ')")
    until(lambda: phone.page.wait_for_timeout(20) or len(held) == 3)
    draw(phone, SEVEN)
    phone.page.wait_for_selector("#why:has-text('models are still loading')")
    assert phone.page.is_visible("#loading")
    gate.set()
    for route in held:
        route.continue_()
    phone.page.wait_for_selector("#said:has-text('7')")
    assert phone.page.is_hidden("#loading")


def test_of_a_large_photo_goes_what_the_models_see_and_dark_on_white_is_inverted(fresh, hub: Hub, disagreed):
    from PIL import Image, ImageOps

    phone, (name, png) = fresh(), disagreed[0]
    sent: list[int] = []
    phone.context.on("request", lambda one: sent.append(len(one.post_data_buffer)) if one.method == "POST" else None)
    phone.open(hub.url)
    (small,) = phone.decide([(name, png)])
    paper = ImageOps.invert(Image.open(io.BytesIO(png)).convert("L")).resize((1120, 1120), Image.Resampling.NEAREST)
    paper.save(large := io.BytesIO(), "PNG")
    photo(phone, ("paper", large.getvalue()))
    phone.page.wait_for_selector("#where:has-text('in the cloud')")
    assert phone.text("#said") == str(small["label"])
    assert len(sent) == 2
    assert sent[1] < 2000
    assert phone.page.is_visible("#seen-pixels")
    assert (
        phone.page.evaluate("document.getElementById('seen-pixels').getContext('2d').getImageData(0, 0, 1, 1).data[0]")
        < 50
    )
    assert "28 grey pixels" in phone.text("#wanted-text")
    assert phone.page.is_visible("#wanted-example")


def test_the_models_run_in_a_worker(fresh, hub: Hub):
    phone = fresh()
    phone.open(hub.url)
    assert [worker.url.rsplit("/", 1)[1].split("-")[0] for worker in phone.page.workers] == ["worker"]


def test_the_form_for_a_token_can_always_be_reached(fresh, hub: Hub):
    phone = fresh()
    phone.open(hub.url)
    assert phone.page.is_hidden("#identity")
    phone.page.locator("#show-identity").click()
    assert phone.page.evaluate("document.activeElement.id") == "token"


def test_a_server_that_does_not_know_the_token_any_more_is_told_apart(fresh, hub: Hub, disagreed):
    phone = fresh()
    phone.page.add_init_script("localStorage.setItem('coe-device-token', 'old')")
    phone.open(hub.url)
    refusal = {"status": 401, "content_type": "application/json", "body": json.dumps({"error": "expected a token"})}
    phone.context.route(INFER, lambda route: route.fulfill(**refusal))
    (row,) = phone.decide(disagreed[:1])
    assert row["degraded"] is not None
    phone.page.wait_for_selector("#identity-why:has-text('does not know this token')")


def test_a_task_that_a_page_cannot_run_says_why(fresh, hub: Hub):
    phone = fresh()
    why = {"status": 404, "content_type": "application/json", "body": json.dumps({"error": "no cascade: of texts"})}
    phone.context.route("**/cascade.json", lambda route: route.fulfill(**why))
    phone.page.goto(hub.url)
    phone.page.wait_for_selector("#trouble:has-text('no cascade: of texts')")
