"""One process of several that train together: runs the trainings it is told of, and answers what happened.

A training is plain data, so that a test can give it to two processes in parts, or to one as a whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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

    task: `folder`, `policy`, and optionally `engine`, `optimizer`, `seeds` (by rank), `options` (of the
    governor), `wrapped`, `steps`, `end` (`close` or `leave`). A step has `parts` (examples by rank), and
    optionally `micro`, `signals` (by rank) and `spoil` ([rank, how]).
    """
    answer: dict[str, Any] = {"steps": [], "error": None}
    model = model_of(task.get("seeds", [0, 0])[rank])
    try:
        with governed(task, model, rank, group) as governor:
            for step in task["steps"]:
                answer["steps"].append(one_step(governor, step, rank))
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
    answer["weights"] = [parameter.detach().tolist() for parameter in model.parameters()]
    return answer


@contextmanager
def governed(task: dict[str, Any], model: nn.Module, rank: int, group: Any) -> Iterator[Governor]:
    program = compile_policy(parse_policy(task["policy"]), ModelMap.from_module(model))
    optimizer = OPTIMIZERS[task.get("optimizer", "sgd")](model.parameters())
    folder = Path(task["folder"])
    ledger = None
    if rank == 0:
        ledger = Ledger.open(folder / "run.ledger", Signer.load(folder / "run.key"), durability="os")
    held = DistributedDataParallel(model, process_group=group) if task.get("wrapped") else model
    options = {"clock": lambda: date(2026, 1, 31 - rank), **task.get("options", {})}
    try:
        with Governor(
            program,
            held,
            optimizer,
            ledger=ledger,
            group=group,
            engine=task.get("engine", "fused"),
            **options,
        ) as governor:
            yield governor
    finally:
        if ledger is not None:
            ledger.close()


def one_step(governor: Governor, step: dict[str, Any], rank: int) -> dict[str, Any]:
    examples = step["parts"][rank]
    spoiler, how = step.get("spoil", [None, ""])
    spoil = how if rank == spoiler else ""
    signals = step["signals"][rank] if "signals" in step else None
    proposal = governor.step(examples, signals=signals)
    raised = None
    try:
        with proposal:
            size = step.get("micro", [len(examples) or 1] * 2)[rank]
            for rows in proposal.micro_batches(size):
                losses = losses_of(governor.model, examples[rows])
                spoilt(spoil, governor)
                proposal.backward(losses * float("nan") if spoil == "nan" else losses)
    except QuarrelError as error:
        raised = type(error).__name__
    return {
        "committed": proposal.committed,
        "raised": raised,
        "verdict": proposal.verdict,
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
