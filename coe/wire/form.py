"""An answer's bytes, put together from parts.

What is the same for every answer of a model with the same outputs and number of rows (its name, the outputs' names
and shapes, what stands before each number) is serialised once, by protobuf itself; the rest is appended, since
protobuf messages that follow one another merge.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from coe.cascade.types import Array
from coe.wire import inference_pb2 as pb

from .convert import encode
from .plane import OUTPUTS, Answer, Served

MOST_FORMS = 1024  # kinds of answers whose common parts are kept
_DOUBLE = struct.Struct("<d")
_FRONTS: dict[str, bytes] = {}  # of parameters: all of an entry's bytes but the number


class Forms:
    """Lays out answers as ModelInferResponse."""

    def __init__(self) -> None:
        self._forms: dict[tuple[str, str, int, tuple[str, ...]], _Form] = {}

    def fill(self, answer: Answer) -> bytes:
        """The message's bytes."""
        served, outputs = answer.served, answer.outputs
        names = tuple(outputs)
        key = (served.name, served.version, len(outputs[names[0]]) if names else 0, names)
        form = self._forms.get(key)
        if form is None:
            if len(self._forms) >= MOST_FORMS:
                self._forms.clear()
            form = self._forms[key] = _Form(served, outputs)
        return form.fill(answer)


class _Form:
    """What every answer of one model with the same outputs and number of rows has in common."""

    def __init__(self, served: Served, outputs: Mapping[str, Array]) -> None:
        message = pb.ModelInferResponse(model_name=served.name, model_version=served.version)
        for name, column in outputs.items():
            message.outputs.add(name=name, datatype=OUTPUTS[name][0], shape=column.shape)
        self.head = message.SerializeToString()
        self.is_fixed = all(OUTPUTS[name][0] != "BYTES" for name in outputs)  # texts differ in length
        self.fronts = [_front_of_raw(column.nbytes) for column in outputs.values()] if self.is_fixed else []

    def fill(self, answer: Answer) -> bytes:
        parts = [self.head]
        if answer.id:
            parts.append(pb.ModelInferResponse(id=answer.id).SerializeToString())
        for key, value in answer.parameters.items():
            front = _FRONTS.get(key) or _front_of_parameter(key)
            parts += front, _DOUBLE.pack(value)
        if self.is_fixed:
            for front, column in zip(self.fronts, answer.outputs.values(), strict=True):
                parts += front, column.tobytes()
        else:
            message = pb.ModelInferResponse()
            for name, column in answer.outputs.items():
                message.raw_output_contents.append(encode(name, column)[1])
            parts.append(message.SerializeToString())
        return b"".join(parts)


def _front_of_parameter(key: str) -> bytes:
    parameters = {key: pb.InferParameter(double_param=0.0)}
    front = pb.ModelInferResponse(parameters=parameters).SerializeToString()[: -_DOUBLE.size]
    _FRONTS[key] = front
    return front


def _front_of_raw(n_bytes: int) -> bytes:
    """What precedes raw contents of that length."""
    whole = pb.ModelInferResponse(raw_output_contents=[bytes(n_bytes)]).SerializeToString()
    return whole[: len(whole) - n_bytes]
