"""Choosing the modules that are differentiated as one piece: the user's, and those that no layer covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from gradwarden.runtime.masks.bands import BandIndex
from gradwarden.runtime.masks.layers.operation import stock_forward
from gradwarden.runtime.masks.pieces import LayerGradients, Piece
from gradwarden.runtime.masks.places import Places

LayerRules = Mapping[type[nn.Module], LayerGradients | None]
"""The user's rules by class; None asks for the class to be differentiated as one piece."""

_ROUNDS = 3
"""How far up, from a module with parameters of its own, a module is looked for that covers them."""

_MOST = 0.5
"""The greatest part of the model that may leave the fast path with a piece."""


def ruled_pieces(model: nn.Module, bands: BandIndex, rules: LayerRules) -> Iterator[Piece]:
    """Yield a piece for every module whose class, or one whose `forward` it keeps, has a rule."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside or module is model or "forward" in module.__dict__:
            continue
        for kind in type(module).__mro__:
            if kind in rules and stock_forward(module, (kind,)):
                inside |= {id(inner) for inner in module.modules()}
                yield Piece(name, module, _own_bands(module, bands), rules[kind])
                break


def widen(places: Places, called: Collection[int], attempt: Callable[[], bool]) -> bool:
    """Let pieces cover loose parameters, as far as that is exact; return whether any was tried.

    called: ids of the modules that the model calls. attempt: tries the engine on the model, without running
    blocks in parts, and says whether its gradients are exact.
    """
    kept = places.pieces
    tried = around = _around_blocks(places)
    for _ in range(_ROUNDS):
        found = _proposals(places, called, tried)
        if not found:
            break
        tried = tried | {id(piece.module) for piece in found}
        loose = places.loose
        useful: list[Piece] = []
        for group in (found, *_by_class(found)):
            places.cover(_joined(kept, group))
            if attempt():
                useful += [piece for piece in group if _ids(piece) & loose - places.loose]
                if group is found:
                    break
        kept = _joined(kept, useful)
        places.cover(kept)
        attempt()
    return tried != around


def notes_on(pieces: Sequence[Piece]) -> list[str]:
    """Return a note for every class of modules that are differentiated as pieces without a rule."""
    counts = Counter(type(piece.module) for piece in pieces if piece.rule is None)
    return [
        f"no rule for weighing the rows of `{kind.__qualname__}` ({kind.__module__}): "
        f"{count} {'module takes' if count == 1 else 'modules take'} the general path"
        for kind, count in counts.items()
    ]


@contextmanager
def watching_calls() -> Iterator[set[int]]:
    """Inside, collect the ids of all modules that are called."""
    called: set[int] = set()
    handle = register_module_forward_hook(lambda module, _args, _result: called.add(id(module)))
    try:
        yield called
    finally:
        handle.remove()


def _proposals(places: Places, called: Collection[int], tried: Collection[int]) -> list[Piece]:
    """Return pieces that may cover loose parameters: for each, the nearest module around it that is called.

    The model itself is none: that would be the reference way, and slower.
    """
    modules = dict(places.model.named_modules())
    loose = places.loose
    size = _trainable(places.model)
    chosen: dict[str, nn.Module] = {}
    for path, owner in modules.items():
        if not any(id(p) in loose and p.requires_grad for p in owner.parameters(recurse=False)):
            continue
        for around in _ancestry(path):
            module = modules[around]
            if id(module) in called and id(module) not in tried:
                if _trainable(module, loose) <= _MOST * size:
                    chosen[around] = module
                break
    return [
        Piece(path, module, _own_bands(module, places.bands))
        for path, module in chosen.items()
        if not any(around in chosen for around in _ancestry(path.rpartition(".")[0]))
    ]


def _around_blocks(places: Places) -> set[int]:
    """Return the ids of the blocks that are run in parts, and of the modules around them."""
    modules = dict(places.model.named_modules())
    return {id(modules[path]) for block in places.blocks for path in _ancestry(block.name)}


def _by_class(pieces: Sequence[Piece]) -> list[list[Piece]]:
    groups: dict[type[nn.Module], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(type(piece.module), []).append(piece)
    return list(groups.values())


def _joined(kept: Sequence[Piece], added: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return pieces of which none lies within another; those that are added go first."""
    inside = {id(module) for piece in added for module in piece.module.modules()}
    return (*(piece for piece in kept if id(piece.module) not in inside), *added)


def _ids(piece: Piece) -> set[int]:
    return {id(parameter) for parameter in piece.parameters}


def _trainable(module: nn.Module, without: Collection[int] = ()) -> int:
    """Return how many numbers of a module are trained, some of its parameters left out."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad and id(p) not in without)


def _own_bands(module: nn.Module, bands: BandIndex) -> int:
    """Return the bands of a module's parameters as a bit mask."""
    own = {bands.home[id(p)] for p in module.parameters() if id(p) in bands.home}
    return sum(1 << band for band in own)


def _ancestry(path: str) -> Iterator[str]:
    """Yield a module's path and those of the modules around it, from the inside out, without the model's."""
    while path:
        yield path
        path = path.rpartition(".")[0]
