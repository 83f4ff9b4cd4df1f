"""Flips one bit of one byte in a copy of a run's ledger and shows that `gradwarden verify` finds it.

python -m examples.code_licences.tamper out/code_licences
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click
from rich.console import Console

from examples.code_licences.verification import command_line, verify
from examples.run_files import RunFiles

_DECISION = b'"decision":['


def flip(ledger: Path, copy: Path) -> tuple[int, int]:
    """Copy a ledger with one digit of a recorded decision changed; return the entry's index and the offset.

    The byte lies in the middle step, in the number of the decision that its first example got: the kind of
    change that somebody would make on purpose. The sidecar with the last signed head is copied too.
    """
    content = bytearray(ledger.read_bytes())
    lines = content.split(b"\n")
    steps = [index for index, line in enumerate(lines) if b'"kind":"step"' in line]
    index = steps[len(steps) // 2]
    start = sum(len(line) + 1 for line in lines[:index])
    first = content.index(_DECISION, start) + len(_DECISION)
    offset = min(content.index(b"]", first), content.index(b",", first)) - 1
    content[offset] ^= 1  # the last digit moves by one: still a number, still well-formed JSON
    copy.write_bytes(content)
    head = Path(f"{ledger}.head")
    if head.exists():
        shutil.copy(head, f"{copy}.head")
    return index, offset


def demonstrate(files: RunFiles, console: Console) -> bool:
    """Tamper with a copy, verify it, say what came of it; return whether the change was found."""
    copy = files.folder / "tampered.ledger"
    index, offset = flip(files.ledger, copy)
    console.print(
        f"\nOne bit changed in a copy: entry {index}, byte {offset:,}, which decision an example got."
    )
    console.print(f"$ {command_line(files, copy)}", style="dim", highlight=False, soft_wrap=True)
    holds, printed = verify(files, copy)
    console.print(printed, markup=False, highlight=False, soft_wrap=True)
    console.print(
        "[red]The change went unnoticed.[/red]" if holds else "[green]The change was found.[/green]"
    )
    return not holds


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    sys.exit(0 if demonstrate(RunFiles(folder), Console()) else 1)


if __name__ == "__main__":
    main()
