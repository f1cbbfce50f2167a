"""Members that are Python objects: classifiers with `predict_proba`, as scikit-learn's, and plain callables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.cascade.errors import CascadeError, ModelError
from coe.cascade.types import Array

from .input_spec import InputSpec
from .loading import first_line


class PythonMember:
    """An object with `predict_proba`, or a callable, as a member.

    Args:
        name: for errors.
        labels: names; an object's `classes_` are put into their order.
        input_spec: of the task.
    Raises:
        ModelError: it is neither, or its classes or its output do not fit the labels.
    """

    runs_on = "Python"

    def __init__(self, model: Any, name: str, labels: Sequence[str], input_spec: InputSpec) -> None:
        own = getattr(model, "__name__", type(model).__name__)
        self.name = own if own != "<lambda>" else name
        self.n_labels = len(labels)
        self._where = f"{name} ({own})"
        self._is_of_texts = input_spec.kind == "text"
        self._is_flat = hasattr(model, "predict_proba")
        self._order: NDArray[np.intp] | None = None
        if self._is_flat:
            self._ask: Callable[[Any], Any] = model.predict_proba
            self._order = self._order_of(getattr(model, "classes_", None), labels)
        elif callable(model):
            self._ask = model
        else:
            expected = f"a path of a model file, an object with predict_proba, or a callable x -> (B, {self.n_labels})"
            raise ModelError(f"{self._where}: expected {expected} probabilities")
        self.prepare = unchanged if self._is_of_texts else input_spec.prepare
        self._try_out(input_spec)

    def predict(self, x: Array) -> Array:
        """(B, L) float32 probabilities, in the order of the labels."""
        if self._is_of_texts:
            given: Any = x.tolist()
        else:
            given = x.reshape(len(x), -1) if self._is_flat else x
        output = np.asarray(self._ask(given), dtype=np.float32)
        if output.shape != (len(x), self.n_labels):
            expected = f"probabilities of shape [{len(x)}, {self.n_labels}] (examples, labels)"
            raise ModelError(f"{self._where}: expected {expected}, got {list(output.shape)}")
        return output if self._order is None else output[:, self._order]

    def close(self) -> None:
        pass

    def _order_of(self, classes: Any, labels: Sequence[str]) -> NDArray[np.intp] | None:
        """Columns of its output in the order of the labels; None: they are already."""
        if classes is None:
            return None
        found = [str(one) for one in classes]
        if sorted(found) == sorted(labels):
            order = np.array([found.index(label) for label in labels])
            return None if (order == np.arange(len(labels))).all() else order
        if found == [str(number) for number in range(len(labels))]:
            return None  # numbers, as of labels that were encoded
        got = f"got {', '.join(found[:10])} (labels= must name what the model was fitted on)"
        expected = f"classes {', '.join(labels)} or the numbers 0 to {len(labels) - 1}"
        raise ModelError(f"{self._where}: expected {expected}, {got}")

    def _try_out(self, spec: InputSpec) -> None:
        """Two blank examples, so that a model that does not fit is an error now."""
        try:
            output = self.predict(self.prepare(np.concatenate([spec.blank()] * 2)))
        except CascadeError:
            raise
        except Exception as error:
            message = f"{self._where}: it does not take two blank examples of the input: {first_line(error)}"
            raise ModelError(message) from error
        total = float(output[0].sum())
        if not abs(total - 1.0) < 0.02 or float(output.min()) < -1e-3:
            expected = "probabilities that sum to 1 over the labels"
            raise ModelError(f"{self._where}: expected {expected}, got a sum of {total:.4g} (apply a softmax)")


def unchanged(x: Array) -> Array:
    """The preparation of a member that takes a batch's x as it is."""
    return x
