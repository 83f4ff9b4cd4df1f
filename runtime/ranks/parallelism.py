"""Ways of spreading a model over processes that cannot be governed, and how they are noticed.

Data parallelism leaves every example whole on one process; so rows can be weighed where they are. Tensor,
sequence and context parallelism put pieces of one example on several processes, and pipelines put its loss on
one and most of its gradients on others: the weights of an example would have to travel with its pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn import functional

from gradwarden.runtime.errors import MaskError

_DATA_ONLY = "use data parallelism alone: DistributedDataParallel, or `fully_shard` on a mesh of its own"


def refuse_pipeline(model: object) -> None:
    """Raise MaskError for what `torch.distributed.pipelining` makes of a model."""
    if type(model).__module__.startswith("torch.distributed.pipelining"):
        raise MaskError(
            f"the model is a `{type(model).__name__}` of a pipeline: an example's loss is on the last stage, "
            "and its gradients on every stage",
            help=_DATA_ONLY,
        )


def refuse_split_parameters(parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Raise MaskError where one of these parameters, by name, is spread over a mesh.

    Not to be asked of parameters that `fully_shard` has spread.
    """
    for name, parameter in parameters:
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None:
            raise MaskError(
                f"parameter `{name}` lies on {mesh_text(mesh)} as {placements_text(parameter)}: with tensor "
                "or sequence parallelism no process has an example's rows to weigh",
                help=_DATA_ONLY,
            )


def refuse_sequence_split(model: nn.Module | None = None) -> None:
    """Raise MaskError where context parallelism is in force: attention over pieces of sequences.

    Torch puts it in force for the length of a `with` block, or for good on modules of the model.
    """
    attention = functional.scaled_dot_product_attention
    modules = () if model is None else model.modules()
    hooks = (hook for module in modules for hook in module._forward_pre_hooks.values())
    if _of_context_parallel(attention) or any(map(_of_context_parallel, hooks)):
        raise MaskError(
            "context parallelism is in force: every process has a piece of each example's sequence, and a "
            "loss of that piece",
            help=_DATA_ONLY,
        )


def mesh_text(mesh: Any) -> str:
    """Say what a device mesh is called."""
    names = mesh.mesh_dim_names
    if not names:
        return f"a mesh of {mesh.size()} processes"
    return "the mesh " + " x ".join(f"`{name}`" for name in names)


def placements_text(parameter: Any) -> str:
    """Say how a parameter is placed on its mesh, dimension by dimension."""
    return ", ".join(f"`{placement}`" for placement in parameter.placements)


def _of_context_parallel(function: Any) -> bool:
    home = getattr(getattr(function, "func", function), "__module__", None) or ""
    return home.startswith("torch.distributed.tensor.experimental")
