"""`gradwarden diff`: what a person, and a CI job, are told about a change of policy."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from gradwarden import policy
from gradwarden.policy import comparing, proving

OLD = """policy p version 1 language 1
examples {
  license : one of mit, gpl
  lines : integer 0..1000
}
model { shallow = top 25%  deep = rest }
depth open { when license == mit  reach all }
depth close { when license == gpl  reach shallow at 0.5 }
suppress long { when lines > 500  because "too long" }
"""


@pytest.fixture
def files(here: Path) -> Any:
    def write(*changes: tuple[str, str]) -> tuple[str, str]:
        text = OLD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (here / "old.policy").write_text(OLD)
        (here / "new.policy").write_text(text)
        return "old.policy", "new.policy"

    return write


def document(result: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def test_nothing_widens(run: Any, files: Any) -> None:
    result = run("diff", *files(("lines > 500", "lines > 400")))
    assert result.exit_code == 0
    assert "suppress long" in result.stdout
    assert result.stdout.splitlines()[-1] == (
        "narrower: the new policy lets less be learned, and nothing more"
    )


def test_a_widening_fails_unless_it_is_accepted(run: Any, files: Any) -> None:
    names = files(("reach shallow at 0.5", "reach shallow at 0.75"))
    result = run("diff", *names)
    assert result.exit_code == 1
    assert "old: limit, shallow 0.5, deep 0 [close]" in result.stdout
    assert "new: limit, shallow 0.75, deep 0 [close]" in result.stdout
    assert run("diff", *names, "--allow-widening").exit_code == 0


def test_the_command_shown_explains_the_example(run: Any, files: Any) -> None:
    result = run("diff", *files(("lines > 500", "lines > 501")))
    line = next(line for line in result.stdout.splitlines() if line.strip().startswith("$ echo"))
    example, _, command = line.strip().removeprefix("$ ").partition(" | ")
    shown = run(*shlex.split(command)[1:], "--format", "json", input=shlex.split(example)[1])
    assert json.loads(shown.stdout)["decision"]["verdict"] == "admit"


def test_the_same_policy_twice(run: Any, files: Any) -> None:
    result = run("diff", *files(("open", "permissive")), "--format", "json")
    data = document(result)
    assert (result.exit_code, data["relation"], data["widens"]) == (0, "same", False)
    (renamed,) = [rule for rule in data["rules"] if rule["was"] != rule["now"]]
    assert (renamed["was"], renamed["now"], renamed["relation"]) == ("open", "permissive", "same")


def test_each_difference_has_an_example(run: Any, files: Any) -> None:
    data = document(run("diff", *files(("reach all", "reach shallow")), "--format", "json"))
    (deep,) = [band for band in data["bands"] if band["name"] == "deep"]
    assert (deep["relation"], deep["wider"]) == ("narrower", None)
    assert deep["narrower"]["before"]["weights"] == {"shallow": 1.0, "deep": 1.0}
    assert deep["narrower"]["after"]["weights"] == {"shallow": 1.0, "deep": 0.0}


def test_compiled_programs_can_be_compared(run: Any, files: Any) -> None:
    old, new = files(("> 500", "> 600"))
    for name in (old, new):
        assert run("build", name, "-o", f"{name}.json").exit_code == 0
    assert run("diff", f"{old}.json", f"{new}.json").exit_code == 1
    assert run("diff", f"{old}.json", old).exit_code == 0


def test_a_data_set_is_counted_and_bounded(run: Any, files: Any, here: Path) -> None:
    names = files(("> 500", "> 300"), ("reach shallow at 0.5", "reach shallow"))
    records = [
        {"id": "a", "license": "mit", "lines": 400}, {"id": "b", "license": "mit", "lines": 200},
        {"id": "c", "license": "gpl", "lines": 100}, {"id": "d", "license": "gpl", "lines": 450},
    ]  # fmt: skip
    (here / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (here / "data.csv").write_text(
        "id,license,lines\n" + "".join(",".join(map(str, record.values())) + "\n" for record in records)
    )
    common = ["diff", *names, "--allow-widening", "--tokens", "lines"]
    for data in ("data.jsonl", "data.csv"):
        found = document(run(*common, "--data", data, "--format", "json"))["data"]
        assert found["examples"] == 4
        assert found["any"] == {"gained": 1, "lost": 2, "tokens_gained": 100, "tokens_lost": 850}
        assert found["bands"]["deep"] == {"gained": 0, "lost": 1, "tokens_gained": 0, "tokens_lost": 400}
        (long,) = [rule for rule in found["rules"] if rule["now"] == "long"]
        assert (long["gained"], long["lost"]) == (2, 0)
    assert run(*common, "--data", "data.jsonl", "--max-gained", "1", "--max-lost", "50%").exit_code == 0
    result = run(*common, "--data", "data.jsonl", "--max-lost", "49%")
    assert result.exit_code == 1
    assert "2 of 4 examples lose weight; at most 49% may (--max-lost)" in result.stdout
    assert run(*common, "--data", "data.jsonl", "--max-gained", "0").exit_code == 1


def test_a_share_of_the_examples_is_exact(run: Any, files: Any, here: Path) -> None:
    names = files(("> 500", "> 300"))
    record, loses = '{"license": "mit", "lines": 1}\n', '{"license": "mit", "lines": 400}\n'
    (here / "data.jsonl").write_text(record * (11_000 - 77) + loses * 77)  # as floats, 0.7 * 11000 / 100 < 77
    assert run("diff", *names, "--data", "data.jsonl", "--max-lost", "0.7%").exit_code == 0
    assert run("diff", *names, "--data", "data.jsonl", "--max-lost", "0.69%").exit_code == 1


def test_a_renamed_attribute(run: Any, files: Any) -> None:
    names = files(("license", "licence"))
    result = run("diff", *names)
    assert result.exit_code == 1
    assert "no record fits both schemas" in result.stdout
    assert run("diff", *names, "--renamed", "license=licence").exit_code == 0


def test_bands_that_are_drawn_otherwise_need_a_model(run: Any, files: Any) -> None:
    result = run("diff", *files(("top 25%", "top 50%")))
    assert result.exit_code == 1
    assert "unknown" in result.stdout
    assert "--model-map" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.policy", "new.policy"], "missing.policy"),
        (["old.policy"], "NEW"),
        (["old.policy", "new.policy", "--renamed", "license"], "old and a new name"),
        (["old.policy", "new.policy", "--renamed", "licens=license"], "did you mean `license`?"),
        (["old.policy", "new.policy", "--renamed", "license=lines"], "already"),
        (
            ["old.policy", "new.policy", "--renamed", "lines=lines", "--renamed", "lines=license"],
            "renamed twice",
        ),
        (["old.policy", "new.policy", "--max-lost", "1"], "--data"),
        (["old.policy", "new.policy", "--data", "old.policy"], "ending"),
        (["old.policy", "new.policy", "--data", "d.jsonl", "--tokens", "line"], "did you mean `lines`?"),
        (["old.policy", "new.policy", "--data", "d.jsonl", "--max-lost", "x"], "0.5%"),
        (["old.policy", "new.policy", "--timeout", "0"], "timeout"),
        (["old.policy", "broken.policy"], "broken.policy:1:1"),
    ],
)
def test_wrong_input_is_told(run: Any, files: Any, here: Path, arguments: list[str], said: str) -> None:
    files()
    (here / "d.jsonl").write_text("")
    (here / "broken.policy").write_text("polici p version 1")
    result = run("diff", *arguments)
    assert result.exit_code in (1, 2) if "broken.policy" in arguments else result.exit_code == 2
    assert said in result.stderr


def test_without_the_solver_it_says_what_to_install(
    run: Any, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = files()
    # Put back after the test, or the packages would be other objects than those in `sys.modules`.
    for package in (proving, comparing):
        monkeypatch.setattr(policy, package.__name__.rpartition(".")[2], package)
    for module in [name for name in sys.modules if ".proving" in name or ".comparing" in name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "z3", None)
    result = run("diff", *names)
    assert result.exit_code == 2
    assert "pip install 'gradwarden[prove]'" in result.stderr


def test_other_semantics_are_no_other_decisions(run: Any, files: Any) -> None:
    old, new = files(("deep = rest }", "deep = rest  semantics detach }"))
    result = run("diff", old, new)
    assert result.exit_code == 0
    assert "model\n  semantics  narrower (mask, now detach)" in result.stdout
    result = run("diff", new, old, "--format", "json")
    assert result.exit_code == 1
    assert document(result)["semantics"][0]["notes"] == ["detach, now mask"]


def test_a_band_that_is_no_longer_maintained_is_a_widening(run: Any, files: Any) -> None:
    held = "suppress long { when lines > 500"
    old, new = files((held, f"maintain kept {{ within deep  strength 0.01  drift at most 2% }}\n{held}"))
    result = run("diff", old, new)
    assert result.exit_code == 0
    assert "maintenance\n  deep  narrower (not held, now strength 0.01, drift at most 2%)" in result.stdout
    result = run("diff", new, old, "--format", "json")
    assert result.exit_code == 1
    [found] = document(result)["maintenance"]
    assert (found["name"], found["relation"]) == ("deep", "wider")
