"""`gradwarden prove`: what is reported, with what status; and docs/proving.md, run as it stands."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run

PAGE = (Path(__file__).parents[2] / "docs" / "proving.md").read_text("utf-8")
BLOCKS = re.findall(r"^```([\w-]+)\n(.*?)^```$", PAGE, re.M | re.S)

HEAD = """policy notes version 1 language 1
examples { consent : bool  phi : bool  size : number 0..10 places 1  source : string }
signals { loss : number 0..10 default 1 }
model { shallow = top 50%  deep = rest }
"""
GRANT = "depth all_of_it { when size >= 2.5 and today >= 2026-03-01 and step >= 7  reach all }\n"
CAP = 'suppress records { when phi  cap deep at 0  because "keep it shallow" }\n'
CLAIM = "assert phi_shallow { never reach deep when phi }\n"


@pytest.fixture
def write(here: Path) -> Any:
    def written(rules: str, name: str = "notes.policy") -> Path:
        path = here / name
        path.write_text(HEAD + rules, "utf-8")
        return path

    return written


def document(run: Run, *arguments: object, status: int = 0) -> Any:
    result = run("prove", "--format", "json", *arguments)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_a_proof_is_told_with_what_it_rests_on(run: Run, write: Any) -> None:
    result = run("prove", write(GRANT + CAP + CLAIM))
    assert result.exit_code == 0
    assert "proved   phi_shallow: never reach deep when phi\n" in result.stdout
    assert "rests on `records`\n" in result.stdout
    assert "control: without `records` it is refuted\n" in result.stdout
    assert "1 assertion: 1 proved" in result.stdout


def test_a_refutation_shows_an_example_that_explain_accepts(run: Run, write: Any) -> None:
    path = write(GRANT + "modulate m { when phi scale shallow by loss from 1 to 0 }\n" + CLAIM)
    (policy,) = document(run, path, status=1)["policies"]
    (claim,) = policy["claims"]
    assert claim["outcome"] == "refuted"
    assert claim["finding"]["line"] == 7
    counterexample = claim["counterexample"]
    assert counterexample["example"] == {"consent": False, "phi": True, "size": 2.5, "source": ""}
    assert counterexample["context"]["at"] == "2026-03-01"
    assert counterexample["context"]["step"] == 7
    echo, _, command = counterexample["command"].partition(" | ")
    words = shlex.split(command)
    assert words[0] == "gradwarden"
    explained = run(*words[1:], "--format", "json", input=shlex.split(echo)[1])
    assert explained.exit_code == 0
    decision = json.loads(explained.stdout)["decision"]
    assert "phi_shallow" in decision["rules"], "the assertion refuses it at run time"
    assert counterexample["decision"]["weights"]["deep"] > 0
    text = run("prove", path)
    assert text.exit_code == 1
    assert counterexample["command"] in text.stdout
    assert "notes.policy:7:8: error[GW652]" in text.stdout
    assert "assert phi_shallow { never reach deep when phi }" in text.stdout


def test_what_is_not_proved_fails(run: Run, write: Any) -> None:
    vacuous = "assert nothing { never reach deep when phi and not phi }\n"
    trivial = "assert little { at most 1 in deep }\n"
    path = write(GRANT + CAP + vacuous + trivial)
    (policy,) = document(run, path, status=1)["policies"]
    assert [(c["name"], c["outcome"]) for c in policy["claims"]] == [
        ("little", "trivial"),
        ("nothing", "vacuous"),
    ]
    assert [c["finding"]["code"] for c in policy["claims"]] == ["GW655", "GW654"]


def test_no_time_is_no_proof(run: Run, write: Any) -> None:
    """A sum of two cubes is never a cube, which the solver does not find out in a moment."""
    cubes = "a * a * a + b * b * b == c * c * c"
    path = write("")
    path.write_text(
        "policy cubes version 1 language 1\n"
        "examples { a : integer 1..50000  b : integer 1..50000  c : integer 1..50000 }\n"
        f"model {{ m = rest }}\ndepth d {{ when {cubes} reach m }}\nassert never_cubes {{ never reach m }}\n",
        "utf-8",
    )
    (policy,) = document(run, path, "--only", "never_cubes", "--timeout", "0.2", status=1)["policies"]
    assert policy["claims"][0]["outcome"] == "unknown"
    assert policy["claims"][0]["finding"]["code"] == "GW653"
    result = run("prove", path, "--timeout", "0.2")
    assert result.exit_code == 1
    assert "unknown  never_cubes" in result.stdout
    assert "proved" not in result.stdout


def test_warnings_fail_only_a_strict_run(run: Run, write: Any) -> None:
    again = 'suppress narrow { when phi and consent  cap deep at 0  because "again" }\n'
    path = write(GRANT + CAP + again + CLAIM)
    lenient = run("prove", path)
    assert lenient.exit_code == 0
    assert "warning[GW658]: `narrow` never changes a decision: `records` decide" in lenient.stderr
    assert document(run, path)["ok"]
    assert not document(run, path, "--strict", status=1)["ok"]


def test_notes_fail_nothing(run: Run, write: Any) -> None:
    result = run("prove", write(GRANT + CAP + CLAIM), "--strict")
    assert result.exit_code == 0
    assert "note[GW659]" in result.stderr
    assert "note[GW504]" in result.stderr


def test_one_assertion_alone(run: Run, write: Any) -> None:
    path = write(GRANT + CAP + CLAIM + "assert consented { always refuse when not consent }\n")
    assert run("prove", path).exit_code == 1
    result = run("prove", path, "--only", "phi_shallow")
    assert result.exit_code == 0
    assert "consented" not in result.output
    assert not result.stderr


def test_an_unknown_assertion_is_misuse(run: Run, write: Any) -> None:
    result = run("prove", write(GRANT + CAP + CLAIM), "--only", "phi_shalow")
    assert result.exit_code == 2
    assert "did you mean `phi_shallow`?" in result.stderr


def test_a_compiled_program_is_proved_like_its_policy(run: Run, write: Any, here: Path) -> None:
    path = write(GRANT + CLAIM)
    assert run("build", path, "-o", here / "notes.json").exit_code == 0
    (source,) = document(run, path, status=1)["policies"]
    (compiled,) = document(run, here / "notes.json", status=1)["policies"]
    assert compiled["policy"] == source["policy"]
    assert (
        compiled["claims"][0]["counterexample"]["example"] == source["claims"][0]["counterexample"]["example"]
    )
    assert compiled["claims"][0]["finding"]["line"] is None


def test_a_directory_of_policies_with_parts_that_they_import(run: Run, write: Any, here: Path) -> None:
    (here / "part.policy").write_text(CLAIM, "utf-8")
    write('import "part.policy"\n' + GRANT + CAP)
    result = run("prove", here)
    assert result.exit_code == 0
    assert result.stdout.count("version 1") == 1
    (here / "lost.policy").write_text("depth d { reach all }\n", "utf-8")
    lost = run("prove", here)
    assert lost.exit_code == 2
    assert "GW213" in lost.stderr


def test_a_policy_without_assertions_has_nothing_to_prove(run: Run, write: Any) -> None:
    result = run("prove", write(GRANT))
    assert result.exit_code == 0
    assert "0 assertions" in result.stdout


def test_an_advisory_assertion_is_marked(run: Run, write: Any) -> None:
    result = run("prove", write(GRANT + "advisory " + CLAIM))
    assert result.exit_code == 1
    assert "refuted  phi_shallow (advisory)" in result.stdout


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"policy", b"policy p version 1\nassert a { }"])
def test_what_is_no_policy_is_reported(run: Run, here: Path, content: bytes) -> None:
    (here / "x.policy").write_bytes(content)
    result = run("prove", here / "x.policy")
    assert result.exit_code == 2
    assert "error[" in result.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["missing.policy"], ["--timeout", "0", "x.policy"], ["--timeout", "nan", "x.policy"]]
)
def test_misuse(run: Run, arguments: list[str]) -> None:
    assert run("prove", *arguments).exit_code == 2


def test_text_of_the_policy_cannot_drive_a_terminal(run: Run, write: Any) -> None:
    path = write('depth d { when source == "\\n" reach all }\n' + CLAIM)
    assert "\x1b" not in run("prove", path).output


def test_without_z3_the_verb_says_what_to_install(write: Any) -> None:
    path = write(GRANT + CLAIM)
    script = (
        "import sys; sys.modules['z3'] = None\n"
        "from gradwarden.cli import main\n"
        f"sys.argv = ['gradwarden', 'prove', {str(path)!r}]\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pip install 'gradwarden[prove]'" in result.stderr
    assert "Traceback" not in result.stderr


# --- docs/proving.md ----------------------------------------------------------------------------------------


def settled(text: str) -> str:
    """Text without what differs from run to run: times, and the day."""
    return re.sub(r"at \S+ \(today", "at DAY (today", re.sub(r"in \d+\.\d\d s", "in N s", text))


def test_the_page_shows_what_its_commands_print(run: Run, here: Path) -> None:
    (policy,) = [text for kind, text in BLOCKS if kind == "policy"]
    (here / "notes.policy").write_text(policy, "utf-8")
    commands = 0
    for shown in (text for kind, text in BLOCKS if kind == "console"):
        head, _, expected = shown.partition("\n")
        line = head.removeprefix("$ ")
        echo, _, command = line.partition(" | ") if " | " in line else ("", "", line)
        words = shlex.split(command)
        assert words[0] == "gradwarden"
        result = run(*words[1:], input=shlex.split(echo)[1] if echo else None)
        assert settled(result.output) == settled(expected)
        commands += 1
    assert commands >= 2


def test_the_page_lists_every_outcome_and_code() -> None:
    for word in ("proved", "refuted", "unknown", "vacuous", "trivial"):
        assert f"| `{word}` |" in PAGE
    for code in ("GW656", "GW657", "GW658", "GW659", "GW504", "GW651"):
        assert code in PAGE


def test_the_rules_that_the_page_advises_prove_the_claim_it_shows(run: Run, here: Path) -> None:
    (policy,) = [text for kind, text in BLOCKS if kind == "policy"]
    (rules,) = [text for kind, text in BLOCKS if kind == "policy-rules"]
    start = policy[: policy.index("suppress")]
    (here / "advised.policy").write_text(start + rules, "utf-8")
    assert run("prove", here / "advised.policy").exit_code == 0
