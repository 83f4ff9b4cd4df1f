"""Trying the fused engine on the real model before it is trusted.

On the first armed forward pass, three examples of the batch are run plainly; the gradients of each example's
loss say where its rows lie in the output of every supported layer. Then the engine runs them under random
weights, and with blocks divided in every way, and its gradients are compared with the weighted sum of plain
per-example gradients. The losses are random linear functionals of the model's outputs.

Where the engine detaches (`detaching`), the gradients of an example are those of a plain run in which the
layers of its closed bands are given detached inputs; and every parameter, frozen ones too, must be used by
supported layers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradwarden.runtime.masks.blocks import Block, Signature, learn
from gradwarden.runtime.masks.covering import watching_calls, widen
from gradwarden.runtime.masks.detaching import refuse_loose
from gradwarden.runtime.masks.differentiation import Differentiation
from gradwarden.runtime.masks.exactness import (
    check_gradients,
    dense,
    differentiate,
    own_gradients,
    trainable,
    weighed_sums,
)
from gradwarden.runtime.masks.graph import coarsest, uses
from gradwarden.runtime.masks.layers import Embedding
from gradwarden.runtime.masks.layout import Layout, candidates, confirmed
from gradwarden.runtime.masks.narrow import narrows_within
from gradwarden.runtime.masks.pieces import Piece
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.recorder import Recorder
from gradwarden.runtime.masks.rounding import (
    EXAMPLES,
    Located,
    evaluating,
    functionals,
    largest_entry,
    measured_rounding,
    own_losses,
    unsteadiness,
)
from gradwarden.runtime.masks.sites import Site
from gradwarden.runtime.masks.trial import SIZES, Trial, TrialError, refuse_dependence, tolerance, untouched

_SEED = 7


def probe(engine: Differentiation, trial: Trial) -> bool:
    """Learn the layouts of the engine's layers and check its gradients on the trial's examples.

    Returns False where the examples themselves give gradients that are not finite, so that nothing can be
    said. Raises TrialError where the engine cannot be run or is not exact, MaskError where examples mix.
    """
    located = refuse_dependence(trial)
    with untouched(trial):
        if not _examine(engine, trial, located):
            return False
        places = engine.places
        loose = any(p.requires_grad and id(p) in places.loose for p in places.model.parameters())
        if loose and not engine.forward.collective:
            with watching_calls() as called:
                trial.run(EXAMPLES)
            if widen(places, called, lambda: _attempt(engine, trial, located)):
                _examine(engine, trial, located)
    return True


def _examine(engine: Differentiation, trial: Trial, located: Located) -> bool:
    """Learn the layouts of what the engine covers, and check its gradients. Returns and raises as `probe`."""
    reference = _learn(engine, trial, located)
    if not all(torch.isfinite(g).all() for gradients in reference for g in gradients.values()):
        return False
    random = {block: block.inputs for block in engine.places.blocks if block.random}
    for block in random:
        block.inputs = {}
    if engine.forward.detached:
        _refuse_other_uses(engine, trial, located)
    _settle(engine, trial, located, reference)
    if random:
        _try_random(engine, trial, located, random)
    return True


def _attempt(engine: Differentiation, trial: Trial, located: Located) -> bool:
    """Return whether the engine's gradients are exact with its present pieces, blocks in one part."""
    try:
        reference = _learn(engine, trial, located)
        if not all(piece.layouts for piece in engine.places.pieces if piece.rule is None):
            return False
        for block in engine.places.blocks:
            block.inputs = {}
        _settle(engine, trial, located, reference)
    except TrialError:
        return False
    return True


def _settle(
    engine: Differentiation, trial: Trial, located: Located, reference: Sequence[dict[int, Tensor]]
) -> None:
    """Compare; give up what is not sure of itself, blocks first, as long as the gradients are not exact."""
    while True:
        try:
            _compare(engine, trial, located, reference)
            return
        except TrialError as failure:
            split = [block for block in engine.places.blocks if block.inputs]
            shared = [site for site in engine.places.sites if site.shared]
            if not split and not shared:
                raise
            for block in split:
                block.give_up(f"its gradients would not be exact: {failure.message}")
            for site in shared if not split else ():
                site.layouts.clear()
                site.shared.clear()


def _try_random(
    engine: Differentiation,
    trial: Trial,
    located: Located,
    random: dict[Block, dict[Any, tuple[Signature, Signature]]],
) -> None:
    """Check blocks that draw random numbers in evaluation mode, where dropout does not draw any.

    In parts they draw other numbers than in one piece, so that no two runs could be compared.
    """
    with evaluating(module for block in random for module in block.module.modules()):
        try:
            losses = functionals(trial.run(EXAMPLES), located)
            reference = [own_gradients(engine, loss) for loss in losses]
            for block, inputs in random.items():
                block.inputs = inputs
            _compare(engine, trial, located, reference)
        except TrialError as failure:
            for block in random:
                block.give_up(f"it could not be checked without its random numbers: {failure.message}")


def _refuse_other_uses(engine: Differentiation, trial: Trial, located: Located) -> None:
    """Raise MaskError where a parameter, frozen or not, is used outside of supported layers."""
    parameters = [p for members in engine.bands.members for p in members if p.is_floating_point()]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    weights = torch.ones(SIZES[1], engine.bands.count, dtype=torch.float64, device="cpu")
    weights[0] = 0.0  # a plan under which layers weigh their rows
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with engine.forward.weighing(), engine.forward.following(engine.plan(weights)):
            losses = functionals(trial.run(EXAMPLES), located)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    homes = {id(p): engine.bands.home[id(p)] for p in parameters}
    refuse_loose(engine.bands, uses(losses, homes).ordinary)


def _learn(engine: Differentiation, trial: Trial, located: Located) -> list[dict[int, Tensor]]:
    """Set the layouts of the engine's layers; return each example's plain gradients by parameter id."""
    small, large = Recorder(), Recorder()
    # With a graph: without one, encoder layers of PyTorch take another way.
    with engine.forward.recording(small):
        trial.run(EXAMPLES[: SIZES[0]])
    with engine.forward.recording(large):
        losses = functionals(trial.run(EXAMPLES), located)
    engine.forward.narrow = engine.forward.narrow or narrows_within([losses.grad_fn])
    parameters = trainable(engine)
    outputs = [y for calls in large.outputs.values() for y in calls if y.requires_grad]
    outputs += [x for calls in large.blocks.values() for call in calls for x in call.tensors]
    outputs += [y for calls in large.pieces.values() for call in calls for y in call if y.requires_grad]
    reference: list[dict[int, Tensor]] = []
    outputs = list({id(y): y for y in outputs}.values())
    touched: dict[int, list[Tensor | None]] = {id(y): [] for y in outputs}
    for loss in losses:
        found = differentiate(loss, [*parameters, *outputs])
        reference.append({id(p): g for p, g in zip(parameters, found, strict=False) if g is not None})
        for y, gradient in zip(outputs, found[len(parameters) :], strict=True):
            touched[id(y)].append(gradient)
    for site in engine.places.sites:
        _locate(site, small.outputs.get(site, []), large.outputs.get(site, []), touched)
    for piece in engine.places.pieces:
        _locate_piece(piece, small.pieces.get(piece, []), large.pieces.get(piece, []), touched)

    def owned(tensor: Tensor, layout: Layout) -> bool:
        return confirmed([layout], touched[id(tensor)]) is not None

    for block in engine.places.blocks:
        learn(block, small.blocks.get(block, []), large.blocks.get(block, []), SIZES, owned)
    return reference


def _locate(
    site: Site, small: Sequence[Tensor], large: Sequence[Tensor], touched: dict[int, list[Tensor | None]]
) -> None:
    """Set a layer's layouts from its calls in two runs; a rank whose calls disagree gets none."""
    site.layouts.clear()
    site.shared.clear()
    if len(small) != len(large):
        return
    unclear: set[int] = set()
    for few, many in zip(small, large, strict=True):
        fitting = [
            layout
            for layout in candidates(few.shape, many.shape, SIZES)
            if site.operation.accepts(site.module, layout)
        ]
        layout = confirmed(fitting, touched.get(id(many), [])) if fitting else _shared(site, few, many)
        if layout is None or site.layouts.setdefault(layout.rank, layout) != layout:
            unclear |= {many.dim(), many.dim() + 1}
    for rank in unclear:
        site.layouts.pop(rank, None)
        site.shared.discard(rank)
    if unclear and site.operation is Embedding:
        site.layouts.clear()
        site.shared.clear()


def _locate_piece(
    piece: Piece,
    small: Sequence[list[Tensor]],
    large: Sequence[list[Tensor]],
    touched: dict[int, list[Tensor | None]],
) -> None:
    """Set the layouts of a piece's outputs from its calls in two runs; none where its calls disagree."""
    piece.layouts.clear()
    piece.shared.clear()
    if [len(call) for call in small] != [len(call) for call in large]:
        return
    pairs = (
        (number, few, many)
        for call, other in zip(small, large, strict=True)
        for number, (few, many) in enumerate(zip(call, other, strict=True))
        if many.requires_grad
    )
    for number, few, many in pairs:
        if few.shape == many.shape and many.dim() > 1 and many.shape[0] == 1:
            layout: Layout | None = Layout(0, many.dim())
            piece.shared.add((number, many.dim()))
        else:
            layout = confirmed(candidates(few.shape, many.shape, SIZES), touched[id(many)])
        if layout is None or piece.layouts.setdefault((number, many.dim()), layout) != layout:
            piece.layouts.clear()
            return


def _shared(site: Site, few: Tensor, many: Tensor) -> Layout | None:
    """Return the layout of an embedding's output once its indices, common to all examples, are expanded."""
    if site.operation is not Embedding or few.shape != many.shape:
        return None
    expands = many.dim() > 2 and many.shape[0] == 1
    layout = Layout(0, many.dim() if expands else many.dim() + 1)
    if not Embedding.accepts(cast(nn.Embedding, site.module), layout):
        return None
    site.shared.add(many.dim())
    return layout


def _compare(
    engine: Differentiation, trial: Trial, located: Located, reference: Sequence[dict[int, Tensor]]
) -> None:
    """Raise TrialError unless the engine gives the weighted sum of the reference gradients."""
    for weights, freezing in _trial_weights(engine.bands.count):
        if engine.forward.detached:
            own = own_losses(engine, trial, located, weights)
            reference = [own_gradients(engine, loss) for loss in own]
        plan = engine.plan(weights)
        with engine.forward.following(plan, freezing):
            losses = functionals(trial.run(EXAMPLES), located)
            rounding = coarsest(losses)
            got = _engine_gradients(engine, plan, losses)
        largest = largest_entry(reference)
        want = weighed_sums(engine, weights, reference)
        try:
            check_gradients(engine, got, want, rounding, largest)
        except TrialError:
            measured = None
            if rounding <= tolerance(torch.float32):
                if engine.forward.collective:  # no block is in parts, and processes must run it alike
                    raise
                rounding = max(rounding, unsteadiness(engine, trial, located, weights))
            else:
                measured = measured_rounding(engine, own_losses(engine, trial, located, weights), weights)
            check_gradients(engine, got, want, rounding, largest, measured)


def _engine_gradients(engine: Differentiation, plan: Plan, losses: Tensor) -> dict[int, Tensor]:
    """Return the weighted gradients that the engine gives, by parameter id."""
    rows = torch.ones(SIZES[1], dtype=torch.bool, device="cpu")
    got: dict[int, Tensor] = {}
    try:
        for parameter, gradient in engine.gradients(plan, losses, 1.0, rows):
            previous = got.get(id(parameter))
            got[id(parameter)] = dense(gradient) if previous is None else previous + gradient
    except RuntimeError as error:
        raise TrialError(f"the backward pass failed: {' '.join(str(error).split())[:200]}") from error
    return got


def _trial_weights(bands: int) -> Iterator[tuple[Tensor, bool]]:
    """Yield weights to try, and whether blocks are frozen for examples that may not shape them.

    Random ones with zeros and without, then 1 in all bands, in the deeper half, in none.
    """
    generator = torch.Generator().manual_seed(_SEED)
    values = torch.tensor([0.0, 0.25, 0.5, 1.0, 1.5], dtype=torch.float64, device="cpu")
    for least in (0, 1):
        drawn = torch.randint(least, len(values), (SIZES[1], bands), generator=generator, device="cpu")
        yield values[drawn], False
    halves = torch.zeros(SIZES[1], bands, dtype=torch.float64, device="cpu")
    halves[0] = 1.0
    halves[1, bands // 2 :] = 1.0
    yield halves, True
