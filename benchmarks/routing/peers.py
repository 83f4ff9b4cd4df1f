"""Other ways to keep examples from shaping parts of a model, each as its authors or its users write it.

What is asked for is, for every parameter p of band b, the sum over examples i of w[i, b] * dl_i/dp / B. Each
docstring says what the method computes instead, if so. Weights are float64 [B, bands] on the CPU. A function
returned by a method takes a batch and leaves gradients in `.grad`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.routing.models import Stack
from benchmarks.routing.workload import Batch, Workload

Gradients: TypeAlias = Callable[[Batch], None]


def detach_outputs(work: Workload, model: Stack, weights: Tensor) -> Gradients:
    """Route gradients at the output of every band: mask * act + (1 - mask) * act.detach().

    Gradient routing, Cloud et al. 2024, arXiv 2410.04332, with one mask per example and layer. Nothing is
    saved: the masked gradient is computed, times 0. Exact for a band where all bands above it have weight 1
    for the example. Below a band of weight w, everything the example teaches is scaled by w as well: weights
    multiply on the way down, and a 0 cuts off all that lies deeper. Masked parameters get a gradient of
    zeros, with which an optimizer still moves them on their history.
    """
    masks = [column.to(work.device) for column in weights.unbind(1)]
    routes = list(zip(model.parts(), masks, strict=True))

    def gradients(batch: Batch) -> None:
        with ExitStack() as stack:
            for part, mask in routes:
                hook = part.register_forward_hook(lambda _module, _args, act, mask=mask: routed(act, mask))
                stack.callback(hook.remove)
            work.losses(model, *batch).mean().backward()

    return gradients


def detach_hidden(work: Workload, model: Stack, weights: Tensor) -> Gradients:
    """Route gradients at the hidden activations of every block's MLP, or between its two convolutions.

    The same rule at the place where the gradient-routing baseline of SGTM (arXiv 2512.05648) has it. Masks
    what lies before the hidden activations in the block: the MLP's first layer and its normalisation. Does
    not mask the MLP's second layer, attention, the stem and the top; and what lies below loses the part of
    the gradient that comes through the MLP. So it is exact only where every weight is 1.
    """
    masks = [column.to(work.device) for column in weights.unbind(1)]
    blocks = list(reversed(model.blocks))
    readers = [block.get_submodule(block.hidden_reader) for block in blocks]
    routes = list(zip(readers, masks[1:-1], strict=True))

    def gradients(batch: Batch) -> None:
        with ExitStack() as stack:
            for reader, mask in routes:
                hook = reader.register_forward_pre_hook(
                    lambda _module, args, mask=mask: routed(args[0], mask)
                )
                stack.callback(hook.remove)
            work.losses(model, *batch).mean().backward()

    return gradients


def routed(activations: Tensor, mask: Tensor) -> Tensor:
    """Return the activations [B, …], through which example i sends mask[i] of its gradient."""
    mask = mask.to(activations.dtype).view(-1, *[1] * (activations.dim() - 1))
    return mask * activations + (1 - mask) * activations.detach()


def group_masking(work: Workload, model: Stack, weights: Tensor) -> Gradients:
    """Run a forward and a backward pass for every group of equal weights; zero what is masked; add up.

    Parameter-gradient masking as in SGTM (Shilov et al. 2025, arXiv 2512.05648: `parameter_masking`), where a
    batch holds examples of one kind and the gradients of masked parameters are zeroed after its backward
    pass; fractions, which SGTM does not have, multiply instead. Exact for any weights. Full gradients are
    computed, then thrown away; with a vector of weights for each example, batches shrink to single examples.
    Masked parameters get a gradient of zeros. The first group uses `.grad` itself and the last, where it is
    masked nowhere, adds to it directly, so that two groups need no second set of gradients.
    """
    members = model.members()
    vectors, group_of = torch.unique(weights, dim=0, return_inverse=True)
    order = sorted(range(len(vectors)), key=lambda number: float(vectors[number].sum()))
    groups = [
        (torch.nonzero(group_of == number).flatten().to(work.device), vectors[number].tolist())
        for number in order
    ]
    parameters = list(model.parameters())
    size = len(weights)

    def gradients(batch: Batch) -> None:
        x, y = batch
        for place, (rows, scales) in enumerate(groups):
            loss = work.losses(model, x[rows], y[rows]).sum() / size
            if place == 0:
                loss.backward()
                scale(members, scales)
            elif all(weight == 1.0 for weight in scales):
                loss.backward()
            else:
                kept = [parameter.grad for parameter in parameters]
                model.zero_grad(set_to_none=True)
                loss.backward()
                scale(members, scales)
                for parameter, before in zip(parameters, kept, strict=True):
                    parameter.grad = before.add_(parameter.grad)

    return gradients


def zero_after(work: Workload, model: Stack, weights: Tensor) -> Gradients:
    """Zero the gradients of masked parameters after an ordinary step's backward pass.

    Exact where all examples have the same weights, the only case it is given to; it cannot tell examples
    apart. Full gradients are computed. Masked parameters get a gradient of zeros.
    """
    members, scales = model.members(), weights[0].tolist()

    def gradients(batch: Batch) -> None:
        work.losses(model, *batch).mean().backward()
        scale(members, scales)

    return gradients


def scale(members: Sequence[Sequence[nn.Parameter]], scales: Sequence[float]) -> None:
    """Multiply the gradients of every band in place; those of weight 0 are zeroed."""
    for parameters, weight in zip(members, scales, strict=True):
        for parameter in parameters:
            if weight == 0.0:
                parameter.grad.zero_()
            elif weight != 1.0:
                parameter.grad.mul_(weight)


def per_example(work: Workload, model: Stack, weights: Tensor) -> Gradients:
    """Take every example's own gradient, vmap(grad) of torch.func; weigh and sum them.

    Exact for any weights. Holds one gradient of the whole model for every example. On a CPU the attention
    kernel has no batching rule, so that PyTorch runs it example by example. Masked parameters get a gradient
    of zeros.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    columns = {
        names[id(parameter)]: column.to(work.device, torch.float32) / len(weights)
        for parameters, column in zip(model.members(), weights.unbind(1), strict=True)
        for parameter in parameters
    }
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        def forward(inputs: Tensor) -> Any:
            return functional_call(model, (parameters, buffers), inputs)

        return work.losses(forward, x[None], y[None])[0]

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def gradients(batch: Batch) -> None:
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            found = each(parameters, *batch)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.tensordot(columns[name], found.pop(name), dims=1)

    return gradients
