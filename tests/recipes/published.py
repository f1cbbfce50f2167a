"""Small files in published forms, as several tests make them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

GOOD, BAD = 4, 5
SWAG_HEADER = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_tokenizer(path: Path) -> None:
    """Six words; pairs are [CLS] a [SEP] b [SEP], the second with segment 1."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": GOOD, "bad": BAD}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    template = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    made.post_processor = tokenizers.processors.TemplateProcessing(
        **template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(path))


def write_choices_model(path: Path, n_choices: int | str = 4) -> None:
    """As exporters write multiple choice, (batch, choices, tokens) in; the logits count the good words in endings."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    shape = ["batch", n_choices, "tokens"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape)
              for name in ("input_ids", "attention_mask", "token_type_ids")]  # fmt: skip
    nodes = [
        helper.make_node("Equal", ["input_ids", "good"], ["is_good"]),
        helper.make_node("Cast", ["is_good"], ["one"], to=TensorProto.INT64),
        helper.make_node("Mul", ["one", "attention_mask"], ["there"]),
        helper.make_node("Mul", ["there", "token_type_ids"], ["in_ending"]),
        helper.make_node("ReduceSum", ["in_ending", "axis"], ["count"], keepdims=0),
        helper.make_node("Cast", ["count"], ["logits"], to=TensorProto.FLOAT),
    ]
    constants = [numpy_helper.from_array(np.array(GOOD), "good"), numpy_helper.from_array(np.array([2]), "axis")]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n_choices])
    graph = helper.make_graph(nodes, "choices", inputs, [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def swag_folder(folder: Path) -> Path:
    """An exported model of multiple choice, as Hugging Face's exporters write one."""
    folder.mkdir()
    write_json(folder / "config.json", {"architectures": ["BertForMultipleChoice"], "max_position_embeddings": 32})
    write_tokenizer(folder / "tokenizer.json")
    write_choices_model(folder / "model.onnx")
    return folder


def swag_file(path: Path, n_rows: int = 12) -> list[int]:
    """Rows whose right ending is the one with a good word, and a good context that must not count; the labels."""
    labels = [number * 7 % 4 for number in range(n_rows)]
    lines = [SWAG_HEADER]
    for number, label in enumerate(labels):
        endings = ["good" if place == label else "bad" for place in range(4)]
        lines.append(f"{number},v{number},{number},x,good good,it is,gold,{','.join(endings)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return labels
