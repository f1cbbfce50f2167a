"""Loaded by MLServer in its own Python, not ours: custom runtimes, as MLServer's users write them."""

from __future__ import annotations

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse


class Digits(MLModel):
    """Probabilities of a digits model in ONNX, beside an output that nobody asked for."""

    async def load(self) -> bool:
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        if x.dtype == np.uint8:  # (B, 28, 28, 1)
            x = (x.transpose(0, 3, 1, 2) * np.float32(1 / 255)).astype(np.float32)
        if x.shape[1:] != (1, 28, 28):
            raise InferenceError(f"a digit is [1, 28, 28], this is {list(x.shape[1:])}")
        (probabilities,) = self._session.run(None, {self._session.get_inputs()[0].name: x.astype(np.float32)})
        answer_dtype = np.float16 if x.dtype == np.float16 else np.float32
        return self.answer(np.zeros((len(x), 3), np.float32), probabilities.astype(answer_dtype))

    def answer(self, embedding: np.ndarray, probabilities: np.ndarray) -> InferenceResponse:
        outputs = [
            NumpyCodec.encode_output("embedding", embedding),
            NumpyCodec.encode_output("probabilities", probabilities),
        ]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


class Lengths(Digits):
    """Files in; the label of one is its length modulo ten."""

    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        labels = [len(element) % 10 for element in payload.inputs[0].data]
        return self.answer(np.zeros((len(labels), 3), np.float32), np.eye(10, dtype=np.float32)[labels])


class Broken(Digits):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        raise ValueError("a bug of the model's own")
