"""The settings of the field: what is read, and what is wrong with them in one line each."""

from __future__ import annotations

import json

import pytest
import yaml

from coe.cascade import ConfigError
from coe.zoo import digits
from edge.config import read_config
from edge.field.config import AuditConfig
from edge.main import main


def config_of(folder, **settings) -> object:
    path = folder / "pi.yaml"
    base = {
        "task": "zoo:digits",
        "tiers": [
            {
                "name": "device",
                "members": [f"zoo:digits/{name}.onnx" for name in ("mosaic", "stroke", "loom")],
                "agreement": "unanimous",
            },
            {"name": "cloud", "address": "127.0.0.1:1", "model": "digits"},
        ],
    }
    path.write_text(yaml.safe_dump(base | settings))
    return path


def test_nothing_is_on_unless_it_is_asked_for(tmp_path):
    field = read_config(config_of(tmp_path)).field
    assert (field.never_send, field.privacy_filter, field.audit, field.drift, field.harvest) == (
        frozenset(),
        "",
        None,
        None,
        None,
    )


def test_everything_can_be_asked_for(tmp_path):
    (tmp_path / "privacy.py").write_text("def hold(value, votes):\n    return False\n")
    path = config_of(
        tmp_path,
        never_send=["3", "5"],
        privacy_filter="privacy.py:hold",
        audit={"share": 0.02, "max_mb_per_day": 5},
        drift={"bands": {"deferred": {"share": 0.02, "n": 1000}, "3 of 3": {"band": [0.9, 1.0]}}},
        harvest={"path": "harvest", "max_mb": 1, "when_full": "drop-oldest"},
    )
    field = read_config(path).field
    assert field.never_send == {3, 5}
    assert field.audit == AuditConfig(share=0.02, max_bytes_per_day=5e6)
    assert {baseline.what for baseline in field.drift.baselines} == {"deferred", "3 of 3"}
    assert (field.harvest.path, field.harvest.max_bytes, field.harvest.drop_oldest) == (tmp_path / "harvest", 1e6, True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"never_send": ["tree"]}, 'never_send[0]: expected a label of the task, got "tree"'),
        ({"privacy_filter": "nowhere.py:f"}, 'privacy_filter: "nowhere.py:f" cannot be loaded'),
        ({"audit": {"share": 2}}, "audit.share: expected 0 to 1, got 2"),
        ({"audit": {"shares": 0.1}}, 'audit.shares: unknown setting (did you mean "share"?)'),
        ({"drift": {}}, "drift.bands: expected at least one band (`coe-edge calibrate` prints them)"),
        ({"drift": {"bands": {"deferral": {"share": 0.1, "n": 9}}}}, "drift.bands.deferral: expected deferred"),
        ({"drift": {"bands": {"deferred": {"n": 9}}}}, "drift.bands.deferred: expected `share:` and `n:`"),
        ({"drift": {"bands": {"deferred": {"band": [0.3, 0.1]}}}}, "drift.bands.deferred.band: expected two shares"),
        ({"harvest": {}}, "harvest.path: expected a text, got nothing (add it)"),
        ({"audits": {"share": 0.1}}, 'audits: unknown setting (did you mean "audit"?)'),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, settings, words):
    with pytest.raises(ConfigError) as caught:
        read_config(config_of(tmp_path, **settings))
    assert words in str(caught.value)
    assert len(caught.value.findings) == 1


def test_calibrate_prints_a_section_that_the_config_takes(tmp_path, capsys):
    folder = tmp_path / "calibration"
    folder.mkdir()
    for name, data, _ in digits.test_examples(60):
        (folder / f"{name}.png").write_bytes(data)
    (folder / "torn.png").write_bytes(b"nothing")
    assert main(["calibrate", "--config", str(config_of(tmp_path)), "--data", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["unreadable"] == 1
    assert sum(round(entry["share"] * 60) for entry in values["bands"].values()) == 60
    assert main(["calibrate", "--config", str(config_of(tmp_path)), "--data", str(folder)]) == 0
    section = yaml.safe_load(capsys.readouterr().out)
    drift = read_config(config_of(tmp_path, **section)).field.drift
    assert {baseline.what: baseline.share for baseline in drift.baselines} == {
        what: entry["share"] for what, entry in values["bands"].items()
    }


def test_what_is_never_sent_needs_models_that_tell_it(tmp_path):
    path = config_of(tmp_path, tiers=[{"name": "cloud", "address": "127.0.0.1:1", "model": "digits"}], never_send=["3"])
    with pytest.raises(ConfigError, match="never_send: expected models of this device to tell, got a first tier else"):
        read_config(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", ".", "--limit", "-3"], "argument --limit: expected a whole number from 1, got -3"),
        (["--data", ".", "--limit", "0"], "argument --limit: expected a whole number from 1, got 0"),
        (["--data", "nowhere"], '--data: expected a folder, a file or -, got "nowhere" (no such file)'),
    ],
)
def test_what_calibrate_cannot_take_is_the_users_error(tmp_path, capsys, arguments, message):
    try:
        code = main(["calibrate", "--config", str(config_of(tmp_path)), *arguments])
    except SystemExit as ended:  # argparse's own
        code = ended.code
    assert code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_calibrate_with_nothing_to_read_is_the_users_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["calibrate", "--config", str(config_of(tmp_path)), "--data", str(tmp_path / "empty")]
    assert main(arguments) == 2
    assert "in a folder per label, or a labels.tsv, got nothing" in capsys.readouterr().err


def test_a_window_of_the_spool_and_a_scene_s_task_are_checked(tmp_path):
    spool = {"send_between": ["22:00-06:00", "25:00-26:00", "8:00-9:00", "07:00-07:00"]}
    with pytest.raises(ConfigError) as caught:
        read_config(config_of(tmp_path, when_unavailable="spool", spool=spool))
    assert [finding.partition(":")[0] for finding in caught.value.findings] == [
        f"spool.send_between[{number}]" for number in (1, 2, 3)
    ]
    assert '(write "22:00-06:00")' in caught.value.findings[0]
    found = read_config(config_of(tmp_path, same_scene={"difference": 4, "max_age_s": 60})).field.same_scene
    assert (found.difference, found.remember, found.max_age_s) == (4, 16, 60)
