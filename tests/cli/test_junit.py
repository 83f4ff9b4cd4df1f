"""JUnit reports keep to both common schemas: that of Jenkins (a test vector) and that of Apache Ant."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Run
from tests.cli.test_test import TESTS, WRONG

XSD = "{http://www.w3.org/2001/XMLSchema}"
SCHEMA = ElementTree.parse(Path(__file__).parents[1] / "vectors" / "junit" / "junit-10.xsd").getroot()

ANT = {
    "testsuites": ((), ()),
    "testsuite": (
        (*("package", "id", "name", "timestamp", "hostname", "tests", "failures", "errors", "time"),),
        ("skipped",),
    ),
    "properties": ((), ()),
    "property": (("name", "value"), ()),
    "testcase": (("name", "classname", "time"), ()),
    "failure": (("type",), ("message",)),
    "system-out": ((), ()),
    "system-err": ((), ()),
}
"""Required and optional attributes in Apache Ant's schema (JUnit.xsd by Windy Road): there are no others."""

ORDER = ["properties", "testcase", "system-out", "system-err"]


@pytest.fixture
def report(run: Run, policy: Path) -> ElementTree.Element:
    (policy.parent / "sample_test.yaml").write_text(WRONG)
    (policy.parent / "other_test.yaml").write_text(TESTS.replace("name: long", 'name: "\\u0001<l&ng>"'))
    return ElementTree.fromstring(run("test", ".", "--format", "junit").stdout)


def declared(name: str) -> ElementTree.Element:
    [element] = SCHEMA.findall(f"{XSD}element[@name='{name}']")
    return element


def test_every_element_is_one_of_jenkins_schema(report: ElementTree.Element) -> None:
    patterns = {
        kind.get("name"): kind.find(f".//{XSD}pattern").get("value")  # type: ignore[union-attr]
        for kind in SCHEMA.findall(f"{XSD}simpleType")
    }
    for element in report.iter():
        rule = declared(element.tag)
        known = {attribute.get("name"): attribute for attribute in rule.iter(f"{XSD}attribute")}
        assert set(element.attrib) <= set(known)
        assert {n for n, a in known.items() if a.get("use") == "required"} <= set(element.attrib)
        for name, value in element.attrib.items():
            pattern = patterns.get(known[name].get("type"))
            assert pattern is None or re.fullmatch(pattern, value), (name, value)
        children = {child.get("ref") for child in rule.iter(f"{XSD}element")} - {None}
        assert {child.tag for child in element} <= children


def test_every_element_is_one_of_ants_schema(report: ElementTree.Element) -> None:
    for element in report.iter():
        required, optional = ANT[element.tag]
        assert set(required) <= set(element.attrib) <= {*required, *optional}
    for number, suite in enumerate(report):
        assert suite.get("id") == str(number)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp", ""))
        assert suite.get("hostname")
        tags = [child.tag for child in suite]
        assert tags == sorted(tags, key=ORDER.index)
        assert [tags.count(tag) for tag in ORDER if tag != "testcase"] == [1, 1, 1]


def test_counts_are_those_of_the_cases(report: ElementTree.Element) -> None:
    for suite in report:
        assert suite.get("tests") == str(len(suite.findall("testcase")))
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
    assert sum(int(suite.get("failures", "0")) for suite in report) == 1


def test_a_failure_says_where_what_and_why(report: ElementTree.Element) -> None:
    [failure] = report.iter("failure")
    text = failure.text or ""
    assert text.startswith(
        "sample_test.yaml:3:5\nweights\n  - expected  {deep: 0.75}\n  + decided   {deep: 0.5}"
    )
    assert "reach shallow at 1, deep at 0.5" in text
    assert failure.get("message") == "weights: expected {deep: 0.75}, decided {deep: 0.5}"


def test_characters_that_xml_lacks_are_replaced(report: ElementTree.Element) -> None:
    names = [case.get("name") for case in report.iter("testcase")]
    assert "others: \N{REPLACEMENT CHARACTER}<l&ng>" in names
