"""The inputs of decisions besides metadata, for many examples at once: a context's counts and signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwarden.policy.array_types import Array
from gradwarden.policy.context import Context
from gradwarden.policy.decision import Problem
from gradwarden.policy.evaluation.arrays import CODES
from gradwarden.policy.evaluation.evaluate import ContextError, one_int, required_day
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.evaluation.tape import RowInputs
from gradwarden.policy.evaluation.values import Fault, encode_signal
from gradwarden.policy.program import Program, SignalSpec

Faults = npt.NDArray[np.uint8]

_NOT_FINITE = CODES.index("not_finite")


def read_inputs(program: Program, context: Context, count: int) -> tuple[RowInputs, dict[str, Faults]]:
    """Return the encoded inputs for `count` rows, and per signal with faults [count] numbers of `CODES`.

    Only what the program reads is looked at. A value that cannot be used is replaced by the signal's default;
    its row is invalid. Raises ContextError for a missing date and for arrays of another length.
    """
    parts = partition(program)
    today = required_day(program, context)
    exposures = _exposures(context.exposures, count) if parts.uses_exposures else 0
    signals: dict[str, int | Array] = {}
    faults: dict[str, Faults] = {}
    for spec in program.signals:
        if spec.name not in parts.signals:
            continue
        if spec.name not in context.signals:
            signals[spec.name] = spec.default
            continue
        signals[spec.name], found = _signal(spec, context.signals[spec.name], count)
        if found is not None:
            faults[spec.name] = found
    return RowInputs(context.step, context.epoch, today, exposures, signals, context.spent), faults


def signal_problem(program: Program, signals: Mapping[str, Any], name: str, row: int) -> Problem:
    """Return the problem of one row's signal, in words."""
    spec = next(spec for spec in program.signals if spec.name == name)
    raw = signals[name]
    try:
        encode_signal(spec, raw[row] if _is_row(raw) else raw)
    except Fault as fault:
        return Problem(name, fault.code, fault.detail)
    raise AssertionError(f"signal {name} of row {row} has no fault")


def _is_row(raw: object) -> bool:
    return isinstance(raw, list | tuple) or (isinstance(raw, np.ndarray) and raw.ndim > 0)


def _exposures(raw: Any, count: int) -> int | Array:
    if not _is_row(raw):
        return one_int(raw)
    counts = np.asarray(raw)
    _check_length("exposures", counts, count)
    if counts.dtype.kind not in "iu":
        raise ContextError("`exposures` must be whole numbers")
    return counts.astype(np.int64, copy=False)


def _signal(spec: SignalSpec, raw: Any, count: int) -> tuple[int | Array, Faults | None]:
    if not _is_row(raw):
        try:
            return encode_signal(spec, raw), None
        except Fault as fault:
            return spec.default, np.full(count, CODES.index(fault.code), np.uint8)
    array = _array(raw)
    _check_length(f"the signal `{spec.name}`", array, count)
    if array.dtype.kind == "f":
        return _floats(spec, array)
    if array.dtype.kind in "iu":
        return _ints(spec, array), None
    return _each(spec, array)


def _array(raw: Any) -> Array:
    """Return the values of rows; where they are of several types, each as it is."""
    if isinstance(raw, np.ndarray):
        return np.asarray(raw)
    return np.array(raw, np.float64) if all(type(value) is float for value in raw) else _object_array(raw)


def _object_array(raw: list[Any] | tuple[Any, ...]) -> Array:
    array = np.empty(len(raw), object)
    array[:] = raw
    return array


def _floats(spec: SignalSpec, array: Array) -> tuple[Array, Faults | None]:
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.multiply(array, 10.0**spec.places, dtype=np.float64)
    np.rint(scaled, out=scaled)
    finite = np.isfinite(array)
    if finite.all():
        return np.clip(scaled, spec.lo, spec.hi).astype(np.int64), None
    values = np.where(finite, np.clip(np.where(finite, scaled, 0), spec.lo, spec.hi), spec.default)
    return values.astype(np.int64), np.where(finite, 0, _NOT_FINITE).astype(np.uint8)


def _ints(spec: SignalSpec, array: Array) -> Array:
    scale = int(10**spec.places)
    limits = np.iinfo(array.dtype)
    low = min(max(spec.lo // scale - 1, int(limits.min)), int(limits.max))
    high = max(min(spec.hi // scale + 1, int(limits.max)), int(limits.min))
    return np.clip(np.clip(array, low, high).astype(np.int64) * scale, spec.lo, spec.hi)


def _each(spec: SignalSpec, array: Array) -> tuple[Array, Faults | None]:
    values = np.full(len(array), spec.default, np.int64)
    faults = np.zeros(len(array), np.uint8)
    for row, raw in enumerate(array):
        try:
            values[row] = encode_signal(spec, raw)
        except Fault as fault:
            faults[row] = CODES.index(fault.code)
    return values, faults if faults.any() else None


def _check_length(what: str, array: Array, count: int) -> None:
    if array.shape != (count,):
        raise ContextError(f"{what} must be one number, or one per example: {count}, not {list(array.shape)}")
