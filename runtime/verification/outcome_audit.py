"""Checks a committed step's outcome: which bands moved, and with which gradient norms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from itertools import compress
from math import hypot, inf
from operator import and_
from typing import Any

import numpy as np

from gradwarden.policy.program import Program
from gradwarden.runtime.privacy.accounting import privacy_rules
from gradwarden.runtime.verification.violation import ViolationError, decimals, names, number

NORM_ROUNDING = 1e-5
"""Norms are recorded with six significant digits."""

_ENDLESS = (None, "inf", "-inf")
"""What a loss may be besides a number."""


class OutcomeAudit:
    """Holds the outcomes of steps against what one program allows.

    clip_norm: what the norm of the whole gradient was clipped to. together: whether the run is one rank of a
    job; then others may have reached bands that its own examples did not, and more examples were proposed
    than its own.
    """

    def __init__(self, program: Program, clip_norm: float, *, together: bool = False) -> None:
        self._together = together
        self._bits = {name: 1 << place for place, name in enumerate(program.band_names)}
        self._noised = [
            (rule.name, sum(self._bits.get(band, 0) for band in set(rule.bands)))
            for rule in privacy_rules(program)
        ]
        """Each privacy rule and the bands that its noise moves until it is spent, as bits."""
        self._caps = {
            cap.band: (float(cap.norm) * (1 + NORM_ROUNDING), cap.norm) for cap in program.gradient_caps
        }
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
            reached |= sum(self._bits.get(name, 0) for name in set(body["active"]))
        return self.named(reached)

    def check_batch(self, body: Mapping[str, Any], count: int) -> None:
        """Check that a committed step had no fewer examples on all ranks than on this one, which has `count`.

        Raises ViolationError: `wrong_outcome`.
        """
        if self._together and body["batch"] < count:
            raise _violation(
                f"step {body['step']} has {count} examples here, and {body['batch']} on all ranks"
            )

    def hold(
        self, bodies: Sequence[Mapping[str, Any]], reached: Sequence[int], counts: Sequence[int]
    ) -> bool:
        """Whether the checks find nothing wrong with the outcomes of many steps, with all budgets spent.

        counts: of the examples of each.
        """
        if self._together:
            if any(body.get("batch", -1) < count for body, count in zip(bodies, counts, strict=True)):
                return False
            reached = [
                bands | sum(self._bits.get(name, 0) for name in set(body["active"]))
                for body, bands in zip(bodies, reached, strict=True)
            ]
        elif any("batch" in body for body in bodies):
            return False
        lists = {bands: self.named(bands) for bands in set(reached)}
        if 0 in lists or [body["active"] for body in bodies] != [lists[bands] for bands in reached]:
            return False
        losses = [loss for body in bodies if (loss := body["loss"]) not in _ENDLESS]
        return decimals(losses) is not None and self._hold_norms([body["norms"] for body in bodies], reached)

    def _hold_norms(self, norms: Sequence[Mapping[str, str | None]], reached: Sequence[int]) -> bool:
        """Whether the gradient norms of many steps are what bands that were reached may have."""
        everywhere = reduce(and_, reached, -1)
        squares = np.zeros(len(norms))
        columns = []
        for band, bit in self._bits.items():
            texts = [norm.get(band, "absent") for norm in norms]
            if not everywhere & bit and set(compress(texts, [not bands & bit for bands in reached])) - {None}:
                return False
            numbers = decimals(["0" if text is None else text for text in texts])
            if numbers is None:
                return False
            values = np.array(numbers)
            greatest, _ = self._caps.get(band, (inf, ""))
            if values.min(initial=0.0) < 0.0 or values.max(initial=0.0) > greatest:
                return False
            squares += np.square(values)
            columns.append(numbers)
        # Far from the bound it does not matter how a root is rounded.
        far = squares.max(initial=0.0) < 0.999 * self._greatest**2
        return {len(self._bits)}.issuperset(map(len, norms)) and (
            far or all(hypot(*whole) <= self._greatest for whole in zip(*columns, strict=True))
        )

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
