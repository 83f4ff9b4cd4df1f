"""`gradwarden verify FOLDER --checkpoint-weights`: the weights that every rank of a job names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.jobs.layout import rank_path
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.weights.stored import StoredWeights
from gradwarden.runtime.weights.tree import hash_weights
from tests.cli.conftest import Run
from tests.runtime.jobs.simulated import Job, Rank

pytestmark = pytest.mark.usefixtures("no_timed_heads")

ASKED = ("verify", "job", "--key", "run.pub", "--format", "json", "--checkpoint-weights")


def weights(path: Path, value: float, **metadata: str) -> Path:
    """A model's weights; `value` stands in the layer near the output."""
    first, last = np.ones((4, 4), np.float32), np.full((4, 4), value, np.float32)
    save_file({"first.weight": first, "last.weight": last}, path, metadata=metadata)
    return path


def name(rank: Rank, path: Path) -> None:
    """Record a checkpoint as a governor does."""
    with StoredWeights.open(path) as stored:
        rank.recorder.checkpoint(rank.next_step, path.name, file_digest(path), hash_weights(stored))


class Trained:
    """A job with a checkpoint before its first step and one after two.

    named: what some ranks name in the place of the second; None: nothing.
    """

    def __init__(self, here: Path, signer: Signer, **options: int) -> None:
        signer.public.save(here / "run.pub")
        self.here, self.job = here, Job(here / "job", signer, **options)
        self.first, self.last = weights(here / "0.safetensors", 1.0), weights(here / "2.safetensors", 2.0)

    def train(self, named: dict[int, Path | None] | None = None) -> None:
        for rank in self.job.ranks:
            name(rank, self.first)
        self.job.step()
        self.job.step()
        for rank in self.job.ranks:
            path = (named or {}).get(rank.rank, self.last)
            if path is not None:
                name(rank, path)
        self.job.bind()


@pytest.fixture
def trained(here: Path, signer: Signer) -> Trained:
    return Trained(here, signer)


Verified = Callable[..., Any]


@pytest.fixture
def verified(run: Run) -> Verified:
    def verify(*arguments: str) -> Any:
        result = run(*ASKED, *arguments)
        told = json.loads(result.stdout)
        assert result.exit_code == int(not told["ok"])
        return told

    return verify


def test_the_weights_that_every_rank_names_last_hold(trained: Trained, verified: Verified, run: Run) -> None:
    trained.train()
    trained.job.seal()
    told = verified("2.safetensors")
    assert (told["status"], told["findings"]) == ("OK", [])
    [match] = told["facts"]["weights"]
    assert (match["step"], match["last"], match["same_file"]) == (2, True, True)
    assert sorted(match["entries"]) == ["0", "1", "2"]
    shown = run("verify", "job", "--key", "run.pub", "--checkpoint-weights", "2.safetensors").stdout
    assert "`2.safetensors` holds the weights that ranks 0, 1, 2 name last (step 2)" in shown
    weights(trained.here / "other.safetensors", 2.0, written="elsewhere")
    told = verified("other.safetensors")
    assert (told["status"], told["facts"]["weights"][0]["same_file"]) == ("OK", False)


def test_weights_of_an_earlier_checkpoint_hold_where_these_will_do(
    trained: Trained, verified: Verified, run: Run
) -> None:
    trained.train()
    trained.job.seal()
    told = verified("0.safetensors")
    [found] = told["findings"]
    assert (told["status"], found["code"], found["ranks"]) == ("VIOLATION", "weights_mismatch", [0, 1, 2])
    assert "`0.safetensors` is the checkpoint at step 0, not the last" in found["message"]
    assert verified("0.safetensors", "--earlier")["status"] == "OK"
    assert run("verify", "job", "--key", "run.pub", "--earlier").exit_code == 2


def test_weights_that_no_rank_names_are_told_once_with_what_differs(
    trained: Trained, verified: Verified
) -> None:
    trained.train()
    trained.job.seal()
    weights(trained.here / "changed.safetensors", 3.0)
    told = verified("changed.safetensors")
    [found] = told["findings"]
    assert (found["code"], found["ranks"]) == ("weights_mismatch", [0, 1, 2])
    assert "1 of 2 tensors differ from the checkpoint at step 2: `last.weight`" in found["message"]


@pytest.mark.parametrize("hides", [False, True])
def test_a_rank_that_names_other_weights_or_none_is_named(
    trained: Trained, verified: Verified, hides: bool
) -> None:
    other = weights(trained.here / "other.safetensors", 5.0)
    trained.train({2: None if hides else other})
    trained.job.seal()
    told = verified("2.safetensors")
    assert told["status"] == "VIOLATION"
    found = [found for found in told["findings"] if found["code"] == "weights_mismatch"]
    assert [one["ranks"] for one in found] == [[2]]
    assert sorted(told["facts"]["weights"][0]["entries"]) == ["0", "1"]


def test_a_rank_that_was_killed_before_it_named_the_weights_is_told_apart(
    trained: Trained, verified: Verified
) -> None:
    trained.train({1: None})
    trained.job.leave()
    told = verified("2.safetensors")
    assert told["status"] == "INCOMPLETE"
    found = [found for found in told["findings"] if found["code"] == "weights_unnamed"]
    assert [one["ranks"] for one in found] == [[1]]
    assert "rank 1 ends at step 2" in found[0]["message"]


def test_a_rank_that_lags_is_named_though_it_names_the_weights(
    here: Path, signer: Signer, verified: Verified
) -> None:
    trained = Trained(here, signer, lag=1)
    for rank in trained.job.ranks:
        rank.sign()
    trained.job.step()
    trained.job.step()
    for rank in trained.job.ranks:
        name(rank, trained.last)
    for rank in trained.job.ranks[:2]:
        rank.sign()
    trained.job.binder.bind()
    trained.job.seal()
    told = verified("2.safetensors")
    assert (told["status"], told["findings"][0]["ranks"]) == ("LAGGING", [2])
    assert sorted(told["facts"]["weights"][0]["entries"]) == ["0", "1", "2"]


@pytest.mark.parametrize("how", ["withheld", "altered"])
def test_a_rank_that_vouches_for_nothing_is_named(trained: Trained, verified: Verified, how: str) -> None:
    trained.train()
    trained.job.seal()
    path = rank_path(trained.job.folder, 1)
    if how == "withheld":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"first.weight", b"first.Weight"))
    told = verified("2.safetensors")
    assert told["status"] == {"withheld": "ROLLBACK", "altered": "TAMPERED"}[how]
    assert "the weights, by rank 1: no ledger that holds" in told["not_checked"]
    assert told["facts"]["weights_asked_of"] == [0, 2]
