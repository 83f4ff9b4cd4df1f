"""`gradwarden report`: one page about a run, whatever state its ledger is in."""

from __future__ import annotations

import json
import shutil
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.jobs.layout import rank_path
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.provenance.making import walk_ranks
from gradwarden.runtime.report.account import Accountant
from tests.cli.conftest import OPENED, Run, committed, decision, step
from tests.runtime.jobs.simulated import Job, sealed_job

pytest.importorskip("jinja2")

Write = Callable[..., Path]


@pytest.fixture
def ledger(here: Path, signer: Signer) -> Path:
    """Two steps of `a` and `b`, not sealed."""
    signer.public.save(here / "run.pub")
    Committer.load_or_create(here / "run.secret")
    committer = Committer.load(here / "run.secret")
    with Ledger.open(here / "run.ledger", signer, durability="os", origin="gradwarden/test") as ledger:
        facts = {"keys": [signer.public.vkey], "secret_commitment": committer.secret_commitment}
        ledger.append("opened", {**OPENED, **facts})
        ledger.append("decisions", {"decisions": [decision(0, "admit", "open")]})
        packed = b64encode(committer.commit("a") + committer.commit("b")).decode()
        for number in range(2):
            ledger.append("step", {**step(number, 0, 0), "commitments": packed})
            ledger.append("committed", committed(number))
    return here / "run.ledger"


def test_a_page_is_written_and_says_that_the_ledger_does_not_hold(run: Run, ledger: Path, here: Path) -> None:
    """There is no program in it, so that no decision can be made again."""
    result = run("report", ledger, "--key", "run.pub", "-o", "report.html")
    assert result.exit_code == 1
    assert "the ledger is VIOLATION" in result.stdout
    page = (here / "report.html").read_text()
    assert "VIOLATION" in page
    assert "open" in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("who.csv", "id,owner\na,Ann & Co\nb,Bob\n"),
        ("who.jsonl", '{"id": "a", "owner": "Ann & Co"}\n{"id": "b", "owner": "Bob"}\n'),
    ],
)
def test_examples_are_told_by_their_groups(
    run: Run, ledger: Path, here: Path, name: str, content: str
) -> None:
    (here / name).write_text(content)
    arguments = ["--groups", name, "--by", "owner", "--secret", "run.secret"]
    result = run("report", ledger, "--key", "run.pub", "-o", "r.html", *arguments, "--format", "json")
    assert json.loads(result.stdout)["output"] == "r.html"
    page = (here / "r.html").read_text()
    assert "Ann &amp; Co" in page
    assert page.count("50.00%") >= 4


@pytest.mark.parametrize(
    ("manifest", "secret", "told"),
    [
        ('{"id": "a", "site": "x"}\n', "other.secret", "`other.secret` is the secret of another run"),
        ("", "run.secret", "`m.jsonl` has no records"),
        ('{"id": "a"}\n', "run.secret", "record 1 lacks `site`"),
        ("hello\n", "run.secret", "record 1 cannot be read"),
        (" " * (17 << 20), "run.secret", "`m.jsonl:1`: the line is longer than 16 MiB"),
    ],
)
def test_no_page_is_made_with_groups_of_something_else(
    run: Run, ledger: Path, here: Path, manifest: str, secret: str, told: str
) -> None:
    (here / "m.jsonl").write_text(manifest)
    (here / "other.secret").write_text("cd" * 32)
    groups = ["--groups", "m.jsonl", "--by", "site", "--secret", secret]
    result = run("report", ledger, "--key", "run.pub", "-o", "r.html", *groups)
    assert (result.exit_code, (here / "r.html").exists()) == (2, False)
    assert told in result.stderr


def test_no_page_is_made_of_an_altered_ledger(run: Run, ledger: Path, here: Path) -> None:
    content = ledger.read_bytes()
    ledger.write_bytes(content.replace(b'"epoch":0', b'"epoch":1', 1))
    result = run("report", ledger, "--key", "run.pub", "-o", "r.html")
    assert (result.exit_code, (here / "r.html").exists()) == (2, False)
    assert "which was altered" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--groups", "who.csv"],
        ["--groups", "who.csv", "--by", "nobody", "--secret", "run.secret"],
        ["--groups", "who.parquet", "--by", "owner", "--secret", "run.secret"],
        ["--groups", "broken.jsonl", "--by", "owner", "--secret", "run.secret"],
    ],
)
def test_groups_that_cannot_be_read_are_told(
    run: Run, ledger: Path, here: Path, arguments: list[str]
) -> None:
    (here / "who.csv").write_text("id,owner\na,Ann\n")
    (here / "broken.jsonl").write_text('{"id": "a", "owner": "Ann"}\nnot json\n')
    result = run("report", ledger, "--key", "run.pub", "-o", "r.html", *arguments)
    assert (result.exit_code, (here / "r.html").exists()) == (2, False)


def test_a_job_is_shown_as_one_run(run: Run, here: Path, signer: Signer) -> None:
    """Steps are counted once, examples of all ranks together; each ledger's health is shown."""
    signer.public.save(here / "run.pub")
    sealed_job(here / "job", signer)
    result = run("report", "job", "--key", "run.pub", "-o", "r.html")
    assert result.exit_code == 0
    assert "6 steps; the job is OK" in result.stdout
    page = (here / "r.html").read_text()
    assert "<dt>Steps</dt><dd>6: 6 committed</dd>" in page
    assert "<dt>Examples</dt><dd>54, proposed 54 times" in page
    assert ", 3 ranks</dd>" in page
    assert page.count("the run began at") == 1
    assert page.count('<td>OK</td><td class="n">') == 3
    rank_path(here / "job", 2).unlink()
    result = run("report", "job", "--key", "run.pub", "-o", "r.html")
    assert result.exit_code == 1
    assert "lost_rank" in (here / "r.html").read_text()


def test_a_ledger_of_a_rank_that_a_job_has_not_is_not_taken_in(run: Run, here: Path, signer: Signer) -> None:
    sealed_job(here / "job", signer)
    signer.public.save(here / "run.pub")
    shutil.copy(rank_path(here / "job", 2), rank_path(here / "job", 7))
    for command in (("report", "job", "--key", "run.pub", "-o", "r.html"), ("trace", "band", "job", "deep")):
        result = run(*command)
        assert result.exit_code > 0
        assert "of a rank that the job does not have: it has 3" in result.stderr
    assert not (here / "r.html").exists()


def test_the_weight_of_a_job_is_that_of_one_run_with_all_its_batches(tmp_path: Path, signer: Signer) -> None:
    job, whole = Job(tmp_path / "job", signer, 3), Job(tmp_path / "whole", signer, 1)
    for number in range(6):
        parts = job.batches(number)
        job.step(parts)
        whole.step([[name for part in parts for name in part]])
    job.seal()
    whole.seal()
    found, other = Accountant(ranks=[0, 1, 2]), Accountant(ranks=[0])
    walk_ranks(job.folder, range(3), (), found.begin)
    walk_ranks(whole.folder, range(1), (), other.begin)
    one, two = found.finish(), other.finish()
    assert (one.shaping, one.verdicts, one.steps, one.uses) == (
        two.shaping,
        two.verdicts,
        two.steps,
        two.uses,
    )
    assert one.rules == two.rules
    assert [policy["digest"] for policy in one.policies] == [policy["digest"] for policy in two.policies]
