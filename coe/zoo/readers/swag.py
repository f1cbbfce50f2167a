"""SWAG's published CSV: a context and four endings, one of which is right.

Columns: video-id, fold-ind, startphrase, sent1, sent2, gold-source, ending0 .. ending3, label. An example travels as
a JSON object in UTF-8, {"context": .., "endings": [.., .., .., ..]}: what the model reads is `sent1`, and each ending
after `sent2`, its beginning. Zellers et al., "SWAG: A Large-Scale Adversarial Dataset", EMNLP 2018.
"""

import csv
import json
from pathlib import Path

from coe.cascade.errors import ConfigError

from .files import Labelled

N_ENDINGS = 4
ENDINGS = tuple(f"ending{number}" for number in range(N_ENDINGS))
NEEDED = ("sent1", "sent2", *ENDINGS, "label")


def read_swag(path: Path, limit: int | None = None) -> Labelled:
    """The rows of the file in their order, the first `limit` if given.

    Raises:
        ConfigError: names the column or the row that is not as published.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(
                    [f"expected the column {missing[0]}, got {', '.join(reader.fieldnames or ())}"], str(path)
                )
            rows = [row for _, row in zip(range(limit or 2**31), reader, strict=False)]
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError([f"expected SWAG's CSV in UTF-8: {error}"], str(path)) from None
    ids, values, labels = [], [], []
    for number, row in enumerate(rows, start=1):
        label = row["label"]
        if label not in ("0", "1", "2", "3") or any(row[name] is None for name in NEEDED):
            raise ConfigError(
                [f'row {number}: expected a label 0 to 3 and all columns, got the label "{label}"'], str(path)
            )
        ids.append(f"{row.get('video-id') or 'row'}-{row.get('fold-ind') or number}")
        content = {"context": row["sent1"], "endings": [f"{row['sent2']} {row[name]}".strip() for name in ENDINGS]}
        values.append(json.dumps(content, ensure_ascii=False).encode())
        labels.append(int(label))
    return Labelled(ids, values, labels, tuple(map(str, range(N_ENDINGS))))
