"""Tensors as JSON tells them: flat or nested lists, checked element by element. NaN, which JSON has not, is null."""

from __future__ import annotations

import base64
import binascii
from itertools import chain
from typing import Any

import numpy as np

from coe.cascade.types import Array
from coe.wire.convert import DATATYPES, WireError

BINARY_ALONE = ("FP16", "BF16")  # JSON has no such numbers, and the protocol's other servers refuse them too
_KINDS: dict[str, tuple[frozenset[type], str]] = {  # by NumPy's kind: what an element may be
    "b": (frozenset({bool}), "true and false"),
    "i": (frozenset({int}), "whole numbers"),
    "u": (frozenset({int}), "whole numbers"),
    "f": (frozenset({int, float}), "numbers"),
    "O": (frozenset({str}), "strings"),
}


def read_values(where: str, datatype: str, shape: tuple[int, ...], data: Any, *, is_base64: bool = False) -> Array:
    """The tensor in `data`.

    Args:
        where: names it in errors.
        shape: known to be plausible.
        data: flat, or nested as `shape` says.
        is_base64: each element of BYTES is base64; otherwise it is text, taken as UTF-8.
    Returns:
        A read-only array of that shape.
    Raises:
        WireError: shape, datatype and elements do not fit together.
    """
    if datatype in BINARY_ALONE:
        mend = "send it as binary data (binary_data_size), or as FP32"
        raise WireError(where, "a datatype that JSON can tell", datatype, mend)
    dtype = DATATYPES[datatype]
    elements = _flattened(where, shape, data)
    kinds, told = _KINDS[dtype.kind]
    others = set(map(type, elements)) - kinds
    if others:
        got = ", ".join(sorted(_named(kind) for kind in others))
        raise WireError(where, f"{told} for {datatype}", got, "convert the elements, or name another datatype")
    if dtype.kind == "O":
        array = _texts(where, elements, is_base64)
    elif dtype.kind == "f":
        array = _floats(where, datatype, elements)
    else:
        array = _whole(where, datatype, elements)
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def to_values(column: Array) -> list[Any]:
    """Flat, row by row. Floats keep every bit; those that are not finite become null; BYTES become text."""
    flat = column.ravel()
    if flat.dtype == object:
        return [element.decode("utf-8", "replace") for element in flat]
    values: list[Any] = flat.tolist()
    if flat.dtype.kind == "f" and not (finite := np.isfinite(flat)).all():
        return [value if known else None for value, known in zip(values, finite.tolist(), strict=True)]
    return values


def _flattened(where: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    """The elements in order: `data` itself where it is flat, else one level of lists for each dimension."""
    if type(data) is not list:
        raise WireError(where, "a list as data", _named(type(data)), "send data, or binary_data_size")
    is_nested = bool(data) and type(data[0]) is list
    level = [data]
    for size in shape if is_nested else (int(np.prod(shape, dtype=object)),):
        for part in level:
            if type(part) is not list or len(part) != size:
                got = f"a list of {len(part)}" if type(part) is list else _named(type(part))
                expected = f"lists of {size}" if is_nested else f"{size} elements"
                mend = f"send data flat, or nested as its shape {list(shape)}"
                raise WireError(where, expected, got, mend)
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return level


def _floats(where: str, datatype: str, elements: list[Any]) -> Array:
    try:
        wide = np.array(elements, np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        wide = np.array([np.inf])
    with np.errstate(over="ignore"):
        array = wide.astype(DATATYPES[datatype], copy=False)
    if not np.isfinite(array).all():
        raise WireError(where, f"numbers within {datatype}", "one that is too large", "send it as binary data")
    return array


def _whole(where: str, datatype: str, elements: list[Any]) -> Array:
    dtype = DATATYPES[datatype]
    if dtype.kind != "b" and elements:
        limits, low, high = np.iinfo(dtype), min(elements), max(elements)
        if low < limits.min or high > limits.max:
            expected = f"{datatype} values, {limits.min} to {limits.max}"
            raise WireError(where, expected, "one outside", "send a wider datatype")
    return np.array(elements, dtype)


def _texts(where: str, elements: list[str], is_base64: bool) -> Array:
    array = np.empty(len(elements), object)
    try:
        array[:] = [base64.b64decode(element, validate=True) if is_base64 else element.encode() for element in elements]
    except (binascii.Error, ValueError):  # half a surrogate pair is no text; letters beyond ASCII are no base64
        expected = "base64" if is_base64 else "text that UTF-8 can hold"
        raise WireError(where, expected, "a string that is none", "send it as binary data") from None
    return array


def _named(kind: type) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(kind, "a whole number" if kind is int else "a number")
