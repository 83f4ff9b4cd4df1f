"""Checks a committed step's outcome: which bands moved, and with which gradient norms."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import hypot, inf
from operator import lt
from typing import Any

import numpy as np
import orjson

from gradwarden.policy.array_types import Floats, Numbers
from gradwarden.policy.program import Program
from gradwarden.runtime.privacy.accounting import privacy_rules
from gradwarden.runtime.verification.outcome_columns import OutcomeColumns, OutcomeReader, read_decimals
from gradwarden.runtime.verification.violation import ViolationError, names, number

NORM_ROUNDING = 1e-5
"""Norms are recorded with six significant digits."""

_ENDLESS = (None, "inf", "-inf")
"""What a loss may be besides a number."""

_ENDLESS_JSON = frozenset(map(orjson.dumps, _ENDLESS))

MOST_BANDS = 62
"""Bands that are bits of one number of an array."""


class OutcomeAudit:
    """Holds the outcomes of steps against what one program allows.

    clip_norm: what the norm of the whole gradient was clipped to. together: whether the run is one rank of a
    job; then others may have reached bands that its own examples did not, and more examples were proposed
    than its own.
    """

    def __init__(self, program: Program, clip_norm: float, *, together: bool = False) -> None:
        self._together = together
        self._bits = {name: 1 << place for place, name in enumerate(program.band_names)}
        self._noised = [(rule.name, self._named_by(rule.bands)) for rule in privacy_rules(program)]
        """Each privacy rule and the bands that its noise moves until it is spent, as bits."""
        self._caps = {
            cap.band: (float(cap.norm) * (1 + NORM_ROUNDING), cap.norm) for cap in program.gradient_caps
        }
        self._reader = OutcomeReader(program.band_names)
        self._clip_norm = clip_norm
        self._greatest = clip_norm * (1 + NORM_ROUNDING)

    def check(self, body: Mapping[str, Any], reached: int, spent: Collection[str]) -> list[str]:
        """Check the outcome of a step and return the bands that it moved.

        reached: the bands (bit i: band i) in which some example has weight. spent: privacy rules that add no
        noise any more. Raises ViolationError: `wrong_outcome`.
        """
        active = self._moved(body, self._with_noise(reached, spent))
        if not active:
            raise _violation(f"step {body['step']} was committed, and reaches nothing")
        if body["active"] != active:
            raise _violation(
                f"step {body['step']} moved {names(body['active'])}; its decisions allow {names(active)}"
            )
        self._check_norms(body, active)
        return active

    def _moved(self, body: Mapping[str, Any], reached: int) -> list[str]:
        """Return the bands that a step whose examples reach these may have moved, as they are recorded."""
        if ("batch" in body) != self._together:
            raise _violation(
                f"step {body['step']} must say how many examples all ranks proposed, in a job and only there"
            )
        if self._together:
            reached |= self._named_by(body["active"])
        return self.named(reached)

    def check_batch(self, body: Mapping[str, Any], count: int) -> None:
        """Check that a committed step had no fewer examples on all ranks than on this one, which has `count`.

        Raises ViolationError: `wrong_outcome`.
        """
        if self._together and body["batch"] < count:
            raise _violation(
                f"step {body['step']} has {count} examples here, and {body['batch']} on all ranks"
            )

    def read(self, bodies: bytes, committed: Sequence[bool]) -> OutcomeColumns | None:
        """Read the outcomes of many steps; see `OutcomeReader.read`."""
        return self._reader.read(bodies, committed)

    def hold(self, outcomes: OutcomeColumns, reached: Numbers, counts: Numbers) -> int | None:
        """Return the bands (bit i: band i) that committed steps have moved, all budgets being spent.

        None unless the checks find nothing wrong with them. reached, counts: of the examples of each, [C].
        """
        if len(self._bits) > MOST_BANDS:
            return None
        if self._together:
            if b"" in outcomes.batches or any(map(lt, map(int, outcomes.batches), counts.tolist())):
                return None
            others = {text: self._named_by(orjson.loads(text)) for text in set(outcomes.active)}
            reached = reached | np.array([others[text] for text in outcomes.active], np.int64)
        elif any(outcomes.batches):
            return None
        bands: list[int] = reached.tolist()
        texts = {some: orjson.dumps(self.named(some)) for some in set(bands)}
        if 0 in texts or [texts[some] for some in bands] != list(outcomes.active):
            return None
        losses = read_decimals([loss for loss in outcomes.losses if loss not in _ENDLESS_JSON])
        if losses is None or not self._hold_norms(outcomes.norms, reached):
            return None
        return int(np.bitwise_or.reduce(reached, initial=0))

    def _hold_norms(self, norms: Floats, reached: Numbers) -> bool:
        """Whether norms [bands, C] are what those of steps that reach some bands may be."""
        bits = np.array([*self._bits.values()], np.int64)[:, None]
        absent = np.isnan(norms)
        values = np.where(absent, 0.0, norms)
        greatest = np.array([self._caps.get(band, (inf, ""))[0] for band in self._bits])[:, None]
        if not (absent | (reached & bits != 0)).all() or not ((values >= 0.0) & (values <= greatest)).all():
            return False
        # Far from the bound it does not matter how a root is rounded. As parts of the bound, norms that count
        # have squares that are numbers, whatever their size; what is too great for one is no part of it.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            squares = np.square(values / self._greatest).sum(axis=0)
        if squares.max(initial=0.0) < 0.999:
            return True
        return all(hypot(*whole) <= self._greatest for whole in values.T.tolist())

    def _named_by(self, names: Iterable[str]) -> int:
        """Return the bands of these names, as bits."""
        return sum(self._bits.get(name, 0) for name in set(names))

    def movable(self, reached: int, spent: Collection[str]) -> list[str]:
        """Return the bands that a step whose outcome was lost may have moved; arguments as of `check`."""
        return list(self._bits) if self._together else self.named(self._with_noise(reached, spent))

    def _with_noise(self, reached: int, spent: Collection[str]) -> int:
        for rule, bands in self._noised:
            if rule not in spent:
                reached |= bands
        return reached

    def named(self, bands: int) -> list[str]:
        """Return the names of bands (bit i: band i)."""
        return [name for name, bit in self._bits.items() if bands & bit]

    def _check_norms(self, body: Mapping[str, Any], active: Sequence[str]) -> None:
        recorded = body["norms"]
        norms = {band: number(norm) for band, norm in recorded.items() if norm is not None}
        stray = norms.keys() - active
        if stray:
            raise _violation(
                f"step {body['step']} has a gradient in {names(sorted(stray))}, which it may not reach"
            )
        if recorded.keys() != self._bits.keys() or (norms and min(norms.values()) < 0.0):
            raise _violation(f"step {body['step']} does not record the gradient norm of each band")
        if body["loss"] not in _ENDLESS:
            number(body["loss"])
        for band, (greatest, cap) in self._caps.items():
            if norms.get(band, 0.0) > greatest:
                raise _violation(
                    f"the gradient of `{band}` in step {body['step']} has norm {recorded[band]}, above the "
                    f"cap of {cap}"
                )
        whole = hypot(*norms.values())
        if whole > self._greatest:
            raise _violation(
                f"the gradient of step {body['step']} has norm {whole:.6g}, above {self._clip_norm:g}"
            )


def _violation(message: str) -> ViolationError:
    return ViolationError("wrong_outcome", message)
