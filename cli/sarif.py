"""Findings as SARIF 2.1.0 (OASIS) and as GitHub workflow commands: every verb that reports findings uses it.

Columns count UTF-16 code units, which is what viewers of SARIF assume (section 3.14.17). Every result has a
fingerprint that outlives moved lines (3.27.17): of its code, its file and the text of its line, and which of
the equal ones it is.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import PurePath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from gradwarden.cli.codes import MEANINGS
from gradwarden.cli.diagnostics import to_data
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.linting.registry import RULES
from gradwarden.policy.source import Span

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "gradwarden/v1"

LINTS = {rule.code for rule in RULES}
"""Codes that have a page of their own."""

_PROPERTIES = {"line": "line", "column": "col", "end_line": "endLine", "end_column": "endColumn"}
"""What GitHub calls the places of a finding."""


def to_sarif(
    diagnostics: Sequence[Diagnostic], verb: str = "check", meanings: Mapping[str, str] = MEANINGS
) -> dict[str, Any]:
    """Return a SARIF log with one run.

    `verb` keeps the findings of several runs apart in code scanning; `meanings` says what codes stand for.
    """
    codes = sorted({d.code for d in diagnostics})
    seen: Counter[tuple[str, str, str]] = Counter()
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "gradwarden",
                        "semanticVersion": version("gradwarden"),
                        "rules": [_rule(code, meanings) for code in codes],
                    }
                },
                "automationDetails": {"id": f"gradwarden/{verb}"},
                "columnKind": "utf16CodeUnits",
                "results": [_result(d, codes.index(d.code), seen) for d in diagnostics],
            }
        ],
    }


def _rule(code: str, meanings: Mapping[str, str]) -> dict[str, Any]:
    """Return the descriptor of a code; code scanning shows its texts beside every result."""
    meaning = meanings.get(code, code)
    description = f"{meaning[0].upper()}{meaning[1:]}"
    more = f"; `gradwarden check --explain {code}` shows examples" if code in LINTS else ""
    return {
        "id": code,
        "name": code,
        "shortDescription": {"text": description},
        "help": {"text": f"{description}{more}."},
    }


def _result(diagnostic: Diagnostic, rule: int, seen: Counter[tuple[str, str, str]]) -> dict[str, Any]:
    text = diagnostic.message + (f" ({diagnostic.help})" if diagnostic.help else "")
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "ruleIndex": rule,
        "level": diagnostic.severity,
        "message": {"text": text},
        "partialFingerprints": {FINGERPRINT: _fingerprint(diagnostic, seen)},
    }
    if diagnostic.span is not None:
        location: dict[str, Any] = {
            "artifactLocation": {"uri": uri_of(PurePath(diagnostic.span.source.name))}
        }
        if diagnostic.span.source.text:
            location["region"] = _region(diagnostic.span)
        result["locations"] = [{"physicalLocation": location}]
    return result


def _fingerprint(diagnostic: Diagnostic, seen: Counter[tuple[str, str, str]]) -> str:
    span = diagnostic.span
    line = span.source.line(span.line).strip() if span else diagnostic.message
    key = (diagnostic.code, span.source.name if span else "", line)
    seen[key] += 1
    return hashlib.sha256("\0".join([*key, str(seen[key])]).encode("utf-8", "surrogatepass")).hexdigest()


def _region(span: Span) -> dict[str, int]:
    """Return where a span is; the end is exclusive."""
    first, start = _position(span, span.start)
    last, end = _position(span, max(span.start, span.end))
    return {"startLine": first, "startColumn": start, "endLine": last, "endColumn": end}


def _position(span: Span, offset: int) -> tuple[int, int]:
    """Return the 1-based line and the column in UTF-16 code units."""
    line, column = span.source.position(offset)
    before = span.source.line(line)[: column - 1]
    return line, len(before.encode("utf-16-le", "surrogatepass")) // 2 + 1


def uri_of(path: PurePath) -> str:
    """Return a path as a URI, or as a relative reference where it is relative."""
    if path.is_absolute():
        return path.as_uri()
    text = path.as_posix()
    return quote(text if isinstance(path, PureWindowsPath) else os.fsencode(text))


def to_github(diagnostic: Diagnostic) -> str:
    """Return a finding as a workflow command, which GitHub shows beside the changed line.

    Columns are left out where a finding spans several lines, as GitHub takes none there.
    """
    data = to_data(diagnostic)
    properties = {"title": diagnostic.code}
    if data["file"] is not None:
        places = ["line", "column", "end_line", "end_column"]
        if data["line"] != data["end_line"]:
            places = ["line", "end_line"]
        properties |= {"file": PurePath(data["file"]).as_posix()}
        properties |= {_PROPERTIES[place]: str(data[place]) for place in places}
    listed = ",".join(f"{key}={_escape(value, extra=':,')}" for key, value in properties.items())
    text = diagnostic.message + (f"\nhelp: {diagnostic.help}" if diagnostic.help else "")
    command = "notice" if diagnostic.severity == "note" else diagnostic.severity
    return f"::{command} {listed}::{_escape(text)}"


def _escape(text: str, extra: str = "") -> str:
    """Escape a value of a workflow command; `%` first, since it begins every escape."""
    for character in "%\r\n" + extra:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
