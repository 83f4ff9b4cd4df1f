"""Modules that make one example's output, or the model's state, depend on the other examples of the batch.

Where examples mix, no weighting of gradients separates them, so such models are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from gradwarden.runtime.errors import MaskError

Suspects = Sequence[tuple[str, nn.Module]]
"""Modules that may mix examples, depending on their mode, and their names."""


def suspects(model: nn.Module) -> Suspects:
    """Return the modules of a model that are to be asked before every batch."""
    kinds = (_BatchNorm, _InstanceNorm, nn.Embedding, nn.EmbeddingBag)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def refuse_mixing(modules: Suspects) -> None:
    """Raise MaskError if one of the modules mixes examples in its present mode."""
    for name, module in modules:
        reason = _mixes(module)
        if reason is not None:
            raise MaskError(f"`{name or type(module).__name__}` {reason[0]}", help=reason[1])


def _mixes(module: nn.Module) -> tuple[str, str] | None:
    """Return why a module mixes examples, and the remedy; None where it does not."""
    kind = type(module).__name__
    if isinstance(module, _InstanceNorm):
        if module.training and module.track_running_stats:
            return (
                f"is a {kind} that keeps running statistics of every example, refused ones included",
                "set `track_running_stats=False`, or call `.eval()` on it",
            )
    elif isinstance(module, _BatchNorm):
        if module.training or module.running_mean is None:
            return (
                f"is a {kind} in training mode, which mixes the examples of a batch beyond separation",
                "replace it by GroupNorm or LayerNorm, or freeze it with `.eval()` and recorded statistics",
            )
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        if module.max_norm is not None:
            return (
                f"is an {kind} with `max_norm`, which changes its weights for every example it looks up",
                "leave `max_norm` out and decay or clip the weights in the optimizer",
            )
        if module.scale_grad_by_freq:
            return (
                f"is an {kind} with `scale_grad_by_freq`, which mixes the examples of a batch",
                "leave `scale_grad_by_freq` out",
            )
    return None
