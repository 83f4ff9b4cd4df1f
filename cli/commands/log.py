"""`gradwarden log`: show, filter and follow the entries of a ledger."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.diagnostics import printable
from gradwarden.cli.inputs import check_begun
from gradwarden.cli.options import FILE
from gradwarden.cli.output import emit_json, format_option
from gradwarden.policy.decision import VERDICTS
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from gradwarden.runtime.ledger.entries import Entry

KINDS = (
    "opened", "program", "approved", "classes", "decisions", "examples", "step", "committed", "refused",
    "anchored", "maintained", "contributed", "moved", "starved", "halted", "expired", "policy_changed",
    "tensors", "checkpoint", "rewound", "resumed", "supplied", "derived", "tallied", "skipped", "paid",
    "job_opened", "bound", "sealed", "rotated", "revoked", "head",
)  # fmt: skip

POLL_SECONDS = 0.2

RENUMBERING = ("opened", "policy_changed", "resumed")
"""Kinds of entry after which decisions are numbered from 0 anew."""


class StepRange(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """`A..B`, both ends included; either may be left out; `A` alone is one step."""

    name = "A..B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int | None]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{0,15})(\.\.)?(\d{0,15})", str(value))
        if not found or not (found[1] or found[3]):
            self.fail(f"`{value}` is not a range of steps such as 100..200", param, ctx)
        first = int(found[1] or 0)
        last = int(found[3]) if found[3] else None if found[2] else first
        if last is not None and last < first:
            self.fail(f"`{value}` ends before it begins", param, ctx)
        return first, last


@frozen
class Told:
    """An entry and the decisions that it declares or names, one per example of a step."""

    entry: Entry
    decisions: tuple[dict[str, Any], ...] = ()


@frozen
class Wanted:
    """Which entries are shown. Empty or None: all."""

    kinds: tuple[str, ...]
    steps: tuple[int, int | None] | None
    rule: str | None
    verdict: str | None

    def admits(self, told: Told) -> bool:
        entry = told.entry
        if self.kinds and entry.kind not in self.kinds:
            return False
        if self.steps is not None:
            step = entry.body.get("step")
            first, last = self.steps
            if not isinstance(step, int) or step < first or (last is not None and step > last):
                return False
        if self.rule is not None and self.rule not in _rules(told):
            return False
        return self.verdict is None or self.verdict in _verdicts(told)


@verb("log")
@click.argument("ledger", type=FILE)
@click.option("-f", "--follow", is_flag=True, help="Go on showing entries as they are written.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="This kind only; repeatable.")
@click.option("--steps", type=StepRange(), help="Entries about these steps.")
@click.option("--rule", metavar="NAME", help="Entries in which this rule had a part.")
@click.option("--verdict", type=click.Choice(VERDICTS), help="Steps with a decision of this verdict.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="The last N entries only.")
@format_option("table", "jsonl", "json")
def command(
    ledger: Path,
    follow: bool,
    kinds: tuple[str, ...],
    steps: tuple[int, int | None] | None,
    rule: str | None,
    verdict: str | None,
    tail: int | None,
    output_format: str,
) -> int:
    """Show, filter and follow the entries of a ledger.

    Filters are combined: an entry is shown if it passes all of them. --format jsonl writes one JSON object
    per line as entries come; --format json one document at the end. Order and links of the entries are
    checked on the way, signatures are not: that is what `gradwarden verify` does.

    \b
    Examples:
      gradwarden log run.ledger --tail 20
      gradwarden log run.ledger -f --kind committed --kind refused
      gradwarden log run.ledger --steps 100..200 --rule opted_out
      gradwarden log run.ledger --kind step --format jsonl

    \b
    Exit status: 0 shown to the end, 1 the ledger is damaged, 2 unreadable input.
    """
    from gradwarden.runtime.errors import LedgerDamaged

    if follow and output_format == "json":
        raise click.UsageError("a document that is followed never ends; use --format jsonl")
    wanted = Wanted(kinds, steps, rule, verdict)
    shown: list[dict[str, Any]] = []
    heading = click.style(_row("index", "kind", "step", "content"), bold=True)
    damage: LedgerDamaged | None = None
    try:
        for number, told in enumerate(_selected(ledger, wanted, tail, follow=follow)):
            entry = told.entry
            if output_format == "table":
                if number == 0:
                    click.echo(heading)
                step = entry.body.get("step")
                click.echo(
                    _row(str(entry.index), entry.kind, "" if step is None else str(step), _content(told))
                )
            elif output_format == "jsonl":
                click.echo(entry.line.decode())
            else:
                shown.append({"index": entry.index, "kind": entry.kind, "body": entry.body})
    except LedgerDamaged as error:
        damage = error
    if output_format == "json":
        problem = None if damage is None else {"index": damage.index, "code": damage.problem}
        emit_json({"ledger": str(ledger), "entries": shown, "damage": problem})
    if damage is not None:
        from gradwarden.cli.failures import complain

        complain(damage.code, damage.message, damage.help)
    return int(damage is not None)


def _selected(ledger: Path, wanted: Wanted, tail: int | None, *, follow: bool) -> Iterator[Told]:
    """Yield the wanted entries. With `tail`, those already there are held back until their end is known."""
    held: deque[Told] = deque(maxlen=tail)
    caught_up = tail is None
    declared: list[dict[str, Any]] = []
    for entry in _entries(ledger, follow=follow):
        if entry is None:
            yield from held
            held.clear()
            caught_up = True
            continue
        told = _tell(entry, declared)
        if wanted.admits(told):
            if caught_up:
                yield told
            else:
                held.append(told)


def _tell(entry: Entry, declared: list[dict[str, Any]]) -> Told:
    """Look up the decisions that an entry names; keeps `declared` up to date."""
    if entry.kind in RENUMBERING:
        declared.clear()
    if entry.kind == "decisions":
        declared += entry.body["decisions"]
        return Told(entry, tuple(entry.body["decisions"]))
    if entry.kind == "step":
        # A number that nothing declares is for `verify` to report.
        numbers = [number for number in entry.body["decision"] if number < len(declared)]
        return Told(entry, tuple(declared[number] for number in numbers))
    return Told(entry)


def _entries(ledger: Path, *, follow: bool) -> Iterator[Entry | None]:
    """Yield entries in order, and None whenever the end of the file is reached.

    An unfinished last line is being written, and is waited for. A sealed ledger ends with its last head.
    """
    from gradwarden.runtime.errors import LedgerDamaged
    from gradwarden.runtime.ledger.entries import HEAD, SEALED, ZERO_HASH
    from gradwarden.runtime.ledger.merkle import leaf_hash
    from gradwarden.runtime.ledger.reader import open_ledger, pieces, read_line, size_of

    index, prev, offset = 0, ZERO_HASH, 0
    sealed = ended = False
    with open_ledger(ledger) as file:
        while True:
            for piece in pieces(file, offset):
                for line in piece.lines:
                    entry = read_line(line, index, offset, prev)
                    yield entry
                    index, prev, offset = index + 1, leaf_hash(line).hex(), offset + len(line) + 1
                    sealed = entry.kind == SEALED or (sealed and entry.kind == HEAD)
                    ended = sealed and entry.kind == HEAD
            yield None
            if not follow and not index:
                check_begun(ledger)
            if not follow or ended:
                return
            time.sleep(POLL_SECONDS)
            if size_of(file) < offset:
                raise LedgerDamaged(
                    f"the ledger became shorter than {offset:,} bytes while it was followed",
                    index=index,
                    offset=offset,
                    problem="truncated",
                )


def _row(index: str, kind: str, step: str, content: str) -> str:
    return f"{index:>8}  {kind:<14}  {step:>8}  {content}".rstrip()


def _rules(told: Told) -> set[str]:
    """Return the names of the rules that an entry mentions."""
    entry, body = told.entry, told.entry.body
    named = {body["rule"]} if "rule" in body else set()
    named |= set(body.get("spent", ())) | set(body.get("privacy", ()) if entry.kind == "committed" else ())
    for decision in told.decisions:
        named.update(decision["rules"], decision["advisory"], decision["waived"])
        named.update(rule for _, rule in decision["obligations"])
    return named


def _verdicts(told: Told) -> set[str]:
    verdicts = {decision["verdict"] for decision in told.decisions}
    return verdicts | {told.entry.body["verdict"]} if "verdict" in told.entry.body else verdicts


def _content(told: Told) -> str:
    """Say in one line what an entry records."""
    entry = told.entry
    words = _step(told) if entry.kind == "step" else _CONTENTS[entry.kind](entry.body)
    return printable(words).replace("\n", "\N{REPLACEMENT CHARACTER}")


def _opened(body: dict[str, Any]) -> str:
    policy = body["policy"]
    return f"{policy['name']} version {policy['version']}, bands {', '.join(body['bands'])}, {body['origin']}"


def _step(told: Told) -> str:
    body, counts = told.entry.body, Counter(decision["verdict"] for decision in told.decisions)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)
    return f"epoch {body['epoch']}, {body['count']} examples: {tally or 'none'}; {body['verdict']}"


def _committed(body: dict[str, Any]) -> str:
    active = ", ".join(body["active"]) or "no band"
    told = f"{active}; loss {body['loss']}" if body["loss"] is not None else active
    spent = [f"{rule} epsilon {terms['epsilon']}" for rule, terms in sorted(body["privacy"].items())]
    return "; ".join([told, *spent])


def _maintained(body: dict[str, Any]) -> str:
    drift = (
        f"{band} drift {value}{' (put back)' if band in body['held'] else ''}"
        for band, value in body["drift"].items()
    )
    return ", ".join(drift)


def _contributed(body: dict[str, Any]) -> str:
    added = {
        band: [norm for norm in norms if norm not in (None, "0")] for band, norms in body["norms"].items()
    }
    return ", ".join(f"{band} by {len(norms)} of {len(body['norms'][band])}" for band, norms in added.items())


def _head(body: dict[str, Any]) -> str:
    found = re.match(r".*\n(\d+)\n", body["note"])
    signers = sorted(set(re.findall("^\N{EM DASH} (\\S+) ", body["note"], re.MULTILINE)))
    return f"{found[1]} entries signed by {', '.join(signers)}" if found and signers else "malformed"


def _key_change(body: dict[str, Any], told: str) -> str:
    from gradwarden.runtime.errors import NoteError
    from gradwarden.runtime.ledger.key_changes import Rotation, parse_change

    try:
        change = parse_change(body["note"].encode())
    except NoteError:
        return "malformed"
    if isinstance(change, Rotation):
        return told.format(change.old.name, change.new.name, "")
    return told.format(change.revoked.name, change.by.name, change.reason)


def _signatures(note: str) -> str:
    """Name who has signed a program, as its note says."""
    from gradwarden.runtime.errors import NoteError
    from gradwarden.runtime.ledger.note import parse_note

    try:
        names = [line.name for line in parse_note(note.encode()).signatures]
    except NoteError:
        return "not a signed note"
    return f"signed as {', '.join(names)}"


def _supplied(body: dict[str, Any]) -> str:
    from gradwarden.runtime.errors import NoteError
    from gradwarden.runtime.evidence.supply import read_supply

    try:
        return f"a manifest of examples, sha256 {read_supply(body['note'].encode()).digest}"
    except NoteError:
        return "malformed"


def _rewound(body: dict[str, Any]) -> str:
    from gradwarden.runtime.records.branches import told

    abandoned = told(tuple((first, end) for first, end in body["abandoned"]))
    return f"to {body['checkpoint']['file']}; abandoned steps: {abandoned}"


def _bound(body: dict[str, Any]) -> str:
    """Say how far the ledgers of a job's ranks are bound."""
    steps = sorted(head["step"] for head in body["heads"])
    told = f", at steps {steps[0]} to {steps[-1]}" if steps else ""
    return f"binding {body['binding']} of {len(steps)} ranks{told}"


_CONTENTS = {
    "opened": _opened,
    "program": lambda body: f"part {body['part'] + 1} of {body['parts']}, sha256 {body['digest'][:12]}",
    "approved": lambda body: _signatures(body["note"]),
    "classes": lambda body: f"{len(body['classes'])} decision classes",
    "examples": lambda body: f"commitments, part {body['part'] + 1}",
    "decisions": lambda body: f"{len(body['decisions'])} decisions",
    "committed": _committed,
    "refused": lambda body: f"{body['gate']} gate: {body['reason']}: {body['detail']}",
    "anchored": lambda body: f"{body['band']} by {body['rule']}: {body['file']}",
    "maintained": _maintained,
    "contributed": _contributed,
    "moved": lambda body: ", ".join(f"{band} by {norm}" for band, norm in body["norms"].items()),
    "starved": lambda body: f"{body['band']} for {body['steps']} steps: {body['action']}",
    "halted": lambda body: f"the budget of {body['rule']} is spent after {body['steps']} steps",
    "expired": lambda body: f"{body['rule']}: {body['count']} examples",
    "policy_changed": lambda body: f"{body['policy']['name']} version {body['policy']['version']}",
    "tensors": lambda body: f"{len(body['tensors'])} tensors of the checkpoint that follows",
    "checkpoint": lambda body: f"{body['file']}, sha256 {body['digest'][:12]}",
    "rewound": _rewound,
    "resumed": lambda body: f"after entry {body['from_size']}, {body['cut']} bytes set aside",
    "supplied": _supplied,
    "derived": lambda body: f"from {body['origin']}, {body['size']} entries",
    "paid": lambda body: (
        f"by all ranks until step {body['step']}: "
        + ", ".join(f"{rule} {steps} steps" for rule, steps in body["rules"].items())
    ),
    "skipped": lambda body: f"steps {body['step']} to {body['until'] - 1} went on without this rank",
    "job_opened": lambda body: f"{body['origin']}, {body['ranks']} ranks, bound every {body['every']} steps",
    "bound": _bound,
    "tallied": lambda body: f"{body['examples']} examples, root of their uses {body['uses'][:12]}",
    "sealed": lambda body: f"{body['steps']} steps: {body['committed']} committed, {body['refused']} refused",
    "rotated": lambda body: _key_change(body, "{0} hands over to {1}"),
    "revoked": lambda body: _key_change(body, "{0} signs no more, says {1}: {2}"),
    "head": _head,
}
