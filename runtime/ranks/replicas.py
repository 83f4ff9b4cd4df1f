"""Governed training of a model in DistributedDataParallel.

DDP's reducer sums a parameter's gradient over the processes as soon as the backward pass has it, and hangs or
raises where a parameter has one on one process and none on another: as masks would have it. So
- forward passes do not arm the reducer (as under `no_sync`), and only the last backward pass of a step does;
- before it, the processes agree that all of them can make it;
- in it, parameters that have no gradient here get zeros, which are exact in a sum;
- after it, parameters that have a gradient nowhere get None again, so that optimizers leave them alone.

What was accumulated in `.grad` before the last pass (micro-batches, gradients taken apart) is reduced with
it. A process without examples, or none that may shape anything, gives zeros for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.graph import uses
from gradwarden.runtime.masks.passes import Passes, accumulate, scaled
from gradwarden.runtime.ranks.data_parallel import GroupRanks
from gradwarden.runtime.ranks.reduction import Reduction
from gradwarden.runtime.steps.gates import ForeignWatch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ReplicaReduction(Reduction):
    """Reduces gradients through the reducer of DistributedDataParallel."""

    def __init__(
        self, wrapper: DistributedDataParallel, group: ProcessGroup | None, watch: ForeignWatch
    ) -> None:
        _check_wrapper(wrapper, group)
        self._wrapper = wrapper
        self._watch = watch
        self._synced = wrapper.require_backward_grad_sync
        self._managed = _trainable(wrapper.module)
        self._met, self._declined = True, False
        self._graded: frozenset[int] = frozenset()
        self._passes = ReplicaPasses(self)
        ranks = GroupRanks(group or wrapper.process_group)
        super().__init__(wrapper.module, ranks, self._passes, share=ranks.size)

    def begin(self) -> None:
        """Keep the reducer out of the step's forward passes. Raises MaskError for newly thawed parameters."""
        if [id(p) for p in _trainable(self.module)] != [id(p) for p in self._managed]:
            raise _changed()
        self._met, self._declined, self._graded = False, False, frozenset()
        self._passes.final = False
        self._synced = self._wrapper.require_backward_grad_sync
        self._wrapper.require_backward_grad_sync = False

    def last(self) -> None:
        """Let the joint pass of the next backward pass reduce."""
        self._passes.final = True

    def reduce(self, losses: Tensor | None, factors: Tensor, scales: Mapping[nn.Parameter, float]) -> None:
        """Make the step's reducing backward pass, if all processes can.

        losses: [B], whose sum, each times its factor, is differentiated; None: only what was accumulated is
        reduced. scales: the parameters to differentiate, and what their gradients are multiplied by.
        """
        found = uses(losses, dict.fromkeys(map(id, scales), 0)) if losses is not None else None
        reached = set() if found is None else found.ordinary | found.weighing
        joint = [p for p in scales if id(p) in reached]
        rest = [p for p in self._managed if id(p) not in reached]
        self._graded = frozenset(reached | {id(p) for p in self._managed if p.grad is not None})
        if not self._meet(True):
            return
        nothing = _Zeros.apply(*rest) if rest else None  # type: ignore[no-untyped-call]
        with self._watch.paused(), scaled({p: scales[p] for p in joint}):
            # Both are given for wrappers with `find_unused_parameters`; the others do not look at them.
            self._wrapper.reducer.prepare_for_backward([t for t in (losses, nothing) if t is not None])
            self._wrapper.require_forward_param_sync = True
            if nothing is not None:
                torch.autograd.backward(nothing)
            if joint:
                assert losses is not None
                accumulate(losses, factors, joint, retain_graph=False)
            # Else the next forward pass would do it, where a process without examples may make none.
            self._wrapper.reducer._rebuild_buckets()

    def finish(self, ready: bool) -> None:
        """Reduce what the step has accumulated, if that is not done and all processes can."""
        if self._met:
            return
        if ready:
            self.reduce(None, torch.empty(0), {})
        else:
            self._meet(False)

    def _meet(self, ready: bool) -> bool:
        """Return whether all processes are ready for the reducing pass. Once per step."""
        self._met = True
        self._declined = self.ranks.any("reduce the gradients", not ready)
        return not self._declined

    @property
    def declined(self) -> bool:
        return self._declined

    def end(self) -> None:
        """Give the wrapper its setting back."""
        self._wrapper.require_backward_grad_sync = self._synced

    def graded(self, parameters: Sequence[nn.Parameter]) -> int:
        return sum(1 << i for i, parameter in enumerate(parameters) if id(parameter) in self._graded)

    def settle(self, parameters: Sequence[nn.Parameter], graded: int) -> None:
        """Drop the zeros of parameters that no process has a gradient for."""
        for i, parameter in enumerate(parameters):
            if not graded >> i & 1:
                parameter.grad = None


class ReplicaPasses(Passes):
    """Backward passes of which the last one of a step reduces. final: whether it is due."""

    def __init__(self, reduction: ReplicaReduction) -> None:
        self.final = False
        self._reduction = reduction

    def joint(
        self, losses: Tensor, factors: Tensor, scales: Mapping[nn.Parameter, float], retain_graph: bool
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        if self.final and not retain_graph:
            self._reduction.reduce(losses, factors, scales)
        else:
            yield from self.apart(losses, factors, scales, retain_graph)


class _Zeros(Function):
    """Parameters -> a number that does not depend on them; its gradient with respect to each is zeros."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.like
        )


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _changed() -> MaskError:
    return MaskError(
        "parameters were frozen or thawed after the model was wrapped",
        help="wrap the model in DistributedDataParallel anew, and begin a new governor with it",
    )


def _check_wrapper(wrapper: DistributedDataParallel, group: ProcessGroup | None) -> None:
    """Raise MaskError for a wrapper whose reducer cannot be told what the masks leave out."""
    if wrapper.static_graph:
        raise MaskError(
            "the model is in DistributedDataParallel with `static_graph`, but masks change the graph by step",
            help="wrap it without `static_graph=True`",
        )
    if wrapper.mixed_precision is not None:
        raise MaskError(
            "the model is in DistributedDataParallel with `mixed_precision`",
            help="use `torch.autocast`, or `fully_shard` with a `MixedPrecisionPolicy`",
        )
    if any(
        parameter.requires_grad and name in wrapper.parameters_to_ignore
        for name, parameter in wrapper.module.named_parameters()
    ):
        raise MaskError(
            "DistributedDataParallel was told to ignore parameters that are to be trained",
            help="freeze them, or let it reduce them",
        )
    managed = wrapper._get_ddp_logging_data()["num_parameter_tensors"]  # type: ignore[no-untyped-call]
    if managed != len(_trainable(wrapper.module)):
        raise _changed()
    if group is not None:
        ranks, given = (dist.get_process_group_ranks(g) for g in (wrapper.process_group, group))
        if ranks != given:
            raise MaskError(
                "the governor was given another process group than DistributedDataParallel",
                help="leave `group=` out, or pass one of the same processes, for the governor's messages",
            )
