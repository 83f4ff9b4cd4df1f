"""The table that `automaton` runs: made from the grammar by Lark, and kept beside it as `policy.table.json`.

To make it takes longer than to check a policy, so the file is part of the distribution. It names the grammar
that it was made from; one that is out of date is not used, and the table is made anew in memory.
After a change of the grammar, `python -m gradwarden.policy.syntax.grammar` writes the file.
"""

from __future__ import annotations

import json
from pkgutil import get_data
from typing import Any
from zlib import crc32

from gradwarden.policy.syntax.automaton import Rule, Table

NAME = "policy.table.json"


def grammar_text() -> str:
    grammar = get_data("gradwarden.grammars", "policy.lark")
    assert grammar is not None, "the grammar is part of the distribution"
    return grammar.decode("utf-8")


def checksum(grammar: str) -> int:
    return crc32(grammar.encode("utf-8"))


def load_table() -> Table:
    """Return the table of the grammar, from its file if that is up to date."""
    grammar = grammar_text()
    data = _stored()
    if data.get("grammar") != checksum(grammar):
        from gradwarden.policy.syntax.grammar import table_data

        data = table_data(grammar)
    return table_of(data)


def _stored() -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(get_data("gradwarden.grammars", NAME) or b"{}")
    except FileNotFoundError:
        return {}
    return data


def table_of(data: dict[str, Any]) -> Table:
    """Return the table that its JSON form describes."""
    rules = [Rule(*rule) for rule in data["rules"]]
    patterns = [(pattern, words) for pattern, words in data["patterns"]]
    return Table(
        data["start"],
        data["end"],
        rules,
        data["actions"],
        data["lexers"],
        patterns,
        data["skipped"],
        data["terminals"],
    )
