"""What a policy declares, by name, while it is being checked; and the collection of its faults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gradwarden.policy.checking.types import Attribute, PhaseEnd, Signal
from gradwarden.policy.combine import QUARANTINE
from gradwarden.policy.errors import Diagnostic, did_you_mean
from gradwarden.policy.program import SCALE, AttributeSpec, Band, Semantics
from gradwarden.policy.source import Span
from gradwarden.policy.syntax import tree as s

MAX_FAULTS = 1_000
"""How many errors, and how many warnings, of one policy are kept."""

MAX_COMPARED = 10_000
"""How many pairs of names of one policy are compared for suggestions."""


@dataclass(slots=True)
class Faults:
    """Every finding so far. Names in a text that did not parse are not looked for (`cascading`)."""

    found: list[Diagnostic] = field(default_factory=list)
    cascading: bool = False
    _counts: dict[str, int] = field(default_factory=lambda: {"error": 0, "warning": 0, "note": 0})
    _compared: int = 0

    def error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self._add(Diagnostic(code, message, span, help))

    def warn(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self._add(Diagnostic(code, message, span, help, "warning"))

    def note(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self._add(Diagnostic(code, message, span, help, "note"))

    def undeclared(
        self, code: str, what: str, name: s.Name | s.Reference, known: Iterable[str], declare: str
    ) -> None:
        """Report a name that nothing declares, unless its declaration may be in a text that did not parse."""
        if self.cascading:
            return
        text = name.text if isinstance(name, s.Name) else name.name
        self.error(code, f"undeclared {what} `{text}`", name.span, self.suggestion(text, known) or declare)

    def suggestion(self, word: str, known: Iterable[str]) -> str | None:
        """Return the known word nearest to another, as a question; None once much has been compared."""
        names = list(known)
        self._compared += len(names)
        return did_you_mean(word, names) if self._compared <= MAX_COMPARED else None

    def _add(self, diagnostic: Diagnostic) -> None:
        # INVARIANT: errors are counted apart, so that no number of warnings can hide one.
        self._counts[diagnostic.severity] += 1
        kept = self._counts[diagnostic.severity]
        if kept <= MAX_FAULTS:
            self.found.append(diagnostic)
        elif kept == MAX_FAULTS + 1 and diagnostic.severity == "error":
            self.found.append(Diagnostic("GW114", "more errors follow that are not shown", diagnostic.span))

    @property
    def number(self) -> int:
        """How many errors there are so far, those that are not kept included."""
        return self._counts["error"]

    @property
    def errors(self) -> list[Diagnostic]:
        return [d for d in self.found if d.severity == "error"]


@dataclass(slots=True)
class Scope:
    """The declarations of a policy over all its files.

    `named` holds `let` conditions and entropy bands. `used` collects the names that conditions, rules and
    bands refer to, for lints.
    """

    faults: Faults
    attributes: dict[str, Attribute] = field(default_factory=dict)
    signals: dict[str, Signal] = field(default_factory=dict)
    named: dict[str, s.Let | s.EntropyBand] = field(default_factory=dict)
    phases: tuple[PhaseEnd, ...] = ()
    bands: tuple[Band, ...] = ()
    band_spans: dict[str, Span] = field(default_factory=dict)
    semantics: Semantics = "mask"
    ceiling: int = SCALE
    used: set[str] = field(default_factory=set)
    band_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.declare_bands(self.bands)

    def declare_bands(self, bands: tuple[Band, ...]) -> None:
        self.bands = bands
        self.band_names = tuple(band.name for band in bands)

    def band(self, name: s.Name, also: tuple[str, ...] = ()) -> str | None:
        """Return the name of a declared band, or report that there is none.

        `also` are other words that may stand there, for the suggestion.
        """
        if name.text in self.band_names:
            return name.text
        named = ", ".join(f"`{band}`" for band in self.band_names)
        declare = f"`model` declares {named}" if named else "declare it in `model { … }`"
        if name.text == QUARANTINE:
            declare = 'declare it in `model { … }`, for instance `quarantine = names "adapter.*"`'
        self.faults.undeclared("GW202", "band", name, (*self.band_names, *also), declare)
        return None

    def owner_of(self, value: str) -> AttributeSpec | None:
        """Return the first enumeration or set that has a value."""
        specs = (attribute.spec for attribute in self.attributes.values())
        return next((spec for spec in specs if value in spec.values), None)

    def all_but_quarantine(self) -> tuple[str, ...]:
        """Return the bands that `reach all` names."""
        return tuple(name for name in self.band_names if name != QUARANTINE)

    def declares(self, name: str) -> bool:
        """Whether a name is an attribute, a signal or a named condition."""
        return name in self.attributes or name in self.signals or name in self.named

    def terms(self) -> list[str]:
        """Return every name that a condition may use."""
        return [*self.attributes, *self.signals, *self.named]
