"""Lints of dates, stages and terms. Those that depend on the day are told it; nothing here reads a clock."""

from __future__ import annotations

from gradwarden.policy.checking.types import MAX_DAY, day_text
from gradwarden.policy.decimals import scaled
from gradwarden.policy.linting.domain import Domain
from gradwarden.policy.linting.possible import always, never
from gradwarden.policy.linting.subject import MAX_TESTS, Report, SourcedRule, Subject, expressions, parts
from gradwarden.policy.program import Limit, Waiver
from gradwarden.policy.syntax import tree as s

MAX_WAIVER_DAYS = 3 * 366
"""A waiver that runs longer is an exception in name only."""

Stage = tuple[str, int, int | None]
"""The clock of a stage, its first count and the one after its last (None: open)."""


# --- curricula ----------------------------------------------------------------------------------------------


def lint_stages(subject: Subject, report: Report) -> None:
    """Report times between the stages of a curriculum, at which nothing is limited."""
    for rule in subject.of_kind(Limit):
        if isinstance(rule.item, s.Rule) and rule.item.kind == "curriculum":
            _gap(subject, report, rule, rule.item)


def _gap(subject: Subject, report: Report, rule: SourcedRule, item: s.Rule) -> None:
    stages: list[tuple[Stage, s.Clause]] = []
    times: list[s.Clause] = []
    for clause in item.clauses:
        if isinstance(clause, s.Targets):
            stage = _stage(subject, times)
            if stage is None:
                return
            stages.append((stage, times[0]))
            times = []
        elif isinstance(clause, s.Timing | s.During | s.InPhase):
            times.append(clause)
    if len({clock for (clock, _, _), _ in stages}) != 1:
        return
    stages.sort(key=lambda stage: stage[0][1])
    end = stages[0][0][2]
    for (clock, first, after), clause in stages[1:]:
        if end is None:
            return
        if first > end:
            last = day_text(first - 1) if clock == "day" else str(first - 1)
            start = day_text(end) if clock == "day" else str(end)
            span = f"{clock} {start}" if start == last else f"{clock} {start} to {last}"
            message = f"no stage of `{item.name.text}` holds at {span}, so nothing is limited then"
            report.add("GW535", message, clause.span, "let this stage begin where the one before it ends")
        end = None if after is None else max(end, after)


def _stage(subject: Subject, times: list[s.Clause]) -> Stage | None:
    """Return when a stage holds, or None where that is not one interval of one clock."""
    known: list[Stage] = []
    for clause in times:
        match clause:
            case s.Timing(word, s.Moment(kind, value)) if word != "until":
                count = _count(value)
                if count is None:
                    return None
                known.append((kind, count, None) if word == "from" else (kind, 0, count))
            case s.During(kind, lo, hi):
                first, last = _count(lo), _count(hi)
                if first is None or last is None:
                    return None
                known.append((kind, first, last + 1))
            case s.InPhase(phase):
                stage = _phase(subject, phase.text)
                if stage is None:
                    return None
                known.append(stage)
    if len({clock for clock, _, _ in known}) != 1:
        return None
    ends = [after for _, _, after in known if after is not None]
    return known[0][0], max(first for _, first, _ in known), min(ends) if ends else None


def _phase(subject: Subject, name: str) -> Stage | None:
    before: tuple[str, int] | None = None
    for phase in subject.scope.phases:
        if before and phase.clock not in (None, before[0]):
            return None
        if phase.name == name:
            clock = phase.clock or (before[0] if before else None)
            start = before[1] if before else 0
            return None if clock is None else (clock, start, phase.end if phase.clock else None)
        if phase.clock is None:
            return None
        before = (phase.clock, phase.end)
    return None


def _count(value: s.Quantity | s.Day | s.Name) -> int | None:
    match value:
        case s.Day(days):
            return days
        case s.Quantity(number):
            return scaled(number, 0)
        case s.Name():
            return None


# --- the day ------------------------------------------------------------------------------------------------


def lint_dates(subject: Subject, report: Report, today: int) -> None:
    """Report what the day of the check has left behind, and waivers that lapse too late.

    `today` counts days since 1970-01-01.
    """
    later = Domain(
        subject.program.attributes, subject.program.signals, {"today": (today, MAX_DAY)}, fuel=MAX_TESTS
    )
    for rule in subject.rules:
        match rule.rule, rule.item:
            case Waiver(until=until), _:
                _waiver(report, rule, until, today)
            case Limit(), s.Rule(clauses=clauses):
                for clause in clauses:
                    _clause(report, rule, clause, today)
            case _:
                pass
    for item in subject.items:
        for expr in expressions(item):
            _comparisons(subject, report, expr, later, today)


def _waiver(report: Report, rule: SourcedRule, until: int, today: int) -> None:
    clause = rule.clause(s.Timing)
    span = clause.span if clause else rule.name
    name = rule.item.name.text
    if until <= today:
        message = f"this waiver of `{name}` lapsed on {day_text(until)}"
        report.add("GW517", message, span, "leave it out, or have it approved anew")
    elif until - today > MAX_WAIVER_DAYS:
        message = f"this waiver of `{name}` runs until {day_text(until)}, more than three years from now"
        help = "let it lapse earlier and be approved anew, or change the rule"
        report.add("GW518", message, span, help)


def _clause(report: Report, rule: SourcedRule, clause: s.Clause, today: int) -> None:
    name = rule.item.name.text
    match clause:
        case s.Timing("until", s.Moment(value=s.Day(days))) if days <= today:
            message = f"`{name}` ended on {day_text(days)}: its examples are refused for good"
            report.add(
                "GW519", message, clause.span, "leave out what is never learned again, or extend the term"
            )
        case s.Timing("from", s.Moment(value=s.Day(days))) if days <= today and _retains(rule):
            message = f"the embargo of `{name}` ended on {day_text(days)}"
            report.add("GW519", message, clause.span, "leave the clause out")
        case s.Timing("before", s.Moment(value=s.Day(days))) if days <= today:
            message = f"this stage of `{name}` was over on {day_text(days)}"
            report.add("GW519", message, clause.span, "leave the stage out")
        case s.During("day", _, s.Day(days)) if days < today:
            message = f"this stage of `{name}` was over after {day_text(days)}"
            report.add("GW519", message, clause.span, "leave the stage out")
        case _:
            pass


def _retains(rule: SourcedRule) -> bool:
    return isinstance(rule.item, s.Rule) and rule.item.kind == "retain"


def _comparisons(subject: Subject, report: Report, expr: s.Expr, later: Domain, today: int) -> None:
    pending = [expr]
    while pending:
        node = pending.pop()
        if isinstance(node, s.Comparison | s.InRange) and _reads_only_today(node):
            condition = subject.lower(node)
            if condition is not None and not subject.warned(node.span):
                decided = "never" if never(later, condition) else "always" if always(later, condition) else ""
                if decided:
                    message = f"this {decided} holds from {day_text(today)} on"
                    report.add(
                        "GW519", message, node.span, "its date is past; leave it out, or move the date"
                    )
        else:
            pending += parts(node)


def _reads_only_today(expr: s.Expr) -> bool:
    names = set()
    pending = [expr]
    while pending:
        node = pending.pop()
        if isinstance(node, s.Reference):
            names.add(node.name)
        pending += parts(node)
    return names == {"today"}


# --- the length of an epoch ---------------------------------------------------------------------------------


def lint_retention(subject: Subject, report: Report, today: int, epoch_days: int) -> None:
    """Report data that are open for less time than one epoch takes."""
    for rule in subject.of_kind(Limit):
        if not isinstance(rule.item, s.Rule) or rule.item.kind != "retain":
            continue
        ends = {
            clause.word: clause
            for clause in rule.item.clauses
            if isinstance(clause, s.Timing) and isinstance(clause.moment.value, s.Day)
        }
        until = _day(ends.get("until"))
        if until is None or until <= today:
            continue
        days = until - max(_day(ends.get("from")) or today, today)
        if days < epoch_days:
            message = f"`{rule.item.name.text}` leaves {days} days, and an epoch takes {epoch_days}"
            help = "which of its examples are learned depends on their place in the epoch"
            report.add("GW523", message, ends["until"].span, help)


def _day(timing: s.Timing | None) -> int | None:
    return timing.moment.value.days if timing and isinstance(timing.moment.value, s.Day) else None
