"""What Lark makes of the grammar: a parser, which texts with faults need, and the table of `parse_table`.

python -m gradwarden.policy.syntax.grammar     writes the table beside the grammar
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from lark import Lark
from lark.lexer import BasicLexer, PatternStr, TerminalDef
from lark.parsers.lalr_analysis import Shift

from gradwarden.policy.syntax.automaton import Lexer
from gradwarden.policy.syntax.parse_table import NAME, checksum, grammar_text

WORD, SIGN = "NAME", "SIGN"
"""The groups of a pattern whose texts are told apart by looking them up."""


def lark_of(grammar: str, transformer: Any = None) -> Lark:
    """Return the parser of a grammar. Its reductions call the methods of the transformer, if there is one."""
    return Lark(
        grammar,
        parser="lalr",
        lexer="contextual",
        keep_all_tokens=True,
        maybe_placeholders=False,
        edit_terminals=_whole_word,
        transformer=transformer,
    )


def _whole_word(terminal: TerminalDef) -> None:
    """Let a keyword end where its word ends, so that `step0` is no `step`.

    The pattern is changed in place: the lexer tells keywords by their exact class.
    """
    pattern = terminal.pattern
    if isinstance(pattern, PatternStr) and pattern.value.isalpha():
        whole = f"{pattern.to_regexp()}(?![A-Za-z0-9_])"
        vars(pattern)["to_regexp"] = lambda: whole


def table_data(grammar: str) -> dict[str, Any]:
    """Return the JSON form of the table of a grammar. It depends on nothing but the grammar."""
    lark = lark_of(grammar)
    table = lark.parser.parser.parser.parse_table
    (start,), (end,) = table.start_states.values(), table.end_states.values()
    order = _order(table.states, start)
    rules: dict[Any, int] = {}
    actions: list[dict[str, int]] = []
    for state in order:
        row = {}
        for symbol, (action, argument) in sorted(table.states[state].items()):
            row[str(symbol)] = (
                order[argument] if action is Shift else -1 - rules.setdefault(argument, len(rules))
            )
        actions.append(row)
    lexers: dict[str, int] = {}
    by_state = [
        lexers.setdefault(json.dumps(_lexer(lark, lark.parser.lexer.lexers[state])), len(lexers))
        for state in order
    ]
    return {
        "grammar": checksum(grammar),
        "start": order[start],
        "end": order[end],
        "rules": [_rule(rule) for rule in rules],
        "skipped": _skipped(lark),
        "terminals": {terminal.name: _regexp(terminal) for terminal in _read(lark)},
        "patterns": [json.loads(lexer) for lexer in lexers],
        "lexers": by_state,
        "actions": actions,
    }


def _order(states: Any, start: int) -> dict[int, int]:
    """Number the states as they are reached from the start; Lark's numbers depend on the run."""
    order = {start: 0}
    pending = [start]
    for state in pending:
        for _, (action, argument) in sorted(states[state].items()):
            if action is Shift and argument not in order:
                order[argument] = len(order)
                pending.append(argument)
    return order


def _rule(rule: Any) -> list[Any]:
    single, grows = bool(rule.options.expand1), rule.expansion[:1] == [rule.origin]
    # INVARIANT: a rule marked `?` has one part where it has one symbol.
    assert not (single and any(not part.is_term and part.name.startswith("_") for part in rule.expansion))
    return [str(rule.origin.name), len(rule.expansion), single, grows]


def _read(lark: Lark) -> list[TerminalDef]:
    """Return the terminals that are not skipped, by name."""
    read = (terminal for terminal in lark.terminals if terminal.name not in lark.ignore_tokens)
    return sorted(read, key=lambda terminal: terminal.name)


def _skipped(lark: Lark) -> str:
    """Return the pattern of what stands between tokens."""
    ignored = sorted(_regexp(x) for x in lark.terminals if x.name in lark.ignore_tokens)
    return f"(?:{'|'.join(ignored)})*+"


def _regexp(terminal: TerminalDef) -> str:
    regexp = terminal.pattern.to_regexp()
    # INVARIANT: the groups of a pattern are its tokens.
    assert re.compile(regexp).groups == 0, f"write (?: in {terminal.name}"
    return regexp


def _lexer(lark: Lark, lexer: BasicLexer) -> Lexer:
    """Return the pattern of what a state takes, and the terminals of the keywords and signs in it.

    Keywords are looked up among the words, so that a pattern need not try each. A word that is not among them
    where no name may stand is still a NAME: the state has no action for it.
    """
    patterns, words, signs = {}, {}, {}
    for terminal in lexer.terminals:  # by priority, the longer first
        text = terminal.pattern.value
        if terminal.name in lexer.ignore_types:
            continue
        if not isinstance(terminal.pattern, PatternStr):
            patterns[terminal.name] = _regexp(terminal)
        elif text.isalpha():
            words[text] = terminal.name
        else:
            signs[text] = terminal.name
    if words:
        (word,) = (terminal.pattern for terminal in lark.terminals if terminal.name == WORD)
        patterns.setdefault(WORD, word.to_regexp())
    if signs:
        patterns[SIGN] = "|".join(map(re.escape, signs))
    groups = [f"(?P<{name}>{regexp})" for name, regexp in patterns.items()]
    # The empty alternative matches where nothing else does: at the end, or at a fault.
    pattern = f"{_skipped(lark)}(?:{'|'.join([*groups, ''])})"
    return pattern, {name: table for name, table in ((WORD, words), (SIGN, signs)) if table}


def main() -> None:
    data = table_data(grammar_text())
    lines = ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in data.items())
    Path(str(files("gradwarden.grammars") / NAME)).write_text(f"{{\n{lines}\n}}\n", "utf-8")


def _lines(value: object) -> str:
    """Return JSON, a list with one item a line where the items are long."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return "[\n" + ",\n".join(json.dumps(item, separators=(",", ":")) for item in value) + "\n]"
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main()
