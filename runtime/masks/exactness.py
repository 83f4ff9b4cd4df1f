"""Whether an engine's gradients are those of the definition, as far as rounding lets them.

The largest entry says what rounding may take. Where that is not enough, it is measured how far stock
gradients of the same sum are from each other (`rounding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gradwarden.runtime.masks.differentiation import Differentiation
from gradwarden.runtime.masks.trial import TrialError, tolerance


def check_gradients(
    engine: Differentiation,
    got: Mapping[int, Tensor],
    want: Mapping[int, Tensor],
    rounding: float,
    largest: float,
    measured: Mapping[int, float] | None = None,
) -> None:
    """Raise TrialError unless gradients, by the id of their parameter, are those that are wanted.

    What is missing is zero. rounding: the relative error of the forward pass. largest: the largest entry of
    any example's own gradient. measured: by how much each may be off, where that was measured.
    """
    for parameter in trainable(engine):
        if not parameter.numel():
            continue
        zero = torch.zeros_like(parameter)
        wanted = want.get(id(parameter), zero)
        error = float((got.get(id(parameter), zero) - wanted).abs().max())
        allowed = max(rounding, tolerance(parameter.dtype)) * (float(wanted.abs().max()) + 0.01 * largest)
        if measured is not None:
            allowed = max(allowed, measured.get(id(parameter), 0.0))
        if not error <= allowed:
            raise TrialError(
                f"the gradient of `{engine.bands.labels[id(parameter)]}` is {error:.1e} from the exact one, "
                f"more than the {allowed:.1e} that rounding explains"
            )


def weighed_sums(
    engine: Differentiation, weights: Tensor, gradients: Sequence[Mapping[int, Tensor]]
) -> dict[int, Tensor]:
    """Return the sum of the examples' own gradients of each parameter, times their weights in its band."""
    sums: dict[int, Tensor] = {}
    for parameter in trainable(engine):
        column = weights[:, engine.bands.home[id(parameter)]].tolist()
        total = sums[id(parameter)] = torch.zeros_like(parameter)
        for weight, found in zip(column, gradients, strict=True):
            if id(parameter) in found:
                total += weight * found[id(parameter)]
    return sums


def own_gradients(engine: Differentiation, loss: Tensor) -> dict[int, Tensor]:
    """Return the gradients of a loss, by the id of their parameter."""
    parameters = trainable(engine)
    found = differentiate(loss, parameters)
    return {id(p): g for p, g in zip(parameters, found, strict=True) if g is not None}


def differentiate(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of a loss, whose graph is kept. Raises TrialError where that fails."""
    try:
        found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise TrialError(f"the backward pass failed: {' '.join(str(error).split())[:200]}") from error
    return tuple(None if gradient is None else dense(gradient) for gradient in found)


def dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def trainable(engine: Differentiation) -> list[nn.Parameter]:
    """Return the parameters that any band may train."""
    return [p for band in range(engine.bands.count) for p in engine.bands.trainable(band)]
