"""Claims and findings in the words of the language, and as diagnostics with their place in the source."""

from __future__ import annotations

from collections.abc import Mapping

from gradwarden.policy.errors import Diagnostic, Severity
from gradwarden.policy.evaluation.phrasing import Phrasing, share
from gradwarden.policy.program import Assertion, Constant, Program
from gradwarden.policy.proving.claims import Claim
from gradwarden.policy.proving.structure import Finding
from gradwarden.policy.source import Span


def claim_text(program: Program, assertion: Assertion) -> str:
    """Return an assertion as it could be written; named conditions are written out."""
    phrasing = Phrasing(program)
    when = phrasing.condition(assertion.when)
    if assertion.form == "implies":
        return f"{when} implies {phrasing.condition(assertion.then)}"
    match assertion.form:
        case "never_reach":
            text = f"never reach {assertion.band}"
        case "at_most":
            text = f"at most {share(assertion.bound)} in {assertion.band}"
        case "always_refuse":
            text = "always refuse"
        case "always_private":
            text = "always private"
    return text if assertion.when == Constant(True) else f"{text} when {when}"


def basis_text(claim: Claim) -> str:
    """Say what a proof rests on."""
    if claim.assertion.form == "implies":
        return "rests on no rule: it follows from the types of the attributes"
    if claim.control is None:
        return ""
    if not claim.rests_on:
        text = "rests on default deny: no rule grants more"
    else:
        text = f"rests on {listed(claim.rests_on)}"
    extra = [rule for rule in claim.control.dropped if rule not in claim.rests_on]
    if extra:
        text += f"; without that, on {listed(extra)}"
    if claim.control.granted and claim.rests_on:
        text += "; without that, on default deny"
    return text


def control_text(claim: Claim) -> str:
    """Say what refutes a proved claim."""
    control = claim.control
    if control is None:
        return ""
    if claim.assertion.form == "implies":
        return "with a conclusion that never holds it is refuted"
    changes = [f"without {listed(control.dropped)}"] if control.dropped else []
    changes += ["with a grant of everything"] if control.granted else []
    return f"{' and '.join(changes)} it is refuted"


def claim_diagnostic(claim: Claim, spans: Mapping[str, Span]) -> Diagnostic | None:
    """Return what is wrong with a claim, None where it is proved."""
    name = claim.assertion.name
    help: str | None
    match claim.outcome:
        case "proved":
            return None
        case "refuted":
            code, message = "GW652", f"`{name}` does not hold: an example breaks it"
            help = _remedy(claim)
        case "unknown":
            code, message = "GW653", f"nothing is known about `{name}`: {claim.why}"
            help = "give it more time with `--timeout`, or say it more simply"
        case "vacuous":
            code, message = "GW654", f"`{name}` is about no example: its condition never holds"
            help = "correct the condition, or drop the assertion"
        case "trivial":
            code, message = "GW655", f"`{name}` guards nothing: {claim.why}"
            help = "say what the rules must see to, or drop the assertion"
    return Diagnostic(code, message, spans.get(name), help)


def _remedy(claim: Claim) -> str:
    if claim.assertion.form == "implies":
        return (
            "examples can be so, whatever the rules say: limit them with a rule, such as `suppress`, "
            "and assert what that rule sees to"
        )
    granting = listed(claim.decision.rules) if claim.decision and claim.decision.rules else "no rule"
    return f"in that example {granting} matched: limit it, or narrow what is granted"


def finding_diagnostic(finding: Finding, spans: Mapping[str, Span]) -> Diagnostic:
    """Return a finding about the rules."""
    rule = f"`{finding.rule}`"
    severity: Severity = "warning"
    help: str | None
    match finding.kind:
        case "never":
            code, message = "GW656", f"{rule} can never match"
            help = f"no example fulfils: {finding.text}" if finding.text else None
        case "effect":
            code, message = "GW656", f"one effect of {rule} can never come about"
            help = f"no example fulfils: {finding.text}"
        case "part":
            when = "always holds" if finding.always else "never holds"
            code, message = "GW657", f"a part of the condition of {rule} {when}: {finding.text}"
            help = "drop it, or correct it"
        case "shadowed":
            verb = "decides" if len(finding.by) == 1 else "decide"
            by = f": {listed(finding.by)} {verb} the same" if finding.by else ""
            code, message = "GW658", f"{rule} never changes a decision{by}"
            help = "drop it, or correct its condition"
        case "silent":
            does = "lifts a rule that stops" if finding.rule.startswith("waive:") else "stops"
            code, message, severity = "GW658", f"{rule} {does} only what no rule grants", "note"
            help = "it will matter once a `depth` rule grants more"
        case "undecided":
            code, message, severity = "GW659", "there are examples about which no rule says anything", "note"
            example = f", such as {finding.witness.to_json()}" if finding.witness else ""
            help = f"by default nothing is learned from them{example}"
        case "unused":
            code, message, severity = "GW504", f"no rule reads the attribute `{finding.text}`", "note"
            help = None
        case "unknown":
            about = f" about {rule}" if finding.rule else ""
            code, message, severity = "GW653", f"nothing is known{about}: {finding.text}", "error"
            help = "give it more time with `--timeout`"
    return Diagnostic(code, message, spans.get(finding.rule), help, severity)


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Return names as a person lists them."""
    quoted = [f"`{name}`" for name in names]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"
