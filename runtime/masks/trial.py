"""Running a model on a few examples of a real batch without leaving a trace.

Random number generators and buffers are as they were afterwards, so a run that is examined goes on exactly
like one that is not. Every trial run starts from the same seed, so that dropout agrees between them. (Private
generators and Python attributes that a forward pass changes are beyond reach.)
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.layout import Layout, candidates

SIZES = (2, 3)
"""The two batch sizes of a trial."""

_SEARCHED = 64
"""Rows of a batch among which different examples are looked for."""

_SEED = 20_011


class TrialError(MaskError):
    """A model that cannot be tried on a few examples, so that its engine cannot be checked."""

    code = "GW801"


class Trial:
    """Runs of one model on chosen examples of one batch. Use inside `untouched`.

    Examples with some weight come first: the metadata or content of refused ones may be broken. Examples that
    the model is given the same tensors for count as one: putting one in another's place would show nothing.
    dim: the dimension of the model's inputs that holds the batch. Where it could be either of two (a sequence
    as long as the batch is wide), it is the first until `turn` is called. drew: whether the last run drew
    random numbers.
    """

    drew = False

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], weights: Tensor
    ) -> None:
        self.model = model
        self._leaves, self._spec = pytree.tree_flatten((args, kwargs))
        self._batch = len(weights)
        self._held: Sequence[bool] | None = None
        self._dims = self._find_dims()
        self.dim = self._dims.pop(0)
        self._sought = sorted(range(self._batch), key=lambda row: not bool(weights[row].any()))[:_SEARCHED]
        self._order = self._different(self._sought)
        self._keep_buffers()

    def sample(self) -> dict[str, Any]:
        """Return the trial without its model and without the examples it does without, for other processes.

        Where it could turn to another dimension, it goes with all examples. Tensors are on the CPU.
        """
        state = {"batch": self._batch, "dim": self.dim, "dims": self._dims, "sought": self._sought}
        leaves, held, order = list(self._leaves), None, self._order
        if not self._dims:
            held = [self._holds(place) for place in range(len(leaves))]
            rows = torch.tensor(order, dtype=torch.long, device="cpu")
            leaves = [self._select(place, rows) for place in range(len(leaves))]
            order = list(range(len(order)))
            state |= {"batch": len(order), "sought": order}
        leaves = [leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return {**state, "inputs": pytree.tree_unflatten(leaves, self._spec), "held": held, "order": order}

    @classmethod
    def of_sample(cls, model: nn.Module, sample: Mapping[str, Any], device: torch.device) -> Self:
        """Return the trial of a sample, of another process's examples, with this one's model."""
        trial = cls.__new__(cls)
        trial.model = model
        leaves, trial._spec = pytree.tree_flatten(sample["inputs"])
        trial._leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        trial._batch, trial._held, trial._order = sample["batch"], sample["held"], sample["order"]
        trial.dim, trial._dims, trial._sought = sample["dim"], sample["dims"], sample["sought"]
        trial._keep_buffers()
        return trial

    def _keep_buffers(self) -> None:
        self._buffers = [
            (module, name, buffer, buffer.clone(), buffer._version)
            for module in self.model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @property
    def inputs_require_grad(self) -> bool:
        """Whether the caller wants gradients of the model's inputs."""
        return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in self._leaves)

    @property
    def distinct(self) -> int:
        """How many different examples the trial has, at most 4. With one, nothing can be told by it."""
        return len(self._order)

    def turn(self) -> bool:
        """Take another dimension for that of the batch; return whether one has different examples."""
        while self._dims:
            dim, self.dim = self.dim, self._dims.pop(0)
            order = self._different(self._sought)
            if len(order) > 1:
                self._order = order
                return True
            self.dim = dim
        return False

    def run(self, examples: Sequence[int]) -> list[Tensor]:
        """Return the floating-point outputs for the given examples (numbers are taken modulo `distinct`)."""
        rows = torch.tensor([self._order[number % self.distinct] for number in examples], device="cpu")
        leaves = [self._select(place, rows) for place in range(len(self._leaves))]
        return self._call(leaves, f"on a batch of {len(rows)}")

    def _call(self, leaves: Sequence[Any], how: str) -> list[Tensor]:
        """Return the floating-point outputs for some arguments. how: in what the trial differs, in words."""
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        self._seed()
        states = random_states()
        try:
            outputs = self.model(*args, **kwargs)
        except (MaskError, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever a user's model raises on other inputs than it was meant for
            reason = " ".join(str(error).split())[:200]
            raise TrialError(f"the model failed {how}: {reason}") from error
        finally:
            self.restore_buffers()
        self.drew = differ(states, random_states())
        return floating_tensors(outputs)

    def restore_buffers(self) -> None:
        """Put back every buffer that a run changed; unchanged ones are not written (graphs may hold them)."""
        with torch.no_grad():
            for module, name, buffer, value, version in self._buffers:
                module._buffers[name] = buffer
                if buffer._version != version and not torch.equal(buffer, value):
                    buffer.copy_(value)

    def _find_dims(self) -> list[int]:
        shapes = [leaf.shape for leaf in self._leaves if isinstance(leaf, Tensor) and leaf.dim() > 0]
        found = [
            dim for dim in (0, 1) if any(len(shape) > dim and shape[dim] == self._batch for shape in shapes)
        ]
        if found:
            return found
        raise TrialError(f"no tensor given to the model has a first or second dimension of {self._batch}")

    def _different(self, rows: Sequence[int]) -> list[int]:
        """Return the first four of these rows that the model is given different tensors for."""
        held = [leaf.detach() for place, leaf in enumerate(self._leaves) if self._holds(place)]
        kept: list[int] = []
        for row in rows:
            same = (
                all(torch.equal(leaf.select(self.dim, row), leaf.select(self.dim, k)) for leaf in held)
                for k in kept
            )
            if not any(same):
                kept.append(row)
            if len(kept) == 4:
                break
        return kept

    def _holds(self, place: int) -> bool:
        """Return whether one of the inputs, flattened, holds the batch."""
        if self._held is not None:
            return self._held[place]
        return holds_batch(self._leaves[place], self.dim, self._batch)

    def _select(self, place: int, rows: Tensor) -> Any:
        leaf = self._leaves[place]
        if not self._holds(place):
            return leaf
        return leaf.detach().index_select(self.dim, rows.to(leaf.device))

    @staticmethod
    def _seed() -> None:
        torch.manual_seed(_SEED)
        random.seed(_SEED)
        np.random.seed(_SEED)


def random_states() -> list[Tensor]:
    """Return the states of PyTorch's random number generators."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return states


def differ(states: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether any random number was drawn between two looks at the generators."""
    return any(not torch.equal(one, other) for one, other in zip(states, others, strict=True))


def holds_batch(leaf: Any, dim: int, batch: int) -> bool:
    """Return whether one of a model's arguments is a tensor with a batch of this size in a dimension."""
    return isinstance(leaf, Tensor) and leaf.dim() > dim and leaf.shape[dim] == batch


@contextmanager
def untouched(trial: Trial) -> Iterator[None]:
    """Restore the global random number generators and the model's buffers on leaving."""
    state, *cuda_states = random_states()
    others = (random.getstate(), np.random.get_state())
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(others[0])
        np.random.set_state(others[1])
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        trial.restore_buffers()


def floating_tensors(tree: Any) -> list[Tensor]:
    """Return the floating-point tensors in a model's output, whatever holds them."""
    if isinstance(tree, Tensor):
        return [tree] if tree.is_floating_point() else []
    if hasattr(tree, "__dataclass_fields__"):
        tree = {name: getattr(tree, name) for name in tree.__dataclass_fields__}
    if isinstance(tree, dict):
        return [tensor for value in tree.values() for tensor in floating_tensors(value)]
    if isinstance(tree, (list, tuple)):
        return [tensor for value in tree for tensor in floating_tensors(value)]
    return []


def tolerance(precision: torch.dtype) -> float:
    """Return the relative error that rounding may cause in results of a floating-point type."""
    return {torch.float64: 1e-9, torch.float32: 5e-4}.get(precision, 6e-2)


def refuse_dependence(trial: Trial) -> list[tuple[int, Layout]]:
    """Return where the examples lie in the outputs: (output number, layout), for those that have examples.

    Runs the model on three examples, then with the third and then with the first replaced by another: the
    outputs of the rest may not change. Raises MaskError if they do, TrialError if it cannot be told; unless
    they do not where the batch is sought in another dimension, in which the trial then has it.
    """
    try:
        return _locate_outputs(trial)
    except MaskError as first:
        if not trial.turn():
            raise
        try:
            return _locate_outputs(trial)
        except TrialError:
            raise first from None


def _locate_outputs(trial: Trial) -> list[tuple[int, Layout]]:
    with untouched(trial), torch.no_grad():
        small, base = trial.run([0, 1]), trial.run([0, 1, 2])
        changed = [({0, 1}, trial.run([0, 1, 3])), ({1, 2}, trial.run([1, 1, 2]))]
    located = []
    for number, output in enumerate(base):
        others = [(kept, outputs[number]) for kept, outputs in changed if len(outputs) == len(base)]
        layouts = candidates(small[number].shape, output.shape, SIZES) if len(small) == len(base) else []
        if not layouts:
            continue
        fitting = [layout for layout in layouts if all(_same(output, o, layout, kept) for kept, o in others)]
        if not fitting:
            raise MaskError(
                "the model's output for one example depends on the other examples of the batch",
                help="a mask cannot separate examples that the forward pass mixes; "
                "look for statistics, attention or routing over the batch dimension",
            )
        located.append((number, fitting[0]))
    if not located:
        raise TrialError("no output of the model has a batch dimension")
    return located


def _same(left: Tensor, right: Tensor, layout: Layout, kept: set[int]) -> bool:
    """Return whether the kept examples' parts agree; what is not finite cannot be compared and passes."""
    if left.shape != right.shape:
        return False
    for number in kept:
        one = layout.example(left, SIZES[1], number)
        other = layout.example(right, SIZES[1], number)
        if not bool(torch.isfinite(one).all()):
            continue
        scale = float(one.abs().max()) if one.numel() else 0.0
        if one.numel() and not float((one - other).abs().max()) <= tolerance(left.dtype) * max(scale, 1e-30):
            return False
    return True
