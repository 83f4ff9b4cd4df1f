"""The language reference cannot lag behind the grammar: what the grammar has, the page shows and lists."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from lark import Lark
from lark.lexer import PatternStr

from gradwarden.policy.checking.clauses import ALLOWED
from tests.docs.pages import DOCS, blocks, examples

PAGE = (DOCS / "language.md").read_text("utf-8")


class Coverage:
    """A parser of the grammar that notes which of its alternatives are used.

    uses: for each rule, and each keyword that stands in an alternative of it, whether a text used it. An
    alternative that repeats or leaves out something is many to the parser; what a reader needs is that each
    construct, and each word of it, is shown.
    """

    def __init__(self) -> None:
        text = (files("gradwarden.grammars") / "policy.lark").read_text("utf-8")
        self._lark = Lark(text, parser="lalr", lexer="contextual", keep_all_tokens=True)
        self.keywords = {
            terminal.name: terminal.pattern.value
            for terminal in self._lark.terminals
            if isinstance(terminal.pattern, PatternStr)
        }
        callbacks: dict[Any, Any] = self._lark.parser.parser.parser.callbacks
        self.uses: dict[tuple[str, str], bool] = {}
        for rule in self._lark.rules:
            for part in self._parts(rule):
                self.uses[part] = False
            callbacks[rule] = self._noting(rule, callbacks[rule])

    def _parts(self, rule: Any) -> list[tuple[str, str]]:
        name = str(rule.origin.name)
        words = [self.keywords[symbol.name] for symbol in rule.expansion if symbol.name in self.keywords]
        return [(name, ""), *((name, word) for word in words)]

    def _noting(self, rule: Any, callback: Any) -> Any:
        parts = self._parts(rule)

        def note(children: Any) -> Any:
            self.uses.update(dict.fromkeys(parts, True))
            return callback(children)

        return note

    def read(self, text: str) -> None:
        self._lark.parse(text)


@cache
def coverage() -> Coverage:
    found = Coverage()
    for example in examples("language.md"):
        if not example.codes:
            for text in (example.text, *example.files.values()):
                found.read(text)
    return found


def words() -> dict[str, str]:
    """Return the page's list of words: each with the place that explains it."""
    section = PAGE.split("## The words\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (.+) \| \[.+\]\(#([\w-]+)\) \|$", section, re.MULTILINE)
    return {word: anchor for listed, anchor in rows for word in re.findall(r"`([^`]+)`", listed)}


def anchors() -> dict[str, str]:
    """Return the text of each section by its anchor."""
    parts = re.split(r"^(#{2,3}) (.+)$", re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S), flags=re.M)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in parts[2::3])
    return dict(zip(plain, parts[3::3], strict=True))


def test_every_rule_and_word_of_the_grammar_is_used_by_an_example() -> None:
    missing = sorted(part for part, used in coverage().uses.items() if not used)
    assert missing == []


def test_every_word_of_the_grammar_is_in_the_list_of_words() -> None:
    letters = {word for word in coverage().keywords.values() if word.isalpha()}
    assert set(words()) - {"at most", "record", "id"} == letters


def test_each_word_is_listed_where_it_is_explained() -> None:
    sections = anchors()
    assert set(words().values()) <= sections.keys()
    shown = {anchor: text + "".join(re.findall(r"`[^`\n]+`", text)) for anchor, text in sections.items()}
    lost = [word for word, anchor in words().items() if not re.search(rf"\b{word}\b", shown[anchor])]
    assert lost == []


def test_words_that_no_attribute_may_have_are_all_named() -> None:
    """Every word that the page calls reserved is refused as an attribute, and no other word is."""
    from gradwarden.policy import PolicyError, parse_policy

    [listed] = re.findall(r"These words cannot: `([^`]+)`", PAGE)
    reserved = set(listed.split()) | {"id"}
    for word in {*coverage().keywords.values(), "id", "source"}:
        if not word.isalpha():
            continue
        text = (
            f"policy p version 1 language 1\nexamples {{ {word} : bool }}\n"
            f"model {{ a = rest }}\ndepth d {{ when {word}  reach a }}\n"
        )
        try:
            parse_policy(text)
            fits = True
        except PolicyError:
            fits = False
        assert fits == (word not in reserved), word


def test_the_clauses_of_each_kind_of_rule_are_listed() -> None:
    section = PAGE.split("\n## Rules\n", 1)[1]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section.split("\n### ", 1)[0], re.MULTILINE)
    assert {kind: set(re.findall(r"`([^`]+)`", listed)) for kind, listed in rows} == {
        kind: set(clauses) for kind, clauses in ALLOWED.items()
    }


def test_the_prelude_is_laid_out_as_the_formatter_lays_it_out() -> None:
    from gradwarden.policy import format_policy

    [prelude] = [b.text for b in blocks(PAGE) if b.kind == "policy" and b.words == ("prelude",)]
    assert format_policy(prelude) == prelude
