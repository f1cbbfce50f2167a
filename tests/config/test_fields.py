"""Settings read with a trail: every finding at once, each saying where, expected, got, and the mend."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.cascade import ConfigError
from coe.config import Fields, Report, read_yaml
from coe.config.fields import format_yaml, parse_yaml


def fields_of(text, trail=""):
    return Fields(parse_yaml(text), Report("a.yaml"), trail)


READERS = {
    "raw": lambda fields: fields.raw("key"),
    "text": lambda fields: fields.text("key"),
    "flag": lambda fields: fields.flag("key"),
    "integer": lambda fields: fields.integer("key", low=1, high=9),
    "number": lambda fields: fields.number("key", low=0.5, high=9),
    "choice": lambda fields: fields.choice("key", ("stretch", "crop")),
    "texts": lambda fields: fields.texts("key"),
    "numbers": lambda fields: fields.numbers("key"),
    "integers": lambda fields: fields.integers("key"),
    "section": lambda fields: fields.section("key").content,
    "sections": lambda fields: [entry.content for entry in fields.sections("key")],
    "entries": lambda fields: [(name, entry.content) for name, entry in fields.entries("key")],
}


@pytest.mark.parametrize(
    ("reader", "text", "value"),
    [
        ("raw", "key: 2/3", "2/3"),
        ("text", "key: a", "a"),
        ("flag", "key: true", True),
        ("flag", "key: no", False),
        ("integer", "key: 9", 9),
        ("number", "key: 1", 1.0),
        ("number", "key: 0.5", 0.5),
        ("choice", "key: crop", "crop"),
        ("texts", "key: [a, b]", ("a", "b")),
        ("texts", "key: a", ("a",)),
        ("numbers", "key: [1, 0.5]", (1.0, 0.5)),
        ("numbers", "key: 2", (2.0,)),
        ("integers", "key: [28, 28]", (28, 28)),
        ("section", "key: {a: 1}", {"a": 1}),
        ("sections", "key: [{a: 1}, {b: 2}]", [{"a": 1}, {"b": 2}]),
        ("entries", "key: {m: {a: 1}}", [("m", {"a": 1})]),
    ],
)
def test_a_good_setting_is_read_without_a_finding(reader, text, value):
    fields = fields_of(text)
    assert READERS[reader](fields) == value
    assert type(READERS[reader](fields)) is type(value)
    fields.finish()
    assert fields.report.findings == []


@pytest.mark.parametrize(
    ("reader", "text", "value", "finding"),
    [
        ("raw", "{}", None, "expected a value, got nothing (add it)"),
        ("text", "{}", "", "expected a text, got nothing (add it)"),
        ("text", "key:", "", "expected a text, got nothing (add it)"),
        ("text", 'key: ""', "", 'expected a text, got ""'),
        ("text", "key: 3", "", 'expected a text, got 3 (write "3" in quotes)'),
        ("text", "key: yes", "", "expected a text, got true (write it in quotes: YAML reads yes and on as true)"),
        ("text", "key: [a]", "", "expected a text, got a list"),
        ("flag", "key: 1", False, "expected true or false, got 1"),
        ("flag", 'key: "yes"', False, 'expected true or false, got "yes"'),
        ("integer", "key: yes", 1, "expected a whole number, got true"),
        ("integer", "key: 1.5", 1, "expected a whole number, got 1.5"),
        ("integer", "key: 0", 1, "expected 1 to 9, got 0"),
        ("integer", "key: 10", 1, "expected 1 to 9, got 10"),
        ("number", "key: true", 0.5, "expected a number, got true"),
        ("number", 'key: "1"', 0.5, 'expected a number, got "1"'),
        ("number", "key: .nan", 0.5, "expected 0.5 to 9, got nan"),
        ("number", "key: .inf", 0.5, "expected 0.5 to 9, got inf"),
        ("number", "key: 0.4", 0.5, "expected 0.5 to 9, got 0.4"),
        ("choice", "{}", "stretch", "expected one of stretch, crop, got nothing (add it)"),
        ("choice", "key: crp", "stretch", 'expected one of stretch, crop, got "crp"; did you mean "crop"?'),
        ("choice", "key: zoom", "stretch", 'expected one of stretch, crop, got "zoom"'),
        ("choice", 'key: ""', "stretch", 'expected one of stretch, crop, got ""'),
        (
            "choice",
            "key: no",
            "stretch",
            "expected one of stretch, crop, got false (write it in quotes: YAML reads no and off as false)",
        ),
        ("texts", "{}", (), "expected a list of texts, got nothing (add it)"),
        ("texts", "key: 3", (), "expected a list, got 3"),
        ("texts", "key: {a: 1}", (), "expected a list, got a mapping"),
        ("numbers", "key: true", (), "expected a list, got true"),
        ("integers", "key: 28", (), "expected a list, got 28"),
        ("section", "{}", {}, "expected a section, got nothing (add it)"),
        ("section", "key: 3", {}, "expected a mapping, got 3"),
        ("sections", "key: {a: 1}", [], "expected a list, got a mapping"),
        ("sections", "{}", [], "expected a list of sections, got nothing (add it)"),
        ("entries", "key: [1]", [], "expected a mapping, got a list"),
    ],
)
def test_a_wrong_setting_is_one_finding_and_a_value_of_the_right_kind(reader, text, value, finding):
    fields = fields_of(text)
    assert READERS[reader](fields) == value
    assert fields.report.findings == [f"key: {finding}"]


@pytest.mark.parametrize(
    ("reader", "text", "value", "trail", "finding"),
    [
        ("texts", "key: [a, 3]", ("a",), "key[1]", 'expected a text, got 3 (write "3" in quotes)'),
        ("numbers", "key: [1, true, x]", (1.0,), "key[1]", "expected a number, got true"),
        ("numbers", "key: [1, .nan]", (1.0, 1.0), "key", "expected finite numbers, got [1, nan]"),
        ("integers", "key: [28, 2.5]", (28,), "key[1]", "expected a whole number, got 2.5"),
        ("sections", "key: [{a: 1}, 3]", [{"a": 1}, {}], "key[1]", "expected a mapping, got 3"),
        ("sections", "key: [null]", [{}], "key[0]", "expected a mapping, got nothing"),
        ("entries", "key: {m: 3}", [("m", {})], "key.m", "expected a mapping, got 3"),
    ],
)
def test_a_wrong_entry_is_named_by_its_place(reader, text, value, trail, finding):
    fields = fields_of(text, "tiers[0]")
    assert READERS[reader](fields) == value
    assert fields.report.findings[0] == f"tiers[0].{trail}: {finding}"


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda fields: fields.text("key", "cpu"), "cpu"),
        (lambda fields: fields.text("key", None), None),
        (lambda fields: fields.flag("key", True), True),
        (lambda fields: fields.integer("key", None), None),
        (lambda fields: fields.integer("key", 3), 3),
        (lambda fields: fields.number("key", None), None),
        (lambda fields: fields.number("key", 0), 0.0),
        (lambda fields: fields.choice("key", ("a", "b"), "b"), "b"),
        (lambda fields: fields.texts("key", ["a"]), ("a",)),
        (lambda fields: fields.numbers("key", [1.0]), (1.0,)),
        (lambda fields: fields.section("key", {"a": 1}).content, {"a": 1}),
    ],
)
@pytest.mark.parametrize("text", ["{}", "key:"])
def test_a_setting_left_out_or_left_empty_takes_its_default(read, value, text):
    fields = fields_of(text)
    assert read(fields) == value
    assert fields.report.findings == []


def test_trails_run_from_the_file_to_the_entry():
    fields = fields_of("tiers: [{input: {mean: [0, x]}}, {input: 3}]")
    for tier in fields.sections("tiers"):
        tier.section("input").numbers("mean")
    assert fields.report.findings == [
        'tiers[0].input.mean[1]: expected a number, got "x"',
        "tiers[1].input: expected a mapping, got 3",
        "tiers[1].input.mean: expected a list of numbers, got nothing (add it)",
    ]


def test_every_finding_of_a_file_is_raised_at_once_and_named_with_it():
    fields = fields_of("{a: 1, b: x, zeta: 0}")
    fields.text("a")
    fields.number("b")
    fields.flag("c")
    fields.warn("b", "has no effect")
    fields.finish()
    with pytest.raises(ConfigError) as caught:
        fields.report.check()
    assert str(caught.value).splitlines() == [
        'a.yaml: a: expected a text, got 1 (write "1" in quotes)',
        'a.yaml: b: expected a number, got "x"',
        "a.yaml: c: expected true or false, got nothing (add it)",
        "a.yaml: zeta: unknown setting (known: a, b, c)",
    ]
    assert caught.value.source == "a.yaml"
    assert len(caught.value.findings) == 4
    assert fields.report.warnings == ["b: has no effect"]


def test_a_report_without_findings_raises_nothing_even_with_warnings():
    Report("a.yaml", warnings=["agreement: careful"]).check()


def test_an_unknown_setting_comes_with_the_nearest_known_one():
    fields = fields_of("{agreemnt: 2/3, 7: 1}", "tiers[1]")
    fields.raw("agreement", None)
    fields.raw("address", None)
    fields.finish()
    assert fields.report.findings == [
        'tiers[1].agreemnt: unknown setting (did you mean "agreement"?)',
        "tiers[1].7: unknown setting (known: address, agreement)",
    ]


@pytest.mark.parametrize(("content", "kind"), [(None, "nothing"), ([], "a list"), ("x", '"x"'), (3, "3")])
def test_a_section_that_is_no_mapping_is_a_finding_and_reads_as_empty(content, kind):
    fields = Fields(content, Report("a.yaml"))
    assert not fields.has("key")
    assert fields.report.findings == [f"file: expected a mapping, got {kind}"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10**400) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES, st.sampled_from(sorted(READERS)))
def test_whatever_a_file_holds_reading_it_finds_faults_and_never_fails(content, reader):
    fields = Fields({"key": content}, Report("a.yaml"))
    value = READERS[reader](fields)
    fields.finish()
    if reader in ("integer", "number"):
        assert math.isfinite(value)
        assert 0.5 <= value <= 9
    if reader == "choice":
        assert value in ("stretch", "crop")


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("a: b: c", "line 1, column 5: not YAML: mapping values are not allowed in this context"),
        ("a: 1\nb: [", "line 3, column 1: not YAML: did not find expected node content"),
        ("", "expected a mapping of settings, got nothing"),
        ("- a", "expected a mapping of settings, got a list"),
        ("just words", 'expected a mapping of settings, got "just words"'),
        ("when: 2024-99-99", "not YAML: month must be in 1..12"),
        ("a: !!python/object/apply:os.system [echo]", "line 1, column 4: not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_settings_file_says_where_and_why(tmp_path, text, finding):
    path = tmp_path / "a.yaml"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: {finding}")


@pytest.mark.parametrize(
    "text", ["a: !!bool maybe", "a: !!int x", "a: !!timestamp x", "a: " + 5000 * "9", "a: \x00", "a: *b"]
)
def test_a_value_that_yaml_itself_cannot_read_is_a_config_error(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="not YAML"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (
            "a: 1\nsecurity: {allow: [a]}\nsecurity: {}",
            'line 3, column 1: "security" is given twice, first in line 2',
        ),
        ("a: {never_send: [x], never_send: []}", 'line 1, column 22: "never_send" is given twice, first in line 1'),
        ("tiers:\n- name: a\n  name: b", 'line 3, column 3: "name" is given twice, first in line 2 (leave one out)'),
        ("a: &a {b: 1, b: 2}\nc: {<<: *a}", 'line 1, column 14: "b" is given twice, first in line 1 (leave one out)'),
        ("no: 1", 'line 1, column 1: YAML reads the key no as true or false (write "no" in quotes)'),
        ("a: 1:30", 'line 1, column 4: YAML reads 1:30 as 90 (write "1:30" in quotes, or the number itself)'),
        ("a: [1, 1:30:00.5]", "line 1, column 8: YAML reads 1:30:00.5 as 5400.5"),
        ("a: 010", 'line 1, column 4: YAML reads 010 as 8 (write "010" in quotes, or the number itself)'),
    ],
)
def test_what_yaml_would_misread_without_a_word_is_an_error_with_its_line(tmp_path, text, finding):
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: {finding}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("-1E+3", -1000.0),
        ("2.5e3", 2500.0),
        ("0.5", 0.5),
        ("0", 0),
        ("0x10", 16),
        ("1_000", 1000),
        ("'1:30'", "1:30"),
        ("'no'", "no"),
        ("1.2.3", "1.2.3"),
        ("127.0.0.1:8001", "127.0.0.1:8001"),
        ("2/3", "2/3"),
    ],
)
def test_a_number_is_what_it_looks_like(text, value):
    read = parse_yaml(f"a: {text}")["a"]
    assert (type(read), read) == (type(value), value)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6) | st.from_regex(r"[-+0-9.:eE_xo]{1,8}"), max_size=4))
def test_texts_that_are_written_are_read_back_as_texts(texts):
    texts = [text.strip() for text in texts]
    assert parse_yaml(format_yaml({"labels": texts})) == {"labels": texts}


def test_an_anchor_may_be_used_often_and_its_values_overridden():
    text = "a: &a {b: 1}\nc: [*a, *a]\nd: {<<: *a, b: 2}\ne: {<<: *a}"
    assert parse_yaml(text) == {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}], "d": {"b": 2}, "e": {"b": 1}}


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: No such file or directory$"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read: it is not UTF-8 text"):
        read_yaml(tmp_path / "latin.yaml")


@given(st.binary(max_size=40))
def test_any_bytes_are_settings_or_a_config_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "a.yaml"
    path.write_bytes(data)
    try:
        assert isinstance(read_yaml(path), dict)
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017
