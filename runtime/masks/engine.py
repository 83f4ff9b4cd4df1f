"""What a mask engine does, and the choice of one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from gradwarden.policy.errors import did_you_mean
from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks.covering import LayerRules
from gradwarden.runtime.masks.fused import FusedEngine
from gradwarden.runtime.masks.passes import Passes
from gradwarden.runtime.masks.planner import Choice
from gradwarden.runtime.masks.sink import Gauge, Sink
from gradwarden.runtime.masks.split import SplitEngine

ENGINES = ("auto", "fused", "split")

SEMANTICS = ("mask", "detach")


class Engine(Protocol):
    """Exact per-example, per-band gradients: arm, forward, backward, for each batch.

    Batches may be accumulated: arm, forward and backward several times before an optimizer step.
    """

    notes: list[str]
    """Why a slower path was chosen, in words."""

    @property
    def name(self) -> str:
        """The engine at work: `fused` or `split`."""

    @property
    def paths(self) -> dict[str, str]:
        """How each trainable parameter's gradient is taken, by name.

        `fast`: by its layer, from weighted rows. `general`: by a module around it that is differentiated by
        itself. `reference`: by one backward pass for each distinct row of weights. Known once the first batch
        has been run.
        """

    def explain(self) -> tuple[Choice, ...]:
        """Return how each part of the model was run in the last armed forward pass, and why."""

    def arm(
        self,
        weights: Tensor,
        owners: Tensor | None = None,
        *,
        classes: Tensor | None = None,
        units: Tensor | None = None,
        gauge: Gauge | None = None,
    ) -> None:
        """Set the weights [B, bands] for the next forward pass, whose graph keeps them.

        owners: where the rows of the forward pass are not the B examples, which example each row [R], or each
        position of each row [R, T], belongs to: an integer tensor, -1 for nobody's.
        classes: float64 [C, bands], where passes are collective: the distinct weights, on all processes, of
        the examples that are run together now. units: int64 [B], the privacy unit of each example, -1 for
        public ones; `backward` then needs a sink for what they shape. gauge: is shown the gradients of the
        public ones: by `fused` layer by layer; those of parameters that take the reference path, and all
        under `split`, in a backward pass for each example.
        """

    def backward(
        self,
        losses: Tensor,
        normaliser: float,
        *,
        rows: Tensor | None = None,
        retain_graph: bool = False,
        sink: Sink | None = None,
    ) -> None:
        """Add the sum over i of w[i, b] * dl_i/dp / normaliser to p.grad, for every p of every band b.

        losses: [B], attached to the graph of the armed forward pass. rows: bool [B]; where given, only these
        examples count. A parameter that no example reaches keeps the `.grad` it had. Private examples are not
        in the sum: their gradients go to the sink. Raises MaskError.
        """

    def unweighted(self) -> AbstractContextManager[None]:
        """Inside, plain autograd over the armed batch's graph gives unweighted gradients.

        For examples with a weight above 0 in the parameter's band only: what a weight of 0 forbids was not
        kept. Lets a caller clip the gradients of examples one by one before `backward` frees the graph.
        """

    def disarm(self) -> None:
        """Forget the armed batch: forward passes are plain until the next `arm`."""

    def close(self) -> None:
        """Restore the model. Safe to repeat."""


def make_engine(
    model: nn.Module,
    bands: Sequence[Band],
    engine: str = "auto",
    passes: Passes | None = None,
    *,
    layers: LayerRules | None = None,
    semantics: str = "mask",
) -> Engine:
    """Attach a mask engine to a model whose parameters are bound to bands.

    engine: `split` (reference, any architecture), `fused` (one backward pass; a failing probe is an error)
    or `auto` (`fused`; a failing probe falls back to `split` with a warning). The probe runs with the first
    armed forward pass. passes: how backward passes are run; None: by this process alone. layers: rules for
    classes of one's own, for `fused`: a function of a layer, its input and the gradient of its output that
    returns the gradients of its parameters by name; or None, to have the class differentiated as one piece.

    semantics: `mask` (weights are on parameters; back-propagation through a layer is exact), or `detach` (a
    weight of zero for a band also stops what would flow through the band's layers for that example). Only
    `fused` can detach, and no classes of one's own; there a failing probe is an error under `auto` too.

    Raises MaskError for a model that mixes examples, lacks parameters of `bands` or cannot be detached.
    """
    if engine not in ENGINES:
        raise MaskError(f"unknown mask engine `{engine}`", help=did_you_mean(engine, ENGINES))
    if semantics not in SEMANTICS:
        raise MaskError(f"unknown mask semantics `{semantics}`", help=did_you_mean(semantics, SEMANTICS))
    detached = semantics == "detach"
    if detached and passes is not None and passes.collective:
        raise MaskError(
            "layers of a sharded model cannot be detached: that would end one process's backward pass alone",
            help="leave `semantics detach` out, or train replicas in DistributedDataParallel",
        )
    if engine == "split":
        if detached:
            raise MaskError("the engine `split` cannot detach layers", help="use the engine `fused`")
        return SplitEngine(model, bands, passes=passes)
    strict = engine == "fused"
    return FusedEngine(model, bands, strict=strict, detached=detached, passes=passes, rules=layers)
