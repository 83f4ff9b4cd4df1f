"""One training step by each method, on the same network and the same kind of batch.

The plain step and the peers take turns on one network, to which no engine is attached; each engine has a copy
of its own. Every step is: gradients None, forward, backward, AdamW.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.routing import peers
from benchmarks.routing.cases import Case
from benchmarks.routing.models import Stack
from benchmarks.routing.workload import Batch, Workload
from gradwarden.policy import compile_policy, parse_policy
from gradwarden.runtime import Governor, Ledger, ModelMap, Signer
from gradwarden.runtime.masks import Engine, make_engine

PLAIN, GOVERNED, GOVERNOR, SPLIT = "plain", "governed", "governor", "split"

PEERS: dict[str, Callable[[Workload, Stack, Tensor], peers.Gradients]] = {
    "detach_outputs": peers.detach_outputs,
    "detach_hidden": peers.detach_hidden,
    "group_masking": peers.group_masking,
    "zero_after": peers.zero_after,
    "per_example": peers.per_example,
}

POLICY = """
policy benchmark version 1 language 1
examples { kind : one of a, b }
model { shallow = top 25%  middle = next 50%  deep = rest }
depth a { when kind == a  reach shallow at 0.9, middle at 0.5, deep at 0.2 }
depth b { when kind == b  reach shallow at 0.7, middle at 0.6, deep at 0.4 }
retain few { when kind == a  at most 1000000 exposures }
"""


class Trainee:
    """A network and its optimizer, whose state exists from the start."""

    def __init__(self, model: Stack) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def restart(self, state: dict[str, Tensor]) -> None:
        """Give the network the parameters of another."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state[name])


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A way to take a training step.

    gradients: drops old gradients and does all up to the optimizer's step; update: the rest. exposed: whether
    the gradients are in `.grad` between the two.
    """

    name: str
    trainee: Trainee
    gradients: Callable[[Batch], None]
    update: Callable[[], object]
    exposed: bool = True

    def step(self, batch: Batch) -> None:
        """Take a step."""
        self.gradients(batch)
        self.update()


@dataclass(slots=True, eq=False)
class Bench:
    """The networks that methods train. They live through all cases, as an engine does through a training."""

    work: Workload
    shared: Trainee = field(init=False)
    _attached: dict[str, tuple[Trainee, Engine]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.shared = Trainee(self.work.build())

    def plain(self) -> Method:
        """Return the ordinary training step."""
        return _method(PLAIN, self.shared, lambda batch: self._losses(self.shared, batch).mean().backward())

    def engine(self, name: str) -> Engine:
        """Return the engine of the method `governed` or `split`, attached when it is first asked for."""
        return self._attach(name)[1]

    def engine_method(self, name: str, case: Case) -> Method:
        """Return a step under a mask engine. name: `governed`, the fast one, or `split`, the reference."""
        assert case.weights is not None
        trainee, masks = self._attach(name)
        return _method(name, trainee, partial(self._masked, trainee, masks, case.weights))

    def peer(self, name: str, case: Case) -> Method:
        """Return a step by another method."""
        assert case.weights is not None
        return _method(name, self.shared, PEERS[name](self.work, self.shared.model, case.weights))

    @contextmanager
    def governor(self) -> Iterator[Method]:
        """Give a step under a whole governor: admission, masks, gates and a ledger on disk."""
        trainee = Trainee(deepcopy(self.shared.model))
        program = compile_policy(parse_policy(POLICY), ModelMap.from_module(trainee.model))
        examples = [{"id": f"example {n}", "kind": "ab"[n % 2]} for n in range(self.work.shape.batch)]
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger.open(Path(folder, "run.ledger"), signer=Signer.generate("benchmark"))
            with Governor(
                program, trainee.model, trainee.optimizer, ledger=ledger, engine="fused"
            ) as governor:

                def step(batch: Batch) -> None:
                    with governor.step(examples) as proposal:
                        proposal.backward(self._losses(trainee, batch))

                yield Method(GOVERNOR, trainee, step, lambda: None, exposed=False)

    def _attach(self, name: str) -> tuple[Trainee, Engine]:
        if name not in self._attached:
            trainee = Trainee(deepcopy(self.shared.model))
            kind = "fused" if name == GOVERNED else "split"
            self._attached[name] = trainee, make_engine(trainee.model, trainee.model.bands(), kind)
        return self._attached[name]

    def _masked(self, trainee: Trainee, masks: Engine, weights: Tensor, batch: Batch) -> None:
        masks.arm(weights)
        masks.backward(self._losses(trainee, batch), len(weights))

    def _losses(self, trainee: Trainee, batch: Batch) -> Tensor:
        return self.work.losses(trainee.model, *batch)


def methods_of(bench: Bench, case: Case) -> list[Method]:
    """Return the methods that a case with weights can be given to, the engine first."""
    names = [name for name in PEERS if name != "zero_after" or case.uniform]
    engines = [bench.engine_method(name, case) for name in (GOVERNED, SPLIT)]
    return [*engines, *(bench.peer(name, case) for name in names)]


def _method(name: str, trainee: Trainee, backward: Callable[[Batch], None]) -> Method:
    def gradients(batch: Batch) -> None:
        trainee.optimizer.zero_grad(set_to_none=True)
        backward(batch)

    return Method(name, trainee, gradients, trainee.optimizer.step)
