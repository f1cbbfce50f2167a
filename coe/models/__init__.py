"""Running one model: ONNX Runtime, LiteRT/TFLite, torch behind one small interface."""

from .base import LoadedMember, ModelSpec, RunOptions
from .contract import Contract
from .inputs import Door, decode_image
from .loading import load
from .manifest import Manifest, Task, read_manifest
from .table import TableMember
from .text import TextContract

__all__ = [
    "Contract",
    "Door",
    "LoadedMember",
    "Manifest",
    "ModelSpec",
    "RunOptions",
    "TableMember",
    "Task",
    "TextContract",
    "decode_image",
    "load",
    "read_manifest",
]
