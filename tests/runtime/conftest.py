"""A laboratory for governed training: small models, policies and runs, and ledgers that were forged."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradwarden.policy import Program, compile_policy, parse_policy
from gradwarden.runtime import Governor, Ledger, ModelMap, Signer
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.native import kernels
from gradwarden.runtime.options import Privacy
from gradwarden.runtime.privacy.accounting import JointPlan
from gradwarden.runtime.steps.proposal import Proposal
from gradwarden.runtime.verification.verify import VerifyReport, verify_ledger

TODAY = date(2026, 1, 31)

HEAD = """policy small version 1 language 1
examples { kind : one of a, b, c, d   ok : bool   who : string optional   gone : date optional }
model { shallow = top 40%  deep = rest }
"""

RULES = """
depth a { when kind == a  reach all }
depth b { when kind == b  reach shallow at 0.5 }
depth d { when kind == d  reach deep at 0.25 }
suppress no { when not ok  because "no consent" }
"""

POLICY = HEAD + RULES

Change = Callable[[list[tuple[str, dict[str, Any]]]], Any]


def example(name: str, kind: str = "a", **metadata: Any) -> dict[str, Any]:
    return {"id": name, "kind": kind, "ok": True, **metadata}


def batch(kinds: str, prefix: str = "e") -> list[dict[str, Any]]:
    """Examples `e0`, `e1`, … of the kinds spelled by a string; a capital letter is one without consent."""
    return [example(f"{prefix}{place}", kind.lower(), ok=kind.islower()) for place, kind in enumerate(kinds)]


class Lab:
    """Makes and runs small governed trainings in one folder."""

    policy, head, today = POLICY, HEAD, TODAY
    example, batch = staticmethod(example), staticmethod(batch)

    def __init__(self, folder: Path, signer: Signer) -> None:
        self.folder = folder
        self.signer = signer
        self._open: list[Governor] = []

    def path(self, name: str = "run") -> Path:
        return self.folder / f"{name}.ledger"

    def model(self, seed: int = 0) -> nn.Sequential:
        """Layer 0 is `deep`, layers 2 and 4 are `shallow`."""
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def program(self, text: str = POLICY, model: nn.Module | None = None) -> Program:
        return compile_policy(parse_policy(text), None if model is None else ModelMap.from_module(model))

    def governor(
        self,
        policy: str | Program = POLICY,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        name: str = "run",
        **options: Any,
    ) -> Governor:
        model = self.model() if model is None else model
        program = self.program(policy, model) if isinstance(policy, str) else policy
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
        ledger = Ledger.open(self.path(name), self.signer, durability="os")
        options.setdefault("clock", lambda: TODAY)
        if isinstance(options.get("privacy"), JointPlan):  # steps that a test makes up are not drawn
            options["privacy"] = Privacy(options["privacy"], on_trust=["sampling"])
        try:
            governor = Governor(program, model, optimizer, ledger=ledger, **options)
        except BaseException:
            ledger.close()
            raise
        self._open.append(governor)
        return governor

    def inputs(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 4, dtype=torch.float64, generator=generator)

    def losses(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """One loss per example, of a different size for each."""
        return (model(inputs) - inputs[:, :3]).square().sum(1)

    def step(
        self, governor: Governor, examples: Any, *, seed: int = 0, scale: float = 1.0, **options: Any
    ) -> Proposal:
        with governor.step(examples, **options) as proposal:
            inputs = self.inputs(len(proposal.rows), seed)
            proposal.backward(scale * self.losses(governor.model, inputs))
        return proposal

    def entries(self, name: str = "run", kind: str | None = None) -> list[Entry]:
        return [entry for entry in read_entries(self.path(name)) if kind in (None, entry.kind)]

    def bodies(self, kind: str, name: str = "run") -> list[dict[str, Any]]:
        return [entry.body for entry in self.entries(name, kind)]

    def verify(self, name: str = "run", **options: Any) -> VerifyReport:
        return verify_ledger(self.path(name), [self.signer.public], **options)

    def forge(self, change: Change, source: str = "run", target: str = "forged") -> VerifyReport:
        """Write a run's ledger anew, with changed entries and the true key, and verify it.

        change: edits the list of (kind, body) in place, the seal included, or returns another list.
        """
        entries = [
            (entry.kind, copy.deepcopy(entry.body)) for entry in self.entries(source) if entry.kind != "head"
        ]
        entries = change(entries) or entries
        ledger = Ledger.open(
            self.path(target), self.signer, durability="os", origin=entries[0][1].get("origin")
        )
        seal = None
        for kind, body in entries:
            if kind == "sealed":
                seal = body
            else:
                ledger.append(kind, body)
        ledger.close(seal)
        return self.verify(target)

    def close(self) -> None:
        for governor in self._open:
            governor.engine.close()
            try:
                governor.ledger.close()
            except Exception:
                assert governor.ledger._closed


def weighted_sum(
    losses: Tensor, weights: Any, bands: Sequence[Sequence[Tensor]], normaliser: float
) -> dict[Tensor, Tensor | None]:
    """The definition: every example differentiated alone, weighted per band, summed; None where none counts.

    weights: [B, bands]. bands: the parameters of each band.
    """
    total: dict[Tensor, Tensor | None] = {p: None for members in bands for p in members}
    for row, loss in enumerate(losses):
        for band, members in enumerate(bands):
            weight = float(weights[row][band])
            if weight == 0.0:
                continue
            gradients = torch.autograd.grad(loss, list(members), retain_graph=True)
            for parameter, gradient in zip(members, gradients, strict=True):
                part = weight * gradient / normaliser
                before = total[parameter]
                total[parameter] = part if before is None else before + part
    return total


def snapshot(governor: Governor) -> dict[str, Any]:
    """Everything that a refused step must leave as it was, by name."""
    model, optimizer = governor.model, governor.optimizer
    found: dict[str, Any] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for place, parameter in enumerate(model.parameters()):
        for name, value in optimizer.state.get(parameter, {}).items():
            found[f"optimizer {place} {name}"] = torch.as_tensor(value).clone()
    found["rng torch"] = torch.get_rng_state()
    found["rng random"] = random.getstate()
    found["rng numpy"] = [np.asarray(part) for part in np.random.get_state()]
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not bitwise the same."""

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor):
            return one.dtype == other.dtype and torch.equal(one, other)
        if isinstance(one, list):
            return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
        return bool(one == other)

    changed = [name for name in before if name in after and not same(before[name], after[name])]
    return sorted({*changed, *(before.keys() ^ after.keys())})


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run_signer() -> Signer:
    return Signer.generate("run")


@pytest.fixture(scope="session")
def laboratory() -> type[Lab]:
    """For tests that need a laboratory of another scope, or several."""
    return Lab


@pytest.fixture
def lab(tmp_path: Path, run_signer: Signer) -> Any:
    laboratory = Lab(tmp_path, run_signer)
    yield laboratory
    laboratory.close()


@pytest.fixture(scope="session")
def reference() -> Callable[..., dict[Tensor, Tensor | None]]:
    return weighted_sum


@pytest.fixture(scope="session")
def state_of() -> Callable[[Governor], dict[str, Any]]:
    return snapshot


@pytest.fixture(scope="session")
def changes() -> Callable[[dict[str, Any], dict[str, Any]], list[str]]:
    return differences


@pytest.fixture(params=["kernels", "torch"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With kernels in C, where there are any, and without."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "_library", lambda: None)
    elif not kernels.usable():
        pytest.skip("no kernels for this machine")
    return str(request.param)
