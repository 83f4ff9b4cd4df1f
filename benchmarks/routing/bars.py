"""What must hold of the figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.routing.figures import Figure
from benchmarks.routing.methods import GOVERNED, GOVERNOR
from benchmarks.routing.workload import SHAPES

TIMES = {
    "fractional": 1.03,
    "half_rows": 0.83,
    "half_rows_scattered": 0.83,
    "bottom_half": 0.67,
    "top_two_only": 0.56,
}
"""The greatest ratio of time for cases of the six-block GPT."""

MEMORY = {"fractional": 1.05}
"""The greatest ratio of peak memory for the same."""

CEILINGS = {name: 1.08 if shape.convolutional else 1.05 for name, shape in SHAPES.items()}
"""The greatest ratio of time that any case of a network may have."""

NEAR_LIMIT = 1.10
"""How much more time than the arithmetic left a masked case may take."""

EXACT = 1e-4
"""The greatest error of a gradient in float32. A fast step that is wrong is not one."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bound, and what was measured. where: the case that is meant, or the one with the greatest figure."""

    name: str
    where: str
    bound: float
    measured: float

    @property
    def held(self) -> bool:
        return self.measured <= self.bound

    def __str__(self) -> str:
        verdict = "held" if self.held else "NOT HELD"
        return f"{self.name:34} {self.where:26} at most {self.bound:<7.4g} {self.measured:.4g}  {verdict}"


def judge(figures: Sequence[Figure], masked: Iterable[str], exact: bool) -> list[Bar]:
    """Return the bars that figures of cases or of the grid can be held to.

    masked: the cases in which something is masked out; exact: whether the run was in float32.
    """
    own = [figure for figure in figures if figure.method == GOVERNED and figure.ratio is not None]
    core = {figure.case: figure for figure in own if figure.model == "gpt" and figure.peak_bytes}
    bars = [Bar("time", case, bound, core[case].ratio) for case, bound in TIMES.items() if case in core]
    bars += [
        Bar("peak memory", case, bound, core[case].memory_ratio)
        for case, bound in MEMORY.items()
        if case in core
    ]
    for model, bound in CEILINGS.items():
        bars += _greatest("time in every configuration", bound, _ratios(own, model))
        governors = [figure for figure in figures if figure.method == GOVERNOR]
        bars += _greatest("time of the whole governor", bound, _ratios(governors, model))
    names = set(masked)
    near = {f"{f.model} {f.case}": f.over_limit for f in own if f.case in names and f.peak_bytes}
    bars += _greatest("time over the arithmetic limit", NEAR_LIMIT, near)
    if exact:
        errors = {f"{f.model} {f.case}": f.error for f in own if f.error is not None}
        bars += _greatest("error of the gradient", EXACT, errors)
    return bars


def _ratios(figures: Iterable[Figure], model: str) -> dict[str, float | None]:
    return {
        f"{f.model} {f.case} {f.batch}x{f.depth}": f.ratio
        for f in figures
        if f.model == model and f.ratio is not None
    }


def _greatest(name: str, bound: float, measured: Mapping[str, float | None]) -> list[Bar]:
    found = {where: value for where, value in measured.items() if value is not None}
    if not found:
        return []
    where = max(found, key=found.__getitem__)
    return [Bar(name, where, bound, found[where])]
