"""The conditions of a program, grouped by what they do: which rule they belong to, and with which effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradwarden.policy.checking.walk import children
from gradwarden.policy.program import Compare, Condition, Level, Not, Program


@dataclass(frozen=True, slots=True)
class Part:
    """Conditions of one rule with one effect. `places` are their indices in `Program.conditions`.

    kind: `depth`, the kind of a limit, `modulate`, `waive` or `assert`. effect: that of a limit's clauses,
    else empty. name: of the rule; of a waiver, the rule that it lifts.
    """

    kind: str
    name: str
    effect: str
    level: Level
    places: tuple[int, ...]
    conditions: tuple[Condition, ...]

    def comparisons(self) -> Iterator[tuple[Compare, bool]]:
        """Yield every comparison with whether it stands under an even number of negations."""
        pending = [(condition, True) for condition in self.conditions]
        while pending:
            node, positive = pending.pop()
            if isinstance(node, Compare):
                yield node, positive
            else:
                positive = positive is not isinstance(node, Not)
                pending += [(child, positive) for child in children(node)]  # type: ignore[misc]  # no numbers here


def parts_of(program: Program) -> list[Part]:
    """Return the parts of a program; between them they have every condition once."""
    grouped: dict[tuple[str, str, str, Level], list[int]] = {}
    for place, key in enumerate(_keys(program)):
        grouped.setdefault(key, []).append(place)
    conditions = list(program.conditions())
    return [
        Part(*key, tuple(places), tuple(conditions[place] for place in places))
        for key, places in grouped.items()
    ]


def _keys(program: Program) -> Iterator[tuple[str, str, str, Level]]:
    """Yield (kind, name, effect, level) in the order of `Program.conditions`."""
    for grant in program.grants:
        yield "depth", grant.name, "", grant.level
    for limit in program.limits:
        for clause in limit.clauses:
            yield limit.kind, limit.name, clause.effect, limit.level
    for modulation in program.modulations:
        yield "modulate", modulation.name, "", modulation.level
    for waiver in program.waivers:
        yield "waive", waiver.rule, "", "hard"
    for assertion in program.assertions:
        yield "assert", assertion.name, "", assertion.level
        if assertion.form == "implies":
            yield "assert", assertion.name, "", assertion.level
