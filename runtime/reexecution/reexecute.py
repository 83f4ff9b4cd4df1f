"""Executes a segment of a run again, from its checkpoint, and compares what comes of it.

A ledger says which steps a run took; whether the weights came out of them it cannot say. Here they are taken
again, by the trainer's own code under a governor like the first: from the weights and the state of training
at the segment's start, with the batches of its steps. What is proposed, decided and recorded must be what the
ledger says, and the weights at the end must be those that it names.

On a CPU, with the same software and as many threads, the weights must be equal to the bit: the file that they
are saved to has the digest in the ledger. Elsewhere (GPUs of another kind, other versions) sums are rounded
otherwise; then a tolerance is given, and the weights are compared with the file that the ledger names.

What is wrong (`Finding.code`):

- `no_state`: the start was saved without the state of training
- `not_replayable`: the run was resumed, or its policy changed, within the segment
- `wrong_file`: a file at its start or end is missing, or is not the one that the ledger names
- `other_steps`: the code proposes, decides or records something else than the ledger says
- `other_weights`: the steps lead to other weights than the ledger names
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model
from torch import nn

from gradwarden.policy.context import EPOCH_DAY
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import Program
from gradwarden.policy.program_json import program_from_json
from gradwarden.runtime.checkpoints import SavedWeights, save_checkpoint
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import RuntimeGovernanceError
from gradwarden.runtime.governor import Governor
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.ledger.entries import Entry
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.maintenance import Standing
from gradwarden.runtime.ranks.keeping import Began
from gradwarden.runtime.records.history import History, read_history
from gradwarden.runtime.reexecution.segments import Segment
from gradwarden.runtime.reexecution.training_state import TrainingState
from gradwarden.runtime.verification.weights_check import different_tensors, recorded_tensors


@dataclass(frozen=True)
class Rebuilt:
    """What the trainer's code gives to train again.

    model, optimizer: made as for the run; their state is put back here. train: takes the given steps under a
    governor, each on its own batch. options: the governor's, as for the run (`normaliser`, `clip_norm`,
    `engine`, …).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    train: Callable[[Governor, range], object]
    options: Mapping[str, Any] = field(default_factory=dict)


@frozen
class SegmentReport:
    """What executing a segment again has shown. digest: of the weights at its end; None where none came.

    difference: the greatest relative difference of a tensor, where a tolerance was given.
    """

    segment: Segment
    findings: tuple[Finding, ...]
    digest: str | None = None
    difference: float | None = None

    @property
    def ok(self) -> bool:
        return not self.findings


class _MismatchError(Exception):
    """What was executed again is not what was recorded. Internal: becomes a finding."""

    def __init__(self, code: str, index: int, message: str) -> None:
        super().__init__(message)
        self.finding = Finding(code, index, message)


class _Again(Governor):
    """A governor that goes on where another ledger stands, and writes a new one."""

    def __init__(self, history: History, program: Program, *arguments: Any, **options: Any) -> None:
        self._history = history
        super().__init__(program, *arguments, **options)

    def _open(self) -> Began:
        joined, history = self.joined, self._history
        assert history.opened is not None
        joined.terms.check_against(history.opened)
        facts = joined.terms.opening(joined.ledger, self.engine.name)
        joined.recorder.open(self.program, facts, joined.signature)
        joined.roster.resume(history)
        joined.budgets.resume(history.private_steps)
        joined.milestones.branches = history.branches
        standing = Standing(history.anchors, history.former_anchors)
        return history.counts, standing, joined.budgets.paid()


def reexecute(
    ledger: Path,
    segment: Segment,
    rebuild: Callable[[], Rebuilt],
    *,
    files: Path | None = None,
    secret: Path | None = None,
    tolerance: float | None = None,
) -> SegmentReport:
    """Execute a segment again. The ledger must have been verified before.

    files: where the checkpoints lie; None: beside the ledger. secret: the run's, for commitments; None:
    `<ledger>.secret`. tolerance: the greatest relative L2 difference of each tensor; None: equal to the bit.

    Raises KeyFileError where the secret cannot be read. Whatever the trainer's code raises is passed on.
    """
    folder = ledger.parent if files is None else files
    secret = Path(f"{ledger}.secret") if secret is None else secret
    try:
        start, state = _start_files(segment, folder)
        Committer.load(secret)  # a new one would be made where it is missing
        end = None if tolerance is None else _file(segment.end, folder, segment.entries[1])
        with tempfile.TemporaryDirectory() as scratch, _deterministic(state.threads):
            again = Path(scratch) / ledger.name
            model = _train_again(ledger, again, segment, rebuild(), start, state, secret)
            _compare_steps(ledger, again, segment, exact=tolerance is None)
            saved = Path(scratch) / "again.safetensors"
            made = save_checkpoint(model, saved)
            digest = made.digest
            if end is None or tolerance is None:
                _compare_digests(ledger, segment, made)
                return SegmentReport(segment, (), digest)
            difference = _greatest_difference(saved, end)
            if not difference <= tolerance:
                _other_weights(segment, f"differ by {difference:.3g} of a tensor's norm")
            return SegmentReport(segment, (), digest, difference)
    except _MismatchError as mismatch:
        return SegmentReport(segment, (mismatch.finding,))


def _start_files(segment: Segment, folder: Path) -> tuple[Path, TrainingState]:
    index = segment.entries[0]
    if segment.broken is not None:
        what = "the run was resumed" if segment.broken == "resumed" else "the policy changed"
        raise _MismatchError("not_replayable", index, f"{what} within steps {_steps(segment)}")
    if segment.state is None:
        message = f"the checkpoint at step {segment.start['step']} was saved without the state of training"
        raise _MismatchError("no_state", index, message)
    start = _file(segment.start, folder, index)
    try:
        return start, TrainingState(_file(segment.state, folder, index))
    except RuntimeGovernanceError as error:
        raise _MismatchError("wrong_file", index, error.message) from error


def _file(named: Mapping[str, Any], folder: Path, index: int) -> Path:
    """Return a file that a `checkpoint` entry names, looked for in a folder."""
    path = folder / Path(named["file"]).name
    if not path.is_file():
        raise _MismatchError("wrong_file", index, f"`{path.name}` is not in `{folder}`")
    if file_digest(path) != named["digest"]:
        raise _MismatchError("wrong_file", index, f"`{path.name}` is not the file that the ledger names")
    return path


@contextmanager
def _deterministic(threads: int) -> Iterator[None]:
    """Let torch compute the same every time, with as many threads as then."""
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_num_threads(before[1])


def _train_again(
    ledger: Path,
    again: Path,
    segment: Segment,
    rebuilt: Rebuilt,
    start: Path,
    state: TrainingState,
    secret: Path,
) -> nn.Module:
    """Take a segment's steps under a governor that writes another ledger; return the model."""
    history = read_history(str(ledger), segment.entries[0] + 1)
    for anchor in ledger.parent.glob(f"{ledger.name}.anchor-*"):
        shutil.copy(anchor, again.parent)
    try:
        load_model(rebuilt.model, start)
    except (RuntimeError, SafetensorError) as error:
        message = f"the weights do not fit the model that was built: {' '.join(str(error).split())[:200]}"
        raise _MismatchError("other_steps", segment.entries[0], message) from error
    state.restore(rebuilt.optimizer)
    days = _days(ledger, segment)

    def clock() -> date:
        return EPOCH_DAY + timedelta(days.get(governor.next_step, 0))

    written = Ledger.open(again, Signer.generate("again"), durability="os")
    try:
        governor = _Again(
            history,
            program_from_json(history.program_text),
            rebuilt.model,
            rebuilt.optimizer,
            ledger=written,
            secret=secret,
            clock=clock,
            **rebuilt.options,
        )
    except BaseException:
        written.close()
        raise
    with governor:
        rebuilt.train(governor, segment.steps)
    return rebuilt.model


def _days(ledger: Path, segment: Segment) -> dict[int, int]:
    """Return the day that each step of a segment records."""
    steps = (entry.body for entry in _within(ledger, segment) if entry.kind == "step")
    return {body["step"]: body["today"] or 0 for body in steps}


def _within(ledger: Path, segment: Segment) -> Iterator[Entry]:
    first, end = segment.entries
    return islice(read_entries(ledger, allow_partial_tail=True), first + 1, end)


def _compare_steps(ledger: Path, again: Path, segment: Segment, *, exact: bool) -> None:
    """Hold the steps that were taken again against the recorded ones.

    exact: norms, losses and what is recorded of contributions must be the same, too.
    """
    history = read_history(str(ledger), segment.entries[0] + 1)
    recorded = list(_steps_of(_within(ledger, segment), history, exact=exact))
    taken = list(_steps_of(read_entries(again), History(), exact=exact))
    for (index, wanted), (_, found) in zip(recorded, taken, strict=False):
        different = sorted(name for name in wanted if wanted[name] != found[name])
        if different:
            names = ", ".join(f"`{name}`" for name in different)
            message = f"step {wanted['step']}, taken again, has another {names} than recorded"
            if "signals" in different and segment.begin:
                message += f"; {_MEASURED}"
            raise _MismatchError("other_steps", index, message)
    if len(recorded) != len(taken):
        message = f"steps {_steps(segment)}: {len(recorded)} are recorded, {len(taken)} were taken again"
        raise _MismatchError("other_steps", segment.entries[0], message)


_MEASURED = (
    "what the governor had measured before the segment is put back by the code that trains "
    "(`governor.measures.load_state_dict`)"
)

_COMPARED = ("step", "epoch", "today", "count", "exposures", "signals", "slots", "spent", "verdict")


def _steps_of(
    entries: Iterable[Entry], history: History, *, exact: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield index and content of each step that has an outcome; decisions in full, whatever their numbers."""
    index, step = 0, dict[str, Any]()
    for entry in entries:
        if entry.kind in ("committed", "refused"):
            outcome = dict(entry.body)
            if not exact:
                outcome = {name: outcome.get(name) for name in ("step", "active", "gate", "reason")}
            yield index, {**step, "outcome": (entry.kind, outcome)}
        elif entry.kind in ("contributed", "moved") and exact:
            step["contributions"] += [entry.body]
        history.apply(entry.kind, entry.body)
        if entry.kind == "step" and history.pending is not None:
            index, body = entry.index, entry.body
            step = {name: body[name] for name in _COMPARED}
            step["examples"], step["contributions"] = history.pending.commitments, []
            step["decisions"] = [
                {name: value for name, value in history.decisions[number].items() if name != "id"}
                for number in body["decision"]
            ]


def _compare_digests(ledger: Path, segment: Segment, made: SavedWeights) -> None:
    if made.digest != segment.end["digest"]:
        recorded = recorded_tensors(ledger, segment.entries[1])
        named = "" if recorded is None else f": {different_tensors(recorded, made.tree)}"
        _other_weights(segment, f"have the digest {made.digest[:16]}…{named}")


def _other_weights(segment: Segment, how: str) -> None:
    raise _MismatchError(
        "other_weights",
        segment.entries[1],
        f"the weights after steps {_steps(segment)}, taken again, {how}; the ledger names "
        f"`{segment.end['file']}`, {segment.end['digest'][:16]}…",
    )


def _greatest_difference(one: Path, other: Path) -> float:
    """Return the greatest relative L2 difference of a tensor; infinite where the files hold others."""
    found, wanted = load_file(one), load_file(other)
    if {name: t.shape for name, t in found.items()} != {name: t.shape for name, t in wanted.items()}:
        return float("inf")
    greatest = 0.0
    for name, tensor in wanted.items():
        norm, moved = tensor.double().norm().item(), (found[name].double() - tensor.double()).norm().item()
        difference = moved / norm if norm else moved
        if not difference <= greatest:
            greatest = difference
    return greatest


def _steps(segment: Segment) -> str:
    return f"{segment.steps.start} to {segment.steps.stop - 1}"
