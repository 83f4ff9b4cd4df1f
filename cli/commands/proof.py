"""`gradwarden proof`: prove that a ledger has an entry, or that it only grew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import give_up
from gradwarden.cli.files import write_text
from gradwarden.cli.inputs import check_begun, head_under, load_head
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.proof_file import Proof
    from gradwarden.runtime.ledger.note import Checkpoint


@verb("proof")
@click.argument("ledger", type=FILE)
@click.option("--entry", type=click.IntRange(min=0), metavar="N", help="Prove that the head covers entry N.")
@click.option("--from", "old", type=FILE, metavar="NOTE", help="Prove that nothing under this head changed.")
@click.option("--head", type=FILE, metavar="NOTE", help="The head to prove under. [default: the last one]")
@click.option("--withhold", is_flag=True, help="Leave the entry's content out of the proof.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Where to write the proof. [default: stdout]")
@format_option("text", "json")
def command(
    ledger: Path,
    entry: int | None,
    old: Path | None,
    head: Path | None,
    withhold: bool,
    output: Path | None,
    output_format: str,
) -> int:
    """Prove that a ledger has an entry, or that it only grew, to somebody who does not get the ledger.

    With --entry the proof is a C2SP tlog-proof: the entry, its path through the Merkle tree and the signed
    head to which the path leads. Nothing is told of other entries but hashes. With --from it is a consistency
    proof, from a head that somebody kept to the last one, in the form in which C2SP witnesses take it.
    `gradwarden verify-proof` checks either. --head takes a cosigned head, so that the proof carries the
    witnesses' signatures.

    \b
    Examples:
      gradwarden proof run.ledger --entry 1024 -o 1024.tlog-proof
      gradwarden proof run.ledger --entry 1024 --head cosigned.note -o 1024.tlog-proof
      gradwarden proof run.ledger --from kept.note -o grown.proof

    \b
    Exit status: 0 the proof was written, 1 there is none: the ledger is not the one of the head, 2 misuse or
    unreadable input.
    """
    from gradwarden.runtime.errors import HeadMismatch
    from gradwarden.runtime.evidence.prover import prove_consistency, prove_inclusion

    if (entry is None) == (old is None):
        raise click.UsageError("say what to prove: --entry N, or --from NOTE")
    if withhold and entry is None:
        raise click.UsageError("--withhold is about an --entry")
    check_begun(ledger)
    kept = load_head(old).checkpoint if old is not None else None
    under = head_under(head, ledger)
    proof: Proof
    try:
        if kept is not None:
            proof = prove_consistency(ledger, kept, under)
        else:
            assert entry is not None, "one of the two was given"
            proof = prove_inclusion(ledger, entry, under, withhold=withhold)
    except HeadMismatch as error:
        return give_up(error, output_format)
    if output is not None:
        write_text(output, proof.encode().decode())
    if output_format == "json":
        emit_json(_document(proof, under.checkpoint, output))
    elif output is not None:
        size = under.checkpoint.size
        what = f"entry {entry:,} is" if kept is None else f"the first {kept.size:,} entries are"
        click.echo(f"wrote {output}: {what} covered by the head over {size:,} entries")
    else:
        click.echo(proof.encode(), nl=False)
    return 0


def _document(proof: Proof, head: Checkpoint, output: Path | None) -> dict[str, Any]:
    from gradwarden.runtime.evidence.proof_file import InclusionProof
    from gradwarden.runtime.ledger.merkle import leaf_hash

    shown: dict[str, Any] = {
        "ok": True,
        "output": None if output is None else str(output),
        "origin": head.origin,
        "size": head.size,
        "root": head.root.hex(),
        "path": [node.hex() for node in proof.path],
        "note": proof.note.decode(),
    }
    if isinstance(proof, InclusionProof):
        line = proof.line
        leaf = None if line is None else leaf_hash(line).hex()
        return {
            "kind": "inclusion",
            **shown,
            "index": proof.index,
            "entry": None if line is None else line.decode(),
            "leaf": leaf,
        }
    return {"kind": "consistency", **shown, "old_size": proof.old_size}
