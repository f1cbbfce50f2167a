"""`coe-edge spool`, and the settings of a spool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from spools import Clock, example, finish, local, put

from coe.cascade import ConfigError
from edge.config import read_config
from edge.main import main
from edge.sources import Example
from edge.spool.store import SpoolStore

CONFIG = """
task: zoo:digits
tiers:
  - {name: device, members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]}
  - {name: cloud, address: "127.0.0.1:8001", model: digits}
source: {kind: folder, path: in, watch: true}
"""
SPOOL = "state: state\nwhen_unavailable: spool\n"


def config(folder: Path, *more: str) -> Path:
    path = folder / "pi.yaml"
    path.write_text(CONFIG + "".join(f"{line}\n" for line in more))
    return path


def filled(path: Path, *names: str) -> SpoolStore:
    spool = read_config(path).spool
    assert spool is not None
    store = SpoolStore(spool, [].append, Clock())
    put(store, *names)
    return store


def status(path: Path, capsys) -> dict[str, object]:
    assert main(["spool", "status", "--json", "--config", str(path)]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_status_says_what_waits_and_what_became_of_the_others_while_an_agent_runs(tmp_path, capsys):
    path = config(tmp_path, SPOOL, "spool: {max_count: 3}")
    store = filled(path, *"abcde")
    finish(store)
    found = status(path, capsys)
    assert {key: found[key] for key in ("waiting", "corrected", "offered", "dropped", "error")} == {
        "waiting": 2,
        "corrected": 1,
        "offered": 5,
        "dropped": {"count": 2},
        "error": "",
    }
    assert main(["spool", "status", "--config", str(path)]) == 0
    said = capsys.readouterr().out
    assert "2 wait for an answer, the oldest for 0 s" in said
    assert "2 dropped (count: 2)" in said
    assert "at most 3 examples" in said
    store.close()


def test_an_export_copies_all_and_removes_none(tmp_path, capsys):
    path = config(tmp_path, SPOOL)
    store = filled(path, "a/../b.png", "c")
    pixels = np.arange(4, dtype=np.uint8).reshape(2, 2)
    store.confirm(store.put(Example("array", pixels), local("array")))
    assert main(["spool", "export", str(tmp_path / "copy"), "--config", str(path)]) == 0
    assert "3 examples copied" in capsys.readouterr().out
    listed = [json.loads(line) for line in (tmp_path / "copy" / "spool.jsonl").read_text().splitlines()]
    assert [entry["local"]["id"] for entry in listed] == ["a/../b.png", "c", "array"]
    assert [entry["file"] for entry in listed] == ["00000001-a_.._b.png.bin", "00000002-c.bin", "00000003-array.npy"]
    assert (tmp_path / "copy" / listed[0]["file"]).read_bytes() == example("a/../b.png").value
    assert np.load(tmp_path / "copy" / listed[2]["file"]).tolist() == pixels.tolist()
    assert listed[0]["local"]["degraded"] == "unavailable: gone"
    assert listed[0]["local"]["spooled"] == listed[0]["key"]
    assert status(path, capsys)["waiting"] == 3
    assert main(["spool", "export", str(tmp_path / "copy"), "--config", str(path)]) == 2
    assert "expected a new folder or an empty one" in capsys.readouterr().err
    store.close()


def test_a_clear_asks_first_counts_and_leaves_a_running_agent_alone(tmp_path, capsys):
    path = config(tmp_path, SPOOL)
    store = filled(path, *"abc")
    assert main(["spool", "clear", "--yes", "--config", str(path)]) == 1
    assert "is in use by another coe-edge" in capsys.readouterr().err
    store.close()
    assert main(["spool", "clear", "--config", str(path)]) == 2
    assert capsys.readouterr().err == "coe-edge: 3 examples would be dropped for good (add --yes)\n"
    assert status(path, capsys)["waiting"] == 3
    assert main(["spool", "clear", "--yes", "--config", str(path)]) == 0
    assert capsys.readouterr().out == "3 examples dropped\n"
    found = status(path, capsys)
    assert (found["waiting"], found["dropped"]) == (0, {"cleared": 3})


def test_without_a_spool_it_says_so(tmp_path, capsys):
    assert main(["spool", "status", "--config", str(config(tmp_path))]) == 2
    assert "when_unavailable: expected spool" in capsys.readouterr().err
    path = config(tmp_path, SPOOL)
    assert main(["spool", "status", "--config", str(path)]) == 0
    assert capsys.readouterr().out.startswith("nothing was ever spooled: there is no ")
    assert status(path, capsys)["exists"] is False


def test_a_file_that_is_no_spool_is_told_in_a_line(tmp_path, capsys):
    path = config(tmp_path, SPOOL)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "spool.db").write_bytes(b"nonsense" * 1000)
    assert main(["spool", "status", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "spool.db cannot be read: file is not a database" in said


def test_the_settings_of_a_spool_are_read(tmp_path):
    settings = "{max_mb: 2, max_count: 7, max_age_h: 1, drop: newest, order: newest, link_share: 0.5, sync: normal}"
    spool = read_config(config(tmp_path, SPOOL, f"spool: {settings}")).spool
    assert spool is not None
    assert (spool.path, spool.max_bytes) == (tmp_path / "state" / "spool.db", 2_000_000)
    assert (spool.max_count, spool.max_age_s, spool.drop, spool.order) == (7, 3600, "newest", "newest")
    assert (spool.link_share, spool.sync) == (0.5, "normal")


def test_every_wrong_setting_of_a_spool_is_named(tmp_path):
    wrong = "{max_mb: 0, max_count: many, drop: first, link_share: 2, sync: off, size: 3}"
    with pytest.raises(ConfigError) as told:
        read_config(config(tmp_path, SPOOL, f"spool: {wrong}"))
    found = str(told.value)
    for finding in (
        "spool.max_mb: expected 1 to 1000000, got 0",
        'spool.max_count: expected a whole number, got "many"',
        'spool.drop: expected one of oldest, newest, got "first"',
        "spool.link_share: expected 0.001 to 1, got 2",
        "spool.sync: ",
        "spool.size: unknown setting",
    ):
        assert finding in found
    assert len(told.value.findings) == 6


def test_a_spool_that_has_no_effect_is_a_warning(tmp_path):
    read = read_config(config(tmp_path, "spool: {max_mb: 3}"))
    assert read.spool is None
    assert any("spool: has no effect (write `when_unavailable: spool`)" in warning for warning in read.warnings)


def test_the_state_folder_is_the_configs_then_systemds_then_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    assert read_config(config(tmp_path)).state == tmp_path / "home" / "coe-edge" / "pi"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert read_config(config(tmp_path)).state == Path("/var/lib/one")
    assert read_config(config(tmp_path, SPOOL)).state == tmp_path / "state"


@pytest.mark.parametrize(
    ("lines", "source", "expected"),
    [
        ([], "watch: true", False),
        (["state: here"], "watch: true", True),
        (["state: here"], "watch: true, remember: false", False),
        ([], "watch: true, remember: true", True),
        (["state: here"], "watch: false", False),
    ],
)
def test_a_watched_folder_remembers_where_there_is_a_state_folder(tmp_path, monkeypatch, lines, source, expected):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    path = config(tmp_path, *lines)
    path.write_text(path.read_text().replace("watch: true", source))
    assert read_config(path).source.remember is expected


def test_to_remember_without_watching_is_the_users_error(tmp_path):
    path = config(tmp_path)
    path.write_text(path.read_text().replace("watch: true", "remember: true"))
    with pytest.raises(ConfigError, match=r"source\.remember: expected it with `watch: true` alone"):
        read_config(path)
