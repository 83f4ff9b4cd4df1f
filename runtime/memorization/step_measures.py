"""What one process measures of its examples while it runs a step, for the signals of later ones.

Of public examples alone: private ones must not steer or show anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.in_force import InForce
from gradwarden.runtime.memorization.gradient_gauge import GradientGauge
from gradwarden.runtime.memorization.measures import (
    DEPTH_SHARE,
    GRADIENT_NORM,
    LOSS,
    OWN_GRADIENT,
    PARAMETER_NORM,
    TOKEN_SCORE,
    Measures,
    Readings,
)
from gradwarden.runtime.memorization.readings import StepReadings
from gradwarden.runtime.memorization.token_scores import token_scores
from gradwarden.runtime.ranks.data_parallel import Part, join_readings
from gradwarden.runtime.steps.batch_parts import BatchParts


class StepMeasures:
    """The readings of one step. parts: of its examples on this process, as they are run."""

    def __init__(self, measures: Measures, in_force: InForce, parts: BatchParts, step: int) -> None:
        self._measures = measures
        self._in_force = in_force
        self._parts = parts
        self._step = step
        self._readings = StepReadings()
        self._losses: list[float] = []
        self.gauge: GradientGauge | None = None
        """What the engine measures examples' gradients with in the part at hand; None where it does not."""
        self.own_gradients: FloatArray | None = None
        """Once all ranks have measured, the norms of the whole batch's own gradients, float64 [batch, bands]:
        0 where an example has none, or is private. None where the step does not record them."""

    def expect(self, owners: Tensor | None) -> None:
        """Be ready for the part at hand. owners: as of `Proposal.assign`, or None."""
        count, outputs = len(self._parts.rows), self._measures.outputs
        if outputs is not None:
            outputs.begin(count if owners is None else None)
        self.gauge = self._measures.gauge(self._step, count)

    def follow(self, losses: Tensor) -> None:
        """See the losses that are to be differentiated."""
        if self._measures.outputs is not None:
            self._measures.outputs.follow(losses)

    def remember(self, losses: Tensor) -> None:
        """Note the losses of the part at hand, float64 [rows] on the CPU."""
        public = self._public
        self._readings.add(LOSS, self._parts.rows, losses.numpy(), public)
        self._losses += losses.numpy()[public].tolist()

    def read(self, scale: float) -> None:
        """Note what the backward pass of the part at hand has shown. scale: of the losses that it was of."""
        outputs, gauge, rows = self._measures.outputs, self.gauge, self._parts.rows
        norms = None if outputs is None else outputs.norms()
        if norms is not None:
            self._readings.add(GRADIENT_NORM, rows, norms, self._public)
        if gauge is not None and self._measures.gauges(self._step):
            shares = gauge.shares(self._in_force.deepest)
            self._readings.add(DEPTH_SHARE, rows, shares, self._public)
            self._readings.add(PARAMETER_NORM, rows, gauge.norms() / scale, self._public)
        if gauge is not None and self._measures.records(self._step):
            for band, norms in enumerate(gauge.by_band().T / scale):
                self._readings.add(OWN_GRADIENT.format(band), rows, norms, self._public)

    def observe_tokens(self, logits: Tensor, targets: Tensor, ignore: int) -> None:
        """Measure `token_score` in the part at hand; see `Proposal.observe_tokens`."""
        if not self._measures.wants(TOKEN_SCORE):
            return
        rows = self._parts.rows
        if len(logits) != len(rows):
            raise MaskError(
                f"token scores need one row of logits per example: {len(rows)}, not {len(logits)}",
                help="give sequences of their own to `observe_tokens` where several are packed in a row",
            )
        scores = token_scores(logits, targets, ignore=ignore)
        self._readings.add(TOKEN_SCORE, rows, scores.numpy(), self._public)

    @property
    def _public(self) -> npt.NDArray[np.bool_]:
        public: npt.NDArray[np.bool_] = self._parts.public.numpy()[self._parts.rows]
        return public

    def joined(self) -> Readings:
        """Return all readings of this process."""
        return self._readings.joined()

    def take(
        self, parts: Sequence[Part], batch: IntArray, starts: Sequence[int], covered: npt.NDArray[np.bool_]
    ) -> None:
        """Take what all ranks have measured for that of the step, and remember it by example.

        covered: of the batch, which examples privacy rules cover.
        """
        readings = join_readings(parts, starts)
        if self._measures.records(self._step):
            self.own_gradients = self._measures.own_gradients(readings, len(batch))
        self._losses = readings[LOSS][1].tolist() if LOSS in readings else []
        self._measures.observe(batch, readings, covered)

    @property
    def mean_loss(self) -> float | None:
        """The mean loss of the public examples that shaped the step; None where there were none."""
        return sum(self._losses) / len(self._losses) if self._losses else None
