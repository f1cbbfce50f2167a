"""python -m recipes.sst2 --data DIR [--out DIR]: trains and exports the two tiers; --test reports on them.

DIR holds sst2_train.tsv and sst2_dev.tsv: tab-separated, one header line, columns id, sentence, label. Networks are
kept in the checkpoints' folder as they are trained, and a run that was stopped resumes at the next one. The dev
sentences, which are the test here as in the paper, are not read until a last run with --test, which changes no model:
it records what the exported ones say of calibration and test, and writes REPORT.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import ZOO
from .text.data import Task
from .text.recipe import run

FOLDER = ZOO / "sst2"

TASK = Task(
    name="sst2",
    title="SST-2",
    labels=("negative", "positive"),
    learning="sst2_train.tsv",
    test="sst2_dev.tsv",
    text="sentence",
    n_calibration=1000,
    max_length=64,
    citation="""\
The data set: Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank", EMNLP
2013: its 6,920 whole sentences, without the 60,000 phrases that GLUE adds to train, so accuracies are below those
published for GLUE; test is the dev split (872), as in the paper.""",
)


def main(arguments: Sequence[str] | None = None) -> None:
    run(TASK, FOLDER, __doc__.splitlines()[0], arguments)


if __name__ == "__main__":
    main()
