"""Lints of conditions: those that never hold, those that always do, and parts that change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradwarden.policy.checking.logic import conjunction, disjunction
from gradwarden.policy.linting.edits import removed, removed_term
from gradwarden.policy.linting.possible import always, entangled, never, possible
from gradwarden.policy.linting.subject import Report, SourcedRule, Subject, parts
from gradwarden.policy.program import Assertion, Condition, Constant, Limit, Waiver
from gradwarden.policy.syntax import tree as s

MAX_TERMS = 32
"""The longest conjunction or disjunction whose parts are held against each other."""


def lint_conditions(subject: Subject, report: Report) -> None:
    """Report conditions, and parts of conditions, that are decided whatever the example is."""
    for rule in subject.rules:
        expr = rule.when
        if expr is None:
            _stages(subject, report, rule)
            continue
        condition = _own_condition(subject, rule, expr)
        if condition is None:
            continue
        intricate = _is_intricate(subject, expr, condition)
        if intricate and _decided(subject, report, rule, expr, condition):
            continue
        _stages(subject, report, rule)
        if intricate:
            _parts(subject, report, expr)
    for name, item in subject.scope.named.items():
        condition = subject.conditions.named(name, item.name.span).condition
        expr = item.condition
        if not _is_intricate(subject, expr, condition) or subject.warned(expr.span):
            continue
        if never(subject.domain, condition):
            report.add("GW510", f"`{name}` can never hold", expr.span, _why_never(subject, expr))
        elif always(subject.domain, condition) and not isinstance(expr, s.Truth):
            report.add("GW513", f"`{name}` always holds", expr.span, "say what it is to tell apart")
        else:
            _parts(subject, report, expr)


def _is_intricate(subject: Subject, expr: s.Expr, condition: Condition) -> bool:
    """Whether there is anything to find in a condition: most test each thing once.

    What is repeated word for word, and `true` and `false`, are gone from the compiled form.
    """
    return id(expr) in subject.conditions.folded or entangled(subject.domain, condition)


def _own_condition(subject: Subject, rule: SourcedRule, expr: s.Expr) -> Condition | None:
    """Return the condition of a rule, without the times that its clauses add."""
    match rule.rule:
        case Limit(kind="suppress" | "memorization" | "privacy", clauses=clauses) if (
            clauses[0].effect != "exposures_spent"
        ):
            return clauses[0].when
        case Limit() | Waiver():
            return subject.lower(expr)
        case other:
            return other.when


def _decided(subject: Subject, report: Report, rule: SourcedRule, expr: s.Expr, condition: Condition) -> bool:
    """Report a condition that never or always holds; return whether it is one."""
    name = rule.item.name.text
    if never(subject.domain, condition):
        if not subject.warned(expr.span):
            what = f"the waiver of `{name}`" if isinstance(rule.rule, Waiver) else f"`{name}`"
            report.add("GW510", f"{what} can never match", expr.span, _why_never(subject, expr))
        return True
    if isinstance(rule.rule, Assertion) and rule.rule.form == "implies":
        return False
    if not always(subject.domain, condition):
        return False
    if not subject.warned(expr.span):
        clause = rule.clause(s.When)
        guard = isinstance(rule.item, s.Rule) and rule.item.kind == "memorization"
        needed = guard and rule.clause(s.HoldOut) is None
        edits = removed(clause.span) if clause and condition == Constant(True) and not needed else ()
        help = "leave it out, if the rule is about every example"
        report.add("GW513", "this condition always holds", expr.span, help, edits)
    return True


def _why_never(subject: Subject, expr: s.Expr) -> str | None:
    """Name two parts of a condition that exclude each other."""
    if not isinstance(expr, s.Junction) or expr.op != "and" or len(expr.terms) > MAX_TERMS:
        return None
    lowered = [(term, condition) for term in expr.terms if (condition := subject.lower(term)) is not None]
    for index, (term, condition) in enumerate(lowered):
        if never(subject.domain, condition):
            return f"`{_shown(term)}` never holds"
        for other, opposite in lowered[:index]:
            if never(subject.domain, condition, opposite):
                return f"`{_shown(other)}` and `{_shown(term)}` exclude each other"
    return None


def _shown(expr: s.Expr) -> str:
    text = " ".join(expr.span.text.split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def _stages(subject: Subject, report: Report, rule: SourcedRule) -> None:
    """Report a limit of which some part can never match, though its own condition can."""
    if not isinstance(rule.rule, Limit) or rule.rule.kind not in ("retain", "curriculum"):
        return
    if any(never(subject.domain, clause.when) for clause in rule.rule.clauses):
        what = "a stage" if rule.rule.kind == "curriculum" else "a part"
        help = "its times exclude each other, or the rule's condition"
        report.add("GW510", f"{what} of `{rule.item.name.text}` can never match", rule.name, help)


# --- parts --------------------------------------------------------------------------------------------------


def _parts(subject: Subject, report: Report, expr: s.Expr) -> None:
    for junction in _junctions(expr):
        if len(junction.terms) <= MAX_TERMS:
            _idle_terms(subject, report, junction)


def _junctions(expr: s.Expr) -> Iterator[s.Junction]:
    pending = [expr]
    while pending:
        node = pending.pop()
        if isinstance(node, s.Junction):
            yield node
        if isinstance(node, s.Junction | s.Negation | s.Implication | s.Comparison):
            pending += parts(node)


def _idle_terms(subject: Subject, report: Report, junction: s.Junction) -> None:
    """Report the terms that follow from the others, the later of two that say the same.

    A term with `has` may be there to make what comes after it readable, so that only what comes before it
    counts.
    """
    terms, reads = junction.terms, [subject.reads(term) for term in junction.terms]
    kept = list(range(len(terms)))
    for index in reversed(range(len(terms))):
        others = [
            other
            for other in kept
            if other != index
            and reads[other] & reads[index]
            and (other < index or not _tests_presence(terms[index]))
        ]
        alone = isinstance(terms[index], s.InList | s.Truth)
        if (not others and not alone) or subject.warned(terms[index].span):
            continue
        if _follows(subject, junction, index, others):
            kept.remove(index)
            _report_idle(subject, report, junction, index)


def _follows(subject: Subject, junction: s.Junction, index: int, others: Sequence[int]) -> bool:
    """Whether a term of a conjunction follows from others; of a disjunction, whether it implies them."""
    terms = [subject.lower(junction.terms[i]) for i in (index, *others)]
    known = [term for term in terms if term is not None]
    if len(known) < len(terms):
        return False
    first, *rest = known
    truth = junction.op == "and"
    return possible(subject.domain, (first, not truth), *((term, truth) for term in rest)) is False


def _tests_presence(expr: s.Expr) -> bool:
    pending = [expr]
    while pending:
        node = pending.pop()
        if isinstance(node, s.Present):
            return True
        pending += parts(node)
    return False


def _report_idle(subject: Subject, report: Report, junction: s.Junction, index: int) -> None:
    term = junction.terms[index]
    rest = "the other parts of the condition"
    message = f"`{_shown(term)}` {'follows from' if junction.op == 'and' else 'is covered by'} {rest}"
    if isinstance(term, s.InList | s.Truth) and (lowered := subject.lower(term)) is not None:
        truth = junction.op == "and"
        if possible(subject.domain, (lowered, not truth)) is False:
            message = f"`{_shown(term)}` {'always' if truth else 'never'} holds"
    edits = [removed_term(junction, index)] if _is_folded(subject, junction, index) else []
    report.add("GW514", message, term.span, "leave it out", [edit for edit in edits if edit])


def _is_folded(subject: Subject, junction: s.Junction, index: int) -> bool:
    """Whether the compiled condition is the same without a term."""
    lowered = [subject.lower(term) for term in junction.terms]
    if any(term is None for term in lowered):
        return False
    known = [term for term in lowered if term is not None]
    join = conjunction if junction.op == "and" else disjunction
    return join(*known) == join(*known[:index], *known[index + 1 :])
