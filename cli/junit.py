"""Test results as JUnit XML, which CI systems read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import click

from gradwarden.cli.explanation import explanation_lines
from gradwarden.policy.evaluation.explain import explain

if TYPE_CHECKING:
    from gradwarden.policy.program import Program
    from gradwarden.policy.testing.runner import CaseResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(suites: Sequence[tuple[str, Program, Sequence[CaseResult]]]) -> str:
    """Return one `testsuites` document; each policy is a suite (path, program, results)."""
    root = ElementTree.Element("testsuites", name="gradwarden")
    for path, program, results in suites:
        failures = sum(not result.passed for result in results)
        suite = ElementTree.SubElement(
            root, "testsuite", name=_clean(path), tests=str(len(results)), failures=str(failures), errors="0"
        )
        for result in results:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=_clean(path),
                name=_clean(result.case.name),
                file=_clean(result.case.span.source.name),
                line=str(result.case.span.line),
            )
            if not result.passed:
                told = [f"{m.key}: expected {m.expected}, decided {m.actual}" for m in result.mismatches]
                failure = ElementTree.SubElement(case, "failure", message=_clean("; ".join(told)))
                explanation = explain(program, result.case.example, result.case.context)
                lines = (*told, "", *explanation_lines(explanation))
                failure.text = _clean(click.unstyle("\n".join(lines)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _clean(text: str) -> str:
    """Replace the characters that no XML document may hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
