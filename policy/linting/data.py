"""Lints that hold a policy against the data it is for: grants that none of the data needs, values never seen.

The data are looked at once, piece by piece (`Seen.add`). What is kept is which combinations of truth values
of the conditions occur, which values of enumerations and sets, and how many units each privacy rule covers:
bounded by the policy, not by the data. Only parts of conditions that read metadata alone are evaluated, since
the rest depends on the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np

from gradwarden.policy.checking.walk import children
from gradwarden.policy.decimals import decimal_text, unscaled
from gradwarden.policy.evaluation.classes import number_rows
from gradwarden.policy.evaluation.columns import Columns, encode_columns
from gradwarden.policy.evaluation.partition import partition
from gradwarden.policy.evaluation.tape import RowInputs, Tape
from gradwarden.policy.linting.subject import Finding, Report, SourcedRule, Subject
from gradwarden.policy.program import Condition, Constant, Grant, Limit, OneOf, Program, SetTest
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

MAX_UNITS = 1_000_000
"""Units of a privacy rule that are told apart; more are counted as this many."""

_SHOWN = 8
"""How many values a finding lists."""


class Seen:
    """What of a policy the examples of a data set have met so far. Invalid examples are left out."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.static = partition(program).static
        self.words: set[int] = set()
        """The truth of the static part of every condition (bit i: condition i), for each kind of example."""
        self.codes: dict[str, int] = {x.name: 0 for x in program.attributes if x.type in ("enum", "set")}
        """The values seen, as a bit mask."""
        self.examples = 0
        self._units: dict[str, set[int]] = {limit.name: set() for limit in _private(program)}

    def add(self, columns: Any, count: int) -> None:
        """Take in `count` examples. Raises ColumnsError where the columns do not make a table."""
        encoded = encode_columns(self.program, columns, count)
        valid = np.ones(count, bool)
        valid[encoded.invalid_rows] = False
        self.examples += int(valid.sum())
        ids, words = number_rows(Tape(encoded, RowInputs(), self.static), count)
        present = np.flatnonzero(np.bincount(ids[valid], minlength=len(words)))
        self.words.update(words[number] for number in present.tolist())
        self._see_values(encoded, valid)
        for position, limit in self._covered():
            rows = valid & np.array([bool(word >> position & 1) for word in words])[ids]
            self._see_units(limit, encoded, rows)

    def _covered(self) -> Iterator[tuple[int, Limit]]:
        """Yield each privacy rule with the position of its first condition."""
        position = len(self.program.grants)
        for limit in self.program.limits:
            if limit.name in self._units:
                yield position, limit
            position += len(limit.clauses)

    def _see_values(self, columns: Columns, valid: np.ndarray[Any, Any]) -> None:
        for spec in self.program.attributes:
            if spec.name not in self.codes:
                continue
            values = np.unique(columns.encoded[spec.name].values[valid]).tolist()
            for value in values:
                self.codes[spec.name] |= 1 << value if spec.type == "enum" else value

    def _see_units(self, limit: Limit, columns: Columns, rows: np.ndarray[Any, Any]) -> None:
        assert limit.privacy is not None
        known = self._units[limit.name]
        if not limit.privacy.unit:
            known.update(range(len(known), min(len(known) + int(rows.sum()), MAX_UNITS)))
            return
        column = columns.encoded[limit.privacy.unit]
        for index in np.unique(column.values[rows]).tolist():
            if len(known) < MAX_UNITS and index < len(column.dictionary):
                known.add(hash(column.dictionary[index]))

    def units(self, rule: str) -> int:
        """Return how many units a privacy rule covers, so far as its condition reads metadata alone."""
        return len(self._units[rule])

    def matches(self, position: int) -> bool:
        """Return whether the static part of a condition held for some example."""
        return any(word >> position & 1 for word in self.words)

    def best(self, position: int, grant: Grant) -> tuple[int, ...]:
        """Return the greatest weight per band that limits on metadata alone leave of a grant."""
        best = [0] * len(grant.weights)
        for word in self.words:
            if word >> position & 1:
                left = map(min, grant.weights, self._caps(word))
                best = [max(pair) for pair in zip(best, left, strict=True)]
        return tuple(best)

    def _caps(self, word: int) -> tuple[int, ...]:
        caps = (self.program.max_weight,) * len(self.program.bands)
        waived = {waiver.rule for waiver in self.program.waivers}
        dynamic = partition(self.program).dynamic
        position = len(self.program.grants)
        for limit in self.program.limits:
            for clause in limit.clauses:
                lasting = dynamic[position] == Constant(True) and limit.level == "hard"
                if lasting and limit.name not in waived and word >> position & 1:
                    caps = tuple(map(min, caps, clause.caps))
                position += 1
        return caps


def _private(program: Program) -> list[Limit]:
    return [limit for limit in program.limits if limit.privacy is not None and limit.level == "hard"]


def lint_data(subject: Subject, seen: Seen) -> list[Finding]:
    """Return what a policy allows and none of the examples seen needs, and deltas too large for them."""
    report = Report()
    if not seen.examples:
        return []
    positions = {grant.name: position for position, grant in enumerate(subject.program.grants)}
    for rule in subject.of_kind(Grant):
        if rule.is_hard and isinstance(rule.rule, Grant):
            _grant(subject, report, rule, rule.rule, positions[rule.rule.name], seen)
    _values(subject, report, seen)
    for rule in subject.of_kind(Limit):
        if isinstance(rule.rule, Limit) and rule.rule.privacy is not None and rule.is_hard:
            _delta(report, rule, rule.rule, seen.units(rule.rule.name))
    return report.findings


def _grant(
    subject: Subject, report: Report, rule: SourcedRule, grant: Grant, position: int, seen: Seen
) -> None:
    if not seen.matches(position):
        message = f"no example of the data matches `{grant.name}`"
        report.add("GW543", message, rule.name, "leave it out until there are data that need it")
        return
    for band, granted, needed in zip(
        subject.program.band_names, grant.weights, seen.best(position, grant), strict=True
    ):
        if needed < granted:
            at, most = (decimal_text(unscaled(weight, 6)) for weight in (granted, needed))
            got = f"gets more than {most}" if needed else "gets any of it"
            message = f"`{grant.name}` grants `{band}` at {at}, and no example of the data {got}"
            report.add("GW543", message, rule.name, "narrow the grant to what the data need")


def _values(subject: Subject, report: Report, seen: Seen) -> None:
    named = _named_codes(subject.program)
    for name, mask in named.items():
        attribute = subject.scope.attributes[name]
        unseen = [v for code, v in enumerate(attribute.spec.values) if (mask & ~seen.codes[name]) >> code & 1]
        if unseen:
            shown = [f"`{value}`" for value in unseen[:_SHOWN]]
            if len(unseen) > _SHOWN:
                shown.append(f"{len(unseen) - _SHOWN} more values")
            listed = " or ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
            message = f"no example of the data has {listed} in `{name}`"
            report.add("GW544", message, attribute.span, "compare the spelling of the rules with the data")


def _named_codes(program: Program) -> dict[str, int]:
    """Return the values of enumerations and sets that conditions name, as bit masks."""
    found: dict[str, int] = {}
    pending: list[Any] = list(program.conditions())
    while pending:
        node: Condition = pending.pop()
        if isinstance(node, OneOf | SetTest):
            for code in node.codes:
                found[node.attribute] = found.get(node.attribute, 0) | 1 << code
        else:
            pending += children(node)
    return found


def _delta(report: Report, rule: SourcedRule, limit: Limit, units: int) -> None:
    """Hold delta against one over the number of units."""
    assert limit.privacy is not None
    if units and Decimal(limit.privacy.delta) * units >= 1:
        message = f"a delta of {limit.privacy.delta} is not below one over the {units:,} units of the data"
        span: Span = rule.name
        if isinstance(rule.item, s.Rule):
            numbers = (c for c in rule.item.clauses if isinstance(c, s.PrivacyNumber) and c.term == "delta")
            span = next((clause.span for clause in numbers), span)
        report.add("GW526", message, span, "take a smaller one")
