"""What wraps a model to spread it over processes."""

from __future__ import annotations

import sys

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradwarden.runtime.errors import MaskError


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that DistributedDataParallel holds; any other as it is."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class as its author wrote it: `fully_shard` derives one of its own from it."""
    mro = type(module).__mro__
    return mro[2] if len(mro) > 2 and mro[1].__name__ == "FSDPModule" else type(module)


def is_sharded(model: nn.Module) -> bool:
    """Return whether `fully_shard` was called on any part of a model."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules())


def refuse_inner_wrappers(model: nn.Module) -> None:
    """Raise MaskError where a part of a model is wrapped by itself, or in a way that hides its parameters."""
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, DistributedDataParallel):
            raise MaskError(
                "a part of the model is wrapped in DistributedDataParallel",
                help="wrap the model as a whole, or not at all and pass `group=`",
            )
        if kind == "FullyShardedDataParallel" and type(module).__module__.startswith("torch.distributed"):
            raise MaskError(
                "the model is in FullyShardedDataParallel (FSDP1), which joins the parameters of many layers",
                help="use `torch.distributed.fsdp.fully_shard` (FSDP2)",
            )
