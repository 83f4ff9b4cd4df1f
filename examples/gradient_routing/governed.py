"""One governed run of an experiment: its policy, its files, its signed ledger, and whether that verifies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from examples.run_files import RunFiles
from gradwarden.policy import Program, compile_policy, load_policy
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime import Governor, Ledger, ModelMap, Signer
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.verification.verify import verify_ledger

POLICIES = Path(__file__).parent / "policies"

Job = TypeVar("Job")
Result = TypeVar("Result")


def program_of(policy: str, model: nn.Module) -> Program:
    """Compile one of the policies beside this file for a model."""
    return compile_policy(load_policy(POLICIES / f"{policy}.policy"), ModelMap.from_module(model))


def new_ledger(files: RunFiles) -> Ledger:
    """Open a new ledger with a key of its own. Nothing is lost with it in a crash but a run of a minute."""
    files.folder.mkdir(parents=True, exist_ok=True)
    signer = Signer.generate(files.key.stem)
    signer.save(files.key)
    signer.public.save(files.public_key)
    return Ledger.open(files.ledger, signer=signer, durability="os")


@contextmanager
def governed(
    policy: str, model: nn.Module, optimizer: torch.optim.Optimizer, files: RunFiles
) -> Iterator[Governor]:
    """Train within the block under a policy; afterwards the weights are saved and the ledger is sealed."""
    program = program_of(policy, model)
    ledger = new_ledger(files)
    files.program.write_text(program.to_json(), "utf-8")
    with Governor(program, model, optimizer, ledger=ledger, secret=files.secret) as governor:
        yield governor
        governor.checkpoint(files.weights)


def verified_steps(files: RunFiles) -> int:
    """Verify a run's ledger against its program and weights; return its committed steps.

    Raises RuntimeError where it does not hold: then the experiment shows nothing.
    """
    report = verify_ledger(
        files.ledger,
        [PublicKey.load(files.public_key)],
        program=program_from_json(files.program.read_text("utf-8")),
        weights=files.weights,
    )
    if not report.ok:
        raise RuntimeError(f"the ledger {files.ledger} does not hold: {report.findings[0].message}")
    return int(report.facts["committed"])


def make_room(folder: Path) -> Path | None:
    """Create a folder; an earlier experiment in it is moved aside first, to the path that is returned."""
    moved = None
    if folder.exists() and any(folder.iterdir()):
        taken = len(list(folder.parent.glob(f"{folder.name}.earlier-*")))
        moved = folder.with_name(f"{folder.name}.earlier-{taken + 1}")
        folder.rename(moved)
    folder.mkdir(parents=True)
    return moved


def run_all(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterable[Result]:
    """Yield the results of all jobs as they come; each has one thread. With one worker, here and in order.

    Small models gain nothing from threads, so processes side by side are the way to use several cores.
    """
    if workers <= 1:
        yield from map(partial(_alone, work), jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_alone, work, job) for job in jobs]):
            yield future.result()


def _alone(work: Callable[[Job], Result], job: Job) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(job)
    finally:
        torch.set_num_threads(threads)


def default_workers() -> int:
    return os.cpu_count() or 1


class Stopwatch:
    """Processor seconds of this process: other processes lengthen them less than those of the clock."""

    def __init__(self) -> None:
        self._began = time.process_time()

    @property
    def seconds(self) -> float:
        return round(time.process_time() - self._began, 1)
