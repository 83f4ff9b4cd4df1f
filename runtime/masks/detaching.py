"""Detach semantics: a weight of zero for a band also stops what flows through the band's own layers.

Under mask semantics a weight is on parameters only, and back-propagation through a layer is exact. The
gradient-routing literature (Cloud et al. 2024) detaches instead: for an example whose weight in a band is
zero, the band's layers are constants, and their inputs get no gradient by way of them. In a residual block
x + f(x) the skip still carries the gradient to what lies below, while f's input gets none; in a stack without
skips, nothing below learns from the example. Weights between zero and one do not scale the flow.

It is defined for supported layers, by the band that a layer's weight is in, frozen or not. Whatever uses a
parameter in another way has no input that could be told apart, and a layer whose rows are not known cannot be
detached for some of them: both are refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.bands import BandIndex
from gradwarden.runtime.masks.sites import Site

_SHOWN = 3


def refuse_uncovered(bands: BandIndex, sites: Sequence[Site], rules: Mapping[Any, Any] | None) -> None:
    """Raise MaskError where parameters are in no supported layer, or modules are to be differentiated whole.

    Whether a skip within such a module stays open could not be told.
    """
    covered = {id(parameter) for site in sites for parameter in site.parameters}
    refuse_loose(bands, [key for key in bands.home if key not in covered])
    if rules:
        kinds = ", ".join(sorted(f"`{kind.__name__}`" for kind in rules))
        _refuse(f"{kinds} would be differentiated whole")


def refuse_loose(bands: BandIndex, loose: Collection[int]) -> None:
    """Raise MaskError where parameters are used outside of supported layers. loose: their ids."""
    if loose:
        names = sorted(bands.labels[key] for key in loose)
        shown = ", ".join(f"`{name}`" for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        _refuse(f"{shown} {'is' if len(names) == 1 else 'are'} used outside of supported layers")


def refuse_flow(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise MaskError where a layer that would have to be detached is called with inputs of unknown rows."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if any(tensor.requires_grad for tensor in tensors):
        _refuse(f"it is not known whose rows the inputs of `{site.name}` are")


def run_severed(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], severed: bool) -> Tensor:
    """Run a layer plainly, on detached inputs where it is to be severed: what the probe compares with."""
    if severed:
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
    return site.stock(*args, **kwargs)


def _refuse(reason: str) -> NoReturn:
    raise MaskError(
        f"`semantics detach` cannot be kept: {reason}",
        help="use `semantics mask`, which holds for any model, or layers of a kind that docs/masks.md lists",
    )
