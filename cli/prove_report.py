"""What `gradwarden prove` reports, as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from gradwarden.cli.diagnostics import plural, printable, render_text, to_data
from gradwarden.cli.output import emit_json
from gradwarden.policy.decision import Decision
from gradwarden.policy.errors import Diagnostic
from gradwarden.policy.evaluation.explain import weights_text
from gradwarden.policy.program import Program
from gradwarden.policy.proving.claims import Claim
from gradwarden.policy.proving.structure import Finding
from gradwarden.policy.proving.witness import Witness
from gradwarden.policy.proving.wording import (
    basis_text,
    claim_diagnostic,
    claim_text,
    control_text,
    finding_diagnostic,
    listed,
)
from gradwarden.policy.source import Span

COLOURS = {
    "proved": "green",
    "refuted": "red",
    "unknown": "magenta",
    "vacuous": "yellow",
    "trivial": "yellow",
}
INDENT = " " * 9


@dataclass(frozen=True)
class Proven:
    """What was found out about one policy. `spans` are the places of its rules; a program has none."""

    path: Path
    program: Program
    spans: Mapping[str, Span]
    claims: tuple[Claim, ...]
    findings: tuple[Finding, ...]

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """What is wrong with claims and with rules, by position."""
        told = [claim_diagnostic(claim, self.spans) for claim in self.claims]
        found = [finding_diagnostic(finding, self.spans) for finding in self.findings]
        return sorted([d for d in told if d is not None] + found, key=Diagnostic.sort_key)

    @property
    def holds(self) -> bool:
        return not any(diagnostic.severity == "error" for diagnostic in self.diagnostics)

    @property
    def warnings(self) -> bool:
        return any(diagnostic.severity == "warning" for diagnostic in self.diagnostics)


def show(proven: Sequence[Proven], output_format: str, *, ok: bool) -> None:
    """Write the report to standard output; what is wrong with rules goes to standard error."""
    if output_format == "json":
        emit_json({"ok": ok, "policies": [_to_json(one) for one in proven]})
        return
    for number, one in enumerate(proven):
        if number:
            click.echo()
        for line in _lines(one):
            click.echo(line)
    findings = [finding_diagnostic(f, one.spans) for one in proven for f in one.findings]
    if findings:
        click.echo(f"\n{render_text(sorted(findings, key=Diagnostic.sort_key))}", err=True)


def _lines(one: Proven) -> Iterator[str]:
    program = one.program
    yield f"{click.style(program.name, bold=True)} version {program.version} ({one.path})"
    for claim in one.claims:
        yield ""
        yield from _claim_lines(one, claim)
    yield ""
    yield _summary(one)


def _claim_lines(one: Proven, claim: Claim) -> Iterator[str]:
    outcome = click.style(f"{claim.outcome:<9}", fg=COLOURS[claim.outcome], bold=True)
    level = "" if claim.assertion.level == "hard" else " (advisory)"
    yield f"{outcome}{claim.assertion.name}{level}: {printable(claim_text(one.program, claim.assertion))}"
    if claim.assertion.because:
        yield f"{INDENT}because {printable(claim.assertion.because)}"
    if claim.outcome == "proved":
        yield f"{INDENT}{basis_text(claim)}"
        yield f"{INDENT}control: {control_text(claim)}"
        return
    diagnostic = claim_diagnostic(claim, one.spans)
    assert diagnostic is not None, "a claim that is not proved has something wrong with it"
    for line in render_text([diagnostic]).split("\n"):
        yield f"{INDENT}{line}"
    if claim.witness is not None and claim.decision is not None:
        yield f"{INDENT}the other rules decide it: {_decision_text(claim.decision)}"
        yield from (f"{INDENT}  {printable(line)}" for line in _example_lines(claim.witness, one.program))
        yield f"{INDENT}explain it:"
        yield f"{INDENT}  {printable(claim.witness.command(str(one.path), one.program))}"


def _example_lines(witness: Witness, program: Program) -> Iterator[str]:
    """Yield what is peculiar about an example, one attribute a line."""
    for name, value in witness.metadata.items():
        yield f"{name}: {json.dumps(value, ensure_ascii=False, default=float)}"
    told = list(witness.options(program))
    if told:
        yield f"in the context {' '.join(told)}"


def _decision_text(decision: Decision) -> str:
    by = f", by {listed(decision.rules)}" if decision.rules else ""
    return f"{decision.verdict} ({weights_text(decision)}){by}"


def _summary(one: Proven) -> str:
    counts: Counter[str] = Counter(claim.outcome for claim in one.claims)
    told = [f"{counts[outcome]} {outcome}" for outcome in COLOURS if counts[outcome]]
    seconds = sum(claim.seconds for claim in one.claims)
    outcomes = f": {', '.join(told)} in {seconds:.2f} s" if told else ""
    return f"{plural(len(one.claims), 'assertion')}{outcomes}"


# --- JSON ---------------------------------------------------------------------------------------------------


def _to_json(one: Proven) -> dict[str, Any]:
    program = one.program
    return {
        "policy": {"name": program.name, "version": program.version, "digest": program.digest},
        "file": str(one.path),
        "ok": one.holds,
        "claims": [_claim_json(one, claim) for claim in one.claims],
        "findings": [
            {**to_data(finding_diagnostic(finding, one.spans)), **_finding_json(one, finding)}
            for finding in one.findings
        ],
    }


def _claim_json(one: Proven, claim: Claim) -> dict[str, Any]:
    diagnostic = claim_diagnostic(claim, one.spans)
    control = claim.control
    return {
        "name": claim.assertion.name,
        "claim": claim_text(one.program, claim.assertion),
        "form": claim.assertion.form,
        "level": claim.assertion.level,
        "outcome": claim.outcome,
        "seconds": round(claim.seconds, 6),
        "rests_on": list(claim.rests_on),
        "default_deny": claim.default_deny,
        "control": control
        and {
            "without": list(control.dropped),
            "granting_everything": control.granted,
            **_witness_json(one, control.witness),
        },
        "counterexample": claim.witness
        and claim.decision
        and {**_witness_json(one, claim.witness), "decision": claim.decision.to_json()},
        "finding": diagnostic and to_data(diagnostic),
    }


def _finding_json(one: Proven, finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "rule": finding.rule or None,
        "by": list(finding.by),
        "witness": finding.witness and _witness_json(one, finding.witness),
    }


def _witness_json(one: Proven, witness: Witness) -> dict[str, Any]:
    return {
        "example": json.loads(witness.to_json()),
        "context": witness.context_json(one.program),
        "command": witness.command(str(one.path), one.program),
    }
