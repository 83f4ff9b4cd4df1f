"""What of an old program corresponds to what of a new one: bands, parts of the model, renamed attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter

from gradwarden.policy.comparing.rewriting import Test, mapped, replaced, rewritten
from gradwarden.policy.program import AttributeValue, Band, Condition, NumericExpr, Program


@dataclass(frozen=True, slots=True)
class Cell:
    """A part of the model that one band of each program governs; None where a program has none for it.

    name: of the new band, of the old one where there is no new one, `OLD -> NEW` where they are named
    differently. parameters: how many, 0 where the programs are not bound to a model. moved: the band is
    declared otherwise, so that without a model nobody can say which parameters it gains or loses.
    """

    name: str
    old: int | None
    new: int | None
    parameters: int = 0
    moved: bool = False


def cells(old: Program, new: Program) -> tuple[Cell, ...]:
    """Return the parts of the model to compare: by parameter where both programs are bound, else by band."""
    bound = all(any(band.parameters for band in program.bands) for program in (old, new))
    return _by_parameter(old, new) if bound else _by_band(old, new)


def _by_parameter(old: Program, new: Program) -> tuple[Cell, ...]:
    homes: dict[str, list[int | None]] = {}
    for side, program in enumerate((old, new)):
        for index, band in enumerate(program.bands):
            for parameter in band.parameters:
                homes.setdefault(parameter, [None, None])[side] = index
    counts: dict[tuple[int | None, int | None], int] = {}
    for was, now in homes.values():
        counts[was, now] = counts.get((was, now), 0) + 1
    found = [
        Cell(_name(old, new, was, now), was, now, parameters) for (was, now), parameters in counts.items()
    ]
    return tuple(sorted(found, key=_place))


def _by_band(old: Program, new: Program) -> tuple[Cell, ...]:
    """Pair bands by name, and what is left by declaration: a band under another name is the same band."""
    places = {band.name: index for index, band in enumerate(old.bands)}
    pairs = {index: places.pop(band.name, None) for index, band in enumerate(new.bands)}
    left = {old.bands[index].selectors: index for index in places.values()}
    for index, was in pairs.items():
        if was is None:
            pairs[index] = left.pop(new.bands[index].selectors, None)
    redrawn = _layout(old.bands) != _layout(new.bands)
    found = [
        Cell(_name(old, new, was, now), was, now, moved=redrawn and _moves(old, new, was, now))
        for now, was in pairs.items()
    ]
    gone = set(range(len(old.bands))) - set(pairs.values())
    found += [Cell(_name(old, new, was, None), was, None, moved=redrawn) for was in gone]
    return tuple(sorted(found, key=_place))


def _layout(bands: tuple[Band, ...]) -> list[tuple[object, ...]]:
    return [band.selectors for band in bands]


def _moves(old: Program, new: Program, was: int | None, now: int) -> bool:
    """Return whether a band may hold other parameters, in a model that the programs divide differently."""
    if was is None or old.bands[was].selectors != new.bands[now].selectors:
        return True
    # A share counted from the output stands alone; what follows others moves with them.
    return any(selector.kind in ("next", "rest", "names") for selector in new.bands[now].selectors)


def _name(old: Program, new: Program, was: int | None, now: int | None) -> str:
    before = None if was is None else old.band_names[was]
    after = None if now is None else new.band_names[now]
    if before is None or after is None or before == after:
        return after or before or ""
    return f"{before} -> {after}"


def _place(cell: Cell) -> tuple[int, int]:
    last = 1 << 30
    return (last if cell.new is None else cell.new, last if cell.old is None else cell.old)


def rename_attributes(program: Program, names: Mapping[str, str]) -> Program:
    """Return a program that reads the same values under other names; its own are the keys of `names`."""

    def new(name: str) -> str:
        return names.get(name, name)

    def number(expression: NumericExpr) -> NumericExpr:
        return AttributeValue(new(expression.name)) if isinstance(expression, AttributeValue) else expression

    def test(condition: Test) -> Condition:
        return replace(condition, attribute=new(condition.attribute))

    program = rewritten(program, lambda _, condition: mapped(condition, lambda e: replaced(e, number), test))
    attributes = sorted(
        (replace(spec, name=new(spec.name)) for spec in program.attributes), key=attrgetter("name")
    )
    limits = tuple(
        replace(limit, privacy=replace(limit.privacy, unit=new(limit.privacy.unit)))
        if limit.privacy
        else limit
        for limit in program.limits
    )
    return replace(program, attributes=tuple(attributes), limits=limits)
