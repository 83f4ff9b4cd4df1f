"""Bodies of every kind, and small ledgers made of them."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime import Ledger, Signer
from tests.campaign.promises import opened

ZERO = "0" * 64
SEAL = {"steps": 3, "committed": 3, "refused": 0, "examples": 6}
VECTORS = Path(__file__).parents[2] / "vectors"


class Cases:
    """Realistic entries and ledgers; everything but keys and origins is fixed."""

    seal = SEAL

    def opened(self, ledger: Ledger) -> dict[str, Any]:
        return opened(ledger)

    def decision(self, number: int = 0, verdict: str = "limit") -> dict[str, Any]:
        return {
            "id": number,
            "verdict": verdict,
            "weights": [1_000_000, 0],
            "rules": ["permissive"],
            "advisory": [],
            "waived": [],
            "obligations": [["privacy", "patients"]],
        }

    def step(self, step: int, count: int = 2) -> dict[str, Any]:
        return {
            "step": step,
            "epoch": 0,
            "today": 20_484,
            "count": count,
            "commitments": b64encode(bytes(32 * count)).decode(),
            "classes": list(range(count)),
            "exposures": [1] * count,
            "signals": {"loss_ratio": [-5] * count},
            "slots": {"erase_on": [None] * count},
            "spent": [],
            "decision": [0] * count,
            "verdict": "admit",
        }

    def committed(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "active": ["shallow"],
            "norms": {"shallow": "0.25", "deep": None},
            "loss": "2.5",
            "privacy": {"patients": {"steps": 1, "epsilon": "0.1"}},
        }

    def anchored(self, **changes: Any) -> dict[str, Any]:
        terms = {"rule": "kept", "strength": "0.01", "drift": None}
        return {"step": 9, "band": "deep", "file": "anchor.safetensors", "digest": ZERO, **terms, **changes}

    def every_kind(self) -> dict[str, list[dict[str, Any]]]:
        """One or more bodies of each kind that a caller may append after the opening."""
        policy = {"name": "small", "version": 2, "digest": ZERO}
        rank_head = {"rank": 0, "origin": "job/rank-0", "size": 9, "root": ZERO, "step": 3}
        problems = {"id": 2, "problems": [["licence", "missing"]]}
        return {
            "program": [{"digest": ZERO, "part": 0, "parts": 1, "text": '{"é":"\u2028\\"\n\x7f"}'}],
            "approved": [{"note": "gradwarden program\n\n— owner AAAAAAA=\n"}],
            "classes": [{"classes": [{"id": 1, "bits": "0f"}, problems]}, {"classes": []}],
            "decisions": [{"decisions": [self.decision(), self.decision(1, "refuse")]}, {"decisions": []}],
            "examples": [{"step": 1, "part": 0, "commitments": b64encode(bytes(64)).decode()}],
            "step": [self.step(1), self.step(2, count=0), {**self.step(3), "exposures": None, "today": None}],
            "committed": [self.committed(1), {**self.committed(2), "loss": None, "batch": 8}],
            "bound": [{"binding": 0, "part": 0, "parts": 1, "heads": [rank_head]}],
            "skipped": [{"step": 3, "until": 5}],
            "paid": [{"step": 5, "rules": {"patients": 4}}, {"step": 5, "rules": {}}],
            "refused": [{"step": 1, "gate": "gradient", "reason": "not_finite", "detail": "deep"}],
            "anchored": [self.anchored(), self.anchored(strength=None, drift=20_000)],
            "maintained": [{"step": 9, "drift": {"deep": "0.02"}, "held": ["deep"]}],
            "contributed": [{"step": 9, "first": 0, "norms": {"deep": ["0.02", "0", None], "shallow": []}}],
            "moved": [{"step": 9, "norms": {"deep": "0.02", "shallow": "0"}}],
            "starved": [{"step": 9, "band": "deep", "steps": 5, "action": "report"}],
            "halted": [{"step": 9, "rule": "patients", "steps": 10}],
            "derived": [
                {"origin": "base", "size": 9, "root": ZERO, "weights": ZERO},
                {"origin": "base", "size": 9, "root": ZERO, "weights": None},
            ],
            "tallied": [{"examples": 3, "commitments": ZERO, "uses": ZERO}],
            "expired": [{"step": 9, "rule": "trial", "count": 3}],
            "policy_changed": [{"policy": policy, "step": 10}],
            "rewound": [
                {
                    "step": 13,
                    "checkpoint": {"step": 9, "file": "model.pt", "digest": ZERO},
                    "abandoned": [[9, 13]],
                    "effective": 9,
                }
            ],
            "supplied": [{"note": "text\n\n— clinic AAAA\n"}],
            "tensors": [
                {"step": 9, "part": 0, "tensors": [["a.\u00e9", "F32", [2, 0], ZERO]], "tied": [["b", "a"]]}
            ],
            "checkpoint": [
                {"step": 9, "file": "model.pt", "digest": ZERO, "tensors": {"a.weight": ZERO}},
                {"step": 9, "file": "model.pt", "digest": ZERO, "tensors": None},
                {
                    "step": 9,
                    "file": "model.safetensors",
                    "digest": ZERO,
                    "tensors": {"chunk": 1 << 20, "count": 1, "of": "model", "root": ZERO},
                },
            ],
        }

    def begin(self, path: Path, signer: Signer, **options: Any) -> Ledger:
        ledger = Ledger.open(path, signer, **options)
        ledger.append("opened", self.opened(ledger))
        return ledger

    def build(self, path: Path, signer: Signer, steps: int = 3, *, seal: bool = True, **options: Any) -> Path:
        """Write a ledger of some steps; sealed, or closed as a run that will go on."""
        ledger = self.begin(path, signer, **options)
        for step in range(steps):
            ledger.append("step", self.step(step))
            ledger.append("committed", self.committed(step))
        ledger.close(SEAL if seal else None)
        return path


@pytest.fixture(scope="session")
def cases() -> Cases:
    return Cases()


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer.generate("run")


@pytest.fixture(scope="session")
def other() -> Signer:
    return Signer.generate("other")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.ledger"


@pytest.fixture(scope="session")
def vectors() -> Path:
    return VECTORS


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory, cases: Cases, signer: Signer) -> Path:
    """A small sealed ledger that tests copy and spoil."""
    return cases.build(tmp_path_factory.mktemp("sealed") / "run.ledger", signer)


@pytest.fixture(scope="session")
def wycheproof(vectors: Path) -> list[dict[str, Any]]:
    loaded = json.loads((vectors / "ed25519-wycheproof" / "ed25519_test.json").read_text())
    groups: list[dict[str, Any]] = loaded["testGroups"]
    return groups
