"""One process of several that train together: runs the trainings it is told of, and answers what happened.

A training is plain data, so that a test can give it to two processes in parts, or to one as a whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.errors import GradwardenError
from gradwarden.runtime import Governor, Ledger, ModelMap, Signer

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.05, weight_decay=0.1),
}

PATIENCE = timedelta(seconds=20)


class QuarrelError(Exception):
    pass


def model_of(seed: int) -> nn.Module:
    """Layer 0 is `deep`, layers 2 and 4 are `shallow`."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


class Block(nn.Module):
    """A residual block; its gain is used outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.widen, self.narrow = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6, bias=False)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.narrow(torch.tanh(self.widen(self.norm(x))))


class Blocks(nn.Module):
    """Five blocks: the upper two and the head are `shallow` under the laboratory's policy."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.unused = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def blocks_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Blocks().double()


MODELS = {"plain": model_of, "blocks": blocks_of}


def inputs_of(examples: Sequence[dict[str, Any]]) -> Tensor:
    """The same input for an id wherever it is met, [B, 4]."""
    rows = [
        torch.randn(
            4, dtype=torch.float64, generator=torch.Generator().manual_seed(zlib.crc32(e["id"].encode()))
        )
        for e in examples
    ]
    return torch.stack(rows) if rows else torch.zeros(0, 4, dtype=torch.float64)


def losses_of(model: nn.Module, examples: Sequence[dict[str, Any]]) -> Tensor:
    inputs = inputs_of(examples)
    return (model(inputs) - inputs[:, :3]).square().sum(1)


def train(task: dict[str, Any], rank: int = 0, group: Any = None) -> dict[str, Any]:
    """Run a training and say how it went; an error is part of the answer.

    task: `folder`, `policy`, and optionally `model`, `engine`, `optimizer`, `seeds` (by rank), `options` (of
    the governor), `wrap` (`ddp`) with `settings` of the wrapper, `thaw` (a parameter after wrapping),
    `steps`, `checkpoint`, `end` (`close` or `leave`). A step has `parts` (examples by rank), and
    optionally `micro`, `signals` (by rank), `spoil` ([rank, how]) and `count` (floating-point operations).
    """
    answer: dict[str, Any] = {"steps": [], "error": None}
    model = MODELS[task.get("model", "plain")](task.get("seeds", [0, 0])[rank])
    try:
        first = next(model.parameters()).requires_grad_(not task.get("thaw"))
        held = wrapped(task, model, group)
        first.requires_grad_(True)
        with governed(task, model, held, rank, group) as governor:
            for step in task["steps"]:
                answer["steps"].append(one_step(governor, held, step, rank))
            answer["exposures"] = {
                name: int(governor.roster.exposures(torch.tensor([row]).numpy())[0])
                for name, row in governor.roster.known().items()
            }
            if "checkpoint" in task:
                answer["digest"] = governor.checkpoint(Path(task["folder"], task["checkpoint"]))
            if task.get("end") == "leave":
                raise QuarrelError
    except QuarrelError:
        pass
    except GradwardenError as error:
        answer["error"] = [type(error).__name__, str(error)]
    answer["names"] = [name for name, _ in model.named_parameters()]
    answer["weights"] = [parameter.detach().tolist() for parameter in model.parameters()]
    return answer


def wrapped(task: dict[str, Any], model: nn.Module, group: Any) -> nn.Module:
    """The model as a loop calls it; one process trains without a wrapper."""
    if group is None or not task.get("wrap"):
        return model
    return DistributedDataParallel(model, process_group=group, **task.get("settings", {}))


@contextmanager
def governed(
    task: dict[str, Any], model: nn.Module, held: nn.Module, rank: int, group: Any
) -> Iterator[Governor]:
    program = compile_policy(parse_policy(task["policy"]), ModelMap.from_module(held))
    optimizer = OPTIMIZERS[task.get("optimizer", "sgd")](model.parameters())
    folder = Path(task["folder"])
    ledger = None
    if rank == 0:
        ledger = Ledger.open(folder / "run.ledger", Signer.load(folder / "run.key"), durability="os")
    options = {"clock": lambda: date(2026, 1, 31 - rank), **task.get("options", {})}
    try:
        with Governor(
            program,
            held,
            optimizer,
            ledger=ledger,
            group=None if task.get("wrap") else group,
            engine=task.get("engine", "fused"),
            **options,
        ) as governor:
            yield governor
    finally:
        if ledger is not None:
            ledger.close()


def one_step(governor: Governor, held: nn.Module, step: dict[str, Any], rank: int) -> dict[str, Any]:
    examples = step["parts"][rank]
    spoiler, how = step.get("spoil", [None, ""])
    spoil = how if rank == spoiler else ""
    signals = step["signals"][rank] if "signals" in step else None
    proposal = governor.step(examples, signals=signals)
    raised = None
    count = FlopCounterMode(display=False)
    try:
        with proposal, count if step.get("count") else nullcontext():
            size = step.get("micro", [len(examples) or 1] * 2)[rank]
            for rows in proposal.micro_batches(size):
                losses = losses_of(held, examples[rows])
                spoilt(spoil, governor)
                proposal.backward(losses * float("nan") if spoil == "nan" else losses)
    except QuarrelError as error:
        raised = type(error).__name__
    return {
        "committed": proposal.committed,
        "raised": raised,
        "verdict": proposal.verdict,
        "work": count.get_total_flops() if step.get("count") else None,
        "active": list(proposal.active),
        "refusal": proposal.refusal
        and [proposal.refusal.gate, proposal.refusal.reason, proposal.refusal.detail],
        "loss": proposal.mean_loss,
        "norms": proposal.norms,
        "local": proposal.weights.tolist(),
        "graded": [parameter.grad is not None for parameter in governor.model.parameters()],
        "weights": [parameter.detach().tolist() for parameter in governor.model.parameters()],
        "ratios": governor.references.signal(proposal.batch).tolist(),
    }


def spoilt(how: str, governor: Governor) -> None:
    """Do what a test wants to go wrong on one rank."""
    match how:
        case "raise":
            raise QuarrelError
        case "die":
            os._exit(1)
        case "foreign":
            first = next(governor.model.parameters())
            first.grad = torch.ones_like(first)
        case "disk":
            governor.ledger.flush()
            governor.ledger._writer._file.write = full
            governor.recorder.event("expired", {"step": 0, "rule": "r", "count": 0})


def full(data: bytes) -> None:
    raise OSError(28, "No space left on device")


def serve(rank: int, size: int, store: str, pipe: Any) -> None:
    """Answer tasks until the pipe is closed."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=PATIENCE
    )
    pipe.send("ready")
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(train(task, rank, dist.group.WORLD))


if __name__ == "rank_worker":
    serve(**SETTINGS)  # type: ignore[name-defined]  # noqa: F821 - given by the process that starts this one
