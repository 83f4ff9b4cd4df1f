"""The outcome of verifying a ledger: the status, what was checked, what was not, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.diagnostics import plural, printable
from gradwarden.cli.output import moment
from gradwarden.policy.frozen import frozen

if TYPE_CHECKING:
    from gradwarden.runtime.evidence.witnessed import Assurance
    from gradwarden.runtime.ledger.chain import Finding

MEANINGS = {
    "OK": "intact, sealed, signed by a given key, and decided as its policy says",
    "UNWITNESSED": "it would hold, but the witnesses asked for do not vouch for all of it",
    "VIOLATION": "intact and signed, but what it records does not fit its policy, or what was given with it",
    "INCOMPLETE": "intact as far as it goes, but not sealed, or an archive is missing",
    "UNTRUSTED": "no given key vouches for it, or for all of it",
    "ROLLBACK": "entries are missing that it had when a head was signed",
    "FORK": "rewritten: a head was signed over other entries than these",
    "TAMPERED": "altered after it was written",
}

SINCE = ", given what was remembered"

PARTLY = "intact, sealed and signed by a given key; its decisions were not made again"
"""What OK means where no decision was replayed."""

STATUSES = {
    "unwitnessed": "UNWITNESSED",
    "checkpoint_untrusted": "UNTRUSTED",
    "rolled_back": "ROLLBACK",
    "forked": "FORK",
    "checkpoint_mismatch": "TAMPERED",
    "timestamp_invalid": "UNTRUSTED",
}
"""What a comparison with heads kept elsewhere makes of a ledger that is sound by itself."""

RANKS = (
    "TAMPERED", "FORK", "ROLLBACK", "UNTRUSTED", "VIOLATION", "INCOMPLETE", "UNWITNESSED", "OK",
)  # fmt: skip
"""Every status, the worst first."""

HELP = {
    "unsigned": "was it signed by another key? `gradwarden log LEDGER --kind head` names the signers",
    "unknown_key": "was it signed by another key? `gradwarden log LEDGER --kind head` names the signers; "
    "give --key for each that you trust, one that revokes among them",
    "untrusted_key": "`gradwarden log LEDGER --kind head` names the signers; give --key for that one if you "
    "trust it",
    "retired_key": "keys that were handed over or revoked sign nothing: who has this one still?",
    "torn_tail": "a crash leaves this; the run sets it aside and records it when it is resumed",
    "truncated": "entries were cut off: the file `LEDGER.head` beside it was signed for more",
    "wrong_secret": "the run's secret was written beside its ledger, as `LEDGER.secret`",
    "unknown_example": "give the manifest of all examples that the run proposed, with their ids",
    "unsupplied_data": "give the file that was signed: `gradwarden log LEDGER --kind supplied` has digests",
    "policy_mismatch": "give the program that the run was started with, or drop --policy to check the rest",
    "wrong_decision": "`gradwarden log LEDGER --steps N --format jsonl` shows the step as it was recorded",
    "unmarked_restart": "`Governor.rewind` says so in the ledger where a run goes back to earlier weights",
    "rotation_overdue": "`gradwarden rotate` hands the ledger over to a fresh key",
    "archive_missing": "put the archives beside the ledger, and `LEDGER.archived` with them",
    "archive_damaged": "restore the archive from a copy: its own checksum says that it was changed",
    "weights_mismatch": "`gradwarden log LEDGER --kind checkpoint` lists them; `--earlier` accepts any",
    "frozen_moved": "something else than a step changed the weights: does the loop load or edit them?",
    "drift_unmeasured": "keep the files `LEDGER.anchor-*` with the ledger, and hand them on with it",
    "checkpoint_mismatch": "each ledger has an origin of its own: is this the right one?",
    "rolled_back": "ask for the whole ledger; the checkpoint shows that there was more",
    "forked": "keep both: the checkpoint and the ledger show that a holder of the key has two histories",
    "timestamp_invalid": "give the certificate of the authority, or of who certifies it, with --tsa",
    "unsigned_lost": "a crash of the run's machine does this; ask whether there was one",
    "unwitnessed": "`gradwarden witness` cosigns the last head; give what it writes with --checkpoint",
    "checkpoint_untrusted": "give the key of whoever signed the checkpoint with --key",
}
MOST_RULES = 12
"""Rules that are listed with how often they had a part; `--format json` has all."""

NO_LEDGER = "the file does not begin as a ledger does: is it the right one?"
ALTERED = "entries before it still hold; compare what follows with a copy kept elsewhere"


@frozen
class Signature:
    """The signature beside a compiled program, and the given keys that made it (none: by others)."""

    note: Path
    signers: tuple[str, ...]


@frozen
class Verdict:
    """All that was found out about a ledger."""

    ledger: Path
    status: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]
    policy_given: bool
    heads_compared: int
    assurance: Assurance | None
    weights: tuple[Path, ...]
    memory: Path | None
    """What was found earlier, and gone on from."""
    remembered: Path | None
    """Where what was found now is kept."""
    signatures: tuple[Signature, ...]

    @property
    def ok(self) -> bool:
        return self.status == "OK"

    @property
    def weights_compared(self) -> bool:
        """Whether weights were given, and the ledger is sound and whole enough to say which it names."""
        told = {"weights_mismatch", "wrong_tensors"}
        return bool(self.facts.get("weights")) or (
            any(finding.code in told for finding in self.findings) and not self.facts["archived"]
        )

    @property
    def first(self) -> Finding | None:
        """The first error, by the order of entries."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        return min(errors, key=lambda finding: finding.index, default=None)

    def checked(self) -> Iterator[str]:
        """Yield what was checked."""
        facts = self.facts
        form = "" if facts["only"] == "chain" else "form, "
        since = facts["since"] or {"entries": 0, "decisions": 0, "steps": 0}
        entries = plural(facts["entries"] - since["entries"] - facts["archived"], "entry", "entries")
        behind = f" behind the first {since['entries']:,}" if since["entries"] else ""
        yield f"{entries}{behind}: {form}order, links and tree"
        names = sorted({vkey.split("+")[0] for vkey in facts["keys_used"]})
        if names:
            yield f"signed heads by {', '.join(names)} over the first {facts['signed_entries']:,} entries"
        for change in facts["key_changes"]:
            key, by = change["key"].split("+")[0], change["by"].split("+")[0]
            how = f"handed over to {by}" if change["kind"] == "rotated" else f"was revoked by {by}"
            yield f"the key {key} {how} at entry {change['entry']:,}, and signs nothing after it"
        decisions = facts.get("decisions_replayed", 0) - since["decisions"]
        if decisions:
            steps = facts["steps"] - since["steps"]
            yield f"{plural(decisions, 'decision')} in {plural(steps, 'step')}, made again"
        if facts.get("contributions"):
            steps = plural(facts["contributions"], "step")
            yield f"what examples added to each band in {steps}: it agrees with their weights and gradients"
        if facts.get("rewinds"):
            yield (
                f"{plural(facts['abandoned'], 'step')} marked as abandoned, worked out again: the run went "
                f"back to earlier weights {plural(facts['rewinds'], 'time')} (`gradwarden history`)"
            )
        compared = facts.get("metadata_compared")
        if compared:
            yield f"{plural(compared['examples'], 'example')} in steps, against their metadata (--data)"
        for vkey in facts.get("data_signed_by", ()):
            yield f"the data set was signed by its supplier {vkey.split('+')[0]} before the first step"
        if facts.get("base"):
            base = facts["base"]
            yield printable(f"it names its base: {base['origin']}, {base['size']:,} entries")
        codes = {finding.code for finding in self.findings}
        if self.policy_given and facts.get("decisions_replayed") and "policy_mismatch" not in codes:
            yield "the run was governed by what was given (--policy)"
        for approval in facts.get("approvals", ()):
            if approval["signed_by"]:
                named = f"`{approval['name']}` version {approval['version']}"
                yield printable(f"the policy {named} was signed by {', '.join(approval['signed_by'])}")
        for signature in self.signatures:
            if signature.signers:
                yield f"the program's signature by {', '.join(signature.signers)}"
        if self.heads_compared and not codes & (STATUSES.keys() - {"unwitnessed"}):
            several = f"the {self.heads_compared} checkpoints given are heads of this ledger"
            yield "the checkpoint given is a head of this ledger" if self.heads_compared == 1 else several
        for seen in self.assurance.sightings if self.assurance else ():
            when = moment(seen.seconds)
            yield f"cosigned by the witness {seen.witness.name} at {when}, over {seen.size:,} entries"
        for stamp in facts.get("timestamps", ()):
            when, by = stamp["time"], stamp["authority"]
            yield printable(f"the first {stamp['entries']:,} entries existed at {when}, says {by}")
        yield from _weights_lines(facts)
        for rule, bounds in facts.get("epsilon_bounds", {}).items():
            spent = facts["privacy"][rule]
            yield printable(
                f"`{rule}`: {plural(spent['steps'], 'step')} recorded at epsilon {spent['epsilon']}; "
                f"reckoned anew, they cost {bounds['low']} to {bounds['high']}"
            )
        for band, drift in facts.get("drift_measured", {}).items():
            yield f"how far `{band}` is from its anchor in those weights: {100 * float(drift):.4g}%"

    def unchecked(self) -> Iterator[str]:
        """Yield what was not checked, or cannot be."""
        since = self.facts["since"]
        if since:
            yield (
                f"the first {since['entries']:,} entries, as verified at {since['at']}: that they are still "
                f"the same, and `{self.memory}` your own, was taken on trust (--since)"
            )
        only = self.facts["only"]
        if self.facts["archived"]:
            yield (
                f"the first {plural(self.facts['archived'], 'entry', 'entries')}, and the decisions, "
                "exposures, budgets and outcomes of the whole run: the archive is missing"
            )
        if only == "chain":
            yield f"whether every line is an entry, and what it says (--only {only})"
        if only:
            yield f"the decisions, exposures, budgets and outcomes of the run (--only {only})"
        yield "that every training step was offered to the ledger: it is self-attested"
        if self.facts.get("run") and not self.facts.get("base"):
            yield "what the first weights had learned: no base is named"
        if not self.policy_given:
            yield "the policy: that of the ledger was taken at its word (--policy)"
        if self.facts.get("contributions"):
            yield "what each single example added: it was taken at its word within that (`gradwarden replay`)"
        if "metadata_compared" not in self.facts:
            yield "the metadata of examples: what was recorded of them was taken at its word (--data)"
        if self.facts.get("supplied") and not self.facts.get("data_signed_by"):
            yield "the signatures of those who supplied the data (--data, --supplier)"
        for signature in self.signatures:
            if not signature.signers:
                yield f"the program's signature `{signature.note}`: it is by another key (--key)"
        if not self.heads_compared:
            yield "whether a holder of the key rewrote it: no head kept elsewhere was given (--checkpoint)"
        elif self.assurance is None:
            yield "whether others were shown the same: no witness was asked for (--witness)"
        if self.facts.get("checkpoints") == []:
            yield "that bands which no step may shape stayed the same: the ledger lists no tensors"
        if not self.weights_compared:
            yield "the weights" + ("" if self.weights else " (--checkpoint-weights)")
        if self.facts.get("budgets_recomputed") is False:
            yield "to the very step, how long privacy budgets last: that needs gradwarden[privacy]"
        trusted = self.facts.get("on_trust", ())
        if "sampling" in trusted:
            yield "that private examples were drawn by Poisson sampling: no step was held to a sampler"
        if others := [word for word in trusted if word != "sampling"]:
            yield printable(
                f"that decisions by {' and '.join(others)} depend on no private draw: taken on trust"
            )
        if self.facts.get("private_recorded"):
            yield (
                "what the ledger itself tells of private examples: it counts and decides them step by step, "
                "which no epsilon covers (`withhold` was off)"
            )
        behind = self.facts["entries"] - self.facts["signed_entries"]
        if behind > 1:
            yield f"signatures over the last {behind:,} entries: no head covers them yet"

    def to_json(self) -> dict[str, Any]:
        first = self.first
        return {
            "ok": self.ok,
            "status": self.status,
            "ledger": str(self.ledger),
            "first_bad": None if first is None else first.index,
            "findings": [
                {
                    "code": finding.code,
                    "index": finding.index,
                    "severity": finding.severity,
                    "message": finding.message,
                    "help": help_for(finding),
                }
                for finding in self.findings
            ],
            "checked": list(self.checked()),
            "not_checked": list(self.unchecked()),
            "facts": dict(self.facts),
        }


def worst(status: str, findings: Iterable[Finding]) -> str:
    """Return the worst of a status and of what findings about heads kept elsewhere make of it."""
    return min([status, *(STATUSES[finding.code] for finding in findings)], key=RANKS.index)


def help_for(finding: Finding) -> str | None:
    """Return what to do about a finding."""
    if finding.code in ("altered", "wrong_link", "wrong_index", "wrong_root", "not_canonical"):
        return ALTERED
    if finding.index == 0 and finding.code in ("not_json", "not_an_entry"):
        return NO_LEDGER
    return HELP.get(finding.code)


def show(verdict: Verdict) -> None:
    """Write a verdict to standard output, and its findings to standard error; nothing, if that fails."""
    for line, to_stderr in tuple(_told(verdict)):
        click.echo(line, err=to_stderr)


def _told(verdict: Verdict) -> Iterator[tuple[str, bool]]:
    """Yield the lines that tell a verdict, each with whether it goes to standard error."""
    colour = "green" if verdict.ok else "yellow" if verdict.status == "INCOMPLETE" else "red"
    status = click.style(verdict.status, fg=colour, bold=True)
    meaning = PARTLY if verdict.ok and verdict.facts["only"] else MEANINGS.get(verdict.status, "")
    yield f"{status} {verdict.ledger}: {meaning}{SINCE if verdict.facts['since'] else ''}", False
    for line in _run_lines(verdict.facts):
        yield f"  {line}", False
    for heading, lines in (("checked", verdict.checked()), ("not checked", verdict.unchecked())):
        yield click.style(heading, bold=True), False
        for line in lines:
            yield f"  {line}", False
    for finding in verdict.findings:
        name = click.style(
            f"{finding.severity}[{finding.code}]",
            fg="red" if finding.severity == "error" else "yellow",
            bold=True,
        )
        first = ", the first bad one" if finding == verdict.first else ""
        yield f"entry {finding.index}{first}: {name}: {printable(finding.message)}", True
        remedy = help_for(finding)
        if remedy:
            yield f"  {click.style('= help:', fg='cyan')} {remedy}", True


def _weights_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known of the weights that were given, and of those that the ledger lists."""
    for given in facts.get("weights", ()):
        which = "that the ledger names last" if given["last"] else "of an earlier checkpoint"
        how = "" if given["same_file"] else ", tensor by tensor, in another file"
        where = f"step {given['step']:,}, entry {given['entry']:,}"
        yield printable(f"`{given['path']}` holds the weights {which} ({where}){how}")
    yield from steady_line(facts)


def steady_line(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield which bands stayed the same between the checkpoints that a ledger lists, if it lists any."""
    steady = facts.get("unchanged")
    if steady:
        bands = ", ".join(f"`{band}`" for band in steady["bands"]) or "none"
        span = f"from the checkpoint at step {steady['from']:,} to that at step {steady['to']:,}"
        yield printable(f"bands that stayed the same to the bit, by the ledger, {span}: {bands}")


def _run_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    policy = facts.get("policy")
    if policy:
        yield printable(f"policy {policy['name']} version {policy['version']}, sha256 {policy['digest']}")
    if facts.get("run"):
        yield printable(f"run {facts['run']}, engine {facts.get('engine')}")
    if facts.get("steps"):
        outcomes = f"{facts['committed']:,} committed, {facts['refused']:,} refused"
        lost = facts["steps"] - facts["committed"] - facts["refused"]
        if lost > 0:
            outcomes += f", {lost:,} without a recorded outcome, as a crash leaves it"
        yield f"{plural(facts['steps'], 'step')}: {outcomes}"
    verdicts = facts.get("verdicts")
    if verdicts:
        yield "examples: " + ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(verdicts.items()))
    for part, counts in facts.get("rules", {}).items():
        if counts:
            most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            told = ", ".join(f"{count:,} {rule}" for rule, count in most[:MOST_RULES])
            yield printable(f"rules {part}: {told}{', …' if len(most) > MOST_RULES else ''}")
    yield f"root {facts['root']}"
    yield f"assurance: {_assurance(facts)}"


def _assurance(facts: Mapping[str, Any]) -> str:
    """Say on whose word the ledger stands."""
    size = facts.get("witnessed_entries", 0)
    if not size:
        return "self-attested"
    names = ", ".join(seen["vkey"].split("+")[0] for seen in facts["witnesses"] if seen["entries"] >= size)
    return f"witnessed by {names} up to entry {size - 1:,}; self-attested from there on"
