"""Measures how far the maintained bands of a checkpoint are from their anchors, with numpy alone.

The drifts in a ledger are what the trainer says. Where a checkpoint that the ledger names and the anchors
beside it are at hand, they are measured here: ||weights - anchor|| / ||anchor|| for each band, from the two
files, in double precision and a bounded amount of memory.

Both files are safetensors: the length of a header (8 bytes, little endian), the header (JSON: per tensor its
type, shape and place in the data), the data. Of tied tensors one is stored; the header's metadata give the
other names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from gradwarden.policy.context import FloatArray
from gradwarden.policy.evaluation.phrasing import percent
from gradwarden.policy.program import SCALE, Maintenance
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.ledger.chain import Finding

ROUNDING = 1e-5
"""By how much a drift that was measured by the trainer, in single precision perhaps, may be too small."""

MAX_HEADER = 100_000_000
"""The longest header that the format allows, in bytes."""

FAULTS = (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError)
"""What reading a malformed file may raise."""

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

    ledger: its anchors are looked for beside it. index: of the entry that findings are about.
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
            measured = _drift(StoredTensors(weights), StoredTensors(path), held.parameters)
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


def _drift(weights: StoredTensors, anchor: StoredTensors, names: Sequence[str]) -> float:
    moved = whole = 0.0
    for name in names:
        for one, other in zip(weights.chunks(name), anchor.chunks(name), strict=True):
            moved += float(np.square(one - other).sum())
            whole += float(np.square(other).sum())
    return sqrt(moved) / sqrt(whole)


class StoredTensors:
    """The tensors of a safetensors file. Raises one of `FAULTS` where it is malformed."""

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(MAX_HEADER, size - 8):
                raise ValueError(f"`{path.name}` is no safetensors file")
            self._header: Mapping[str, Any] = dict(json.loads(file.read(length)))
        self._start = 8 + length
        self._data = np.memmap(path, np.uint8, "r")
        self._aliases: Mapping[str, str] = self._header.get("__metadata__") or {}

    def names(self) -> list[str]:
        """Return the names of the tensors that are stored, in the order of the header."""
        return [name for name in self._header if name != "__metadata__"]

    def raw(self, name: str) -> memoryview:
        """Return a tensor's stored bytes."""
        begin, end = self._header[name]["data_offsets"]
        if not 0 <= begin <= end <= len(self._data) - self._start:
            raise ValueError(f"`{name}` lies outside the file")
        return self._data[self._start + begin : self._start + end].data

    def chunks(self, name: str) -> Iterator[FloatArray]:
        """Yield a tensor's values in order, some at a time, as float64."""
        entry = self._header[name if name in self._header else self._aliases[name]]
        begin, end = entry["data_offsets"]
        kind = _TYPES.get(entry["dtype"])
        if kind is None:
            raise ValueError(f"`{name}` is of the type {entry['dtype']}")
        raw = self._data[self._start + begin : self._start + end].view(kind)
        if len(raw) != np.prod(entry["shape"], dtype=np.int64):
            raise ValueError(f"`{name}` has another length than its shape")
        for at in range(0, len(raw), _CHUNK):
            chunk = raw[at : at + _CHUNK]
            if entry["dtype"] == "BF16":  # the upper half of a float32
                chunk = (chunk.astype(np.uint32) << 16).view(np.float32)
            yield chunk.astype(np.float64)
