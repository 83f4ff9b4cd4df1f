"""How far a group of examples moved a model: directly, and through what other examples did afterwards.

A mask stops an example's own gradient. It does not stop what the example taught one band from steering the
gradients that others send into the rest. So the model is trained twice, from the same weights, on the same
batches in the same order: once as the policy decides, and once with the group refused everywhere. Whatever
differs between the two is the group's doing.

    def train(run):
        torch.manual_seed(0)
        model, optimizer = …
        ledger = Ledger.open(run.folder / "run.ledger", signer=signer)
        with Governor(program, model, optimizer, ledger=ledger, dataset=run.examples) as governor:
            run.watch(governor, held_out={"prose": loss_on_prose})
            for ids in batches:
                with governor.step(ids) as proposal:
                    proposal.backward(per_example_loss(…))
                run.record(proposal)

    report = measure_leak(train, examples, lambda name, metadata: metadata["license"] == "MPL-2.0")

In the second run the group's metadata carry an attribute that no policy can declare, so every policy refuses
them as invalid. They stay in their batches: composition, normaliser and forward pass are those of the first
run. A batch of nothing else is refused as a whole and gives its random numbers back, so that with dropout the
two runs draw differently from there on. That, too, is the group's doing, as it is in any governed run.

Snapshots (one model in size, at each watched step of each run) go to disk, not to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradwarden.runtime.errors import InfluenceError
from gradwarden.runtime.governor import Governor
from gradwarden.runtime.influence_report import BandInfluence, HeldOutLoss, LeakReport, LossPair, Movement
from gradwarden.runtime.steps.proposal import Proposal
from gradwarden.runtime.steps.restore import Snapshot

WITHHELD = "withheld from this run"
"""The attribute of an example that is to be refused. It is no identifier, so no policy can declare it."""

Metadata = Mapping[str, Any]
Evaluation = Callable[[nn.Module], float]
"""Returns the loss of a held-out set. Called without gradients; generators and modes are put back."""


def measure_leak(
    train: Callable[[WatchedRun], None],
    examples: Iterable[tuple[str, Metadata]],
    group: Callable[[str, Metadata], bool] | Collection[str],
    *,
    steps: Collection[int] | None = None,
    repeat: bool = False,
    folder: Path | None = None,
) -> LeakReport:
    """Train with and without a group of examples, and report how far each band moved because of it.

    train: trains from a fixed seed under one policy; calls `watch` before the first step and `record` after
    each. examples: (id, metadata) of all. group: ids, or a test of id and metadata. steps: after which steps
    to compare; by default after 1, 2, 4, 8, …; the last one always is. repeat: train the first run once more,
    and report how far two equal runs drift apart, which is not zero where kernels are not deterministic.
    folder: where the runs' folders are kept; None: nowhere.

    Needs a single process. Raises InfluenceError for an empty group, and where the runs do not begin with the
    same weights, propose other batches, or take no part in the measurement.
    """
    known = dict(examples)
    chosen = group if callable(group) else _member_of(frozenset(group))
    members = frozenset(name for name, metadata in known.items() if chosen(name, metadata))
    if not members:
        raise InfluenceError("the group has no examples: there is nothing to measure")
    with _place(folder) as root:
        runs = []
        for name in ("with", "without", *(["again"] if repeat else [])):
            run = WatchedRun(name, known, members, root / name, steps)
            train(run)
            run.finish()
            runs.append(run)
            _check_alike(runs[0], run)
        return _report(*runs)


class WatchedRun:
    """One of the trainings that are compared.

    name: `with`, `without` or `again`. examples: (id, metadata) of this run, to be passed to the governor.
    folder: an empty folder of its own, for the ledger.
    """

    def __init__(
        self,
        name: str,
        known: Mapping[str, Metadata],
        members: frozenset[str],
        folder: Path,
        moments: Collection[int] | None,
    ) -> None:
        self.name = name
        self.withheld = name == "without"
        self.examples: list[tuple[str, Metadata]] = [
            (name, {**metadata, WITHHELD: True} if self.withheld and name in members else metadata)
            for name, metadata in known.items()
        ]
        self.folder = folder
        self.folder.mkdir(parents=True)
        self.members = members
        self.steps = 0
        self.exposures = 0
        self.direct: dict[str, list[int]] = {}
        self.losses: dict[int, dict[str, float]] = {}
        self.batches: list[int] = []
        self._moments = moments
        self._governor: Governor | None = None
        self._held_out: Mapping[str, Evaluation] = {}

    def watch(self, governor: Governor, held_out: Mapping[str, Evaluation] | None = None) -> None:
        """Begin: call once, before the first step. held_out: losses to compare, by name."""
        if self._governor is not None:
            raise InfluenceError("`watch` was called twice in one run")
        if governor.joined.ranks.size > 1:
            raise InfluenceError("influence is measured in a single process", help="train without `group=`")
        self._governor = governor
        self._held_out = held_out or {}
        self.direct = {band: [] for band in governor.program.band_names}
        self._observe()

    def record(self, proposal: Proposal) -> None:
        """Take note of a step: call after each, whatever became of it.

        Raises InfluenceError for examples that are not those of `run.examples`.
        """
        governor = self._watched()
        self.steps += 1
        batch = governor.roster.describe(proposal.rows)
        self.batches.append(hash(tuple(name for name, _ in batch)))
        inside = [place for place, (name, _) in enumerate(batch) if name in self.members]
        if any((WITHHELD in batch[place][1]) is not self.withheld for place in inside):
            raise InfluenceError(
                "the group was proposed with metadata that are not those of this run",
                help="give the governor `run.examples` (`dataset=`), and propose examples by their ids",
            )
        self.exposures += len(inside)
        if proposal.committed:
            for band, weights in zip(self.direct, proposal.weights[inside].T, strict=True):
                if weights.any():
                    self.direct[band].append(self.steps)
        if self._is_moment(self.steps):
            self._observe()

    def finish(self) -> None:
        """Compare after the last step as well. Raises InfluenceError for a run that was not watched."""
        self._watched()
        if not self.steps:
            raise InfluenceError("no step was recorded", help="call `run.record(proposal)` after every step")
        if self.steps not in self.losses:
            self._observe()

    def parameters(self, step: int) -> dict[str, Tensor]:
        """Return the parameters after a step that was watched, by name."""
        return load_file(self._file(step))

    @property
    def moments(self) -> list[int]:
        """The steps that were watched, 0 first."""
        return sorted(self.losses)

    @property
    def bands(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the parameters of each band."""
        return {band.name: band.parameters for band in self._watched().program.bands}

    @property
    def digest(self) -> str:
        return self._watched().program.digest

    def _watched(self) -> Governor:
        if self._governor is None:
            raise InfluenceError("the run was not watched", help="call `run.watch(governor)` before any step")
        return self._governor

    def _is_moment(self, step: int) -> bool:
        return step & (step - 1) == 0 if self._moments is None else step in self._moments

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def _observe(self) -> None:
        governor = self._watched()
        weights = {
            name: parameter.detach().contiguous()
            for band in governor.program.bands
            for name, parameter in zip(band.parameters, governor.parameters[band.name], strict=True)
        }
        save_file(weights, self._file(self.steps))
        with _undisturbed(governor.model):
            self.losses[self.steps] = {
                name: float(loss(governor.model)) for name, loss in self._held_out.items()
            }


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put generators, buffers and modes back as they were; an evaluation must not steer the training."""
    state, modes = Snapshot(model), [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            yield
    finally:
        state.restore()
        for module, mode in modes:
            module.training = mode


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with TemporaryDirectory(prefix="gradwarden-influence-") as temporary:
        yield Path(temporary)


def _member_of(names: frozenset[str]) -> Callable[[str, Metadata], bool]:
    return lambda name, metadata: name in names


def _check_alike(first: WatchedRun, run: WatchedRun) -> None:
    """Raise InfluenceError where two runs differ in more than the group."""
    if first.digest != run.digest:
        raise InfluenceError("the runs were governed by different programs")
    start, other = first.parameters(0), run.parameters(0)
    if start.keys() != other.keys() or not all(torch.equal(start[name], other[name]) for name in start):
        raise InfluenceError(
            "the runs did not begin with the same weights", help="seed the generators before making the model"
        )
    if first.batches != run.batches:
        pairs = zip(first.batches, run.batches, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(first.steps, run.steps))
        raise InfluenceError(
            f"the runs proposed different batches from step {same + 1} on",
            help="the order of examples may depend on a fixed seed, and on nothing that is learned",
        )


def _report(first: WatchedRun, without: WatchedRun, again: WatchedRun | None = None) -> LeakReport:
    movements = _movements(first, without)
    noise = None if again is None else _movements(first, again)
    bands = tuple(
        BandInfluence(
            band,
            parameters=sum(first.parameters(0)[name].numel() for name in names),
            direct_steps=len(first.direct[band]),
            first_direct=min(first.direct[band], default=None),
            movements=tuple(movements[band]),
            noise=None if noise is None else max(movement.relative for movement in noise[band]),
        )
        for band, names in first.bands.items()
    )
    held_out = tuple(
        HeldOutLoss(name, tuple(_loss_pair(step, name, first, without) for step in first.moments))
        for name in first.losses[0]
    )
    return LeakReport(len(first.examples), len(first.members), first.exposures, first.steps, bands, held_out)


def _loss_pair(step: int, name: str, first: WatchedRun, without: WatchedRun) -> LossPair:
    return LossPair(step, first.losses[step][name], without.losses[step][name])


def _movements(first: WatchedRun, other: WatchedRun) -> dict[str, list[Movement]]:
    """Return how far apart the bands of two runs are after each step that was watched."""
    start = first.parameters(0)
    found: dict[str, list[Movement]] = {band: [] for band in first.bands}
    for step in first.moments[1:]:
        one, two = first.parameters(step), other.parameters(step)
        for band, names in first.bands.items():
            distance = _distance(one, two, names)
            travelled = max(_distance(one, start, names), _distance(two, start, names))
            found[band].append(Movement(step, distance, travelled))
    return found


def _distance(one: Mapping[str, Tensor], two: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """Return the L2 distance of some parameters; it is 0.0 for equal ones only."""
    parts = [torch.linalg.vector_norm(one[n].double() - two[n].double()) for n in names]
    return float(torch.stack(parts).norm()) if parts else 0.0
