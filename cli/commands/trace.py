"""`gradwarden trace`: what shaped the model, what became of an example, what a rule refused, and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.commands.log import StepRange
from gradwarden.cli.failures import InputError, give_up
from gradwarden.cli.inputs import check_begun
from gradwarden.cli.options import FILE
from gradwarden.cli.output import arrived, emit_json, format_option, progress
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from gradwarden.runtime.commitments import Committer
    from gradwarden.runtime.provenance.answers import Steps
    from gradwarden.runtime.provenance.indexed import Index
    from gradwarden.runtime.provenance.queries import Queries

QUESTIONS = ("index", "check", "band", "example", "rule", "footprint", "added")

NAMED = {"band": "BAND", "rule": "RULE", "footprint": "RULE"}
"""Questions about something that has a name."""

MAX_IDS = 256 << 20


@frozen
class Asked:
    """What was asked of a ledger, and with which options."""

    ledger: Path
    name: str
    steps: Steps
    top: int
    id: str | None
    secret: Path | None
    salt: str | None
    commitment: str | None
    base: Path | None
    base_secret: Path | None
    ids: Path | None
    effective: bool = False


@verb("trace")
@click.argument("question", type=click.Choice(QUESTIONS))
@click.argument("ledger", type=FILE, metavar="LEDGER|FOLDER")
@click.argument("name", required=False, default="", metavar="[BAND|RULE]")
@click.option("--steps", type=StepRange(), default=(0, None), help="These steps only (band, rule).")
@click.option(
    "--top", type=click.IntRange(0, 1_000_000), metavar="N", default=20, show_default=True,
    help="List so many examples.",
)  # fmt: skip
@click.option("--id", "example", metavar="ID", help="The id of an example (with --secret, or its --salt).")
@click.option("--secret", type=FILE, help="The run's secret for commitments.")
@click.option("--salt", metavar="HEX", help="The salt that opens the commitment of the id.")
@click.option("--commitment", metavar="HEX", help="An example's commitment, or how it begins.")
@click.option("--base", type=FILE, metavar="LEDGER", help="The ledger of the run that this one went on from.")
@click.option("--base-secret", type=FILE, metavar="FILE", help="That run's secret.")
@click.option(
    "--ids", type=FILE, metavar="FILE", help="Ids to tell apart in both runs, one to a line (added)."
)
@click.option("--effective", is_flag=True, help="Leave out steps that the run abandoned (band, rule).")
@format_option("text", "json")
def command(
    question: str,
    ledger: Path,
    name: str,
    steps: Steps,
    top: int,
    example: str | None,
    secret: Path | None,
    salt: str | None,
    commitment: str | None,
    base: Path | None,
    base_secret: Path | None,
    ids: Path | None,
    effective: bool,
    output_format: str,
) -> int:
    """Say where what a model learned came from, by its ledger.

    Answers come from an index beside the ledger (`run.ledger.trace`, Parquet files that other engines read
    too). The first question makes it; `index` makes it anew once the ledger has grown, `check` makes it again
    and compares. An index that is not the ledger's, or whose files were changed, is refused. Whether the
    ledger itself holds is for `gradwarden verify`. Needs gradwarden[trace].

    \b
      band BAND       which examples shaped this band, in which steps and with how much weight
      example         what became of one example, from its admission to its last exposure
      rule RULE       what this rule refused, and why
      footprint RULE  what the model had learned of all that this rule refuses: what is left to remedy
      added           what a fine-tuning added to what the ledger of its --base already held

    A run that went back to earlier weights has abandoned steps. Answers count them, as limits do; with
    --effective they are left out.

    Where a policy has steps record contributions (`gradient { record 1 in N steps }`), answers about a band
    or an example also add up the norms of what an example added to a band's gradient in these steps, and of
    how far the band moved. Such a sum is an upper bound on what came of it in these steps, since parts may
    cancel, and says nothing of other steps; weights are of all steps.

    Given the folder of a job of many ranks, one index is made of the ledgers of all, by rank, beside it
    (`FOLDER.trace`).

    Shares of a band are shares of weight: who was let in, not what the model would be without them.

    \b
    Examples:
      gradwarden trace index run.ledger
      gradwarden trace band run.ledger deep --steps 1000..2000 --top 10
      gradwarden trace example run.ledger --id sample-17 --secret run.ledger.secret
      gradwarden trace rule run.ledger opted_out --format json
      gradwarden trace band job/ deep
      gradwarden trace footprint run.ledger trial_data
      gradwarden trace added tuned.ledger --base base.ledger

    \b
    Exit status: 0 answered, 1 the index is not the ledger's, none can be made of it, or it does not have what
    was asked about, 2 misuse, unreadable input, or no place for an index.
    """
    if (question in NAMED) != bool(name):
        what = f"needs a name: {NAMED[question]}" if question in NAMED else "takes no name"
        raise click.UsageError(f"`{question}` {what}")
    asked = Asked(
        ledger, name, steps, top, example, secret, salt, commitment, base, base_secret, ids, effective
    )
    from gradwarden.runtime.errors import LedgerDamaged, TraceError

    try:
        document, show = _ANSWERS[question](asked)
    except (TraceError, LedgerDamaged) as error:
        return give_up(error, output_format)
    if output_format == "json":
        emit_json({"ok": True, "question": question, **document})
    else:
        show()
    return 0


Answer = tuple[dict[str, Any], Callable[[], None]]


def _make(asked: Asked) -> Answer:
    from gradwarden.cli.trace_report import index_facts, show_index

    index = _build(asked.ledger)
    return {"index": index_facts(index)}, lambda: show_index(index, "made")


def _check(asked: Asked) -> Answer:
    from gradwarden.cli.trace_report import index_facts, show_index
    from gradwarden.runtime.provenance.index import check_index

    with progress(f"checking the index of {asked.ledger.name}", _size(asked.ledger), "bytes") as bar:
        index = check_index(asked.ledger, arrived(bar))
    return {"index": index_facts(index)}, lambda: show_index(index, "checked")


def _band(asked: Asked) -> Answer:
    from gradwarden.cli.trace_report import plain, show_band

    queries = _ask(asked.ledger, effective=asked.effective)
    found = queries.band(asked.name, asked.steps, asked.top)
    return _document(queries, plain(found)), lambda: show_band(queries.index, found)


def _example(asked: Asked) -> Answer:
    from gradwarden.cli.trace_report import plain, show_example

    queries = _ask(asked.ledger)
    found = queries.example(_commitment(asked, queries))
    return _document(queries, plain(found)), lambda: show_example(queries.index, found)


def _rule(asked: Asked) -> Answer:
    from gradwarden.cli.trace_report import plain, show_rule

    queries = _ask(asked.ledger, effective=asked.effective)
    found = queries.rule(asked.name, asked.steps, asked.top)
    return _document(queries, plain(found), shares=False), lambda: show_rule(queries.index, found)


def _footprint(asked: Asked) -> Answer:
    from gradwarden.cli.trace_report import plain, show_footprint

    queries = _ask(asked.ledger)
    found = queries.footprint(asked.name, asked.top)
    return _document(queries, plain(found)), lambda: show_footprint(queries.index, found)


def _added(asked: Asked) -> Answer:
    from gradwarden.cli.trace_report import plain, show_added
    from gradwarden.runtime.provenance.lineage import compare

    if asked.base is None:
        raise click.UsageError("`added` compares with another ledger: --base LEDGER")
    if len({asked.ids is None, asked.secret is None, asked.base_secret is None}) > 1:
        raise click.UsageError("examples are told apart with all of --ids, --secret and --base-secret")
    base, run = _ask(asked.base), _ask(asked.ledger)
    pairs = None
    if asked.ids is not None and asked.secret is not None and asked.base_secret is not None:
        then, now = _committer(asked.base_secret, base), _committer(asked.secret, run)
        pairs = [(then.commit(one), now.commit(one)) for one in _ids(asked.ids)]
    found = compare(base, run, pairs)
    return _document(run, plain(found), shares=False), lambda: show_added(found)


_ANSWERS: dict[str, Callable[[Asked], Answer]] = {
    "index": _make,
    "check": _check,
    "band": _band,
    "example": _example,
    "rule": _rule,
    "footprint": _footprint,
    "added": _added,
}


def _document(queries: Queries, answer: dict[str, Any], *, shares: bool = True) -> dict[str, Any]:
    """Return an answer, what it rests on, and where it tells shares what these are not."""
    from gradwarden.cli.trace_report import APPROXIMATE, index_facts

    told = {"approximation": APPROXIMATE} if shares else {}
    return {"index": index_facts(queries.index), "answer": answer, **told}


def _ask(ledger: Path, *, effective: bool = False) -> Queries:
    """Open the index of a ledger; make it where there is none."""
    from gradwarden.runtime.provenance.index import index_folder, open_index
    from gradwarden.runtime.provenance.queries import Queries

    if not ledger.exists():
        raise InputError(f"`{ledger}`: no such file or directory")
    index = open_index(ledger) if index_folder(ledger).exists() else _build(ledger)
    return Queries(index, effective=effective)


def _build(ledger: Path) -> Index:
    from gradwarden.runtime.provenance.index import build_index

    if not ledger.is_dir():
        check_begun(ledger)
    with progress(f"indexing {ledger.name}", _size(ledger), "bytes") as advance:
        return build_index(ledger, progress=arrived(advance))


def _size(ledger: Path) -> int:
    """Return the bytes of a ledger, or of those of the ranks in the folder of a job."""
    from gradwarden.runtime.jobs.progress import size_of_ranks

    return size_of_ranks(ledger) if ledger.is_dir() else ledger.stat().st_size


def _commitment(asked: Asked, queries: Queries) -> bytes:
    """Return the commitment of the example that was asked about."""
    from gradwarden.runtime.commitments import SIZE, open_commitment

    if asked.commitment is not None:
        if asked.id is not None or not re.fullmatch("[0-9a-fA-F]{8,64}", asked.commitment):
            raise click.UsageError("--commitment stands alone, and takes 8 to 64 hexadecimal digits")
        text = asked.commitment.lower()
        return bytes.fromhex(text) if len(text) == 2 * SIZE else queries.find(text)
    if asked.id is None or (asked.secret is None) == (asked.salt is None):
        raise click.UsageError("name the example: --id with --secret or --salt, or --commitment")
    if asked.secret is not None:
        return _committer(asked.secret, queries).commit(asked.id)
    with suppress(ValueError):
        salt = bytes.fromhex(asked.salt or "")
        if len(salt) == SIZE:
            return open_commitment(salt, asked.id)
    raise click.UsageError("--salt takes 64 hexadecimal digits")


def _committer(secret: Path, queries: Queries) -> Committer:
    """Return what commits to ids as a run did. Raises InputError for the secret of another run."""
    from gradwarden.runtime.commitments import Committer

    committer = Committer.load(secret)
    if committer.secret_commitment != queries.opened()["secret_commitment"]:
        raise InputError(f"`{secret}` is the secret of another run than `{queries.index.ledger}`")
    return committer


def _ids(path: Path) -> list[str]:
    """Return the ids in a file, each once."""
    from gradwarden.cli.inputs import read_text

    return list(dict.fromkeys(line for line in read_text(path, MAX_IDS).splitlines() if line))
