"""Runs the real command in this process, in an empty directory, and makes small ledgers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gradwarden.cli.app import cli
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return tmp_path


@pytest.fixture
def run() -> Run:
    """Run `gradwarden` with arguments and return click's result. No exception may leave the command."""

    def invoke(*arguments: object, input: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, [str(a) for a in arguments], input=input, prog_name="gradwarden")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer.generate("run")


DIGEST = "ab" * 32

OPENED: dict[str, Any] = {
    "format": "gradwarden/ledger/1",
    "run": "11" * 16,
    "origin": "gradwarden/test",
    "at": "2026-01-01T00:00:00+00:00",
    "policy": {"name": "sample", "version": 1, "digest": DIGEST},
    "model_map": "",
    "dataset": None,
    "bands": ["shallow", "deep"],
    "code": {"gradwarden": "0.1.0", "torch": None},
    "engine": "split",
    "normaliser": None,
    "clip_norm": None,
    "secret_commitment": DIGEST,
    "privacy": [],
}


def decision(number: int, verdict: str, *rules: str) -> dict[str, Any]:
    return {
        "id": number,
        "verdict": verdict,
        "weights": [1_000_000, 0],
        "rules": list(rules),
        "advisory": [],
        "waived": [],
        "obligations": [],
    }


def step(number: int, *decisions: int) -> dict[str, Any]:
    """A step with one example for each decision, named by number."""
    count = len(decisions)
    return {
        "step": number,
        "epoch": 0,
        "today": None,
        "count": count,
        "commitments": "",
        "classes": [0] * count,
        "exposures": None,
        "signals": {},
        "slots": {},
        "spent": [],
        "decision": list(decisions),
        "verdict": "admit",
    }


def committed(number: int) -> dict[str, Any]:
    return {"step": number, "active": ["shallow"], "norms": {"shallow": "1.5"}, "loss": "2.25", "privacy": {}}


@pytest.fixture
def write_ledger(here: Path, signer: Signer) -> Callable[..., Path]:
    """Write a ledger of three steps, sealed if asked."""

    def write(*, sealed: bool = True, name: str = "run.ledger") -> Path:
        path = here / name
        ledger = Ledger.open(path, signer, durability="os", origin="gradwarden/test")
        ledger.append("opened", {**OPENED, "keys": [signer.public.vkey]})
        ledger.append(
            "decisions",
            {
                "decisions": [
                    decision(0, "admit", "open"),
                    *(decision(n + 1, "refuse", f"rule_{n}") for n in range(3)),
                ]
            },
        )
        for number in range(3):
            ledger.append("step", step(number, 0, number + 1))
            ledger.append("committed", committed(number))
        ledger.append("refused", {"step": 3, "gate": "gradient", "reason": "not_finite", "detail": "loss"})
        ledger.close({"steps": 4, "committed": 3, "refused": 1, "examples": 6} if sealed else None)
        return path

    return write


POLICY = """\
# A small policy to run commands on.
policy sample version 2 language 1

examples {
  kind  : one of a, b, c
  lines : integer 0..1000
  topic : set of x, y
  since : date optional
}

signals {
  loss : number 0..10 default 1
}

model {
  shallow = top 50%
  deep    = rest
}

depth granted { when kind == a  reach shallow, deep at 0.5  because "a is ours" }
suppress long { when lines >= 100  cap deep at 0  because "long ones stay shallow" }
suppress marked { when topic contains x  because "marked" }
retain fresh { when has since  until since  because "the licence ends" }
# gradwarden: allow GW521 because a record is a person
# gradwarden: allow GW549 because the loss is that of the example itself
privacy people { when kind == b  within shallow  epsilon 3  delta 1e-6  clip 1.0 }
modulate calm { when kind == a  scale deep by loss from 1 to 0  because "settle first" }
"""


@pytest.fixture
def policy(here: Path) -> Path:
    """A policy that is well formed, without warnings and in the canonical layout."""
    path = here / "sample.policy"
    path.write_text(POLICY, "utf-8")
    return path
