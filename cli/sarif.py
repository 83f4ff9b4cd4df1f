"""Findings as SARIF 2.1.0 (OASIS) and as GitHub workflow commands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradwarden.cli.codes import MEANINGS
from gradwarden.cli.diagnostics import to_data
from gradwarden.policy.errors import Diagnostic

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def to_sarif(diagnostics: Sequence[Diagnostic]) -> dict[str, Any]:
    """Return a SARIF log with one run. Columns count characters (`unicodeCodePoints`)."""
    codes = sorted({d.code for d in diagnostics})
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "gradwarden",
                        "semanticVersion": version("gradwarden"),
                        "rules": [_rule(code) for code in codes],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(d, codes.index(d.code)) for d in diagnostics],
            }
        ],
    }


def _rule(code: str) -> dict[str, Any]:
    """Return the descriptor of a code; code scanning shows its text beside every result."""
    meaning = MEANINGS.get(code, code)
    return {"id": code, "shortDescription": {"text": meaning[0].upper() + meaning[1:]}}


def _result(diagnostic: Diagnostic, rule: int) -> dict[str, Any]:
    text = diagnostic.message + (f" ({diagnostic.help})" if diagnostic.help else "")
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "ruleIndex": rule,
        "level": diagnostic.severity,
        "message": {"text": text},
    }
    if diagnostic.span is not None:
        data = to_data(diagnostic)
        result["locations"] = [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(data["file"])},
                    "region": {
                        "startLine": data["line"],
                        "startColumn": data["column"],
                        "endLine": data["end_line"],
                        "endColumn": data["end_column"],
                    },
                }
            }
        ]
    return result


def _uri(name: str) -> str:
    path = Path(name)
    return path.as_uri() if path.is_absolute() else quote(os.fsencode(path.as_posix()))


def to_github(diagnostic: Diagnostic) -> str:
    """Return a finding as a workflow command, which GitHub shows beside the changed line."""
    data = to_data(diagnostic)
    properties = {"title": diagnostic.code}
    if data["file"] is not None:
        properties |= {"file": data["file"], "line": str(data["line"]), "col": str(data["column"])}
        properties |= {"endLine": str(data["end_line"]), "endColumn": str(data["end_column"])}
    listed = ",".join(f"{key}={_escape(value, extra=':,')}" for key, value in properties.items())
    text = diagnostic.message + (f"\nhelp: {diagnostic.help}" if diagnostic.help else "")
    command = "notice" if diagnostic.severity == "note" else diagnostic.severity
    return f"::{command} {listed}::{_escape(text)}"


def _escape(text: str, extra: str = "") -> str:
    for character in "%\r\n" + extra:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
