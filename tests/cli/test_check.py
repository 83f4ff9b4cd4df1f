"""`gradwarden check`: what is found, how it is written, and what fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gradwarden.cli.codes import MEANINGS
from tests.cli.conftest import Run

WARNS = """policy warns version 1
examples { kind : one of a, b }
model { m = rest }
depth d { when kind == a reach all because "x" }
"""

REPORTED = ("Reading policies", "Names and files", "Types", "Model maps", "Rules", "Warnings")
"""The sections of docs/diagnostics.md with what `check` reports."""


@pytest.fixture
def bad(policy: Path) -> Path:
    path = policy.with_name("bad.policy")
    path.write_text(policy.read_text().replace("kind == a", "kind == z").replace("lines >=", "lines_ >="))
    return path


def test_a_good_policy_has_no_findings(run: Run, policy: Path) -> None:
    result = run("check", policy, "--strict")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "1 file checked: no findings\n", "")


def test_all_errors_are_told_with_place_caret_and_help(run: Run, bad: Path) -> None:
    result = run("check", "bad.policy")
    assert result.exit_code == 1
    assert result.stdout == "1 file checked: 3 errors\n"
    assert "bad.policy:20:30: error[" in result.stderr
    assert "suppress long { when lines_ >= 100" in result.stderr
    assert "^^^^^^" in result.stderr
    assert "did you mean `lines`?" in result.stderr


def test_warnings_fail_only_if_strict(run: Run, here: Path) -> None:
    (here / "warns.policy").write_text(WARNS)
    relaxed, strict = run("check", "warns.policy"), run("check", "warns.policy", "--strict")
    assert (relaxed.exit_code, strict.exit_code) == (0, 1)
    assert "1 warning" in relaxed.stdout


def test_a_directory_stands_for_its_policies(run: Run, policy: Path, bad: Path) -> None:
    nested = policy.parent / "more" / "nested.policy"
    nested.parent.mkdir()
    nested.write_text(policy.read_text())
    (policy.parent / ".hidden").mkdir()
    (policy.parent / ".hidden" / "x.policy").write_text("nonsense")
    document = json.loads(run("check", ".", "--format", "json").stdout)
    assert document["files"] == ["bad.policy", "more/nested.policy", "sample.policy"]
    assert {finding["file"] for finding in document["findings"]} == {"bad.policy"}


def test_a_file_named_twice_is_checked_once(run: Run, bad: Path) -> None:
    document = json.loads(run("check", "bad.policy", ".", "bad.policy", "--format", "json").stdout)
    assert document["files"] == ["bad.policy", "sample.policy"]


def test_a_shared_file_is_checked_with_those_that_import_it(run: Run, here: Path) -> None:
    (here / "shared.policy").write_text("examples { kind : one of a, b }\n")
    (here / "main.policy").write_text(
        'policy main version 1 language 1\nimport "shared.policy"\nmodel { m = rest }\n'
        'depth d { when kind == a reach all because "x" }\n'
    )
    document = json.loads(run("check", ".", "--format", "json").stdout)
    assert (document["ok"], document["findings"]) == (True, [])


def test_a_fault_in_a_shared_file_is_told_once(run: Run, here: Path) -> None:
    (here / "shared.policy").write_text("examples { kind : one of a, a }\n")
    for name in ("one", "two"):
        (here / f"{name}.policy").write_text(
            f'policy {name} version 1 language 1\nimport "shared.policy"\nmodel {{ m = rest }}\n'
            'depth d { when kind == a reach all because "x" }\n'
        )
    document = json.loads(run("check", ".", "--format", "json").stdout)
    assert {finding["file"] for finding in document["findings"]} == {"shared.policy"}
    assert len({finding["column"] for finding in document["findings"]}) == len(document["findings"])


def test_a_headless_file_that_nobody_imports_is_an_error(run: Run, here: Path) -> None:
    (here / "shared.policy").write_text("examples { kind : one of a, b }\n")
    for path in (".", "shared.policy"):
        result = run("check", path)
        assert result.exit_code == 1
        assert "no header" in result.stderr


def test_an_unreadable_file_among_others_is_misuse_but_all_is_told(run: Run, policy: Path, bad: Path) -> None:
    (policy.parent / "binary.policy").write_bytes(b"\xff\x00")
    result = run("check", ".")
    assert result.exit_code == 2
    assert "binary.policy" in result.stderr
    assert "bad.policy:20" in result.stderr


def test_bands_are_bound_to_a_model_map(run: Run, policy: Path) -> None:
    run("init", "scaffold")
    assert run("check", policy, "--model-map", "scaffold/model.yaml").exit_code == 0
    policy.write_text(policy.read_text().replace("top 50%", 'names "nothing.*"'))
    result = run("check", policy, "--model-map", "scaffold/model.yaml")
    assert result.exit_code == 1
    assert "band `shallow` has no parameters" in result.stderr


def test_json_gives_the_place_of_a_finding(run: Run, bad: Path) -> None:
    result = run("check", "bad.policy", "--format", "json")
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert (document["ok"], document["errors"], document["warnings"]) == (False, 3, 0)
    finding = next(f for f in document["findings"] if "lines_" in f["message"])
    assert (finding["line"], finding["column"]) == (21, 22)
    assert (finding["end_line"], finding["end_column"]) == (21, 28)
    assert finding["severity"] == "error"
    assert finding["code"].startswith("GW")


def test_sarif_is_what_the_standard_asks_for(run: Run, bad: Path) -> None:
    result = run("check", "bad.policy", "--format", "sarif")
    log = json.loads(result.stdout)
    assert result.exit_code == 1
    assert log["version"] == "2.1.0"
    [invocation] = log["runs"]
    rules = [rule["id"] for rule in invocation["tool"]["driver"]["rules"]]
    assert rules == sorted(set(rules))
    assert len(invocation["results"]) == 3
    for found in invocation["results"]:
        assert rules[found["ruleIndex"]] == found["ruleId"]
        assert found["level"] == "error"
        [location] = found["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "bad.policy"
        region = location["physicalLocation"]["region"]
        assert region["startLine"] >= 1
        assert region["endColumn"] > region["startColumn"]


def test_sarif_of_a_good_policy_has_no_results(run: Run, policy: Path) -> None:
    result = run("check", policy, "--format", "sarif")
    assert (result.exit_code, json.loads(result.stdout)["runs"][0]["results"]) == (0, [])


def test_sarif_names_files_by_uri(run: Run, here: Path) -> None:
    (here / "a b.policy").write_text("nonsense")
    relative = json.loads(run("check", "a b.policy", "--format", "sarif").stdout)
    absolute = json.loads(run("check", here / "a b.policy", "--format", "sarif").stdout)
    uris = [
        log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for log in (relative, absolute)
    ]
    assert uris[0] == "a%20b.policy"
    assert uris[1].startswith("file:///")


def test_github_annotations(run: Run, bad: Path) -> None:
    result = run("check", "bad.policy", "--format", "github")
    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    assert len(lines) == 3
    assert any("file=bad.policy,line=21,col=22,endLine=21,endColumn=28::" in line for line in lines)
    assert any("%0Ahelp: did you mean `lines`?" in line for line in lines)
    assert all(line.startswith("::error title=GW") for line in lines)


def test_what_does_not_fit_a_model_is_told_at_the_band(run: Run, policy: Path) -> None:
    run("init", "scaffold")
    policy.write_text(policy.read_text().replace("top 50%", 'names "nothing.*"'))
    result = run("check", ".", "--model-map", "scaffold/model.yaml", "--format", "json")
    [finding] = json.loads(result.stdout)["findings"]
    line = policy.read_text().split("\n")[finding["line"] - 1]
    assert (finding["file"], finding["code"]) == ("sample.policy", "GW405")
    assert line[finding["column"] - 1 :].startswith("shallow = names")


def test_every_result_of_sarif_has_a_place(run: Run, bad: Path) -> None:
    (bad.parent / "binary.policy").write_bytes(b"\xff\x00")
    (bad.parent / "empty.policy").write_text("")
    sarif = json.loads(run("check", ".", "absent.policy", "--format", "sarif").stdout)["runs"][0]
    places = [result["locations"][0]["physicalLocation"] for result in sarif["results"]]
    files = {place["artifactLocation"]["uri"] for place in places}
    assert files == {"absent.policy", "bad.policy", "binary.policy", "empty.policy"}


def test_a_file_without_text_is_told_without_an_excerpt(run: Run, here: Path) -> None:
    (here / "empty.policy").write_text("")
    assert run("check", "empty.policy").stderr == (
        "empty.policy:1:1: error[GW213]: the policy has no header\n"
        "  = help: begin with `policy NAME version 1 language 1`\n\n"
    )


def test_an_attribute_that_no_rule_reads_is_noted_and_fails_nothing(run: Run, here: Path) -> None:
    text = WARNS.replace("version 1", "version 1 language 1").replace(
        "one of a, b", "one of a, b  ward : bool  age : date"
    )
    (here / "notes.policy").write_text(text)
    result = run("check", "notes.policy", "--strict")
    assert (result.exit_code, result.stdout) == (0, "1 file checked: 1 note\n")
    assert "notes.policy:2:32: note[GW504]: no rule reads `ward` and `age`" in result.stderr
    document = json.loads(run("check", "notes.policy", "--strict", "--format", "json").stdout)
    assert (document["ok"], document["warnings"], document["notes"]) == (True, 0, 1)
    sarif = json.loads(run("check", "notes.policy", "--format", "sarif").stdout)
    assert sarif["runs"][0]["results"][0]["level"] == "note"
    assert run("check", "notes.policy", "--format", "github").stdout.startswith("::notice title=GW504,")


def test_sarif_says_what_each_code_stands_for(run: Run, bad: Path) -> None:
    sarif = json.loads(run("check", "bad.policy", "--format", "sarif").stdout)["runs"][0]
    rules = {rule["id"]: rule["shortDescription"]["text"] for rule in sarif["tool"]["driver"]["rules"]}
    assert rules["GW208"] == "A value that an enumeration or set does not have"
    table = (Path(__file__).parents[2] / "docs" / "diagnostics.md").read_text("utf-8")
    sections = dict(section.split("\n", 1) for section in table.split("\n## ")[1:])
    told = "".join(sections[name] for name in REPORTED)
    assert dict(re.findall(r"^\| (GW\d{3}) \| (.*) \|$", told, re.MULTILINE)) == MEANINGS
