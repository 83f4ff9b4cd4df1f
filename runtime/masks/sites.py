"""The supported layers of a model, each with an instance-level forward that an engine answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradwarden.runtime.masks.bands import BandIndex
from gradwarden.runtime.masks.layers import OPERATIONS, Operation
from gradwarden.runtime.masks.layout import Layout
from gradwarden.runtime.masks.positions import Placement

if TYPE_CHECKING:
    from gradwarden.runtime.masks.blocks import Block
    from gradwarden.runtime.masks.pieces import Piece

Answer = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Given a site, a piece or a block and its arguments, returns the result of its forward pass."""


@dataclass(slots=True, eq=False)
class Site:
    """One supported layer.

    own: the bands of its parameters, as a bit mask. before: the bands of all layers called before it, as far
    as seen; grows only. layouts: where the examples lie in outputs, by their rank; a call of another rank
    goes the reference way. shared: ranks of the outputs of an embedding that is looked up once for the whole
    batch (positions); its indices are expanded so that rows belong to examples. positions: where those of
    packed sequences lie in outputs, by their rank. block: the one it is part of. shares: see `Block`. fed:
    whether its input has needed a gradient.
    """

    name: str
    module: nn.Module
    operation: type[Operation]
    own: int
    before: int = 0
    layouts: dict[int, Layout] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)
    positions: dict[int, Placement] = field(default_factory=dict)
    block: Block | None = None
    shares: bool = False
    fed: bool = False

    def stock(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer as its class defines it."""
        return type(self.module).forward(self.module, *args, **kwargs)  # type: ignore[no-any-return]

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter | None]:
        """The weight and the bias, if there is one."""
        own = self.module._parameters  # attributes of modules are looked up in Python
        weight = own.get("weight")
        return self.module.weight if weight is None else weight, own.get("bias")  # type: ignore[return-value]


class Quiet:
    """Whether all answers of an engine are, for now, what the modules would do by themselves.

    A plain attribute, on which compiled graphs are guarded: they are made anew when it changes.
    """

    def __init__(self) -> None:
        self.now = True


class SiteForward:
    """Stands in for a layer's or a block's `forward`. Copies and pickles of the model get the stock one.

    `torch.compile` compiles what lies around it, not the answer, which depends on the plan of the batch.
    Where it is quiet, the module itself is compiled.
    """

    def __init__(self, site: Site | Piece | Block, answer: Answer, quiet: Quiet) -> None:
        self._site = site
        self._answer = answer
        self._quiet = quiet
        self._uncompiled = torch.compiler.disable(answer)  # type: ignore[no-untyped-call]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._quiet.now:
            module = self._site.module
            return type(module).forward(module, *args, **kwargs)
        if not torch.compiler.is_compiling():
            return self._answer(self._site, args, kwargs)
        return self._uncompiled(self._site, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> StockForward:
        return StockForward(memo[id(self._site.module)])

    def __reduce__(self) -> tuple[type[StockForward], tuple[nn.Module]]:
        return StockForward, (self._site.module,)


class StockForward:
    """The forward that a layer's class defines, in copies of a model that had an engine attached."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type(self._module).forward(self._module, *args, **kwargs)


def find_sites(model: nn.Module, bands: BandIndex) -> Iterator[Site]:
    """Yield the layers whose own weight gradients can be weighed.

    A layer counts if its class keeps the stock `forward`, nothing has replaced it on the instance, and its
    weight is a plain parameter (not parametrized, not generated).
    """
    for name, module in model.named_modules():
        if "forward" in module.__dict__ or not isinstance(module._parameters.get("weight"), nn.Parameter):
            continue
        for operation in OPERATIONS:
            if operation.covers(module):
                own = {bands.home[id(p)] for p in module.parameters(recurse=False) if id(p) in bands.home}
                yield Site(name, module, operation, sum(1 << band for band in own))


def attach(site: Site | Piece | Block, answer: Answer, quiet: Quiet) -> None:
    """Let `answer` stand in for the forward of a layer or a block. quiet: of the engine."""
    site.module.forward = SiteForward(site, answer, quiet)


def detach(site: Site | Piece | Block) -> None:
    """Give the layer or block its own forward back. Safe to repeat."""
    site.module.__dict__.pop("forward", None)
