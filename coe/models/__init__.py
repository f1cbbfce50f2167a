"""Running one model: ONNX Runtime, LiteRT/TFLite, torch behind one small interface."""

from __future__ import annotations

from .input_spec import InputSpec
from .inputs import InputDecoder, decode_image
from .loading import LoadedMember, ModelSpec, RunOptions, load
from .recorded import TableMember
from .text import TextInputSpec

__all__ = [
    "InputDecoder",
    "InputSpec",
    "LoadedMember",
    "ModelSpec",
    "RunOptions",
    "TableMember",
    "TextInputSpec",
    "decode_image",
    "load",
]
