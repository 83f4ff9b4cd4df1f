"""`gradwarden trace`: answers from an index beside the ledger, made when first asked for."""

from __future__ import annotations

import json
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.provenance.index import build_index, index_folder
from tests.cli.conftest import OPENED, Run, committed, decision, step
from tests.runtime.jobs.simulated import sealed_job

pytest.importorskip("duckdb")

SECRET = bytes(range(32))


@pytest.fixture
def ledger(here: Path, signer: Signer) -> Path:
    return write_run(here, signer)


def write_run(
    here: Path, signer: Signer, recorded: Container[int] = (), private: Container[int] = ()
) -> Path:
    """Write ten steps of examples `a` and `b`; `late` stops `b` from step 5 on.

    recorded: steps that say what the two added; private: those of them in which `b` is private.
    """
    committer = Committer(SECRET)
    (here / "run.secret").write_text(SECRET.hex() + "\n")
    path = here / "run.ledger"
    ledger = Ledger.open(path, signer, durability="os", origin="gradwarden/test")
    opened = {**OPENED, "keys": [signer.public.vkey], "secret_commitment": committer.secret_commitment}
    ledger.append("opened", opened)
    stopped = {**decision(1, "refuse", "late", "open"), "weights": [0, 0]}
    ledger.append("decisions", {"decisions": [decision(0, "admit", "open"), stopped]})
    packed = b64encode(committer.commit("a") + committer.commit("b")).decode()
    for number in range(10):
        ledger.append("step", {**step(number, 0, int(number >= 5)), "commitments": packed})
        if number in recorded:
            norms = {"shallow": ["0.5", None if number in private else "0.25"], "deep": ["0", "0"]}
            ledger.append("contributed", {"step": number, "first": 0, "norms": norms})
            ledger.append("moved", {"step": number, "norms": {"shallow": "0.125", "deep": "0"}})
        ledger.append("committed", committed(number))
    ledger.append("checkpoint", {"step": 10, "file": "m.safetensors", "digest": "ab" * 32, "tensors": None})
    ledger.close({"steps": 10, "committed": 10, "refused": 0, "examples": 15})
    return path


def answer(run: Run, *arguments: object) -> dict[str, Any]:
    result = run("trace", *arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    weighed = arguments[0] in ("band", "example", "footprint")
    assert ("not what the model would be without" in told.get("approximation", "")) == weighed
    return told["answer"]  # type: ignore[no-any-return]


def test_the_first_question_makes_the_index(run: Run, ledger: Path) -> None:
    result = run("trace", "band", ledger, "shallow")
    assert result.exit_code == 0
    assert "shallow, from step 0 on: 2 examples gave it a weight of 15.00 in 15 uses" in result.stdout
    assert "66.667%" in result.stdout
    assert index_folder(ledger).is_dir()
    assert run("trace", "index", ledger).stdout.endswith(" bytes\n")
    assert "checked run.ledger.trace" in run("trace", "check", ledger.name).stdout


@pytest.mark.parametrize("how", ["secret", "salt", "commitment", "prefix"])
def test_an_example_is_found_by_its_id_or_its_commitment(run: Run, ledger: Path, how: str) -> None:
    committer = Committer(SECRET)
    ways: dict[str, list[object]] = {
        "secret": ["--id", "b", "--secret", "run.secret"],
        "salt": ["--id", "b", "--salt", committer.salt("b").hex()],
        "commitment": ["--commitment", committer.commit("b").hex()],
        "prefix": ["--commitment", committer.commit("b").hex()[:9]],
    }
    told = answer(run, "example", ledger, *ways[how])
    assert (told["uses"], told["exposures"], told["exposed"]) == (10, 5, [0, 4])
    assert told["weights"] == {"shallow": 5.0, "deep": 0.0}
    assert [(one["verdict"], one["first"], one["last"]) for one in told["chapters"]] == [
        ("admit", 0, 4),
        ("refuse", 5, 9),
    ]
    shown = run("trace", "example", ledger, *ways[how]).stdout
    assert "the model may have learned from it 5 times, from step 0 to step 4" in shown
    assert "an approximation" in shown


def test_what_steps_record_of_contributions_is_added_up(run: Run, here: Path, signer: Signer) -> None:
    ledger = write_run(here, signer, recorded=(1, 2, 4, 7), private=(4,))
    told = answer(run, "band", ledger, "shallow")
    assert told["moved"] == {"steps": 4, "taken": 10, "norm": 0.5}
    assert [one["added"] for one in told["top"]] == [
        {"steps": 4, "norm": 2.0, "private": 0},
        {"steps": 2, "norm": 0.5, "private": 1},
    ]
    some = answer(run, "band", ledger, "shallow", "--steps", "2..5")
    assert some["moved"] == {"steps": 2, "taken": 4, "norm": 0.25}
    assert [one["added"]["norm"] for one in some["top"]] == [1.0, 0.25]
    shown = run("trace", "band", ledger, "shallow").stdout
    assert "it moved by 0.5 in 4 of 10 steps, as these record" in shown
    assert re.search(r"2\s+4\n", shown)
    assert re.search(r"0\.5\s+2 \+ 1 private\n", shown)
    assert "at most what it added in these" in shown
    example = ["--id", "b", "--secret", "run.secret"]
    assert answer(run, "example", ledger, *example)["added"] == {
        "shallow": {"steps": 2, "norm": 0.5, "private": 1}
    }
    shown = run("trace", "example", ledger, *example).stdout
    assert re.search(r"shallow\s+5\.00\s+\S+\s+0\.5\s+2 \+ 1 private\ndeep\s+0\.00\s+\S+\n", shown)
    assert "at most what it added in these" in shown


def test_nothing_is_said_of_contributions_where_none_is_recorded(run: Run, ledger: Path) -> None:
    for question in (["band", ledger, "shallow"], ["example", ledger, "--id", "b", "--secret", "run.secret"]):
        assert "added" not in run("trace", *question).stdout
    told = answer(run, "band", ledger, "shallow")
    assert (told["moved"], {one["added"] for one in told["top"]}) == (None, {None})


def test_what_is_stopped_now_and_was_learned_before_is_listed(run: Run, ledger: Path) -> None:
    shown = run("trace", "footprint", ledger, "late").stdout
    assert "late stopped 1 example; 1 of them shaped the model, in 5 uses" in shown
    assert "it is in the checkpoint `m.safetensors` of step 10" in shown
    assert answer(run, "rule", ledger, "late")["uses"] == 5
    assert answer(run, "footprint", ledger, "open")["stopped"] == 1


def test_two_runs_are_compared(run: Run, ledger: Path, here: Path) -> None:
    (here / "ids.txt").write_text("a\nb\nb\nunknown\n")
    secrets = ["--secret", "run.secret", "--base-secret", "run.secret"]
    told = answer(run, "added", ledger, "--base", ledger, "--ids", "ids.txt", *secrets)
    assert told["linked"]["ids"] == 3
    assert told["linked"]["repeated"]["uses"] == 15
    assert told["linked"]["new"]["uses"] == 0
    assert "no ledger says so" in run("trace", "added", ledger, "--base", ledger).stdout
    assert run("trace", "added", ledger).exit_code == 2
    assert run("trace", "added", ledger, "--base", ledger, "--ids", "ids.txt").exit_code == 2


def test_an_index_that_is_not_the_ledgers_is_refused(
    run: Run, ledger: Path, write_ledger: Callable[..., Path]
) -> None:
    build_index(ledger)
    other = write_ledger(name="other.ledger")
    index_folder(ledger).rename(index_folder(other))
    result = run("trace", "band", other, "shallow")
    assert result.exit_code == 1
    assert "made from another ledger" in result.stderr
    document = json.loads(run("trace", "band", other, "shallow", "--format", "json").stdout)
    assert document["ok"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        ["band", "run.ledger"],
        ["index", "run.ledger", "shallow"],
        ["example", "run.ledger"],
        ["example", "run.ledger", "--id", "a"],
        ["example", "run.ledger", "--id", "a", "--salt", "zz"],
        ["example", "run.ledger", "--commitment", "xyz"],
        ["example", "run.ledger", "--id", "a", "--secret", "other.secret"],
        ["band", "missing.ledger", "shallow"],
    ],
)
def test_misuse_is_told(run: Run, ledger: Path, here: Path, arguments: list[str]) -> None:
    (here / "other.secret").write_text("00" * 32)
    result = run("trace", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_what_others_named_reaches_no_terminal_as_it_is(run: Run, here: Path, signer: Signer) -> None:
    path = here / "run.ledger"
    ledger = Ledger.open(path, signer, durability="os", origin="gradwarden/test")
    ledger.append("opened", {**OPENED, "keys": [signer.public.vkey]})
    hostile = {**decision(0, "refuse", "\x1b[2Jrule"), "weights": [0, 0]}
    ledger.append("decisions", {"decisions": [hostile]})
    ledger.append("step", {**step(0, 0), "commitments": b64encode(bytes(32)).decode()})
    ledger.close()
    result = run("trace", "rule", path, "\x1b[2Jrule")
    assert result.exit_code == 0
    assert "1 example got no weight at all" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_job_is_traced_as_one_run(run: Run, here: Path, signer: Signer) -> None:
    sealed_job(here / "job", signer)
    result = run("trace", "band", "job", "deep")
    assert result.exit_code == 0
    assert "18 examples gave it a weight of 18.00" in result.stdout
    told = answer(run, "example", "job", "--id", "C2-1", *secret(here))
    assert [(step["step"], step["rank"]) for step in told["steps"]] == [(2, 1)]
    assert run("trace", "check", "job").exit_code == 0


def secret(here: Path) -> tuple[str, str]:
    (here / "job.secret").write_text(SECRET.hex() + "\n")
    return "--secret", "job.secret"


@pytest.mark.parametrize(("missing", "question"), [("pyarrow", ("index",)), ("duckdb", ("band", "deep"))])
def test_a_library_that_is_not_installed_is_no_answer(
    run: Run, ledger: Path, monkeypatch: pytest.MonkeyPatch, missing: str, question: tuple[str, ...]
) -> None:
    assert run("trace", "index", ledger).exit_code == 0
    monkeypatch.setitem(sys.modules, missing, None)
    result = run("trace", question[0], ledger, *question[1:])
    assert (result.exit_code, "pip install 'gradwarden[trace]'" in result.stderr) == (2, True)
