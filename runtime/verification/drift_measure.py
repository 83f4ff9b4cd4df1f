"""Measures how far the maintained bands of a checkpoint are from their anchors, with numpy alone.

The drifts in a ledger are what the trainer says. Where a checkpoint that the ledger names and the anchors
beside it are at hand, they are measured here: ||weights - anchor|| / ||anchor|| for each band, from the two
files, in double precision and a bounded amount of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np

from gradwarden.policy.context import FloatArray
from gradwarden.policy.evaluation.phrasing import percent
from gradwarden.policy.program import SCALE, Maintenance
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import WeightsError
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.weights.stored import StoredWeights

ROUNDING = 1e-5
"""By how much a drift that was measured by the trainer, in single precision perhaps, may be too small."""

FAULTS = (OSError, ValueError, ArithmeticError, WeightsError)
"""What measuring may raise where files are malformed, or do not fit each other."""

_CHUNK = 1 << 20
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class AnchoredBand:
    """A band that was maintained when a checkpoint was saved, and the file that holds its anchor."""

    band: str
    parameters: tuple[str, ...]
    rule: Maintenance
    file: str
    digest: str


def measure(
    ledger: Path, weights: Path, bands: Sequence[AnchoredBand], index: int, drift: dict[str, str]
) -> Iterator[Finding]:
    """Yield what is wrong with a checkpoint's maintained bands; enter in `drift` what was measured.

    ledger: its anchors are looked for beside it. weights: a file or a folder of them. index: of the entry
    that findings are about.
    """
    for held in bands:
        path = ledger.with_name(Path(held.file).name)
        if not path.is_file():
            message = f"the drift of `{held.band}` was not measured: `{path.name}` is not beside the ledger"
            yield Finding("drift_unmeasured", index, message, "warning")
            continue
        if file_digest(path) != held.digest:
            message = f"`{path.name}` is not the anchor of `{held.band}` that the ledger names"
            yield Finding("anchor_mismatch", index, message)
            continue
        try:
            with StoredWeights.open(weights) as found, StoredWeights([path]) as anchor:
                measured = _drift(found, anchor, held.parameters)
        except FAULTS as error:
            message = f"the drift of `{held.band}` was not measured: {' '.join(str(error).split())[:200]}"
            yield Finding("drift_unmeasured", index, message, "warning")
            continue
        drift[held.band] = f"{measured:.6g}"
        bound = None if held.rule.level == "advisory" else held.rule.drift
        if bound is not None and not measured <= bound / SCALE * (1 + ROUNDING):
            yield Finding(
                "wrong_drift",
                index,
                f"in `{weights.name}` the band `{held.band}` has drifted by {100 * measured:.6g}% of its "
                f"anchor; `{held.rule.name}` lets it drift by {percent(bound)}",
            )


def _drift(weights: StoredWeights, anchor: StoredWeights, parameters: Sequence[str]) -> float:
    moved = whole = 0.0
    for name in parameters:
        for one, other in zip(values(weights, name), values(anchor, name), strict=True):
            moved += float(np.square(one - other).sum())
            whole += float(np.square(other).sum())
    return sqrt(moved) / sqrt(whole)


def values(weights: StoredWeights, name: str) -> Iterator[FloatArray]:
    """Yield a tensor's values in order, some at a time, as float64. Raises one of `FAULTS`."""
    tensor = weights.find(name)
    kind = _TYPES.get(tensor.dtype)
    if kind is None:
        raise WeightsError(f"`{name}` is of the type {tensor.dtype}")
    for start in range(0, tensor.size, _CHUNK):
        stop = min(start + _CHUNK, tensor.size)
        chunk = np.frombuffer(weights.data(tensor, start, stop), kind)
        if tensor.dtype == "BF16":  # the upper half of a float32
            chunk = (chunk.astype(np.uint32) << 16).view(np.float32)
        yield chunk.astype(np.float64)
