"""Random policy texts that type-check by construction, with examples and contexts that reach boundaries.

Every choice comes from a `random.Random`, so that the conformance corpus is drawn with a seed and hypothesis
can draw, and shrink, the same texts (`st.randoms`). Conditions are drawn for a type: what may be absent is
read only where `has` holds, units agree, and constants come from small pools, so that comparisons go both
ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

SHORT = ("", "a", "ab", "b*", "é", "web-1", "web-12", "A", "a\nb")
DATES = ("2026-03-01", "2026-03-02", "2026-03-31", "2026-02-28")
DAYS = ("2026-02-28", "2026-03-01", "2026-03-02", "2026-03-30", "2026-03-31", "2027-01-01")


@dataclass(frozen=True)
class Attribute:
    """An attribute of the pool: its type as written, good raw values, bad ones, and a name for its kind."""

    kind: str
    type: str
    good: tuple[Any, ...]
    bad: tuple[Any, ...]
    constants: tuple[str, ...] = ()
    optional: bool = False


_BOOL = ("yes", 1, 0.0, [], "true")
_TEXT = (3, True, ["a"])
POOL: dict[str, Attribute] = {
    "consent": Attribute("bool", "bool", (True, False), _BOOL),
    "opted": Attribute("bool", "bool", (True, False), _BOOL, optional=True),
    "kind": Attribute(
        "enum", 'one of surface, concept, "C-2"', ("surface", "concept", "C-2"), ("c-2", 1, "")
    ),
    "region": Attribute("enum", "one of eu, us", ("eu", "us"), ("EU", True), optional=True),
    "tags": Attribute(
        "set",
        "set of pii, minor, web",
        ([], ["pii"], ["web", "minor"], ["pii", "pii", "web"]),
        ("pii", ["x"], [1]),
    ),
    "topics": Attribute(
        "set", 'set of "a b", c', ([], ["a b"], ["c", "a b"]), (["a"], {"c": 1}), optional=True
    ),
    "source": Attribute("string", "string", SHORT, _TEXT),
    "patient": Attribute("string", "string", SHORT, _TEXT, optional=True),
    "lines": Attribute(
        "number",
        "integer 0..20",
        (0, 9, 10, 11, 20, 10.0),
        (-1, 21, 20.6, "10", True),
        ("0", "9", "10", "10.5", "20"),
    ),
    "score": Attribute(
        "number",
        "number -1..1 places 2",
        (-1, -0.5, 0, 0.25, 0.3, 1, 0.125, 0.375),
        (1.006, -2, "0"),
        ("0", "0.25", "0.5", "1"),
    ),
    "level": Attribute(
        "number",
        "number 0..4 places 1",
        (0, 1.5, 2, 2.25, 4),
        (4.1, -0.1, []),
        ("1", "1.5", "2.25", "4"),
        optional=True,
    ),
    "entropy": Attribute(
        "bits",
        "number 0..8 bits/byte",
        (0, 2.999999, 3, 5.5, 8),
        (8.000001, "3"),
        ("3.0", "3 bits/byte", "5.5 bits/byte"),
    ),
    "made": Attribute(
        "date", "date 2026-01-01..2026-12-31", DATES, ("2025-12-31", "2026-3-1", 5, "2026-02-29")
    ),
    "erase_on": Attribute(
        "date", "date", (*DATES, "9999-12-31", "0001-01-01"), ("0000-01-01", True), optional=True
    ),
}
SIGNALS = {
    "loss": ("number 0..10 places 2 default 1", (0, 0.49, 0.5, 1, 10, 11, -3, 0.125)),
    "strain": ("number 0..1 places 3 default 0", (0, 0.25, 0.333, 0.5, 1, 2, 0.0005)),
    "calm": ("integer 5..5 default 5", (0, 5, 9)),
}
MODELS = (
    "model { deep = rest }",
    "model { shallow = top 25%  deep = rest }",
    'model { shallow = top 25%  middle = next 50%  deep = rest  quarantine = names "adapter.*" }',
    'model { quarantine = names "a*"  deep = rest }',
)
BANDS = (
    ("deep",),
    ("shallow", "deep"),
    ("shallow", "middle", "deep", "quarantine"),
    ("quarantine", "deep"),
)
PHASES = (
    "",
    "phases { warmup until step 5  main until epoch 2  last }",
    "phases { main until epoch 1  last }",
)
NAMES_OF_PHASES: tuple[tuple[str, ...], ...] = ((), ("warmup", "main", "last"), ("main", "last"))
COMPARE = ("<", "<=", ">", ">=", "==", "!=")


@dataclass
class TypedText:
    """A policy as a list of declarations, and what examples and contexts may hold under it."""

    header: str
    schema: list[str]
    rules: list[str] = field(default_factory=list)
    attributes: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    private: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join([self.header, *self.schema, *self.rules]) + "\n"


class Drawer:
    """Draws one policy."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.attributes = tuple(sorted(random.sample(sorted(POOL), random.randint(2, 6))))
        self.signals = tuple(sorted(random.sample(sorted(SIGNALS), random.choice((0, 1, 1, 2)))))
        number = random.randrange(len(MODELS))
        self.model, self.bands = MODELS[number], BANDS[number]
        number = random.randrange(len(PHASES))
        self.phases, self.names_of_phases = PHASES[number], NAMES_OF_PHASES[number]
        self.ceiling = random.choice((1, 1, 1, 2))
        self.named: list[str] = []
        self.lifted: list[str] = []
        self.private: list[str] = []

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def policy(self, most: int = 5) -> TypedText:
        """Return a policy with up to `most` rules beside one grant, and waivers for some of its limits."""
        schema = [self.model, self._fields()]
        if self.signals:
            schema.append("signals { " + "  ".join(f"{n} : {SIGNALS[n][0]}" for n in self.signals) + " }")
        schema += [self.phases] if self.phases else []
        schema += [f"max weight {self.ceiling}"] if self.ceiling > 1 else []
        if "entropy" in self.attributes:
            schema += ["band low = entropy < 3.0 bits/byte", "band high = entropy in 3.0..5.5 bits/byte"]
            self.named += ["low", "band high"]
        for number in range(self.random.randrange(3)):
            schema.append(f"let named_{number} = {self.condition(1)}")
            self.named.append(f"named_{number}")
        rules = [
            self._depth("base")
            if self.random.randrange(3)
            else f"depth base {{ {self._weights('reach', False)} }}"
        ]
        rules += [self._rule(f"rule_{number}") for number in range(self.random.randint(1, most))]
        rules += [self._waiver(name) for name in self.lifted for _ in range(self.random.choice((0, 0, 1, 2)))]
        header = "policy drawn version 1 language 1"
        private = tuple(self.private)
        return TypedText(header, schema, rules, self.attributes, self.signals, private)

    def _fields(self) -> str:
        lines = []
        for name in self.attributes:
            optional = " optional" if POOL[name].optional else ""
            lines.append(f"  {name} : {POOL[name].type}{optional}")
        return "\n".join(["examples {", *lines, "}"])

    # --- conditions -----------------------------------------------------------------------------------------

    def condition(self, depth: int = 2, present: frozenset[str] = frozenset()) -> str:
        """Return a condition that reads optional attributes only where they are present."""
        if depth == 0 or self.random.randrange(3) == 0:
            return self._test(present)
        match self.pick("and", "or", "implies", "not", "and", "or", "three"):
            case "not":
                return f"not ({self.condition(depth - 1, present)})"
            case "three":
                terms = [f"({self.condition(depth - 1, present)})" for _ in range(3)]
                return f" {self.pick('and', 'or')} ".join(terms)
            case word:
                left, right = (f"({self.condition(depth - 1, present)})" for _ in range(2))
                return f"{left} {word} {right}"

    def _test(self, present: frozenset[str]) -> str:
        random = self.random
        tests: list[Callable[[], str]] = [
            lambda: self._attribute(random.choice(self.attributes), present)
        ] * 6
        tests += [lambda: f"step {self.pick(*COMPARE)} {self.pick(0, 5, 10)}", lambda: self._number(present)]
        tests += [
            lambda: f"exposures >= {self.pick(1, 2)}",
            lambda: f"epoch in {self.pick('0..1', '[0, 2]', '1..2')}",
        ]
        tests += [
            lambda: f"today {self.pick(*COMPARE)} {random.choice(DATES)}",
            lambda: self.pick("true", "false"),
        ]
        if self.signals:
            tests += [lambda: self._signal(random.choice(self.signals))] * 2
        if self.named:
            tests += [lambda: random.choice(self.named)] * 2
        if self.names_of_phases:
            tests.append(lambda: self._phase())
        return random.choice(tests)()

    def _phase(self) -> str:
        name = self.random.choice(self.names_of_phases)
        return str(
            self.pick(f"phase == {name}", f"phase != {name}", f"phase in [{name}, last]", f"{name} == phase")
        )

    def _signal(self, name: str) -> str:
        return f"{name} {self.pick(*COMPARE)} {self.pick('0.5', '0', '1', '0.333', '5')}"

    def _number(self, present: frozenset[str]) -> str:
        """Return a comparison of calculated numbers."""
        terms = ["step", "epoch", "exposures", "3", "0.5", "-2", *self.signals]
        terms += [
            n for n in self.attributes if POOL[n].kind == "number" and (not POOL[n].optional or n in present)
        ]
        a, c = (self.random.choice(terms) for _ in range(2))
        b = self.random.choice([term for term in terms if term not in ("step", "exposures", "epoch")])
        c = b if "epoch" in c or c in ("step", "exposures") else c  # two counts might multiply too far
        left = self.pick(
            f"{a} + {b}", f"{a} - {b}", f"{a} * {b}", f"-{a} + {b} * {c}", f"({a} - {b}) * {c}", f"-({a})"
        )
        return f"{left} {self.pick(*COMPARE)} {self.pick('0', '1', '2.5', '-1', a)}"

    def _attribute(self, name: str, present: frozenset[str]) -> str:
        if not POOL[name].optional or name in present:
            return self._read(name)
        inner = self._read(name)
        if self.random.randrange(3) == 0:
            inner = f"({self.condition(1, present | {name})})"
        return str(
            self.pick(
                f"has {name}",
                f"(has {name} and {inner})",
                f"(has {name} implies {inner})",
                f"(not has {name} or {inner})",
            )
        )

    def _read(self, name: str) -> str:
        """Return a test of an attribute that is present."""
        pool, pick = POOL[name], self.pick
        match pool.kind:
            case "bool":
                return str(pick(name, f"not {name}", f"{name} == false", f"{name} != false"))
            case "enum":
                a, b = (self._quoted(self.random.choice(pool.good)) for _ in range(2))
                return str(
                    pick(f"{name} == {a}", f"{name} != {a}", f"{name} in [{a}, {b}]", f"{name} not in [{b}]")
                )
            case "set":
                words = ("pii", "minor", "web") if name == "tags" else ('"a b"', "c")
                a, b = (self.random.choice(words) for _ in range(2))
                return str(
                    pick(f"{name} contains {a}", f"{name} has any [{a}, {b}]", f"{name} has all [{a}, {b}]")
                )
            case "string":
                a, b = (self._text(self.random.choice(SHORT)) for _ in range(2))
                glob = self.pick('"*"', '"a*"', '"?"', '"web-?"', '"*b"', '"a*b"', '"b*"', '"web-*2"', '"??"')
                tests = [f"== {a}", f"!= {a}", f"in [{a}, {b}]", f"not in [{a}]", f"like {glob}"]
                tests += [f"starts with {a}", f"ends with {a}", f"contains {a}", f"like {a}"]
                return f"{name} {self.random.choice(tests)}"
            case "date":
                a, b = sorted(self.random.choice(DATES) for _ in range(2))
                return str(
                    pick(
                        f"{name} {pick(*COMPARE)} {a}",
                        f"{name} {pick(*COMPARE)} today",
                        f"today - {name} {pick(*COMPARE)} {pick('0 days', '30 days', '1 week', '-1 days')}",
                        f"{name} + {pick('1 days', '2 weeks', '4 * 1 week')} {pick('<', '>')} today",
                        f"{name} in {a}..{b}",
                        f"{name} not in [{a}, {b}]",
                    )
                    if name != "erase_on"  # a day near the end of the calendar cannot be added to
                    else pick(
                        f"{name} <= today",
                        f"{name} > {a}",
                        f"{name} in {a}..{b}",
                        f"today - {name} >= 1 days",
                    )
                )
            case _:
                a, b = (self.random.choice(pool.constants) for _ in range(2))
                lo, hi = sorted((a, b), key=lambda text: float(text.split()[0]))
                return str(
                    pick(
                        f"{name} {pick(*COMPARE)} {a}",
                        f"{a} {pick(*COMPARE)} {name}",
                        f"{name} in {lo}..{hi}",
                        f"{name} not in {lo}..{hi}",
                        f"{name} in [{a}, {b}]",
                        f"{name} * 2 - {a} > {b}",
                    )
                )

    def _quoted(self, value: str) -> str:
        return value if value.isidentifier() and value.islower() else self._text(value)

    def _text(self, value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    # --- rules ----------------------------------------------------------------------------------------------

    def _when(self) -> str:
        return f"when {self.condition()}  " if self.random.randrange(5) else ""

    def _level(self) -> str:
        return str(self.pick("", "", "", "", "hard ", "advisory "))

    def _weights(self, verb: str, weighted: bool) -> str:
        names = self.random.sample(self.bands, self.random.randint(1, len(self.bands)))
        names += ["all"] if self.random.randrange(4) == 0 else []
        ceiling = str(self.ceiling)
        at = [
            f" at {self.pick('0', '0.1', '0.333333', '0.5', '0.000001', '1', ceiling)}"
            if weighted or self.random.randrange(2)
            else ""
            for _ in names
        ]
        return f"{verb} " + ", ".join(name + weight for name, weight in zip(names, at, strict=True))

    def _depth(self, name: str) -> str:
        return f"{self._level()}depth {name} {{ {self._when()}{self._weights('reach', False)} }}"

    def _rule(self, name: str) -> str:
        kinds = [
            "depth",
            "suppress",
            "suppress",
            "retain",
            "retain",
            "privacy",
            "curriculum",
            "assert",
            "assert",
        ]
        kinds += ["memorization", "modulate", "modulate"] if self.signals else []
        kind = self.random.choice(kinds)
        if kind in ("suppress", "retain", "memorization", "curriculum"):
            self.lifted.append(name)
        body = getattr(self, f"_{kind}")(name)
        return str(body)

    def _suppress(self, name: str) -> str:
        effect = self.pick("", self._weights("cap", True) + "  ", "route to quarantine  ")
        return f'{self._level()}suppress {name} {{ {self._when()}{effect}because "why" }}'

    def _retain(self, name: str) -> str:
        clauses, when = [], self._when()
        days = [n for n in self.attributes if POOL[n].kind == "date" and not POOL[n].optional]
        if self.random.randrange(2):
            clauses.append(f"until {self.pick('2026-03-31', '2027-01-01', *days)}")
        if self.random.randrange(2):
            clauses.append(f"from {self.pick('2026-03-01', '2026-03-02')}")
        if self.random.randrange(2):
            clauses.append(f"at most {self.pick(1, 2)} exposures")
        if self.random.randrange(2) or not clauses:
            clauses.append(f"at most {self.pick(1, 2)} epochs")
        self.random.shuffle(clauses)
        return f"{self._level()}retain {name} {{ {when}{'  '.join(clauses)} }}"

    def _privacy(self, name: str) -> str:
        self.private.append(name)
        within = ", ".join(self.random.sample(self.bands, self.random.randint(1, len(self.bands))))
        unit = "  unit source" if "source" in self.attributes and self.random.randrange(2) else ""
        spent = self.pick("", "", "  spent halt", "  spent refuse", "  noise at most 2.5")
        terms = f"within {within}  epsilon 3  delta 1e-6  clip 1{unit}{spent}"
        return f"{self._level()}privacy {name} {{ {self._when()}{terms} }}"

    def _memorization(self, name: str) -> str:
        effect = self.pick("refuse", self._weights("cap", True), "route to quarantine")
        test = self._signal(self.random.choice(self.signals))
        return f"{self._level()}memorization {name} {{ when {test} and ({self.condition(1)})  {effect} }}"

    def _curriculum(self, name: str) -> str:
        times = ["before step 5", "from step 5", "from epoch 1", "during epoch 0..1", "before 2026-03-02"]
        times += [
            "during 2026-03-01..2026-03-02",
            "during step 5..10",
            *(f"in {n}" for n in self.names_of_phases),
        ]
        stages = [
            f"{' '.join(self.random.sample(times, self.pick(1, 1, 2)))} {self._weights('reach', False)}"
            for _ in range(self.random.randint(1, 3))
        ]
        return f"{self._level()}curriculum {name} {{\n  {self._when()}" + "\n  ".join(stages) + "\n}"

    def _modulate(self, name: str) -> str:
        ends = ("0", "0.25", "0.333333", "1")
        scalings = [
            f"{self.random.choice(self.bands)} by {self.random.choice(self.signals)} "
            f"from {self.pick(*ends)} to {self.pick(*ends)}"
            for _ in range(self.random.randint(1, 2))
        ]
        return f"{self._level()}modulate {name} {{ {self._when()}scale {', '.join(scalings)} }}"

    def _assert(self, name: str) -> str:
        when = self._when().strip()
        band = self.random.choice(self.bands)
        claim = self.pick(
            f"never reach {band} {when}",
            f"always refuse {when}",
            f"at most {self.pick('0', '0.1', '0.5')} in {band} {when}",
            f"always private {when}",
            f"({self.condition(1)}) implies ({self.condition(1)})",
        )
        return f"{self._level()}assert {name} {{ {claim} }}"

    def _waiver(self, name: str) -> str:
        until = self.pick("2026-03-02", "2026-03-31")
        reason = f'approved by "A"  until {until}  because "{self.pick("x", "y")}"'
        return f"waive {name} {{ {self._when()}{reason} }}"


def typed_text(random: Random, most: int = 5) -> TypedText:
    """Return a drawn policy."""
    return Drawer(random).policy(most)


def some_example(random: Random, attributes: Sequence[str], faults: bool = True) -> dict[str, Any]:
    """Return metadata for these attributes; one in eight has something wrong with it."""
    example: dict[str, Any] = {}
    for name in attributes:
        if not POOL[name].optional or random.randrange(3):
            example[name] = random.choice(POOL[name].good)
        elif random.randrange(3) == 0:
            example[name] = None
    if faults and random.randrange(8) == 0:
        for name in random.sample(list(attributes), random.randint(1, min(2, len(attributes)))):
            if random.randrange(3):
                example[name] = random.choice(POOL[name].bad)
            else:
                example.pop(name, None)
        if random.randrange(2):
            example[random.choice(("licence", "zzz"))] = 1
    return example


def some_context(random: Random, text: TypedText) -> dict[str, Any]:
    """Return a context as the corpus writes it."""
    return {
        "step": random.choice((0, 4, 5, 10, 11)),
        "epoch": random.choice((0, 0, 1, 2)),
        "today": random.choice(DAYS),
        "exposures": random.choice((0, 0, 1, 2)),
        "signals": {n: random.choice(SIGNALS[n][1]) for n in text.signals if random.randrange(3)},
        "spent": [name for name in text.private if random.randrange(4) == 0],
    }
