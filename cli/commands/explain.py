"""`gradwarden explain`: the decision for one example, and the rules behind it."""

from __future__ import annotations

from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.inputs import load_program, read_example
from gradwarden.cli.options import FILE, ContextOptions, context_options
from gradwarden.cli.output import emit_json, format_option


@verb("explain")
@click.argument("policy", type=FILE)
@click.option(
    "--example",
    type=FILE,
    required=True,
    help="A JSON or YAML mapping from attribute to value; `-` is standard input.",
)
@context_options
@format_option("text", "json")
def command(policy: Path, example: Path, given: ContextOptions, output_format: str) -> int:
    """Show the decision for one example, and the rules behind it.

    POLICY is a policy or a compiled program (`*.json`). The context is what a training run would supply:
    --step, --epoch, --at, --exposures, and --set for each signal. A signal that is not set has its declared
    default.

    \b
    Examples:
      gradwarden explain code.policy --example mit.json
      echo '{license: MIT, lines: 120}' | gradwarden explain code.policy --example -
      gradwarden explain code.policy --example mit.json --at 2027-01-01 --set loss_ratio=0.2

    \b
    Exit status: 0 a decision was made, whatever it is; 2 misuse or unreadable input.
    """
    from gradwarden.cli.explanation import explanation_lines
    from gradwarden.policy.evaluation.explain import explain

    program = load_program(policy)
    metadata = read_example(example)
    explanation = explain(program, metadata, given.context(program))
    if output_format == "json":
        told = explanation.to_json()
        told["policy"]["digest"] = program.digest
        emit_json({**told, "context": given.to_json()})
        return 0
    for line in explanation_lines(explanation):
        click.echo(line)
    click.echo(f"\n{program.name} version {program.version}; {given.describe(program)}")
    return 0
