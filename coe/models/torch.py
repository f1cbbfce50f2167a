"""torch members, for the cloud. Never imported on a device path.

A file that can run code as it loads (`.pt2`, TorchScript) is opened only where the operator's own config pins
its sha256. Weights alone (`.pt`) load with `weights_only=True` into an architecture that is known by name.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from coe.cascade.errors import ModelError
from coe.cascade.tier import Prepare
from coe.cascade.types import Array

from .loading import ModelSpec, RunOptions, as_rows, first_line, import_runtime, softmax

ARCHITECTURES: dict[str, Callable[[], Any]] = {}  # name -> () -> nn.Module; the zoo registers its own


class TorchMember:
    """One module in inference mode on one device."""

    def __init__(self, data: bytes, spec: ModelSpec, options: RunOptions) -> None:
        torch = import_torch()
        self.name = spec.name
        self.n_labels = len(spec.labels)
        self.prepare: Prepare = spec.input_spec.prepare
        self._is_logits = spec.output == "logits"
        self._output_name = spec.output_name
        self._torch = torch
        try:
            self._device = torch.device(options.device)
            self._module: Any = _open(torch, data, spec).to(self._device)
        except ModelError:
            raise
        except Exception as error:  # noqa: BLE001 - unpickling and shape errors come in many kinds
            raise ModelError(f"{spec.path}: torch cannot load it on {options.device}: {first_line(error)}") from None
        self._rows = None
        if isinstance(self._module, torch.fx.GraphModule):  # of torch.export, in its mode already
            self._rows = _fixed_rows(self._module)
            if self._rows not in (None, 1):
                fix = "export it with dynamic_shapes=({0: Dim('batch')},), or for one example"
                raise ModelError(f"{spec.path}: expected a batch that is free or 1, got {self._rows} ({fix})")
        else:
            self._module.eval()
        self._threads = options.threads
        self._take_threads()
        self.runs_on = f"torch {torch.__version__}, {self._device}, {options.threads} thread(s)"

    def predict(self, x: Array) -> Array:
        self._take_threads()
        x = x if x.flags.writeable else x.copy()  # torch warns of memory it may not write, such as a message's
        if self._rows is None or len(x) == self._rows:
            output = self._run(x)
        else:
            output = np.concatenate([self._run(row[None]) for row in x])
        if output.ndim != 2 or output.shape[1] != self.n_labels:
            output = as_rows(output, self.n_labels, is_logits=self._is_logits)
        return softmax(output) if self._is_logits else output

    def _run(self, x: Array) -> Array:
        with self._torch.inference_mode():
            found = self._module(self._torch.from_numpy(x).to(self._device))
            if not isinstance(found, self._torch.Tensor):
                found = self._pick(found)
            output: Array = found.float().cpu().numpy()
        return output

    def _pick(self, outputs: Any) -> Any:
        """The named one of several outputs, or the first with a place for each label."""
        if self._output_name is not None and hasattr(outputs, "keys"):
            return outputs[self._output_name]
        several = list(outputs.values() if hasattr(outputs, "values") else outputs)
        return next((one for one in several if one.shape[-1] == self.n_labels), several[0])

    def _take_threads(self) -> None:
        """Each thread that calls torch has its own number of threads to compute with, and keeps them."""
        if self._torch.get_num_threads() != self._threads:
            self._torch.set_num_threads(self._threads)

    def close(self) -> None:
        self._module = None


def _fixed_rows(module: Any) -> int | None:
    """The rows that an exported program was made for; None where any number will do."""
    for node in module.graph.nodes:
        if node.op == "placeholder":
            rows = node.meta["val"].shape[0]
            return rows if isinstance(rows, int) else None
    return None


load = TorchMember


def import_torch() -> Any:
    """torch itself.

    Raises:
        RuntimeMissing: it is not installed.
    """
    return import_runtime("torch", "torch", "pip install torch")


def _open(torch: Any, data: bytes, spec: ModelSpec) -> Any:
    """The module in a file, by the safest way its format has."""
    kind = spec.format
    if kind == "torch" and b"/code/" in data[-(2**20) :]:  # the zip's directory: TorchScript that is named .pt
        kind = "torchscript"
    if kind == "torch":
        build = ARCHITECTURES.get(spec.architecture or "")
        if build is None:
            known = ", ".join(sorted(ARCHITECTURES)) or "none"
            raise ModelError(
                f"{spec.path}: weights need a known `architecture:` ({known}), got {spec.architecture or 'none'} "
                f"(or export the model to ONNX)"
            )
        module = build()
        module.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        return module
    if not spec.pinned:
        raise ModelError(
            f"{spec.path}: a {kind} file can run code as it loads, so it is opened only where your config "
            f"pins it (add `sha256:` to this member, or export the model to ONNX)"
        )
    if kind == "torchscript":
        return torch.jit.load(io.BytesIO(data), map_location="cpu")
    return torch.export.load(io.BytesIO(data)).module()
