"""From the parser's reductions to syntax nodes: a method per grammar rule, called as the rule completes."""

from __future__ import annotations

from typing import Any

from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.build_expressions import ExpressionBuilder
from gradwarden.policy.syntax.build_tokens import Children, UnitText, is_token, word_of


class Builder(ExpressionBuilder):
    """Builds the declarations of one source."""

    def start(self, children: Children) -> tuple[s.Item, ...]:
        return tuple(children)

    def header(self, children: Children) -> s.Header:
        numbers = self._plains(children)
        language = numbers[1] if len(numbers) > 1 else None
        return s.Header(self._name(children[1]), numbers[0], language, self._span(children))

    def import_(self, children: Children) -> s.Import:
        return s.Import(self._word(children[1]), self._span(children))

    def max_weight(self, children: Children) -> s.MaxWeight:
        return s.MaxWeight(self._plain(children[2]), self._span(children))

    def examples(self, children: Children) -> s.Examples:
        return s.Examples(tuple(c for c in children if isinstance(c, s.Field)), self._span(children))

    def field(self, children: Children) -> s.Field:
        optional = is_token(children[-1], "OPTIONAL")
        return s.Field(self._name(children[0]), children[2], optional, self._span(children))

    def text_type(self, children: Children) -> s.SimpleType:
        return s.SimpleType("string", None, None, self._span(children))

    def flag_type(self, children: Children) -> s.SimpleType:
        return s.SimpleType("bool", None, None, self._span(children))

    def date_type(self, children: Children) -> s.SimpleType:
        lo, hi = (self._day(children[1]), self._day(children[3])) if len(children) > 1 else (None, None)
        return s.SimpleType("date", lo, hi, self._span(children))

    def enum_type(self, children: Children) -> s.ChoiceType:
        values = tuple(self._word(c) for c in children[2:] if not is_token(c, "COMMA"))
        return s.ChoiceType("enum", values, self._span(children))

    def set_type(self, children: Children) -> s.ChoiceType:
        values = tuple(self._word(c) for c in children[2:] if not is_token(c, "COMMA"))
        return s.ChoiceType("set", values, self._span(children))

    def number_type(self, children: Children) -> s.RangeType:
        unit = next((child.text for child in children if isinstance(child, UnitText)), "")
        places = self._plain(children[-1]) if is_token(children[-2], "PLACES") else None
        lo, hi = (child for child in children if isinstance(child, s.Quantity))
        return s.RangeType(str(children[0]), lo, hi, unit, places, self._span(children))  # type: ignore[arg-type]  # by the grammar

    def signals(self, children: Children) -> s.Signals:
        return s.Signals(tuple(c for c in children if isinstance(c, s.SignalField)), self._span(children))

    def signal(self, children: Children) -> s.SignalField:
        default = children[-1] if isinstance(children[-1], s.Quantity) else None
        return s.SignalField(self._name(children[0]), children[2], default, self._span(children))

    def model(self, children: Children) -> s.Model:
        parts = tuple(c for c in children if isinstance(c, s.Part))
        semantics = tuple(c for c in children if isinstance(c, s.Semantics))
        return s.Model(parts, semantics, self._span(children))

    def semantics(self, children: Children) -> s.Semantics:
        return s.Semantics(word_of(children[1]), self._span(children))

    def part(self, children: Children) -> s.Part:
        selectors = tuple(c for c in children if isinstance(c, s.PartSelector))
        return s.Part(self._name(children[0]), selectors, self._span(children))

    def selector(self, children: Children) -> s.PartSelector:
        numbers = self._plains(children)
        pattern = self._word(children[1]) if is_token(children[-1], "STRING") else None
        lo, hi = (numbers[0], numbers[-1]) if numbers else (None, None)
        return s.PartSelector(str(children[0]), lo, hi, pattern, self._span(children))  # type: ignore[arg-type]  # by the grammar

    def phases(self, children: Children) -> s.Phases:
        return s.Phases(tuple(c for c in children if isinstance(c, s.Phase)), self._span(children))

    def phase(self, children: Children) -> s.Phase:
        name = self._name(children[0])
        if len(children) == 1:
            return s.Phase(name, None, None, name.span)
        return s.Phase(name, word_of(children[2]), self._plain(children[3]), self._span(children))

    def let(self, children: Children) -> s.Let:
        return s.Let(self._name(children[1]), children[3].node, self._span(children))

    def band(self, children: Children) -> s.EntropyBand:
        return s.EntropyBand(self._name(children[1]), children[3].node, self._span(children))

    # --- rules ----------------------------------------------------------------------------------------------

    def rule(self, children: Children) -> s.Rule:
        level, rest = _level(children)
        clauses = tuple(rest[3:-1])
        return s.Rule(word_of(rest[0]), self._name(rest[1]), level, clauses, self._span(children))

    def when(self, children: Children) -> s.When:
        return s.When(children[1].node, self._span(children))

    def because(self, children: Children) -> s.Because:
        return s.Because(self._word(children[1]), self._span(children))

    def reach(self, children: Children) -> s.Targets:
        return s.Targets("reach", tuple(children[1::2]), self._span(children))

    def cap(self, children: Children) -> s.Targets:
        return s.Targets("cap", tuple(children[1::2]), self._span(children))

    def target(self, children: Children) -> s.Target:
        band = self._name(children[0]) if is_token(children[0], "NAME") else None
        weight = self._plain(children[2]) if len(children) > 1 else None
        return s.Target(band, weight, self._span(children))

    def route(self, children: Children) -> s.Route:
        return s.Route(self._name(children[2]), self._span(children))

    def refuse(self, children: Children) -> s.Refuse:
        return s.Refuse(self._span(children))

    def moment(self, children: Children) -> s.Moment:
        last = children[-1]
        if is_token(last, "DATE"):
            return s.Moment("day", self._day(last), self._of(last))
        if is_token(last, "NAME"):
            return s.Moment("name", self._name(last), self._of(last))
        return s.Moment(word_of(children[0]), self._plain(last), self._span(children))

    def until(self, children: Children) -> s.Timing:
        return s.Timing("until", children[1], self._span(children))

    def from_(self, children: Children) -> s.Timing:
        return s.Timing("from", children[1], self._span(children))

    def before(self, children: Children) -> s.Timing:
        return s.Timing("before", children[1], self._span(children))

    def during(self, children: Children) -> s.During:
        if is_token(children[1], "DATE"):
            return s.During("day", self._day(children[1]), self._day(children[3]), self._span(children))
        lo, hi = self._plains(children)
        return s.During(word_of(children[1]), lo, hi, self._span(children))

    def in_phase(self, children: Children) -> s.InPhase:
        return s.InPhase(self._name(children[1]), self._span(children))

    def at_most(self, children: Children) -> s.AtMost:
        noun = "exposures" if str(children[2]).startswith("exposure") else "epochs"
        return s.AtMost(self._plain(children[1]), noun, self._span(children))  # type: ignore[arg-type]  # one of two

    def within(self, children: Children) -> s.Within:
        return s.Within(self._names(children), self._span(children))

    def epsilon(self, children: Children) -> s.PrivacyNumber:
        return s.PrivacyNumber(word_of(children[0]), self._plain(children[1]), self._span(children))

    delta = epsilon
    clip = epsilon

    def unit_of(self, children: Children) -> s.UnitOf:
        return s.UnitOf(self._name(children[1]), self._span(children))

    def scale(self, children: Children) -> s.Scale:
        return s.Scale(tuple(children[1::2]), self._span(children))

    def scaling(self, children: Children) -> s.Scaling:
        band, signal = self._names(children)
        at_low, at_high = self._plains(children)
        return s.Scaling(band, signal, at_low, at_high, self._span(children))

    def approved(self, children: Children) -> s.Approved:
        return s.Approved(self._word(children[2]), self._span(children))

    def strength(self, children: Children) -> s.Strength:
        return s.Strength(self._plain(children[1]), self._span(children))

    def drift(self, children: Children) -> s.Drift:
        return s.Drift(self._plain(children[2]), self._span(children))

    # --- assertions and guards ------------------------------------------------------------------------------

    def assertion(self, children: Children) -> s.Assertion:
        level, rest = _level(children)
        because = next((child for child in rest if isinstance(child, s.Because)), None)
        return s.Assertion(self._name(rest[1]), level, rest[3], because, self._span(children))

    def never_reach(self, children: Children) -> s.Claim:
        return s.Claim(
            "never_reach", _condition(children), self._name(children[2]), None, self._span(children)
        )

    def always(self, children: Children) -> s.Claim:
        form = "always_refuse" if is_token(children[1], "REFUSE") else "always_private"
        return s.Claim(form, _condition(children), None, None, self._span(children))  # type: ignore[arg-type]  # one of two

    def bounded(self, children: Children) -> s.Claim:
        band, bound = self._name(children[3]), self._plain(children[1])
        return s.Claim("at_most", _condition(children), band, bound, self._span(children))

    def claim(self, children: Children) -> s.Claim:
        return s.Claim("condition", children[0].node, None, None, self._span(children))

    def starvation(self, children: Children) -> s.Starvation:
        steps, action = self._plain(children[4]), word_of(children[6])
        return s.Starvation(self._name(children[1]), steps, action, self._span(children))

    def gradient(self, children: Children) -> s.Gradient:
        return s.Gradient(tuple(c for c in children if isinstance(c, s.GradientCap)), self._span(children))

    def gradient_cap(self, children: Children) -> s.GradientCap:
        return s.GradientCap(self._name(children[0]), self._plain(children[2]), self._span(children))


def _level(children: Children) -> tuple[Any, Children]:
    """Split off the leading `hard` or `advisory`, if any."""
    if is_token(children[0], "HARD", "ADVISORY"):
        return str(children[0]), children[1:]
    return None, children


def _condition(children: Children) -> s.Expr | None:
    last = children[-1]
    return last.condition if isinstance(last, s.When) else None
