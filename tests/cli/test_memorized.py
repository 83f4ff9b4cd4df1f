"""`gradwarden memorized`: what guards did in a run, and what an auditor can ask of it."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from gradwarden.cli.commands.memorized import steps_in_words
from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.program import Program
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.memorization.content import ContentIndex, content_id
from tests.cli.conftest import OPENED, Run, committed, decision, step
from tests.cli.test_verify import GOVERNED, record

__all__ = ["record"]

GUARDED = (
    GOVERNED
    + 'memorization hot { when kind == a and loss >= 1  cap deep at 0.25  because "known by heart" }\n'
    + "advisory memorization warm { when loss >= 0.5  refuse }\n"
)
SECRET = b"s" * 32
OWN = ("--secret", "run.secret")


@pytest.fixture
def program(here: Path) -> Program:
    (here / "governed.policy").write_text(GUARDED)
    return compile_policy(parse_policy(GUARDED))


@pytest.fixture
def ledger(record: Callable[..., Path], here: Path) -> Path:
    """Four steps on `example 0` to `example 3`; two of them learn, and one is capped from step 2 on."""
    (here / "run.secret").write_text(SECRET.hex())
    return record()


def told(run: Run, *options: object) -> dict[str, Any]:
    result = run("memorized", "run.ledger", "--format", "json", *options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    schema = files("gradwarden.runtime").joinpath("schemas/memorization.schema.json").read_bytes()
    Draft202012Validator(json.loads(schema)).validate(document)
    return document


def test_the_manifest_says_what_guards_did_and_what_is_left(run: Run, ledger: Path) -> None:
    document = told(run, "--key", "run.pub")
    assert document["verified"]
    hot, warm = document["guards"]
    assert (hot["rule"], hot["effects"], hot["examples"], hot["first_step"]) == ("hot", ["capped"], 2, 2)
    assert (warm["rule"], warm["level"], warm["first_step"], warm["last_step"]) == ("warm", "advisory", 1, 3)
    left = {group["class"]: group["examples"] for group in document["risk"]}
    assert left == {"stopped": 0, "limited": 2, "noted": 1, "unflagged": 1}
    shown = run("memorized", ledger).output
    assert "hot" in shown
    assert "not verified: give --key" in shown


def test_nothing_in_it_names_an_example(run: Run, ledger: Path) -> None:
    assert "example 0" not in run("memorized", ledger, "--format", "json").stdout


def test_an_example_is_found_by_its_id(run: Run, ledger: Path) -> None:
    (found,) = told(run, "--id", "example 0", "--secret", "run.secret")["asked"]
    assert (found["known"], found["risk"], found["guards"]) == (True, "limited", ["hot"])
    assert found["exposures"] == {"before": 1, "after": 3}
    assert (found["deepest"], found["deepest_after"]) == ("deep", "deep")
    assert [step["weights"]["deep"] for step in found["steps"]] == [0.5, 0.475, 0.225, 0.2125]
    shown = run("memorized", ledger, "--id", "example 0", "--secret", "run.secret").stdout
    assert "learned from in 4 steps (0, 1, 2, 3)" in shown
    assert "reached deep in 4 steps (0, 1, 2, 3)" in shown
    assert "flagged by hot (in force)" in shown


def test_an_example_that_was_never_there_is_told_so(run: Run, ledger: Path) -> None:
    (found,) = told(run, "--id", "example 9", "--secret", "run.secret")["asked"]
    assert (found["known"], found["steps"]) == (False, [])
    shown = run("memorized", ledger, "--id", "example 9", "--secret", "run.secret").stdout
    assert "in no step of this run" in shown


def test_an_example_is_found_by_its_content(run: Run, here: Path, ledger: Path) -> None:
    (here / "text").write_text("Some  text\n")
    ContentIndex.of([("example 0", "Some text"), ("example 2", "other")]).save(here / "index.jsonl")
    (found,) = told(run, "--text", "text", "--index", "index.jsonl", "--secret", "run.secret")["asked"]
    assert (found["id"], found["known"]) == ("example 0", True)
    (by_content,) = told(run, "--text", "text", "--secret", "run.secret")["asked"]
    assert (by_content["id"], by_content["known"]) == (content_id("Some text"), False)
    (here / "text").write_text("Some other text\n")
    options = ("--text", "text", "--index", "index.jsonl", "--secret", "run.secret")
    assert told(run, *options)["asked"] == []
    assert "no example with this content" in run("memorized", ledger, *options).stdout


def test_what_is_not_found_says_what_else_that_may_mean(run: Run, here: Path, ledger: Path) -> None:
    (here / "text").write_text("Some text\n")
    by_content = run("memorized", ledger, "--text", "text", "--secret", "run.secret").stdout
    assert "unless the run named its examples otherwise than by content" in by_content
    by_salt = run("memorized", ledger, "--id", "example 0", "--salt", "00" * 32).stdout
    assert "unless the salt is not that of this id" in by_salt
    assert "unless" not in run("memorized", ledger, "--id", "example 9", "--secret", "run.secret").stdout
    ContentIndex.of([("example 0", "Some texts")]).save(here / "index.jsonl")
    near = run("memorized", ledger, "--text", "text", "--index", "index.jsonl", "--secret", "run.secret")
    assert "differs in one letter is another" in near.stdout


def test_the_steps_of_an_example_are_listed_or_their_range_is_told(run: Run, ledger: Path) -> None:
    shown = run("memorized", ledger, "--id", "example 0", "--secret", "run.secret").stdout
    assert "proposed in 4 steps (0, 1, 2, 3)" in shown
    assert steps_in_words(range(3, 30, 3)) == "9 steps (3 to 27; --format json lists them)"


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("blank", b" \n\t", ["run.ledger", "--text", "blank", *OWN], "holds no text"),
        ("binary", b"\x00\xff\x80", ["run.ledger", "--text", "binary", *OWN], "not UTF-8"),
        ("none", b"", ["run.ledger", "--text", "a", "--index", "none", *OWN], "is empty"),
        ("other", b"a\n", ["run.ledger", "--text", "a", "--index", "other", *OWN], "no line"),
        ("other", b"\xe2", ["run.ledger", "--id", "a", "--secret", "other"], "is no ledger's secret"),
        ("none", b"", ["none"], "holds no entry of a ledger"),
        ("other", b"a poem\n", ["other"], "holds no entry of a ledger"),
    ],
)
def test_files_that_are_something_else_are_told(
    run: Run, here: Path, ledger: Path, name: str, content: bytes, options: list[str], says: str
) -> None:
    (here / "a").write_text("a text")
    (here / name).write_bytes(content)
    result = run("memorized", *options)
    assert result.stdout == ""
    assert result.exit_code == 2
    assert says in result.stderr


def test_an_opened_salt_answers_for_its_id_and_no_other(run: Run, ledger: Path) -> None:
    (opened,) = told(run, "--id", "example 0", "--secret", "run.secret", "--open")["asked"]
    salt = opened.pop("salt")
    assert salt == Committer(SECRET).salt("example 0").hex()
    assert told(run, "--id", "example 0", "--salt", salt)["asked"] == [opened]
    assert not told(run, "--id", "example 2", "--salt", salt)["asked"][0]["known"]
    assert "salt" not in told(run, "--id", "example 0", "--secret", "run.secret")["asked"][0]


def test_a_commitment_needs_no_secret(run: Run, ledger: Path) -> None:
    commitment = told(run)["flagged"][0]["commitment"]
    (found,) = told(run, "--commitment", commitment)["asked"]
    assert (found["id"], found["known"]) == (None, True)


def test_the_secret_of_another_run_gives_no_answer(run: Run, here: Path, ledger: Path) -> None:
    (here / "other.secret").write_text("00" * 32)
    result = run("memorized", ledger, "--id", "example 0", "--secret", "other.secret")
    assert result.exit_code == 2
    assert "not the one under which" in result.stderr


def test_nothing_is_told_of_a_ledger_that_does_not_hold(run: Run, here: Path, ledger: Path) -> None:
    ledger.write_bytes(ledger.read_bytes().replace(b'"2.5"', b'"2.6"', 1))
    verified = run("memorized", ledger, "--key", "run.pub", "--format", "json")
    assert (verified.exit_code, json.loads(verified.stdout)["ok"]) == (1, False)
    unverified = run("memorized", ledger)
    assert (unverified.exit_code, unverified.stdout) == (1, "")


@pytest.mark.parametrize("commitments", ["", b64encode(bytes(32)).decode()], ids=["none", "one"])
def test_a_signed_ledger_that_makes_no_sense_is_told(
    run: Run, here: Path, signer: Signer, commitments: str
) -> None:
    """Without --key, too, where nothing but the links is checked."""
    ledger = Ledger.open(here / "odd.ledger", signer, "os", "gradwarden/test")
    ledger.append("opened", {**OPENED, "keys": [signer.public.vkey]})
    ledger.append("decisions", {"decisions": [decision(0, "admit")]})
    ledger.append("step", {**step(0, 7), "commitments": commitments})
    ledger.append("committed", committed(0))
    ledger.close()
    result = run("memorized", "odd.ledger")
    assert (result.exit_code, "one that its program cannot give" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "options",
    [
        ["--id", "x"],
        ["--id", "", "--secret", "run.secret"],
        ["--text", "run.ledger"],
        ["--index", "run.ledger"],
        ["--open"],
        ["--id", "x", "--secret", "run.secret", "--salt", "00" * 32],
        ["--id", "x", "--id", "y", "--salt", "00" * 32],
        ["--commitment", "abc"],
        ["--id", "x", "--secret", "missing"],
        ["--text", "missing", "--secret", "run.secret"],
    ],
)
def test_misuse_is_told(run: Run, ledger: Path, options: list[str]) -> None:
    result = run("memorized", ledger, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


def test_asking_never_imports_torch(ledger: Path) -> None:
    script = (
        "import sys\nfrom gradwarden.cli.app import cli\n"
        f"for more in (['--key', 'run.pub'], ['--id', 'example 0', '--secret', 'run.secret']):\n"
        f"    try:\n        cli(['memorized', {str(ledger)!r}, *more])\n"
        "    except SystemExit as end:\n        assert end.code == 0, end.code\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
