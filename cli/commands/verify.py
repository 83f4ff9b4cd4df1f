"""`gradwarden verify`: check a ledger, offline, and replay its decisions."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import complain
from gradwarden.cli.inputs import load_program
from gradwarden.cli.job_data import job_with_data
from gradwarden.cli.job_judging import job_held_to, judge_job
from gradwarden.cli.job_verdict import show_job
from gradwarden.cli.judging import Asked, held_to, judge, on_trust, with_data
from gradwarden.cli.opened import difference_to_json, show_difference
from gradwarden.cli.options import FILE, trust_options
from gradwarden.cli.output import emit_json, format_option
from gradwarden.cli.program_verdict import signature_beside, verify_program
from gradwarden.cli.verdict import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradwarden.runtime.evidence.trust import Trust
    from gradwarden.runtime.ledger.program_signature import Approvers
    from gradwarden.runtime.verification.key_periods import Schedule
    from gradwarden.runtime.verification.verify import Only


class KeyAge(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """`N` entries or `Nd` days that one key may sign."""

    name = "N|Nd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Schedule:
        from gradwarden.runtime.verification.key_periods import Schedule

        found = re.fullmatch(r"([1-9][0-9]{0,11})(d?)", str(value))
        if found is None:
            self.fail(f"`{value}` is no number of entries such as 500000, or of days such as 90d", param, ctx)
        most = int(found[1])
        return Schedule(days=most) if found[2] else Schedule(entries=most)


@verb("verify")
@click.argument("ledger", type=FILE, metavar="LEDGER|FOLDER|PROGRAM.json")
@trust_options
@click.option(
    "--policy", "policies", type=FILE, multiple=True,
    help="What must have governed the run: a program or a policy; repeatable, for a policy that was changed.",
)  # fmt: skip
@click.option("--model-map", type=FILE, help="Bind the policy to this model before comparing.")
@click.option(
    "--policy-key", "approver_files", type=FILE, multiple=True, metavar="PUB",
    help="The public key of somebody who must have signed every policy of the run; repeatable.",
)  # fmt: skip
@click.option(
    "--policy-signers", type=click.IntRange(min=1), metavar="N",
    help="How many of them are enough; all by default.",
)  # fmt: skip
@click.option(
    "--checkpoint", "checkpoints", type=FILE, multiple=True, metavar="NOTE",
    help="A signed head of this ledger, kept elsewhere or cosigned; repeatable.",
)  # fmt: skip
@click.option(
    "--checkpoint-weights", type=FILE, multiple=True, metavar="FILE|FOLDER",
    help="Weights that the ledger names, in safetensors or in a folder of shards; repeatable, the last among "
    "them.",
)  # fmt: skip
@click.option("--earlier", is_flag=True, help="Weights of earlier checkpoints will do.")
@click.option(
    "--tsa", "authority_files", type=FILE, multiple=True, metavar="CERT",
    help="Check time stamps beside heads by this certificate of an authority, or its issuer's; repeatable.",
)  # fmt: skip
@click.option(
    "--data",
    type=FILE,
    metavar="MANIFEST",
    help="Compare what was recorded of each example with its metadata.",
)
@click.option(
    "--supplier", "supplier_files", type=FILE, multiple=True, metavar="PUB",
    help="The public key of somebody who must have signed that data set (`sign-data`); repeatable.",
)  # fmt: skip
@click.option("--secret", type=FILE, metavar="FILE", help="The run's secret, which opens its commitments.")
@click.option(
    "--only", type=click.Choice(["chain", "entries"]),
    help="Replay no decision: stop at order, links, tree and signatures, or at the schema.",
)  # fmt: skip
@click.option(
    "--rotate-every", "schedule", type=KeyAge(), metavar="N|Nd",
    help="Warn where one key signed more than N entries, or more than N days.",
)  # fmt: skip
@click.option(
    "--remember", type=click.Path(dir_okay=False, path_type=Path), metavar="MEMORY",
    help="Write what was found to this file of your own, where the ledger holds, for --since to go on from.",
)  # fmt: skip
@click.option(
    "--since", type=FILE, metavar="MEMORY",
    help="Verify what is new since --remember wrote this file, and take the rest on trust.",
)  # fmt: skip
@click.option("--what-if", type=FILE, metavar="POLICY", help="Say what another policy would have decided.")
@format_option("text", "json")
def command(
    ledger: Path,
    policies: tuple[Path, ...],
    model_map: Path | None,
    approver_files: tuple[Path, ...],
    policy_signers: int | None,
    checkpoints: tuple[Path, ...],
    checkpoint_weights: tuple[Path, ...],
    earlier: bool,
    authority_files: tuple[Path, ...],
    data: Path | None,
    supplier_files: tuple[Path, ...],
    secret: Path | None,
    only: Only | None,
    schedule: Schedule | None,
    remember: Path | None,
    since: Path | None,
    what_if: Path | None,
    output_format: str,
    trust: Trust,
) -> int:
    """Check a ledger, offline: that nothing was altered, and that every recorded decision is what the policy
    gives.

    The chain is checked line by line, with the tree and every signature over it; then the run is replayed:
    each decision of each step is made again from the recorded inputs. Only public keys are needed, and no
    torch. With --policy the run must have been governed by that policy; without, the one that the ledger
    holds is taken at its word. With --checkpoint, a head that was archived, published or cosigned, a ledger
    that was rewritten by a holder of its key is found out too. With --witness such a head must be cosigned
    by that witness (`gradwarden witness`), and cover all that is signed. With --tsa the time stamps of the
    heads given, and of the one beside the ledger, must hold (`gradwarden timestamp`). With --policy-key every
    program must have been signed by those keys (`gradwarden approve`) before a step was taken under it.

    With --checkpoint-weights the weights must be those that the ledger names last, file by file or tensor by
    tensor; tensors that differ are named, and where the hashes that were saved with them (NAME.leaves) lie
    beside them, so are the first bytes that do. Earlier checkpoints may be given too; with --earlier, alone.
    Bands that no step may shape must be the same to the bit from one checkpoint to the next.

    With --data and --secret, which only the trainer can hand over, the commitments are opened: every example
    of every step must be one of the data set, with the class that its metadata give. Where the run records
    what its suppliers signed, the data set must be that; with --supplier that key must have signed it.
    With --what-if those steps are decided again under another policy, and the difference is reported; that
    changes no verdict.

    With --only less is asked, and answered sooner: `chain` checks order, links, the tree and every signature,
    and does not look at what most lines say; `entries` also holds each of them against the schema.

    With --rotate-every a warning says where a key signed the ledger for longer than your schedule allows.
    Days are read by the replay: with --only a schedule counts entries.

    Given the folder of a job of many ranks, the ledger of each is verified, the log of logs that binds them,
    and what they say together; a rank that is missing, lags or lies is named. --checkpoint is then a head of
    the log of logs; --data and --secret open the commitments of all ranks, and --what-if decides all of them
    again, with the exposures of the whole job. --checkpoint-weights must be what every rank names last.

    Time stamps are then of heads of the log of logs, and --rotate-every is asked of each ledger; --only
    entries leaves the decisions of all ranks open, and still compares the ranks.

    With --remember what a verification found goes to a file of your own; with --since the next one takes that
    up, reads and replays only what is new, and says what it took on trust: that the entries before are
    still the bytes that were verified. Asked for the same, it comes to what a whole verification would, but
    for that. A ledger that no longer has the last entry remembered is gone through as a whole; so is a job,
    of which all ranks are remembered together. Where nothing was remembered a warning says so.

    Given a compiled program instead of a ledger, its signature (PROGRAM.json.note) is checked.

    The status is OK; UNWITNESSED, but for the witnesses it would be OK; INCOMPLETE, intact but not sealed;
    VIOLATION, intact but not what the policy gives; UNTRUSTED, not signed, or not to its end, by a given key;
    ROLLBACK, shorter than a head kept elsewhere; FORK, another history than that head's; or TAMPERED. A job
    may be LAGGING too: a rank was bound later than it allows.

    \b
    Examples:
      gradwarden verify run.ledger --key run.pub
      gradwarden verify run.ledger --key run.pub --policy clinical.json --checkpoint-weights model.safetensors
      gradwarden verify run.ledger --key run.pub --earlier --checkpoint-weights step-0.safetensors
      gradwarden verify run.ledger --key run.pub --checkpoint archived.note --format json
      gradwarden verify run.ledger --key run.pub --checkpoint cosigned.note --witness witness.pub
      gradwarden verify run.ledger --trust auditors.trust --checkpoint cosigned.note
      gradwarden verify run.ledger --key run.pub --checkpoint kept.note --tsa authority.pem
      gradwarden verify run.ledger --key run.pub --policy-key officer.pub --policy-key owner.pub
      gradwarden verify run.ledger --key run.pub --data records.jsonl --secret run.ledger.secret
      gradwarden verify run.ledger --key run.pub --only chain
      gradwarden verify run.ledger --key run.pub --rotate-every 90d
      gradwarden verify job/ --key run.pub --policy clinical.json
      gradwarden verify job/ --key run.pub --data records.jsonl --secret job/job.secret
      gradwarden verify run.ledger --key run.pub --remember mine.memory
      gradwarden verify run.ledger --key run.pub --since mine.memory --remember mine.memory
      gradwarden verify job/ --key run.pub --tsa authority.pem
      gradwarden verify job/ --key run.pub --checkpoint-weights model.safetensors
      gradwarden verify job/ --key run.pub --since job.memory --remember job.memory
      gradwarden verify clinical.json --key release.pub

    \b
    Exit status: 0 it holds (OK), 1 it does not hold, 2 misuse or unreadable input.
    """
    _refuse((model_map and not policies, "--model-map says how to bind the --policy, and there is none"))
    if ledger.suffix == ".json" and not ledger.is_dir():
        others = (checkpoints, checkpoint_weights, authority_files, approver_files, data, since, remember)
        _refuse((policies or any(others), f"`{ledger}` is a program: only its signature is checked"))
        return verify_program(ledger, trust.keys, output_format)
    replaying = policies or approver_files or checkpoint_weights or data
    _refuse(
        (only and replaying, f"`--only {only}` replays nothing; {REPLAYING} need it"),
        (
            only and schedule and schedule.days,
            f"`--only {only}` reads no days: give --rotate-every in entries",
        ),
        (only == "chain" and ledger.is_dir(), f"`{ledger}` is the folder of a job: {COMPARED}"),
        (
            not ledger.is_dir() and _is_log_of_logs(ledger),
            f"`{ledger}` is the log of logs of a job: give its folder, `{ledger.parent}`",
        ),
        ((data is None) != (secret is None), TOGETHER),
        (supplier_files and not data, WHOSE),
        (what_if and not data, OPENED),
        (earlier and not checkpoint_weights, WHICH),
        (trust.witnesses and not checkpoints, COSIGNED),
    )
    asked = Asked(
        programs=[load_program(policy, model_map) for policy in policies],
        approvers=_approvers(approver_files, policy_signers),
        checkpoints=checkpoints,
        weights=checkpoint_weights,
        earlier=earlier,
        authority_files=authority_files,
        only=only,
        since=since,
        remember=remember,
    )
    if ledger.is_dir():
        with on_trust(since):
            job = judge_job(ledger, trust, asked)
            if schedule is not None:
                job = job_held_to(job, schedule)
            if data is not None and secret is not None:
                job = job_with_data(job, data, secret, supplier_files, what_if)
            emit_json(job.to_json()) if output_format == "json" else show_job(job)
        _say_what_is_kept(remember, job.remembered)
        return int(not job.ok)
    other = None if what_if is None else load_program(what_if)
    found = [signature_beside(*pair, trust.keys) for pair in zip(policies, asked.programs, strict=True)]
    with on_trust(since):
        verdict = judge(ledger, trust, asked, [signature for signature in found if signature is not None])
        if schedule is not None:
            verdict = held_to(verdict, schedule)
        difference = None
        if data is not None and secret is not None:
            verdict, difference = with_data(verdict, data, secret, other, supplier_files)
        if output_format == "json":
            decided = {} if difference is None else {"what_if": difference_to_json(difference)}
            emit_json({**verdict.to_json(), **decided})
        else:
            show(verdict)
    if output_format != "json" and difference is not None and what_if is not None:
        show_difference(difference, what_if)
    _say_what_is_kept(remember, verdict.remembered)
    return int(not verdict.ok)


def _say_what_is_kept(asked: Path | None, kept: Path | None) -> None:
    """Warn where nothing was remembered, though that was asked for."""
    if asked is None or kept is not None:
        return
    left = ", and holds what an earlier one found" if asked.exists() else ""
    message = f"nothing is remembered of this verification: `{asked}` was not written{left}"
    complain("GW606", message, "only what holds, as far as it goes, is remembered", severity="warning")


TOGETHER = "--data and --secret go together: neither opens commitments alone"

COSIGNED = "witnesses vouch for a head that they cosigned: give it with --checkpoint"

WHICH = "--earlier says which weights will do, and there are none: --checkpoint-weights"

OPENED = "--what-if needs the metadata of the examples: --data and --secret"

WHOSE = "--supplier says who signed the data set: give it with --data and --secret"

COMPARED = (
    "its ranks are compared by what their entries say, so --only entries is the least; "
    "`verify FOLDER/rank-NNNN.ledger --only chain` looks at the chain of one"
)

REPLAYING = "--policy, --policy-key, --checkpoint-weights, --data"


def _refuse(*cases: tuple[object, str]) -> None:
    """Raise UsageError for the first case of misuse that is so."""
    for holds, said in cases:
        if holds:
            raise click.UsageError(said)


def _is_log_of_logs(path: Path) -> bool:
    """Whether a file begins as the log of logs of a job does; False, too, where it cannot be read."""
    from gradwarden.runtime.errors import LedgerError
    from gradwarden.runtime.ledger.entries import JOB_OPENING
    from gradwarden.runtime.ledger.reader import read_entries

    try:
        return any(entry.kind == JOB_OPENING for entry in islice(read_entries(path), 1))
    except LedgerError:
        return False


def _approvers(files: Sequence[Path], needed: int | None) -> Approvers:
    """Return who must have signed the policies of a run."""
    from gradwarden.runtime.ledger.keys import PublicKey
    from gradwarden.runtime.ledger.program_signature import Approvers

    if needed is not None and not files:
        raise click.UsageError("--policy-signers counts signatures by --policy-key, and there is none")
    keys = tuple(PublicKey.load(path) for path in files)
    return Approvers(keys, needed or len({key.raw for key in keys}) or 1)
