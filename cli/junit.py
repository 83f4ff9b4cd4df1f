"""Test results as JUnit XML, which CI systems read.

The elements and attributes are those that both common schemas allow, that of Jenkins (junit-10.xsd) and the
stricter one of Apache Ant (JUnit.xsd, windyroad): every attribute they require is there and no other, which
is why the place of a case stands in the text of its failure.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import click

from gradwarden.cli.case_report import counterexample_lines, difference_lines
from gradwarden.cli.explanation import explanation_lines
from gradwarden.policy.evaluation.explain import explain

if TYPE_CHECKING:
    from gradwarden.cli.test_report import Suite
    from gradwarden.policy.testing.runner import CaseResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(suites: Sequence[Suite], now: datetime) -> str:
    """Return one `testsuites` document; each policy is a suite. `now` is when the tests ran."""
    root = ElementTree.Element("testsuites")
    for number, suite in enumerate(suites):
        element = ElementTree.SubElement(
            root,
            "testsuite",
            id=str(number),
            package="gradwarden",
            name=_clean(str(suite.policy)),
            timestamp=now.replace(tzinfo=None).isoformat(timespec="seconds"),
            hostname=_clean(platform.node() or "localhost"),
            tests=str(len(suite.results)),
            failures=str(len(suite.failures)),
            errors="0",
            skipped="0",
            time=f"{sum(suite.seconds):.3f}",
        )
        properties = ElementTree.SubElement(element, "properties")
        ElementTree.SubElement(properties, "property", name="policy", value=_clean(suite.program.name))
        for result, seconds in zip(suite.results, suite.seconds, strict=True):
            _add_case(element, suite, result, seconds)
        ElementTree.SubElement(element, "system-out")
        ElementTree.SubElement(element, "system-err")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _add_case(suite_element: ElementTree.Element, suite: Suite, result: CaseResult, seconds: float) -> None:
    case = ElementTree.SubElement(
        suite_element,
        "testcase",
        classname=_clean(str(suite.policy)),
        name=_clean(result.case.name),
        time=f"{seconds:.3f}",
    )
    if result.passed:
        return
    told = "; ".join(f"{m.key}: expected {m.expected}, decided {m.actual}" for m in result.mismatches)
    failure = ElementTree.SubElement(case, "failure", message=_clean(told), type="expectation")
    lines = [str(result.case.span), *difference_lines(result), *counterexample_lines(result), ""]
    lines += explanation_lines(explain(suite.program, result.case.example, result.case.context))
    failure.text = _clean(click.unstyle("\n".join(lines)))


def _clean(text: str) -> str:
    """Replace the characters that no XML document may hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
