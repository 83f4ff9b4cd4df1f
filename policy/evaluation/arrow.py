"""Encoding of Apache Arrow columns. pyarrow is imported only when such a column is met.

Text and dictionary-encoded columns pass through the scalar encoder once per distinct value; the rows are
then looked up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradwarden.policy.array_types import BoolArray
from gradwarden.policy.evaluation.arrays import (
    CODES,
    EncodedColumn,
    encode_array,
    encode_dictionary,
    encode_objects,
    tidy,
    value_dtype,
)
from gradwarden.policy.evaluation.values import Fault, encode_value
from gradwarden.policy.program import AttributeSpec


def is_arrow(column: object) -> bool:
    """Return whether a column is a pyarrow Array or ChunkedArray, without importing pyarrow."""
    return type(column).__module__.split(".")[0] == "pyarrow"


def encode_arrow(spec: AttributeSpec, column: Any) -> EncodedColumn:
    """Encode a pyarrow Array or ChunkedArray."""
    import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types

    kind = column.type
    if _is_text(kind):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        return _dictionary(spec, column)
    array = _joined(column)
    absent = absent_mask(array)
    if pa.types.is_date(kind):
        days = array.cast(pa.date32()).cast(pa.int32()).fill_null(0)
        return encode_array(spec, days.to_numpy().astype("M8[D]"), absent)
    if pa.types.is_boolean(kind):
        return encode_array(spec, array.fill_null(False).to_numpy(zero_copy_only=False), absent)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        plain = array if absent is None else array.fill_null(0)
        return encode_array(spec, plain.to_numpy(zero_copy_only=False), absent)
    if pa.types.is_timestamp(kind):  # an instant is no date, whatever its unit and zone
        return encode_array(spec, np.zeros(len(array), "M8[s]"), absent)
    if spec.type == "set" and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return _lists(spec, array, absent)
    return encode_objects(spec, array.to_pylist())


def absent_mask(column: Any) -> BoolArray | None:
    """Return where an Arrow column is null, None where nowhere."""
    if column.null_count == 0:
        return None
    mask: BoolArray = _joined(column.is_null()).to_numpy(zero_copy_only=False)
    return mask


def scalar_value(scalar: Any) -> object:
    """Return a pyarrow scalar as the Python or numpy value that means the same."""
    import pyarrow as pa

    try:
        return scalar.as_py()
    except (ValueError, OverflowError, ImportError):  # a date or instant that `datetime` cannot hold
        if not pa.types.is_date(scalar.type):
            return np.datetime64(0, "ns")
        return np.datetime64(scalar.cast(pa.date32()).cast(pa.int32()).as_py(), "D")


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    views = getattr(pa.types, "is_string_view", None)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or (views is not None and views(kind))
    )


def _joined(column: Any) -> Any:
    """Return one contiguous array of a column that may be chunked."""
    import pyarrow as pa

    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [_empty(column)])


def _empty(column: Any) -> Any:
    import pyarrow as pa

    return pa.array([], column.type)


def _dictionary(spec: AttributeSpec, column: Any) -> EncodedColumn:
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = _joined(column.unify_dictionaries())
    indices = column.indices
    if indices.null_count:
        indices = indices.cast(pa.int64()).fill_null(-1)
    return encode_dictionary(spec, indices.to_numpy(zero_copy_only=False), column.dictionary.to_pylist())


def _lists(spec: AttributeSpec, array: Any, absent: BoolArray | None) -> EncodedColumn:
    """Encode lists of members: each distinct member once, then the bits of a row's members are joined."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]  # it ships no types

    members = pc.list_flatten(array)
    rows = pc.list_parent_indices(array).to_numpy(zero_copy_only=False)
    if not _is_text(members.type):
        return encode_objects(spec, array.to_pylist())
    coded = members.dictionary_encode()
    words = [*coded.dictionary.to_pylist(), None]
    bits = np.zeros(len(words), value_dtype(spec, 0))
    faults = np.zeros(len(words), np.uint8)
    for index, word in enumerate(words):
        try:
            bits[index] = encode_value(spec, [word])
        except Fault as fault:
            faults[index] = CODES.index(fault.code)
    which = coded.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)
    values = np.zeros(len(array), bits.dtype)
    found = np.zeros(len(array), np.uint8)
    if len(rows):
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        values[rows[starts]] = np.bitwise_or.reduceat(bits[which], starts)
        # of a row's faults the lowest number is kept: wrong_type comes before unknown_value
        worst = np.where(faults == 0, 255, faults).astype(np.uint8)[which]
        least = np.minimum.reduceat(worst, starts)
        found[rows[starts]] = np.where(least == 255, 0, least)
    values[found != 0] = 0
    present = found == 0 if absent is None else (found == 0) & ~absent
    return tidy(values, present, found)
