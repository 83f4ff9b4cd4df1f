"""Tries mutants in a copy of the tree: each is put in, its tests are run, and it is put back."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.mutation_table import ROOT, Mutant
from tests.campaign.warm import Fate

LEFT_OUT = (".git", ".venv", "out", "build", "dist", "__pycache__", ".hypothesis", ".*_cache")

PRELOADED = (
    "torch",
    "torch.nn.attention.flex_attention",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.nn.parallel",
    "torch._dynamo",
    "safetensors.torch",
    "scipy.optimize",
    "dp_accounting",
    "hypothesis.strategies",
    "jsonschema",
    "opacus",
    "orjson",
    "pytest_lsp",
    "cryptography.hazmat.primitives.serialization",
    "lark",
    "rich.console",
    "click.testing",
    "yaml",
)

LIMIT = 120.0
"""Seconds for the tests of one mutant."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant's tests. log: the end of what pytest wrote."""

    mutant: Mutant
    fates: Mapping[str, Fate]
    log: str

    @property
    def unnoticed(self) -> dict[str, Fate]:
        """The tests that did not fail, with what they did instead."""
        return {test: fate for test, fate in self.fates.items() if fate not in ("red", "endless")}


class Workshop:
    """A copy of the tree, and a process that runs tests in it."""

    def __init__(self, tree: Path, runner: subprocess.Popen[str]) -> None:
        self._tree, self._runner = tree, runner

    def run(self, tests: Sequence[str], limit: float = LIMIT) -> tuple[dict[str, Fate], str]:
        """Run tests in the tree as it stands; return what became of each, and the end of the log."""
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        print(json.dumps({"tests": list(tests), "limit": limit}), file=self._runner.stdin, flush=True)
        answer = json.loads(self._runner.stdout.readline())
        shutil.rmtree(self._tree / ".hypothesis", ignore_errors=True)
        return answer["fates"], answer["log"]

    def attempt(self, mutant: Mutant) -> Verdict:
        """Run a mutant's tests with the mutant in place. Raises TableError where it does not fit the tree."""
        with self._changed(mutant):
            return Verdict(mutant, *self.run(mutant.tests))

    @contextmanager
    def _changed(self, mutant: Mutant) -> Iterator[None]:
        path = self._tree / mutant.file
        text = path.read_text("utf-8")
        self._write(path, mutant.applied(text))
        try:
            yield
        finally:
            self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, "utf-8")
        if path.suffix == ".py":  # a change within a second, of the same length, would go unnoticed
            Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


@contextmanager
def workshop(root: Path = ROOT, preloaded: Sequence[str] = PRELOADED) -> Iterator[Workshop]:
    """Copy the tree, and start what runs tests in the copy. preloaded: modules that it imports beforehand."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(root, tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        environment = {
            **os.environ,
            "PYTHONPATH": f"{tree / '.typing'}{os.pathsep}{tree}",
            "OMP_NUM_THREADS": "1",
        }
        with subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.warm", *preloaded],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as runner:
            yield Workshop(tree, runner)
