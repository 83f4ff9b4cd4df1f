"""Lints of what a policy declares: bands that nothing can reach, names that nothing uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from gradwarden.policy.checking.types import Attribute
from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.decimals import decimal_text, unscaled
from gradwarden.policy.linting.edits import removed
from gradwarden.policy.linting.subject import Edit, Report, Subject, expressions, parts
from gradwarden.policy.paces import noised_bands
from gradwarden.policy.program import SCALE, And, Compare, Condition, Has
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

_SHOWN = 8
"""How many names a finding lists."""


def lint_declarations(subject: Subject, report: Report) -> None:
    """Report what is declared and has no use, and what no rule can reach."""
    _language(subject, report)
    _reached(subject, report)
    _droughts(subject, report)
    _unread(subject, report)
    _unused(subject, report)
    _ceiling(subject, report)
    _phases(subject, report)
    _band_gaps(subject, report)


def _language(subject: Subject, report: Report) -> None:
    header = subject.header
    if header.language is None:
        help = f"write `policy {header.name.text} version {header.version.span.text} language 1`"
        end = header.version.span.end
        edit = Edit(Span(header.span.source, end, end), " language 1")
        report.add("GW501", "the language version is not pinned", header.span, help, [edit])


def _reached(subject: Subject, report: Report) -> None:
    scope = subject.scope
    enforced = [grant for grant in subject.program.grants if grant.level == "hard"]
    if not enforced:
        help = "what no `depth` rule grants is not learned"
        where = subject.header.name.span
        report.add("GW508", "no rule grants anything, so nothing will be learned", where, help)
        return
    kept = {name.text: rule for rule, within in _maintained(subject.items) for name in within.bands}
    for index, band in enumerate(scope.band_names):
        if any(grant.weights[index] for grant in enforced):
            continue
        if (rule := kept.get(band)) is not None:
            help = "leave it out: a band that learns nothing stays bit for bit as it is"
            report.add("GW548", f"no rule grants the band `{band}` that `{rule.text}` holds", rule.span, help)
        else:
            help = "name it in a `depth` rule, if it is to learn anything"
            if band == QUARANTINE:
                help = "`reach all` leaves it out; name it in a `depth` rule"
            report.add("GW503", f"no rule grants the band `{band}`", scope.band_spans[band], help)


def _droughts(subject: Subject, report: Report) -> None:
    """Report the starvation guards that speak in every run, since no mean weight is what they ask for."""
    program = subject.program
    guards = {guard.band: guard for guard in program.starvation}
    noised = noised_bands(program.limits)
    for item in subject.items:
        if not isinstance(item, s.Starvation) or item.below is None or item.action == "accept":
            continue
        band = item.band.text
        index = program.band_names.index(band)
        greatest = max((x.weights[index] for x in program.grants if x.level == "hard"), default=0)
        if 0 < greatest < guards[band].below and band not in noised:
            most = decimal_text(unscaled(greatest, 6))
            message = f"no rule grants the band `{band}` more than {most}, so it always starves"
            report.add("GW550", message, item.below.span, "ask for less than that, or grant more")


def _maintained(items: Iterable[s.Item]) -> Iterator[tuple[s.Name, s.Within]]:
    """Yield the name of each `maintain` rule and the bands that it holds."""
    for item in items:
        if isinstance(item, s.Rule) and item.kind == "maintain":
            yield from ((item.name, clause) for clause in item.clauses if isinstance(clause, s.Within))


def _unread(subject: Subject, report: Report) -> None:
    """Note the attributes that no rule reads, all at once.

    It is no warning: an attribute that records carry must be declared, whether or not a rule reads it. Files
    that are imported declare what several policies need.
    """
    scope = subject.scope
    unread: list[Attribute] = [
        attribute
        for name, attribute in scope.attributes.items()
        if name not in scope.used and attribute.span.source is subject.main.source
    ]
    if not unread:
        return
    names = [f"`{attribute.spec.name}`" for attribute in unread]
    if len(names) > _SHOWN + 1:
        names = [*names[:_SHOWN], f"{len(names) - _SHOWN} more attributes"]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    help = "leave out what no record carries; a record with an undeclared attribute is invalid"
    report.add("GW504", f"no rule reads {listed}", unread[0].span, help)


def _unused(subject: Subject, report: Report) -> None:
    scope, main = subject.scope, subject.main
    for name, signal in scope.signals.items():
        if name not in scope.used and signal.span.source is main.source:
            report.add("GW509", f"no rule reads the signal `{name}`", signal.span)
    for name, item in scope.named.items():
        if name not in scope.used and item.span.source is main.source:
            message = f"no rule uses the condition `{name}`"
            report.add("GW511", message, item.name.span, "use it, or leave it out", removed(item.span))


def _ceiling(subject: Subject, report: Report) -> None:
    program = subject.program
    highest = max((weight for grant in program.grants for weight in grant.weights), default=0)
    if program.max_weight > SCALE >= highest:
        for item in subject.items:
            if isinstance(item, s.MaxWeight):
                help = "grant more than 1 somewhere, as in `reach shallow at 2`, or leave the line out"
                report.add("GW531", "no rule grants a weight above 1", item.span, help)


def _phases(subject: Subject, report: Report) -> None:
    if not subject.scope.phases or any(map(_names_phase, subject.items)):
        return
    for item in subject.items:
        if isinstance(item, s.Phases) and item.span.source is subject.main.source:
            help = "write `in PHASE` in a curriculum, or `phase == PHASE` in a condition"
            report.add("GW534", "no rule refers to a phase", item.span, help)


def _names_phase(item: s.Item) -> bool:
    if isinstance(item, s.Rule) and any(isinstance(clause, s.InPhase) for clause in item.clauses):
        return True
    pending = list(expressions(item))
    while pending:
        node = pending.pop()
        if isinstance(node, s.Reference) and node.name == "phase":
            return True
        pending += parts(node)
    return False


def _band_gaps(subject: Subject, report: Report) -> None:
    """Report a value that lies between two entropy bands and in neither."""
    bands = []
    for name, item in subject.scope.named.items():
        if isinstance(item, s.EntropyBand) and item.span.source is subject.main.source:
            condition = subject.conditions.named(name, item.name.span).condition
            if (interval := _interval(subject, condition)) is not None:
                bands.append((*interval, name, item))
    bands.sort(key=lambda band: band[:4])
    for (attribute, _, hi, below, _), (other, lo, _, above, item) in pairwise(bands):
        if attribute == other and lo - hi == 2:
            spec = subject.scope.attributes[attribute].spec
            value = decimal_text(unscaled(hi + 1, spec.places))
            message = f"{value} lies between `{below}` and `{above}`, and in neither"
            report.add("GW542", message, item.condition.span, "let one of them include it: `<=` or `>=`")


def _interval(subject: Subject, condition: Condition) -> tuple[str, int, int] | None:
    """Return the attribute that a band is about, and its least and greatest value."""
    terms = condition.terms if isinstance(condition, And) else (condition,)
    known: dict[str, tuple[int, int]] = {}
    for term in terms:
        if isinstance(term, Has):
            continue
        if not isinstance(term, Compare):
            return None
        form, lo, hi, _ = subject.domain.bound(term)
        if len(form) != 1 or not form[0][0].startswith("a:"):
            return None
        spec = subject.scope.attributes[form[0][0][2:]].spec
        least, most = known.get(spec.name, (spec.lo, spec.hi))
        known[spec.name] = (least if lo is None else max(least, lo), most if hi is None else min(most, hi))
    if len(known) != 1:
        return None
    (name, (least, most)) = next(iter(known.items()))
    return name, least, most
