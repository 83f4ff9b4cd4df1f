"""`gradwarden replay`: execute segments of a run again, and compare the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import InputError, complain
from gradwarden.cli.foreign import foreign, named_object, need_torch, split_target
from gradwarden.cli.inputs import read_head_note
from gradwarden.cli.options import FILE, trust_options
from gradwarden.cli.output import emit_json, emit_table, format_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gradwarden.runtime.evidence.trust import Trust
    from gradwarden.runtime.ledger.chain import Finding
    from gradwarden.runtime.reexecution.challenge import Challenge
    from gradwarden.runtime.reexecution.reexecute import Rebuilt, SegmentReport
    from gradwarden.runtime.reexecution.segments import Run, Segment

HEAD = "head"

ALONE = "the challenge is signed by the trainer alone, who can sign until it misses: ask for a cosigned head"


@verb("replay")
@click.argument("ledger", type=FILE)
@trust_options
@click.option(
    "--using", required=True, metavar="MODULE:FUNCTION", help="Gives what trains: see `reexecution.Rebuilt`."
)
@click.option("--segments", default="all", metavar="N|all", help="How many segments. [default: all]")
@click.option(
    "--challenge", metavar="SEED|head|NOTE",
    help="What chooses them: a text, the last signed head, or the file of a cosigned one.",
)  # fmt: skip
@click.option("--files", type=FILE, metavar="DIR", help="Where the checkpoints lie. [default: beside LEDGER]")
@click.option("--secret", type=FILE, help="The run's secret. [default: LEDGER.secret]")
@click.option(
    "--tolerance", type=click.FloatRange(min=0, min_open=True), metavar="X",
    help="The greatest relative difference of a tensor. [default: equal to the bit]",
)  # fmt: skip
@format_option("text", "json")
def command(
    ledger: Path,
    using: str,
    segments: str,
    challenge: str | None,
    files: Path | None,
    secret: Path | None,
    tolerance: float | None,
    output_format: str,
    trust: Trust,
) -> int:
    """Execute segments of a run again, and compare what comes of them with the ledger and the weights.

    A segment lies between two checkpoints; the first must have been saved with the state of training
    (`Governor.checkpoint(path, state=True)`). The ledger is verified first. Then MODULE:FUNCTION, the
    trainer's own code, gives a model, an optimizer and a function that trains; it takes the steps again from
    the saved state. They must be those that the ledger records, and lead to the weights that it names: equal
    to the bit on a CPU with the same software, within --tolerance elsewhere. The module is imported, so its
    code runs.

    With --segments N the challenge chooses N of them. A seed of the verifier's own, or a head that a witness
    cosigned after the run, cannot be foreseen by the trainer; a head that the trainer alone signs can be
    tried out. A note must be a signed head of the ledger behind all segments, and be cosigned by those whom
    --witness names. How likely such a challenge meets a forged segment is said.

    \b
    Examples:
      gradwarden replay run.ledger --key run.pub --using train:rebuild
      gradwarden replay run.ledger --key run.pub --witness ann.pub --using train:rebuild --segments 3 \
          --challenge cosigned.note
      gradwarden replay run.ledger --key run.pub --using train:rebuild --segments 5 --challenge 4261

    \b
    Exit status: 0 all that was executed again is as recorded, 1 it is not, 2 misuse or unreadable input.
    """
    name, path = split_target(using, "MODULE:FUNCTION", "for a function rebuild in train.py: train:rebuild")
    count = _count(segments)
    if count is not None and challenge is None:
        raise click.UsageError("--segments N needs a --challenge, which chooses them")
    need_torch("gradwarden replay")
    from gradwarden.runtime.reexecution.segments import challenged, find_segments
    from gradwarden.runtime.verification.verify import verify_ledger

    verified = verify_ledger(ledger, trust.keys)
    if verified.status not in ("OK", "INCOMPLETE"):
        raise InputError(
            f"`{ledger}` is {verified.status}: what it records is not worth executing again",
            help="see `gradwarden verify`",
        )
    run = find_segments(ledger)
    if not run.segments:
        raise InputError(f"`{ledger}` has no two checkpoints with steps between them")
    chosen: Sequence[Segment] = run.segments
    drawn = None
    if count is not None and challenge is not None:
        drawn = _challenge(challenge, ledger, trust, verified.facts, run.segments)
        chosen = challenged(run.segments, min(count, len(run.segments)), drawn.seed)
    rebuild = named_object(name, path)
    reports = _reexecute(ledger, chosen, rebuild, using, files, secret, tolerance)
    if output_format == "json":
        document = _document(run, reports, verified.status, tolerance)
        emit_json({**document, "challenge": _told(challenge, drawn)})
    else:
        _show(run, reports, tolerance)
        if drawn is not None and _is_note(challenge):
            by = ", ".join(drawn.witnesses)
            click.echo(f"the challenge is cosigned by {by}" if by else ALONE)
    return int(not _holds(run, reports))


def _holds(run: Run, reports: Sequence[SegmentReport]) -> bool:
    return not run.jumps and all(report.ok for report in reports)


def _is_note(challenge: str | None) -> bool:
    return challenge is not None and (challenge == HEAD or Path(challenge).is_file())


def _told(challenge: str | None, drawn: Challenge | None) -> dict[str, Any] | None:
    if drawn is None:
        return None
    return {"from": "note" if _is_note(challenge) else "seed", "witnesses": list(drawn.witnesses)}


def _count(segments: str) -> int | None:
    if segments == "all":
        return None
    if not segments.isascii() or not segments.isdecimal() or int(segments) < 1:
        raise click.UsageError(f"--segments takes a number from 1 on, or `all`, not `{segments}`")
    return int(segments)


def _challenge(
    challenge: str, ledger: Path, trust: Trust, facts: Mapping[str, Any], segments: Sequence[Segment]
) -> Challenge:
    """Return what chooses: a head beside the ledger, a note, or the text itself."""
    from gradwarden.runtime.reexecution.challenge import Challenge, challenge_of_note

    beside = ledger.with_name(f"{ledger.name}.head")
    note = beside if challenge == HEAD else Path(challenge)
    if challenge != HEAD and not note.is_file():
        return Challenge(challenge.encode())
    return challenge_of_note(ledger, read_head_note(note), trust, facts, segments)


def _reexecute(
    ledger: Path,
    chosen: Sequence[Segment],
    rebuild: Callable[[], Any],
    using: str,
    files: Path | None,
    secret: Path | None,
    tolerance: float | None,
) -> list[SegmentReport]:
    from gradwarden.runtime.reexecution.reexecute import Rebuilt, reexecute

    def rebuilt() -> Rebuilt:
        found = rebuild()
        if not isinstance(found, Rebuilt):
            raise TypeError(f"it gave an object of type `{type(found).__name__}`, not a `Rebuilt`")
        return found

    def again(segment: Segment) -> SegmentReport:
        return reexecute(ledger, segment, rebuilt, files=files, secret=secret, tolerance=tolerance)

    return [foreign(f"`{using}` failed in segment {s.number}", again, s) for s in chosen]


def _document(
    run: Run, reports: Sequence[SegmentReport], status: str, tolerance: float | None
) -> dict[str, Any]:
    return {
        "ok": _holds(run, reports),
        "ledger": status,
        "segments": len(run.segments),
        "steps": run.steps,
        "steps_in_segments": run.covered,
        "steps_abandoned": run.abandoned,
        "tolerance": tolerance,
        "chance_of_one_forged": _chance(run, reports),
        "jumps": [_finding(found) for found in run.jumps],
        "executed": [
            {
                "segment": report.segment.number,
                "steps": [report.segment.steps.start, report.segment.steps.stop],
                "ok": report.ok,
                "digest": report.digest,
                "difference": report.difference,
                "findings": [_finding(found) for found in report.findings],
            }
            for report in reports
        ],
    }


def _finding(found: Finding) -> dict[str, Any]:
    return {"code": found.code, "index": found.index, "message": found.message}


def _chance(run: Run, reports: Sequence[SegmentReport]) -> float:
    from gradwarden.runtime.reexecution.segments import chance_of_catching

    return chance_of_catching(len(run.segments), len(reports))


def _show(run: Run, reports: Sequence[SegmentReport], tolerance: float | None) -> None:
    same = "equal to the bit" if tolerance is None else f"equal within {tolerance:g}"
    rows = []
    for report in reports:
        steps = report.segment.steps
        told = same if report.ok else report.findings[0].code
        rows.append((str(report.segment.number), f"{steps.start}..{steps.stop - 1}", told))
    emit_table(("segment", "steps", "weights"), rows, numeric=(0,))
    click.echo(
        f"{len(reports)} of {len(run.segments)} segments executed again; if one were forged, such a "
        f"challenge would meet it with probability {_chance(run, reports):.3g}"
    )
    if run.covered < run.steps:
        click.echo(f"{run.steps - run.covered:,} of {run.steps:,} steps lie in no segment")
    if run.abandoned:
        click.echo(f"{run.abandoned:,} abandoned steps did not lead to the last weights, and are left out")
    for finding in (*run.jumps, *(found for report in reports for found in report.findings)):
        complain(finding.code, finding.message, None)
