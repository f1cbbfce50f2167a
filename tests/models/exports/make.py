"""Makes the models of this folder with the real exporters; what each must answer is in expected.json.

python tests/models/exports/make.py, in an environment with scikit-learn, skl2onnx, onnxmltools, xgboost, lightgbm,
torch and onnxscript; `make.py tflite` in one with tensorflow. The models stay as small as they
can be: they only have to be right.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
NAMES = np.array(["setosa", "versicolor", "virginica"])
TEXTS = ["a good film", "good fun", "a bad film", "bad and dull", "good good", "dull film", "fun to see", "a bore"]
MOODS = ["pos", "pos", "neg", "neg", "pos", "neg", "pos", "neg"]


def write_table(name: str, x: Any, labels: Any) -> None:
    heads = [f"f{number}" for number in range(x.shape[1])]
    rows = [[*(f"{cell:.4g}" for cell in row), str(label)] for row, label in zip(x.tolist(), labels, strict=True)]
    lines = [",".join(row) for row in [[*heads, "label"], *rows]]
    (HERE / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    import onnxmltools
    import torch
    from lightgbm import LGBMClassifier
    from onnxmltools.convert.common.data_types import FloatTensorType as Floats
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from xgboost import XGBClassifier

    warnings.simplefilter("ignore")
    x, y = load_iris(return_X_y=True)
    x = np.round(x, 1).astype(np.float32)
    named, whole, plain = NAMES[y], np.rint(x * 10).astype(np.int64), {"zipmap": False}
    write_table("iris.csv", x, named)
    write_table("whole.csv", whole, named)
    write_table("numbered.csv", x, y)
    write_table("binary.csv", x[:100], NAMES[y[:100]])
    lines = [f"{text},{mood}" for text, mood in zip(TEXTS, MOODS, strict=True)]
    (HERE / "texts.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    right: dict[str, float] = {}

    def put(name: str, model: Any, exported: Any, given: Any, truth: Any) -> None:
        (HERE / name).write_bytes(exported.SerializeToString())
        right[name] = float((model.predict(given) == truth).mean())

    def fitted(model: Any, given: Any = x, truth: Any = named) -> Any:
        return model.fit(given, truth)

    one = x[:1]
    logistic = fitted(LogisticRegression(max_iter=500))
    put("zipmap.onnx", logistic, to_onnx(logistic, one), x, named)
    numbered = fitted(LogisticRegression(max_iter=500), truth=y)
    put("zipmap-numbers.onnx", numbered, to_onnx(numbered, one), x, y)
    put("float64.onnx", logistic, to_onnx(logistic, one.astype(np.float64), options=plain), x, named)
    counts = fitted(LogisticRegression(max_iter=500), whole)
    put("int64.onnx", counts, to_onnx(counts, initial_types=[("x", Int64TensorType([None, 4]))]), whole, named)
    forest = fitted(RandomForestClassifier(3, max_depth=3, random_state=0))
    put("forest.onnx", forest, to_onnx(forest, one, options=plain), x, named)
    network = fitted(make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=3000, random_state=0)))
    put("network.onnx", network, to_onnx(network, one, options=plain), x, named)
    boosted = fitted(XGBClassifier(n_estimators=3, max_depth=2), truth=y)
    put("xgboost.onnx", boosted, onnxmltools.convert_xgboost(boosted, initial_types=[("x", Floats([None, 4]))]), x, y)
    light = fitted(LGBMClassifier(n_estimators=3, num_leaves=3, verbose=-1), truth=y)
    put("lightgbm.onnx", light, onnxmltools.convert_lightgbm(light, initial_types=[("x", Floats([None, 4]))]), x, y)
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, MOODS)
    strings, locale = [("text", StringTensorType([None, 1]))], {TfidfVectorizer: {"locale": "C"}}
    put("tfidf.onnx", pipeline, to_onnx(pipeline, initial_types=strings, options=locale), TEXTS, np.array(MOODS))
    line = LinearRegression().fit(x[:, :3], x[:, 3])
    floats = [("x", FloatTensorType([None, 3]))]
    (HERE / "regressor.onnx").write_bytes(to_onnx(line, initial_types=floats).SerializeToString())

    class Heads(torch.nn.Module):
        """The logistic regression above in torch, with its end in one of several forms."""

        def __init__(self, end: str, model: Any) -> None:
            super().__init__()
            self.end, self.layer = end, torch.nn.Linear(4, len(model.coef_))
            weights = torch.tensor(model.coef_, dtype=torch.float32)
            self.n_times = 100 if end == "logits" else 1  # enough weights for a file of their own
            self.layer.weight.data = weights.repeat(1, self.n_times) / self.n_times
            self.layer.bias.data = torch.tensor(model.intercept_, dtype=torch.float32)

        def forward(self, given: Any) -> Any:
            logits = self.layer(given.repeat(1, self.n_times))
            if self.end == "sigmoid":
                return torch.sigmoid(logits)
            if self.end == "embedding":
                return torch.nn.functional.normalize(given[:, :3] * 2), torch.softmax(logits, 1)
            return torch.softmax(logits, 1)[..., None, None] if self.end == "ones" else logits

    binary = fitted(LogisticRegression(max_iter=500), x[:100], y[:100])
    batch = torch.export.Dim("batch")
    for name, end, model, names in (
        ("sigmoid", "sigmoid", binary, ["p"]),
        ("ones", "ones", numbered, ["p"]),
        ("embedding", "embedding", numbered, ["features", "classes"]),
        ("external", "logits", numbered, ["y"]),
    ):
        module, path = Heads(end, model).eval(), HERE / f"{name}.onnx"
        is_external = name == "external"
        given = (torch.tensor(x[:2]),)
        shapes = ({0: batch},)
        torch.onnx.export(
            module, given, path, dynamic_shapes=shapes, output_names=names, external_data=is_external, verbose=False
        )
        rows = x[:100] if end == "sigmoid" else x
        right[path.name] = float((model.predict(rows) == y[: len(rows)]).mean())
    (HERE / "expected.json").write_text(json.dumps(right, indent=1) + "\n", encoding="utf-8")


def main_tflite() -> None:
    """The TFLite files, of a network with its rescaling inside, in an environment with tensorflow."""
    import io

    import tensorflow as tf
    from PIL import Image

    from coe.zoo import digits

    examples = digits.test_examples(600)
    x = np.stack([np.asarray(Image.open(io.BytesIO(png))) for _, png, _ in examples])[..., None].astype(np.float32)
    y = np.array([label for _, _, label in examples])
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    body = [layers.Rescaling(1 / 255), layers.Conv2D(8, 5, 3, activation="relu"), layers.Flatten()]
    model = tf.keras.Sequential([layers.Input((28, 28, 1)), *body, layers.Dense(10, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, epochs=40, verbose=0)
    print(f"right: {model.evaluate(x[:120], y[:120], verbose=0)[1]}")
    for name in ("float16", "int8", "uint8"):
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if name == "float16":
            converter.target_spec.supported_types = [tf.float16]
        else:
            converter.representative_dataset = lambda: ([row[None]] for row in x[:100])
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = getattr(tf, name)
        (HERE / f"{name}.tflite").write_bytes(converter.convert())


if __name__ == "__main__":
    (main_tflite if "tflite" in sys.argv else main)()
