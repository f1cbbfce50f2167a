"""A tiny model of texts with its tokenizer: says of a text which of two words it has more of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

WORDS = ("[PAD]", "[UNK]", "[START]", "[END]", "good", "bad", "film", "a", "café", "blank")
LABELS = ("negative", "positive")
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def tokenizer(pad: str = "[PAD]") -> bytes:
    """A tokenizer.json of whole words, with a start, and an end that is a segment of its own."""
    words = [pad, *WORDS[1:]]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special("[START]", 0), {"Sequence": {"id": "A", "type_id": 0}}, _special("[END]", 1)],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                token: {"id": token, "ids": [words.index(token)], "tokens": [token]} for token in ("[START]", "[END]")
            },
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)}, "unk_token": "[UNK]"},
    }
    return json.dumps(content).encode()


def _special(token: str, segment: int) -> dict[str, object]:
    return {"SpecialToken": {"id": token, "type_id": segment}}


def onnx_model(
    names: Sequence[str] = ("input_ids", "attention_mask"),
    dtype: str = "INT64",
    rows: int | None = None,
    tokens: int | None = None,
    knows: Sequence[str] = ("good", "bad"),
) -> bytes:
    """Counts "good" and "bad" where the mask is 1 and the segment 0, as far as `names` has these; probabilities out.

    Args:
        rows, tokens: fixed sizes; None: free.
        knows: the words it counts; to one that knows neither of a text's words, it is negative.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.zeros((len(WORDS), 2), dtype=np.float32)
    for word in knows:
        table[WORDS.index(word), ("bad", "good").index(word)] = 1.0
    table[0] = 9.0 if "attention_mask" in names else 0.0  # padding counts if it is not hidden
    whole = getattr(TensorProto, dtype)
    shape = [rows or "batch", tokens or "tokens"]
    inputs = [helper.make_tensor_value_info(name, whole, shape) for name in names]
    nodes = [helper.make_node("Gather", ["table", names[0]], ["each"])]
    counted = "each"
    for name in NAMES[1:]:
        if name not in names:
            continue
        nodes += [
            helper.make_node("Cast", [name], [f"{name} f"], to=TensorProto.FLOAT),
            *([helper.make_node("Sub", ["one", f"{name} f"], [f"{name} g"])] if name == NAMES[2] else []),
            helper.make_node("Unsqueeze", [f"{name} g" if name == NAMES[2] else f"{name} f", "last"], [f"{name} c"]),
            helper.make_node("Mul", [counted, f"{name} c"], [f"{name} counted"]),
        ]
        counted = f"{name} counted"
    nodes += [
        helper.make_node("ReduceSum", [counted, "middle"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = {
        "one": np.ones(1, np.float32),
        "table": table,
        "last": np.array([2], np.int64),
        "middle": np.array([1], np.int64),
    }
    stored = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [rows or "batch", 2])
    graph = helper.make_graph(nodes, "texts", inputs, [output], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_task(folder: Path, models: dict[str, bytes], max_length: int = 16) -> Path:
    """A folder with models, one tokenizer each, and their manifest."""
    entries = {}
    for name, data in models.items():
        own = f"{Path(name).stem}.tokenizer.json"
        (folder / name).write_bytes(data)
        (folder / own).write_bytes(tokenizer())
        text = {"kind": "text", "tokenizer": own, "tokenizer_sha256": digest(tokenizer()), "max_length": max_length}
        entries[name] = {"sha256": digest(data), "input": text}
    content = {"task": "films", "labels": list(LABELS), "input": {"kind": "text"}, "models": entries}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
