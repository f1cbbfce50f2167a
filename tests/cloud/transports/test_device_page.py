"""What `/device` hands out: the page, the cascade that runs in it, and what it says where either is missing."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loops import running
from rest_loopback import Client, Reply

from cloud.config import default_config, read_config
from cloud.security.certs import digest_of
from cloud.server import Server
from cloud.transports.device_page import DeviceFiles, _files, authority_pages, read_device_page
from coe import zoo
from coe.cascade import ConfigError, ModelError
from coe.config import Fields, Report
from coe.config.manifest import Task
from coe.models.input_spec import InputSpec
from coe.zoo.digits import MANIFEST

pytest.importorskip("onnxruntime")

SERVER = """
task: zoo:digits
model: {model}
tiers:
  - {{name: medium, members: [zoo:digits/ripple.onnx, zoo:digits/lattice.onnx], agreement: unanimous}}
  - {{name: best, members: [zoo:digits/pyramid.onnx]}}
server: {{grpc_port: 0, http_port: 0, grace_s: 1}}
"""
PHONE = """
task: zoo:digits
tiers:
  - {name: here, members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx], agreement: 2/3}
  - {name: away, address: "127.0.0.1:1", model: digits-best, deadline_ms: 750}
source: {kind: digits}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A server's config with more lines, beside files by name."""

    def written(*more: str, model: str = "digits", **files: str) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        path = tmp_path / "cloud.yaml"
        path.write_text(SERVER.format(model=model) + "\n".join(more), encoding="utf-8")
        return path

    return written


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A built page, as small as one can be."""
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<p>the page", encoding="utf-8")
    (folder / "assets" / "app-1.js").write_text("run()", encoding="utf-8")
    (folder / "assets" / "app-1.js.gz").write_bytes(gzip.compress(b"run()"))
    (folder / "assets" / "app-1.js.br").write_bytes(b"as brotli has it")
    (folder / "assets" / "ort-1.wasm").write_bytes(b"\0asm")
    (folder / "manifest.webmanifest").write_text("{}", encoding="utf-8")
    return folder


def told_by(path: Path) -> dict[str, Any]:
    device = read_config(path).device
    assert device is not None
    assert device.cascade is not None
    told: dict[str, Any] = json.loads(_files(device.cascade)["cascade.json"][0])
    return told


def findings(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_config(path)
    return str(error.value)


class Asked:
    """The server's HTTP port."""

    def __init__(self, path: Path) -> None:
        self.server = Server(read_config(path))
        self._running = running(self.server)

    def __enter__(self) -> Client:
        self._running.__enter__()
        return Client(self.server.http_port, None, self.server.core, None)  # type: ignore[arg-type]

    def __exit__(self, *error: Any) -> None:
        self._running.__exit__(*error)


def test_the_bundled_task_has_a_device_without_a_word_in_the_config(write):
    told = told_by(write(model="mine"))
    assert (told["task"], told["labels"]) == ("digits", list("0123456789"))
    here, away = told["tiers"]
    assert [member["name"] for member in here["members"]] == ["mosaic.onnx", "stroke.onnx", "loom.onnx"]
    assert here["agreement"] == "1/1"
    assert away == {"name": "cloud", "model": "mine", "deadline_ms": 2000}  # this server's, whatever its name
    *_, away = told_by(default_config())["tiers"]
    assert away["model"] == "digits"


def test_the_bundled_device_asks_for_the_model_it_names_where_that_is_served(write, monkeypatch, tmp_path):
    (tmp_path / "edge.yaml").write_text(PHONE, encoding="utf-8")
    monkeypatch.setattr("cloud.transports.device_page._bundled", lambda reference: tmp_path / "edge.yaml")
    assert told_by(write())["tiers"][-1]["model"] == "digits-best"
    assert told_by(write(model="mine"))["tiers"][-1]["model"] == "mine"


def test_an_edge_config_says_what_the_page_runs(write):
    told = told_by(write("device: {config: phone.yaml}", phone=PHONE + "when_unavailable: fail\n"))
    here, away = told["tiers"]
    assert (here["name"], here["agreement"], here["early"]) == ("here", "2/3", True)
    assert away == {"name": "away", "model": "digits-best", "deadline_ms": 750}
    assert told["keep_last_answer"] is False


def test_a_device_may_have_no_cloud_and_its_last_tier_no_rule(write):
    alone = PHONE.split("  - {name: away")[0] + "source: {kind: digits}\n"
    (here,) = told_by(write("device: {config: phone.yaml}", phone=alone))["tiers"]
    assert not {"agreement", "confidence"} & set(here)
    sure = PHONE.replace("agreement: 2/3", "confidence: 0.9")
    assert told_by(write("device: {config: phone.yaml}", phone=sure))["tiers"][0]["confidence"] == 0.9


def test_model_files_are_handed_out_under_their_checksum(write):
    device = read_config(write()).device
    assert device is not None
    assert device.cascade is not None
    files = _files(device.cascade)
    for member in json.loads(files["cascade.json"][0])["tiers"][0]["members"]:
        content, _, cached = files[member["file"]]
        assert content == zoo.find(f"digits/{member['name']}").read_bytes()
        assert hashlib.sha256(content).hexdigest() == member["sha256"]
        assert member["file"] == f"models/{member['sha256']}.onnx"
        assert len(content) == member["n_bytes"]
        assert "immutable" in cached


def test_a_model_file_that_is_not_what_its_manifest_says_is_not_handed_out(write, tmp_path):
    bad = tmp_path / "models"
    bad.mkdir()
    (bad / "manifest.yaml").write_text(MANIFEST.read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("stroke.onnx", "loom.onnx", "mosaic.onnx"):
        (bad / name).write_bytes(zoo.find(f"digits/{name}").read_bytes())
    (bad / "loom.onnx").write_bytes(b"something else")
    path = write(
        "device: {config: phone.yaml}", phone=PHONE.replace("zoo:digits/", "models/").replace("task: models", "")
    )
    device = read_config(path).device
    assert device is not None
    with pytest.raises(ModelError, match=r"loom\.onnx: expected sha256"):
        DeviceFiles(device)


@pytest.mark.parametrize(
    ("phone", "found"),
    [
        (
            PHONE.replace("digits-best", "other"),
            "tiers[1].model: expected one of digits, digits-medium, digits-best, got",
        ),
        (
            PHONE.replace("zoo:digits/stroke.onnx", "{file: zoo:digits/stroke.onnx, output_name: y}"),
            "tiers[0]: stroke.onnx: expected NCHW or NHWC in RGB",
        ),
        (
            PHONE.replace("stroke.onnx", "stroke.tflite"),
            "tiers[0]: stroke.tflite: expected ONNX that takes float32 or uint8",
        ),
        (PHONE.replace("agreement: 2/3", "agreement: 9/3"), "tiers[0].agreement: expected a share in (0, 1]"),
        (
            "task: zoo:digits\ntiers:\n  - {name: away, address: '127.0.0.1:1', model: digits}\n",
            "tiers[0]: expected local tiers, then at most one with an address",
        ),
        (
            "task: others\nlabels: [a, b]\ninput: {kind: image, size: [28, 28], channels: 1}\n"
            "tiers:\n  - {name: away, address: '127.0.0.1:1', model: digits}\n",
            "expected the task of this server, digits (fingerprint 9a69bcb62804), got others",
        ),
    ],
)
def test_an_edge_config_that_no_page_can_run_is_refused_with_what_was_expected(write, phone, found):
    assert f"device.config: {write().parent}/phone.yaml: {found}" in findings(
        write("device: {config: phone.yaml}", phone=phone)
    )


def test_settings_that_are_wrong_are_named(write, tmp_path):
    assert "device.config" in findings(write("device: {config: none.yaml}"))
    assert f"device.page: expected a folder with the built page, got {tmp_path / 'none'}" in findings(
        write("device: {page: none}")
    )
    assert "device.pages: unknown" in findings(write("device: {pages: dist}"))


def test_a_task_that_is_not_bundled_has_no_device_until_one_is_named(write, page, tmp_path):
    text = write(f"device: {{page: {page}}}").read_text(encoding="utf-8")
    (tmp_path / "manifest.yaml").write_text(MANIFEST.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "cloud.yaml").write_text(text.replace("task: zoo:digits", "task: manifest.yaml"), encoding="utf-8")
    device = read_config(tmp_path / "cloud.yaml").device
    assert device is not None
    assert device.cascade is None
    with Asked(tmp_path / "cloud.yaml") as client:
        assert client.get("/device/").status == 200
        told = client.get("/device/cascade.json")
        assert (told.status, told.json["error"]) == (404, f"no cascade for phones: {device.why}")
        assert "device: {config: edge.yaml}" in device.why


def test_a_bundled_edge_config_that_no_page_can_run_is_no_error(tmp_path):
    report = Report("cloud.yaml")
    task = Task("numbers", ("0", "1"), InputSpec("tensor", (4,)))
    device = read_device_page(Fields({}, report), tmp_path, task, "zoo:digits", ("numbers",))
    assert device is not None
    assert (device.cascade, report.findings) == (None, [])
    assert "expected the task of this server, numbers" in device.why


def test_the_page_and_what_it_fetches_are_served(write, page):
    with Asked(write(f"device: {{page: {page}}}")) as client:
        assert client.get("/device").headers["location"] == "/device/"
        document = client.get("/device/")
        assert document.body == b"<p>the page"
        policy = document.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self' 'wasm-unsafe-eval'" in policy
        assert "unsafe-inline" not in policy
        assert document.headers["cache-control"] == "no-cache"
        assert document.headers["permissions-policy"] == "camera=(self), microphone=(), geolocation=()"
        cascade = client.get("/device/cascade.json")
        assert cascade.headers["content-type"] == "application/json"
        (member, *_) = cascade.json["tiers"][0]["members"]
        model = client.get(f"/device/{member['file']}")
        assert hashlib.sha256(model.body).hexdigest() == member["sha256"]
        assert client.get("/device/models/none.onnx").status == 404


def test_files_are_compressed_for_those_who_take_it_and_kept_where_their_name_says_their_content(
    write, page, monkeypatch
):
    monkeypatch.setattr("starlette.responses.guess_type", lambda name: ("text/strange", None))  # of this machine
    with Asked(write(f"device: {{page: {page}}}")) as client:
        plain = client.get("/device/assets/app-1.js")
        packed = client.get("/device/assets/app-1.js", **{"Accept-Encoding": "gzip, deflate"})
        assert (plain.body, gzip.decompress(packed.body)) == (b"run()", b"run()")
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        smaller = client.get("/device/assets/app-1.js", **{"Accept-Encoding": "gzip, deflate, br;q=1.0"})
        assert (smaller.body, smaller.headers["content-encoding"]) == (b"as brotli has it", "br")
        for reply in (plain, packed, smaller):
            assert reply.headers["content-type"].startswith("text/javascript")
            assert reply.headers["vary"] == "accept-encoding"
            assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
        wasm = client.get("/device/assets/ort-1.wasm", **{"Accept-Encoding": "gzip"})
        assert (wasm.body, wasm.headers["content-type"]) == (b"\0asm", "application/wasm")
        assert client.get("/device/manifest.webmanifest").headers["content-type"] == "application/manifest+json"


def test_an_installed_package_has_its_runtime_as_xz_and_packs_it_anew(write, page):
    wasm = b"\0asm" + bytes(3000)
    (page / "assets" / "run-2.wasm.xz").write_bytes(lzma.compress(wasm))
    with Asked(write(f"device: {{page: {page}}}")) as client:
        packed = client.get("/device/assets/run-2.wasm", **{"Accept-Encoding": "br, gzip"})
        plain = client.get("/device/assets/run-2.wasm", **{"Accept-Encoding": "gzip;q=0"})
        assert (gzip.decompress(packed.body), packed.headers["content-encoding"]) == (wasm, "gzip")
        assert (plain.body, plain.headers["content-encoding"]) == (wasm, "identity")
        assert {reply.headers["content-type"] for reply in (plain, packed)} == {"application/wasm"}
        assert client.get("/device/assets/run-3.wasm").status == 404


def test_the_servers_own_pages_travel_compressed(write, page):
    (page / "index.html.gz").write_bytes(gzip.compress(b"<p>the page", mtime=0))
    with Asked(write(f"device: {{page: {page}}}")) as client:
        for path in ("/", "/device/"):
            plain, packed = client.get(path), client.get(path, **{"Accept-Encoding": "gzip"})
            assert packed.headers["content-encoding"] == "gzip"
            assert gzip.decompress(packed.body) == plain.body
            assert "accept-encoding" in packed.headers["vary"]


def test_the_ca_beside_the_servers_certificate_is_handed_out_to_everybody_with_how_to_install_it(tmp_path):
    from cloud.security.authority import make_authority, make_server
    from cloud.security.tls import issuer_beside

    assert authority_pages(issuer_beside(None)) == {}
    ca = make_authority(days=10)
    make_server(ca, ["localhost"], 5).write(tmp_path, "server", force=False)
    assert issuer_beside(tmp_path / "server.pem") is None  # there is none
    make_authority(days=10).write(tmp_path, "ca", force=False)
    assert issuer_beside(tmp_path / "server.pem") is None  # another one's
    ca.write(tmp_path, "ca", force=True)
    pages = authority_pages(issuer_beside(tmp_path / "server.pem"))
    (text, _), (pem, headers) = pages["/ca"](""), pages["/ca.pem"]("")
    assert headers["Content-Type"] == "application/x-x509-ca-cert"
    assert pem == (tmp_path / "ca.pem").read_bytes()
    assert digest_of(pem).encode() in text
    assert b"Certificate Trust Settings" in text
    assert b"Android" in text


def test_a_phone_is_told_how_much_of_a_picture_the_models_take_and_what_one_looks_like(write, page):
    with Asked(write(f"device: {{page: {page}}}")) as client:
        cascade = client.get("/device/cascade.json").json
        assert cascade["send"] == {"size": [28, 28], "fit": "stretch"}
        assert cascade["example"].startswith("data:image/png;base64,")
        assert cascade["input"]["invert"] == "when-light"
    with Asked(write(f"device: {{page: {page}, send: captured}}")) as client:
        assert client.get("/device/cascade.json").json["send"] is None


def test_a_page_that_is_not_built_says_how_to_build_it(write, monkeypatch, tmp_path):
    monkeypatch.setattr("cloud.transports.device_page.PLACES", (tmp_path / "nowhere",))
    with Asked(write()) as client:
        for path in ("/device", "/device/"):
            reply = client.get(path)
            assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert b"npm ci\nnpm run build" in reply.body
        assert client.get("/device/cascade.json").status == 200


def test_a_server_may_hand_out_nothing(write, page):
    with Asked(write("device: {enabled: false}")) as client:
        assert [client.get(path).status for path in ("/device", "/device/", "/device/cascade.json")] == [404, 404, 404]


def test_models_are_for_known_callers_and_the_page_is_for_everybody(write, page, tmp_path):
    token = "s3cret" * 8
    digest = hashlib.sha256(token.encode()).hexdigest()
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"phone-1: {{sha256: [{digest}]}}\n", encoding="utf-8")
    tokens.chmod(0o600)
    with Asked(write(f"device: {{page: {page}}}", "security: {tokens: tokens.yaml}")) as client:
        assert client.get("/device/").status == 200
        refused: Reply = client.get("/device/cascade.json")
        assert refused.status == 401
        assert "Basic" not in refused.headers["www-authenticate"]  # a browser would ask in a window of its own
        known = {"Authorization": f"Bearer {token}"}
        cascade = client.get("/device/cascade.json", **known)
        file = cascade.json["tiers"][0]["members"][0]["file"]
        assert client.get(f"/device/{file}").status == 401
        assert client.get(f"/device/{file}", **known).status == 200
