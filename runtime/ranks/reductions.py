"""Choosing how the gradients of a model are reduced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradwarden.runtime.ranks.data_parallel import ranks_of
from gradwarden.runtime.ranks.parallelism import (
    refuse_pipeline,
    refuse_sequence_split,
    refuse_split_parameters,
)
from gradwarden.runtime.ranks.reduction import Reduction
from gradwarden.runtime.ranks.replicas import ReplicaReduction
from gradwarden.runtime.ranks.wrapping import is_sharded, refuse_inner_wrappers, unwrapped
from gradwarden.runtime.steps.gates import ForeignWatch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def reduction_of(model: nn.Module, group: ProcessGroup | None, watch: ForeignWatch) -> Reduction:
    """Return a model's way of reducing gradients. watch: notices gradients that come from elsewhere.

    Raises MaskError for a model that is wrapped or split in a way that cannot be governed.
    """
    refuse_pipeline(model)
    bare = unwrapped(model)
    refuse_inner_wrappers(bare)
    refuse_sequence_split(bare)
    if is_sharded(model):
        # Only now: importing FSDP takes a second.
        from gradwarden.runtime.ranks.sharding import ShardReduction

        return ShardReduction(model, group, watch)
    refuse_split_parameters(list(bare.named_parameters()))
    if isinstance(model, DistributedDataParallel):
        return ReplicaReduction(model, group, watch)
    return Reduction(model, ranks_of(group))
