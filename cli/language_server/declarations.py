"""What the files of a policy declare, by name; also where parts of them do not parse."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from gradwarden.policy.source import Source
from gradwarden.policy.syntax import tree as s
from gradwarden.policy.syntax.names import Occurrence, Symbol

Named: TypeAlias = s.Rule | s.Assertion
Declaration: TypeAlias = s.Field | s.SignalField | s.Let | s.EntropyBand | s.Part | s.Phase | Named


@dataclass(slots=True)
class Declared:
    """The declarations of a policy. Waivers declare nothing; they are listed by the rule that they lift."""

    attributes: dict[str, s.Field] = field(default_factory=dict)
    signals: dict[str, s.SignalField] = field(default_factory=dict)
    conditions: dict[str, s.Let] = field(default_factory=dict)
    entropy_bands: dict[str, s.EntropyBand] = field(default_factory=dict)
    bands: dict[str, s.Part] = field(default_factory=dict)
    phases: dict[str, s.Phase] = field(default_factory=dict)
    rules: dict[str, Named] = field(default_factory=dict)
    waivers: dict[str, list[s.Rule]] = field(default_factory=dict)

    def of(self, symbol: Symbol) -> Declaration | None:
        """Return the declaration of a symbol; of a value, that of its attribute."""
        match symbol.kind:
            case "attribute":
                return self.attributes.get(symbol.name)
            case "value":
                return self.attributes.get(symbol.owner)
            case "signal":
                return self.signals.get(symbol.name)
            case "condition":
                return self.conditions.get(symbol.name)
            case "entropy band":
                return self.entropy_bands.get(symbol.name)
            case "band":
                return self.bands.get(symbol.name)
            case "phase":
                return self.phases.get(symbol.name)
            case "rule":
                return self.rules.get(symbol.name)
            case _:
                return None

    def values(self, attribute: str) -> tuple[s.Word, ...]:
        """Return the values that an enumeration or a set lists."""
        declared = self.attributes.get(attribute)
        return declared.type.values if declared and isinstance(declared.type, s.ChoiceType) else ()


def declared_in(files: Iterable[s.File]) -> Declared:
    """Return what files declare; of several declarations of a name, the first counts."""
    found = Declared()
    for file in files:
        for item in file.items:
            _add(found, item)
    return found


def _add(found: Declared, item: s.Item) -> None:
    match item:
        case s.Examples(fields):
            for attribute in fields:
                found.attributes.setdefault(attribute.name.text, attribute)
        case s.Signals(fields):
            for signal in fields:
                found.signals.setdefault(signal.name.text, signal)
        case s.Let(name):
            found.conditions.setdefault(name.text, item)
        case s.EntropyBand(name):
            found.entropy_bands.setdefault(name.text, item)
        case s.Model(parts):
            for part in parts:
                found.bands.setdefault(part.name.text, part)
        case s.Phases(phases):
            for phase in phases:
                found.phases.setdefault(phase.name.text, phase)
        case s.Rule(kind="waive", name=name):
            found.waivers.setdefault(name.text, []).append(item)
        case s.Rule(name=name) | s.Assertion(name=name):
            found.rules.setdefault(name.text, item)
        case _:
            pass


def merged(newer: Declared, older: Declared) -> Declared:
    """Return the declarations of both; the newer one of a name counts."""
    return Declared(
        **{name: {**getattr(older, name), **getattr(newer, name)} for name in Declared.__dataclass_fields__}
    )


def readers(files: Iterable[s.File], names: Iterable[Occurrence], symbol: Symbol) -> list[tuple[str, str]]:
    """Return the rules that read a symbol, each with the named condition through which it does, if any.

    Rules are given by kind and name: `depth concepts`. Waivers count as rules of their own.
    """
    users = list(_users(files, names))
    through = {symbol: ""}
    pending = [symbol]
    while pending:
        read = pending.pop()
        for item, used in users:
            if used == read and isinstance(item, s.Let | s.EntropyBand):
                kind = "condition" if isinstance(item, s.Let) else "entropy band"
                named = Symbol(kind, item.name.text)  # type: ignore[arg-type]  # one of two kinds
                if named not in through:
                    through[named] = item.name.text
                    pending.append(named)
    found: dict[str, str] = {}
    for item, used in users:
        if used in through and isinstance(item, s.Rule | s.Assertion):
            title = title_of(item)
            found[title] = "" if not through[used] else found.get(title, through[used])
    return sorted(found.items())


def title_of(item: Named) -> str:
    """Return a rule by kind and name."""
    return f"{item.kind if isinstance(item, s.Rule) else 'assert'} {item.name.text}"


def _users(files: Iterable[s.File], names: Iterable[Occurrence]) -> Iterator[tuple[s.Item, Symbol]]:
    """Yield each declaration with each symbol that it uses."""
    uses: dict[Source, list[Occurrence]] = {}
    for occurrence in names:
        if not occurrence.declares:
            uses.setdefault(occurrence.span.source, []).append(occurrence)
    for file in files:
        waiting = deque(uses.get(file.source, ()))
        for item in file.items:
            while waiting and waiting[0].span.start < item.span.end:
                yield item, waiting.popleft().symbol
