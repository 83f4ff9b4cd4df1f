"""Whether a condition can hold at all: a light, sound and incomplete decision procedure.

It searches a branch of the condition on which no two tests contradict each other, keeping for each attribute
what is known of it: present or absent, the values of an enumeration or a text that are left, the members of
a set, the interval of a number. `False` is a proof that no example and no context satisfies the condition.
`True` says only that no contradiction was seen (numbers are related to one another just as far as `domain`
says), and `None` that the search was given up. `gradwarden prove` decides what is left open here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from gradwarden.policy.checking.walk import Node, children
from gradwarden.policy.evaluation.texts import text_holds
from gradwarden.policy.linting.domain import NEVER, Domain, Form, Interval
from gradwarden.policy.program import (
    And,
    AttributeValue,
    ClockValue,
    Compare,
    Condition,
    Constant,
    Every,
    Flag,
    Has,
    Not,
    Number,
    OneOf,
    Or,
    SetTest,
    SignalValue,
    Spent,
    Text,
)

FUEL = 600
"""How many tests a search looks at before it gives up."""

DEPTH = 40
"""How many alternatives a search keeps open."""

Goal: TypeAlias = tuple[Condition, bool]
"""A condition and the truth it is to have."""

_Members: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""Members that are in, that are out, and sets of which one at least is in, and one at least is out."""

_Texts: TypeAlias = tuple[frozenset[str] | None, tuple[tuple[Text, bool], ...]]
"""The texts that are left (None: any) and the tests met so far."""


class _GivenUpError(Exception):
    """The search was longer than FUEL or DEPTH allow."""


def possible(domain: Domain, *goals: Goal) -> bool | None:
    """Return whether conditions can have the wanted truth together: False is proved, None means unknown."""
    if domain.fuel is not None and domain.fuel <= 0:
        return None
    search = _Search(domain)
    try:
        return search.run(list(goals), _State(domain), [])
    except _GivenUpError:
        return None
    finally:
        if domain.fuel is not None:
            domain.fuel -= FUEL - search.fuel


def never(domain: Domain, *conditions: Condition) -> bool:
    """Return whether it is proved that conditions never hold together."""
    return possible(domain, *((condition, True) for condition in conditions)) is False


def always(domain: Domain, condition: Condition) -> bool:
    """Return whether it is proved that a condition holds for every example in every context."""
    if isinstance(condition, And):
        return all(always(domain, term) for term in condition.terms)
    if isinstance(condition, Flag | Has | Text | SetTest | Spent | Every):
        return False
    return possible(domain, (condition, False)) is False


def implies(domain: Domain, condition: Condition, conclusion: Condition) -> bool:
    """Return whether it is proved that the conclusion holds wherever the condition does."""
    return possible(domain, (condition, True), (conclusion, False)) is False


class _Search:
    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.fuel = FUEL

    def run(self, goals: list[Goal], state: _State, waiting: list[list[Goal]]) -> bool:
        """Return whether a branch without contradiction exists. `waiting` are alternatives still to choose.

        Tests are taken in before alternatives, so that most alternatives are refuted at their first test.
        """
        while goals:
            condition, truth = goals.pop()
            kind = type(condition)
            if kind is Not:
                goals.append((condition.term, not truth))  # type: ignore[union-attr]  # by its kind
            elif kind is And or kind is Or:
                terms = [(term, truth) for term in condition.terms]  # type: ignore[union-attr]  # by its kind
                if (kind is And) == truth:
                    goals += terms
                else:
                    waiting = [*waiting, terms]
            else:
                self.fuel -= 1
                if self.fuel < 0:
                    raise _GivenUpError
                if not state.add(condition, truth):
                    return False
        if not state.consistent():
            return False
        if not waiting:
            return True
        if len(waiting) > DEPTH:
            raise _GivenUpError
        shortest = min(range(len(waiting)), key=lambda index: len(waiting[index]))
        others = waiting[:shortest] + waiting[shortest + 1 :]
        return any(self.run([term], state.copy(), others) for term in waiting[shortest])


class _State:
    """What the tests met on one branch say about each attribute, number and budget.

    One dictionary holds it all, so that a branch costs one copy. Its keys are a letter and a name: p present,
    f the value of a bool, c the codes of an enumeration that are left, m members of a set, t texts, s spent
    budgets, e whether the step is a multiple, h values that a form does not have; and the forms themselves,
    with their intervals.
    """

    __slots__ = ("domain", "known", "related")

    def __init__(self, domain: Domain, known: dict[Any, Any] | None = None, related: bool = False) -> None:
        self.domain = domain
        self.known: dict[Any, Any] = {} if known is None else known
        self.related = related
        """Whether a form of several variables is among the intervals."""

    def copy(self) -> _State:
        return _State(self.domain, self.known.copy(), self.related)

    def add(self, test: Condition, truth: bool) -> bool:
        """Take a test in; return whether it contradicts nothing that is known."""
        return _TAKERS[type(test)](self, test, truth)

    def _constant(self, test: Constant, truth: bool) -> bool:
        return test.value == truth

    def _flag(self, test: Flag, truth: bool) -> bool:
        same = self.known.setdefault(("f", test.attribute), truth) == truth
        return same and (not truth or self._there(test.attribute))

    def _spent(self, test: Spent, truth: bool) -> bool:
        return bool(self.known.setdefault(("s", test.rule), truth) == truth)

    def _every(self, test: Every, truth: bool) -> bool:
        return bool(self.known.setdefault(("e", test.steps), truth) == truth)

    def consistent(self) -> bool:
        """Return whether every form of several variables can lie where it must, given those variables."""
        if not self.related:
            return True
        for form, interval in self.known.items():
            if len(form) > 1 and isinstance(form[0], tuple):
                least, most = self.domain.spread(form, self.known)
                if most < interval[0] or least > interval[1]:
                    return False
        return True

    # --- presence -------------------------------------------------------------------------------------------

    def _there(self, name: str) -> bool:
        """A test that an absent attribute fails has been passed."""
        return bool(self.known.setdefault(("p", name), True))

    def _has(self, test: Has, truth: bool) -> bool:
        name = test.attribute
        spec = self.domain.attributes[name]
        if not spec.optional:
            return truth
        if self.known.setdefault(("p", name), truth) != truth:
            return False
        codes = self.known.get(("c", name))
        if codes is not None:
            there = (1 << len(spec.values)) - 1
            codes = self.known["c", name] = codes & (there if truth else ~there)
            return bool(codes)
        if truth and spec.type in ("number", "date"):
            return self._narrow(((f"a:{name}", 1),), spec.lo, spec.hi)
        return True

    # --- values ---------------------------------------------------------------------------------------------

    def _one_of(self, test: OneOf, truth: bool) -> bool:
        name = test.attribute
        spec = self.domain.attributes[name]
        left = self.known.get(("c", name))
        if left is None:
            absent = 1 << len(spec.values)
            left = absent - 1 | (absent if spec.optional else 0)
            there = self.known.get(("p", name))
            if there is not None:
                left &= absent - 1 if there else absent
        mask = 0
        for code in test.codes:
            mask |= 1 << code
        left &= mask if truth else ~mask
        self.known["c", name] = left
        return bool(left) and (not truth or not spec.optional or self._there(name))

    def _set(self, test: SetTest, truth: bool) -> bool:
        name, kind = test.attribute, test.test
        known: _Members = self.known.get(("m", name), (0, 0, (), ()))
        inside, outside, some_in, some_out = known
        mask = 0
        for code in test.codes:
            mask |= 1 << code
        single = mask & (mask - 1) == 0
        if truth and not self._there(name):
            return False
        if truth and (kind == "all" or single):
            inside |= mask
        elif truth:
            some_in = (*some_in, mask)
        elif kind == "any" or single:
            outside |= mask
        else:
            some_out = (*some_out, mask)
        self.known["m", name] = (inside, outside, some_in, some_out)
        return (
            inside & outside == 0
            and all(wanted & ~outside for wanted in some_in)
            and all(wanted & ~inside for wanted in some_out)
        )

    def _text(self, test: Text, truth: bool) -> bool:
        name = test.attribute
        known: _Texts = self.known.get(("t", name), (None, ()))
        left, tests = known
        if truth and not self._there(name):
            return False
        if truth and test.test == "equals":
            left = frozenset(test.operands) if left is None else left & frozenset(test.operands)
        if left is None and any(_clash(test, truth, *other) for other in tests):
            return False
        tests = (*tests, (test, truth))
        if left is not None:
            left = frozenset(x for x in left if all(text_holds(t, x) == wanted for t, wanted in tests))
        self.known["t", name] = (left, tests)
        return left is None or bool(left)

    # --- numbers --------------------------------------------------------------------------------------------

    def _compare(self, test: Compare, truth: bool) -> bool:
        form, lo, hi, hole = bound = self.domain.bound(test, not truth)
        if not form:
            return bound is not NEVER
        if hole is not None:
            self.known["h", form] = self.known.get(("h", form), frozenset()) | {hole}
        return self._narrow(form, lo, hi)

    def _narrow(self, form: Form, lo: int | None, hi: int | None) -> bool:
        """Bound a form; ends that are known not to be taken are cut off."""
        least, most = self.known.get(form) or self._range(form)
        if lo is not None and lo > least:
            least = lo
        if hi is not None and hi < most:
            most = hi
        holes = self.known.get(("h", form), ())
        while least <= most and least in holes:
            least += 1
        while least <= most and most in holes:
            most -= 1
        self.known[form] = (least, most)
        self.related = self.related or len(form) > 1
        return bool(least <= most)

    def _range(self, form: Form) -> Interval:
        (variable, factor), *others = form
        if not others and factor == 1 and variable.startswith("a:") and self.known.get(("p", variable[2:])):
            spec = self.domain.attributes[variable[2:]]
            return spec.lo, spec.hi
        return self.domain.range(form)


_TAKERS: dict[type[Condition], Callable[[_State, Any, bool], bool]] = {
    Constant: _State._constant,
    Has: _State._has,
    Flag: _State._flag,
    OneOf: _State._one_of,
    SetTest: _State._set,
    Text: _State._text,
    Compare: _State._compare,
    Spent: _State._spent,
    Every: _State._every,
}


def _clash(test: Text, truth: bool, other: Text, other_truth: bool) -> bool:
    """Return whether two tests of one text, of which nothing else is known, exclude each other."""
    if truth and other_truth:
        return _ends_differ(test, other)
    if truth != other_truth:
        passed, failed = (test, other) if truth else (other, test)
        return _includes(passed, failed)
    return False


def _ends_differ(test: Text, other: Text) -> bool:
    if test.test != other.test or test.test not in ("prefix", "suffix"):
        return False
    agree = str.startswith if test.test == "prefix" else str.endswith
    return not any(agree(a, b) or agree(b, a) for a in test.operands for b in other.operands)


def _includes(passed: Text, failed: Text) -> bool:
    """Return whether every text that passes one test would pass the other, which it is to fail."""
    return all(any(_covers(passed, a, failed, b) for b in failed.operands) for a in passed.operands)


def _covers(passed: Text, a: str, failed: Text, b: str) -> bool:
    match passed.test, failed.test:
        case ("equals", _):
            return text_holds(Text(failed.attribute, failed.test, (b,)), a)
        case ("prefix", "prefix"):
            return a.startswith(b)
        case ("suffix", "suffix"):
            return a.endswith(b)
        case ("prefix" | "suffix" | "contains", "contains"):
            return b in a
        case (same, other) if same == other:
            return a == b
        case _:
            return False


def variables(conditions: Sequence[Condition]) -> frozenset[str]:
    """Return the attributes, signals, clocks and budgets that conditions read, by prefixed names."""
    found: set[str] = set()
    pending: list[Node] = list(conditions)
    while pending:
        node = pending.pop()
        match node:
            case Flag(name) | Has(name) | OneOf(name) | Text(name) | SetTest(name) | AttributeValue(name):
                found.add(f"a:{name}")
            case SignalValue(name):
                found.add(f"s:{name}")
            case ClockValue(name):
                found.add(f"c:{name}")
            case Spent(rule):
                found.add(f"spent:{rule}")
            case Every():
                found.add("c:step")
            case _:
                pending += children(node)
    return frozenset(found)


def entangled(domain: Domain, condition: Condition) -> bool:
    """Return whether a condition reads something twice, or has a test that is decided by itself.

    Where it does not, its tests are independent of each other, and none of them can contradict another or
    follow from it: there is nothing to search for. (Comparisons that are decided the checker reports.)
    """
    seen: set[str] = set()
    pending: list[Node] = [condition]
    while pending:
        node = pending.pop()
        kind = type(node)
        if kind is Number:
            continue
        prefix = _PREFIXES.get(kind)
        if prefix is None:
            if kind is Constant:
                return True
            pending += children(node)
            continue
        name = prefix + (node.name if kind in _NAMED else node.attribute)  # type: ignore[union-attr]  # by its kind
        if name in seen:
            return True
        seen.add(name)
        if kind is OneOf:
            assert isinstance(node, OneOf)
            spec = domain.attributes[node.attribute]
            if len(node.codes) == len(spec.values):
                return True
    return False


_NAMED = frozenset((SignalValue, ClockValue, AttributeValue))
_PREFIXES: dict[type, str] = {
    **dict.fromkeys((Flag, Has, OneOf, Text, SetTest, AttributeValue), "a:"),
    SignalValue: "s:",
    ClockValue: "c:",
}
