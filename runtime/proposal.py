"""One proposed step: from admission to the optimizer's move, or to a refusal that leaves only a record.

The engine adds the masked gradient of the public examples. That of the private ones is clipped per unit,
noised and added by itself (`budget`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwarden.policy.admission import Admitted
from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, Decision
from gradwarden.policy.program import SCALE
from gradwarden.runtime.errors import MaskError, PrivacyError
from gradwarden.runtime.gates import Finding, check_losses
from gradwarden.runtime.restore import Snapshot
from gradwarden.runtime.roster import Examples

if TYPE_CHECKING:
    from gradwarden.runtime.governor import Governor

ADMIT, REFUSED_FROM = VERDICTS.index("admit"), VERDICTS.index("defer")


class Proposal:
    """A step between its admission and its outcome. Made by `Governor.step`; use it as a context manager.

    verdict: `admit` (every example at full weight), `limit` (something is masked or left out) or `refuse`.
    decisions: one per example. weights: float64 [B, bands]. active: names of the bands that some example of
    the step reaches or that are noised for privacy; none once the step was refused. refusal: why a gate
    refused the step, None where it went through.
    """

    def __init__(self, governor: Governor, examples: Examples, signals: Mapping[str, Any]) -> None:
        self._governor = governor
        self._examples = examples
        self._signals = signals
        self.refusal: Finding | None = None
        self.committed = False
        self._entered = False

    # --- admission -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        governor = self._governor
        governor.check_idle("a step cannot begin")
        if self._entered:
            raise MaskError("a proposal is used once", help="call `governor.step` for every step")
        self._entered = True
        self.rows = governor.roster.rows(self._examples)
        self.context: Context = governor.context(self.rows, self._signals)
        self.admitted: Admitted = governor.roster.admit(self.rows, self.context)
        self.weights: npt.NDArray[np.float64] = self.admitted.micro / SCALE
        self.verdict = _step_verdict(self.admitted.verdicts)
        self.norms: dict[str, float | None] = {}
        self._private = governor.budgets.private_rows(self.decisions, self._unit)
        self._public = torch.from_numpy(self.weights.any(axis=1) & ~self._private.mask)
        self.active: tuple[str, ...] = self._active()
        self._losses: list[float] = []
        self._done = np.zeros(len(self.rows), dtype=bool)
        self._slice = slice(0, len(self.rows))
        self._snapshot = Snapshot(governor.model)
        governor.begin(self)
        try:
            governor.model.zero_grad(set_to_none=True)
            self._arm()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _unit(self, place: int, attribute: str) -> str:
        return self._governor.roster.unit(int(self.rows[place]), attribute)

    @property
    def decisions(self) -> list[Decision]:
        return [self.admitted.decisions[i] for i in self.admitted.decision_ids.tolist()]

    def _active(self) -> tuple[str, ...]:
        reached: list[bool] = [bool(column.any()) for column in self.weights.T]
        noised = self._governor.budgets.noised_bands
        return tuple(
            band
            for band, hit in zip(self._governor.program.band_names, reached, strict=True)
            if hit or band in noised
        )

    # --- gradients -----------------------------------------------------------------------------------------

    def micro_batches(self, size: int) -> Iterator[slice]:
        """Yield row slices of at most `size` for gradient accumulation; call `backward` once for each.

        Raises PrivacyError where the policy has privacy rules: a unit is clipped over the whole step.
        """
        if self._governor.budgets:
            raise PrivacyError(
                "gradient accumulation is not available with privacy rules",
                help="run the step's examples in one forward pass",
            )
        if size < 1:
            raise MaskError(f"a micro-batch has at least one example, not {size}")
        for start in range(0, len(self.rows), size):
            self._slice = slice(start, min(start + size, len(self.rows)))
            self._arm()
            yield self._slice

    def backward(self, losses: Tensor) -> None:
        """Add the masked gradient of one loss per example. losses: [B], attached to the graph.

        Raises MaskError where the shape is wrong or rows come twice. A loss that is not finite refuses the
        step when it is left, not here; so does an error raised here, even if the caller goes on after it.
        """
        count = self._slice.stop - self._slice.start
        if losses.dim() != 1 or losses.shape[0] != count:
            raise MaskError(
                f"`backward` takes one loss per example: shape [{count}], not {list(losses.shape)}",
                help="reduce the loss over everything but the batch, for example `loss.view(B, -1).mean(1)`",
            )
        if self._done[self._slice].any():
            raise MaskError("`backward` was called twice for the same examples")
        self._done[self._slice] = True
        if self.refusal is not None or not self.weights[self._slice].any():
            return
        public = self._public[self._slice]
        try:
            self.refusal = check_losses(losses, public.nonzero().flatten().tolist())
            if self.refusal is None:
                self._remember(losses.detach().double().cpu(), public)
                self._differentiate(losses, public)
        except BaseException as error:
            self.refusal = Finding("gradient", "no_gradient", f"`backward` raised `{type(error).__name__}`")
            raise

    def _remember(self, losses: Tensor, public: Tensor) -> None:
        """Note the losses of public examples. Those of private ones must not steer or show anywhere."""
        rows = self.rows[self._slice][public.numpy()]
        kept = losses[public].numpy()
        self._losses += kept.tolist()
        self._governor.references.observe(rows, kept, self._governor.roster.exposures(rows))

    def _differentiate(self, losses: Tensor, public: Tensor) -> None:
        governor = self._governor
        if self._private.units:
            with governor.engine.unweighted():
                governor.budgets.contribute(losses, self._private, self.weights, governor.parameters)
        if bool(public.any()):
            rows = None if bool((public | ~self._reached()).all()) else public
            governor.engine.backward(losses, self.normaliser, rows=rows)

    def _reached(self) -> Tensor:
        return torch.from_numpy(self.weights[self._slice].any(axis=1))

    @property
    def normaliser(self) -> float:
        """What the sum of the examples' gradients is divided by."""
        fixed = self._governor.normaliser
        return float(len(self.rows)) if fixed is None else fixed

    def _arm(self) -> None:
        weights = torch.from_numpy(self.weights[self._slice])
        if bool(weights.any()):
            self._governor.engine.arm(weights)
        else:
            self._governor.engine.disarm()

    # --- outcome -------------------------------------------------------------------------------------------

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: object,
    ) -> None:
        self._governor.engine.disarm()
        self._governor.conclude(self, error)

    def restore(self) -> None:
        """Put generators and buffers back as they were before the step; drop its gradients."""
        self._snapshot.restore()
        self.verdict = "refuse"
        self.active = ()

    @property
    def complete(self) -> bool:
        """Whether every example that may shape something has been through `backward`."""
        return not self.weights[~self._done].any()

    @property
    def mean_loss(self) -> float | None:
        """The mean loss of the public examples that shaped the step; None where there were none."""
        return sum(self._losses) / len(self._losses) if self._losses else None


def _step_verdict(verdicts: npt.NDArray[np.uint8]) -> str:
    if len(verdicts) == 0 or bool((verdicts >= REFUSED_FROM).all()):
        return "refuse"
    return "admit" if bool((verdicts == ADMIT).all()) else "limit"
