"""The gradient gate: finite losses, finite gradients, gradient norms per band and their caps.

What is found is returned as data; the governor decides what becomes of the step. Losses and gradients of
private examples never come here unnoised: a decision taken on them would itself depend on private data.

Norms are L2 norms over all parameters of a band; a finite gradient never overflows to an infinite norm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import hypot
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

ParametersByBand: TypeAlias = Mapping[str, Sequence[Tensor]]

Total: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a gate will not let a step through.

    reason: a stable word (`loss_not_finite`, `gradient_not_finite`, …). detail: the fault in words. band: the
    band it was found in, None where it concerns none.
    """

    gate: Literal["admission", "gradient", "commit"]
    reason: str
    detail: str
    band: str | None = None


def check_losses(losses: Tensor, active_rows: Sequence[int]) -> Finding | None:
    """Return a finding where a loss of an active row is not finite. losses: [B].

    Rows that shape nothing may hold anything: they have no say in the step.
    """
    if not active_rows:
        return None
    rows = torch.as_tensor(active_rows, dtype=torch.long, device=losses.device)
    finite = torch.isfinite(losses.detach().index_select(0, rows))
    if bool(finite.all()):
        return None
    bad = [row for row, good in zip(active_rows, finite.tolist(), strict=True) if not good]
    return Finding("gradient", "loss_not_finite", f"the loss of {_count(bad)} is not finite")


def band_norms(parameters: ParametersByBand, total: Total | None = None) -> dict[str, float | None]:
    """Return the L2 norm of each band's gradient; None for a band in which no parameter has a gradient.

    total: where processes hold pieces of the gradients, sums numbers [bands] over the pieces. Each process
    then comes to the same norms.
    """
    gradients = {band: _gradients(members) for band, members in parameters.items()}
    graded = [band for band, found in gradients.items() if found]
    norms: dict[str, float | None] = dict.fromkeys(gradients)
    if graded:
        found = joint_norms([gradients[band] for band in graded], total or (lambda squares: squares))
        norms.update(zip(graded, found, strict=True))
    return norms


def check_gradients(
    parameters: ParametersByBand, norms: Mapping[str, float | None] | None = None
) -> tuple[Finding, ...]:
    """Return one finding for each band whose gradient is not finite.

    norms: the result of `band_norms` for the same gradients, where it is at hand.
    """
    measured = band_norms(parameters) if norms is None else norms
    return tuple(
        Finding("gradient", "gradient_not_finite", f"the gradient of band `{band}` is not finite", band)
        for band, norm in measured.items()
        if norm is not None and not _finite(norm)
    )


def check_reach(norms: Mapping[str, float | None], active: Collection[str]) -> tuple[Finding, ...]:
    """Return one finding for each band that has a gradient though nothing of the step may reach it.

    Such a gradient did not come from the masks: somebody called `backward` on the losses besides.
    """
    return tuple(
        Finding(
            "gradient", "foreign_gradient", f"band `{band}` has a gradient that no example may give", band
        )
        for band, norm in norms.items()
        if norm is not None and band not in active
    )


def divide(parameters: Iterable[Tensor], divisor: float) -> None:
    """Divide gradients in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            gradient_values(parameter).div_(divisor)


class ForeignWatch:
    """Notices gradients that `Tensor.backward` adds to parameters: those of the masks come another way."""

    def __init__(self) -> None:
        self.seen = False
        self._paused = False
        self._watched: dict[Tensor, RemovableHandle] = {}

    def begin(self, parameters: Iterable[Tensor]) -> None:
        """Watch these parameters from now on; forget what was seen."""
        self.seen = False
        for parameter in parameters:
            self.add(parameter)

    def add(self, parameter: Tensor) -> None:
        """Watch one more parameter. Frozen ones get no gradient."""
        if parameter.requires_grad and parameter not in self._watched:
            hook = parameter.register_post_accumulate_grad_hook(self._see)  # type: ignore[no-untyped-call]
            self._watched[parameter] = hook

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, gradients may be accumulated: the masks' own, where a wrapper reduces them on the way."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def remove(self) -> None:
        """Stop watching. Safe to repeat."""
        for handle in self._watched.values():
            handle.remove()
        self._watched.clear()

    def _see(self, parameter: Tensor) -> None:
        self.seen = self.seen or not self._paused

    def finding(self) -> Finding | None:
        """Return a finding where `backward` was called on something that reaches a parameter."""
        if not self.seen:
            return None
        detail = "`backward` was called on a tensor beside the masks, and added to the gradients"
        return Finding("gradient", "foreign_gradient", detail)


def apply_caps(
    parameters: ParametersByBand, norms: Mapping[str, float | None], caps: Mapping[str, float]
) -> dict[str, float]:
    """Scale down, in place, the gradient of every band whose norm exceeds its cap.

    Returns the factor for each band that was scaled. A band without a gradient or a cap is left alone; so is
    one whose norm is not finite, which `check_gradients` reports.
    """
    factors: dict[str, float] = {}
    for band, cap in caps.items():
        norm = norms.get(band)
        if norm is None or not _finite(norm) or norm <= cap:
            continue
        factors[band] = cap / norm
        for gradient in _gradients(parameters[band]):
            gradient.mul_(factors[band])
    return factors


def clip_whole(
    parameters: ParametersByBand, norms: Mapping[str, float | None], greatest: float
) -> dict[str, float | None]:
    """Scale down, in place, the gradients of all bands where their norm together exceeds `greatest`.

    norms: of the bands, all finite. Returns the norms that are left.
    """
    whole = hypot(*(norm for norm in norms.values() if norm is not None))
    if whole <= greatest:
        return dict(norms)
    factor = greatest / whole
    for members in parameters.values():
        for gradient in _gradients(members):
            gradient.mul_(factor)
    return {band: None if norm is None else norm * factor for band, norm in norms.items()}


def raised(what: str, error: BaseException) -> str:
    """Say that something raised an error. Its message may quote data, which the ledger never holds."""
    return f"{what} raised `{type(error).__name__}`"


def _gradients(members: Iterable[Tensor]) -> list[Tensor]:
    return [gradient_values(parameter) for parameter in members if parameter.grad is not None]


def gradient_values(parameter: Tensor) -> Tensor:
    """Return the gradient, or the values of a sparse one: a view, so that scaling it scales the gradient.

    Of a gradient that is scattered over processes, the piece that is here.
    """
    assert parameter.grad is not None
    if hasattr(parameter.grad, "to_local"):
        piece: Tensor = parameter.grad.to_local()
        return piece
    if not parameter.grad.is_sparse:
        return parameter.grad
    # Entries of an uncoalesced gradient for one index are still to be summed: they have no norm of their own.
    parameter.grad = parameter.grad.coalesce()
    return parameter.grad.values()


def joint_norms(bands: Sequence[Sequence[Tensor]], total: Total) -> list[float]:
    """Return the L2 norm of each band's tensors together. total: as of `band_norms`."""
    norms = total(_squares(bands, _working)).sqrt()
    if bool(torch.isfinite(norms).all()):
        return norms.tolist()
    # Squares may have overflowed where the gradient itself is finite.
    wide = total(_squares(bands, lambda _: torch.float64)).sqrt()
    return torch.where(torch.isfinite(norms), norms, wide).tolist()


def _squares(bands: Sequence[Sequence[Tensor]], precision: Callable[[Tensor], torch.dtype]) -> Tensor:
    """Return the squared norm of each band's gradients together, float64 [bands] on the CPU.

    The norms of all come from a device at once: to read each of them would be to wait for it as often.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in chain.from_iterable(bands):
        kinds.setdefault((gradient.device, precision(gradient)), []).append(gradient)
    found: dict[int, float] = {}
    for (_, dtype), alike in kinds.items():
        norms = torch.stack(torch._foreach_norm(alike, 2, dtype)).to("cpu", torch.float64)
        found.update(zip(map(id, alike), norms.tolist(), strict=True))
    each = [torch.tensor([found[id(g)] for g in band], dtype=torch.float64, device="cpu") for band in bands]
    return torch.stack([norms.square().sum() for norms in each])


def _working(gradient: Tensor) -> torch.dtype:
    """Half precision would lose the norm; a copy in float64 would cost as much as the optimizer's step."""
    return torch.promote_types(gradient.dtype, torch.float32)


def _finite(value: float) -> bool:
    return value - value == 0.0


def _count(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]} of the batch"
    return f"{len(rows)} rows of the batch, the first of them row {rows[0]},"
