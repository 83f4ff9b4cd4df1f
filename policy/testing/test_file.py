"""Files of policy tests: `*_test.yaml`, read strictly.

    format: gradwarden/policy-test/1          # optional
    policy: code_licences.policy              # optional: else the file named like this one, without `_test`
    cases:
      - name: permissive code shapes everything
        example: {license: MIT, lines: 120}
        context: {step: 0, at: 2026-01-01, signals: {loss_ratio: 1.0}}
        expect: {verdict: admit, weights: {deep: 1}, rules: [permissive]}
      - name: weak copyleft
        table:
          base: {lines: 120}                  # every row starts from this example and this context
          context: {at: 2026-01-01}
          rows:
            - {example: {license: MPL-2.0}, expect: {verdict: limit}}

Only what `expect` names is compared. Bands left out of `weights` are not compared; lists are compared as
sets. An attribute whose value is `null` is absent. `schemas/policy_test.schema.json` describes the format
for editors; this module is what decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, Stage
from gradwarden.policy.errors import Diagnostic, PolicyError, did_you_mean
from gradwarden.policy.program import MAX_CEILING, SCALE
from gradwarden.policy.source import Source, Span
from gradwarden.policy.testing.yaml_text import Node, read_yaml

FORMAT = "gradwarden/policy-test/1"
SUFFIX = "_test.yaml"

STAGES: tuple[str, ...] = get_args(Stage)
NAME_LISTS = ("rules", "advisory", "waived")
EXPECTATIONS = ("verdict", "weights", *NAME_LISTS, "obligations", "stage", "problems")


@dataclass(frozen=True, slots=True)
class Expectation:
    """One thing a case expects. `value` has the form that `testing.observe` gives for the same key."""

    key: str
    value: Any
    span: Span
    names: tuple[Node, ...] = ()
    """Where the names of bands or rules stand in the text."""


@dataclass(frozen=True, slots=True)
class Case:
    """One example in one context, and what should be decided."""

    name: str
    example: Mapping[str, object]
    context: Context
    expect: tuple[Expectation, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class TestFile:
    """The cases of one file. `policy` is the path of the policy they are about."""

    __test__ = False  # pytest collects by name

    path: Path
    policy: Path
    cases: tuple[Case, ...]
    source: Source


def sibling_policy(path: Path) -> Path:
    """Return the policy that a test file is about by its name: `x_test.yaml` is about `x.policy`."""
    return path.with_name(path.name.removesuffix(SUFFIX) + ".policy")


def sibling_tests(policy: Path) -> Path:
    """Return where the tests of a policy are looked for: `x.policy` has `x_test.yaml`."""
    return policy.with_name(policy.name.removesuffix(".policy") + SUFFIX)


def parse_tests(text: str, path: Path) -> TestFile:
    """Return the cases that a text holds. Raises PolicyError with every fault and its position."""
    result, faults = read_tests(text, path)
    if faults:
        raise PolicyError(faults)
    return result


def read_tests(text: str, path: Path) -> tuple[TestFile, list[Diagnostic]]:
    """Return the cases that a text holds, as far as they can be read, and every fault with its position.

    Raises PolicyError where the text is no YAML.
    """
    source = Source(str(path), text)
    reader = _Reader([])
    return reader.file(read_yaml(source), path, source), reader.faults


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns nodes into cases and collects what is wrong on the way, so that all faults show at once."""

    faults: list[Diagnostic] = field(default_factory=list)

    def file(self, root: Node, path: Path, source: Source) -> TestFile:
        fields = self.mapping(root, "a test file", ("format", "policy", "cases"), required=("cases",))
        if "format" in fields and fields["format"].value != FORMAT:
            self.fault("GW421", f"this version reads `format: {FORMAT}` only", fields["format"].span)
        policy = sibling_policy(path)
        if "policy" in fields:
            policy = path.parent / self.text(fields["policy"], "`policy`")
        cases: list[Case] = []
        if "cases" in fields:
            for node in self.sequence(fields["cases"], "`cases`"):
                cases += self.case(node)
        self.unique(cases)
        return TestFile(path, policy, tuple(cases), source)

    def case(self, node: Node) -> Iterable[Case]:
        """Return the cases of one entry of `cases`: one, or one per row of its table."""
        allowed = ("name", "example", "context", "expect", "table")
        fields = self.mapping(node, "a case", allowed, required=("name",))
        if not isinstance(node.value, dict):
            return []
        name = self.text(fields["name"], "`name`") if "name" in fields else ""
        if "table" in fields:
            for key in ("example", "context", "expect"):
                if key in fields:
                    self.fault(
                        "GW424",
                        f"a case with a `table` has no `{key}` of its own",
                        fields[key].span,
                        help="put it into `table`: `base`, `context`, or a row",
                    )
            return self.table(fields["table"], name)
        for key in ("example", "expect"):
            if key not in fields and not self.misspelt(node, key, allowed):
                self.fault("GW422", f"this case has no `{key}`", node.span, help="or a `table` of rows")
        example = self.plain_mapping(fields.get("example"), "`example`")
        context = self.context(fields.get("context"))
        return [Case(name, example, _context(context), self.expect(fields.get("expect")), node.span)]

    def table(self, node: Node, name: str) -> Iterable[Case]:
        fields = self.mapping(node, "a table", ("base", "context", "rows"), required=("rows",))
        base = self.plain_mapping(fields.get("base"), "`base`")
        shared = self.context(fields.get("context"))
        if "rows" not in fields:
            return []
        return [
            self.row(row, name, number, base, shared)
            for number, row in enumerate(self.sequence(fields["rows"], "`rows`"), 1)
        ]

    def row(
        self, node: Node, table: str, number: int, base: Mapping[str, object], shared: Mapping[str, Any]
    ) -> Case:
        fields = self.mapping(node, "a row", ("name", "example", "context", "expect"), required=("expect",))
        label = self.text(fields["name"], "`name`") if "name" in fields else f"row {number}"
        example = {**base, **self.plain_mapping(fields.get("example"), "`example`")}
        own = self.context(fields.get("context"))
        context = {**shared, **own, "signals": {**shared.get("signals", {}), **own.get("signals", {})}}
        return Case(
            f"{table}: {label}", example, _context(context), self.expect(fields.get("expect")), node.span
        )

    def context(self, node: Node | None) -> dict[str, Any]:
        """Return the given fields of a context under the names of `Context`."""
        if node is None:
            return {}
        known = ("step", "epoch", "at", "exposures", "signals", "spent")
        fields = self.mapping(node, "`context`", known)
        context: dict[str, Any] = {}
        for key in ("step", "epoch", "exposures"):
            if key in fields:
                context[key] = self.count(fields[key], f"`{key}`")
        if "at" in fields:
            context["at"] = self.date(fields["at"])
        if "signals" in fields:
            signals = self.mapping(fields["signals"], "`signals`", None)
            context["signals"] = {key: self.number(value, f"`{key}`") for key, value in signals.items()}
        if "spent" in fields:
            context["spent"] = frozenset(name for name, _ in self.words(fields["spent"], "`spent`"))
        return context

    def expect(self, node: Node | None) -> tuple[Expectation, ...]:
        if node is None:
            return ()
        fields = self.mapping(node, "`expect`", EXPECTATIONS)
        if node.value == {}:
            self.fault("GW425", "`expect` is empty, so this case could never fail", node.span)
        return tuple(self.expectation(key, value) for key, value in fields.items())

    def expectation(self, key: str, node: Node) -> Expectation:
        if key == "weights":
            bands = self.mapping(node, "`weights`", None)
            weights = {band: self.weight(value, band) for band, value in bands.items()}
            keys = tuple(pair[0] for pair in node.value.values()) if isinstance(node.value, dict) else ()
            return Expectation(key, weights, node.span, keys)
        if key == "verdict":
            return Expectation(key, self.choice(node, "a verdict", VERDICTS), node.span)
        if key == "stage":
            stage = None if node.value is None else self.choice(node, "a stage", STAGES)
            return Expectation(key, stage, node.span)
        pairs = self.words(node, f"`{key}`")
        if key == "obligations":
            for word, where in pairs:
                self.check_choice(word, where, "an obligation", ("privacy", "quarantine"))
        names = tuple(where for _, where in pairs) if key in NAME_LISTS else ()
        return Expectation(key, tuple(sorted({word for word, _ in pairs})), node.span, names)

    def unique(self, cases: Iterable[Case]) -> None:
        seen: dict[str, Span] = {}
        for case in cases:
            if case.name in seen:
                line = seen[case.name].line
                self.fault(
                    "GW426", f"two cases are named `{case.name}`; the other is on line {line}", case.span
                )
            seen.setdefault(case.name, case.span)

    def fault(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.faults.append(Diagnostic(code, message, span, help))

    def expected(self, node: Node, what: str, kind: str, help: str | None = None) -> None:
        self.fault("GW423", f"{what} must be {kind}, not {node.describe()}", node.span, help)

    def mapping(
        self, node: Node, what: str, known: tuple[str, ...] | None, required: tuple[str, ...] = ()
    ) -> dict[str, Node]:
        if not isinstance(node.value, dict):
            self.expected(node, what, "a mapping")
            return {}
        fields: dict[str, Node] = {}
        for key, (where, value) in node.value.items():
            if known is not None and key not in known:
                choices = "known here: " + ", ".join(f"`{word}`" for word in known)
                self.fault("GW420", f"{what} has no `{key}`", where.span, did_you_mean(key, known) or choices)
            else:
                fields[key] = value
        for key in required:
            if key not in fields and not self.misspelt(node, key, known or ()):
                self.fault("GW422", f"{what} needs `{key}`", node.span)
        return fields

    def misspelt(self, node: Node, key: str, known: tuple[str, ...]) -> bool:
        """Whether a key that is missing stands there under another name, which is reported as unknown."""
        if not isinstance(node.value, dict):
            return False
        return any(word not in known and did_you_mean(word, [key]) for word in node.value)

    def sequence(self, node: Node, what: str) -> tuple[Node, ...]:
        if not isinstance(node.value, tuple):
            self.expected(node, what, "a list")
            return ()
        return node.value

    def plain_mapping(self, node: Node | None, what: str) -> dict[str, object]:
        if node is None:
            return {}
        return {key: value.plain() for key, value in self.mapping(node, what, None).items()}

    def words(self, node: Node, what: str) -> list[tuple[str, Node]]:
        return [(self.text(item, f"an entry of {what}"), item) for item in self.sequence(node, what)]

    def text(self, node: Node, what: str) -> str:
        if isinstance(node.value, str):
            return node.value
        self.expected(node, what, "a text", "put it in quotes" if _is_scalar(node) else None)
        return ""

    def count(self, node: Node, what: str) -> int:
        if isinstance(node.value, int) and not isinstance(node.value, bool) and 0 <= node.value < 2**53:
            return node.value
        self.fault("GW423", f"{what} must be a whole number from 0", node.span)
        return 0

    def number(self, node: Node, what: str) -> float:
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return node.value
        self.expected(node, what, "a number")
        return 0.0

    def date(self, node: Node) -> date | None:
        if isinstance(node.value, date):
            return node.value
        self.fault("GW423", "`at` must be a date such as 2026-01-31", node.span)
        return None

    def weight(self, node: Node, band: str) -> int:
        """Return an expected weight in millionths, taken from its text so that no decimal is rounded."""
        if not isinstance(node.value, int | float) or isinstance(node.value, bool):
            self.expected(node, f"the weight of `{band}`", "a number")
            return 0
        if 0 <= node.value <= MAX_CEILING // SCALE:
            micro = Decimal(node.span.text) * SCALE
            if micro == micro.to_integral_value():
                return int(micro)
        self.fault("GW423", f"the weight of `{band}` must lie in 0..4, with at most 6 decimals", node.span)
        return 0

    def choice(self, node: Node, what: str, known: tuple[str, ...]) -> str:
        word = self.text(node, what)
        if isinstance(node.value, str):
            self.check_choice(word, node, what, known)
        return word

    def check_choice(self, word: str, node: Node, what: str, known: tuple[str, ...]) -> None:
        if word not in known:
            choices = "one of " + ", ".join(f"`{choice}`" for choice in known)
            self.fault("GW427", f"`{word}` is not {what}", node.span, did_you_mean(word, known) or choices)


def _is_scalar(node: Node) -> bool:
    return not isinstance(node.value, dict | tuple)


def _context(fields: Mapping[str, Any]) -> Context:
    build: Callable[..., Context] = Context
    return build(**fields)
