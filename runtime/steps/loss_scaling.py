"""Loss scaling for half precision (Micikevicius et al. 2018), as part of a governed step.

Gradients in float16 vanish below 6e-8. So losses are multiplied by a scale before the backward pass, and
gradients divided by it after: before any gate looks at them, so that norms, caps and what the ledger says are
those of the gradients themselves. `torch.amp.GradScaler` keeps the scale. Where it skips a step in silence,
the governor refuses one on record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from gradwarden.runtime.errors import PrivacyError
from gradwarden.runtime.steps.gates import Finding, gradient_values

OVERFLOW = "gradient_not_finite"
"""The reason of a refusal that lowers the scale."""


class LossScaling:
    """The scale of a run's losses; 1 throughout where there is no scaler, or it is not enabled.

    optimizer: steps on the gradients. private: whether the run has privacy rules. Raises PrivacyError where
    it has: whether a step is skipped, and the scale from then on, would depend on private gradients that were
    neither clipped nor noised.
    """

    def __init__(self, scaler: GradScaler | None, optimizer: torch.optim.Optimizer, private: bool) -> None:
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._optimizer = optimizer
        self._moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._divided = False
        if self._scaler is not None and private:
            raise PrivacyError(
                "a scaler cannot be used with privacy rules: it would skip steps by raw private gradients",
                help="train in bfloat16, whose gradients need no scale",
            )

    @property
    def scale(self) -> float:
        """By what losses are multiplied at the moment."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def scaled(self, losses: Tensor) -> Tensor:
        """Return losses times the scale, in float32 at least: half precision might not hold them."""
        if self._scaler is None:
            return losses
        return self._scaler.scale(losses.to(torch.promote_types(losses.dtype, torch.float32)))

    def divide(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the scale out of the parameters' gradients, in place."""
        if self._scaler is None:
            return
        graded = [parameter for parameter in parameters if parameter.grad is not None]
        # A process without examples has scaled nothing yet, and `unscale_` asks for that.
        self._scaler.scale(torch.zeros((), device=graded[0].device if graded else "cpu"))
        self._scaler.unscale_(self._optimizer)
        self._divided = True
        factor = 1.0 / self.scale
        for parameter in graded:
            if id(parameter) not in self._moved:
                gradient_values(parameter).mul_(factor)

    def commit(self) -> None:
        """Count a step that was taken; the scale grows after enough of them."""
        if self._scaler is not None:
            self._scaler.update()
            self._divided = False

    def refuse(self, finding: Finding) -> Finding:
        """Lower the scale where a step was refused for an overflow; return what there is to say of it."""
        if self._scaler is None or not self._divided or finding.reason != OVERFLOW:
            self.forget()
            return finding
        scale = self.scale
        self._scaler.update()
        self._divided = False
        if self.scale >= scale:  # the overflow was in a parameter that the optimizer does not move
            self._scaler.update(scale * self._scaler.get_backoff_factor())
        return replace(finding, detail=f"{finding.detail}, with losses scaled by {scale:g}")

    def forget(self) -> None:
        """Leave the scale as it was before the step."""
        if self._scaler is not None and self._divided:
            self._scaler.update(self.scale)
        self._divided = False
