"""`gradwarden init`: scaffold a policy, its tests, a model map and a CI workflow."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import plural
from gradwarden.cli.failures import InputError, complain
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option

TEMPLATES = {
    "training.policy": Path("training.policy"),
    "training_test.yaml": Path("training_test.yaml"),
    "model.yaml": Path("model.yaml"),
    "gradwarden.yml": Path(".github", "workflows", "gradwarden.yml"),
}
"""Where each file of `templates/` goes."""


@verb("init")
@click.argument("directory", type=FILE, default=Path("."), metavar="[DIR]")
@click.option("--from", "data", type=FILE, metavar="DATA", help="Derive the attributes from a manifest.")
@format_option("text", "json")
def command(directory: Path, data: Path | None, output_format: str) -> int:
    """Scaffold a policy, its tests, a model map and a CI workflow.

    DIR is made if need be; the default is the current directory. What is written passes `check` and `test`
    as it stands. Nothing is ever overwritten: if one of the files exists, none is written.

    With --from, the `examples` block is derived from the records of a manifest (*.jsonl, *.csv, *.tsv or
    *.parquet): types, ranges padded to round ones, values that come again and again. Every record is valid
    under it. Names that the language does not know and values that no type holds are reported, and nothing
    is written.

    \b
    Examples:
      gradwarden init
      gradwarden init my-policy
      gradwarden init my-policy --from corpus.jsonl

    \b
    Exit status: 0 the files were written, 1 no attributes can be derived from the data, 2 misuse or
    unreadable input.
    """
    targets = {name: directory / place for name, place in TEMPLATES.items()}
    present = [str(path) for path in targets.values() if path.exists() or path.is_symlink()]
    if present:
        raise InputError(
            f"`{present[0]}` exists already; nothing was written", help="choose an empty directory"
        )
    texts = {name: (files("gradwarden.cli") / "templates" / name).read_text("utf-8") for name in TEMPLATES}
    if data is not None:
        derived = _derived(data)
        if derived is None:
            return 1
        texts |= derived
    for name, path in targets.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(texts[name])
    if output_format == "json":
        emit_json({"directory": str(directory), "files": [str(path) for path in targets.values()]})
        return 0
    for path in targets.values():
        click.echo(f"wrote {path}")
    click.echo("\nnext:")
    click.echo(f"  gradwarden check {directory} --model-map {targets['model.yaml']}")
    click.echo(f"  gradwarden test {directory} --coverage")
    if place := _place_in_repository(directory):
        click.echo("\nGitHub finds workflows at one place only, so:")
        click.echo(f"  move {directory / '.github'} to the root of the repository")
        click.echo(f"  add to the workflow: defaults: {{run: {{working-directory: {place}}}}}")
    return 0


def _derived(data: Path) -> dict[str, str] | None:
    """Return the texts that are derived from a manifest; None where that cannot be, which is told."""
    from gradwarden.cli.scaffold import derive, policy_text, sample_tests
    from gradwarden.policy import parse_policy

    found = derive(data)
    for fault in found.faults:
        complain(fault.code, fault.message, fault.help)
    if found.faults:
        return None
    if found.malformed:
        lines = plural(found.malformed, "line")
        complain(InputError.code, f"{lines} of `{data}` hold no record", None, severity="warning")
    text = policy_text(found, data)
    attributes = parse_policy(text, "training.policy").program.attributes
    return {"training.policy": text, "training_test.yaml": sample_tests(attributes)}


def _place_in_repository(directory: Path) -> str | None:
    """Return the path of a directory inside the git repository around it; None at its root or outside any."""
    here = directory.resolve()
    root = next((parent for parent in (here, *here.parents) if (parent / ".git").exists()), here)
    return None if root == here else here.relative_to(root).as_posix()
