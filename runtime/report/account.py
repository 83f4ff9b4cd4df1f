"""What a run's ledger adds up to, for its report: gathered in one pass, in memory that steps do not change.

Weights are in whole examples. Time is cut into at most BUCKETS equal stretches of steps; while the run is
read, two neighbours become one whenever there are more. Who shaped a band is told by the groups that a reader
names for examples, or else by the `depth` rules that let them in.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from gradwarden.policy.decision import VERDICTS
from gradwarden.policy.frozen import frozen
from gradwarden.policy.program import SCALE
from gradwarden.runtime.ledger.chain import Listener
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.provenance.amounts import amount
from gradwarden.runtime.provenance.collect import Collector, Numbering
from gradwarden.runtime.report.recorded import Recorded, RecordSums

BUCKETS = 48

UNNAMED = "not named"
"""The group of examples that no group was given for."""

OF_ONE_RANK = ("expired", "resumed", "rotated", "revoked")
"""Kinds of events that the ranks of a job do not record alike."""

STOPPING = ("refuse", "defer", "invalid")


@frozen
class Shaping:
    """How much weight each of some groups gave one band, by stretch of `unit` steps.

    weights: by group, one number per stretch.
    """

    band: str
    unit: int
    weights: dict[str, tuple[float, ...]]

    @property
    def whole(self) -> float:
        return sum(map(sum, self.weights.values()))

    def share(self, group: str) -> float:
        """Return a group's part of all weight."""
        return sum(self.weights[group]) / self.whole if self.whole else 0.0


@frozen
class RuleCount:
    """How often a rule had a part in decisions, by verdict; first, last: the steps of these decisions."""

    rule: str
    kind: str
    because: str
    verdicts: dict[str, int]
    first: int
    last: int

    @property
    def stopped(self) -> int:
        """Uses that got no weight at all."""
        return sum(self.verdicts.get(verdict, 0) for verdict in STOPPING)


@frozen
class Spending:
    """A privacy rule's budget. terms: as `opened` has them. points: (step, epsilon), some of them."""

    rule: str
    terms: dict[str, str]
    points: tuple[tuple[int, float], ...]


@frozen
class Account:
    """A run, added up.

    opened: the body of the first entry; of a job, of its first rank's ledger. ranks: those of a job whose
    ledgers were read; none of a run by itself. outcomes: steps by outcome. gates: (gate, reason) and how many
    steps each refused. uses: examples in steps; examples: how many there are. grouped: whether groups were
    named. recorded: of contributions, by band; none where no step records any.
    """

    opened: Mapping[str, Any]
    policies: tuple[dict[str, Any], ...]
    steps: int
    outcomes: dict[str, int]
    gates: tuple[tuple[str, str, int], ...]
    uses: int
    examples: int
    verdicts: dict[str, int]
    grouped: bool
    shaping: tuple[Shaping, ...]
    rules: tuple[RuleCount, ...]
    spending: tuple[Spending, ...]
    events: tuple[dict[str, Any], ...]
    ranks: tuple[int, ...] = ()
    recorded: tuple[Recorded, ...] = ()


class Accountant:
    """Adds up the parts of one ledger, told in order, or of those of a job, one after the other.

    groups: what group examples belong to, by commitment. ranks: of the job. What all of them record alike
    (steps, outcomes, moves, spending) is counted once, as the first of them has it.
    """

    def __init__(self, groups: Mapping[bytes, str] | None = None, ranks: Sequence[int] = ()) -> None:
        self._ranks = tuple(ranks)
        self._numbering = Numbering(shared=bool(ranks))
        self._collectors = [Collector(self, self._numbering)]
        self._groups = groups
        self._names: defaultdict[str, int] = defaultdict(lambda: len(self._names))
        """Groups are numbered as they appear."""
        self._group_of: list[int] = []
        """The group of each example, where groups were named."""
        self._unit = 1
        self._table = np.empty((0, 0))
        """The weights of each decision: [decisions, bands]."""
        self._granted = np.empty(0, np.int64)
        """The group of each decision, where groups are the rules that granted it."""
        self._given: defaultdict[tuple[int, int], npt.NDArray[np.float64]] = defaultdict(self._nothing)
        """By stretch and group: the weight given to each band."""
        self._bands: dict[str, int] = {}
        self._weights: list[list[int]] = []
        """Of each decision, in the order of `_bands`."""
        self._verdicts: list[str] = []
        self._parts: list[list[str]] = []
        """Of each decision, the rules that bore on it."""
        self._program_of: list[int] = []
        self._taken: Counter[int] = Counter()
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._declared: list[dict[str, Any]] = []
        self._policies: list[dict[str, Any]] = []
        self._outcomes: Counter[str] = Counter()
        self._gates: Counter[tuple[str, str]] = Counter()
        self._points: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        self._events: list[dict[str, Any]] = []
        self._recorded = RecordSums()

    def accept(self, part: Part) -> None:
        """Take the next part. Raises TraceError where steps are out of turn or decisions undeclared."""
        self._collectors[-1].accept(part)

    def begin(self, rank: int) -> Listener:
        """Take the parts of another rank's ledger from now on; return who is to be told of them."""
        if rank != self._ranks[0]:
            self._collectors[-1].end()
            self._collectors.append(Collector(self, self._numbering))
        return self.accept

    @property
    def _steps(self) -> int:
        return max(collector.steps for collector in self._collectors)

    def finish(self) -> Account:
        """Return what it all adds up to."""
        self._collectors[-1].finish()
        opened = self._collectors[0].opened
        terms = {one["rule"]: one for one in opened.get("privacy", ())}
        return Account(
            opened,
            tuple(self._policies),
            self._steps,
            dict(self._outcomes),
            tuple((gate, reason, count) for (gate, reason), count in self._gates.most_common()),
            sum(collector.uses for collector in self._collectors),
            len(self._numbering.examples),
            self._count_verdicts(),
            self._groups is not None,
            tuple(self._shaping(band) for band in self._bands),
            tuple(self._count_rules()),
            tuple(Spending(rule, terms[rule], tuple(self._points[rule])) for rule in terms),
            tuple(self._events),
            self._ranks,
            tuple(self._recorded.of(self._bands)),
        )

    # --- rows ----------------------------------------------------------------------------------------------

    def add(self, table: str, **columns: Any) -> None:
        """Take rows of a table of the index."""
        if table == "uses":
            self._use(**columns)
        elif table == "steps" and len(self._collectors) == 1:
            self._outcomes.update(np.asarray(columns["outcome"]).tolist())
            refused = zip(columns["gate"], columns["reason"], strict=True)
            self._gates.update(pair for pair in refused if pair[0] is not None)

    def add_row(self, table: str, **values: Any) -> None:
        """Take one row of a table of the index."""
        match table:
            case "decisions":
                self._verdicts.append(values["verdict"])
                self._program_of.append(values["program"])
                self._weights.append([])
                self._parts.append([])
            case "weights":
                place = self._bands.setdefault(values["band"], len(self._bands))
                own = self._weights[values["decision"]]
                own += [0] * (place + 1 - len(own))
                own[place] = values["weight"]
            case "rules" if values["part"] == "rule":
                self._parts[values["decision"]].append(values["rule"])
            case "programs":
                self._policies.append(values)
            case "policy_rules":
                self._declared.append(values)
            case "steps":
                self.add("steps", **{name: [value] for name, value in values.items()})
            case "contributions":
                self._recorded.add(values["band"], values["norm"])
            case "moves" if len(self._collectors) == 1:
                self._recorded.move(values["band"], values["norm"])
            case "spending" if len(self._collectors) == 1:
                self._spend(values)
            case "events" if len(self._collectors) == 1 or values["kind"] in OF_ONE_RANK:
                rank = self._ranks[len(self._collectors) - 1] if self._ranks else None
                self._events.append({**values, "body": orjson.loads(values["body"]), "rank": rank})

    def _use(
        self,
        step: npt.NDArray[np.int64],
        example: npt.NDArray[np.int32],
        decision: npt.NDArray[np.int32],
        learned: npt.NDArray[np.bool_],
    ) -> None:
        if not len(step):
            return
        found, first, counts = np.unique(decision, return_index=True, return_counts=True)
        last = len(decision) - 1 - np.unique(decision[::-1], return_index=True)[1]
        for number, count, begin, end in zip(
            found.tolist(), counts.tolist(), step[first].tolist(), step[last].tolist(), strict=True
        ):
            self._taken[number] += count
            self._first[number] = min(begin, self._first.get(number, begin))
            self._last[number] = max(end, self._last.get(number, end))
        while int(step[-1]) // self._unit >= BUCKETS:
            self._halve()
        if len(self._table) != len(self._weights):
            self._tabulate()
        who = self._who(example, decision)[learned]
        keys = step[learned] // self._unit << 32 | who
        for key in np.unique(keys).tolist():
            mine = decision[learned][keys == key]
            given = self._given[key >> 32, key & 0xFFFFFFFF]
            given += self._table[mine].sum(axis=0)

    def _tabulate(self) -> None:
        """Take in the decisions that were declared since: their weights, and the rules that granted them."""
        bands = len(self._bands)
        rows = [[*own, *[0] * (bands - len(own))] for own in self._weights]
        self._table = np.array(rows, np.float64).reshape(len(rows), bands)
        grants = {(one["program"], one["rule"]) for one in self._declared if one["kind"] == "depth"}
        labels = [
            " + ".join(rule for rule in rules if not grants or (program, rule) in grants) or UNNAMED
            for program, rules in zip(self._program_of, self._parts, strict=True)
        ]
        if self._groups is None:
            self._granted = np.array([self._names[label] for label in labels], np.int64)
        for key, given in self._given.items():
            self._given[key] = np.pad(given, (0, bands - len(given)))

    def _nothing(self) -> npt.NDArray[np.float64]:
        return np.zeros(len(self._bands))

    def _halve(self) -> None:
        """Make one stretch of two."""
        self._unit *= 2
        before, self._given = self._given, defaultdict(self._nothing)
        for (stretch, group), weights in before.items():
            self._given[stretch // 2, group] += weights

    def _who(self, example: npt.NDArray[np.int32], decision: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return the group of each use."""
        if self._groups is None:
            return self._granted[decision]
        known = len(self._group_of)
        if int(example.max()) >= known:
            fresh = islice(self._numbering.examples.commitments(), known, None)
            self._group_of += [self._names[self._groups.get(one, UNNAMED)] for one in fresh]
        return np.array(self._group_of, np.int64)[example]

    def _spend(self, spent: Mapping[str, Any]) -> None:
        """Keep the last epsilon of each stretch of steps."""
        epsilon = amount(spent["epsilon"])
        if epsilon is None:
            return
        points = self._points[spent["rule"]]
        points.append((spent["step"], epsilon))
        if len(points) > 8 * BUCKETS:
            points[:-1] = points[1:-1:2]

    # --- sums ----------------------------------------------------------------------------------------------

    def _shaping(self, band: str) -> Shaping:
        place = self._bands[band]
        stretches = -(-self._steps // self._unit)
        weights: dict[str, tuple[float, ...]] = {}
        for name, group in self._names.items():
            given = [self._given.get((stretch, group), self._nothing()) for stretch in range(stretches)]
            values = tuple(float(one[place]) / SCALE if place < len(one) else 0.0 for one in given)
            if any(values):
                weights[name] = values
        ordered = sorted(weights, key=lambda name: -sum(weights[name]))
        return Shaping(band, self._unit, {name: weights[name] for name in ordered})

    def _count_verdicts(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for number, count in self._taken.items():
            counts[self._verdicts[number]] += count
        return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}

    def _count_rules(self) -> list[RuleCount]:
        """Return every rule that was declared, or had a part; those that stopped most come first."""
        verdicts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for number, count in self._taken.items():
            for rule in self._parts[number]:
                verdicts[rule][self._verdicts[number]] += count
                first[rule] = min(first.get(rule, self._first[number]), self._first[number])
                last[rule] = max(last.get(rule, 0), self._last[number])
        told = {one["rule"]: (one["kind"], one["because"]) for one in self._declared}
        counted = [
            RuleCount(
                rule,
                *told.get(rule, ("", "")),
                {verdict: verdicts[rule][verdict] for verdict in VERDICTS if verdicts[rule][verdict]},
                first.get(rule, -1),
                last.get(rule, -1),
            )
            for rule in dict.fromkeys([*told, *verdicts])
        ]
        return sorted(counted, key=lambda one: (-one.stopped, -sum(one.verdicts.values()), one.rule))


def grouped(names: Mapping[str, str], committer: Any) -> dict[bytes, str]:
    """Return groups by commitment. names: the group of each id."""
    return {committer.commit(example): group for example, group in names.items()}


def of_kind(rules: Sequence[RuleCount], kind: str) -> list[RuleCount]:
    """Return the rules of one kind."""
    return [rule for rule in rules if rule.kind == kind]
