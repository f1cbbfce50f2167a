"""What a server says it takes in: ours takes examples as captured, others name a tensor of their own."""

from __future__ import annotations

from dataclasses import dataclass

from coe.cascade.tier import Prepare
from coe.cascade.types import Array, Batch
from coe.wire import inference_pb2 as pb

from .convert import DATATYPES, WireError
from .service import INPUT, PLATFORM


@dataclass(frozen=True, slots=True)
class Offer:
    """A model's one input: its name, datatype, and the shape of one row, -1 where free."""

    name: str
    datatype: str
    row: tuple[int, ...] = ()

    def tensor(self, batch: Batch, prepare: Prepare | None) -> Array:
        """The batch as this input takes it.

        Args:
            prepare: makes the model's floats from a batch's x, by the task's contract.
        Raises:
            WireError: the batch has no such form.
        """
        if self.datatype == "BYTES":
            if batch.captured is None:
                raise self._misfit("examples as captured (BYTES)", "pixels or tensors")
            return batch.captured
        x = batch.x
        if self.datatype.startswith("FP") and prepare is not None:
            x = prepare(x).astype(DATATYPES[self.datatype], copy=False)
        if x.dtype != DATATYPES[self.datatype]:
            raise self._misfit(self.datatype, str(x.dtype))
        if len(x.shape) != 1 + len(self.row) or any(
            want not in (-1, have) for want, have in zip(self.row, x.shape[1:], strict=True)
        ):
            raise self._misfit(f"rows of {list(self.row)}", str(list(x.shape[1:])))
        return x

    def _misfit(self, expected: str, got: str) -> WireError:
        mend = "the task's `input:` must be what the server takes"
        return WireError(f"input {self.name!r}", expected, got, mend)


OURS = Offer(INPUT, "BYTES")  # or a tensor: it takes either


def read_offer(told: pb.ModelMetadataResponse) -> Offer:
    """The input a server asks for.

    Raises:
        WireError: it takes several inputs, or a datatype no example of ours has.
    """
    if told.platform == PLATFORM:
        return OURS
    inputs = [(entry.name, entry.datatype, tuple(entry.shape)) for entry in told.inputs]
    if len(inputs) != 1:
        names = ", ".join(name for name, _, _ in inputs) or "none"
        raise WireError("its inputs", "one", names, "serve a model with one input")
    name, datatype, shape = inputs[0]
    if datatype not in ("BYTES", "UINT8", "FP16", "FP32", "FP64"):
        raise WireError(f"its input {name!r}", "BYTES, UINT8 or floats", datatype, "serve a model that takes these")
    return Offer(name, datatype, shape[1:])
