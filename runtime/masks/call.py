"""One call of a layer under a plan: what its backward pass is to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.narrow import NARROW
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.rows import Rows
from gradwarden.runtime.masks.unitwise import Owners, Unitwise

Backward: TypeAlias = Callable[..., tuple[Tensor | None, ...]]
"""The backward pass of an autograd function: (ctx, gradients of its outputs) -> gradients of its inputs."""


SPARE = 0.2
"""The share of a batch's rows for which a product costs less than to gather the others and put them back."""


class Parameters(Protocol):
    """The gradients of a layer's weight and bias in one call, to be computed for any rows."""

    @property
    def grad(self) -> Tensor:
        """The gradient of the layer's output."""

    def summed(self, rows: Rows | None, bias_rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the weighted sums over the rows given for weight and bias; None for None."""

    def unitwise(
        self, rows: Rows, owners: Owners | None, bias_owners: Owners | None
    ) -> tuple[Unitwise | None, Unitwise | None]:
        """Return them by unit, for rows whose weights their owners have; None for None."""


NO_OPTIONS: Mapping[str, object] = {}
"""Those of a layer that has none."""


@dataclass(slots=True, eq=False)
class Call:
    """The rows of one call: of its parameters and of its input.

    layout: where the examples lie in the layer's input and output. weight, bias: the rows that count for each
    parameter (empty rows where it is absent, frozen or reached by nothing). reach: the rows whose input
    gradient somebody upstream needs and may have; through: those that may have one. ids: `id` of weight and
    bias. homes: the bands that private examples may shape by weight and bias, None where they may not. bands:
    those that weight and bias are in, told where a gauge looks on.
    options: the layer's own settings. Not frozen: one is made for each call, and that takes twice as long.
    """

    plan: Plan
    layout: Layout
    weight: Rows
    bias: Rows
    reach: Rows
    through: Rows
    ids: tuple[int, int]
    homes: tuple[int | None, int | None]
    bands: tuple[int | None, int | None]
    options: Mapping[str, object]

    def weight_rows(self) -> Rows | None:
        """Return the rows to use now for the weight's gradient; None where it is not wanted."""
        return self._rows(self.weight, 0)

    def bias_rows(self) -> Rows | None:
        """Return the rows to use now for the bias's gradient; None where it is not wanted."""
        return self._rows(self.bias, 1)

    @property
    def private(self) -> bool:
        """Whether private examples may shape the layer."""
        return self.homes != (None, None)

    @property
    def keeps_input(self) -> bool:
        """Whether the backward pass will need the layer's input for the weight's gradient."""
        return not self.weight.idle or self.homes[0] is not None

    def gradients(self, parameters: Parameters) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of weight and bias that are due now; private ones go to the sink."""
        mode = self.plan.mode
        sink = mode.sink
        if sink is not None and self.private:
            sink.take(self, parameters)
        gauge = mode.gauge
        if gauge is not None:
            gauge.take(self, parameters)
        if mode.raw or mode.skip or mode.only is not None:
            rows, bias_rows = self.weight_rows(), self.bias_rows()
        else:
            rows = None if self.weight.idle else self.weight
            bias_rows = None if self.bias.idle else self.bias
        if parameters.grad.dtype in NARROW:
            return _by_octave(parameters, rows, bias_rows)
        return parameters.summed(rows, bias_rows)

    def _rows(self, rows: Rows, place: int) -> Rows | None:
        if not self.plan.wants(self.ids[place]):
            return None
        if self.plan.mode.raw:
            return None if rows.idle and self.homes[place] is None else self.plan.every
        return None if rows.idle else rows

    def input_rows(self, spare: float = SPARE) -> Rows:
        """Return the rows to compute the input's gradient for.

        spare: the greatest share of the batch that is computed though nobody needs it. What could be broken
        (the rows of examples without any weight) or must be stopped is not among it.
        """
        mode, every = self.plan.mode, self.plan.every
        rows = every if mode.open else self.through if mode.raw else self.reach
        idle = rows.batch - rows.count
        if 0 < idle <= spare * rows.batch and rows.count and self.through.whole and self.plan.live:
            return every
        return rows

    def input_gradient(
        self,
        grad: Tensor,
        shape: torch.Size,
        compute: Callable[[Callable[[Tensor], Tensor]], Tensor],
        spare: float = SPARE,
    ) -> Tensor:
        """Return the gradient of an input of this shape: computed for the rows that are needed, else zero.

        `compute` is given the function that picks those rows from a tensor. grad: the output's gradient.
        spare: see `input_rows`.
        """
        rows = self.input_rows(spare)
        if rows.whole:
            return compute(lambda tensor: tensor)
        result = grad.new_zeros(shape)
        if not rows.empty:
            rows.place(result, compute(lambda tensor: rows.pick(tensor, self.layout)), self.layout)
        return result


def _by_octave(
    parameters: Parameters, rows: Rows | None, bias_rows: Rows | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return what `summed` does, with sums of rows of like weights, so that no weight leaves the range."""
    if rows is bias_rows:
        return _scaled_sums(rows, lambda some: parameters.summed(some, some))
    weight, _ = _scaled_sums(rows, lambda some: parameters.summed(some, None))
    _, bias = _scaled_sums(bias_rows, lambda some: parameters.summed(None, some))
    return weight, bias


def _scaled_sums(
    rows: Rows | None, summed: Callable[[Rows | None], tuple[Tensor | None, Tensor | None]]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the sums over all octaves of some rows, added up in a wide precision."""
    if rows is None or rows.empty or (rows.weights is None and rows.factor == 1.0):
        return summed(rows)
    totals: list[Tensor | None] = [None, None]
    kinds: list[torch.dtype | None] = [None, None]
    for scale, some in rows.octaves:
        for place, part in enumerate(summed(some)):
            if part is None:
                continue
            total, kinds[place] = totals[place], part.dtype
            wide = part.to(torch.promote_types(part.dtype, torch.float32)) * scale
            totals[place] = wide if total is None else total.add_(wide)
    weight, bias = (
        None if total is None else total.to(kind) for total, kind in zip(totals, kinds, strict=True)
    )
    return weight, bias


def differentiable_once(backward: Backward) -> Backward:
    """Let a backward pass refuse to be differentiated itself.

    torch's own `once_differentiable` takes the result for a constant, without a word, where the gradient that
    comes in is one.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise MaskError(
                "the losses depend on gradients of the model (`create_graph=True`): those are not weighed",
                help='use `engine="split"`, which differentiates the model as it is',
            )
        return backward(ctx, *grads)

    return run


def shape_only(weight: Tensor) -> Tensor:
    """Return a weight for a kernel that asks for one and does not use its values.

    Those of a sharded parameter may be given back before the gradients of its units are formed.
    """
    return weight if weight.untyped_storage().size() else torch.zeros_like(weight)


def scaled(gradient: Tensor, rows: Rows) -> Tensor:
    """Return a parameter's gradient times the factor common to its rows, in place."""
    return gradient if rows.factor == 1.0 else gradient.mul_(rows.factor)


def row_sum(rows: Rows, layout: Layout, grad: Tensor, rank: int) -> Tensor:
    """Return the weighted sum of the chosen rows of a gradient over all but its last `rank` dimensions."""
    picked = rows.pick(grad, layout)
    shape = picked.shape[picked.dim() - rank :]
    matrix = picked.reshape(-1, shape.numel())
    if rows.weights is None:
        return scaled(matrix.sum(0), rows).view(shape)
    ones = grad.new_ones((1,)).expand(*picked.shape[: picked.dim() - rank], *[1] * rank)
    return scaled(matrix.t() @ rows.weigh(ones, layout).reshape(-1), rows).view(shape)


def at_its_precision(tensor: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a context in which autocast does nothing. dtype: what it asks for, None if it is off."""
    return nullcontext() if dtype is None else _without_autocast(tensor.device.type)


@contextmanager
def _without_autocast(kind: str) -> Iterator[None]:
    """Inside, autocast is off that was on; `torch.autocast` itself takes three times as long to say so."""
    torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, True)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the precision that autocast asks of matrix products on the tensor's device, if it is on."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
