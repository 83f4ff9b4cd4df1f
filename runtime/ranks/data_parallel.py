"""Several processes train one model: what they tell each other, and how their gradients become one.

Every process (a rank) holds the whole model and runs its own part of each batch. The ranks meet at a few
points of a step and exchange small objects there; every rank then knows the batch of all and decides alike.
Rank 0 alone writes the ledger, so whatever must be recorded before others go on happens on rank 0 first.

A point is passed by all ranks or by none: what fails on one rank raises on every rank. Ranks that meet at
different points, or lose each other, get a RankError; so nobody waits for a rank that is elsewhere.

Gradients are summed once per step, after the local backward passes: a mask may leave a parameter without a
gradient on one rank and not on another, which reductions hooked into the backward pass do not survive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradwarden.policy.context import FloatArray, IntArray
from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.evaluation.evaluate import ContextError
from gradwarden.runtime.errors import LedgerError, MaskError, RankError
from gradwarden.runtime.steps.gates import Finding

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

A = TypeVar("A", bound=Tensor)

ROOT = 0
"""The rank that writes the ledger."""

BUCKET_BYTES = 25 * 2**20
"""Gradients are summed in buckets of about this size: few calls, and little memory beside the gradients."""


class Ranks(Protocol):
    """The processes that train together, as seen from one of them.

    Every `what` is a verb phrase that names the point, as in `rank 1 could not save a checkpoint`.
    """

    rank: int
    size: int

    def collect(self, what: str, produce: Callable[[], T]) -> list[T]:
        """Return what `produce` gives on each rank, by rank.

        What it raises is raised again here; the other ranks raise LedgerError for a LedgerError, else
        RankError.
        """

    def lead(self, what: str, produce: Callable[[], T], prepare: Callable[[], object]) -> T:
        """Run `produce` on rank 0 and `prepare` on the others; return what rank 0 got. Raises alike."""

    def any(self, what: str, flag: bool) -> bool:
        """Return whether the flag is set on any rank. A rank cannot fail here, and names no reason."""

    def largest(self, what: str, numbers: Tensor) -> Tensor:
        """Return the greatest of each number over the ranks, on the CPU. Alike in shape and type on all."""

    def sum(self, what: str, numbers: Tensor) -> Tensor:
        """Return the sum of each number over the ranks, on the CPU. Alike in shape and type on all."""

    def gather(self, what: str, numbers: Tensor) -> Tensor:
        """Return the numbers [n] of every rank, [ranks, n], on the CPU. Alike in shape and type on all."""

    def tell(self, what: str, source: int, value: T | None) -> T:
        """Return the value that rank `source` has; the others pass None."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Turn each gradient into its sum over the ranks, None counting as zeros. The same list on all."""

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Turn each tensor into its sum over the ranks, in place. Alike in shape and type on all."""

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have on rank 0, in place. Alike in shape and type on all."""


class OneRank:
    """A process that trains alone."""

    rank, size = ROOT, 1

    def collect(self, what: str, produce: Callable[[], T]) -> list[T]:
        return [produce()]

    def lead(self, what: str, produce: Callable[[], T], prepare: Callable[[], object]) -> T:
        return produce()

    def any(self, what: str, flag: bool) -> bool:
        return flag

    def largest(self, what: str, numbers: Tensor) -> Tensor:
        return numbers.cpu()

    def sum(self, what: str, numbers: Tensor) -> Tensor:
        return numbers.cpu()

    def gather(self, what: str, numbers: Tensor) -> Tensor:
        return numbers.cpu()[None]

    def tell(self, what: str, source: int, value: T | None) -> T:
        assert value is not None
        return value

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Leave gradients as they are."""

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Leave tensors as they are."""

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Leave tensors as they are."""


@dataclass(frozen=True, slots=True)
class Note:
    """What one rank says at a point. fault: why it cannot pass; ledger: whether the ledger is at fault."""

    what: str
    value: Any = None
    fault: str | None = None
    ledger: bool = False


class GroupRanks:
    """The ranks of a process group."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._device = _device_of(group)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise MaskError("this process is not in the group", help="pass a group that every process is in")

    def collect(self, what: str, produce: Callable[[], T]) -> list[T]:
        try:
            value = produce()
        except BaseException as error:
            said = error.message if isinstance(error, GradwardenError) else f"`{type(error).__name__}`"
            with suppress(RankError):
                self._exchange(Note(what, fault=said, ledger=isinstance(error, LedgerError)))
            raise
        notes = self._exchange(Note(what, value))
        for rank, note in enumerate(notes):
            if note.fault is not None:
                _raise_fault(rank, note)
        if any(note.what != what for note in notes):
            raise RankError(
                "the ranks are not at the same point: "
                + ", ".join(f"rank {rank} would {note.what}" for rank, note in enumerate(notes)),
                help="call the governor alike on every rank; a rank without examples proposes an empty list",
            )
        return [note.value for note in notes]

    def lead(self, what: str, produce: Callable[[], T], prepare: Callable[[], object]) -> T:
        action: Callable[[], Any] = produce if self.rank == ROOT else prepare
        found: T = self.collect(what, action)[ROOT]
        return found

    def any(self, what: str, flag: bool) -> bool:
        return bool(self.largest(what, torch.tensor([flag], dtype=torch.int32, device="cpu"))[0])

    def largest(self, what: str, numbers: Tensor) -> Tensor:
        return self._reduced(what, numbers, dist.ReduceOp.MAX)

    def sum(self, what: str, numbers: Tensor) -> Tensor:
        return self._reduced(what, numbers, dist.ReduceOp.SUM)

    def gather(self, what: str, numbers: Tensor) -> Tensor:
        own = numbers.to(self._device)
        told = [torch.empty_like(own) for _ in range(self.size)]
        with self._together(what):
            dist.all_gather(told, own, group=self._group)
        return torch.stack(told).cpu()

    def tell(self, what: str, source: int, value: T | None) -> T:
        found: list[Any] = [value]
        with self._together(what):
            dist.broadcast_object_list(found, dist.get_global_rank(self._group, source), group=self._group)
        told: T = found[0]
        return told

    def _reduced(self, what: str, numbers: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        reduced = numbers.to(self._device, copy=True)
        with self._together(what):
            dist.all_reduce(reduced, op=operation, group=self._group)
        return reduced.cpu()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        for bucket in _buckets(parameters):
            sums = self._summed([_gradient(parameter) for parameter in bucket])
            for parameter, total in zip(bucket, sums, strict=True):
                parameter.grad = total.view(parameter.shape)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        for bucket in _buckets(tensors):
            for tensor, total in zip(bucket, self._summed(bucket), strict=True):
                tensor.copy_(total.view(tensor.shape))

    def _summed(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the sums of tensors of one type over the ranks, each flat."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self._group)
        return torch.split(flat, [tensor.numel() for tensor in tensors])

    def share(self, tensors: Sequence[Tensor]) -> None:
        root = dist.get_global_rank(self._group, ROOT)
        for tensor in tensors:
            dist.broadcast(tensor, root, group=self._group)

    def _exchange(self, note: Note) -> list[Note]:
        notes: list[Any] = [None] * self.size
        with self._together(note.what):
            dist.all_gather_object(notes, note, group=self._group)
        return notes

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            raise RankError(
                f"rank {self.rank} lost the other ranks when it would {what}",
                help="see what the other ranks printed; the run can be resumed from its ledger",
            ) from error


def _device_of(group: ProcessGroup) -> torch.device:
    """Return where a group takes tensors from."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def ranks_of(group: ProcessGroup | None) -> Ranks:
    return OneRank() if group is None else GroupRanks(group)


def _raise_fault(rank: int, note: Note) -> NoReturn:
    kind = LedgerError if note.ledger else RankError
    raise kind(f"rank {rank} could not {note.what}: {note.fault}")


def _buckets(tensors: Sequence[A]) -> Iterator[list[A]]:
    """Yield tensors in groups of one type and device and of bounded size, the same on every rank."""
    kinds: dict[tuple[torch.dtype, torch.device], list[A]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for members in kinds.values():
        bucket: list[A] = []
        size = 0
        for tensor in members:
            bucket.append(tensor)
            size += tensor.numel() * tensor.element_size()
            if size >= BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


# --- what must be equal on every rank -----------------------------------------------------------------------


def check_replica(model: nn.Module, ranks: Ranks) -> None:
    """Raise MaskError for a model whose gradients could not be reduced."""
    if ranks.size > 1 and any(getattr(module, "sparse", False) is True for module in model.modules()):
        raise MaskError("sparse gradients cannot be reduced over ranks", help="use `sparse=False`")


def names_digest(model: nn.Module) -> str:
    """Return the hex SHA-256 of the names and shapes of a model's parameters."""
    named = [f"{name} {tuple(parameter.shape)}\n" for name, parameter in model.named_parameters()]
    return hashlib.sha256("".join(named).encode()).hexdigest()


def check_equal(
    ranks: Ranks, what: str, facts: Callable[[], Mapping[str, str]], help: str | None = None
) -> None:
    """Raise MaskError where ranks differ in a fact. facts: by name; not asked for where there is one rank."""
    if ranks.size == 1:
        return
    found = ranks.collect(what, facts)
    for rank, other in enumerate(found):
        for name, value in found[ROOT].items():
            if other[name] != value:
                raise MaskError(
                    f"rank {rank} could not {what}: it has other {name} than rank {ROOT}",
                    help=help or f"give every rank the same {name}",
                )


def weights_digest(model: nn.Module) -> str:
    """Return the hex SHA-256 of a model's parameters: names, types, shapes, whether they train, and bytes.

    Scattered parameters are gathered one by one, so all their processes must call this together.
    """
    state = hashlib.sha256()
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        state.update(f"{name} {parameter.dtype} {shape} {parameter.requires_grad}\n".encode())
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        state.update(whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


# --- one batch of several parts -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's part of a batch, as the others need to know it. examples: not filled for a rank by itself."""

    count: int
    examples: Sequence[tuple[str, Mapping[str, Any]]]
    signals: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank says of its part of a step when the step is left.

    readings: what was measured of the public examples that shape something, by place in the rank's own part.
    graded: bit i is set where parameter i has a gradient. finding: why the rank cannot let the step through.
    """

    finding: Finding | None
    readings: Mapping[str, tuple[IntArray, FloatArray]]
    graded: int


def first_finding(findings: Sequence[Finding | None]) -> Finding | None:
    """Return the finding of the lowest rank that has one, naming the rank where others differ."""
    for rank, finding in enumerate(findings):
        if finding is not None:
            alike = all(other == finding for other in findings)
            return finding if alike else replace(finding, detail=f"rank {rank}: {finding.detail}")
    return None


def join_readings(parts: Sequence[Part], starts: Sequence[int]) -> dict[str, tuple[IntArray, FloatArray]]:
    """Return what all ranks have measured, by place in the whole batch. starts: of each rank's part."""
    found: dict[str, tuple[IntArray, FloatArray]] = {}
    for name in dict.fromkeys(name for part in parts for name in part.readings):
        own = [
            (start, *part.readings[name])
            for start, part in zip(starts, parts, strict=False)
            if name in part.readings
        ]
        places = np.concatenate([start + places for start, places, _ in own])
        found[name] = (places, np.concatenate([values for _, _, values in own]))
    return found


def join_signals(shares: Sequence[Share]) -> Mapping[str, Any]:
    """Return the signals of a whole batch: one number for all, or one per example in the order of ranks.

    Raises MaskError where a rank gives a signal that another does not.
    """
    first = shares[ROOT].signals
    if len(shares) == 1:
        return first
    for rank, share in enumerate(shares):
        if odd := sorted(share.signals.keys() ^ first.keys()):
            raise MaskError(
                f"the signal `{odd[0]}` is given on only one of the ranks {ROOT} and {rank}",
                help="give every rank the same signals; a rank without examples gives an empty list",
            )
    return {
        name: [value for share in shares for value in _per_example(name, share.signals[name], share.count)]
        for name in first
    }


def _per_example(name: str, value: Any, count: int) -> list[Any]:
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(plain, list | tuple):
        return [plain] * count
    if len(plain) != count:
        raise ContextError(
            f"the signal `{name}` must be one number, or one per example: {count}, not {len(plain)}"
        )
    return list(plain)
