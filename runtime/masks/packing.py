"""Trying the fused engine on packed sequences: many examples in one row of the model's input.

As in the probe of ordinary batches, the gradients of single examples' losses say where positions lie in the
output of every layer, and the engine's gradients are compared with those of the reference. The losses are
random linear functionals of the model's outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from gradwarden.runtime.masks.differentiation import Differentiation
from gradwarden.runtime.masks.exactness import check_gradients, dense
from gradwarden.runtime.masks.graph import coarsest
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.narrow import narrows_within
from gradwarden.runtime.masks.ownership import Digest, proportional
from gradwarden.runtime.masks.packed_trial import Located, PackedTrial, refuse_crossing
from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.masks.positions import Grid, Placement, placements
from gradwarden.runtime.masks.recorder import Recorder
from gradwarden.runtime.masks.sites import Site
from gradwarden.runtime.masks.split import by_class
from gradwarden.runtime.masks.trial import TrialError, untouched

_SEED = 43

_CLASSES = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, device="cpu")


def learn_positions(engine: Differentiation, trial: PackedTrial) -> None:
    """Set where positions lie in the outputs of the engine's layers, and check its gradients.

    Raises MaskError where examples are not independent, TrialError where the engine is not exact.
    """
    located = refuse_crossing(trial)
    with untouched(trial):
        recorder = Recorder()
        with engine.forward.recording(recorder):
            losses = _losses(trial, trial.outputs(), located)
        engine.forward.narrow = engine.forward.narrow or narrows_within([losses.grad_fn])
        for site in engine.places.sites:
            site.positions.clear()
        _locate(recorder, trial, losses)
        _compare(engine, trial, located, losses)


def _losses(trial: PackedTrial, outputs: Sequence[Tensor], located: Located) -> Tensor:
    """Return one loss per example: random linear functionals of its own outputs."""
    generator = torch.Generator().manual_seed(_SEED)
    total: Tensor | None = None
    for number, place in located:
        output = outputs[number]
        if not output.requires_grad:
            continue
        wide = output if output.dtype == torch.float64 else output.float()
        rows = (wide if place is None else place.flatten(wide, trial.grid)).flatten(1)
        direction = torch.randn(rows.shape, generator=generator, dtype=torch.float64, device="cpu")
        each = (rows * direction.to(rows)).sum(1)
        if place is not None:
            owners = torch.where(trial.owners < 0, trial.count, trial.owners).to(each.device)
            each = each.new_zeros(trial.count + 1).index_add(0, owners, each)[:-1]
        total = each if total is None else total + each
    if total is None:
        raise TrialError("no output of the model depends on a trainable parameter")
    return total


def _locate(recorder: Recorder, trial: PackedTrial, losses: Tensor) -> None:
    """Set the positions of layers by the gradients of their outputs; ranks whose calls disagree get none."""
    calls = [(site, y) for site, ys in recorder.outputs.items() for y in ys if y.requires_grad]
    generator = torch.Generator().manual_seed(_SEED)
    numbers = 0.25 + 0.75 * torch.rand(trial.count, generator=generator, dtype=torch.float64, device="cpu")
    exact = numbers.to(losses.dtype).double()
    ratios = torch.cat([exact, exact.new_zeros(1)])[trial.owners]
    plain, scaled = (
        [
            None if gradient is None else Digest(gradient, Layout(0, gradient.dim()))
            for gradient in torch.autograd.grad(
                losses, [y for _, y in calls], factors.to(losses), retain_graph=True, allow_unused=True
            )
        ]
        for factors in (torch.ones_like(numbers), numbers)
    )
    unclear: set[tuple[Site, int]] = set()
    allowed = coarsest(losses)
    for (site, y), one, other in zip(calls, plain, scaled, strict=True):
        place = None
        if one is not None and other is not None:
            fitting = [
                place
                for place in _fitting(site, y, trial.grid)
                if proportional(place.across(ratios, one.rows.dim(), trial.grid), one, other, allowed)
            ]
            place = fitting[0] if len(fitting) == 1 else None
        if place is None or site.positions.setdefault(y.dim(), place) != place:
            unclear.add((site, y.dim()))
    for site, rank in unclear:
        site.positions.pop(rank, None)


def _fitting(site: Site, y: Tensor, grid: Grid) -> Iterator[Placement]:
    """Yield where positions may lie in a layer's output, so that it can be run on them one by one."""
    for place in placements(y.shape, grid):
        accepted = (
            site.operation.accepts(site.module, Layout(dim, y.dim())) for dim in (place.rows, place.times)
        )
        if all(accepted):
            yield place


def _compare(engine: Differentiation, trial: PackedTrial, located: Located, losses: Tensor) -> None:
    """Raise TrialError unless the engine gives what the reference gives under a few classes of weights."""
    generator = torch.Generator().manual_seed(_SEED)
    bands = engine.bands.count
    classes = _CLASSES[torch.randint(len(_CLASSES), (3, bands), generator=generator, device="cpu")]
    weights = classes[torch.randint(3, (trial.count,), generator=generator, device="cpu")]
    weights[0], weights[-1] = 1.0, 0.0
    want = _sums(by_class(losses, weights, engine.bands, 1.0, True, Passes()))
    plan = engine.plan(weights).spread(trial.owners.view(trial.grid))
    rows = torch.ones(trial.count, dtype=torch.bool, device="cpu")
    with engine.forward.following(plan):
        again = _losses(trial, trial.outputs(), located)
        rounding = coarsest(again)
        got = _sums(engine.gradients(plan, again, 1.0, rows))
    largest = max((float(g.abs().max()) for g in want.values() if g.numel()), default=0.0)
    check_gradients(engine, got, want, rounding, largest)


def _sums(gradients: Iterable[tuple[nn.Parameter, Tensor]]) -> dict[int, Tensor]:
    total: dict[int, Tensor] = {}
    for parameter, gradient in gradients:
        before = total.get(id(parameter))
        total[id(parameter)] = dense(gradient) if before is None else before + gradient
    return total
