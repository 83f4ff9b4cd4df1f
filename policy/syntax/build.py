"""From the parser's reductions to syntax nodes: a method per grammar rule, called as the rule completes."""

from __future__ import annotations

from typing import Any

from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.build_expressions import ExpressionBuilder
from gradwarden.policy.syntax.build_tokens import Children, is_token, word_of


class Builder(ExpressionBuilder):
    """Builds the declarations of one source."""

    def start(self, children: Children, span: Span) -> tuple[s.Item, ...]:
        return tuple(children)

    def header(self, children: Children, span: Span) -> s.Header:
        numbers = self._plains(children)
        language = numbers[1] if len(numbers) > 1 else None
        return s.Header(self._name(children[1]), numbers[0], language, span)

    def import_(self, children: Children, span: Span) -> s.Import:
        return s.Import(self._word(children[1]), span)

    def max_weight(self, children: Children, span: Span) -> s.MaxWeight:
        return s.MaxWeight(self._plain(children[2]), span)

    def examples(self, children: Children, span: Span) -> s.Examples:
        return s.Examples(tuple(c for c in children if isinstance(c, s.Field)), span)

    def field(self, children: Children, span: Span) -> s.Field:
        optional = is_token(children[-1], "OPTIONAL")
        return s.Field(self._name(children[0]), children[2], optional, span)

    def text_type(self, children: Children, span: Span) -> s.SimpleType:
        return s.SimpleType("string", None, None, span)

    def flag_type(self, children: Children, span: Span) -> s.SimpleType:
        return s.SimpleType("bool", None, None, span)

    def date_type(self, children: Children, span: Span) -> s.SimpleType:
        lo, hi = (self._day(children[1]), self._day(children[3])) if len(children) > 1 else (None, None)
        return s.SimpleType("date", lo, hi, span)

    def enum_type(self, children: Children, span: Span) -> s.ChoiceType:
        values = tuple(self._word(c) for c in children[2:] if not is_token(c, "COMMA"))
        return s.ChoiceType("enum", values, span)

    def set_type(self, children: Children, span: Span) -> s.ChoiceType:
        values = tuple(self._word(c) for c in children[2:] if not is_token(c, "COMMA"))
        return s.ChoiceType("set", values, span)

    def number_type(self, children: Children, span: Span) -> s.RangeType:
        unit = next((child for child in children if isinstance(child, str)), "")
        places = self._plain(children[-1]) if is_token(children[-2], "PLACES") else None
        lo, hi = (child for child in children if isinstance(child, s.Quantity))
        return s.RangeType(word_of(children[0]), lo, hi, unit, places, span)

    def signals(self, children: Children, span: Span) -> s.Signals:
        return s.Signals(tuple(c for c in children if isinstance(c, s.SignalField)), span)

    def signal(self, children: Children, span: Span) -> s.SignalField:
        default = children[-1] if isinstance(children[-1], s.Quantity) else None
        return s.SignalField(self._name(children[0]), children[2], default, span)

    def model(self, children: Children, span: Span) -> s.Model:
        parts = tuple(c for c in children if isinstance(c, s.Part))
        semantics = tuple(c for c in children if isinstance(c, s.Semantics))
        return s.Model(parts, semantics, span)

    def semantics(self, children: Children, span: Span) -> s.Semantics:
        return s.Semantics(word_of(children[1]), span)

    def part(self, children: Children, span: Span) -> s.Part:
        selectors = tuple(c for c in children if isinstance(c, s.PartSelector))
        return s.Part(self._name(children[0]), selectors, span)

    def selector(self, children: Children, span: Span) -> s.PartSelector:
        numbers = self._plains(children)
        pattern = self._word(children[1]) if is_token(children[-1], "STRING") else None
        lo, hi = (numbers[0], numbers[-1]) if numbers else (None, None)
        return s.PartSelector(word_of(children[0]), lo, hi, pattern, span)

    def phases(self, children: Children, span: Span) -> s.Phases:
        return s.Phases(tuple(c for c in children if isinstance(c, s.Phase)), span)

    def phase(self, children: Children, span: Span) -> s.Phase:
        name = self._name(children[0])
        if len(children) == 1:
            return s.Phase(name, None, None, name.span)
        return s.Phase(name, word_of(children[2]), self._plain(children[3]), span)

    def let(self, children: Children, span: Span) -> s.Let:
        return s.Let(self._name(children[1]), children[3], span)

    def band(self, children: Children, span: Span) -> s.EntropyBand:
        return s.EntropyBand(self._name(children[1]), children[3], span)

    # --- rules ----------------------------------------------------------------------------------------------

    def rule(self, children: Children, span: Span) -> s.Rule:
        level, rest = _level(children)
        clauses = tuple(rest[3:-1])
        return s.Rule(word_of(rest[0]), self._name(rest[1]), level, clauses, span)

    def when(self, children: Children, span: Span) -> s.When:
        return s.When(children[1], span)

    def because(self, children: Children, span: Span) -> s.Because:
        return s.Because(self._word(children[1]), span)

    def reach(self, children: Children, span: Span) -> s.Targets:
        return s.Targets("reach", tuple(children[1::2]), span)

    def cap(self, children: Children, span: Span) -> s.Targets:
        return s.Targets("cap", tuple(children[1::2]), span)

    def target(self, children: Children, span: Span) -> s.Target:
        first = children[0]
        band = self._name(first) if first[0] == "NAME" else None
        weight = self._plain(children[2]) if len(children) > 1 else None
        return s.Target(band, weight, span)

    def route(self, children: Children, span: Span) -> s.Route:
        return s.Route(self._name(children[2]), span)

    def refuse(self, children: Children, span: Span) -> s.Refuse:
        return s.Refuse(span)

    def moment(self, children: Children, span: Span) -> s.Moment:
        last = children[-1]
        if is_token(last, "DATE"):
            return s.Moment("day", self._day(last), self._of(last))
        if is_token(last, "NAME"):
            return s.Moment("name", self._name(last), self._of(last))
        return s.Moment(word_of(children[0]), self._plain(last), span)

    def until(self, children: Children, span: Span) -> s.Timing:
        return s.Timing("until", children[1], span)

    def from_(self, children: Children, span: Span) -> s.Timing:
        return s.Timing("from", children[1], span)

    def before(self, children: Children, span: Span) -> s.Timing:
        return s.Timing("before", children[1], span)

    def during(self, children: Children, span: Span) -> s.During:
        if is_token(children[1], "DATE"):
            return s.During("day", self._day(children[1]), self._day(children[3]), span)
        lo, hi = self._plains(children)
        return s.During(word_of(children[1]), lo, hi, span)

    def in_phase(self, children: Children, span: Span) -> s.InPhase:
        return s.InPhase(self._name(children[1]), span)

    def at_most(self, children: Children, span: Span) -> s.AtMost:
        noun = "exposures" if word_of(children[2]).startswith("exposure") else "epochs"
        return s.AtMost(self._plain(children[1]), noun, span)  # type: ignore[arg-type]  # one of two

    def hold_out(self, children: Children, span: Span) -> s.HoldOut:
        return s.HoldOut(self._plain(children[2]), self._plain(children[4]), span)

    def within(self, children: Children, span: Span) -> s.Within:
        return s.Within(self._names(children), span)

    def epsilon(self, children: Children, span: Span) -> s.PrivacyNumber:
        return s.PrivacyNumber(word_of(children[0]), self._plain(children[1]), span)

    delta = epsilon
    clip = epsilon

    def unit_of(self, children: Children, span: Span) -> s.UnitOf:
        return s.UnitOf(self._name(children[1]), span)

    def noise(self, children: Children, span: Span) -> s.Noise:
        return s.Noise(self._plain(children[2]), span)

    def spent(self, children: Children, span: Span) -> s.Spent:
        return s.Spent(word_of(children[1]), span)

    def scale(self, children: Children, span: Span) -> s.Scale:
        return s.Scale(tuple(children[1::2]), span)

    def scaling(self, children: Children, span: Span) -> s.Scaling:
        band, signal = self._names(children)
        at_low, at_high = self._plains(children)
        return s.Scaling(band, signal, at_low, at_high, span)

    def approved(self, children: Children, span: Span) -> s.Approved:
        return s.Approved(self._word(children[2]), span)

    def strength(self, children: Children, span: Span) -> s.Strength:
        return s.Strength(self._plain(children[1]), span)

    def drift(self, children: Children, span: Span) -> s.Drift:
        return s.Drift(self._plain(children[2]), span)

    def rehearse(self, children: Children, span: Span) -> s.Rehearse:
        return s.Rehearse(self._name(children[1]), self._plain(children[3]), span)

    # --- assertions and guards ------------------------------------------------------------------------------

    def assertion(self, children: Children, span: Span) -> s.Assertion:
        level, rest = _level(children)
        because = next((child for child in rest if isinstance(child, s.Because)), None)
        return s.Assertion(self._name(rest[1]), level, rest[3], because, span)

    def never_reach(self, children: Children, span: Span) -> s.Claim:
        return s.Claim("never_reach", _condition(children), self._name(children[2]), None, span)

    def always(self, children: Children, span: Span) -> s.Claim:
        form = "always_refuse" if is_token(children[1], "REFUSE") else "always_private"
        return s.Claim(form, _condition(children), None, None, span)  # type: ignore[arg-type]  # one of two

    def bounded(self, children: Children, span: Span) -> s.Claim:
        band, bound = self._name(children[3]), self._plain(children[1])
        return s.Claim("at_most", _condition(children), band, bound, span)

    def claim(self, children: Children, span: Span) -> s.Claim:
        return s.Claim("condition", children[0], None, None, span)

    def starvation(self, children: Children, span: Span) -> s.Starvation:
        *below, steps = self._plains(children)
        action = word_of(children[-2])
        return s.Starvation(self._name(children[1]), below[0] if below else None, steps, action, span)

    def gradient(self, children: Children, span: Span) -> s.Gradient:
        caps = tuple(c for c in children if isinstance(c, s.GradientCap))
        recorded = tuple(c for c in children if isinstance(c, s.Recorded))
        return s.Gradient(caps, tuple(c for c in children if isinstance(c, s.Pace)), recorded, span)

    def recorded(self, children: Children, span: Span) -> s.Recorded:
        return s.Recorded(self._plain(children[1]), self._plain(children[3]), span)

    def gradient_cap(self, children: Children, span: Span) -> s.GradientCap:
        return s.GradientCap(self._name(children[0]), self._plain(children[2]), span)

    def pace(self, children: Children, span: Span) -> s.Pace:
        moves, steps = self._plains(children)
        return s.Pace(self._name(children[0]), moves, steps, span)


def _level(children: Children) -> tuple[Any, Children]:
    """Split off the leading `hard` or `advisory`, if any."""
    kind, word, _, _ = children[0]
    if kind in ("HARD", "ADVISORY"):
        return word, children[1:]
    return None, children


def _condition(children: Children) -> s.Expr | None:
    last = children[-1]
    return last.condition if isinstance(last, s.When) else None
