"""Binds a program's bands to the parameters of a live model, and checks the optimizer against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from gradwarden.policy.model_map import bind
from gradwarden.policy.program import Program
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.model_map import ModelMap

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class BoundModel:
    """A program whose bands name every parameter of one model, and those parameters by band.

    Frozen parameters (`requires_grad` off) are among them: no gradient moves them while they are frozen.
    """

    program: Program
    parameters: Mapping[str, tuple[nn.Parameter, ...]]


def bind_model(program: Program, model: nn.Module, optimizer: torch.optim.Optimizer) -> BoundModel:
    """Bind, deriving a model map where the program was compiled without one.

    Raises MaskError where the program's map is of another model or the optimizer moves foreign tensors or
    must evaluate the model itself, and PolicyError where the derived map leaves a parameter without a band.
    """
    if not program.model_map:
        model_map = ModelMap.from_module(model)
        program = replace(program, bands=bind(program.bands, model_map), model_map=model_map.digest)
    named = dict(model.named_parameters(remove_duplicate=False))
    mapped = [name for band in program.bands for name in band.parameters]
    _check_names(set(mapped), named)
    parameters = {band.name: tuple(named[name] for name in band.parameters) for band in program.bands}
    _check_optimizer(optimizer, {id(p) for group in parameters.values() for p in group})
    return BoundModel(program, parameters)


def _check_names(mapped: set[str], named: Mapping[str, nn.Parameter]) -> None:
    unknown = sorted(mapped - named.keys())
    tensors = {id(named[name]) for name in mapped if name in named}
    missing = sorted(name for name, parameter in named.items() if id(parameter) not in tensors)
    if not unknown and not missing:
        return
    parts = []
    if unknown:
        parts.append(f"the map names {_some(unknown)}, which the model lacks")
    if missing:
        parts.append(f"the model has {_some(missing)}, which the map lacks")
    raise MaskError(
        "the program was compiled for another model: " + "; ".join(parts),
        help="derive the map anew with `gradwarden map` and compile the policy with it",
    )


def _check_optimizer(optimizer: torch.optim.Optimizer, known: set[int]) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MaskError(
            "LBFGS cannot be governed: it moves every parameter along one direction, and runs the model anew",
            help="use an optimizer that steps once on given gradients and leaves out parameters without one",
        )
    foreign = sum(id(p) not in known for group in optimizer.param_groups for p in group["params"])
    if foreign:
        raise MaskError(
            f"the optimizer moves {foreign} tensors that are not parameters of the governed model",
            help="give the optimizer `model.parameters()` of the model that the governor holds",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + more
