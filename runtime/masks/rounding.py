"""How far stock gradients of one sum are from each other, for no other reason than rounding.

No more can be asked of an engine. Where a gradient is a sum that nearly cancels, the rounding of its terms
may exceed it: that of a bias over few places, at half precision. And a function with a kink has one slope or
another, by where rounding has put its argument. Kernels round otherwise for two examples than for three, and
among the millions of numbers that go through the ReLUs of a residual network some are that close to zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor, nn

from gradwarden.runtime.masks.differentiation import Differentiation
from gradwarden.runtime.masks.exactness import own_gradients, weighed_sums
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.trial import SIZES, Trial, TrialError, tolerance

EXAMPLES = list(range(SIZES[1]))
"""The examples of a trial that gradients are taken of."""

Located = list[tuple[int, Layout]]
"""Which outputs of a model hold examples, and where."""

_SEED = 7
_SCALES = (0.57, 0.69, 0.81, 0.93)
"""Below 1: what does not overflow still does not."""
_MARGIN = 4.0
"""How many times the greatest difference between stock gradients an engine's may be from them."""


def functionals(outputs: Sequence[Tensor], located: Located, examples: Sequence[int] = EXAMPLES) -> Tensor:
    """Return a loss for each of these examples: random linear functionals, whatever they are run with."""
    generator = torch.Generator().manual_seed(_SEED)
    losses: list[Tensor] = []
    for number, layout in located:
        output = outputs[number]
        if output.requires_grad:
            wide = output if output.dtype == torch.float64 else output.float()
            shape = list(output.shape)
            shape[layout.dim] = shape[layout.dim] * len(EXAMPLES) // len(examples)
            direction = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(wide)
            own = layout.by_example(wide, len(examples))
            theirs = layout.by_example(direction, len(EXAMPLES))
            losses.append(torch.stack([(own[i] * theirs[k]).sum() for i, k in enumerate(examples)]))
    if not losses:
        raise TrialError("no output of the model depends on a trainable parameter")
    return torch.stack(losses).sum(0)


def own_losses(
    engine: Differentiation, trial: Trial, located: Located, weights: Tensor, together: int = SIZES[1]
) -> Iterator[Tensor]:
    """Yield each example's loss: if the engine detaches, of a run in which its closed bands are detached.

    together: how many examples are run at once.
    """
    forward = engine.forward
    if together == len(EXAMPLES) and not forward.detached:
        yield from functionals(trial.run(EXAMPLES), located)
        return
    for example, row in enumerate(weights.tolist()):
        company = [(example + number) % len(EXAMPLES) for number in range(together)]
        closed = frozenset(band for band, weight in enumerate(row) if not weight)
        with forward.severing(closed) if forward.detached else nullcontext():
            yield functionals(trial.run(company), located, company)[0]


def measured_rounding(engine: Differentiation, losses: Iterable[Tensor], weights: Tensor) -> dict[int, float]:
    """Return how far an engine's gradients may be from the stock ones, by the id of their parameter.

    Rounding comes out otherwise for losses times a number that is no power of two. losses: one for each
    example, attached to the graph. weights: [examples, bands].
    """
    scales = (1.0, *_SCALES)
    own: list[list[dict[int, Tensor]]] = [[] for _ in scales]
    for loss in losses:
        for found, scale in zip(own, scales, strict=True):
            gradients = own_gradients(engine, loss * scale)
            found.append({key: gradient / scale for key, gradient in gradients.items()})
    plain, *others = (weighed_sums(engine, weights, found) for found in own)
    return {
        key: _MARGIN * max(float((other[key] - total).abs().max()) for other in others)
        for key, total in plain.items()
        if total.numel()
    }


def unsteadiness(engine: Differentiation, trial: Trial, located: Located, weights: Tensor) -> float:
    """Return the relative error that an engine's gradients may have for the kinks of a model.

    Examples are run in other company, in evaluation mode: with other random numbers nothing could be
    compared. Where some are drawn even so, it is 0. At most it is the tolerance of half precision.
    """

    def gradients(together: int) -> list[dict[int, Tensor]]:
        losses = own_losses(engine, trial, located, weights, together)
        return [own_gradients(engine, loss) for loss in losses]

    found: list[dict[int, Tensor]] = []
    with evaluating(engine.places.model.modules()):
        own = gradients(SIZES[1])
        if trial.drew:
            return 0.0
        for together in range(1, SIZES[1]):
            with suppress(TrialError):  # not every model can be run on a single example
                found.append(weighed_sums(engine, weights, gradients(together)))
    plain, least = weighed_sums(engine, weights, own), 0.01 * largest_entry(own)
    errors = [
        float((other[key] - total).abs().max()) / max(float(total.abs().max()) + least, 1e-30)
        for other in found
        for key, total in plain.items()
        if total.numel()
    ]
    return min(_MARGIN * max(errors, default=0.0), tolerance(torch.bfloat16))


def largest_entry(gradients: Sequence[Mapping[int, Tensor]]) -> float:
    """Return the largest entry of any example's own gradient."""
    entries = (g.abs().max() for found in gradients for g in found.values() if g.numel())
    return max(map(float, entries), default=0.0)


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, modules are in evaluation mode."""
    modes = [(module, module.training) for module in modules]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
