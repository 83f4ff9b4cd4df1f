"""What a run measures of its examples for the signals that its policy declares by a known name.

The table of names is `gradwarden.policy.known_signals`. A step's readings are taken by the proposal, from
public examples alone, put together over all processes, and remembered here when the step is left. The losses
that `loss_ratio` goes by are always remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.policy.evaluation.chosen_steps import is_chosen
from gradwarden.policy.program import Program, SignalSpec
from gradwarden.runtime.errors import ExampleError, MaskError
from gradwarden.runtime.memorization.comings import ComingCounter
from gradwarden.runtime.memorization.gradient_gauge import GradientGauge
from gradwarden.runtime.memorization.latest import LatestValues
from gradwarden.runtime.memorization.losses import LossReference
from gradwarden.runtime.memorization.outliers import NormOutliers
from gradwarden.runtime.memorization.output_gradients import OutputGradients
from gradwarden.runtime.memorization.trajectories import LossTrajectory
from gradwarden.runtime.options import Measuring
from gradwarden.runtime.roster import Roster

LOSS = "loss"
"""The reading that is always taken; the others have the name of their signal."""

GRADIENT_NORM, DEPTH_SHARE, TOKEN_SCORE = "gradient_norm", "depth_share", "token_score"

PARAMETER_NORM = "parameter_gradient_norm"

OWN_GRADIENT = "own_gradient:{}"
"""The norm of an example's own gradient in the band of this number; no signal, but what a step records."""

Readings = Mapping[str, tuple[IntArray, FloatArray]]
"""By name: places in the batch, and the value measured at each."""


class _Kept(Protocol):
    """What remembers readings of one kind."""

    def observe(self, rows: IntArray, values: FloatArray) -> None: ...

    def signal(self, rows: IntArray) -> FloatArray: ...

    def state_dict(self, ids: list[str]) -> Any: ...

    def load_state_dict(self, state: Any, rows: Mapping[str, int]) -> None: ...


class Measures:
    """The known signals of one run."""

    def __init__(self, roster: Roster, measuring: Measuring) -> None:
        if measuring.every < 1:
            raise MaskError(f"one step in 1 at least is measured, not one in {measuring.every}")
        self._roster = roster
        self._given = measuring.reference_losses
        self._every = measuring.every
        self._declared: dict[str, SignalSpec] = {}
        self._bands = 0
        self._recorded = 0
        self.references = LossReference()
        self._falls = LossTrajectory()
        self._comings = ComingCounter(roster)
        self._kept: dict[str, _Kept] = {
            GRADIENT_NORM: NormOutliers(),
            PARAMETER_NORM: NormOutliers(),
            DEPTH_SHARE: LatestValues(),
            TOKEN_SCORE: LatestValues(),
        }
        self.outputs: OutputGradients | None = None

    def follow(self, program: Program, model: nn.Module) -> None:
        """Measure what a program declares, from now on."""
        self._declared = {spec.name: spec for spec in program.signals}
        self._bands = len(program.bands)
        self._recorded = program.recorded
        self.close()
        if self.wants(GRADIENT_NORM):
            self.outputs = OutputGradients(model)

    def close(self) -> None:
        """Give the model back as it was."""
        if self.outputs is not None:
            self.outputs.remove()
            self.outputs = None

    def wants(self, name: str) -> bool:
        """Return whether the program declares a signal."""
        return name in self._declared

    def gauge(self, step: int, count: int) -> GradientGauge | None:
        """Return what measures a batch of so many examples, None where the step is not one of those."""
        return GradientGauge(count, self._bands) if self.gauges(step) or self.records(step) else None

    def gauges(self, step: int) -> bool:
        """Return whether gradients are measured in a step for the signals of later ones."""
        wanted = self.wants(DEPTH_SHARE) or self.wants(PARAMETER_NORM)
        return wanted and is_chosen(step, self._every)

    def records(self, step: int) -> bool:
        """Return whether a step records what each example adds to the gradient of each band."""
        return is_chosen(step, self._recorded)

    def own_gradients(self, readings: dict[str, tuple[IntArray, FloatArray]], count: int) -> FloatArray:
        """Take out of readings the norms of own gradients, float64 [count, bands]; 0 where there is none."""
        found = np.zeros((count, self._bands))
        for band in range(self._bands):
            places, values = readings.pop(OWN_GRADIENT.format(band), (np.zeros(0, np.int64), np.zeros(0)))
            found[places, band] = values
        return found

    def signals(self, rows: IntArray) -> dict[str, FloatArray | IntArray]:
        """Return the declared signals that are known, float64 or int64 [rows] by name."""
        found: dict[str, FloatArray | IntArray] = {}
        for name, spec in self._declared.items():
            values = self._signal(name, rows)
            if values is not None:
                default = spec.default / 10**spec.places
                found[name] = np.where(np.isnan(values), default, values)
        return found

    def _signal(self, name: str, rows: IntArray) -> FloatArray | IntArray | None:
        match name:
            case "loss_ratio":
                return self.references.signal(rows)
            case "loss_gap":
                return self.references.gap(rows, self._references(rows))
            case "loss_fall":
                return self._falls.signal(rows)
            case "copies":
                return self._roster.copies(rows)
            case "comings":
                return self._comings.signal(rows)
            case _:
                kept = self._kept.get(name)
                return None if kept is None else kept.signal(rows)

    def _references(self, rows: IntArray) -> FloatArray:
        """Return the reference losses that were given, NaN for examples without."""
        if not self._given:
            return np.full(len(rows), np.nan)
        return np.array(
            [self._given.get(name, np.nan) for name in self._roster.names(rows)], dtype=np.float64
        )

    def observe(self, rows: IntArray, readings: Readings, private: npt.NDArray[np.bool_]) -> None:
        """Remember what a step has measured. rows: of its whole batch; private: which privacy rules cover."""
        self._comings.came(rows[~private])
        for name, (places, values) in readings.items():
            if name == LOSS:
                own = rows[places]
                self.references.observe(own, values, self._roster.exposures(own))
                if self.wants("loss_fall"):
                    self._falls.observe(own, values)
            else:
                self._kept[name].observe(rows[places], values)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is remembered, by id, as plain data; what the ledger holds is left out."""
        ids = list(self._roster.known())
        state = {name: kept.state_dict(ids) for name, kept in self._kept.items()}
        return {
            "losses": self.references.state_dict(ids),
            "loss_fall": self._falls.state_dict(ids),
            "comings": self._comings.state_dict(ids),
            **state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what another run of the same examples remembered; they must be known already.

        Raises ExampleError where one is not.
        """
        rows = self._roster.known()
        try:
            self.references.load_state_dict(state["losses"], rows)
            self._falls.load_state_dict(state["loss_fall"], rows)
            self._comings.load_state_dict(state["comings"], rows)
            for name, kept in self._kept.items():
                kept.load_state_dict(state[name], rows)
        except KeyError as error:
            raise ExampleError(
                f"`{error.args[0]}` is not known",
                help="make the examples known first, with `governor.roster.add`",
            ) from error
