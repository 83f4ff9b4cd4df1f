"""Comments that allow a finding: `# gradwarden: allow GW525 because …`.

Such a comment is about what it stands beside: the declaration, clause or entry that it follows on its line,
or the one that begins on the line below it. It names one or more codes of lints and gives a reason. What is
an error cannot be allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from gradwarden.policy.errors import did_you_mean
from gradwarden.policy.frozen import frozen
from gradwarden.policy.linting.edits import removed
from gradwarden.policy.linting.registry import BY_CODE, Input
from gradwarden.policy.linting.subject import Finding, Report
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.lexemes import Lexeme, lexemes

MARK = "gradwarden:"

_ALLOWANCE = re.compile(
    r"#\s*gradwarden:\s*allow\s+(?P<codes>\w+(?:\s*,\s*\w+)*)\s*(?:because\s+(?P<because>.*\S))?\s*\Z"
)

OWN = frozenset({"GW536", "GW538"})
"""Findings about these comments, which no comment allows."""


@frozen
class Allowance:
    """A comment that allows findings of some codes inside any of its spans."""

    codes: tuple[str, ...]
    comment: Span
    covers: tuple[Span, ...]

    def allows(self, finding: Finding) -> bool:
        span = finding.diagnostic.span
        return (
            finding.diagnostic.code in self.codes
            and span is not None
            and any(own.source is span.source and own.start <= span.start < own.end for own in self.covers)
        )


def apply_allowances(
    files: Sequence[s.File], findings: Iterable[Finding], given: frozenset[Input]
) -> list[Finding]:
    """Return the findings that no comment allows, and those about the comments themselves.

    `given` says which inputs the lints had: a comment that allows a finding of a lint that did not run is not
    idle.
    """
    kept = list(findings)
    report = Report()
    for number, file in enumerate(files):
        if MARK not in file.source.text:
            continue
        for allowance in _allowances(file, report):
            allowed = {id(finding): finding.diagnostic.code for finding in kept if allowance.allows(finding)}
            kept = [finding for finding in kept if id(finding) not in allowed]
            if number == 0:  # what is imported may be needed by another policy that imports it
                _idle(report, allowance, frozenset(allowed.values()), given)
    return [*kept, *report.findings]


def _idle(report: Report, allowance: Allowance, used: frozenset[str], given: frozenset[Input]) -> None:
    """Report the codes of a comment that nothing was found for."""
    idle = [
        code
        for code in allowance.codes
        if code not in used and (BY_CODE[code].needs is None or BY_CODE[code].needs in given)
    ]
    if idle:
        listed = ", ".join(idle)
        edits = removed(allowance.comment) if len(idle) == len(allowance.codes) else ()
        message = f"there is no {listed} here to allow"
        report.add("GW538", message, allowance.comment, "leave the comment out", edits)


def _allowances(file: s.File, report: Report) -> Iterator[Allowance]:
    """Yield the comments of a file that allow something; report those that are malformed."""
    stream = lexemes(file.source.text)
    spans = list(_spans(file.items))
    for index, lexeme in enumerate(stream):
        if lexeme.kind != "comment" or MARK not in lexeme.text:
            continue
        comment = Span(file.source, lexeme.start, lexeme.start + len(lexeme.text))
        codes = _codes(lexeme.text, comment, report)
        if codes:
            yield Allowance(codes, comment, tuple(_covered(file.source, stream, index, spans)))


def _codes(text: str, comment: Span, report: Report) -> tuple[str, ...]:
    match = _ALLOWANCE.match(text)
    form = "write `# gradwarden: allow GW525 because …`"
    if match is None:
        if re.match(r"#\s*gradwarden:", text):
            report.add("GW536", "this comment allows nothing", comment, form)
        return ()
    codes = tuple(code.strip() for code in match["codes"].split(","))
    for code in codes:
        if code not in BY_CODE or code in OWN:
            known = [known for known in BY_CODE if known not in OWN]
            help = did_you_mean(code, known, 0.8) or "only warnings and notes can be allowed"
            report.add("GW536", f"`{code}` is no finding that can be allowed", comment, help)
            return ()
    if match["because"] is None:
        report.add("GW536", "this comment gives no reason", comment, f"{form}: without one it does nothing")
        return ()
    return codes


def _spans(items: Sequence[s.Item]) -> Iterator[Span]:
    """Yield the span of every declaration, and of every entry in it."""
    for item in items:
        yield item.span
        match item:
            case s.Examples(fields=entries) | s.Signals(fields=entries):
                yield from (entry.span for entry in entries)
            case s.Model(parts, semantics):
                yield from (part.span for part in parts)
                yield from (setting.span for setting in semantics)
            case s.Gradient(caps, paces, recorded):
                yield from (cap.span for cap in caps)
                yield from (pace.span for pace in paces)
                yield from (setting.span for setting in recorded)
            case s.Phases(phases=entries):
                yield from (entry.span for entry in entries)
            case s.Rule(clauses=clauses):
                yield from (clause.span for clause in clauses)
            case s.Assertion(claim=claim):
                yield claim.span
            case _:
                pass


def _covered(source: Source, stream: Sequence[Lexeme], index: int, spans: Sequence[Span]) -> Iterator[Span]:
    """Yield what the comment at an index of the lexemes is about."""
    comment = stream[index]
    beside = index > 0 and comment.breaks == 0
    text = source.text
    if beside:
        line = text.rfind("\n", 0, comment.start) + 1
        yield Span(source, line, comment.start)
        yield from (span for span in spans if line < span.end <= comment.start)
        return
    following = next((lexeme for lexeme in stream[index:] if lexeme.kind != "comment"), None)
    if following is not None:
        end = text.find("\n", following.start)
        yield Span(source, following.start, len(text) if end < 0 else end)
        yield from (span for span in spans if span.start == following.start)
