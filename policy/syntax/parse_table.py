"""The table that `automaton` runs: made from the grammar by Lark, and kept beside it as `policy.table.json`.

To make it takes longer than to check a policy, so the file is part of the distribution. It names the grammar
that it was made from; one that is out of date is not used, and the table is made anew in memory.
After a change of the grammar, `python -m gradwarden.policy.syntax.grammar` writes the file.
"""

from __future__ import annotations

import json
from hashlib import sha256
from importlib.resources import files
from typing import Any

from gradwarden.policy.syntax.automaton import Rule, Table

NAME = "policy.table.json"


def grammar_text() -> str:
    return (files("gradwarden.grammars") / "policy.lark").read_text("utf-8")


def digest(grammar: str) -> str:
    return sha256(grammar.encode()).hexdigest()


def load_table() -> Table:
    """Return the table of the grammar, from its file if that is up to date."""
    grammar = grammar_text()
    stored = files("gradwarden.grammars") / NAME
    data = json.loads(stored.read_text("utf-8")) if stored.is_file() else {}
    if data.get("grammar") != digest(grammar):
        from gradwarden.policy.syntax.grammar import table_data

        data = table_data(grammar)
    return table_of(data)


def table_of(data: dict[str, Any]) -> Table:
    """Return the table that its JSON form describes."""
    rules = [Rule(*rule) for rule in data["rules"]]
    patterns = [(pattern, words) for pattern, words in data["patterns"]]
    return Table(data["start"], data["end"], rules, data["actions"], data["lexers"], patterns)
