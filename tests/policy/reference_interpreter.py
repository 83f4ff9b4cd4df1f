"""A second meaning of the language, written from docs/language.md and docs/conformance.md alone.

It walks the syntax tree of a policy that checks, and works with exact fractions, plain strings and sets. It
shares no code with the checker, the compiler, the combining rules or any evaluator: slow, short and obvious,
so that a disagreement means that one of two independent readings of the documents is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from typing import Any

from gradwarden.policy.syntax import tree as s

ONE = 1_000_000
"""A whole weight, in millionths."""

GATES = ("suppress", "retain", "privacy", "memorization", "curriculum", "pace")
DAY_ZERO = date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class Given:
    """The context of a decision. today: an ISO date."""

    step: int = 0
    epoch: int = 0
    today: str | None = None
    exposures: int = 0
    signals: Mapping[str, float] = field(default_factory=dict)
    spent: Sequence[str] = ()


@dataclass(frozen=True)
class Cap:
    """One thing that a limit does: the greatest weight per band, why, and whether time lifts it."""

    rule: str
    kind: str
    effect: str
    most: dict[str, int]
    defers: bool = False


class Unfit(Exception):  # noqa: N818 - becomes a problem of the decision
    """Why a value does not fit its declaration."""


class Interpreter:
    """The meaning of one policy: its files as parsed, the main one first."""

    def __init__(self, files: Sequence[s.File]) -> None:
        items = [item for file in files for item in file.items]
        self.fields = {f.name.text: f for i in items if isinstance(i, s.Examples) for f in i.fields}
        self.signals = {f.name.text: f for i in items if isinstance(i, s.Signals) for f in i.fields}
        self.bands = [p.name.text for i in items if isinstance(i, s.Model) for p in i.parts]
        self.phases = [p for i in items if isinstance(i, s.Phases) for p in i.phases]
        self.named = {i.name.text: i.condition for i in items if isinstance(i, s.Let | s.EntropyBand)}
        rules = sorted((i for i in items if isinstance(i, s.Rule)), key=lambda rule: rule.name.text)
        self.rules = [rule for rule in rules if rule.kind != "waive"]
        self.waivers = [rule for rule in rules if rule.kind == "waive"]
        self.assertions = sorted((i for i in items if isinstance(i, s.Assertion)), key=lambda a: a.name.text)
        paces = [pace for i in items if isinstance(i, s.Gradient) for pace in i.paces]
        self.paces = sorted(paces, key=lambda pace: pace.band.text)
        ceilings = [i.weight.value for i in items if isinstance(i, s.MaxWeight)]
        self.ceiling = int(ceilings[0] * ONE) if ceilings else ONE

    def decide(self, example: Mapping[str, Any], given: Given) -> dict[str, Any]:
        """Return the decision as the corpus writes it."""
        values, problems = self._read(example)
        if problems:
            return _decision("invalid", dict.fromkeys(self.bands, 0), stage="schema", problems=problems)
        return _Run(self, values, given).decide()

    # --- metadata -------------------------------------------------------------------------------------------

    def _read(self, example: Mapping[str, Any]) -> tuple[dict[str, Any], list[list[str]]]:
        values: dict[str, Any] = {}
        problems: list[list[str]] = []
        for name, declared in sorted(self.fields.items()):
            raw = example.get(name)
            try:
                if raw is not None:
                    values[name] = _value(declared.type, raw)
                elif not declared.optional:
                    raise Unfit("missing")
            except Unfit as fault:
                problems.append([name, str(fault)])
        strangers = sorted(n for n, raw in example.items() if n not in self.fields and raw is not None)
        return values, [*problems, *([name, "unknown_attribute"] for name in strangers)]


def _value(type_: s.SimpleType | s.ChoiceType | s.RangeType, raw: Any) -> Any:
    match type_:
        case s.SimpleType("bool"):
            return _of(bool, raw)
        case s.SimpleType("string"):
            if len(_of(str, raw)) > 65_536:
                raise Unfit("too_long")
            return raw
        case s.SimpleType("date", lo, hi):
            day = _day(raw)
            if (lo and day < lo.days) or (hi and day > hi.days):
                raise Unfit("out_of_range")
            return day
        case s.ChoiceType("enum", words):
            if _of(str, raw) not in {word.text for word in words}:
                raise Unfit("unknown_value")
            return raw
        case s.ChoiceType("set", words):
            members = [_of(str, member) for member in _of(list, raw)]
            if not set(members) <= {word.text for word in words}:
                raise Unfit("unknown_value")
            return frozenset(members)
        case s.RangeType():
            number = _rounded(raw, _places(type_))
            if not Fraction(type_.lo.value) <= number <= Fraction(type_.hi.value):
                raise Unfit("out_of_range")
            return number
    raise AssertionError(type_)


def _of(kind: type, raw: Any) -> Any:
    if type(raw) is not kind:
        raise Unfit("wrong_type")
    return raw


def _day(raw: Any) -> int:
    if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", _of(str, raw)):
        raise Unfit("wrong_type")
    try:
        return date(int(raw[:4]), int(raw[5:7]), int(raw[8:])).toordinal() - DAY_ZERO
    except ValueError:
        raise Unfit("wrong_type") from None


def _places(type_: s.RangeType) -> int:
    return 0 if type_.kind == "integer" else int(type_.places.value) if type_.places else 6


def _rounded(raw: Any, places: int) -> Fraction:
    """A number with more places is rounded to the nearest, ties to even; a double is scaled as a double."""
    if type(raw) is int:
        return Fraction(raw)
    return Fraction(round(_of(float, raw) * 10.0**places), 10**places)


class _Run:
    """One decision: the values of an example and its context."""

    def __init__(self, policy: Interpreter, values: Mapping[str, Any], given: Given) -> None:
        self.policy, self.values, self.given = policy, values, given
        self.today = 0 if given.today is None else date.fromisoformat(given.today).toordinal() - DAY_ZERO
        self.lists: dict[str, list[str]] = {"rules": [], "advisory": [], "waived": []}

    # --- the combining rules --------------------------------------------------------------------------------

    def decide(self) -> dict[str, Any]:
        bands = self.policy.bands
        granted = dict.fromkeys(bands, 0)
        factor = dict.fromkeys(bands, ONE)
        caps: list[Cap] = []
        for rule in self.policy.rules:
            if rule.kind == "depth" and self._when(rule) and self._counts(rule):
                for band, weight in self._targets(_one(rule, s.Targets), 0, ONE).items():
                    granted[band] = max(granted[band], weight)
            elif rule.kind == "modulate" and self._when(rule) and self._counts(rule):
                for scaling in _one(rule, s.Scale).scalings:
                    band = scaling.band.text
                    factor[band] = min(factor[band], self._factor(scaling))
            elif rule.kind in GATES and self._when(rule):
                own = list(self._limits(rule))
                if own and self._waived(rule):
                    self.lists["waived"].append(rule.name.text)
                elif own and self._counts(rule):
                    caps += own
        caps = sorted([*caps, *self._paced()], key=lambda cap: cap.rule)
        weights = _weights(granted, caps, factor, self.policy.ceiling)
        owed = {"confined": "privacy", "quarantined": "quarantine", "held_out": "hold_out"}
        obligations = [[owed[cap.effect], cap.rule] for cap in caps if cap.effect in owed]
        failed = list(self._failed(weights, any(kind == "privacy" for kind, _ in obligations)))
        final = dict.fromkeys(bands, 0) if failed else weights
        causes = [[c.rule, c.effect] for c in caps]
        causes += [] if any(granted.values()) else [["", "not_granted"]]
        causes += [[name, "assertion"] for name in failed]
        verdict, stage = self._verdict(final), None
        if not any(final.values()):
            lasting = [cap for cap in caps if not cap.defers]
            later = _weights(granted, lasting, factor, self.policy.ceiling)
            waits = not failed and len(lasting) < len(caps) and any(later.values())
            verdict = "defer" if waits else "refuse"
            stage = self._stage(granted, caps, weights)
        lists = {name: sorted(names) for name, names in self.lists.items()}
        return _decision(verdict, final, **lists, obligations=obligations, causes=causes, stage=stage)

    def _paced(self) -> Iterator[Cap]:
        """The bands whose turn it is not."""
        for pace in self.policy.paces:
            if self.given.step % int(pace.steps.value):
                band, name = pace.band.text, f"pace:{pace.band.text}"
                self.lists["rules"].append(name)
                most = dict.fromkeys(self.policy.bands, self.policy.ceiling) | {band: 0}
                yield Cap(name, "pace", "paced", most, True)

    def _counts(self, rule: s.Rule | s.Assertion) -> bool:
        """List a rule that matches under its level, and say whether it is enforced."""
        advisory = rule.level == "advisory"
        self.lists["advisory" if advisory else "rules"].append(rule.name.text)
        return not advisory

    def _waived(self, rule: s.Rule) -> bool:
        own = [waiver for waiver in self.policy.waivers if waiver.name.text == rule.name.text]
        return any(self._when(w) and self.today < self._moment(_one(w, s.Timing)) for w in own)

    def _verdict(self, weights: Mapping[str, int]) -> str:
        full = all(weight >= ONE for band, weight in weights.items() if band != "quarantine")
        return "admit" if full else "limit"

    def _stage(self, granted: Mapping[str, int], caps: Sequence[Cap], weights: Mapping[str, int]) -> str:
        """The first gate at which nothing remained; a prohibition is named before a missing grant."""
        nothing = not any(granted.values())
        left = dict.fromkeys(granted, self.policy.ceiling) if nothing else dict(granted)
        for gate in GATES:
            for cap in caps:
                if cap.kind == gate:
                    left = {band: min(left[band], cap.most[band]) for band in left}
            if not any(left.values()):
                return gate
        return "depth" if nothing else "assert" if any(weights.values()) else "modulate"

    def _failed(self, weights: Mapping[str, int], private: bool) -> Iterator[str]:
        nothing = not any(weights.values())
        for assertion in self.policy.assertions:
            claim = assertion.claim
            condition = claim.condition
            if claim.form == "condition":
                holds = self._true(condition)
            elif condition is not None and not self._true(condition):
                holds = True
            elif claim.form == "always_refuse":
                holds = nothing
            elif claim.form == "always_private":
                holds = nothing or private
            else:
                assert claim.band is not None
                most = claim.bound.value * ONE if claim.bound else 0
                holds = weights[claim.band.text] <= most
            if not holds and self._counts(assertion):
                yield assertion.name.text

    # --- rules ----------------------------------------------------------------------------------------------

    def _when(self, rule: s.Rule) -> bool:
        return all(self._true(clause.condition) for clause in rule.clauses if isinstance(clause, s.When))

    def _targets(self, targets: s.Targets, others: int, bare: int) -> dict[str, int]:
        """The weight of every band: `others` where it is not named, `bare` where it has no weight."""
        weights = dict.fromkeys(self.policy.bands, others)
        for named in (False, True):  # `all` first, so that a band named beside it keeps its own weight
            for target in targets.targets:
                if (target.band is not None) == named:
                    weight = int(target.weight.value * ONE) if target.weight else bare
                    every = [band for band in self.policy.bands if band != "quarantine"]
                    weights.update(dict.fromkeys([target.band.text] if target.band else every, weight))
        return weights

    def _limits(self, rule: s.Rule) -> Iterator[Cap]:
        """What a limit whose condition holds does here and now."""
        ceiling, bands = self.policy.ceiling, self.policy.bands
        closed = dict.fromkeys(bands, 0)

        def cap(effect: str, most: dict[str, int], defers: bool = False) -> Cap:
            return Cap(rule.name.text, rule.kind, effect, most, defers)

        for clause in sorted(rule.clauses, key=_rank):
            match clause:
                case s.Targets("cap"):
                    yield cap("capped", self._targets(clause, ceiling, ceiling))
                case s.Route():
                    yield cap("quarantined", {b: ceiling if b == "quarantine" else 0 for b in bands})
                case s.Refuse():
                    yield cap("memorized", closed)
                case s.HoldOut():
                    yield cap("held_out", dict.fromkeys(bands, ceiling))
                case s.Timing("until") if self.today >= self._moment(clause):
                    yield cap("expired", closed)
                case s.Timing("from") if rule.kind == "retain" and self.today < self._moment(clause):
                    yield cap("embargoed", closed, defers=True)
                case s.AtMost(count, "exposures") if self.given.exposures >= count.value:
                    yield cap("exposures_spent", closed)
                case s.AtMost(count, "epochs") if self.given.epoch >= count.value:
                    yield cap("epochs_spent", closed)
                case s.Within(names):
                    inside = {name.text for name in names}
                    yield cap("confined", {band: ceiling if band in inside else 0 for band in bands})
                    if rule.name.text in self.given.spent:
                        yield cap("budget_spent", closed)
        if rule.kind == "suppress" and not any(isinstance(c, s.Targets | s.Route) for c in rule.clauses):
            yield cap("suppressed", closed)
        if rule.kind == "curriculum":
            for stage in self._stages(rule):
                yield cap("not_open", self._targets(stage, 0, ceiling), defers=True)

    def _stages(self, rule: s.Rule) -> Iterator[s.Targets]:
        """The stages of a curriculum that hold now."""
        holds = True
        for clause in rule.clauses:
            match clause:
                case s.Timing(word, moment):
                    clock, end = self._clock(moment.kind), self._moment(clause)
                    holds = holds and (clock < end if word == "before" else clock >= end)
                case s.During(kind, lo, hi):
                    holds = holds and _amount(lo) <= self._clock(kind) <= _amount(hi)
                case s.InPhase(phase):
                    holds = holds and self._phase() == phase.text
                case s.Targets():
                    if holds:
                        yield clause
                    holds = True

    def _moment(self, timing: s.Timing) -> Any:
        value = timing.moment.value
        return self.values[value.text] if isinstance(value, s.Name) else _amount(value)

    def _clock(self, kind: str) -> int:
        return {"step": self.given.step, "epoch": self.given.epoch, "day": self.today}[kind]

    def _factor(self, scaling: s.Scaling) -> int:
        type_ = self.policy.signals[scaling.signal.text].type
        lo, hi = Fraction(type_.lo.value), Fraction(type_.hi.value)
        low, high = Fraction(scaling.at_low.value) * ONE, Fraction(scaling.at_high.value) * ONE
        if lo == hi:
            return int(min(low, high))
        return int((low + (high - low) * (self._signal(scaling.signal.text) - lo) / (hi - lo)) // 1)

    # --- expressions ----------------------------------------------------------------------------------------

    def _true(self, expr: s.Expr | None) -> bool:
        assert expr is not None
        value = self._eval(expr)
        assert isinstance(value, bool), expr
        return value

    def _eval(self, expr: s.Expr) -> Any:
        match expr:
            case s.Junction("and", terms):
                return all(self._true(term) for term in terms)
            case s.Junction("or", terms):
                return any(self._true(term) for term in terms)
            case s.Negation(term):
                return not self._true(term)
            case s.Implication(left, right):
                return not self._true(left) or self._true(right)
            case s.Truth(value):
                return value
            case s.Present(name):
                return name.text in self.values
            case s.InBand(name):
                return self._true(self.policy.named[name.text])
            case s.Comparison((left, right), (op,)):
                return self._compare(op, left, right)
            case s.InList(term, members, negated):
                found = self._eval(term) in [_member(member) for member in members]
                return found != negated
            case s.InRange(term, lo, hi, negated):
                return (_amount(lo) <= self._eval(term) <= _amount(hi)) != negated
            case s.TextTest(test, term, operand):
                return _text_holds(test, self._eval(term), operand.text)
            case s.SetTest(test, term, members):
                wanted = {_member(member) for member in members}
                return bool(wanted & self._eval(term)) if test == "any" else wanted <= self._eval(term)
            case s.Negative(term):
                return -self._eval(term)
            case s.Operation(op, left, right):
                a, b = self._eval(left), self._eval(right)
                return a + b if op == "add" else a - b if op == "sub" else a * b
            case s.Quantity() | s.Day():
                return _amount(expr)
            case s.Word(text):
                return text
            case s.Reference(name):
                return self._name(name)
        raise AssertionError(expr)

    def _name(self, name: str) -> Any:
        if name in ("step", "epoch", "exposures"):
            return getattr(self.given, name)
        if name == "today":
            return self.today
        if name == "phase":
            return self._phase()
        if name in self.policy.signals:
            return self._signal(name)
        if name in self.policy.named:
            return self._true(self.policy.named[name])
        return self.values[name]

    def _compare(self, op: str, left: s.Expr, right: s.Expr) -> bool:
        if self._has_words(left):
            a, b = self._eval(left), _word(right)
        elif self._has_words(right):
            a, b = self._eval(right), _word(left)
        else:
            a, b = self._eval(left), self._eval(right)
        results = {"==": a == b, "!=": a != b}
        if op in results:
            return bool(results[op])
        return bool({"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[op])

    def _has_words(self, expr: s.Expr) -> bool:
        """Whether an operand is a string, an enumeration or the phase: what stands beside it is a value."""
        if not isinstance(expr, s.Reference):
            return False
        declared = self.policy.fields.get(expr.name)
        return expr.name == "phase" or (
            declared is not None and getattr(declared.type, "kind", "") in ("string", "enum")
        )

    def _signal(self, name: str) -> Fraction:
        declared = self.policy.signals[name]
        lo, hi = Fraction(declared.type.lo.value), Fraction(declared.type.hi.value)
        if name not in self.given.signals:
            assert declared.default is not None
            return Fraction(declared.default.value)
        return min(max(_rounded(self.given.signals[name], _places(declared.type)), lo), hi)

    def _phase(self) -> str:
        for phase in self.policy.phases:
            if phase.clock is None or phase.end is None or self._clock(phase.clock) < phase.end.value:
                return phase.name.text
        raise AssertionError("the last phase has no end")


# --- small readings -----------------------------------------------------------------------------------------


def _weights(
    granted: Mapping[str, int], caps: Sequence[Cap], factor: Mapping[str, int], ceiling: int
) -> dict[str, int]:
    return {
        band: min([weight, ceiling, *(cap.most[band] for cap in caps)]) * factor[band] // ONE
        for band, weight in granted.items()
    }


def _rank(clause: s.Clause) -> int:
    """The order in which the effects of one rule are told: `until`, `from`, exposures, epochs."""
    match clause:
        case s.Timing("from"):
            return 1
        case s.AtMost(_, noun):
            return 2 if noun == "exposures" else 3
    return 0


def _amount(value: s.Bound) -> Any:
    if isinstance(value, s.Day):
        return value.days
    days = {"day": 1, "days": 1, "week": 7, "weeks": 7}.get(value.unit, 1)
    return Fraction(value.value) * days


def _member(member: s.Member) -> Any:
    return member.text if isinstance(member, s.Word) else _amount(member)


def _word(expr: s.Expr) -> str:
    return expr.name if isinstance(expr, s.Reference) else expr.text if isinstance(expr, s.Word) else ""


def _text_holds(test: str, value: Any, operand: str) -> bool:
    match test:
        case "starts with":
            return value[: len(operand)] == operand
        case "ends with":
            return operand == "" or value[-len(operand) :] == operand
        case "contains":
            return operand in value
    parts = [{"*": ".*", "?": "."}.get(character, re.escape(character)) for character in operand]
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None


def _one(rule: s.Rule, kind: type[Any]) -> Any:
    return next(clause for clause in rule.clauses if isinstance(clause, kind))


def _decision(verdict: str, weights: Mapping[str, int], **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {
        name: [] for name in ("rules", "advisory", "waived", "obligations", "causes", "problems")
    }
    return {"verdict": verdict, "weights": dict(weights), **empty, "stage": None, **more}
