"""Governed training of a model under `fully_shard` (FSDP2).

Every process holds a piece of each parameter. FSDP gathers a block's parameters before its forward and its
backward pass, and scatters the sums of their gradients after the latter; all processes must come to the same
blocks in the same order, with gradients for the same parameters. So
- every backward pass is made by all processes or by none, as they agree before it;
- the bands that any process reaches are run through on all: where none of the own examples reaches a
  parameter, its layer gives zeros;
- bands that no process reaches are off the graph on all: their blocks are neither gathered for the backward
  pass nor reduced, and their gradients stay None;
- what decides how many passes are made (classes of weights, parameters taken apart, checks) is common.

Masks work on the whole parameters that stand in for the pieces while a block runs. The engine is tried on the
examples of one process, which are given to all.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial

from gradwarden.runtime.errors import MaskError, RankError
from gradwarden.runtime.masks.bands import BandIndex
from gradwarden.runtime.masks.passes import Passes, Scales, T, accumulate, scaled
from gradwarden.runtime.masks.trial import TrialError
from gradwarden.runtime.ranks.data_parallel import GroupRanks
from gradwarden.runtime.ranks.parallelism import mesh_text, placements_text, refuse_split_parameters
from gradwarden.runtime.ranks.reduction import Reduction
from gradwarden.runtime.steps.gates import ForeignWatch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

READY, DECLINES, LEAVES = range(3)
"""What a process says before a backward pass: it will make it; it will not; and it will make no other."""


class ShardReduction(Reduction):
    """Reduces gradients as FSDP2 does, and leaves its piece of each on every process."""

    def __init__(self, module: nn.Module, group: ProcessGroup | None, watch: ForeignWatch) -> None:
        self._units = [part for part in module.modules() if isinstance(part, FSDPModule)]
        self.rest()
        mesh = _common_mesh(module, self._units)
        ranks = GroupRanks(_group_of(mesh, group))
        passes = ShardPasses(self, watch)
        super().__init__(module, ranks, passes, share=ranks.size)
        self.whole, self.replicated = False, mesh.ndim > 1
        self._mesh = mesh
        self.copies = mesh.size(0) if mesh.ndim > 1 else 1
        self.copy = mesh.get_local_rank(0) if mesh.ndim > 1 else 0
        self._shards = passes
        self._due = self._made = 0
        self._off = self._ran = self._running = False
        self._hooks = [
            module.register_forward_pre_hook(self._enter, prepend=True),
            module.register_forward_hook(self._leave),
            *passes.hooks(self._units),
        ]

    def watched(self, parameters: Sequence[nn.Parameter]) -> Sequence[nn.Parameter]:
        """Return nothing: what stands in for the pieces is watched instead, as FSDP reduces when it likes."""
        return ()

    def rest(self) -> None:
        """Put pieces in the place of whole parameters, which FSDP leaves after a forward pass."""
        for unit in self._units:
            unit.reshard()

    def begin(self) -> None:
        """Forget the step before."""
        self.rest()
        for held in _held(self._units):
            held.drop()
        self.expect(1)
        self._off = self._ran = self._running = False

    def expect(self, parts: int) -> None:
        self._due, self._made = parts, 0

    def ready(self, says: int = READY) -> bool:
        """Return whether all processes make the backward pass that is due. Asked once for each.

        Raises RankError where another has left the step, and would not come to the parts still due.
        """
        if self._off:
            return False
        self._made += 1
        self._ran = False
        words = torch.tensor([says], dtype=torch.int32, device="cpu")
        word = int(self.ranks.largest("run the backward pass", words)[0])
        self._off = word != READY
        if word == LEAVES != says and self._made < self._due:
            raise RankError("another process has left the step, of which parts are still to be run")
        return word == READY

    def decline(self) -> None:
        self.ready(DECLINES)

    @property
    def astray(self) -> bool:
        return not self._off and self._made < self._due and (self._running or not self._ran)

    def finish(self, ready: bool) -> None:
        """Leave the step; tell processes that wait for a backward pass of this one.

        Raises RankError where they wait in a forward pass, and MaskError where FSDP was not told to reduce.
        """
        if self.astray:
            raise RankError(
                f"rank {self.ranks.rank} leaves a step without running the model, as all ranks must together",
                help="run it once for each part of a step, on an empty batch where there are no examples",
            )
        if not self._off and self._made < self._due:
            self.ready(LEAVES)
        if any(held.pending for held in _held(self._units)):
            raise MaskError(
                "gradients were accumulated and not reduced",
                help="call `set_requires_gradient_sync(True)` before the last part of the step",
            )

    def end(self) -> None:
        self.rest()

    def settle(self, parameters: Sequence[nn.Parameter], graded: int) -> None:
        """Give every process a piece of the gradients that any has one of.

        Masks leave all with one or none; what the caller assigned to `.grad` may be on one process only.
        """
        for i, parameter in enumerate(parameters):
            if graded >> i & 1 and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def total(self, squares: Tensor) -> Tensor:
        return self.ranks.sum("measure the gradients", squares) / self.copies

    def origin(self, key: int) -> int:
        return self._shards.origins.get(key, key)

    def scatter(self, parameter: Tensor, total: Tensor) -> Tensor:
        assert isinstance(parameter, DTensor)
        mesh, placements = parameter.device_mesh, parameter.placements
        summed = DTensor.from_local(total, mesh, [Partial()] * mesh.ndim, run_check=False)
        spread = [*[Partial()] * (mesh.ndim - 1), placements[-1]]
        held: Tensor = summed.redistribute(mesh, spread).to_local()
        return held.contiguous().to(parameter.to_local().device)

    def merge(self, held: Sequence[Tensor]) -> None:
        if self.copies > 1:
            GroupRanks(self._mesh.get_group(0)).add_up(held)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, *_: Any) -> None:
        self._running = True

    def _leave(self, *_: Any) -> None:
        self._running, self._ran = False, True


class ShardPasses(Passes):
    """Backward passes that all processes make together; gradients go to the pieces as FSDP scatters them.

    origins: the id of each piece by that of what stands in for it.
    """

    collective = True

    def __init__(self, reduction: ShardReduction, watch: ForeignWatch) -> None:
        self._reduction = reduction
        self._watch = watch
        self.origins: dict[int, int] = {}
        self._stand_ins: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        self._indices: weakref.WeakSet[BandIndex] = weakref.WeakSet()

    def follow(self, bands: BandIndex) -> None:
        self._indices.add(bands)
        for piece, whole in self._stand_ins.values():
            bands.stand_in(piece, whole)

    def hooks(self, units: Sequence[FSDPModule]) -> Iterator[Any]:
        """Yield hooks by which each unit, whenever it runs, shows what stands in for its pieces."""
        for unit in units:
            owned = list(_owned(unit))

            def meet(*_: Any, owned: list[tuple[nn.Module, str, nn.Parameter]] = owned) -> None:
                for owner, name, piece in owned:
                    self._meet(piece, owner._parameters[name])

            assert isinstance(unit, nn.Module)
            yield unit.register_forward_pre_hook(meet)

    def _meet(self, piece: nn.Parameter, whole: nn.Parameter | None) -> None:
        known = self._stand_ins.get(id(piece))
        if whole is None or whole is piece or (known is not None and known[1] is whole):
            return
        if known is not None:
            del self.origins[id(known[1])]
        self._stand_ins[id(piece)] = (piece, whole)
        self.origins[id(whole)] = id(piece)
        self._watch.add(whole)
        for bands in self._indices:
            bands.stand_in(piece, whole)

    def ready(self) -> bool:
        return self._reduction.ready()

    def largest(self, facts: Tensor) -> Tensor:
        return self._reduction.ranks.largest("run the backward pass", facts)

    def apart(
        self, losses: Tensor, factors: Tensor, scales: Scales, retain_graph: bool
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        with self._watch.paused(), scaled(scales):
            accumulate(losses, factors, list(scales), retain_graph)
        return iter(())

    def common(self, trial: Callable[[], T]) -> T | None:
        sample = b""

        def describe() -> tuple[int, str]:
            nonlocal sample
            try:
                made = trial()
                sample = pickle.dumps((type(made), made.sample()))
            except TrialError as failure:
                return 0, failure.message
            except Exception as error:  # whatever a user's inputs raise when they are pickled
                return 0, f"the model's inputs cannot be sent to other processes: `{type(error).__name__}`"
            return made.distinct, ""

        ranks = self._reduction.ranks
        found = ranks.collect("try the model", describe)
        able = [rank for rank, (distinct, _) in enumerate(found) if distinct > 1]
        if not able:
            if all(fault for _, fault in found):
                raise TrialError(found[0][1])
            return None
        sent = ranks.tell("try the model", able[0], sample if ranks.rank == able[0] else None)
        module = self._reduction.module
        kind, made = pickle.loads(sent)
        found_trial: T = kind.of_sample(module, made, next(module.parameters()).device)
        return found_trial


# --- what FSDP has of a model -------------------------------------------------------------------------------


class _Held:
    """A parameter as FSDP holds it: the one place that looks into it."""

    def __init__(self, held: Any, group: Any) -> None:
        self.piece: nn.Parameter = held.sharded_param
        self.split: bool = held.is_dtensor
        self.mesh: DeviceMesh = group.mesh_info.mesh
        self.spread: DeviceMesh = held.sharded_param.device_mesh
        self.divided: bool = group.gradient_divide_factor is not None
        self._held = held

    @property
    def pending(self) -> bool:
        """Whether a gradient was accumulated that was not reduced."""
        whole = getattr(self._held, "_unsharded_param", None)
        kept = self._held.unsharded_accumulated_grad
        return kept is not None or (whole is not None and whole.grad is not None)

    def drop(self) -> None:
        """Drop such a gradient."""
        self._held.unsharded_accumulated_grad = None
        whole = getattr(self._held, "_unsharded_param", None)
        if whole is not None:
            whole.grad = None


def _held(units: Sequence[FSDPModule]) -> Iterator[_Held]:
    seen: set[int] = set()
    for unit in units:
        for group in unit._get_fsdp_state()._fsdp_param_groups:
            if id(group) not in seen:
                seen.add(id(group))
                yield from (_Held(held, group) for held in group.fsdp_params)


def _owned(unit: FSDPModule) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield (module, name, parameter) for what a unit has outside the units within it."""
    assert isinstance(unit, nn.Module)
    pending: list[nn.Module] = [unit]
    while pending:
        module = pending.pop()
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield module, name, parameter
        pending += [child for child in module.children() if not isinstance(child, FSDPModule)]


def _common_mesh(module: nn.Module, units: Sequence[FSDPModule]) -> DeviceMesh:
    """Return the mesh over which all parameters are sharded. Raises MaskError where there is none."""
    held = {id(one.piece): one for one in _held(units)}
    named = list(module.named_parameters())
    refuse_split_parameters([(name, p) for name, p in named if id(p) not in held])
    for name, parameter in named:
        one = held.get(id(parameter))
        if one is None and parameter.requires_grad:
            raise MaskError(
                f"parameter `{name}` is not sharded, so its gradient would not be reduced",
                help="call `fully_shard(model)` on the whole model after its blocks",
            )
        if one is not None and one.split:
            raise MaskError(
                f"parameter `{name}` lies on {mesh_text(one.spread)} as "
                f"{placements_text(parameter)}: besides `fully_shard`, tensor or sequence parallelism has "
                "split it, and no process has an example's rows to weigh",
                help="use `fully_shard` alone",
            )
        if one is not None and one.divided:
            raise MaskError(
                "FSDP was told to divide gradients by a factor of the caller's",
                help="do not call `set_gradient_divide_factor`: gradients are divided by the normaliser",
            )
    meshes = [one.mesh for one in held.values()]
    if not meshes or any(mesh != meshes[0] for mesh in meshes):
        raise MaskError(
            "the model's parts are sharded over different meshes", help="use one mesh for the whole model"
        )
    return meshes[0]


def _group_of(mesh: DeviceMesh, group: ProcessGroup | None) -> ProcessGroup:
    """Return the group for messages. Raises MaskError where it is not of the mesh's processes."""
    members = sorted(mesh.mesh.flatten().tolist())
    if group is None and mesh.ndim == 1:
        return mesh.get_group()
    if group is None:
        world = dist.group.WORLD
        assert world is not None
        group = world
    if sorted(dist.get_process_group_ranks(group)) != members:
        raise MaskError(
            f"the group has other processes than the mesh of `fully_shard`, {members}",
            help="pass `group=` with the processes that train this model",
        )
    return group
