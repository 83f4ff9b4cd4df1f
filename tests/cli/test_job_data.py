"""`gradwarden verify FOLDER --data`: all ranks, held to the data set and to other policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.ledger.keys import Signer
from tests.cli.conftest import Run
from tests.runtime.jobs.simulated import POLICY, SECRET, Job, sealed_job

pytestmark = pytest.mark.usefixtures("no_timed_heads")

ASKED = ("verify", "job", "--key", "run.pub", "--data", "all.jsonl", "--secret", "job.secret")
STRICTER = 'suppress concepts { when kind == concept because "none" }'


@pytest.fixture
def job(here: Path, signer: Signer) -> Path:
    signer.public.save(here / "run.pub")
    return sealed_job(here / "job", signer)


def manifest(here: Path, **changed: str) -> None:
    """The examples of the simulated job, and its secret; `changed`: the kind of some, by id."""
    (here / "job.secret").write_text(SECRET.hex() + "\n")
    rows = [
        {"id": name, "kind": changed.get(name, "concept" if name[0] == "C" else "surface")}
        for step in range(6)
        for rank in range(3)
        for name in (f"{step}-a-{rank}", f"{step}-b-{rank}", f"C{step}-{rank}")
    ]
    (here / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_commitments_of_all_ranks_are_opened_with_the_data_set(run: Run, job: Path, here: Path) -> None:
    manifest(here)
    asked = ("verify", "job", "--key", "run.pub", "--data", "all.jsonl", "--secret", "job.secret")
    result = run(*asked)
    assert result.exit_code == 0
    assert "the metadata of 54 examples in steps" in result.stdout
    manifest(here, **{"3-a-2": "concept"})
    result = run(*asked)
    assert result.exit_code == 1
    assert result.stdout.startswith("VIOLATION")
    assert "error[wrong_metadata]: rank 2: step 3" in result.stderr
    assert run(*asked[:-2]).exit_code == 2


def other_policy(here: Path, rules: str = STRICTER) -> None:
    (here / "other.policy").write_text(POLICY.format(version=2, rules=rules))


def asked_what_if(run: Run) -> Any:
    result = run(*ASKED, "--what-if", "other.policy", "--format", "json")
    return json.loads(result.stdout)


def test_what_another_policy_would_have_decided_is_told_of_the_job_and_of_each_rank(
    run: Run, job: Path, here: Path
) -> None:
    manifest(here)
    other_policy(here)
    told = asked_what_if(run)
    assert told["status"] == "OK"
    found = told["what_if"]
    assert (found["steps"], found["steps_changed"], found["first_step_changed"]) == (6, 6, 0)
    assert (found["examples"], found["learned_only_as_recorded"]) == (54, 18)
    assert {rank: own["learned_only_as_recorded"] for rank, own in found["ranks"].items()} == {
        "0": 6, "1": 6, "2": 6,
    }  # fmt: skip
    assert found["without_ranks"] == []
    shown = run(*ASKED, "--what-if", "other.policy").stdout
    assert "under other.policy instead" in shown
    assert "rank 2: other decisions in 6 steps, first in step 0" in shown
    other_policy(here, "")
    assert "the same decisions in all 6 steps" in run(*ASKED, "--what-if", "other.policy").stdout
    assert run("verify", "job", "--key", "run.pub", "--what-if", "other.policy").exit_code == 2


def test_a_rank_without_a_ledger_is_named_where_decisions_are_made_again(
    run: Run, here: Path, signer: Signer
) -> None:
    signer.public.save(here / "run.pub")
    job = Job(here / "job", signer)
    job.without(1)
    del job.ranks[1]
    job.run(4)
    job.leave()
    manifest(here)
    with (here / "all.jsonl").open("a") as more:
        more.write('{"id": "later", "kind": "concept"}\n')
    other_policy(here)
    told = asked_what_if(run)
    assert (told["ok"], told["status"]) == (False, "INCOMPLETE")
    assert told["what_if"]["without_ranks"] == [1]
    assert sorted(told["what_if"]["ranks"]) == ["0", "2"]
    assert "what `other.policy` would have decided on rank 1: no ledger that holds" in told["not_checked"]


@pytest.mark.parametrize("how", ["withheld", "lying", "cut"])
def test_of_a_job_that_does_not_hold_nothing_is_decided_again(
    run: Run, job: Path, here: Path, how: str
) -> None:
    manifest(here)
    other_policy(here)
    path = rank_path(job, 1)
    if how == "withheld":
        path.unlink()
    elif how == "lying":
        manifest(here, **{"3-a-1": "concept"})
    else:
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:9]))
        path.with_name(f"{path.name}.head").unlink()
    told = asked_what_if(run)
    assert (told["ok"], "what_if" in told) == (False, False)
    assert any(found["ranks"] == [1] for found in told["findings"])
    assert "what `other.policy` would have decided: what is recorded does not hold" in told["not_checked"]


def test_a_lagging_rank_is_named_and_decided_again_with_the_others(
    run: Run, here: Path, signer: Signer
) -> None:
    signer.public.save(here / "run.pub")
    job = Job(here / "job", signer, lag=1)
    for rank in job.ranks:
        rank.sign()
    job.step()
    job.step()
    for rank in job.ranks[:2]:
        rank.sign()
    job.binder.bind()
    job.seal()
    assert log_path(job.folder).exists()
    manifest(here)
    other_policy(here)
    told = asked_what_if(run)
    assert (told["status"], told["findings"][0]["ranks"]) == ("LAGGING", [2])
    assert sorted(told["what_if"]["ranks"]) == ["0", "1", "2"]
