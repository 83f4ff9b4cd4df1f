"""Carries out `maintain` rules: bands are anchored, pulled back, measured, and held within their bound.

A band's anchor is what its parameters were when its rule came into force (`anchors`). Then, in every step
that reaches the band:

- the **pull** adds strength * (p - anchor) to the gradient of every parameter p that has one, after masking
  and privacy noise and before norm caps. It is the gradient of strength / 2 * ||p - anchor||^2: L2-SP (Li,
  Grandvalet & Davoine 2018), elastic weight consolidation with the identity for its Fisher matrix;
- the **bound** limits the drift ||p - anchor|| / ||anchor|| of the band. Where the optimizer's move passes
  it, the parameters that moved are put back on the line to their anchor, to where the drift is the bound:
  projected gradient descent on a ball about the anchor (Gouk, Hospedales & Pontil 2021).

What has no gradient is neither pulled nor put back, so that a weight of zero still means no change. A step
that finds a band beyond its bound already is refused: something else than governed steps has moved it.

Pull and bound are functions of parameters and anchors alone, so under privacy rules they are post-processing.
All ranks of a run compute the same from the same parameters; rank 0 saves the anchors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from gradwarden.policy.program import SCALE, Band, Maintenance, Program
from gradwarden.runtime.anchors import (
    Anchor,
    anchor_norm,
    distance,
    fitting,
    joint_norm,
    load_anchor,
    norm_of,
    save_anchor,
)
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.ranks.data_parallel import Ranks
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.steps.gates import Finding

Parameters = Mapping[str, tuple[nn.Parameter, ...]]
"""The parameters of each band."""

MARGINS = (1e-6, 1.6e-5, 2.56e-4, 4e-3, 6.5e-2, 1.0)
"""How far below the bound a band is put back, one attempt after the other.

Rounding to the type of the parameters may leave it above; the last attempt puts the anchor itself back.
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """The anchors that a ledger names, by band: its `anchored` entries under the program in force.

    former: where no step was proposed since that came into force, those under the program before it. What
    both maintain keeps its anchor.
    """

    declared: Mapping[str, Mapping[str, Any]]
    former: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Held:
    """A band that is maintained. An advisory rule neither pulls nor bounds."""

    band: str
    rule: Maintenance
    anchor: Anchor
    parameters: tuple[nn.Parameter, ...]
    values: tuple[Tensor, ...]
    """The anchor of each parameter."""

    @property
    def strength(self) -> float:
        return float(self.rule.strength or 0) if self.rule.level == "hard" else 0.0

    @property
    def bound(self) -> float | None:
        return None if self.rule.drift is None or self.rule.level != "hard" else self.rule.drift / SCALE

    def drift(self) -> float:
        """Return ||p - anchor|| / ||anchor|| of the band as it is."""
        return distance(self.parameters, self.values) / self.anchor.norm


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of the maintained bands of a step. drift: of each. held: those that were put back."""

    drift: Mapping[str, float]
    held: tuple[str, ...] = ()


class Maintainer:
    """The maintained bands of one run.

    path: of the ledger, empty where this process writes none. Every method is called alike on every rank.
    """

    def __init__(self, ranks: Ranks, recorder: Recorder, model: nn.Module, path: str) -> None:
        self._ranks = ranks
        self._recorder = recorder
        self._model = model
        self._path = path
        self._held: dict[str, Held] = {}
        self._former: list[Held] = []
        """What was held under programs before the one in force, until a step is proposed under that."""
        self._waiting: list[int] = []

    # --- coming into force ----------------------------------------------------------------------------------

    def begin(self, program: Program, parameters: Parameters, step: int, standing: Standing | None) -> None:
        """Anchor what is to be maintained from `step` on. standing: of a run that is resumed.

        Raises LedgerError where an anchor cannot be read or saved, MaskError where a band cannot be
        maintained.
        """
        known: list[Anchor] = []
        if program.maintained and standing is not None:
            known = self._restored(standing)
        self.prepare(program, parameters, step, known)
        self.enter(step, () if standing is None else standing.declared)

    def check(self, program: Program, parameters: Parameters) -> None:
        """Raise MaskError where a band cannot be maintained from the beginning of a run."""
        for band in (band for rule in program.maintained if rule.start == 0 for band in rule.bands):
            self._check_kind(band, parameters[band])
            anchor_norm(band, parameters[band])

    def prepare(
        self, program: Program, parameters: Parameters, step: int, known: Sequence[Anchor] | None = None
    ) -> None:
        """Take the anchors that a program needs at a step; nothing changes until `enter`. Raises as `begin`.

        known: earlier anchors, those of now unless given. A parameter that one of them has keeps its value.
        """
        before = [held.anchor for held in (*self._former, *self._held.values())] if known is None else known

        bands = {band.name: band for band in program.bands}
        found: dict[str, Held] = {}

        def take() -> None:
            anchored = {
                name: self._hold(bands[name], rule, parameters[name], before)
                for rule in program.maintained
                if rule.start <= step
                for name in rule.bands
            }

            found.update(anchored)

        if program.maintained:
            self._ranks.collect("anchor the maintained bands", take)
        self._prepared = (found, program, parameters)

    def enter(self, step: int, declared: Collection[str] = ()) -> None:
        """Put in force what was prepared, and record it. declared: bands that are on record already."""
        self._former += self._held.values()
        self._held, self._program, self._parameters = self._prepared
        self._waiting = [rule.start for rule in self._program.maintained if rule.start > step]
        for band, held in self._held.items():
            if band not in declared:
                self._recorder.event("anchored", _entry(held, step))

    def advance(self, step: int) -> None:
        """Anchor the bands whose rules come into force at a step that is proposed. Raises as `begin`."""
        if self._waiting and min(self._waiting) <= step:
            declared = set(self._held)
            self.prepare(self._program, self._parameters, step)
            self.enter(step, declared)
        self._former = []

    def _hold(
        self, band: Band, rule: Maintenance, parameters: tuple[nn.Parameter, ...], known: Sequence[Anchor]
    ) -> Held:
        self._check_kind(band.name, parameters)
        names = set(band.parameters)
        anchor = next((a for a in known if a.values.keys() == names), None)
        anchor = anchor or self._anchor(band, parameters, known)
        tensors = tuple(anchor.values[name] for name in band.parameters)
        held = Held(band.name, rule, anchor, parameters, tensors)
        if held.bound is not None and not held.drift() <= held.bound:
            raise MaskError(
                f"the band `{band.name}` has drifted from its anchor by {_percent(held.drift())}, and "
                f"`{rule.name}` lets it drift by {_percent(held.bound)}",
                help="load the weights that the run left, or earlier ones",
            )
        return held

    def _anchor(self, band: Band, parameters: Sequence[Tensor], known: Sequence[Anchor]) -> Anchor:
        """Take an anchor: the parameters as they are, but for those that are anchored already."""
        kept = {name: value for anchor in known for name, value in anchor.values.items()}
        own = zip(band.parameters, parameters, strict=True)
        norm = anchor_norm(band.name, [kept.get(name, p) for name, p in own])
        own = zip(band.parameters, parameters, strict=True)
        values = {name: kept[name] if name in kept else p.detach().clone() for name, p in own}
        file, digest = save_anchor(self._path, values) if self._path else ("", "")
        return Anchor(values, norm, file, digest)

    def _check_kind(self, band: str, parameters: Sequence[Tensor]) -> None:
        members = {id(parameter) for parameter in parameters}
        for name, module in self._model.named_modules():
            sparse = getattr(module, "sparse", False) is True
            if sparse and any(id(p) in members for p in module.parameters(recurse=False)):
                raise MaskError(
                    f"the band `{band}` cannot be maintained: `{name}` has sparse gradients",
                    help="make it with `sparse=False`",
                )

    # --- resuming -------------------------------------------------------------------------------------------

    def _restored(self, standing: Standing) -> list[Anchor]:
        """Return the anchors that a ledger names: read on rank 0, and handed to the others."""
        own = dict(self._model.named_parameters(remove_duplicate=False))
        bodies = {body["digest"]: body for body in (*standing.former.values(), *standing.declared.values())}
        read: dict[str, dict[str, Tensor]] = {}

        def names() -> dict[str, list[str]]:
            for digest, body in bodies.items():
                loaded = load_anchor(self._path, body["file"], digest)
                read[digest] = fitting(loaded, own, body["file"])
            return {digest: list(values) for digest, values in read.items()}

        found = self._ranks.lead("read the anchors", names, lambda: None)
        anchors = []
        for digest, listed in found.items():
            values = read.get(digest) or {name: torch.empty_like(own[name]) for name in listed}
            self._ranks.share([values[name] for name in listed])
            norm = anchor_norm(bodies[digest]["band"], values.values())
            anchors.append(Anchor(values, norm, bodies[digest]["file"], digest))
        return anchors

    # --- in a step ------------------------------------------------------------------------------------------

    def pull(self, active: Collection[str]) -> Finding | None:
        """Add the pull to the gradients of a step's bands; return why the step cannot go on, if it cannot."""
        for held in self._of(active):
            drift = _pulled(held)
            if held.bound is not None and not drift <= held.bound:
                detail = (
                    f"the band `{held.band}` was moved outside of governed steps, {_percent(drift)} from its "
                    f"anchor; `{held.rule.name}` lets it drift by {_percent(held.bound)}"
                )
                return Finding("gradient", "drift_exceeded", detail, held.band)
        return None

    def hold(self, active: Collection[str]) -> Measured:
        """Put the bands of a step that the optimizer moved beyond their bound back to it; measure them all.

        Raises MaskError where a band is not finite any more, so that it has no way back.
        """
        drift: dict[str, float] = {}
        put_back: list[str] = []
        for held in self._of(active):
            measured = held.drift()
            if not isfinite(measured) and held.rule.level == "hard":
                raise MaskError(f"the parameters of the band `{held.band}` are not finite after the step")
            if held.bound is not None and measured > held.bound:
                measured = _put_back(held, held.bound)
                put_back.append(held.band)
            drift[held.band] = measured
        return Measured(drift, tuple(put_back))

    def record(self, step: int, measured: Measured) -> None:
        """Record the drift of a step's bands; nothing where it reached none that is maintained."""
        if measured.drift:
            drift = {
                band: f"{value:.6g}" if isfinite(value) else "inf" for band, value in measured.drift.items()
            }
            self._recorder.event("maintained", {"step": step, "drift": drift, "held": list(measured.held)})

    def _of(self, active: Collection[str]) -> list[Held]:
        return [held for held in self._held.values() if held.band in active]


@torch.no_grad()
def _pulled(held: Held) -> float:
    """Add the pull of one band to its gradients; return how far the band has drifted, 0 without a bound."""
    norms = []
    for parameter, value in zip(held.parameters, held.values, strict=True):
        difference = parameter - value
        if held.bound is not None:
            norms.append(norm_of(difference))
        if held.strength and parameter.grad is not None:
            parameter.grad.add_(difference, alpha=held.strength)
    return joint_norm(norms) / held.anchor.norm


@torch.no_grad()
def _put_back(held: Held, bound: float) -> float:
    """Scale what a step moved towards its anchor until the band is within its bound; return its drift.

    What has no gradient was not moved, and takes up its part of the bound.
    """
    pairs = list(zip(held.parameters, held.values, strict=True))
    moved = [(p, a) for p, a in pairs if p.grad is not None]
    still = distance(*_columns([(p, a) for p, a in pairs if p.grad is None]))
    for margin in MARGINS:
        length = distance(*_columns(moved))
        room = sqrt(max(0.0, ((1.0 - margin) * bound * held.anchor.norm) ** 2 - still**2))
        for parameter, value in moved:
            if room:
                parameter.copy_(value + (parameter - value) * (room / length))
            else:
                parameter.copy_(value)
        drift = held.drift()
        if drift <= bound:
            return drift
    raise MaskError(f"the band `{held.band}` was moved outside of governed steps, beyond its bound")


def _columns(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [p for p, _ in pairs], [a for _, a in pairs]


def _entry(held: Held, step: int) -> dict[str, Any]:
    """Return the body of an `anchored` entry: the anchor, and the rule's own terms."""
    return {
        "step": step,
        "band": held.band,
        "file": held.anchor.file,
        "digest": held.anchor.digest,
        "rule": held.rule.name,
        "strength": held.rule.strength,
        "drift": held.rule.drift,
    }


def _percent(share: float) -> str:
    return f"{100 * share:.6g}%"
