"""What a name stands for, in a few lines of Markdown: the text of hovers and of completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradwarden.cli.language_server.declarations import Declared, readers, title_of
from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.known_signals import BY_NAME
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.lexemes import Lexeme, lexemes, space_between
from gradwarden.policy.syntax.names import Occurrence, Symbol

MAX_CONDITION = 240
"""The longest condition that is repeated, in characters."""

MAX_LISTED = 12

CLOCKS = {
    "step": "steps of the run so far, counted from 0",
    "epoch": "epochs of the run so far, counted from 0",
    "today": "the calendar day that the run gives; never the machine's clock",
    "exposures": "how often this example has shaped the model before",
    "phase": "the current phase of the run",
}
"""What a condition may read without declaring it."""


def describe(
    symbol: Symbol, declared: Declared, files: Sequence[s.File], names: Sequence[Occurrence]
) -> str | None:
    """Return what a symbol stands for, in Markdown; None where its declaration is not to be found."""
    declaration = declared.of(symbol)
    if symbol.kind == "policy" or declaration is None:
        return None
    lines = list(_head(symbol, declaration, declared))
    if symbol.kind == "band":
        lines += _on_band(symbol.name, declared)
    elif symbol.kind not in ("rule", "value"):
        found = [
            f"`{rule}`" + (f" (through `{by}`)" if by else "") for rule, by in readers(files, names, symbol)
        ]
        lines.append(f"Read by {_listed(found)}." if found else "No rule reads it.")
    return "\n\n".join(lines)


def brief(symbol: Symbol, declared: Declared) -> str | None:
    """Return what a symbol stands for on one line, for a list of completions."""
    match declared.of(symbol):
        case s.Field(_, type_, optional) if symbol.kind == "attribute":
            return phrase(type_.span) + (" optional" if optional else "")
        case s.SignalField(_, type_):
            return f"signal, {phrase(type_.span)}"
        case s.Let(_, condition) | s.EntropyBand(_, condition):
            return short(phrase(condition.span))
        case s.Rule() | s.Assertion() as rule:
            return short(summary_of(rule))
        case s.Part() | s.Phase() as item:
            return phrase(item.span)
        case _:
            return None


def _head(symbol: Symbol, declaration: object, declared: Declared) -> Iterator[str]:
    """Yield how a symbol is declared, and what that means."""
    match declaration:
        case s.Field() if symbol.kind == "value":
            yield _code(symbol.name)
            yield f"A value of `{symbol.owner}`: {phrase(declaration.type.span)}."
        case s.Field(name, type_, optional):
            yield _code(f"{name.text} : {phrase(type_.span)}{' optional' if optional else ''}")
            yield "Attribute of an example" + (", which may lack it." if optional else ".")
        case s.SignalField(name, type_, default):
            given = f" It is {default.span.text} until a run gives a value." if default else ""
            yield _code(phrase(declaration.span))
            yield f"Signal that the run measures for each example, clamped to its range.{given}"
            known = BY_NAME.get(name.text)
            if known is not None:
                yield f"Measured by the governor itself: {known.meaning}. It needs {known.needs}."
        case s.Let():
            yield _code(short(phrase(declaration.span)))
            yield "Named condition."
        case s.EntropyBand():
            yield _code(short(phrase(declaration.span)))
            yield "Entropy band: an interval of one number attribute."
        case s.Part():
            yield _code(phrase(declaration.span))
            yield "Band of the model" + (", closed to `reach all`." if symbol.name == QUARANTINE else ".")
        case s.Phase(_, clock, end):
            yield _code(phrase(declaration.span))
            yield f"Phase of the run, until {clock} {end.span.text}." if end else "The last phase of the run."
        case s.Rule() | s.Assertion():
            yield _code(title_of(declaration))
            yield from _rule(declaration, declared)


def _rule(rule: s.Rule | s.Assertion, declared: Declared) -> Iterator[str]:
    summary = summary_of(rule)
    yield f"{summary[0].upper()}{summary[1:]}."
    if rule.level == "advisory":
        yield "Advisory: it is evaluated and recorded, and changes nothing."
    if (because := because_of(rule)) is not None:
        yield f"Because: {because}"
    for waiver in declared.waivers.get(rule.name.text, ()):
        yield f"Waived: {summary_of(waiver)}."


def because_of(rule: s.Rule | s.Assertion) -> str | None:
    """Return the reason that a rule gives."""
    if isinstance(rule, s.Assertion):
        return rule.because.text.text if rule.because else None
    return next((clause.text.text for clause in rule.clauses if isinstance(clause, s.Because)), None)


def summary_of(rule: s.Rule | s.Assertion) -> str:
    """Return what a rule does, in one sentence without its full stop."""
    if isinstance(rule, s.Assertion):
        return f"states: {_inline(phrase(rule.claim.span))}"
    when = next((clause.condition for clause in rule.clauses if isinstance(clause, s.When)), None)
    where = f" where {_inline(phrase(when.span))}" if when is not None else ", for every example"
    effects = ", ".join(text for text in map(effect, rule.clauses) if text)
    match rule.kind:
        case "depth":
            return f"grants {effects or 'nothing'}{where}"
        case "suppress" if not effects:
            return f"refuses{where}"
        case "curriculum":
            return f"opens bands by stages{where}: {'; '.join(_stages(rule))}"
        case "privacy":
            return f"confines examples{where} {effects}"
        case "waive":
            return f"lifts `{rule.name.text}`{where}, {effects}"
        case "maintain":
            return f"holds bands near what they were{_maintained(rule)}"
        case "retain":
            return f"keeps examples{where}: {effects}"
        case _:
            return f"{effects}{where}"


def _maintained(rule: s.Rule) -> str:
    """Return which bands a rule holds, from when on, and how."""
    order = (s.Timing, s.Within, s.Strength, s.Drift, s.Rehearse)
    clauses = sorted(
        (clause for clause in rule.clauses if isinstance(clause, order)),
        key=lambda clause: order.index(type(clause)),
    )
    return f": {', '.join(phrase(clause.span) for clause in clauses)}" if clauses else ""


def _stages(rule: s.Rule) -> Iterator[str]:
    """Yield the stages of a curriculum: their times and what they open."""
    times: list[str] = []
    for clause in rule.clauses:
        match clause:
            case s.Timing() | s.During() | s.InPhase():
                times.append(phrase(clause.span))
            case s.Targets():
                yield f"{' '.join(times)} {effect(clause)}".strip()
                times = []
            case _:
                pass


def effect(clause: s.Clause) -> str:
    """Return what a clause does, in a few words; empty for conditions, reasons and times of stages."""
    match clause:
        case s.Targets(verb, targets):
            shown = ", ".join(
                f"{x.band.text if x.band else 'all'} {x.weight.span.text if x.weight else '1'}"
                for x in targets
            )
            return f"caps {shown}" if verb == "cap" else shown
        case s.Route(band):
            return f"routes to `{band.text}`"
        case s.Refuse():
            return "refuses"
        case s.Timing("until", moment):
            return f"until {phrase(moment.span)}"
        case s.Timing("from", moment):
            return f"not before {phrase(moment.span)}"
        case s.AtMost(count, noun):
            return f"at most {count.span.text} {noun}"
        case s.HoldOut(_, whole):
            return f"holds out 1 in {whole.span.text} tokens"
        case s.Within(bands):
            return f"to {_listed([band.text for band in bands])}"
        case s.PrivacyNumber(term, value):
            return f"{term} {value.span.text}"
        case s.UnitOf(attribute):
            return f"per `{attribute.text}`"
        case s.Noise(deviation):
            return f"noise at most {deviation.span.text}"
        case s.Spent(action):
            return "halts the run when spent" if action == "halt" else ""
        case s.Scale(scalings):
            return f"scales {', '.join(phrase(scaling.span) for scaling in scalings)}"
        case s.Approved(by):
            return f"approved by {by.text}"
        case _:
            return ""


def _on_band(band: str, declared: Declared) -> Iterator[str]:
    """Yield which rules grant, cap, confine and scale a band."""
    found: dict[str, list[str]] = {}
    for rule in declared.rules.values():
        for verb, amount in _touches(rule, band):
            told = f"`{title_of(rule)}`" + (f" ({amount})" if amount else "")
            found.setdefault(verb, []).append(told)
    for verb, rules in found.items():
        yield f"{verb} by {_listed(rules)}."
    if "Granted" not in found:
        yield "No rule grants it, so that it learns nothing."


def _touches(rule: s.Rule | s.Assertion, band: str) -> Iterator[tuple[str, str]]:
    """Yield what a rule does to a band, and how much."""
    if isinstance(rule, s.Assertion):
        if rule.claim.band and rule.claim.band.text == band:
            yield "Guarded", ""
        return
    for clause in rule.clauses:
        match clause:
            case s.Targets(_, targets):
                verb = "Granted" if rule.kind == "depth" else "Capped"
                if (target := _target(targets, band)) is not None:
                    yield verb, target.weight.span.text if target.weight else "1"
                elif rule.kind == "curriculum":
                    yield verb, "0"
            case s.Within(bands) if rule.kind == "maintain":
                if band in [x.text for x in bands]:
                    yield "Maintained", ""
            case s.Within(bands):
                yield ("Made private", "") if band in [x.text for x in bands] else ("Closed", "")
            case s.Route(to) if to.text != band:
                yield "Closed", ""
            case s.Scale(scalings):
                for scaling in scalings:
                    if scaling.band.text == band:
                        yield "Scaled", f"by {scaling.signal.text}"
            case _:
                pass


def _target(targets: Sequence[s.Target], band: str) -> s.Target | None:
    """Return the target that says something of a band: its own, or else `all`, which is not quarantine."""
    named = next((target for target in targets if target.band and target.band.text == band), None)
    every = next((target for target in targets if target.band is None), None)
    return named or (every if band != QUARANTINE else None)


def phrase(span: Span) -> str:
    """Return the text of a span on one line, without comments."""
    words = [word for word in lexemes(span.text) if word.kind != "comment"]
    spaced: list[str] = []
    before: Lexeme | None = None
    for left, right in zip([None, *words], words, strict=False):
        spaced.append((space_between(before, left, right) if left else "") + right.text)
        before = left
    return "".join(spaced)


def short(text: str) -> str:
    """Return a text that is not too long to show."""
    return text if len(text) <= MAX_CONDITION else f"{text[:MAX_CONDITION]} …"


def _inline(text: str) -> str:
    text = short(text)
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _code(text: str) -> str:
    return f"```gradwarden-policy\n{text}\n```"


def _listed(parts: Sequence[str]) -> str:
    """Return a list in words, cut where it is long."""
    if len(parts) > MAX_LISTED:
        parts = [*parts[: MAX_LISTED - 1], f"{len(parts) - MAX_LISTED + 1} more"]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
