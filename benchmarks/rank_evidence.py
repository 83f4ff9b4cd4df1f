"""What governing a step costs two ranks: with a ledger for each (a job), and with one that gathers the batch.

Two processes on gloo train the same small network three ways in turn, a few steps at a time: without a
governor (gradients summed, nothing else), with one ledger at rank 0 that records the batch of both, and as a
job. Every step has new examples. What is told is processor time per step of each rank, all its threads
included, in the median of rounds; evidence is what a way costs more than training without a governor, masks
and gates (alike in both) included.
Run with `python -m benchmarks.rank_evidence`; `--rounds N`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as spawning
from torch import nn

from benchmarks.results import write_results
from gradwarden.policy import compile_policy, parse_policy
from gradwarden.runtime import Governor, Job, Ledger, ModelMap, Signer
from gradwarden.runtime.verification.job_verify import verify_job
from gradwarden.runtime.verification.verify import verify_ledger

RANKS = 2
STEPS = 20
"""Steps of a way in one round."""

BATCHES = (16, 256)
"""Examples of each rank in a step."""

WIDTH = 32

POLICY = """
policy notes version 1 language 1
examples {
  kind : one of surface, concept
  source : string
  license : one of cc0, cc_by, unknown
  consent : bool
  length : integer 0..100000
  quality : number 0..1
}
model { shallow = top 50%  deep = rest }
depth surface { when kind == surface  reach shallow }
depth concept { when kind == concept and quality >= 0.5  reach all }
suppress withdrawn { when not consent }
suppress restricted { when source == "restricted" }
"""

WAYS = ("plain", "gathered", "job")

Step = Callable[[], None]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


def examples_of(rank: int, size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield batches of examples that were never seen before."""
    numbers = count()
    while True:
        batch = [next(numbers) for _ in range(size)]
        yield [
            {
                "id": f"note-{rank}-{n}",
                "kind": "concept" if n % 2 else "surface",
                "source": ("web", "books")[n % 3 == 0],
                "license": "cc0",
                "consent": n % 11 != 0,
                "length": 100 + n % 50,
                "quality": 0.9,
            }
            for n in batch
        ]


def losses_of(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return (model(inputs) - inputs).square().mean(1)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    optimizer.zero_grad()
    losses_of(model, inputs).sum().backward()
    flat = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    dist.all_reduce(flat)
    sizes = [p.numel() for p in model.parameters()]
    for parameter, total in zip(model.parameters(), flat.split(sizes), strict=True):
        parameter.grad = total.view_as(parameter) / (RANKS * len(inputs))
    optimizer.step()


def governed_step(governor: Governor, batches: Iterator[Any], inputs: torch.Tensor) -> None:
    with governor.step(next(batches)) as proposal:
        proposal.backward(losses_of(governor.model, inputs))


def ways(folder: Path, rank: int, size: int) -> tuple[dict[str, Step], list[Governor]]:
    """Return how a step is taken in each way, and the governors to close."""
    inputs = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(rank))
    model = network()
    steps: dict[str, Step] = {
        "plain": partial(plain_step, model, torch.optim.SGD(model.parameters(), 0.01), inputs)
    }
    signer = Signer.load(folder / "run.key")
    governors = []
    for way in WAYS[1:]:
        model = network()
        program = compile_policy(parse_policy(POLICY), ModelMap.from_module(model))
        alone = way == "gathered" and rank == 0
        governor = Governor(
            program,
            model,
            torch.optim.SGD(model.parameters(), 0.01),
            ledger=Ledger.open(folder / "run.ledger", signer) if alone else None,
            job=Job(folder / "job", signer, every=STEPS) if way == "job" else None,
            group=dist.group.WORLD,
        )
        governors.append(governor)
        steps[way] = partial(governed_step, governor, examples_of(rank, size), inputs)
    return steps, governors


def measured(steps: dict[str, Step], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the processor seconds and the seconds of a step, by way and round."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in steps}
    for number in range(rounds + 1):
        for way, step in steps.items():
            dist.barrier()
            begin, clock = time.process_time(), time.perf_counter()
            for _ in range(STEPS):
                step()
            spent = (time.process_time() - begin) / STEPS, (time.perf_counter() - clock) / STEPS
            if number:  # the first round makes tables, and the probe of the model
                found[way].append(spent)
    return found


def work(rank: int, folder: Path, rounds: int, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    for size in BATCHES:
        here = folder / str(size)
        steps, governors = ways(here, rank, size)
        answers.put((size, rank, measured(steps, rounds)))
        for governor in governors:
            governor.close()
    dist.destroy_process_group()


def figures_of(found: dict[tuple[int, int], dict[str, list[tuple[float, float]]]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for size in BATCHES:
        told: dict[str, Any] = {}
        for rank in range(RANKS):
            spent = {way: statistics.median(one for one, _ in found[size, rank][way]) for way in WAYS}
            clock = {way: statistics.median(one for _, one in found[size, rank][way]) for way in WAYS}
            evidence = {way: spent[way] - spent["plain"] for way in WAYS[1:]}
            told[f"rank {rank}"] = {
                "processor_ms_per_step": {way: round(1e3 * value, 3) for way, value in spent.items()},
                "clock_ms_per_step": {way: round(1e3 * value, 3) for way, value in clock.items()},
                "evidence_of_job_over_gathered": round(evidence["job"] / evidence["gathered"], 3),
            }
        figures[f"{size} examples per rank"] = told
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        signer = Signer.generate("run")
        for size in BATCHES:
            (folder / str(size)).mkdir()
            signer.save(folder / str(size) / "run.key")
        answers = spawning.get_context("spawn").SimpleQueue()
        processes = spawning.spawn(work, args=(folder, rounds, answers), nprocs=RANKS, join=False)
        found = {}
        for _ in range(RANKS * len(BATCHES)):
            size, rank, told = answers.get()
            found[size, rank] = told
        while not processes.join():
            pass
        figures = figures_of(found)
        for size in BATCHES:
            here = folder / str(size)
            one, job = (
                verify_ledger(here / "run.ledger", [signer.public]),
                verify_job(here / "job", [signer.public]),
            )
            assert (one.status, job.status) == ("OK", "OK"), (one.findings, job.findings)
    for size, ranks in figures.items():
        for rank, told in ranks.items():
            print(f"{size}, {rank}: {told}")
    write_results("rank_evidence", {"rounds": rounds, "steps": STEPS, **figures}, ["torch"])


if __name__ == "__main__":
    main()
