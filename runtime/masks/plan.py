"""The plan of one batch: which rows count for each band, and what its backward pass is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradwarden.policy.context import FloatArray
from gradwarden.runtime.masks.bands import bands_in
from gradwarden.runtime.masks.rows import LIMIT, Columns, Rows, relative, row_factors
from gradwarden.runtime.masks.sink import Gauge, Sink
from gradwarden.runtime.masks.unitwise import Owners

if TYPE_CHECKING:
    from gradwarden.runtime.masks.borders import Ratios


@dataclass(slots=True)
class Mode:
    """What holds for one batch and all parts of it, and changes while it lives.

    raw: while set, layers take every row as it is, whosever it may be. only, skip: ids of the parameters
    whose gradients layers are asked for (all where None), and of those they must leave out.
    loose: ids of the parameters that were known, before the forward pass, to be used outside weighing layers.
    misplaced: whether rows have been found that are not those of the examples they are credited to.
    given_up: ids of the layers that go the reference way, as known before the forward pass.
    open: while set, nothing stops the flow of gradients through layers, whatever the semantics.
    narrow: whether some part of the model is known to compute in a precision of narrow range (`narrow`).
    scaling: whether the loss of some example is scaled, on this process or another.
    whole_inputs: whether input gradients are needed for every row, because the caller's inputs ask for them.
    sink: while set, layers hand it the gradients of private examples. gauge: while set, layers show it
    those of the public ones.
    """

    raw: bool = False
    open: bool = False
    misplaced: bool = False
    given_up: frozenset[int] = frozenset()
    only: frozenset[int] | None = None
    skip: frozenset[int] = frozenset()
    loose: frozenset[int] = frozenset()
    narrow: bool = False
    scaling: bool = False
    whole_inputs: bool = False
    sink: Sink | None = None
    gauge: Gauge | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """The parts of a batch that go through a block one by one.

    plan: of the whole batch. rows: of each part; every row is in one. graphs: how many of the parts have a
    graph; those come first.
    """

    plan: Plan
    rows: tuple[Rows, ...]
    graphs: int


class Plan:
    """How the backward pass of one armed batch weighs rows.

    weights: float64 [B, bands]. factors: float64 [B], by which each loss is scaled. bands: the rows of each
    band that are added up, weights relative to the factors. units: int64 [B], the privacy unit of each
    example, -1 for public ones; None: all are public, on all processes. What units shape is not added up
    (`sink`). unit_bands: where they have weight. every: all rows, with weight 1. whole: the plan of the whole
    batch.
    rows, rest: which examples of that batch these are, and which they are not. ways: the plan by which each
    block was run, None where it was run without a graph.

    Where several processes must run alike, `classes` [C, bands] has the distinct weights of the examples that
    all of them run now. Whatever decides which gradients are taken, and in which passes, goes by these.

    Where rows are not examples but belong to them, B is the number of rows, and `examples` is the plan of the
    examples themselves (`spread`). owners: the example of each row [R], or of each position [R, T]. grid: the
    shape [R, T], where rows are positions of packed sequences.

    gauge: is shown the gradients of the whole batch, layer by layer, which then weigh them.

    Inside a block whose gradients are scaled at its border (`borders`) there is a plan of its own; outer: the
    one around it. ratios: those at borders within this plan. partition: the parts of the batch that the block
    is run in, where these rows are one and others go through it with its parameters frozen.
    """

    owners: Tensor | None = None
    grid: tuple[int, int] | None = None
    outer: Plan | None = None
    partition: Partition | None = None
    gauge: Gauge | None = None
    units: Tensor | None = None
    unit_bands: frozenset[int] = frozenset()
    ratios: Ratios | None = None
    bands: Sequence[Rows]
    _step: Columns
    _near: tuple[float, Sequence[bool]] | None = None
    _whole: Plan | None = None
    _examples: Plan | None = None

    def __init__(
        self,
        weights: Tensor,
        factors: Tensor,
        mode: Mode,
        whole: Plan | None = None,
        rows: Rows | None = None,
        classes: Tensor | None = None,
        class_factors: Tensor | None = None,
        units: Tensor | None = None,
    ) -> None:
        self.weights = weights
        self.factors = factors
        self.mode = mode
        self._whole = whole
        self.units = units
        self.unit_count = 0 if units is None or not len(units) else int(units.max()) + 1
        self.public = weights if units is None else weights * (units < 0)[:, None]
        self._owned: dict[tuple[bytes | None, ...], tuple[Rows, tuple[Owners | None, ...]]] = {}
        self._owned_in: dict[tuple[int | None, int | None], tuple[Rows, tuple[Owners | None, ...]]] = {}
        self._unit_rows: dict[int, tuple[Rows, ...]] = {}
        shaped = () if units is None else weights[units >= 0].gt(0).any(dim=0).nonzero().flatten().tolist()
        self.unit_bands = frozenset(shaped)
        self.classes = classes
        if classes is None or class_factors is None:
            self._step = self.bands = Columns(self.public, factors)
        else:
            scaled = relative(self.public, factors)
            awaited = classes.gt(0).any(dim=0).tolist()
            self.bands = tuple(
                Rows(column, awaited=wait) for column, wait in zip(scaled.unbind(dim=1), awaited, strict=True)
            )
            self._step = Columns(classes, class_factors)
        self._given = rows
        self._reach: dict[int, Rows] = {}
        self._flow: dict[tuple[int, int], Rows] = {}
        self._rows: dict[int, Rows] = {}
        self._parts: dict[bytes, Plan] = {}
        self._partitions: dict[tuple[bytes, bytes], Partition] = {}
        self.ways: dict[object, Plan | None] = {}

    @classmethod
    def of(
        cls,
        weights: Tensor,
        costs: Sequence[float],
        classes: Tensor | None = None,
        units: Tensor | None = None,
        top: int | None = None,
        narrow: bool = False,
    ) -> Plan:
        """Return the plan of a whole batch. costs: the price of weighing each band.

        top: the band that it is best to spare the weighing, where every example may shape every band.
        narrow: see `Mode`.
        """
        factors = None if top is None or narrow else _factors_of(weights, top)
        factors = row_factors(weights, costs, classes, narrow) if factors is None else factors
        class_factors = None if classes is None else row_factors(classes, costs, narrow=narrow)
        scales = (factors if class_factors is None else class_factors).numpy()
        mode = Mode(narrow=narrow, scaling=bool(((scales != 0.0) & (scales != 1.0)).any()))
        return cls(weights, factors, mode, classes=classes, class_factors=class_factors, units=units)

    @property
    def whole(self) -> Plan:
        """See the class. No plan refers to itself: it would be left to the garbage collector."""
        return self if self._whole is None else self._whole

    @property
    def examples(self) -> Plan:
        """See the class."""
        return self if self._examples is None else self._examples

    def let_go(self) -> None:
        """Forget how blocks were run, once that is over: it refers back to the plan.

        What a step leaves behind is then freed at once, not by the garbage collector some steps later.
        """
        for part in self._parts.values():
            part.let_go()
        for made in (self._parts, self._partitions, self.ways):
            made.clear()
        self.ratios = None

    def part(self, rows: Rows) -> Plan:
        """Return the plan of some of the examples, run by themselves; the same one for the same rows."""
        key = rows.chosen.numpy().tobytes()
        if key not in self._parts:
            chosen = rows.chosen
            units = None if self.units is None else self.units[chosen]
            self._parts[key] = Plan(
                self.weights[chosen], self.factors[chosen], self.mode, self.whole, rows, units=units
            )
        return self._parts[key]

    def divide(self, open: Rows, reach: Rows) -> Partition:
        """Return the parts of the whole batch: open rows, the others of those that reach, and all others.

        The first two have a graph. The same parts for the same rows.
        """
        key = (open.chosen.numpy().tobytes(), reach.chosen.numpy().tobytes())
        if key not in self._partitions:
            parts = [open]
            if open.count < reach.count:
                opened = set(open.chosen.tolist())
                parts.append(Rows.of(self.batch, [row for row in reach.chosen.tolist() if row not in opened]))
            graphs = len(parts)
            if not reach.whole:
                parts.append(reach.others())
            self._partitions[key] = Partition(self, tuple(parts), graphs)
        return self._partitions[key]

    def shapers(self, mask: int) -> Rows | None:
        """Return the examples that may shape the bands whose bits are set; None where these are not alike."""
        bands = bands_in(mask)
        if not bands:
            return None
        first, *others = bands
        if any(not np.array_equal(self._live[first], self._live[band]) for band in others):
            return None
        return self.bands[first]

    def spread(self, owners: Tensor) -> Plan:
        """Return the plan of rows that belong to this plan's examples.

        owners: int64 on the CPU, the example of each row [R], or of each position of each row [R, T]; -1 for
        nobody's.
        """
        return _SpreadPlan(self, owners)

    def per_row(self, values: Tensor) -> Tensor:
        """Return what each row gets of values [examples], float64 on the CPU."""
        return (
            values[self.rows.chosen] if self.whole is self else self.whole.per_row(values)[self.rows.chosen]
        )

    def examples_of(self, rows: Tensor) -> Tensor:
        """Return the example that each of these rows belongs to, int64 on the CPU; -1 for nobody's."""
        places, owners = self.rows.chosen[rows], self.whole.owners
        return places if owners is None else owners.flatten()[places]

    @cached_property
    def batch(self) -> int:
        """How many rows there are."""
        return len(self.weights)

    @cached_property
    def every(self) -> Rows:
        """See the class."""
        return Rows.of(self.batch, range(self.batch))

    @cached_property
    def rows(self) -> Rows:
        """See the class."""
        return self.every if self._given is None else self._given

    @cached_property
    def _relative(self) -> Tensor:
        """The weights over the factors [B, bands]."""
        return relative(self.weights, self.factors)

    @cached_property
    def columns(self) -> FloatArray:
        """The weights of each band [bands, B]."""
        return np.ascontiguousarray(self.weights.numpy().T)

    @cached_property
    def scale(self) -> FloatArray:
        """The factors as an array."""
        return self.factors.numpy()

    @cached_property
    def live(self) -> bool:
        """Whether every row belongs to an example with some weight."""
        return bool((self.scale > 0).all())

    @cached_property
    def shaped(self) -> Sequence[bool]:
        """Whether every example may shape each band."""
        return np.logical_and.reduce(self.weights.numpy() > 0).tolist()  # type: ignore[no-any-return]

    def near(self, limit: float) -> Sequence[bool]:
        """Return whether the weights of each band are all within a ratio of the factors."""
        if self._near is None or self._near[0] != limit:
            least, most = self.scale / limit, self.scale * limit
            within = (self.columns >= least) & (self.columns <= most)
            self._near = (limit, np.logical_and.reduce(within, axis=1).tolist())
        return self._near[1]

    @cached_property
    def even(self) -> bool:
        """Whether rows are examples, all public, each of which may shape every band, and nobody looks on."""
        lone = self.whole is self and self.owners is None and self.classes is None
        return lone and self.units is None and self.gauge is None and self.open

    @cached_property
    def plainly(self) -> int:
        """The bands whose parameters need no weighing, whatever uses them, as a bit mask."""
        if not self.even:
            return 0
        plain = (self.columns == self.scale).all(axis=1).tolist()
        return sum(1 << band for band, alike in enumerate(plain) if alike)

    @cached_property
    def open(self) -> bool:
        """Whether every example may shape every band."""
        return all(self.shaped)

    @cached_property
    def rest(self) -> Rows:
        """The examples of the whole batch that are not these."""
        return self.rows.others()

    @cached_property
    def _active(self) -> int:
        """How many examples have any weight, of those that decide which gradients are taken."""
        decisive = self.weights if self.classes is None else self.classes
        return int(decisive.gt(0).any(dim=1).sum())

    @cached_property
    def trivial(self) -> bool:
        """Whether plain back-propagation of the scaled losses is all there is to do for the whole batch."""
        whole = self.whole
        return whole.units is None and whole.gauge is None and whole._step.plain

    @property
    def by_rows(self) -> bool:
        """Whether it matters which rows are whose."""
        return self.units is not None or not self._step.alike

    def due(self, rows: Tensor) -> list[int]:
        """Return the bands that gradients are due for, of the chosen rows (bool [B]) or for others."""
        if self.even and bool(rows.any()):
            return list(range(self.weights.shape[1]))
        weighed = self.public[rows].gt(0).any(dim=0).tolist()
        return [
            number
            for number in range(len(weighed))
            if weighed[number] or (self.classes is not None and not self.bands[number].idle)
        ]

    def any_reach(self, mask: int) -> bool:
        """Return whether an example of any process has weight in a band whose bit is set in `mask`."""
        return any(mask >> number & 1 and not band.idle for number, band in enumerate(self.bands))

    def unit_rows(self, band: int) -> tuple[Rows, ...]:
        """Return the rows of each privacy unit in a band, by its number; none of them for units elsewhere."""
        if self.units is None:
            return ()
        if band not in self._unit_rows:
            column, count = self._relative[:, band], self.whole.unit_count
            self._unit_rows[band] = tuple(Rows(column * (self.units == unit)) for unit in range(count))
        return self._unit_rows[band]

    def owned(self, bands: tuple[int | None, int | None]) -> tuple[Rows, tuple[Owners | None, ...]]:
        """Return the private rows with weight in one of two bands, and in each band whose they are."""
        if bands not in self._owned_in:
            self._owned_in[bands] = self._find_owned(bands)
        return self._owned_in[bands]

    def _find_owned(self, bands: tuple[int | None, int | None]) -> tuple[Rows, tuple[Owners | None, ...]]:
        columns = [None if band is None else self._relative[:, band] for band in bands]
        # Most bands have the same weights.
        key = tuple(None if column is None else column.numpy().tobytes() for column in columns)
        if key not in self._owned:
            assert self.units is not None
            some = torch.zeros(self.batch, dtype=torch.bool, device="cpu")
            for column in columns:
                some |= False if column is None else (column > 0) & (self.units >= 0)
            rows, units, count = Rows(some.double()), self.units, self.whole.unit_count
            owners = {
                own: Owners(units[rows.chosen], column[rows.chosen], count)
                for own, column in zip(key, columns, strict=True)
                if column is not None
            }
            self._owned[key] = (rows, tuple(owners.get(own) for own in key))
        return self._owned[key]

    def units_weighed(self, band: int, factors: Sequence[float]) -> Rows:
        """Return the private rows of a band, weighed by a factor for each unit as well."""
        if self.units is None:
            return Rows(torch.zeros(self.batch, dtype=torch.float64, device="cpu"))
        each = torch.tensor([*factors, 0.0], dtype=torch.float64, device="cpu")[self.units]
        return Rows(self._relative[:, band] * each)

    def ratio(self, band: int) -> float | None:
        """Return the weight of a band for every example with any weight, if they agree."""
        rows, active = self._step[band], self._active
        if rows.weights is not None or rows.count not in (0, active):
            return None
        return rows.factor if rows.count else 0.0 if active else None

    def reach(self, mask: int) -> Rows:
        """Return the examples with some weight in any of the bands whose bits are set in `mask`."""
        if self.mode.whole_inputs or (mask and self.open):
            return self.every
        known = self._reach.get(mask)
        if known is None:
            key = reduce(or_, map(self._live_bits.__getitem__, bands_in(mask)), 0)
            if key not in self._rows:
                reached = self._live[list(bands_in(mask))].any(axis=0)
                self._rows[key] = Rows.of(self.batch, np.flatnonzero(reached).tolist())
            known = self._reach[mask] = self._rows[key]
        return known

    @cached_property
    def _live_bits(self) -> list[int]:
        """The examples that may shape each band, as a bit mask."""
        return [int.from_bytes(row.tobytes()) for row in np.packbits(self._live, axis=1)]

    @cached_property
    def _live(self) -> npt.NDArray[np.bool_]:
        """Whether each example may shape each band [bands, B]."""
        return self.columns > 0

    def flow(self, band: int, mask: int) -> Rows:
        """Return the examples of `reach(mask)` that have some weight in a band as well."""
        key = (band, mask)
        if key not in self._flow:
            kept = torch.zeros(self.batch, dtype=torch.float64, device="cpu")
            kept[self.reach(mask).chosen] = 1.0
            self._flow[key] = Rows(kept * (self.weights[:, band] > 0))
        return self._flow[key]

    def wants(self, parameter: int) -> bool:
        """Return whether the gradient of the parameter with this id is asked for."""
        mode = self.mode
        return parameter not in mode.skip and (mode.only is None or parameter in mode.only)


def _factors_of(weights: Tensor, band: int) -> Tensor | None:
    """Return a band's weights as factors, None where they, or others from them, are too far from 1, or 0.

    weights: float64 [B, bands].
    """
    array = weights.numpy()
    factors = array[:, band]
    least, most = array.min(axis=1, initial=np.inf), array.max(axis=1, initial=0.0)
    if not ((least > 0.0) & (least * LIMIT >= factors) & (most <= factors * LIMIT)).all():
        return None
    if not ((factors >= 1.0 / LIMIT) & (factors <= LIMIT)).all():
        return None
    return torch.from_numpy(factors.copy())


class _SpreadPlan(Plan):
    """The plan of rows that belong to examples."""

    def __init__(self, examples: Plan, owners: Tensor) -> None:
        self._examples = examples
        self.owners = owners
        self.grid = (owners.shape[0], owners.shape[1]) if owners.dim() == 2 else None
        self._owners = owners.flatten()
        self.weights, self.factors = self.per_row(examples.weights), self.per_row(examples.factors)
        self.mode = examples.mode
        self.gauge = examples.gauge
        self.classes = examples.classes
        self.bands = tuple(rows.spread(self._owners) for rows in examples.bands)
        self._step, self._active = examples._step, examples._active
        self.every = self.rows = examples.every.spread(self._owners)
        self.rest = examples.rest.spread(self._owners)
        self._spread: dict[int, tuple[Rows, Rows]] = {}
        self._parts = {}
        self._partitions = {}
        self.ways = {}

    def per_row(self, values: Tensor) -> Tensor:
        nobody = values.new_zeros((1, *values.shape[1:]))
        return torch.cat([values, nobody])[self._owners]

    def due(self, rows: Tensor) -> list[int]:
        return self.examples.due(rows)

    def reach(self, mask: int) -> Rows:
        if self.mode.whole_inputs:
            return self.every
        rows = self.examples.reach(mask)
        if id(rows) not in self._spread:
            self._spread[id(rows)] = (rows, rows.spread(self._owners))
        return self._spread[id(rows)][1]
