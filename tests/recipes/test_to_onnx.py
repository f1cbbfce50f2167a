"""Transformers of the paper's kinds, tiny and untrained, exported and run; only where `transformers` is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import published
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from coe.config.manifest import read_manifest  # noqa: E402
from coe.models import InputDecoder, load  # noqa: E402
from recipes.readers.__main__ import main  # noqa: E402
from recipes.readers.to_onnx import export  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

SMALL = {"vocab_size": 6, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "Bert": SMALL | {"max_position_embeddings": 64},
    "Roberta": SMALL | {"max_position_embeddings": 66, "pad_token_id": 0},
    "Electra": SMALL | {"max_position_embeddings": 64, "embedding_size": 16},
    "XLNet": {"vocab_size": 6, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
}
TEXTS = ["good bad good", "bad", "good good good good bad"]


def checkpoint(folder: Path, family: str, head: str) -> object:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**CONFIGS[family])
    model = getattr(transformers, f"{family}{head}")(config).eval()
    model.save_pretrained(folder)
    published.write_tokenizer(folder / "raw.json")
    names = ["input_ids", "attention_mask"] + ([] if family == "Roberta" else ["token_type_ids"])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "raw.json"), pad_token="[PAD]", unk_token="[UNK]", model_input_names=names
    )
    fast.save_pretrained(folder)
    (folder / "raw.json").unlink()
    return model


@pytest.mark.parametrize("family", CONFIGS)
def test_a_classifier_of_texts_says_the_same_once_exported(family: str, tmp_path: Path):
    model = checkpoint(tmp_path / "c", family, "ForSequenceClassification")
    export(str(tmp_path / "c"), tmp_path / "m")
    assert main([str(tmp_path / "m"), "--task", "films"]) == 0
    manifest = read_manifest(tmp_path / "m")
    member = load(manifest.models["m.onnx"])
    for row, text in enumerate(TEXTS):
        x = InputDecoder(manifest.task.input_spec).batch([str(row)], [text.encode()]).x
        said = member.predict(member.prepare(x))
        ids = torch.from_numpy(member.prepare(x)[:, 0])
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.softmax(dim=1).numpy()
        assert np.allclose(said, expected, atol=1e-4), text
    batch = InputDecoder(manifest.task.input_spec).batch(list("abc"), [text.encode() for text in TEXTS])
    assert member.predict(member.prepare(batch.x)).shape == (3, 2)
    member.close()


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_of_multiple_choice_says_the_same_once_exported(family: str, tmp_path: Path):
    model = checkpoint(tmp_path / "c", family, "ForMultipleChoice")
    export(str(tmp_path / "c"), tmp_path / "m")
    assert main([str(tmp_path / "m"), "--task", "swag"]) == 0
    manifest = read_manifest(tmp_path / "m")
    member = load(manifest.models["m.onnx"])
    value = b'{"context": "good", "endings": ["good bad", "bad good", "good good", "bad bad"]}'
    x = member.prepare(InputDecoder(manifest.task.input_spec).batch(["a"], [value]).x)
    with torch.no_grad():
        inputs = dict(
            zip(("input_ids", "attention_mask", "token_type_ids"), torch.from_numpy(x).unbind(2), strict=True)
        )
        if family == "Roberta":
            inputs.pop("token_type_ids")
        expected = model(**inputs).logits.softmax(dim=1).numpy()
    assert np.allclose(member.predict(x), expected, atol=1e-4)
    member.close()


def test_what_is_no_classifier_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from recipes.readers.to_onnx import main as export_program

    checkpoint(tmp_path / "c", "Bert", "Model")
    assert export_program([str(tmp_path / "c"), str(tmp_path / "m")]) == 2
    assert "expected a model ForSequenceClassification or ForMultipleChoice, got BertModel" in capsys.readouterr().err
