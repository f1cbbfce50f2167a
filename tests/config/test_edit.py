"""Single settings changed in a YAML text: what they say afterwards, and that not a word of the rest is touched."""

from __future__ import annotations

import os
import stat

import pytest
import yaml

from coe.cascade import ConfigError
from coe.config.yaml_edit import CannotEdit, replace_file, with_values

BLOCK = """\
# the door camera
task: zoo:digits   # bundled

tiers:
  # small ones
  - name: device   # on the Pi
    # the cheapest first
    members:
      - a.onnx     # 1 us
      - b.onnx

    agreement: "2/3"   # "2 of 3"
    threads: 4         # measured in May
  - name: cloud
    address: 10.0.0.7:8001
"""
SET = {"parallel": False, "threads": 2, "order": "measured"}

TEXTS = {
    "block": BLOCK,
    "flow": "tiers: [{name: device, members: [a, b]}, {name: cloud, address: 'a:1'}] # all\n",
    "flow over lines": "tiers:\n- {name: device,  # here\n   members: [a, b],\n  }\n",
    "members first": "tiers:\n- members: [a, b]\n  agreement: unanimous\nlast: 1\n",
    "members alone": "tiers:\n-   members:   # two\n    - a\n    - b\n# end\n",
    "no line end": "tiers:\n  - name: device",
    "line ends of another system": BLOCK.replace("\n", "\r\n"),
    "a value over lines": "tiers:\n  - note: |\n      two\n      lines\n    name: device\n",
    "an empty value": "tiers:\n  - name: device\n    threads:\n",
    "quoted": "tiers:\n  - 'name': \"device # 1\"\n    'threads': 1\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_settings_are_as_asked_for_and_everything_else_reads_as_before(text):
    before = yaml.safe_load(text)
    after = with_values(text, ("tiers", 0), SET)
    before["tiers"][0].update(SET)
    assert yaml.safe_load(after) == before
    assert with_values(after, ("tiers", 0), SET) == after


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_line_but_that_of_the_setting_is_touched(text):
    after = with_values(text, ("tiers", 0), {"order": "measured"})
    assert after.replace(", order: measured", "").replace("order: measured", "").split() == text.split()
    assert ("\r\n" in after) == ("\r\n" in text)
    if "\r\n" in text:
        assert after.count("\n") == after.count("\r\n")


def test_a_comment_stays_with_its_setting():
    assert with_values(BLOCK, ("tiers", 0), SET) == BLOCK.replace("threads: 4 ", "threads: 2 ").replace(
        "on the Pi\n", "on the Pi\n    order: measured\n    parallel: false\n"
    )


def test_of_several_tiers_the_one_that_was_meant_is_changed():
    after = yaml.safe_load(with_values(BLOCK, ("tiers", 1), {"tiers": 2}))
    assert after["tiers"][1] == {"name": "cloud", "address": "10.0.0.7:8001", "tiers": 2}
    assert after["tiers"][0] == yaml.safe_load(BLOCK)["tiers"][0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tiers:\n- &a {name: device}\n- *a\n", "anchors"),
        ("base: &b {threads: 1}\ntiers:\n- <<: *b\n  name: device\n", "anchors"),
        ("tiers:\n- name: device\n  threads: [1]\n", "not one plain value"),
        ("tiers:\n- name: device\n  threads: 1\n  threads: 1\n", "given twice"),
        ("tiers:\n- name: device\ntiers:\n- name: device\n", "given twice"),
        ("tiers: []\n", "could not be followed"),
        ("tiers: device\n", "could not be followed"),
        ("tiers: [\n", "could not be followed"),
    ],
)
def test_a_text_that_cannot_be_changed_safely_is_left_to_people(text, why):
    with pytest.raises(CannotEdit, match=why):
        with_values(text, ("tiers", 0), SET)


def test_a_word_that_would_read_as_something_else_is_not_written():
    with pytest.raises(CannotEdit, match="would not read as meant"):
        with_values(BLOCK, ("tiers", 0), {"order": "on"})


def test_a_file_is_replaced_as_a_whole_with_its_mode_and_through_a_link(tmp_path):
    file, link = tmp_path / "pi.yaml", tmp_path / "link.yaml"
    file.write_text("a: 1\n")
    file.chmod(0o640)
    link.symlink_to(file)
    seen = []
    replace_file(link, "a: 2\r\n", lambda path: seen.append((path.parent, path.read_bytes())))
    assert link.is_symlink()
    assert file.read_bytes() == b"a: 2\r\n"
    assert seen == [(tmp_path, b"a: 2\r\n")]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link.yaml", "pi.yaml"]


def test_a_text_that_does_not_pass_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    file = tmp_path / "pi.yaml"
    file.write_text("a: 1\n")

    def refuse(path):
        raise ConfigError(["no"])

    with pytest.raises(ConfigError):
        replace_file(file, "a: 2\n", refuse)
    assert file.read_text() == "a: 1\n"
    assert os.listdir(tmp_path) == ["pi.yaml"]
