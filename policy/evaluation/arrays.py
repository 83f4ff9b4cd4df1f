"""Encoding of one column held in numpy arrays or Python lists, to the values that `values` would give.

Whole arrays are converted at once where the dtype says what they hold; other columns go through the scalar
encoder once per distinct value, or once per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Array, BoolArray
from gradwarden.policy.evaluation.values import Fault, encode_value, is_absent
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import AttributeSpec

CODES = (
    "",
    "missing",
    "unknown_attribute",
    "wrong_type",
    "out_of_range",
    "unknown_value",
    "too_long",
    "not_finite",
)
"""Codes of `Problem` by the number that stands for them in arrays of faults; 0: no fault."""

_WRONG_TYPE = CODES.index("wrong_type")
_OUT_OF_RANGE = CODES.index("out_of_range")
_NOT_FINITE = CODES.index("not_finite")


@frozen
class EncodedColumn:
    """One attribute of N examples.

    values: [N], in the narrowest dtype. number, date: 0 where absent. enum: the code, the number of values
    where absent. set: the bit mask. string: an index into `dictionary`, its length where absent. bool: as is.
    present: [N], None where all are. faults: [N] numbers of `CODES`, None where there are none; an example
    with a fault counts as absent in `values` and `present`.
    """

    values: Array
    present: BoolArray | None = None
    faults: npt.NDArray[np.uint8] | None = None
    dictionary: tuple[str, ...] = ()


def encode_objects(spec: AttributeSpec, objects: Sequence[object]) -> EncodedColumn:
    """Encode a sequence of Python values."""
    kinds = set(map(type, objects))
    held = kinds - {type(None)}
    if held in ({str}, {bool}, {date}):  # within one of these types, equal values encode alike
        index: dict[object, int] = {}
        found = (index.setdefault(value, len(index)) for value in objects)
        indices = np.fromiter(found, np.intp, len(objects))
        return encode_dictionary(spec, indices, list(index))
    if held in ({float}, {int}):
        absent = None if kinds == held else np.fromiter((v is None for v in objects), bool, len(objects))
        filled = objects if absent is None else [0 if value is None else value for value in objects]
        try:
            array = np.array(filled, np.float64 if held == {float} else np.int64)
        except OverflowError:
            return _encode_each(spec, objects)
        return encode_array(spec, array, absent)
    return _encode_each(spec, objects)


def encode_dictionary(spec: AttributeSpec, indices: Array, distinct: Sequence[object]) -> EncodedColumn:
    """Encode a column given as indices into distinct values; a negative index is an absent value."""
    table = _encode_each(spec, [*distinct, None])
    rows = (
        indices if len(indices) == 0 or indices.min() >= 0 else np.where(indices < 0, len(distinct), indices)
    )
    present = None if table.present is None else table.present.take(rows)
    faults = None if table.faults is None else table.faults.take(rows)
    return tidy(table.values.take(rows), present, faults, table.dictionary)


def _encode_each(spec: AttributeSpec, objects: Sequence[object]) -> EncodedColumn:
    """Encode every value by the scalar encoder."""
    count = len(objects)
    present = np.ones(count, bool)
    faults = np.zeros(count, np.uint8)
    encoded: list[Any] = [None] * count
    for row, raw in enumerate(objects):
        if is_absent(raw):
            present[row] = False
            continue
        try:
            encoded[row] = encode_value(spec, raw)
        except Fault as fault:
            present[row] = False
            faults[row] = CODES.index(fault.code)
    dictionary: tuple[str, ...] = ()
    if spec.type == "string":
        codes = {text: code for code, text in enumerate(dict.fromkeys(t for t in encoded if t is not None))}
        dictionary = tuple(codes)
        encoded = [None if text is None else codes[text] for text in encoded]
    fill = absent_code(spec, len(dictionary))
    dtype = value_dtype(spec, len(dictionary))
    values = np.array([fill if code is None else code for code in encoded], dtype)
    return tidy(values, present, faults, dictionary)


def encode_array(spec: AttributeSpec, array: Array, absent: BoolArray | None = None) -> EncodedColumn:
    """Encode a numpy array of a plain dtype (not object or text). absent: where its elements mean nothing."""
    if array.dtype.kind == "M":
        nat = np.isnat(array)
        absent = nat if absent is None else absent | nat
    if spec.type == "number" and array.dtype.kind in "iuf":
        return _numbers(spec, array, absent)
    if spec.type == "date" and array.dtype == np.dtype("M8[D]"):
        days = array.astype(np.int64)
        return _bounded(spec, days, (days >= spec.lo) & (days <= spec.hi), absent)
    if spec.type == "bool" and array.dtype.kind == "b":
        present = None if absent is None else ~absent
        return tidy(array if present is None else array & present, present, None)
    values = np.full(len(array), absent_code(spec, 0), value_dtype(spec, 0))
    wrong = np.ones(len(array), bool) if absent is None else ~absent
    return tidy(values, np.zeros(len(array), bool), wrong * np.uint8(_WRONG_TYPE))


def _numbers(spec: AttributeSpec, array: Array, absent: BoolArray | None) -> EncodedColumn:
    scale = int(10**spec.places)
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.multiply(array, 10.0**spec.places, dtype=np.float64)
            np.rint(scaled, out=scaled)
        fine = (scaled >= spec.lo) & (scaled <= spec.hi)
        return _bounded(spec, scaled, fine, absent, None if fine.all() else np.isfinite(array))
    limits = np.iinfo(array.dtype)
    low, high = max(-(-spec.lo // scale), int(limits.min)), min(spec.hi // scale, int(limits.max))
    if low > high:
        return _bounded(spec, array, np.zeros(len(array), bool), absent)
    fine = (array >= low) & (array <= high)
    if spec.places:
        array = np.where(fine, array, 0).astype(np.int64) * scale
    return _bounded(spec, array, fine, absent)


def _bounded(
    spec: AttributeSpec,
    values: Array,
    fine: BoolArray,
    absent: BoolArray | None,
    finite: BoolArray | None = None,
) -> EncodedColumn:
    """Narrow values that are in range where `fine`; the others are faults."""
    dtype = value_dtype(spec, 0)
    if absent is None and fine.all():
        return EncodedColumn(values.astype(dtype))
    present = fine if absent is None else fine & ~absent
    faults = np.where(present, 0, _OUT_OF_RANGE).astype(np.uint8)
    if finite is not None:
        faults[~finite] = _NOT_FINITE
    if absent is not None:
        faults[absent] = 0
    return tidy(np.where(present, values, 0).astype(dtype), present, faults)


def tidy(
    values: Array,
    present: BoolArray | None,
    faults: npt.NDArray[np.uint8] | None,
    dictionary: tuple[str, ...] = (),
) -> EncodedColumn:
    """Return a column whose masks are None where they say nothing."""
    if present is not None and present.all():
        present = None
    if faults is not None and not faults.any():
        faults = None
    return EncodedColumn(values, present, faults, dictionary)


def absent_code(spec: AttributeSpec, dictionary: int) -> int:
    """Return the value that stands for an absent one; `dictionary` is the number of distinct strings."""
    return len(spec.values) if spec.type == "enum" else dictionary if spec.type == "string" else 0


def value_dtype(spec: AttributeSpec, dictionary: int) -> np.dtype[Any]:
    """Return the narrowest dtype of an attribute's encoded values."""
    match spec.type:
        case "bool":
            return np.dtype(bool)
        case "enum":
            return np.min_scalar_type(len(spec.values))
        case "string":
            return np.min_scalar_type(dictionary)
        case "set":
            return np.min_scalar_type((1 << len(spec.values)) - 1)
        case _:
            return narrowest_signed(min(spec.lo, 0), max(spec.hi, 0))


def narrowest_signed(lo: int, hi: int) -> np.dtype[Any]:
    """Return the narrowest signed integer dtype that holds lo..hi (int64 at most)."""
    for width in (np.int8, np.int16, np.int32):
        if np.iinfo(width).min <= lo and hi <= np.iinfo(width).max:
            return np.dtype(width)
    return np.dtype(np.int64)
