"""Examples in columns: raw arrays in, narrow integer arrays out, with every fault of every row.

A column may be a numpy array (masked arrays included), a list, or a pyarrow array; the whole may be a mapping
of such columns, or a pyarrow Table. Values and faults are those of the scalar encoder (`values`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import BoolArray
from gradwarden.policy.decision import Problem
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.arrays import (
    CODES,
    EncodedColumn,
    absent_code,
    encode_array,
    encode_objects,
    value_dtype,
)
from gradwarden.policy.evaluation.arrow import absent_mask, encode_arrow, is_arrow, scalar_value
from gradwarden.policy.evaluation.values import encode_metadata, is_absent
from gradwarden.policy.program import AttributeSpec, Program

_MISSING = CODES.index("missing")
_UNKNOWN = CODES.index("unknown_attribute")


class ColumnsError(GradwardenError):
    """Columns that do not make a table: of different lengths, or not one-dimensional."""

    code = "GW131"


@dataclass(frozen=True)
class Columns:
    """The metadata of `count` examples, encoded for one program.

    faults: per attribute with any, [N] numbers of `CODES`; in the order of the declarations, then undeclared
    attributes, sorted.
    """

    attributes: tuple[AttributeSpec, ...]
    count: int
    encoded: Mapping[str, EncodedColumn]
    faults: Mapping[str, npt.NDArray[np.uint8]]
    source: Mapping[str, Any]
    """The raw columns, for the words of a problem."""

    @property
    def invalid_rows(self) -> npt.NDArray[np.intp]:
        """The rows with some fault, in order."""
        if not self.faults:
            return np.empty(0, np.intp)
        return np.flatnonzero(np.logical_or.reduce([faults != 0 for faults in self.faults.values()]))

    def problems(self, row: int) -> tuple[Problem, ...]:
        """Return the problems of one row, as the scalar encoder words them."""
        return encode_metadata(self.attributes, self.metadata(row))[1]

    def metadata(self, row: int) -> dict[str, object]:
        """Return the raw metadata of one row."""
        return {name: _cell(column, row) for name, column in self.source.items()}


def encode_columns(program: Program, columns: Any, count: int | None = None) -> Columns:
    """Encode a table of metadata.

    columns: a mapping of names to columns, or a pyarrow Table. count: the number of rows, where there may be
    no columns to tell. Raises ColumnsError.
    """
    source = {str(name): _plain(columns[name]) for name in _names(columns)}
    rows = _length(source, count)
    encoded: dict[str, EncodedColumn] = {}
    faults: dict[str, npt.NDArray[np.uint8]] = {}
    for spec in program.attributes:
        column = encoded[spec.name] = (
            _encode(spec, source[spec.name]) if spec.name in source else _absent(spec, rows)
        )
        found = _with_missing(spec, column)
        if found is not None:
            faults[spec.name] = found
    for name in sorted(source.keys() - encoded.keys()):
        held = _held(source[name])
        if held.any():
            faults[name] = held * np.uint8(_UNKNOWN)
    return Columns(program.attributes, rows, encoded, faults, source)


def _names(columns: Any) -> list[Any]:
    return list(getattr(columns, "column_names", columns))


def _plain(column: Any) -> Any:
    """Return a column as one of the forms that are understood."""
    if is_arrow(column) or isinstance(column, np.ndarray | list):
        return column
    return list(column) if isinstance(column, tuple) else np.asarray(column)


def _length(source: Mapping[str, Any], count: int | None) -> int:
    for name, column in source.items():
        if getattr(column, "ndim", 1) != 1:
            raise ColumnsError(f"the column `{name}` is not one-dimensional")
    lengths = {name: len(column) for name, column in source.items()}
    expected = count if count is not None else next(iter(lengths.values()), 0)
    for name, length in lengths.items():
        if length != expected:
            raise ColumnsError(f"the column `{name}` has {length} rows where others have {expected}")
    return expected


def _encode(spec: AttributeSpec, column: Any) -> EncodedColumn:
    if is_arrow(column):
        return encode_arrow(spec, column)
    if isinstance(column, np.ndarray):
        if column.dtype.kind not in "OUT":
            masked = isinstance(column, np.ma.MaskedArray)
            absent = np.ma.getmaskarray(column) if masked else None
            return encode_array(spec, np.asarray(column), absent)
        column = [None if is_absent(value) else value for value in column.tolist()]
    return encode_objects(spec, column)


def _absent(spec: AttributeSpec, rows: int) -> EncodedColumn:
    values = np.full(rows, absent_code(spec, 0), value_dtype(spec, 0))
    return EncodedColumn(values, np.zeros(rows, bool))


def _with_missing(spec: AttributeSpec, column: EncodedColumn) -> npt.NDArray[np.uint8] | None:
    """Return a column's faults, with those of a required attribute that is absent."""
    if spec.optional or column.present is None or column.present.all():
        return column.faults
    faults = column.faults if column.faults is not None else np.zeros(len(column.values), np.uint8)
    return np.where(~column.present & (faults == 0), np.uint8(_MISSING), faults)


def _held(column: Any) -> BoolArray:
    """Return where a raw column holds a value."""
    if is_arrow(column):
        mask = absent_mask(column)
        return np.ones(len(column), bool) if mask is None else ~mask
    if isinstance(column, np.ndarray) and column.dtype.kind not in "OMUT":
        masked = isinstance(column, np.ma.MaskedArray)
        return ~np.ma.getmaskarray(column) if masked else np.ones(len(column), bool)
    return np.fromiter((not is_absent(value) for value in column), bool, len(column))


def _cell(column: Any, row: int) -> object:
    """Return the raw value of one row, as the scalar encoder would be given it."""
    value: object = column[row]
    if not is_arrow(column):
        return value
    return scalar_value(value)
