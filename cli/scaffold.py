"""A first policy from a manifest: its attributes derived from the records, its tests written to match."""

from __future__ import annotations

import json
import re
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

from gradwarden.cli.failures import InputError
from gradwarden.cli.manifest import FORMATS, open_manifest
from gradwarden.cli.output import progress
from gradwarden.policy.checking.check_schema import MAX_ATTRIBUTES
from gradwarden.policy.deriving import Column, name_fault, suggested_name
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import AttributeSpec, Program

NOTHING_DECLARED = Program("", 1, 1, 1, (), (), (), (), (), (), (), ())
"""Under it, cells of CSV stay texts."""


@frozen
class Derived:
    """What a manifest gives. malformed: lines that hold no record. faults: why no policy can be written."""

    columns: tuple[Column, ...]
    records: int
    malformed: int
    faults: tuple[Diagnostic, ...]


def derive(path: Path) -> Derived:
    """Read a manifest once. Raises InputError, OSError."""
    cells = FORMATS.get(path.suffix.lower()) == "CSV"
    manifest = open_manifest(path, NOTHING_DECLARED)
    columns: dict[str, Column] = {}
    records = malformed = done = 0
    with progress(f"reading {path.name}", manifest.total, manifest.unit) as advance:
        for piece in manifest.pieces:
            for name in getattr(piece.columns, "column_names", piece.columns):
                column = columns.setdefault(str(name), Column(str(name), cells))
                if len(columns) > MAX_ATTRIBUTES:
                    raise InputError(f"`{path}` has more than {MAX_ATTRIBUTES:,} attributes")
                column.see(_values(piece.columns[name]))
            records += len(piece.places)
            malformed += len(piece.malformed)
            advance(piece.done - done)
            done = piece.done
    if not records:
        raise InputError(f"`{path}` holds no records")
    for column in columns.values():
        column.records = records
    return Derived(tuple(columns.values()), records, malformed, tuple(_faults(columns)))


def _values(column: Any) -> list[Any]:
    if isinstance(column, list):
        return column
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, ImportError):  # a date or instant that `datetime` cannot hold
        from gradwarden.policy.evaluation.arrow import scalar_value

        return [scalar_value(scalar) for scalar in column]
    return values


def _faults(columns: dict[str, Column]) -> list[Diagnostic]:
    found = []
    for name, column in columns.items():
        if wrong := name_fault(name):
            help = f"rename it in the data, for example to `{suggested_name(name, columns)}`"
            found.append(Diagnostic("GW494", f"the name `{name}` {wrong}", help=help))
        if wrong := column.fault():
            help = "give it values of one type, or leave it out of the metadata"
            found.append(Diagnostic("GW495", f"no type holds `{name}`: {wrong}", help=help))
    return found


def policy_text(derived: Derived, source: Path) -> str:
    """Return the policy in the canonical layout."""
    from gradwarden.policy.syntax.format import format_policy

    name = "".join(c if c.isprintable() else "?" for c in source.name)
    fields = "\n".join(column.declaration() for column in derived.columns)
    return format_policy(
        _filled("derived.policy", SOURCE=name, RECORDS=f"{derived.records:,}", FIELDS=fields)
    )


def sample_tests(attributes: tuple[AttributeSpec, ...]) -> str:
    """Return tests of the derived policy: YAML, with values in the form of JSON."""
    example = {spec.name: _sample(spec) for spec in attributes if not spec.optional}
    other = suggested_name("undeclared", [spec.name for spec in attributes])
    fitting, broken = (json.dumps(each, ensure_ascii=False) for each in (example, {**example, other: 1}))
    return _filled("derived_test.yaml", FITTING=fitting, BROKEN=broken, OTHER=other)


def _filled(template: str, **texts: str) -> str:
    """Return a template with its capitalised words replaced, all at once: a text may hold another's word."""
    text = (files("gradwarden.cli") / "templates" / template).read_text("utf-8")
    return re.sub("|".join(texts), lambda match: texts[match[0]], text)


def _sample(spec: AttributeSpec) -> object:
    """Return a value that fits, made up: no record of the manifest is copied."""
    match spec.type:
        case "bool":
            return False
        case "number":
            return spec.lo // 10**spec.places  # ranges that are derived end on whole numbers
        case "enum":
            return spec.values[0]
        case "set":
            return []
        case "date":
            return str(date(2026, 1, 1))
        case _:
            return "text"
