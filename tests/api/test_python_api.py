"""`import coe`: a cascade of one's own models in Python, of files, objects and callables, here and on a server."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import coe
from coe.cascade.tier import LocalTier
from coe.config.manifest import read_manifest
from coe.models import load as load_member
from coe.zoo import digits

LABELS = ["good", "scratched", "bent"]
FILES = sorted((digits.FOLDER / "test").glob("*.png"))[:5]
SMALL = [f"zoo:digits/{name}.onnx" for name in ("mosaic", "stroke", "loom")]
DIGITS = [str(number) for number in range(10)]


def saying(*outputs):
    """A callable that answers every example with the output of its first number."""
    table = np.array(outputs, dtype=np.float32)
    return lambda x: table[np.asarray(x).reshape(len(x), -1)[:, 0].astype(int) % len(table)]


def one_hot(label, n_labels=3):
    return np.eye(n_labels)[label] * 0.8 + 0.2 / n_labels


class Fitted:
    """As much of a scikit-learn classifier as a member needs."""

    n_features_in_ = 2

    def __init__(self, classes, column):
        self.classes_ = np.array(classes)
        self.column = column

    def predict_proba(self, x):
        assert x.ndim == 2
        return np.eye(len(self.classes_))[x[:, self.column].astype(int)]


AGREEING, DISSENTING = saying(one_hot(0), one_hot(1)), saying(one_hot(0), one_hot(2))


def small(**options):
    return coe.Cascade(
        [[AGREEING, AGREEING, DISSENTING], saying(one_hot(0), one_hot(2))],
        labels=LABELS,
        input=coe.Tensor(1),
        **options,
    )


def test_where_members_agree_that_is_the_answer_and_the_last_tier_has_the_others():
    decisions = small().decide(np.array([[0.0], [1.0], [0.0]]))
    assert decisions.names == ["good", "bent", "good"]
    assert decisions.labels.tolist() == [0, 2, 0]
    assert decisions.exit_tier.tolist() == [1, 2, 1]
    assert decisions.vote.tolist() == [1.0, 1.0, 1.0]
    assert decisions.degraded == [None] * 3
    assert decisions.exit_shares().tolist() == pytest.approx([2 / 3, 1 / 3])
    assert decisions.tier_votes[0, 0] == 1.0
    assert decisions.asked.tolist() == [3, 1, 3]


@pytest.mark.parametrize("agreement", ["2/3", 0.66, "majority", "2 of 3", coe.Agreement("2/3")])
def test_agreement_is_written_as_in_a_config(agreement):
    assert small(agreement=agreement).decide(np.array([[1.0]])).exit_tier.tolist() == [1]


def test_an_ensemble_may_have_a_rule_of_its_own():
    tiers = [coe.Ensemble([AGREEING, AGREEING, DISSENTING], agreement="2/3", name="device"), AGREEING]
    cascade = coe.Cascade(tiers, labels=LABELS, input=coe.Tensor(1))
    assert cascade.decide([[1.0]]).exit_tier.tolist() == [1]
    assert cascade.tiers[0].name == "device"
    sure = coe.Cascade(
        [coe.Ensemble([AGREEING], confidence=0.9), DISSENTING], labels=LABELS, input=coe.Tensor(1)
    ).decide([[1.0]])
    assert (sure.exit_tier.tolist(), sure.names) == ([2], ["bent"])


def test_a_decimal_just_above_a_fraction_is_warned_of():
    with pytest.warns(UserWarning, match=r'tiers\[0\].agreement: 0.67 of 3 members needs 3 votes.*write "2/3"'):
        small(agreement=0.67)


@pytest.mark.parametrize("parallel", [False, True])
@given(rows=st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=20))
def test_its_votes_are_those_of_a_voting_classifier(parallel, rows):
    """scikit-learn's `VotingClassifier(voting="hard")` takes the lowest label in a tie; ours the higher mean score."""
    x = np.array(rows, dtype=float)
    members = [lambda x, column=column: np.eye(3)[x[:, column].astype(int)] for column in range(3)]
    tier = coe.Ensemble(members, agreement="2/3", parallel=parallel)
    with coe.Cascade([tier, members[0]], labels=LABELS, input=coe.Tensor(3)) as cascade:
        found = cascade.decide(x)
    counts = np.apply_along_axis(np.bincount, 1, x.astype(int), minlength=3)  # as VotingClassifier counts
    is_plain = counts.max(axis=1) >= 2  # no tie of three
    assert found.labels[is_plain].tolist() == counts.argmax(axis=1)[is_plain].tolist()
    assert ((found.exit_tier == 1) == is_plain).all()


def test_three_scikit_learn_models_vote_as_its_own_voting_classifier_does():
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.ensemble import VotingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.tree import DecisionTreeClassifier

    x, y = make_classification(800, 8, n_classes=3, n_informative=5, random_state=0)
    names = np.array(LABELS)[y]
    voting = VotingClassifier(
        [("a", LogisticRegression()), ("b", DecisionTreeClassifier(random_state=0)), ("c", GaussianNB())], voting="hard"
    ).fit(x[:400], names[:400])
    ballots = np.stack([member.predict_proba(x[400:]).argmax(axis=1) for member in voting.estimators_])
    tied = (np.sort(ballots, axis=0)[1:] != np.sort(ballots, axis=0)[:-1]).all(axis=0)
    for labels in (LABELS, LABELS[::-1]):  # its classes are put into our order, whatever it is
        with coe.Cascade([_named(voting)], labels=labels) as cascade:
            ours = np.array(cascade.predict(x[400:]))
        assert (ours == voting.predict(x[400:]))[~tied].all()
    assert 0 < (~tied).sum() < 400 or not tied.any()


def _named(voting):
    """Its members, with the names of the classes that it encoded."""

    class Member:
        n_features_in_ = voting.n_features_in_
        classes_ = voting.classes_

        def __init__(self, inner):
            self.predict_proba = inner.predict_proba

    return [Member(inner) for inner in voting.estimators_]


def test_classes_of_a_member_are_put_into_the_order_of_the_labels():
    tiers = [[Fitted(["bent", "good", "scratched"], 0), Fitted(LABELS, 1)], Fitted([0, 1, 2], 1)]
    cascade = coe.Cascade(tiers, labels=LABELS)  # the input is what they were fitted on
    assert cascade.decide([[1, 0], [0, 0]]).exit_tier.tolist() == [1, 2]
    assert cascade.predict([[1, 0], [0, 0]]) == ["good", "good"]


@pytest.mark.parametrize(
    "given",
    [
        FILES,
        [str(path) for path in FILES],
        [path.read_bytes() for path in FILES],
        "pixels",
        "batch",
        "grey",
        "pictures",
        "floats",
    ],
    ids=["paths", "strings", "bytes", "arrays", "array", "array without channels", "pictures", "prepared"],
)
def test_images_are_given_in_any_form(given):
    from PIL import Image

    pictures = [Image.open(path) for path in FILES]
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    forms = {
        "pixels": list(pixels),
        "batch": pixels[..., None],
        "grey": pixels,
        "pictures": [picture.convert("RGB") for picture in pictures],
        "floats": (pixels[:, None] / 255.0).astype(np.float32),
    }
    with coe.load("zoo:digits") as cascade:
        known = [label for _, _, label in digits.test_examples(len(FILES))]
        x = forms[given] if isinstance(given, str) else given
        assert cascade.predict(x) == [str(label) for label in known]
        one = x[2]
        assert cascade.predict(one) == [str(known[2])]


def test_files_are_members_beside_objects_in_the_order_given():
    spec = read_manifest(digits.MANIFEST).models["loom.onnx"]
    loom = load_member(spec)
    mixed = [SMALL[0], lambda x: loom.predict(x), Path(digits.FOLDER) / "stroke.onnx"]
    whole = coe.Image(28, 28, channels=1, scale=1 / 255)
    with coe.Cascade([mixed, "zoo:digits/resnet.onnx"], labels=DIGITS, input=whole) as cascade:
        tier = cascade.tiers[0]
        assert isinstance(tier, LocalTier)
        assert [member.name for member in tier.members] == ["mosaic.onnx", "tier 1, member 1", "stroke.onnx"]
        values = [png for _, png, _ in digits.test_examples(200)]
        ours = cascade.decide(values, ids=[name for name, _, _ in digits.test_examples(200)])
    with coe.Cascade([[SMALL[0], SMALL[2], SMALL[1]], "zoo:digits/resnet.onnx"], labels=DIGITS, input=whole) as files:
        theirs = files.decide(values)
    assert ours.names == theirs.names
    assert (ours.exit_tier == theirs.exit_tier).all()
    assert ours.ids[:2] == ["digit-0000", "digit-0001"]
    loom.close()


def test_texts_go_to_callables_and_pipelines_as_strings():
    seen = []

    def by_length(texts):
        seen.extend(texts)
        return np.array([one_hot(min(len(text) // 8, 1), 2) for text in texts])

    class Pipeline:
        classes_ = np.array(["long", "short"])

        def predict_proba(self, texts):
            return by_length(texts)[:, ::-1]

    tiers = [[by_length, Pipeline()], by_length]
    cascade = coe.Cascade(tiers, labels=["short", "long"], input=coe.Text())
    assert cascade.predict(["a text", "a much longer text"]) == ["short", "long"]
    assert cascade.predict("a text") == ["short"]
    assert cascade.predict(np.array(["a text"])) == ["short"]
    assert "a much longer text" in seen
    with pytest.raises(coe.InputError, match="example 1: expected a text, got int"):
        cascade.predict(["a", 5])


def test_decisions_are_read_by_row_by_column_and_as_a_table():
    decisions = small().decide([[0.0], [1.0]] * 6, ids=[f"part-{number}" for number in range(12)])
    assert len(decisions) == 12
    assert decisions[0] == coe.Decision("part-0", 0, "good", 1, 1.0, pytest.approx(0.8667, abs=1e-3))
    assert decisions[-1].id == "part-11"
    assert [one.id for one in decisions[1:3]] == ["part-1", "part-2"]
    with pytest.raises(IndexError, match="expected a position below 12, got 12"):
        decisions[12]
    assert json.loads(json.dumps(decisions.to_dicts()))[1]["name"] == "bent"
    lines = repr(decisions).splitlines()
    assert lines[0].split() == ["id", "label", "exit", "tier", "vote", "score"]
    assert lines[1].split() == ["part-0", "good", "1", "1.00", "0.867"]
    assert lines[-2:] == [".. and 2 more", "12 examples; left at tier 1: 50.0%, tier 2: 50.0%"]


def test_no_examples_are_no_decisions():
    decisions = small().decide([])
    assert (decisions.names, decisions.to_dicts(), repr(decisions)) == ([], [], "no examples")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coe.Cascade([], labels=LABELS), "tiers: expected a list of tiers, got an empty one"),
        (lambda: coe.Cascade("a.onnx", labels=LABELS), "tiers: expected a list of tiers, got 'a.onnx'"),
        (lambda: coe.Cascade([AGREEING], labels="abc"), "labels: expected a list of label names, got 'abc'"),
        (
            lambda: coe.Cascade([AGREEING], labels=LABELS),
            r"input: expected coe.Image.*got nothing \(say what an example",
        ),
        (lambda: coe.Cascade([AGREEING], labels=LABELS, input=(3,)), r"input: expected coe.Image.*got \(3,\)"),
        (lambda: small(agreement="7/3"), r"tiers\[0\].agreement: expected a share in \(0, 1\], got 7/3"),
        (
            lambda: coe.Cascade([[AGREEING], AGREEING], labels=LABELS, input=coe.Tensor(1)),
            r"tiers\[0\]: one member always agrees with itself.*confidence=0.9",
        ),
        (lambda: coe.Cascade([[], AGREEING], labels=LABELS, input=coe.Tensor(1)), r"tiers\[0\]: expected at least one"),
        (
            lambda: coe.Cascade([[AGREEING] * 2, coe.Remote("nowhere", "m")], labels=LABELS, input=coe.Tensor(1)),
            r'tiers\[1\].address: expected host:port, got "nowhere"',
        ),
        (
            lambda: coe.Cascade(["a.onnx"], labels=DIGITS, input=coe.Image(28, 28, channels=2)),
            r"input.channels: expected 1 \(grey\) or 3 \(RGB\), got 2",
        ),
        (lambda: coe.load("zoo:nothing"), "expected a bundled task"),
        (lambda: coe.load("nowhere.yaml"), "nowhere.yaml: cannot be read: No such file"),
    ],
)
def test_a_wrong_argument_is_one_line_that_says_what_was_expected(make, message):
    with pytest.raises(coe.ConfigError, match=message) as caught:
        make()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("nowhere.onnx", "nowhere.onnx: the model file cannot be read: No such file"),
        (object(), r"tier 1, member 0 \(object\): expected a path of a model file, an object with predict_proba"),
        (lambda x: np.ones((len(x), 2)), r"expected probabilities of shape \[2, 3\] .* got \[2, 2\]"),
        (lambda x: np.ones((len(x), 3)), "expected probabilities that sum to 1 .* got a sum of 3"),
        (lambda x: 1 / 0, "it does not take two blank examples of the input: division by zero"),
        (Fitted(["x", "y", "z"], 0), "expected classes good, scratched, bent or the numbers 0 to 2, got x, y, z"),
    ],
)
def test_a_member_that_does_not_fit_is_an_error_at_once(member, message):
    with pytest.raises(coe.ModelError, match=message):
        coe.Cascade([member], labels=LABELS, input=coe.Tensor(2))


def test_members_are_closed_where_a_later_one_does_not_load(monkeypatch):
    closed = []
    from coe.models.onnx import OnnxMember

    monkeypatch.setattr(OnnxMember, "close", lambda self: closed.append(self.name))
    with pytest.raises(coe.ModelError, match="expected a path of a model file"):
        coe.Cascade([SMALL, object()], labels=DIGITS, input=coe.Image(28, 28, channels=1))
    assert sorted(closed) == sorted(name.rpartition("/")[2] for name in SMALL)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (5, "expected an array .* or rows of that many numbers, got int"),
        (np.zeros((2, 3)), r"expected shape \[1\], got \[3\]"),
        ([[1.0], [1.0, 2.0]], "got rows that are no array of numbers"),
        ([[float("nan")]], "expected finite numbers"),
        (["nowhere.npy"], "example 0: nowhere.npy cannot be read: No such file"),
        ({"a": 1}, "got dict"),
    ],
)
def test_an_example_that_cannot_be_read_says_what_was_expected(x, message):
    with pytest.raises(coe.InputError, match=message):
        small().decide(x)


def test_as_many_ids_as_examples():
    with pytest.raises(coe.InputError, match="ids: expected 2, one an example, got 1"):
        small().decide([[0.0], [1.0]], ids=["a"])


def test_a_remote_tier_answers_what_the_members_here_disagree_on(tmp_path):
    from programs import Cloud

    with Cloud(tmp_path) as server:
        port = server.port
        remote = coe.Remote(f"127.0.0.1:{port}", model="digits")
        # one that dissents everywhere: nothing is settled on the device
        dissenting = [*SMALL, lambda x: np.eye(10, dtype=np.float32)[np.zeros(len(x), int)]]
        task = read_manifest(digits.MANIFEST).task.name
        with coe.Cascade(
            [dissenting, remote], labels=DIGITS, input=coe.Image(28, 28, channels=1, scale=1 / 255), task=task
        ) as cascade:
            ids, values, labels = zip(*digits.test_examples(20), strict=True)
            decisions = cascade.decide(list(values), ids=ids)
            right = [int(name) == label for name, label in zip(decisions.names, labels, strict=True)]
            assert sum(right) >= 19
            assert max(decisions.exit_tier) >= 2
            assert decisions.degraded == [None] * 20
    with coe.Cascade(
        [dissenting, coe.Remote(f"127.0.0.1:{port}", model="digits", deadline_s=0.5)],
        labels=DIGITS,
        input=coe.Image(28, 28, channels=1, scale=1 / 255),
    ) as cascade:
        alone = cascade.decide(list(values[:2]))
        assert any("unavailable" in (reason or "") for reason in alone.degraded)
        assert "degraded" in repr(alone)
    failing = coe.Cascade(
        [dissenting, coe.Remote(f"127.0.0.1:{port}", model="digits", deadline_s=0.5)],
        labels=DIGITS,
        input=coe.Image(28, 28, channels=1, scale=1 / 255),
        when_unavailable="fail",
    )
    with failing, pytest.raises(coe.TierError):
        failing.decide(list(values[:2]))


def test_a_config_is_loaded_as_the_programs_run_it(tmp_path):
    config = tmp_path / "pi.yaml"
    config.write_text(
        "task: zoo:digits\n"
        f"tiers:\n- {{name: device, members: [{', '.join(SMALL)}], agreement: 2/3}}\n"
        "- {name: best, members: [zoo:digits/resnet.onnx]}\n"
        "source: {kind: digits}\nsink: {path: out.jsonl}\nwhen_unavailable: spool\n"
    )
    with coe.load(config) as cascade:
        assert [tier.name for tier in cascade.tiers] == ["device", "best"]
        assert cascade.labels == tuple(DIGITS)
        assert cascade.predict(FILES[0]) == ["1"]
    config.write_text(config.read_text().replace("agreement", "agrement"))
    with pytest.raises(coe.ConfigError, match=r'tiers\[0\].agrement: unknown setting .*"agreement"'):
        coe.load(config)


def test_every_name_is_there_documented_and_nothing_else_is_imported_before_it_is_used():
    for name in coe.__all__:
        assert getattr(coe, name).__doc__, name
        assert name in dir(coe)
    with pytest.raises(AttributeError, match="module 'coe' has no attribute 'Nothing'"):
        coe.Nothing  # noqa: B018
    code = (
        "import sys, coe; first = [name for name in sys.modules if name.startswith(('numpy', 'yaml', 'grpc'))];"
        "coe.Cascade; heavy = ('grpc', 'PIL', 'onnxruntime', 'torch', 'pandas', 'scipy', 'tokenizers');"
        "print(first, [name for name in heavy if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert shown.stdout.strip() == "[] []"


@pytest.mark.timing
def test_importing_takes_little_beside_numpy():
    """At most 0.15 s over NumPy's own import; or, where other work slows that down too, one and a half of it."""
    code = (
        "from time import process_time as now; begun = now(); import numpy; between = now(); import coe; coe.Cascade;"
        "print(between - begun, now() - between)"
    )
    for _ in range(3):
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        numpys, ours = map(float, shown.split())
        if ours < max(0.15, 1.5 * numpys):
            return
    pytest.fail(f"import coe took {ours:.3f} s, NumPy {numpys:.3f} s")


def test_warnings_are_not_errors_of_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(agreement="2/3")
