"""What every member said of every held-out example, as a Parquet file in long form: one row for each pair.

A task's folder holds two: `calibration.parquet`, on which choices are made, and `test.parquet`. Columns: example_id
(string), label (int16), model (string, the member's file), prediction (int16), score (float32, the prediction's
probability), probabilities (L float16), latency_s (float32, this example alone, one thread), payload_bytes (int32,
the example as it would be sent). All members in the same order of examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ZSTD_LEVEL = 19


@dataclass(frozen=True, slots=True)
class Answers:
    """What one member said."""

    predictions: NDArray[np.int16]  # (B,)
    scores: NDArray[np.float32]  # (B,)
    probabilities: NDArray[np.float16]  # (B, L)
    latency_s: NDArray[np.float32]  # (B,)


@dataclass(frozen=True, slots=True)
class Trace:
    """What all members said of the same examples."""

    ids: tuple[str, ...]
    labels: NDArray[np.int16]  # (B,)
    payload_bytes: NDArray[np.int32]  # (B,)
    members: Mapping[str, Answers]

    def accuracy(self, member: str) -> float:
        return float((self.members[member].predictions == self.labels).mean())

    def outputs(self, member: str) -> NDArray[np.float32]:
        """(B, L), where the largest is the prediction even if 16 bits cannot tell the two largest apart."""
        said = self.members[member]
        outputs = said.probabilities.astype(np.float32)
        outputs[np.arange(len(outputs)), said.predictions] = np.nextafter(outputs.max(axis=1), np.float32(2))
        return outputs


def answers(probabilities: NDArray[np.float32], latency_s: NDArray[np.float32]) -> Answers:
    """From a member's outputs (B, L) and its seconds (B,)."""
    predictions = probabilities.argmax(axis=1)
    scores = probabilities[np.arange(len(predictions)), predictions]
    return Answers(predictions.astype(np.int16), scores, probabilities.astype(np.float16), latency_s)


def schema(n_labels: int) -> Any:
    """The columns, as pyarrow says them."""
    import pyarrow as pa  # type: ignore[import-untyped]

    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("example_id", text),
            ("label", pa.int16()),
            ("model", text),
            ("prediction", pa.int16()),
            ("score", pa.float32()),
            ("probabilities", pa.list_(pa.float16(), n_labels)),
            ("latency_s", pa.float32()),
            ("payload_bytes", pa.int32()),
        ]
    )


def write(trace: Trace, path: Path) -> None:
    """Writes `path`, the same bytes each time."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    n_members, n_examples = len(trace.members), len(trace.ids)
    said = trace.members.values()
    rows = np.tile(np.arange(n_examples, dtype=np.int32), n_members)
    probabilities = np.concatenate([one.probabilities for one in said])  # (M * B, L)
    n_labels = probabilities.shape[1]
    columns = [
        pa.DictionaryArray.from_arrays(rows, pa.array(trace.ids)),
        pa.array(np.tile(trace.labels, n_members)),
        pa.DictionaryArray.from_arrays(
            np.repeat(np.arange(n_members, dtype=np.int32), n_examples), pa.array(list(trace.members))
        ),
        pa.array(np.concatenate([one.predictions for one in said])),
        pa.array(np.concatenate([one.scores for one in said])),
        pa.FixedSizeListArray.from_arrays(pa.array(probabilities.reshape(-1)), n_labels),
        pa.array(np.concatenate([one.latency_s for one in said])),
        pa.array(np.tile(trace.payload_bytes, n_members)),
    ]
    table = pa.Table.from_arrays(columns, schema=schema(n_labels))
    pq.write_table(table, path, compression="zstd", compression_level=ZSTD_LEVEL)


def read(path: Path) -> Trace:
    """The trace in a file that `write` wrote."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    names = table["model"].to_pylist()
    members = list(dict.fromkeys(names))
    n_examples = len(names) // len(members)

    def column(name: str) -> NDArray[Any]:
        flat = table[name].combine_chunks()
        flat = flat.flatten() if name == "probabilities" else flat
        values: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
        return values.reshape(len(members), n_examples, -1)

    predictions, scores, latency_s = column("prediction"), column("score"), column("latency_s")
    probabilities = column("probabilities")  # (M, B, L)
    said = {
        name: Answers(predictions[place, :, 0], scores[place, :, 0], probabilities[place], latency_s[place, :, 0])
        for place, name in enumerate(members)
    }
    ids = tuple(table["example_id"].slice(0, n_examples).to_pylist())
    return Trace(ids, column("label")[0, :, 0], column("payload_bytes")[0, :, 0], said)
