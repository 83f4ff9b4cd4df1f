"""SARIF reports are valid against the published schema, GitHub's commands against its escaping rules."""

from __future__ import annotations

import json
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.cli.sarif import FINGERPRINT, to_github, to_sarif, uri_of
from gradwarden.policy.errors import Diagnostic, Severity
from gradwarden.policy.source import Source, Span
from tests.cli.conftest import POLICY, Run

SCHEMA = Path(__file__).parents[1] / "vectors" / "sarif" / "sarif-schema-2.1.0.json"
VALIDATOR = jsonschema.Draft202012Validator(
    json.loads(SCHEMA.read_text("utf-8-sig")),
    format_checker=jsonschema.FormatChecker(),  # `uri` is checked where rfc3987-syntax is installed
)


def validated(diagnostics: list[Diagnostic]) -> dict[str, Any]:
    log = json.loads(json.dumps(to_sarif(diagnostics)))
    VALIDATOR.validate(log)
    [run] = log["runs"]
    return dict(run)


def finding(text: str, start: int, end: int, name: str = "a.policy", code: str = "GW201") -> Diagnostic:
    return Diagnostic(code, "undeclared", Span(Source(name, text), start, end), "declare it")


def region(diagnostic: Diagnostic) -> dict[str, int]:
    [result] = validated([diagnostic])["results"]
    return dict(result["locations"][0]["physicalLocation"]["region"])


def test_the_schema_refuses_what_is_no_sarif() -> None:
    log = to_sarif([finding("abc", 0, 1)])
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert not VALIDATOR.is_valid(log)
    assert not VALIDATOR.is_valid({"version": "2.1.0"})


def test_a_report_without_findings_is_valid() -> None:
    run = validated([])
    assert run["results"] == []
    assert run["columnKind"] == "utf16CodeUnits"


def test_a_finding_without_a_place_is_valid() -> None:
    [result] = validated([Diagnostic("GW441", "the program breaks its schema")])["results"]
    assert "locations" not in result


def test_an_unreadable_file_has_a_place_without_a_region() -> None:
    [result] = validated([finding("", 0, 0, "gone.policy")])["results"]
    assert result["locations"] == [{"physicalLocation": {"artifactLocation": {"uri": "gone.policy"}}}]


def test_columns_are_utf_16_code_units() -> None:
    text = '# first\nlet a = source == "🜁é" or x\n'
    at = text.index("x")
    assert region(finding(text, at, at + 1)) == {
        "startLine": 2,
        "startColumn": text.split("\n")[1].index("x") + 2,
        "endLine": 2,
        "endColumn": text.split("\n")[1].index("x") + 3,
    }


def test_a_finding_over_lines_ends_where_it_ends() -> None:
    assert region(finding("ab\ncd\n", 1, 4)) == {
        "startLine": 1,
        "startColumn": 2,
        "endLine": 2,
        "endColumn": 2,
    }


@given(st.text(alphabet=st.sampled_from("a\n🜁é\t "), max_size=30), st.data())
def test_regions_give_back_the_text_they_are_about(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    if not text:
        return
    where = region(finding(text, start, end))
    lines = [line.encode("utf-16-le") for line in text.split("\n")]

    def offset(line: int, column: int) -> int:
        return sum(len(before) // 2 + 1 for before in lines[: line - 1]) + column - 1

    first = offset(where["startLine"], where["startColumn"])
    last = offset(where["endLine"], where["endColumn"])
    assert text.encode("utf-16-le")[first * 2 : last * 2].decode("utf-16-le") == text[start:end]


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (PurePosixPath("policies/a b.policy"), "policies/a%20b.policy"),
        (PurePosixPath("/srv/ä.policy"), "file:///srv/%C3%A4.policy"),
        (PurePosixPath("a:b#c?.policy"), "a%3Ab%23c%3F.policy"),
        (PureWindowsPath("policies\\a b.policy"), "policies/a%20b.policy"),
        (PureWindowsPath("C:\\work\\ä.policy"), "file:///C:/work/%C3%A4.policy"),
        (PureWindowsPath("..\\x.policy"), "../x.policy"),
    ],
)
def test_paths_become_uris(path: PurePath, uri: str) -> None:
    assert uri_of(path) == uri


def test_every_rule_has_a_description_and_help() -> None:
    run = validated([finding("abc", 0, 1), finding("abc", 1, 2, code="GW101"), finding("abc", 2, 3)])
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["GW101", "GW201"]
    for rule in rules:
        assert rule["help"]["text"].startswith(rule["shortDescription"]["text"])
        assert rule["shortDescription"]["text"] != rule["id"]
    assert [rules[r["ruleIndex"]]["id"] for r in run["results"]] == [r["ruleId"] for r in run["results"]]


def fingerprints(*diagnostics: Diagnostic) -> list[str]:
    return [result["partialFingerprints"][FINGERPRINT] for result in validated([*diagnostics])["results"]]


def test_a_fingerprint_outlives_moved_lines_and_tells_findings_apart() -> None:
    text = "let a = x\nlet a = x\n"
    moved = "# a new line\n\n" + text
    prints = fingerprints(finding(text, 8, 9), finding(text, 18, 19))
    assert len(set(prints)) == 2
    assert fingerprints(finding(moved, 22, 23), finding(moved, 32, 33)) == prints
    assert fingerprints(finding(text, 8, 9, name="b.policy"))[0] not in prints
    assert fingerprints(finding(text, 8, 9, code="GW202"))[0] not in prints


def test_what_check_writes_is_valid(run: Run, here: Path) -> None:
    (here / "bad ä.policy").write_text(POLICY.replace("kind == a", 'kind == "🜁" and zz'))
    (here / "worse.policy").write_text("policy {\n")
    for arguments in (["."], [here], ["worse.policy", "gone.policy"]):
        log = json.loads(run("check", *arguments, "--format", "sarif").stdout)
        VALIDATOR.validate(log)
        assert log["runs"][0]["results"]


def read_command(line: str) -> tuple[str, dict[str, str], str]:
    """Read a workflow command as GitHub's runner does."""

    def unescape(text: str, pairs: list[tuple[str, str]]) -> str:
        for escaped, character in pairs:
            text = text.replace(escaped, character)
        return text

    data = [("%0D", "\r"), ("%0A", "\n"), ("%25", "%")]
    properties = [("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")]
    head, _, message = line.removeprefix("::").partition("::")
    command, _, listed = head.partition(" ")
    fields = dict(entry.split("=", 1) for entry in listed.split(","))
    return command, {k: unescape(v, properties) for k, v in fields.items()}, unescape(message, data)


awkward = st.text(alphabet=st.sampled_from("a%:,=\r\n0DA25é🜁;"), min_size=1, max_size=12)


@given(awkward, awkward, awkward, st.sampled_from(["error", "warning", "note"]))
def test_github_reads_back_what_was_written(name: str, text: str, help: str, severity: Severity) -> None:
    span = Span(Source(name, "some text\nmore"), 5, 9)
    line = to_github(Diagnostic("GW201", text, span, help, severity))
    assert "\n" not in line
    assert "\r" not in line
    command, fields, message = read_command(line)
    assert command == {"note": "notice"}.get(severity, severity)
    assert fields == {
        "title": "GW201",
        "file": PurePath(name).as_posix(),
        "line": "1",
        "endLine": "1",
        "col": "6",
        "endColumn": "10",
    }
    assert message == f"{text}\nhelp: {help}"


def test_github_gets_no_columns_over_several_lines() -> None:
    _, fields, _ = read_command(to_github(finding("ab\ncd\n", 1, 4)))
    assert fields == {"title": "GW201", "file": "a.policy", "line": "1", "endLine": "2"}
