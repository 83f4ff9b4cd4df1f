"""Whether the parts of a program fit together: what a schema cannot say.

A program that was compiled from a policy always passes; one that was read from a file must, before any
evaluator may rely on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradwarden.policy import program as p
from gradwarden.policy.checking.types import EXACT, MAX_COUNT, MAX_DAY, MAX_SET_VALUES, MIN_DAY
from gradwarden.policy.checking.walk import MAX_HEIGHT, MAX_SIZE, Measure, Node, children
from gradwarden.policy.paces import pace_faults, unpaced


def program_faults(program: p.Program) -> Iterator[str]:
    """Yield what does not fit, in words; nothing for a sound program."""
    yield from _order_faults(program)
    yield from _attribute_faults(program)
    yield from _shape_faults(program)
    yield from _reference_faults(program)
    yield from pace_faults(program)
    names = _Names(program)
    measure = Measure()
    for condition in unpaced(program).conditions():
        size, height = measure(condition)
        if size > MAX_SIZE or height > MAX_HEIGHT:
            yield "a condition is too large"
        else:
            yield from names.faults(condition)


def _order_faults(program: p.Program) -> Iterator[str]:
    sequences: tuple[tuple[str, Sequence[str]], ...] = (
        ("attributes", [x.name for x in program.attributes]),
        ("signals", [x.name for x in program.signals]),
        ("grants", [x.name for x in program.grants]),
        ("limits", [x.name for x in program.limits]),
        ("modulations", [x.name for x in program.modulations]),
        ("waivers", [x.name for x in program.waivers]),
        ("assertions", [x.name for x in program.assertions]),
        ("starvation", [x.band for x in program.starvation]),
        ("gradient_caps", [x.band for x in program.gradient_caps]),
        ("maintained", [x.name for x in program.maintained]),
    )
    for what, names in sequences:
        if list(names) != sorted(set(names)):
            yield f"`{what}` are not sorted by unique names"
    rules = [x.name for group in (program.grants, program.limits) for x in group]
    rules += [x.name for x in program.modulations] + [x.name for x in program.assertions]
    rules += [x.name for x in program.maintained]
    if len(set(rules)) != len(rules):
        yield "two rules have one name"
    if len(set(program.band_names)) != len(program.bands):
        yield "two bands have one name"
    if {x.name for x in program.attributes} & {x.name for x in program.signals}:
        yield "an attribute and a signal have one name"


def _attribute_faults(program: p.Program) -> Iterator[str]:
    for spec in program.attributes:
        if spec.lo > spec.hi:
            yield f"the range of `{spec.name}` is empty"
        if spec.type in ("enum", "set") and not spec.values:
            yield f"`{spec.name}` has no values"
        if spec.type == "set" and len(spec.values) > MAX_SET_VALUES:
            yield f"`{spec.name}` has too many values"
        if spec.type == "date" and not MIN_DAY <= spec.lo <= spec.hi <= MAX_DAY:
            yield f"the range of `{spec.name}` is not one of dates"
    for signal in program.signals:
        if not signal.lo <= signal.default <= signal.hi:
            yield f"the default of `{signal.name}` is out of range"


def _shape_faults(program: p.Program) -> Iterator[str]:
    count = len(program.bands)
    vectors = [(x.name, x.weights) for x in program.grants]
    vectors += [(x.name, clause.caps) for x in program.limits for clause in x.clauses]
    for name, weights in vectors:
        if len(weights) != count:
            yield f"`{name}` does not give one weight per band"
        elif any(weight > program.max_weight for weight in weights):
            yield f"`{name}` gives a weight above the greatest"
    for limit in program.limits:
        if (limit.kind == "privacy") != (limit.privacy is not None):
            yield f"`{limit.name}` has privacy terms without being a privacy rule, or the reverse"
        holds = {clause.effect == "held_out" for clause in limit.clauses}
        if holds != {bool(limit.hold_out)} or (limit.hold_out and limit.kind != "memorization"):
            yield f"`{limit.name}` holds out tokens without saying how many, or the reverse"
    maintained = [band for rule in program.maintained for band in rule.bands]
    if len(set(maintained)) != len(maintained):
        yield "a band is maintained twice"
    for rule in program.maintained:
        if rule.strength is None and rule.drift is None and rule.rehearsal is None:
            yield f"`{rule.name}` neither pulls nor bounds nor rehearses"


def _reference_faults(program: p.Program) -> Iterator[str]:
    bands = set(program.band_names)
    signals = {x.name for x in program.signals}
    named = [x.band for x in program.starvation] + [x.band for x in program.gradient_caps]
    named += [band for x in program.maintained for band in x.bands]
    named += [x.band for m in program.modulations for x in m.scalings]
    named += [x.band for x in program.assertions if x.form in ("never_reach", "at_most")]
    named += [band for x in program.limits if x.privacy for band in x.privacy.bands]
    for band in sorted(set(named) - bands):
        yield f"there is no band `{band}`"
    for signal in sorted({x.signal for m in program.modulations for x in m.scalings} - signals):
        yield f"there is no signal `{signal}`"
    lifted = {x.name for x in program.limits if x.kind not in ("privacy", "pace")}
    for rule in sorted({x.rule for x in program.waivers} - lifted):
        yield f"there is no limit `{rule}` to waive"
    yield from _rehearsal_faults(program)
    texts = {x.name for x in program.attributes if x.type == "string"}
    for unit in sorted({x.privacy.unit for x in program.limits if x.privacy} - texts - {""}):
        yield f"there is no string attribute `{unit}`"


def _rehearsal_faults(program: p.Program) -> Iterator[str]:
    """What is rehearsed is granted, and private examples have no part in it."""
    grants = {x.name: x for x in program.grants if x.level == "hard"}
    private = {band for x in program.limits if x.privacy for band in x.privacy.bands}
    for rule in program.maintained:
        if rule.rehearsal is None:
            continue
        grant = grants.get(rule.rehearsal.rule)
        if grant is None:
            yield f"`{rule.name}` rehearses `{rule.rehearsal.rule}`, which grants nothing"
            continue
        granted = dict(zip(program.band_names, grant.weights, strict=False))
        for band in rule.bands:
            if not granted.get(band):
                yield f"`{rule.name}` rehearses `{grant.name}`, which does not reach the band `{band}`"
            if band in private:
                yield f"`{rule.name}` rehearses in the band `{band}`, which private examples reach"


class _Names:
    """Checks that conditions refer to what is declared, with the right type, and cannot overflow."""

    def __init__(self, program: p.Program) -> None:
        self.attributes = {x.name: x for x in program.attributes}
        self.signals = {x.name: x for x in program.signals}
        self.privacy = {x.name for x in program.limits if x.privacy}

    def faults(self, condition: p.Condition) -> Iterator[str]:
        pending: list[Node] = [condition]
        while pending:
            node = pending.pop()
            fault = self._fault(node)
            if fault:
                yield fault
            elif isinstance(node, p.Compare):
                if None in (self._interval(node.left), self._interval(node.right)):
                    yield "a comparison can overflow, or reads what is not declared"
            else:
                pending += children(node)

    def _fault(self, node: Node) -> str | None:
        match node:
            case p.Has(name) if name not in self.attributes or not self.attributes[name].optional:
                return f"`{name}` is not an optional attribute"
            case p.Flag(name) if not self._is(name, "bool"):
                return f"`{name}` is not a bool attribute"
            case p.OneOf(name, codes) if not self._codes(name, "enum", codes):
                return f"`{name}` is not an enumeration with these codes"
            case p.SetTest(name, _, codes) if not codes or not self._codes(name, "set", codes):
                return f"`{name}` is not a set with these codes"
            case p.Text(name, _, operands) if not self._is(name, "string") or list(operands) != sorted(
                operands
            ):
                return f"`{name}` is not a string attribute, or its operands are not sorted"
            case p.Every():
                return "only a pace takes turns"
            case p.Spent(rule) if rule not in self.privacy:
                return f"`{rule}` is not a privacy rule"
            case _:
                return None

    def _is(self, name: str, kind: p.ValueType) -> bool:
        return name in self.attributes and self.attributes[name].type == kind

    def _codes(self, name: str, kind: p.ValueType, codes: Sequence[int]) -> bool:
        return (
            self._is(name, kind)
            and list(codes) == sorted(codes)
            and all(code < len(self.attributes[name].values) for code in codes)
        )

    def _interval(self, expr: p.NumericExpr) -> tuple[int, int] | None:
        """Return what values an expression can take; None where it is unsound."""
        match expr:
            case p.Number(value):
                bounds = (value, value)
            case p.AttributeValue(name):
                if not (self._is(name, "number") or self._is(name, "date")):
                    return None
                spec = self.attributes[name]
                bounds = (spec.lo, spec.hi)
            case p.SignalValue(name):
                if name not in self.signals:
                    return None
                bounds = (self.signals[name].lo, self.signals[name].hi)
            case p.ClockValue(name):
                bounds = (MIN_DAY, MAX_DAY) if name == "today" else (0, MAX_COUNT)
            case p.Arithmetic(op, left, right):
                a, b = self._interval(left), self._interval(right)
                if a is None or b is None:
                    return None
                bounds = _combined(op, a, b)
        return bounds if max(abs(bounds[0]), abs(bounds[1])) <= EXACT else None


def _combined(op: str, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    if op == "add":
        return a[0] + b[0], a[1] + b[1]
    if op == "sub":
        return a[0] - b[1], a[1] - b[0]
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)
