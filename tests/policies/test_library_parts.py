"""The schemas and modules of the library: no headers, no grants, names of their own, all of them shipped."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from gradwarden.policy.source import Source
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.parse import parse

FOLDER = Path(str(files("gradwarden.policies")))
SCHEMAS = sorted(FOLDER.glob("schemas/*.policy"))
MODULES = sorted(FOLDER.glob("modules/*.policy"))
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def items(path):
    file, faults = parse(Source(str(path), path.read_text("utf-8")))
    assert not faults
    return file.items


def name(path):
    return path.stem


def test_the_parts_are_found():
    assert {path.stem for path in SCHEMAS} >= {"depth", "depth_quarantine", "rights"}
    assert {path.stem for path in MODULES} >= {"rights", "dual_use"}


def test_every_part_is_shipped():
    data = tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]["package-data"]["gradwarden.policies"]
    shipped = {path for pattern in data for path in FOLDER.glob(pattern)}
    assert shipped == {*FOLDER.rglob("*.policy"), *FOLDER.rglob("*_test.yaml")}


@pytest.mark.parametrize("path", SCHEMAS, ids=name)
def test_a_schema_declares_and_decides_nothing(path):
    allowed = s.Examples | s.Signals | s.Model | s.Import | s.Phases
    assert [item for item in items(path) if not isinstance(item, allowed)] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_names_what_it_admits_and_grants_nothing(path):
    found = items(path)
    assert f"{path.stem}_admissible" in {item.name.text for item in found if isinstance(item, s.Let)}
    assert [item for item in found if isinstance(item, s.Header | s.Model | s.MaxWeight | s.Examples)] == []
    assert [item.name.text for item in found if isinstance(item, s.Rule) and item.kind == "depth"] == []
    assert any(isinstance(item, s.Rule) for item in found)
    assert any(isinstance(item, s.Assertion) for item in found)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_the_names_of_a_module_begin_with_its_own(path):
    named = [item for item in items(path) if isinstance(item, s.Rule | s.Assertion | s.Let | s.EntropyBand)]
    assert [item.name.text for item in named if not item.name.text.startswith(f"{path.stem}_")] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_policy_of_the_library_imports_it(path):
    importing = [
        policy.stem
        for policy in FOLDER.glob("*.policy")
        for item in items(policy)
        if isinstance(item, s.Import) and (policy.parent / item.path.text).resolve() == path.resolve()
    ]
    assert importing


def test_an_attribute_is_declared_in_one_schema():
    declared = {}
    for path in SCHEMAS:
        for item in items(path):
            if isinstance(item, s.Examples):
                for field in item.fields:
                    declared.setdefault(field.name.text, []).append(path.stem)
    assert {attribute: where for attribute, where in declared.items() if len(where) > 1} == {}
