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
      - name: unknown licences shape nothing
        for all: {license: [unknown], lines: any}
        expect: {verdict: refuse}

Only what `expect` names is compared (`expectations`). Bands left out of `weights` are not compared; lists are
compared as sets. An attribute whose value is `null` is absent. `for all` cases are described in `for_all`.
`schemas/policy_test.schema.json` describes the format for editors; this module is what decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from gradwarden.policy.context import Context
from gradwarden.policy.errors import Diagnostic, PolicyError
from gradwarden.policy.frozen import frozen
from gradwarden.policy.source import Source, Span
from gradwarden.policy.testing.expectations import EXPECTATIONS, STAGES, Expectation, read_expectations
from gradwarden.policy.testing.for_all import (
    DEFAULT_SAMPLES,
    MAX_SAMPLES,
    ForAll,
    Generator,
    is_domain,
    read_generator,
)
from gradwarden.policy.testing.inputs import Variable
from gradwarden.policy.testing.reading import Reader
from gradwarden.policy.testing.yaml_text import Node, read_yaml

FORMAT = "gradwarden/policy-test/1"
SUFFIX = "_test.yaml"

__all__ = ["EXPECTATIONS", "STAGES", "Case", "Entry", "Expectation", "ForAll", "TestFile", "parse_tests"]


@frozen
class Case:
    """One example in one context, and what should be decided."""

    name: str
    example: Mapping[str, object]
    context: Context
    expect: tuple[Expectation, ...]
    span: Span


Entry: TypeAlias = Case | ForAll
"""What a test file is made of; a table is a case for each row."""


@frozen
class TestFile:
    """The cases of one file. `policy` is the path of the policy they are about."""

    __test__ = False  # pytest collects by name

    path: Path
    policy: Path
    cases: tuple[Entry, ...]
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
    reader = _CaseReader()
    return reader.file(read_yaml(source), path, source), reader.read.faults


@dataclass(frozen=True, slots=True)
class _CaseReader:
    """Turns nodes into cases."""

    read: Reader = field(default_factory=Reader)

    def file(self, root: Node, path: Path, source: Source) -> TestFile:
        read = self.read
        fields = read.mapping(root, "a test file", ("format", "policy", "cases"), required=("cases",))
        if "format" in fields and fields["format"].value != FORMAT:
            read.fault("GW421", f"this version reads `format: {FORMAT}` only", fields["format"].span)
        policy = sibling_policy(path)
        if "policy" in fields:
            policy = path.parent / read.text(fields["policy"], "`policy`")
        cases: list[Entry] = []
        if "cases" in fields:
            for node in read.sequence(fields["cases"], "`cases`"):
                cases += self.case(node)
        read.unique((case.name, case.span) for case in cases)
        return TestFile(path, policy, tuple(cases), source)

    def case(self, node: Node) -> Iterable[Entry]:
        """Return the cases of one entry of `cases`: one, or one per row of its table."""
        read = self.read
        allowed = ("name", "example", "context", "expect", "table", "for all", "samples", "seed")
        fields = read.mapping(node, "a case", allowed, required=("name",))
        if not isinstance(node.value, dict):
            return []
        name = read.text(fields["name"], "`name`") if "name" in fields else ""
        if "table" in fields:
            self.alone(fields, "table", ("example", "context", "expect", "for all", "samples", "seed"))
            return self.table(fields["table"], name)
        required = ("expect",) if "for all" in fields else ("example", "expect")
        for key in required:
            if key not in fields and not read.misspelt(node, key, allowed):
                read.fault("GW422", f"this case has no `{key}`", node.span, help="or a `table` of rows")
        if "for all" in fields:
            return [self.for_all(fields, name, node.span)]
        for key in ("samples", "seed"):
            if key in fields:
                read.fault("GW424", f"`{key}` belongs to a case with `for all`", fields[key].span)
        example = read.plain_mapping(fields.get("example"), "`example`")
        context = self.context(fields.get("context"))
        expect = read_expectations(read, fields.get("expect"))
        return [Case(name, example, _context(context), expect, node.span)]

    def alone(self, fields: Mapping[str, Node], key: str, others: Iterable[str]) -> None:
        for other in others:
            if other in fields:
                message = f"a case with a `{key}` has no `{other}` of its own"
                help = "put it into `table`: `base`, `context`, or a row"
                self.read.fault("GW424", message, fields[other].span, help)

    def for_all(self, fields: Mapping[str, Node], name: str, span: Span) -> ForAll:
        read = self.read
        generators = read.mapping(fields["for all"], "`for all`", None)
        example = read.mapping(fields["example"], "`example`", None) if "example" in fields else {}
        for key in example.keys() & generators.keys():
            read.fault("GW424", f"`{key}` has a value in `example` already", generators[key].span)
        drawn: dict[Variable, Generator] = {}
        context = self.context(fields.get("context"), drawn)
        samples = read.count(fields["samples"], "`samples`") if "samples" in fields else DEFAULT_SAMPLES
        if not 1 <= samples <= MAX_SAMPLES and "samples" in fields:
            read.fault("GW423", f"`samples` must lie in 1..{MAX_SAMPLES}", fields["samples"].span)
        return ForAll(
            name=name,
            generators={key: read_generator(node) for key, node in generators.items()},
            example=example,
            context=_context(context),
            drawn=drawn,
            expect=read_expectations(read, fields.get("expect")),
            samples=samples,
            seed=read.count(fields["seed"], "`seed`") if "seed" in fields else 0,
            span=span,
        )

    def table(self, node: Node, name: str) -> Iterable[Case]:
        read = self.read
        fields = read.mapping(node, "a table", ("base", "context", "rows"), required=("rows",))
        base = read.plain_mapping(fields.get("base"), "`base`")
        shared = self.context(fields.get("context"))
        if "rows" not in fields:
            return []
        return [
            self.row(row, name, number, base, shared)
            for number, row in enumerate(read.sequence(fields["rows"], "`rows`"), 1)
        ]

    def row(
        self, node: Node, table: str, number: int, base: Mapping[str, object], shared: Mapping[str, Any]
    ) -> Case:
        read = self.read
        fields = read.mapping(node, "a row", ("name", "example", "context", "expect"), required=("expect",))
        label = read.text(fields["name"], "`name`") if "name" in fields else f"row {number}"
        example = {**base, **read.plain_mapping(fields.get("example"), "`example`")}
        own = self.context(fields.get("context"))
        context = {**shared, **own, "signals": {**shared.get("signals", {}), **own.get("signals", {})}}
        expect = read_expectations(read, fields.get("expect"))
        return Case(f"{table}: {label}", example, _context(context), expect, node.span)

    def context(self, node: Node | None, drawn: dict[Variable, Generator] | None = None) -> dict[str, Any]:
        """Return the given fields of a context under the names of `Context`.

        Where domains are allowed, those found are put into `drawn`.
        """
        if node is None:
            return {}
        read = self.read
        known = ("step", "epoch", "at", "exposures", "signals", "spent")
        fields = read.mapping(node, "`context`", known)
        context: dict[str, Any] = {}

        def varies(kind: str, name: str, value: Node) -> bool:
            if drawn is None or not is_domain(value):
                return False
            drawn[Variable(kind, name)] = read_generator(value)  # type: ignore[arg-type]  # a literal below
            return True

        for key in ("step", "epoch", "exposures"):
            if key in fields and not varies("clock", key, fields[key]):
                context[key] = read.count(fields[key], f"`{key}`")
        if "at" in fields and not varies("clock", "at", fields["at"]):
            context["at"] = read.date(fields["at"])
        if "signals" in fields:
            signals = read.mapping(fields["signals"], "`signals`", None)
            fixed = {key: value for key, value in signals.items() if not varies("signal", key, value)}
            context["signals"] = {key: read.number(value, f"`{key}`") for key, value in fixed.items()}
        if "spent" in fields:
            context["spent"] = frozenset(name for name, _ in read.words(fields["spent"], "`spent`"))
        return context


def _context(fields: Mapping[str, Any]) -> Context:
    build: Callable[..., Context] = Context
    return build(**fields)
