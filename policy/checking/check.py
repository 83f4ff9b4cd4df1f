"""From the files of a policy to a typed policy, or to every fault in them."""

from __future__ import annotations

from collections.abc import Sequence

from gradwarden.policy.checking.check_bands import check_bands
from gradwarden.policy.checking.check_conditions import Conditions
from gradwarden.policy.checking.check_guards import (
    check_assertion,
    check_gradient,
    check_paces,
    check_recorded,
    check_starvation,
    check_waiver,
    name_waivers,
)
from gradwarden.policy.checking.check_maintenance import Others, check_maintenance
from gradwarden.policy.checking.check_rules import check_rule
from gradwarden.policy.checking.check_schema import check_name, check_schema, whole
from gradwarden.policy.checking.scope import Faults, Scope
from gradwarden.policy.checking.types import MAX_COUNT
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Assertion, Grant, Limit, Modulation, Program, Waiver
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

LANGUAGE = 1
MAX_RULES = 10_000


@frozen
class CheckedPolicy:
    """A policy without faults: its program, not bound to a model, and where its rules and bands are.

    files and conditions are what lints look at: the syntax trees, and the names and conditions as checked.
    """

    program: Program
    rules: dict[str, Span]
    bands: dict[str, Span]
    files: tuple[s.File, ...]
    conditions: Conditions


def check(
    files: Sequence[s.File], syntax_faults: Sequence[Diagnostic], complete: bool
) -> tuple[CheckedPolicy | None, list[Diagnostic]]:
    """Check the files of a policy, the main one first, and look them through for what is doubtful.

    Returns the checked policy and its warnings, or None and all errors.
    """
    checked, found = check_types(files, syntax_faults, complete)
    if checked is None:
        return None, found
    from gradwarden.policy.linting.lint import lint

    return checked, [finding.diagnostic for finding in lint(checked)]


def check_types(
    files: Sequence[s.File], syntax_faults: Sequence[Diagnostic], complete: bool
) -> tuple[CheckedPolicy | None, list[Diagnostic]]:
    """Check the files of a policy, the main one first.

    Returns the checked policy and what the checker itself warns of (lints see more), or None and all errors.
    Where a text is not `complete`, names that it may declare are not reported as undeclared.
    """
    faults = Faults(list(syntax_faults), cascading=not complete)
    header = _header(files, faults)
    items = [item for file in files for item in file.items]
    scope = check_schema(items, faults)
    if not scope.bands and header and not faults.errors:
        help = "declare at least one: `model { all_layers = rest }`"
        faults.error("GW214", "the policy declares no `model`", header.span, help)
    conditions = Conditions(scope)
    rules = _Rules(items, conditions)
    for name, item in scope.named.items():
        conditions.named(name, item.name.span)
    check_bands(conditions)
    if header is None or faults.errors:
        return None, faults.errors
    program = _program(header, scope, rules)
    return CheckedPolicy(program, rules.spans, scope.band_spans, tuple(files), conditions), faults.found


def _header(files: Sequence[s.File], faults: Faults) -> s.Header | None:
    """Return the header, which stands once, first, in the main file."""
    headers = [item for item in files[0].items if isinstance(item, s.Header)]
    for extra in headers[1:]:
        faults.error("GW213", "a policy has one header", extra.span)
    for file in files[1:]:
        for item in file.items:
            if isinstance(item, s.Header):
                help = "leave the header out; only the policy that imports the file has one"
                faults.error("GW211", "an imported file is not a policy of its own", item.span, help)
    if not headers:
        if not faults.cascading:
            start = Span(files[0].source, 0, 1)
            help = "begin with `policy NAME version 1 language 1`"
            faults.error("GW213", "the policy has no header", start, help)
        return None
    header = headers[0]
    if files[0].items[0] is not header:
        faults.error("GW213", "the header comes first", header.span, "move it to the top of the file")
    check_name(faults, header.name)
    whole(faults, header.version, 0, MAX_COUNT, "the version")
    if header.language is not None and header.language.value != LANGUAGE:
        help = f"this gradwarden knows language {LANGUAGE}"
        faults.error(
            "GW467", f"unknown language version `{header.language.span.text}`", header.language.span, help
        )
    return header


class _Rules:
    """All rules of a policy, checked and lowered."""

    def __init__(self, items: Sequence[s.Item], conditions: Conditions) -> None:
        self.spans: dict[str, Span] = {}
        self.grants: list[Grant] = []
        self.limits: list[Limit] = []
        self.modulations: list[Modulation] = []
        self.assertions: list[Assertion] = []
        kinds = self._names(items, conditions.faults)
        waivers: list[Waiver | None] = []
        maintain: list[s.Rule] = []
        for item in items:
            match item:
                case s.Rule(kind="waive"):
                    waivers.append(check_waiver(item, conditions, kinds))
                case s.Rule(kind="maintain"):
                    maintain.append(item)
                case s.Rule():
                    self._add(check_rule(item, conditions))
                case s.Assertion():
                    self._add(check_assertion(item, conditions))
                case _:
                    pass
        self.waivers = name_waivers([waiver for waiver in waivers if waiver])
        self.maintained = check_maintenance(maintain, conditions, Others(kinds, self.grants, self.limits))
        self.starvation = check_starvation([i for i in items if isinstance(i, s.Starvation)], conditions)
        gradients = [i for i in items if isinstance(i, s.Gradient)]
        self.gradient = check_gradient(gradients, conditions)
        self.recorded = check_recorded(gradients, conditions)
        for limit, span in check_paces(gradients, conditions, self.limits).values():
            self.limits.append(limit)
            self.spans[limit.name] = span

    def _names(self, items: Sequence[s.Item], faults: Faults) -> dict[str, str]:
        """Return the kind of every rule by name; names are unique over all kinds."""
        kinds: dict[str, str] = {}
        for item in items:
            kind: str
            match item:
                case s.Rule() if item.kind != "waive":
                    kind = item.kind
                case s.Assertion():
                    kind = "assert"
                case _:
                    continue
            name = item.name
            if name.text in kinds:
                help = f"it is the name of the rule at {self.spans[name.text]}"
                faults.error("GW205", f"`{name.text}` is declared twice", name.span, help)
                continue
            check_name(faults, name)
            if len(kinds) == MAX_RULES:
                faults.error("GW466", f"a policy has at most {MAX_RULES} rules", name.span)
            kinds[name.text] = kind
            self.spans[name.text] = name.span
        return kinds

    def _add(self, rule: Grant | Limit | Modulation | Assertion | None) -> None:
        match rule:
            case Grant():
                self.grants.append(rule)
            case Limit():
                self.limits.append(rule)
            case Modulation():
                self.modulations.append(rule)
            case Assertion():
                self.assertions.append(rule)
            case None:
                pass


def _program(header: s.Header, scope: Scope, rules: _Rules) -> Program:
    return Program(
        name=header.name.text,
        version=int(header.version.value),
        language=LANGUAGE,
        max_weight=scope.ceiling,
        attributes=tuple(scope.attributes[name].spec for name in sorted(scope.attributes)),
        signals=tuple(scope.signals[name].spec for name in sorted(scope.signals)),
        bands=scope.bands,
        grants=tuple(sorted(rules.grants, key=lambda rule: rule.name)),
        limits=tuple(sorted(rules.limits, key=lambda rule: rule.name)),
        modulations=tuple(sorted(rules.modulations, key=lambda rule: rule.name)),
        waivers=rules.waivers,
        assertions=tuple(sorted(rules.assertions, key=lambda rule: rule.name)),
        starvation=rules.starvation,
        gradient_caps=rules.gradient,
        maintained=rules.maintained,
        recorded=rules.recorded,
        semantics=scope.semantics,
    )
