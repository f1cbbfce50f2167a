"""python -m recipes.tfns --data DIR [--out DIR]: trains and exports the two tiers; --test reports on them.

DIR holds tfns_train.parquet and tfns_valid.parquet: columns id, text, label. Networks are kept in the checkpoints'
folder as they are trained, and a run that was stopped resumes at the next one. The validation tweets, which are the
test here, are not read until a last run with --test, which changes no model: it records what the exported ones say of
calibration and test, and writes REPORT.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import ZOO
from .text.data import Task
from .text.recipe import run

FOLDER = ZOO / "tfns"

TASK = Task(
    name="tfns",
    title="Twitter Financial News",
    labels=("bearish", "bullish", "neutral"),
    learning="tfns_train.parquet",
    test="tfns_valid.parquet",
    text="text",
    n_calibration=1431,
    max_length=64,
    citation="""\
The data set: zeroshot/twitter-financial-news-sentiment; test is a random half (1,194) of its 2,388 validation tweets.
65% of the tweets are neutral.""",
)


def main(arguments: Sequence[str] | None = None) -> None:
    run(TASK, FOLDER, __doc__.splitlines()[0], arguments)


if __name__ == "__main__":
    main()
