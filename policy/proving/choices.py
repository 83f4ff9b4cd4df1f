"""Values of which a program can tell only a few apart: strings and enumerations.

A *choice* is known by which tests it passes. Where the combinations that occur are few, each has a number and
a representative, and the variable ranges over the numbers: exact, and without any theory of strings. Where
string tests are too many for that, z3's own strings take over.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from gradwarden.policy.evaluation.texts import text_holds
from gradwarden.policy.program import Text, TextTest
from gradwarden.policy.proving import languages
from gradwarden.policy.proving.smt import TRUE, Truth, disjunction, z3

GREATEST_CHARACTER = 0x2FFFF
"""The last character that z3's strings know."""


class Choice(Protocol):
    """A symbolic value that is only ever tested."""

    def domain(self) -> list[Truth]:
        """Return what holds of every value."""

    def passes(self, test: Hashable) -> Truth:
        """Return whether the value passes a test that was declared."""

    def equals(self, value: str) -> Truth:
        """Return whether the value is one that no test tells from `value`."""

    def fits(self, longest: int) -> Truth:
        """Return whether the value has at most so many characters."""

    def read(self, model: Any) -> str:
        """Return the value in a model."""


class Listed:
    """A choice among few: one representative for each combination of outcomes."""

    def __init__(self, name: str, tests: Sequence[Hashable], outcomes: Mapping[tuple[bool, ...], str]):
        self._numbers = {outcome: number for number, outcome in enumerate(outcomes)}
        self._values: tuple[str, ...] = tuple(outcomes.values())
        self._tests = {test: index for index, test in enumerate(tests)}
        width = max(1, (len(outcomes) - 1).bit_length())
        self._variable = z3.BitVec(name, width) if len(outcomes) > 1 else None

    def domain(self) -> list[Truth]:
        if self._variable is None or len(self._values) == 1 << self._variable.size():
            return []
        return [z3.ULE(self._variable, len(self._values) - 1)]

    def passes(self, test: Hashable) -> Truth:
        index = self._tests[test]
        return self._among([number for outcome, number in self._numbers.items() if outcome[index]])

    def outcome(self, outcome: tuple[bool, ...]) -> Truth:
        """Return whether the value has this combination of outcomes."""
        return self._among([self._numbers[outcome]])

    def _among(self, numbers: list[int]) -> Truth:
        if len(numbers) == len(self._values):
            return TRUE
        return disjunction(self._variable == number for number in numbers)

    def fits(self, longest: int) -> Truth:
        """Every representative fits: programs that disagree on the longest text share a `SolverText`."""
        return TRUE

    def read(self, model: Any) -> str:
        if self._variable is None:
            return self._values[0]
        number = model.eval(self._variable, model_completion=True).as_long()
        return self._values[int(number)]


class ListedText(Listed):
    """A string of which few combinations of tests occur."""

    def __init__(self, name: str, tests: Sequence[languages.Test], found: Mapping[tuple[bool, ...], str]):
        super().__init__(name, tests, found)
        self.tests = tests

    def equals(self, value: str) -> Truth:
        return self.outcome(
            tuple(text_holds(Text("", kind, operands), value) for kind, operands in self.tests)
        )


class ListedWord(Listed):
    """A value of an enumeration; the tests are the sets of values asked for."""

    def __init__(self, name: str, tests: Sequence[frozenset[str]], values: Sequence[str]):
        self._sets = tests
        found: dict[tuple[bool, ...], str] = {}
        for value in values:
            found.setdefault(self._shown(value), value)
        super().__init__(name, tests, found)

    def _shown(self, value: str) -> tuple[bool, ...]:
        return tuple(value in words for words in self._sets)

    def equals(self, value: str) -> Truth:
        return self.outcome(self._shown(value))


class SolverText:
    """A string in z3's theory. A test of characters that it does not know may turn out either way."""

    def __init__(self, name: str, tests: Sequence[languages.Test], longest: int):
        self._variable = z3.String(name)
        self._longest = longest
        self._made = {test: self._test(*test) if encodable([test]) else z3.FreshBool(name) for test in tests}

    def domain(self) -> list[Truth]:
        return [z3.Length(self._variable) <= self._longest]

    def passes(self, test: Hashable) -> Truth:
        return self._made[test]  # type: ignore[index]  # tests of this choice are languages.Test

    def equals(self, value: str) -> Truth:
        return self._variable == literal(value)

    def fits(self, longest: int) -> Truth:
        return z3.Length(self._variable) <= longest

    def read(self, model: Any) -> str:
        text = model.eval(self._variable, model_completion=True).as_string()
        return re.sub(r"\\u\{([0-9a-fA-F]+)\}", lambda found: chr(int(found[1], 16)), text)

    def _test(self, kind: TextTest, operands: Sequence[str]) -> Truth:
        return disjunction(self._single(kind, operand) for operand in operands)

    def _single(self, kind: TextTest, operand: str) -> Truth:
        match kind:
            case "equals":
                return self._variable == literal(operand)
            case "prefix":
                return z3.PrefixOf(literal(operand), self._variable)
            case "suffix":
                return z3.SuffixOf(literal(operand), self._variable)
            case "contains":
                return z3.Contains(self._variable, literal(operand))
            case _:
                return z3.InRe(self._variable, _pattern(operand))


def encodable(tests: Sequence[languages.Test]) -> bool:
    """Return whether z3's strings hold every character of the operands."""
    return all(ord(letter) <= GREATEST_CHARACTER for _, operands in tests for letter in "".join(operands))


def literal(text: str) -> Any:
    """Return a constant. Every character is escaped, lest z3 read an escape into the user's text."""
    return z3.StringVal("".join(f"\\u{{{ord(letter):x}}}" for letter in text))


def _pattern(glob: str) -> Any:
    letter = z3.AllChar(z3.ReSort(z3.StringSort()))
    parts = [
        z3.Star(letter) if c == "*" else letter if c == "?" else z3.Re(literal(c))
        for c in re.sub(r"\*+", "*", glob)
    ]
    if not parts:
        return z3.Re(literal(""))
    return parts[0] if len(parts) == 1 else z3.Concat(parts)
