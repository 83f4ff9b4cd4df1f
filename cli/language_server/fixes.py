"""Edits that mend findings, where the finding's help says how.

Each is tried on the policy before it is offered: the finding must be gone.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from gradwarden.cli.language_server.workspace import View, Workspace, judge, place_of
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.frozen import frozen
from gradwarden.policy.linting.subject import Edit, Finding
from gradwarden.policy.load import read_files
from gradwarden.policy.source import Source, Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.names import parts_of

_MEANT = re.compile(r"did you mean `([^`]+)`\?")
_WRITE = re.compile(r"write `([^`…]+)`(?:, or .*)?")
_UNQUOTE = re.compile(r"write the \w+ without quotes: `([^`]+)`")
_LEAVE_OUT = re.compile(r"leave out the `(.)`")
_ABSENT = re.compile(r"`(\w+)` may be absent")
_LACKS = re.compile(r'lacks `((?:because|approved by) "…")`')

_REPLACED = frozenset({"GW101", "GW102", "GW201", "GW206", "GW302", "GW450", "GW463", "GW501"})
"""Codes whose `write …` stands for the whole span."""

_DOUBLED = ("&&", "||", "//")


@frozen
class Fix:
    """Edits that mend a finding, and what they do in a few words."""

    title: str
    edits: tuple[Edit, ...]


def fixes(workspace: Workspace, view: View, finding: Finding) -> list[Fix]:
    """Return the edits that are known to mend a finding of a policy."""
    diagnostic = finding.diagnostic
    if diagnostic.span is None:
        return []
    source = diagnostic.span.source
    file = next((x for x in view.files if x.source == source), None)
    if file is None:
        return []
    found = list(_candidates(diagnostic, diagnostic.span, file))
    if finding.edits:
        found.insert(0, Fix(_title(diagnostic), finding.edits))
    return [fix for fix in found if _mends(workspace, view, diagnostic, fix)]


def _title(diagnostic: Diagnostic) -> str:
    return f"mend: {diagnostic.message}"


def _fix(title: str, span: Span, text: str) -> Fix:
    return Fix(title, (Edit(span, text),))


def _candidates(finding: Diagnostic, span: Span, file: s.File) -> Iterator[Fix]:
    help = finding.help or ""
    if match := _MEANT.fullmatch(help):
        yield _fix(f"change to `{match[1]}`", span, _as_written(span, match[1]))
    elif finding.code in _REPLACED and (match := _WRITE.fullmatch(help)):
        wide = _with_membership(_widened(span), match[1])
        spaced = f"{match[1]} " if match[1].isalpha() and wide.text == "!" else match[1]
        yield _fix(f"change to `{match[1]}`", wide, spaced)
    elif match := _UNQUOTE.fullmatch(help):
        start = span.text.find(f'"{match[1]}"')
        if start >= 0:
            quoted = Span(span.source, span.start + start, span.start + start + len(match[1]) + 2)
            yield _fix(f"change to `{match[1]}`", quoted, match[1])
    elif match := _LEAVE_OUT.fullmatch(help):
        yield _fix(f"remove `{match[1]}`", span, "")
    yield from _by_code(finding, span, file, help)


def _by_code(finding: Diagnostic, span: Span, file: s.File, help: str) -> Iterator[Fix]:
    match finding.code:
        case "GW101" if help == "a `}` is missing before it":
            yield _fix("close the block", Span(span.source, span.start, span.start), "}\n\n")
        case "GW102" if help.startswith("comments begin"):
            yield _fix("change to `#`", _widened(span), "#")
        case "GW102" if help.endswith("write a plain space"):
            yield _fix("change to a plain space", span, " ")
        case "GW103":
            line_end = span.source.text.find("\n", span.start)
            end = len(span.source.text) if line_end < 0 else line_end
            yield _fix("close the string", Span(span.source, end, end), '"')
        case "GW111":
            yield _fix("remove the invisible character", span, "")
        case "GW304":
            if absent := _ABSENT.fullmatch(finding.message):
                yield from _guarded(span, file, absent[1])
        case "GW502" | "GW451":
            lacks = _LACKS.search(finding.message)
            clause = 'because "…"' if finding.code == "GW502" else lacks[1] if lacks else None
            rule = _rule_of(span, file)
            if clause and rule:
                yield _added(rule, clause)


def _as_written(span: Span, word: str) -> str:
    """Return a word as it is written where a span stands: values that are not names are quoted."""
    return f'"{word}"' if span.text.startswith('"') or not re.fullmatch(r"[\w=<>!.+*-]+", word) else word


def _widened(span: Span) -> Span:
    """Return the span of a doubled character, such as `&&`, whose first half is a fault."""
    pair = span.source.text[span.start : span.start + 2]
    return Span(span.source, span.start, span.start + 2) if pair in _DOUBLED else span


def _with_membership(span: Span, test: str) -> Span:
    """Return the span of `pii in tags`, where `tags contains pii` is to be written for `pii`."""
    attribute, _, _ = test.partition(" contains ")
    rest = re.compile(rf"\s+in\s+{re.escape(attribute)}\b").match(span.source.text, span.end)
    return Span(span.source, span.start, rest.end()) if rest and " contains " in test else span


# --- clauses ------------------------------------------------------------------------------------------------


def _rule_of(span: Span, file: s.File) -> s.Rule | None:
    rules = (item for item in file.items if isinstance(item, s.Rule))
    return next((rule for rule in rules if rule.span.start <= span.start < rule.span.end), None)


def _added(rule: s.Rule, clause: str) -> Fix:
    """Return the edit that adds a clause at the end of a rule, on a line of its own where others have one."""
    source, last = rule.span.source, rule.span.end - 1
    body = source.text[rule.span.start : last]
    end = rule.span.start + len(body.rstrip())
    if body.rpartition("\n")[2].strip():
        return _fix(f"add `{clause}`", Span(source, end, end), f"  {clause}")
    if body.rstrip().rpartition("\n")[2].lstrip().startswith("#") or "#" in body.rstrip().rpartition("\n")[2]:
        end = rule.span.start + len(body.rstrip(" \t").removesuffix("\n"))
    return _fix(f"add `{clause}`", Span(source, end, end), f"\n  {clause}")


def _guarded(span: Span, file: s.File, name: str) -> Iterator[Fix]:
    """Yield the edit that asks whether an attribute is there before it is read."""
    title = f"test `has {name}` first"
    for expr in _conditions(file):
        if expr.span.start <= span.start and span.end <= expr.span.end:
            test, parent = _test_around(expr, span)
            guard = f"has {name} and "
            if isinstance(parent, s.Negation) and not _in_parentheses(test.span):
                yield _fix(title, test.span, f"({guard}{test.span.text})")
            else:
                yield _fix(title, Span(span.source, test.span.start, test.span.start), guard)
            return
    if (rule := _rule_of(span, file)) is not None:
        when = next((clause for clause in rule.clauses if isinstance(clause, s.When)), None)
        if when is None:
            start = span.source.text.index("{", rule.span.start) + 1
            yield _fix(title, Span(span.source, start, start), f" when has {name} ")
        elif isinstance(when.condition, s.Implication) or (
            isinstance(when.condition, s.Junction) and when.condition.op == "or"
        ):
            condition = Span(span.source, when.span.start + len("when"), when.span.end)
            yield _fix(title, condition, f" ({condition.text.strip()}) and has {name}")
        else:
            yield _fix(title, Span(span.source, when.span.end, when.span.end), f" and has {name}")


def _conditions(file: s.File) -> Iterator[s.Expr]:
    for item in file.items:
        match item:
            case s.Let(_, condition) | s.EntropyBand(_, condition):
                yield condition
            case s.Rule():
                for clause in item.clauses:
                    if isinstance(clause, s.When):
                        yield clause.condition
            case s.Assertion(claim=s.Claim(condition=condition)) if condition is not None:
                yield condition
            case _:
                pass


def _test_around(expr: s.Expr, span: Span) -> tuple[s.Expr, s.Expr | None]:
    """Return the innermost whole test that holds a span, and what joins or negates it."""
    parent: s.Expr | None = None
    while isinstance(expr, s.Junction | s.Negation | s.Implication):
        inner = next(
            (x for x in parts_of(expr) if x.span.start <= span.start and span.end <= x.span.end), None
        )
        if inner is None:
            break
        expr, parent = inner, expr
    return expr, parent


def _in_parentheses(span: Span) -> bool:
    text = span.source.text
    return text[: span.start].rstrip().endswith("(") and text[span.end :].lstrip().startswith(")")


# --- trial --------------------------------------------------------------------------------------------------


def _mends(workspace: Workspace, view: View, diagnostic: Diagnostic, fix: Fix) -> bool:
    """Whether a finding is gone once a policy is edited, and no new error has come."""

    def mended(name: str, text: str) -> str:
        edits = [x for x in fix.edits if place_of(x.span.source.name) == place_of(name)]
        return applied(text, edits) if edits else text

    def read(path: Path) -> str | Diagnostic:
        text = workspace.read(path)
        return mended(str(path), text) if isinstance(text, str) else text

    main = view.files[0].source
    directory = Path(main.name).parent if os.path.isabs(main.name) else None
    found = judge(read_files(Source(main.name, mended(main.name, main.text)), directory, read))
    before, after = (Counter(_keys(x)) for x in (view.found, found))
    key = (diagnostic.code, diagnostic.message, diagnostic.severity)
    new_errors = any(severity == "error" for _, _, severity in after - before)
    return after[key] < before[key] and (_reveals(diagnostic) or not new_errors)


def _keys(found: Iterable[Finding]) -> list[tuple[str, str, str]]:
    return [(x.diagnostic.code, x.diagnostic.message, x.diagnostic.severity) for x in found]


def _reveals(diagnostic: Diagnostic) -> bool:
    """Whether a finding keeps others from being looked for, which come to light once it is mended."""
    return diagnostic.code < "GW2" or _MEANT.fullmatch(diagnostic.help or "") is not None


def applied(text: str, edits: Iterable[Edit]) -> str:
    """Return a text with edits made to it, which do not overlap."""
    for edit in sorted(edits, key=lambda x: x.span.start, reverse=True):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text
