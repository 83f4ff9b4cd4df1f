"""How a new program's decisions differ from an old one's: over all examples and contexts, by a solver.

For each part of the model, some example is asked for that gets a greater weight (wider), and one that gets a
smaller one (narrower). What no example shows, in the whole domain of both schemas, is the same: so nothing
differs between programs whose rules were renamed, reordered or rewritten and decide alike. An example that
breaks a schema has the weight 0 under it. Every example that is shown was decided by the evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, TypeAlias

from gradwarden.policy.comparing.pairs import Cell, cells
from gradwarden.policy.context import Context
from gradwarden.policy.decision import Decision, ObligationKind
from gradwarden.policy.evaluation.evaluate import decide
from gradwarden.policy.program import Limit, PrivacyTerms, Program
from gradwarden.policy.proving.encoding import Encoding
from gradwarden.policy.proving.inputs import Inputs, ambiguous
from gradwarden.policy.proving.questions import Asker, confirmed
from gradwarden.policy.proving.smt import FALSE, Truth, Whole, conjunction, disjunction, negation, z3
from gradwarden.policy.proving.witness import DisagreementError, Holds, Witness

Relation: TypeAlias = Literal["same", "wider", "narrower", "both", "unknown"]

TIMEOUT = 10.0
"""Seconds for one question."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An example that shows a difference, and what the old and the new program decide on it."""

    witness: Witness
    before: Decision
    after: Decision


@dataclass(frozen=True, slots=True)
class Difference:
    """How one thing differs. subject: a part of the model, or a rule.

    wider, narrower: an example for either. notes: what differs besides decisions, or why nothing can be said.
    """

    subject: str
    relation: Relation
    wider: Shown | None = None
    narrower: Shown | None = None
    notes: tuple[str, ...] = ()

    @property
    def widens(self) -> bool:
        """Whether more may be learned; what is not known may be wider."""
        return self.relation in ("wider", "both", "unknown")


class UnansweredError(Exception):
    """A question without an answer; the reason in words."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two programs as expressions over the same inputs."""

    before: Encoding
    after: Encoding

    @property
    def both(self) -> Truth:
        """Whether an example fits both schemas."""
        return conjunction((self.before.valid, self.after.valid))

    def turned(self) -> Pair:
        return Pair(self.after, self.before)

    def decided(self, test: Callable[[Decision, Decision], bool]) -> Holds:
        """Return a test of both decisions as a test of an example."""
        old, new = self.before.program, self.after.program

        def holds(metadata: Mapping[str, object], context: Context) -> bool:
            return test(decide(old, metadata, context), decide(new, metadata, context))

        return holds


class Comparer:
    """Compares two programs. `timeout` is in seconds, for each question."""

    def __init__(self, old: Program, new: Program, timeout: float = TIMEOUT) -> None:
        self.old, self.new = old, new
        self.inputs = Inputs.of(old, new)
        self.cells = cells(old, new)
        self.whole = self.pair(old, new)
        self._asker = Asker(self.inputs, timeout)
        self._ambiguous = ambiguous(self.inputs)

    def pair(self, old: Program, new: Program) -> Pair:
        """Return two programs over the same inputs as the whole ones, whose declarations they must have."""
        return Pair(Encoding(old, self.inputs), Encoding(new, self.inputs))

    def comparable(self) -> bool:
        """Return whether some example may fit both schemas."""
        self._asker.restart()
        return self._asker.ask(self.whole.both).answer != "no"

    def bands(self) -> Iterator[Difference]:
        """Yield how the decisions differ in each part of the model."""
        for cell in self.cells:
            found = self.contribution(cell.name, self.whole, (cell,), _notes(cell, self.old, self.new))
            if cell.moved and not found.widens:
                found = replace(found, relation="unknown")
            yield found

    def privacy(self) -> Iterator[Difference]:
        """Yield for each privacy rule whether examples lose its protection, or gain it."""
        before, after = _private(self.old), _private(self.new)
        for name in sorted({*before, *after}):
            old, new = before.get(name), after.get(name)
            lost, gained = Question(FALSE), Question(FALSE)
            if old is not None:
                lost = _unprotected(self.whole, "privacy", old, _strict(old, after.values()))
            if new is not None:
                gained = _unprotected(self.whole.turned(), "privacy", new, _strict(new, before.values()))
            yield self._sure(self.settle(name, lost, gained, _terms(old, new)))

    def hold_outs(self) -> Iterator[Difference]:
        """Yield for each rule that holds out tokens whether examples have more of them learned, or fewer."""
        before, after = _holding(self.old), _holding(self.new)
        for name in sorted({*before, *after}):
            old, new = before.get(name), after.get(name)
            lost, gained = Question(FALSE), Question(FALSE)
            if old is not None:
                lost = _unprotected(self.whole, "hold_out", old, _as_many(old, after.values()))
            if new is not None:
                gained = _unprotected(self.whole.turned(), "hold_out", new, _as_many(new, before.values()))
            yield self._sure(self.settle(name, lost, gained, _held(old, new)))

    def _sure(self, found: Difference) -> Difference:
        """Return a difference, unknown where no example of a text that two types take was asked for."""
        return replace(found, relation="unknown") if self._ambiguous and not found.widens else found

    def gradients(self) -> Iterator[Difference]:
        """Yield where the greatest gradient norm of a band, or of the bands that came of it, differs."""
        before, after = _norms(self.old), _norms(self.new)
        pairs = [(cell.old, cell.new) for cell in self.cells if cell.old is not None and cell.new is not None]
        rises = _exceeded(before, after, pairs)
        falls = _exceeded(after, before, [(now, was) for was, now in pairs])
        for cell in self.cells:
            if cell.old is None or cell.new is None:
                continue
            wider, narrower = cell.old in rises, cell.new in falls
            if wider or narrower:
                relation: Relation = "both" if wider and narrower else "wider" if wider else "narrower"
                was, now = before[cell.old], after[cell.new]
                note = f"norm at most {_norm(was)}, now {_norm(now)}"
                if not _lifted(was, now) if wider else not _lifted(now, was):
                    note += "; the band has other parameters, and squares of norms add up"
                yield Difference(cell.name, relation, notes=(note,))
        yield from _recording(self.old.recorded, self.new.recorded)

    def contribution(
        self,
        subject: str,
        pair: Pair,
        parts: Collection[Cell],
        notes: tuple[str, ...] = (),
        *,
        fitting: bool = False,
    ) -> Difference:
        """Return whether some part of the model gets a greater or a smaller weight.

        fitting: of the examples that fit both schemas only.
        """
        more = disjunction(_at(pair.after, part.new) > _at(pair.before, part.old) for part in parts)
        less = disjunction(_at(pair.after, part.new) < _at(pair.before, part.old) for part in parts)

        def compare(sign: int) -> Callable[[Decision, Decision], bool]:
            def test(old: Decision, new: Decision) -> bool:
                if fitting and "invalid" in (old.verdict, new.verdict):
                    return False
                return any(sign * (_micro(new, part.new) - _micro(old, part.old)) > 0 for part in parts)

            return test

        if fitting:
            more, less = conjunction((pair.both, more)), conjunction((pair.both, less))
        return self.settle(
            subject,
            Question(more, pair.decided(compare(1)), pair.both),
            Question(less, pair.decided(compare(-1)), pair.both),
            notes,
        )

    def settle(
        self, subject: str, wider: Question, narrower: Question, notes: tuple[str, ...] = ()
    ) -> Difference:
        """Return the difference that the answers to two questions make."""
        answers: list[Shown | None] = []
        whys: list[str] = []
        for question in (wider, narrower):
            try:
                answers.append(self._answer(question))
            except UnansweredError as unanswered:
                answers.append(None)
                whys.append(str(unanswered))
        more, less = answers
        relation: Relation = "both" if more and less else "wider" if more else "narrower" if less else "same"
        if whys and relation in ("same", "narrower"):
            relation = "unknown"
        return Difference(subject, relation, more, less, (*notes, *dict.fromkeys(whys)))

    def _answer(self, question: Question) -> Shown | None:
        """Return an example for a question. One that fits both schemas is tried first, as the plainer one."""
        if z3.is_false(question.truth):
            return None
        self._asker.restart()
        for preferred in (True, False):
            found = self._asker.ask(question.truth, *([question.preferred] if preferred else []))
            if found.answer == "unknown":
                raise UnansweredError("the solver gave up: give it more time with --timeout")
            if found.answer == "yes":
                witness = self._confirmed(found.model, question)
                if witness is None:
                    raise UnansweredError("the solver cannot represent the tests of strings exactly")
                before, after = (
                    decide(program, witness.metadata, witness.context) for program in (self.old, self.new)
                )
                return Shown(witness, before, after)
        return None

    def _confirmed(self, model: Any, question: Question) -> Witness | None:
        """Return the example of a model that the evaluator confirms.

        Raises UnansweredError where it does not, since the example has a text that two types take.
        """
        try:
            return confirmed(self.inputs, model, question.holds)
        except DisagreementError:
            if not self._ambiguous:
                raise
        names = ", ".join(f"`{name}`" for name in self._ambiguous)
        raise UnansweredError(f"{names} has another type now, and some texts are values of both")


def _never(_metadata: Mapping[str, object], _context: Context) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Question:
    """What an example is asked for. holds: whether the evaluator agrees that an example shows it."""

    truth: Truth
    holds: Holds = _never
    preferred: Truth = FALSE


# --- weights ------------------------------------------------------------------------------------------------


def _at(encoding: Encoding, band: int | None) -> Whole:
    return z3.IntVal(0) if band is None else encoding.weights[band]


def _micro(decision: Decision, band: int | None) -> int:
    return 0 if band is None else decision.micro[band]


def _notes(cell: Cell, old: Program, new: Program) -> tuple[str, ...]:
    if cell.new is None:
        return (f"the band `{old.band_names[cell.old or 0]}` is gone",)
    if cell.old is None:
        return (f"the band `{new.band_names[cell.new]}` is new",)
    if cell.moved:
        return ("its part of the model may be another: compare programs that are bound (--model-map)",)
    return ()


# --- gradients ----------------------------------------------------------------------------------------------


def _norms(program: Program) -> list[Decimal | None]:
    """Return the cap of each band."""
    caps = {cap.band: Decimal(cap.norm) for cap in program.gradient_caps}
    return [caps.get(name) for name in program.band_names]


def _lifted(was: Decimal | None, now: Decimal | None) -> bool:
    return was is not None and (now is None or now > was)


def _exceeded(
    before: Sequence[Decimal | None], after: Sequence[Decimal | None], pairs: Collection[tuple[int, int]]
) -> set[int]:
    """Return the bands whose gradient may have a greater norm than before. `pairs`: what became of which.

    The parameters of a band that was split are capped apart, and squares of norms add up.
    """
    found = set()
    for band, cap in enumerate(before):
        caps = [after[now] for was, now in pairs if was == band]
        known = [Fraction(norm) for norm in caps if norm is not None]
        if cap is not None and (
            len(known) < len(caps) or sum(norm**2 for norm in known) > Fraction(cap) ** 2
        ):
            found.add(band)
    return found


def _recording(was: int, now: int) -> Iterator[Difference]:
    """Yield a difference where fewer steps, or more, record what examples add: less evidence is wider."""
    if was != now:
        fewer = was > 0 and (now == 0 or now > was)
        note = f"recorded in {_share(was)}, now in {_share(now)}"
        yield Difference("contributions", "wider" if fewer else "narrower", notes=(note,))


def _share(every: int) -> str:
    return f"1 of {every} steps" if every else "no step"


def _norm(norm: Decimal | None) -> str:
    return "unlimited" if norm is None else f"{norm:f}"


# --- privacy ------------------------------------------------------------------------------------------------


def _private(program: Program) -> dict[str, Limit]:
    return {rule.name: rule for rule in program.limits if rule.level == "hard" and rule.privacy is not None}


def _as_strict(terms: PrivacyTerms, others: PrivacyTerms) -> bool:
    """Return whether terms protect at least as well as others: no number is greater, the unit is the same."""
    numbers = ("epsilon", "delta", "clip")
    return terms.unit == others.unit and all(
        Decimal(getattr(terms, name)) <= Decimal(getattr(others, name)) for name in numbers
    )


def _strict(rule: Limit, others: Collection[Limit]) -> set[str]:
    """Return the names of the privacy rules that protect at least as well as one."""
    assert rule.privacy is not None, "only privacy rules are asked about"
    return {o.name for o in others if o.privacy is not None and _as_strict(o.privacy, rule.privacy)}


def _unprotected(pair: Pair, kind: ObligationKind, rule: Limit, strict: set[str]) -> Question:
    """Ask for an example that a rule protects before and none as strict after, and that is learned from."""
    protected = pair.before.obligations.get((kind, rule.name), FALSE)
    still = disjunction(pair.after.obligations.get((kind, name), FALSE) for name in sorted(strict))

    def lost(before: Decision, after: Decision) -> bool:
        was = any(o.kind == kind and o.rule == rule.name for o in before.obligations)
        now = any(o.kind == kind and o.rule in strict for o in after.obligations)
        return was and not now and any(after.micro)

    truth = conjunction((pair.before.valid, protected, negation(still), negation(pair.after.nothing)))
    return Question(truth, pair.decided(lost), pair.both)


def _terms(old: Limit | None, new: Limit | None) -> tuple[str, ...]:
    if old is None or new is None or old.privacy is None or new.privacy is None:
        return ("the rule is new",) if old is None else ("the rule is gone",) if new is None else ()
    names = ("epsilon", "delta", "clip", "unit", "noise", "spent")
    pairs = [(name, getattr(old.privacy, name), getattr(new.privacy, name)) for name in names]
    return tuple(f"{name} {was or 'none'}, now {now or 'none'}" for name, was, now in pairs if was != now)


# --- tokens that are held out -------------------------------------------------------------------------------


def _holding(program: Program) -> dict[str, Limit]:
    return {rule.name: rule for rule in program.limits if rule.level == "hard" and rule.hold_out}


def _as_many(rule: Limit, others: Collection[Limit]) -> set[str]:
    """Return the names of the rules that hold out at least as many tokens as one."""
    return {other.name for other in others if other.hold_out <= rule.hold_out}


def _held(old: Limit | None, new: Limit | None) -> tuple[str, ...]:
    if old is None or new is None:
        return ("the rule is new",) if old is None else ("the rule is gone",)
    if old.hold_out == new.hold_out:
        return ()
    return (f"holds out 1 in {old.hold_out} tokens, now 1 in {new.hold_out}",)
