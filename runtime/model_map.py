"""Model maps derived from a live model.

Blocks are found, in this order, in
- an `nn.Sequential` (each child with parameters is a block),
- the stages `layer1`, `layer2`, … of a ResNet (each child of a stage is a block),
- the largest homogeneous `nn.ModuleList`, or `nn.Sequential` of composite modules (each entry is a block);
  in an `encoder` or a `decoder`, or on the way `down` or `up`, it is joined to the largest one in the
  counterpart, encoder and way down first,
- otherwise every module with parameters of its own, in the order of registration.

Parameters outside the blocks are placed by the order of registration: before the first block, at the input;
after the last, at the output; between two, with the block before them. Embeddings are at the input wherever
they were registered. A model that registers its parts in another order than it runs them gets a wrong map:
edit the saved file. A tied tensor belongs to its deepest use, so a head that shares its weight with the
embedding obeys the embedding's band in both uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Self

from torch import nn

from gradwarden.policy.model_map import Layer, Parameter
from gradwarden.policy.model_map import ModelMap as ModelMapData
from gradwarden.policy.program import SCALE
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.ranks.wrapping import plain_class, unwrapped

_PAIRS = (("encoder", "decoder"), ("down", "up"))
"""Words in the paths of stacks that are run one after the other."""

_STAGE = re.compile(r"layer[1-9]\d*")


class ModelMap(ModelMapData):
    """A model map that can be derived from a live `nn.Module`."""

    @classmethod
    def from_module(cls, module: nn.Module) -> Self:
        """Return the map of every parameter of `module`, frozen ones included.

        A model in DistributedDataParallel has the map of the bare model. Raises MaskError for a model without
        parameters or with parameters that have no shape yet.
        """
        module = unwrapped(module)
        blocks = _sequential(module) or _stages(module) or _stack(module) or _in_order(module)
        places = list(_places(module, blocks))
        layers: dict[tuple[str, int | None, int], list[Parameter]] = {}
        for place, parameter in _merge_tied(places):
            layers.setdefault(place, []).append(parameter)
        if not layers:
            raise MaskError(f"`{plain_class(module).__name__}` has no parameters")
        order = sorted(layers, key=lambda place: -place[2])
        return cls(
            plain_class(module).__name__, tuple(Layer(*place, tuple(layers[place])) for place in order)
        )


_Place = tuple[str, int | None, int]
"""Module path, block index or None, depth in millionths."""


def _sequential(module: nn.Module, path: str = "") -> list[str]:
    """Return the paths of the blocks of an `nn.Sequential`, looking into one that has a single child."""
    if not isinstance(module, nn.Sequential):
        return []
    children = [(name, child) for name, child in module.named_children() if _has_parameters(child)]
    if len(children) == 1:
        name, child = children[0]
        return _sequential(child, f"{path}{name}.") or [f"{path}{name}"]
    return [path + name for name, _ in children]


def _stages(module: nn.Module) -> list[str]:
    """Return the paths of the blocks in stages named `layer1`, `layer2`, …"""
    for path, candidate in module.named_modules():
        stages = {
            name: child
            for name, child in candidate.named_children()
            if _STAGE.fullmatch(name) and isinstance(child, (nn.Sequential, nn.ModuleList))
        }
        if len(stages) >= 2:
            return [
                ".".join(filter(None, (path, stage, name)))
                for stage, child in stages.items()
                for name, block in child.named_children()
                if _has_parameters(block)
            ]
    return []


def _stack(module: nn.Module) -> list[str]:
    """Return the paths of the entries of the largest homogeneous stack, joined to its counterpart's."""
    path = _largest(module)
    if path is None:
        return []
    for other, later in _counterparts(path):
        found = _largest(module, other)
        if found is not None:
            stacks = (path, found) if later else (found, path)
            return [entry for stack in stacks for entry in _entries(module, stack)]
    return _entries(module, path)


def _counterparts(path: str) -> Iterator[tuple[str, bool]]:
    """Yield where the counterpart of a stack at this path may lie, and whether it is run after it."""
    parts = path.split(".")
    for place, part in enumerate(parts):
        for first, second in _PAIRS:
            for word, other, later in ((first, second, True), (second, first, False)):
                if word in part:
                    yield ".".join([*parts[:place], part.replace(word, other)]), later


def _largest(module: nn.Module, within: str = "") -> str | None:
    """Return the path of the largest (most numbers held) homogeneous stack at or below a path."""
    best, found = 0, None
    for path, candidate in module.named_modules():
        if within and path != within and not path.startswith(f"{within}."):
            continue
        entries = list(candidate.children())
        if not isinstance(candidate, (nn.ModuleList, nn.Sequential)) or len(entries) < 2:
            continue
        if len({plain_class(entry) for entry in entries}) > 1 or not all(map(_has_parameters, entries)):
            continue
        if isinstance(candidate, nn.Sequential) and not any(entries[0].children()):
            continue
        size = sum(parameter.numel() for parameter in candidate.parameters())
        if size > best:
            best, found = size, path
    return found


def _entries(module: nn.Module, stack: str) -> list[str]:
    children = module.get_submodule(stack).named_children()
    return [".".join(filter(None, (stack, name))) for name, _ in children]


def _in_order(module: nn.Module) -> list[str]:
    """Return the path of every module that has parameters of its own."""
    return [path for path, child in module.named_modules() if any(True for _ in child.parameters(False))]


def _places(module: nn.Module, blocks: list[str]) -> Iterator[tuple[_Place, str, nn.Parameter]]:
    """Yield every parameter under each of its names, with its place."""
    index = {path: number for number, path in enumerate(blocks)}
    seen = -1
    for path, owner in module.named_modules(remove_duplicate=False):
        block = next((index[part] for part in _ancestry(path) if part in index), None)
        if block is not None:
            seen = max(seen, block)
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if isinstance(parameter, nn.UninitializedParameter):
                raise MaskError(
                    f"parameter `{name}` of `{path}` has no shape yet",
                    help="run the model once on a batch before deriving its map",
                )
            place: _Place = (path, None, SCALE)
            if block is not None:
                place = (blocks[block], block, _depth(block, len(blocks)))
            elif seen >= 0 and not isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
                place = (path, None, _depth(seen, len(blocks)))
            yield place, f"{path}.{name}" if path else name, parameter


def _merge_tied(places: list[tuple[_Place, str, nn.Parameter]]) -> Iterator[tuple[_Place, Parameter]]:
    """Yield every tensor once, at its deepest place, named as it is called there."""
    uses: dict[int, list[tuple[_Place, str, nn.Parameter]]] = {}
    for use in places:
        uses.setdefault(id(use[2]), []).append(use)
    for same in uses.values():
        place, name, tensor = max(same, key=lambda use: use[0][2])
        aliases = tuple(sorted(other for _, other, _ in same if other != name))
        yield place, Parameter(name, tuple(tensor.shape), aliases)


def _ancestry(path: str) -> Iterator[str]:
    """Yield a module path and the paths of the modules around it, from the inside out."""
    while True:
        yield path
        if not path:
            return
        path = path.rpartition(".")[0]


def _depth(block: int, count: int) -> int:
    return (count - 1 - block) * SCALE // count


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
