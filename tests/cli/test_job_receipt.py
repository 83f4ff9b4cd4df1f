"""`gradwarden receipt` over the folder of a job: one receipt of all ranks, and of a missing one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.jobs.layout import rank_path
from gradwarden.runtime.ledger.keys import Signer
from tests.cli.conftest import Run
from tests.runtime.evidence.test_job_receipt import MINE, write_job
from tests.runtime.jobs.simulated import SECRET
from tests.runtime.jobs.tallied import tally_all

CHECK = ("receipt", "check", "r.json", "--key", "run.pub")


@pytest.fixture
def job(here: Path, signer: Signer) -> Path:
    signer.public.save(here / "run.pub")
    (here / "job.secret").write_text(SECRET.hex() + "\n")
    job = write_job(here / "job", signer)
    tally_all(job)
    job.seal()
    return job.folder


def make(example: str, *arguments: str) -> tuple[str, ...]:
    return ("receipt", "make", "job", "--id", example, "--secret", "job.secret", "-o", "r.json", *arguments)


def test_an_owner_learns_which_ranks_used_the_example_and_how_deep(run: Run, job: Path) -> None:
    made = run(*make(MINE, "--entries"))
    assert (made.exit_code, "of 3 ranks" in made.stdout) == (0, True)
    for path in job.iterdir():
        path.unlink()
    checked = run(*CHECK, "--id", MINE)
    assert checked.exit_code == 0
    assert checked.stdout.startswith(f"OK r.json: `{MINE}` was used\n")
    assert "2 times limited (rules surface)" in checked.stdout
    assert "used by ranks 0, 2" in checked.stdout
    assert "rank 2: proved by their entries: step 3" in checked.stdout
    told = json.loads(run(*CHECK, "--format", "json").stdout)
    assert (told["ok"], told["used"], told["withheld_ranks"]) == (True, True, [])
    assert told["ranks"]["2"]["tally"]["exposed"] == [3, 3]
    assert run(*CHECK, "--id", "another").exit_code == 1
    salt = Committer(SECRET).salt(MINE).hex()
    assert run(*CHECK, "--none-after", "3", "--salt", salt).exit_code == 0
    assert run(*CHECK, "--none-after", "3").exit_code == 1
    late = run(*CHECK, "--none-after", "2")
    assert (late.exit_code, "error[used_after]: the model learned from it in step 3" in late.stderr) == (
        1,
        True,
    )


def test_an_owner_learns_that_no_rank_named_the_example(run: Run, job: Path) -> None:
    assert run(*make("nobody's")).exit_code == 0
    checked = run(*CHECK)
    assert checked.exit_code == 0
    assert checked.stdout.startswith("OK r.json: `nobody's` was never named\n")
    assert "a wrong one finds nothing, too" in checked.stdout
    late = run(*CHECK, "--none-after", "-1")
    assert (late.exit_code, "give the one that you had before" in late.stderr) == (1, True)
    salt = Committer(SECRET).salt("nobody's").hex()
    assert run(*CHECK, "--none-after", "-1", "--salt", salt).exit_code == 0


@pytest.mark.parametrize("example", [MINE, "nobody's"])
def test_a_withheld_ledger_is_told_when_a_receipt_is_made_and_when_it_is_checked(
    run: Run, job: Path, example: str
) -> None:
    rank_path(job, 2).unlink()
    made = run(*make(example))
    assert made.exit_code == 1
    assert "error[withheld_rank]: the receipt has nothing of rank 2" in made.stderr
    told = json.loads(run(*make(example, "--format", "json")).stdout)
    assert (told["ok"], [one["rank"] for one in told["without_ranks"]]) == (False, [2])
    checked = run(*CHECK)
    assert checked.exit_code == 1
    assert "never named" not in checked.output
    assert "error[withheld_rank]: nothing of the ledger of rank 2 is shown" in checked.stderr
    assert "whether rank 2 used it" in checked.stdout.split("not shown")[-1]
    told = json.loads(run(*CHECK, "--format", "json").stdout)
    assert (told["ok"], told["used"]) == (False, True if example == MINE else None)
    assert told["withheld_ranks"] == [2]


def test_a_folder_without_a_job_is_misuse(run: Run, job: Path, here: Path) -> None:
    (here / "nothing").mkdir()
    made = run("receipt", "make", "nothing", "--id", MINE, "--secret", "job.secret")
    assert made.exit_code == 2
