"""The symbolic inputs of a decision: every attribute, signal and clock, with its declared domain.

One `Inputs` can be shared by several programs, so that they are asked about the same example. Attributes of
one name and type are one input, over the union of what the programs declare: numbers so finely that every
program's rounding of what a data set holds is met, enumerations and sets by the names of their values. An
enumeration that is a string to another program is one string, of which the values are some. Whether an
example fits the schema of one of the programs is then a question of its own (`Encoding.valid`). Other
attributes of one name and several types are several inputs, of which at most one is there: a value has one
type. (So a text that is also a date counts as one or the other.) A signal is one input, clamped and rounded
by each program as declared; the clock is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradwarden.policy.checking.types import MAX_COUNT, MAX_DAY, MIN_DAY
from gradwarden.policy.checking.walk import Node, children
from gradwarden.policy.program import (
    AttributeSpec,
    ClockName,
    OneOf,
    Program,
    SignalSpec,
    Spent,
    Text,
    ValueType,
)
from gradwarden.policy.proving import languages
from gradwarden.policy.proving.choices import Choice, ListedText, ListedWord, SolverText, encodable
from gradwarden.policy.proving.smt import TRUE, Truth, Whole, z3

CLOCKS: tuple[ClockName, ...] = ("step", "epoch", "today", "exposures")


@dataclass(frozen=True, slots=True)
class AttributeInput:
    """One attribute of one type. `spec` is the union of the declarations.

    present: whether it is there. Exactly one of the other fields is used, by type: `flag` (bool), `whole`
    (number, date; scaled as in `spec`), `members` (set, by the name of the value), `choice` (enum, string).
    """

    spec: AttributeSpec
    present: Truth
    flag: Truth = None
    whole: Whole = None
    members: Mapping[str, Truth] = field(default_factory=dict)
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class SignalInput:
    """One signal. `whole` is the value a run supplies, at `places`; `given` is whether it supplies one.

    `given` is true throughout where all programs agree on the default: it is one of the values.
    """

    lo: int
    hi: int
    places: int
    default: int
    whole: Whole
    given: Truth


@dataclass(frozen=True)
class Inputs:
    """All that a decision depends on. `domain` must be asserted wherever the inputs are used.

    approximate: attributes whose string tests z3 cannot represent. They may take impossible combinations of
    outcomes, so that a proof still holds, and a counterexample must be confirmed.
    """

    attributes: Mapping[tuple[str, ValueType], AttributeInput]
    signals: Mapping[str, SignalInput]
    clocks: Mapping[ClockName, Whole]
    spent: Mapping[str, Truth]
    domain: tuple[Truth, ...]
    approximate: frozenset[str] = frozenset()

    @staticmethod
    def of(*programs: Program) -> Inputs:
        """Return inputs for programs that are to be compared, or for one."""
        return _Maker(programs).inputs()

    def named(self, name: str) -> list[AttributeInput]:
        """Return the inputs of one name: several where programs give it several types."""
        return [made for (known, _), made in self.attributes.items() if known == name]


def conflicts(*programs: Program) -> tuple[str, ...]:
    """Return the attributes that the programs do not declare alike in type, sorted.

    No example fits two programs that both require such an attribute.
    """
    types: dict[str, set[ValueType]] = {}
    for program in programs:
        for spec in program.attributes:
            types.setdefault(spec.name, set()).add(spec.type)
    return tuple(sorted(name for name, found in types.items() if len(found) > 1))


def ambiguous(inputs: Inputs) -> tuple[str, ...]:
    """Return the attributes of several types of which some text is a value of two, sorted."""
    texts = [name for name, kind in inputs.attributes if kind in ("date", "enum", "string")]
    return tuple(sorted({name for name in texts if texts.count(name) > 1}))


class _Maker:
    def __init__(self, programs: Sequence[Program]) -> None:
        self.programs = programs
        self.domain: list[Truth] = []
        self.approximate: set[str] = set()
        self.texts: dict[str, dict[languages.Test, None]] = {}
        self.words: dict[str, dict[frozenset[str], None]] = {}
        self.budgets: dict[str, None] = {}
        self.written = _written(programs)
        for program in programs:
            self._collect(program)

    def _collect(self, program: Program) -> None:
        """Note every budget, and every test of a string or enumeration."""
        specs = {spec.name: spec for spec in program.attributes}
        for spec in program.attributes:
            if spec.type == "enum":
                self._asked(spec.name, frozenset(spec.values))
        for node in nodes(program.conditions()):
            if isinstance(node, Text):
                self.texts.setdefault(node.attribute, {})[node.test, node.operands] = None
            elif isinstance(node, OneOf):
                self._asked(node.attribute, words(specs[node.attribute], node.codes))
            elif isinstance(node, Spent):
                self.budgets[node.rule] = None

    def _asked(self, name: str, values: frozenset[str]) -> None:
        """Note that an enumeration is asked for some of its values."""
        if name in self.written:
            self.texts.setdefault(name, {})[is_one_of(values)] = None
        else:
            self.words.setdefault(name, {})[values] = None

    def inputs(self) -> Inputs:
        attributes = {key: self._attribute(key, specs) for key, specs in self._declared().items()}
        self._one_type(attributes)
        return Inputs(
            attributes=attributes,
            signals=dict(self._signals()),
            clocks={name: self._clock(name) for name in CLOCKS},
            spent={rule: z3.Bool(f"spent {rule}") for rule in self.budgets},
            domain=tuple(self.domain),
            approximate=frozenset(self.approximate),
        )

    def _declared(self) -> dict[tuple[str, ValueType], list[AttributeSpec]]:
        declared: dict[tuple[str, ValueType], list[AttributeSpec]] = {}
        for program in self.programs:
            for spec in program.attributes:
                if spec.type == "enum" and spec.name in self.written:
                    spec = replace(spec, type="string", hi=self.written[spec.name], values=())
                declared.setdefault((spec.name, spec.type), []).append(spec)
        return declared

    def _attribute(self, key: tuple[str, ValueType], specs: list[AttributeSpec]) -> AttributeInput:
        name, kind = key
        spec = union(specs)
        always = not spec.optional and len(specs) == len(self.programs)
        variable = f"{kind} {name}"
        made = AttributeInput(spec, TRUE if always else z3.Bool(f"has {variable}"))
        match kind:
            case "bool":
                return replace(made, flag=z3.Bool(variable))
            case "number" | "date":
                return replace(made, whole=self._whole(variable, spec.lo, spec.hi))
            case "set":
                return replace(made, members={word: z3.Bool(f"{variable} {word}") for word in spec.values})
            case "enum":
                choice: Choice = ListedWord(variable, list(self.words[name]), spec.values)
            case "string":
                choice = self._text(variable, spec, len({each.hi for each in specs}) == 1)
        self.domain += choice.domain()
        return replace(made, choice=choice)

    def _text(self, variable: str, spec: AttributeSpec, agreed: bool) -> Choice:
        tests = list(self.texts.get(spec.name, {}))
        found = languages.outcomes(tests, spec.hi) if agreed else None
        if found is not None:
            return ListedText(variable, tests, found)
        if not encodable(tests):
            self.approximate.add(spec.name)
        return SolverText(variable, tests, spec.hi)

    def _one_type(self, attributes: Mapping[tuple[str, ValueType], AttributeInput]) -> None:
        """A value has one type, so at most one input of a name is there."""
        for name in conflicts(*self.programs):
            present = [made.present for (known, _), made in attributes.items() if known == name]
            if len(present) > 1:
                self.domain.append(z3.AtMost(*present, 1))

    def _signals(self) -> Iterator[tuple[str, SignalInput]]:
        declared: dict[str, list[SignalSpec]] = {}
        for program in self.programs:
            for spec in program.signals:
                declared.setdefault(spec.name, []).append(spec)
        for name, specs in declared.items():
            places = shared_places(specs)
            lo = min(spec.lo * 10 ** (places - spec.places) for spec in specs)
            hi = max(spec.hi * 10 ** (places - spec.places) for spec in specs)
            whole = self._whole(f"signal {name}", lo, hi)
            defaults = {spec.default * 10 ** (places - spec.places) for spec in specs}
            given = TRUE if len(defaults) == 1 else z3.Bool(f"given {name}")
            yield name, SignalInput(lo, hi, places, min(defaults), whole, given)

    def _clock(self, name: ClockName) -> Whole:
        return self._whole(name, *((MIN_DAY, MAX_DAY) if name == "today" else (0, MAX_COUNT)))

    def _whole(self, name: str, lo: int, hi: int) -> Whole:
        made = z3.Int(name)
        self.domain += [made >= lo, made <= hi]
        return made


def _written(programs: Sequence[Program]) -> dict[str, int]:
    """Return the attributes that are strings to some programs and enumerations to others.

    With each, the greatest length of its strings; where a value is longer, the two are told apart.
    """
    longest: dict[str, int] = {}
    values: dict[str, int] = {}
    for spec in (spec for program in programs for spec in program.attributes):
        if spec.type == "string":
            longest[spec.name] = max(spec.hi, longest.get(spec.name, 0))
        elif spec.type == "enum":
            values[spec.name] = max(*map(len, spec.values), values.get(spec.name, 0))
    return {name: length for name, length in longest.items() if values.get(name, length + 1) <= length}


def union(specs: Sequence[AttributeSpec]) -> AttributeSpec:
    """Return the declaration that takes in all of them; they have one name and one type.

    Where numbers are rounded to different places, it takes in what is rounded into a range as well.
    """
    places = shared_places(specs)
    units = [10 ** (places - spec.places) for spec in specs]
    return AttributeSpec(
        name=specs[0].name,
        type=specs[0].type,
        optional=any(spec.optional for spec in specs),
        lo=min(spec.lo * unit - unit // 2 for spec, unit in zip(specs, units, strict=True)),
        hi=max(spec.hi * unit + unit // 2 for spec, unit in zip(specs, units, strict=True)),
        places=places,
        values=tuple(dict.fromkeys(value for spec in specs for value in spec.values)),
        unit=specs[0].unit,
    )


def shared_places(specs: Sequence[AttributeSpec | SignalSpec]) -> int:
    """Return the places at which a value is told apart wherever one of several declarations does.

    Where they differ, one more than the greatest: 0.505 is 0.50 at two places and 1 at none, and no number of
    two places is both.
    """
    places = {spec.places for spec in specs}
    return max(places) + (len(places) > 1)


def words(spec: AttributeSpec, codes: Iterable[int]) -> frozenset[str]:
    """Return the names of the values with these codes."""
    return frozenset(spec.values[code] for code in codes)


def is_one_of(values: Iterable[str]) -> languages.Test:
    """Return the test of a string that an enumeration's values are to one that reads text."""
    return "equals", tuple(sorted(values))


def nodes(conditions: Iterable[Node]) -> Iterator[Node]:
    """Yield every part of the conditions; parts that are one object are met once."""
    seen: set[int] = set()
    pending = list(conditions)
    while pending:
        node = pending.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            pending += children(node)


def rounded(value: Whole, places: int, wanted: int) -> Whole:
    """Return a whole number of 10**-places as one of 10**-wanted, half to even, as metadata are encoded."""
    if wanted >= places:
        return value * 10 ** (wanted - places) if wanted > places else value
    unit = 10 ** (places - wanted)
    quotient, rest = value / unit, value % unit
    up = z3.Or(2 * rest > unit, z3.And(2 * rest == unit, quotient % 2 == 1))
    return z3.If(up, quotient + 1, quotient)
