"""Operations of matrix products, convolutions and attention: counted, and the least that a mask leaves.

The limit owes nothing to this library: each distinct kind of example goes through the plain network by
itself, with the parameters it may not shape frozen, and what PyTorch's own backward pass then does is
counted. Below the deepest parameter that the example may shape there is none; between two of them gradients
pass through. A step that does no more than that takes the limit's share of the plain step's time, as far as
time goes by operations: normalisation, activations, copies and the optimizer are counted on neither side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.routing.models import Stack
from benchmarks.routing.workload import Workload


class Counter(TorchDispatchMode):
    """Counts the operations of what is done inside, by the formulas of `torch.utils.flop_counter`.

    A multiplication with its addition counts as two. PyTorch's own counter also tells modules apart, which
    costs several times as much as a small step, and leaves out the attention kernel of CPUs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        return result


def counted(work: Callable[[], object]) -> int:
    """Return the operations that some work does."""
    with Counter() as counter:
        work()
    return counter.operations


def limit(work: Workload, model: Stack, weights: Tensor) -> float:
    """Return the least operations of a step under weights [B, bands], as a share of the plain step's."""
    x, y = (part[:1] for part in work.draw())
    patterns, counts = torch.unique(weights > 0, dim=0, return_counts=True)

    def operations(reached: Sequence[bool]) -> int:
        def example() -> None:
            losses = work.losses(model, x, y)
            if losses.requires_grad:
                losses.sum().backward()

        with _frozen(model, reached):
            found = counted(example)
        model.zero_grad(set_to_none=True)
        return found

    plain = len(weights) * operations([True] * weights.shape[1])
    left = sum(
        int(count) * operations(pattern.tolist()) for pattern, count in zip(patterns, counts, strict=True)
    )
    return left / plain


@contextmanager
def _frozen(model: Stack, reached: Sequence[bool]) -> Iterator[None]:
    """Inside, the parameters of bands that are not reached are frozen."""
    frozen = [p for kept, band in zip(reached, model.members(), strict=True) if not kept for p in band]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
