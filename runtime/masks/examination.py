"""Trying the fused engine on the batch at hand before it is trusted, once for each kind of batch."""

from __future__ import annotations

import warnings
from typing import Any

from gradwarden.runtime.masks.agreement import agreed_failure
from gradwarden.runtime.masks.covering import notes_on
from gradwarden.runtime.masks.differentiation import Differentiation
from gradwarden.runtime.masks.full_precision import full_precision
from gradwarden.runtime.masks.packed_trial import PackedTrial
from gradwarden.runtime.masks.packing import learn_positions
from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.probe import probe
from gradwarden.runtime.masks.trial import Trial, TrialError


class Examination:
    """What trying one engine has shown.

    probed: whether ordinary batches were tried and found exact. dim: the dimension of the model's inputs that
    holds the batch then. strict: whether positions that cannot be found raise TrialError.
    """

    def __init__(self, gradients: Differentiation, passes: Passes, notes: list[str], *, strict: bool) -> None:
        self._gradients = gradients
        self._places, self._forward = gradients.places, gradients.forward
        self._passes = passes
        self._notes = notes
        self._strict = strict
        self.probed = self._packed = False
        self.dim = 0

    def examine(self, args: tuple[Any, ...], kwargs: dict[str, Any], armed: Plan) -> None:
        """Probe the model with a few of the batch's examples. Raises TrialError where it is not exact."""
        self._forward.pending, self._forward.probing = None, True
        failure: TrialError | None = None
        try:
            trial = self._passes.common(lambda: Trial(self._places.model, args, kwargs, armed.weights))
            # One example cannot be mixed with others. Until there are two, layers go the reference way.
            if trial is not None and trial.distinct > 1:
                with full_precision():
                    self.probed = probe(self._gradients, trial)
                self.dim = trial.dim
        except TrialError as error:
            failure = error
        finally:
            self._forward.pending, self._forward.probing = armed, False
        failure = agreed_failure(self._passes, failure)
        if failure is not None:
            raise failure
        if self.probed:
            self._notes += notes_on(self._places.pieces)
        names = sorted(name for name, path in self._places.paths().items() if path == "reference")
        if self.probed and names:
            shown = ", ".join(f"`{name}`" for name in names[:3]) + (", …" if len(names) > 3 else "")
            self._notes.append(
                f"{len(names)} parameters are used outside supported layers and take the reference path "
                f"where their weights differ between examples: {shown}"
            )

    def examine_packed(self, args: tuple[Any, ...], kwargs: dict[str, Any], armed: Plan) -> None:
        """Try the model on packed sequences once; layers whose positions are not found stay stock ones."""
        owners, count = armed.owners, armed.examples.batch
        if self._packed or owners is None:
            return
        self._forward.pending, self._forward.probing = None, True
        failure: TrialError | None = None
        try:
            trial = self._passes.common(lambda: PackedTrial(self._places.model, args, kwargs, owners, count))
            if trial is not None and trial.distinct > 1:
                with full_precision():
                    learn_positions(self._gradients, trial)
                self._packed = True
        except TrialError as error:
            failure = error
        finally:
            self._forward.pending, self._forward.probing = armed, False
        failure = agreed_failure(self._passes, failure)
        if failure is None:
            return
        if self._strict:
            raise failure
        self._packed = True
        for site in self._places.sites:
            site.positions.clear()
        reason = f"packed sequences take the slower reference path: {failure.message}"
        self._notes.append(reason)
        warnings.warn(f"gradwarden: {reason}", stacklevel=2)
