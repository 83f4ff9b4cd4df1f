"""Two processes that train together, kept for all tests, and what one process makes of the same batches."""

from __future__ import annotations

import importlib.util
import multiprocessing
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime import Signer
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.verification.verify import verify_ledger

WORKER = Path(__file__).with_name("rank_worker.py")
PATIENCE = 40.0
START = 200.0
"""Seconds for an answer, and for two processes to start on a machine that has other work."""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.experimental"),
        *("torch.distributed.tensor.parallel", "safetensors.torch", "dp_accounting", "gradwarden.policy"),
        *("gradwarden.runtime", "gradwarden.runtime.governor", "gradwarden.runtime.privacy.sampling"),
    ]
)
"""Whatever takes seconds to import is imported once, by the process from which the ranks are forked."""

spec = importlib.util.spec_from_file_location("rank_worker_alone", WORKER)
assert spec is not None
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)  # type: ignore[union-attr]  # a file has a loader


class Pair:
    """Two processes in one process group."""

    def __init__(self, folder: Path) -> None:
        self.pipes, self.processes = [], []
        for rank in range(2):
            ours, theirs = PROCESSES.Pipe()
            settings = {"rank": rank, "size": 2, "store": str(folder / "store"), "pipe": theirs}
            process = PROCESSES.Process(
                target=runpy.run_path,
                args=(str(WORKER),),
                kwargs={"init_globals": {"SETTINGS": settings}, "run_name": "rank_worker"},
                daemon=True,
            )
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        assert self.answers(START) == ["ready", "ready"]

    def answers(self, patience: float = PATIENCE) -> list[Any]:
        """The answer of each rank; None where it died."""
        found = []
        for pipe in self.pipes:
            if not pipe.poll(patience):
                self.stop()
                pytest.fail("a rank hangs")
            try:
                found.append(pipe.recv())
            except EOFError:
                found.append(None)
        return found

    def train(self, task: dict[str, Any]) -> list[Any]:
        for pipe in self.pipes:
            pipe.send(task)
        return self.answers()

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def stop(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()
            process.join(2)
            process.kill()


KEPT = ("grads", "policy", "rows")
"""What of a step also concerns the process that trains alone."""


class Site:
    """Where a test trains: in two processes, or in this one with the batch of both."""

    worker = worker

    def __init__(self, folder: Path, pair: Pair) -> None:
        self.folder, self.pair = folder, pair
        self.signer = Signer.generate("run")

    def train(self, policy: str, steps: list[dict[str, Any]], **more: Any) -> list[Any]:
        return self.pair.train(self._task("pair", policy, steps, more))

    def alone(self, policy: str, steps: list[dict[str, Any]], name: str = "alone", **more: Any) -> Any:
        whole = [
            {key: value for key, value in step.items() if key in KEPT}
            | {"parts": [[e for part in step["parts"] for e in part]]}
            for step in steps
        ]
        return worker.train(self._task(name, policy, whole, more))

    def _task(self, name: str, policy: str, steps: list[dict[str, Any]], more: Any) -> dict[str, Any]:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        if not (folder / "run.key").exists():
            self.signer.save(folder / "run.key")
        return {"folder": str(folder), "policy": policy, "steps": steps, **more}

    def bodies(self, kind: str, name: str = "pair") -> list[dict[str, Any]]:
        path = self.folder / name / "run.ledger"
        return [entry.body for entry in read_entries(path) if entry.kind == kind]

    def verify(self) -> Any:
        return verify_ledger(self.folder / "pair" / "run.ledger", [self.signer.public])


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Pair]]:
    made: list[Pair] = []
    yield made
    for pair in made:
        pair.stop()


@pytest.fixture
def site(pairs: list[Pair], tmp_path: Path) -> Site:
    if not pairs or not pairs[-1].alive:
        pairs.append(Pair(tmp_path))
    return Site(tmp_path, pairs[-1])
