"""Asks an index: what shaped a band, what became of an example, what a rule refused, what it left behind.

Weights are in whole examples: 1.0 is one example at full weight in one step. An example's *share* of a band
is its weight there over all weight that the band took. It says who was let in how often, as far as the ledger
goes; it is a first-order approximation, and not what the model would be without the example: gradients differ
in size, and what an example taught one band steers later gradients of others. `runtime.influence` measures
that, by training twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import orjson

from gradwarden.policy.errors import did_you_mean
from gradwarden.policy.program import SCALE
from gradwarden.runtime.errors import TraceError
from gradwarden.runtime.provenance import tables
from gradwarden.runtime.provenance.answers import (
    BandTrace,
    Chapter,
    ExampleTrace,
    Footprint,
    FootprintTrace,
    Part,
    RuleTrace,
    Shaper,
    Steps,
    Stopped,
)
from gradwarden.runtime.provenance.database import EVERY_STEP, Database, listed, numbers
from gradwarden.runtime.provenance.indexed import Index
from gradwarden.runtime.provenance.recorded import Recorded
from gradwarden.runtime.records.branches import Branches, Spans

STOPPING = ("refuse", "defer", "invalid")


class Queries:
    """Questions to one index. effective: leave abandoned steps out of what shaped a band or a rule did."""

    def __init__(self, index: Index, *, effective: bool = False) -> None:
        self.index = index
        self._db = Database(index)
        self._recorded = Recorded(index, self._db)
        self._spans: Spans = self.effective() if effective else EVERY_STEP

    @property
    def _first_rank(self) -> int:
        """The rank of a job whose ledger tells what all ranks record alike."""
        return self.index.ranks[0].rank if self.index.ranks else 0

    def effective(self) -> Spans:
        """Return the steps that led to the weights with which the run ended."""
        branches = Branches()
        for kind, text in self._db.all(
            "SELECT kind, body FROM events WHERE kind IN ('checkpoint', 'rewound') "
            f"AND rank = {self._first_rank:d} ORDER BY entry"
        ):
            branches.apply(kind, orjson.loads(text))
        return branches.leading(self.index.steps)

    def band(self, band: str, steps: Steps = (0, None), top: int = 20) -> BandTrace:
        """Return what shaped a band between two steps, both included. Raises TraceError for an unknown."""
        self._known(band, "band", "SELECT DISTINCT band FROM weights")
        rows = self._db.all(
            f"""
            WITH given AS (
                SELECT example, sum(uses) AS uses, sum(uses * weight::DOUBLE) AS weight,
                       min(first) AS first, max(last) AS last
                FROM ({self._in(steps)}) JOIN weights USING (decision)
                WHERE learned AND band = ? AND weight > 0 GROUP BY example
            ), heaviest AS (SELECT * FROM given ORDER BY weight DESC, example LIMIT ?)
            SELECT example, lower(hex(commitment)), uses, weight, first, last,
                   (SELECT count(*) FROM given), (SELECT sum(uses) FROM given),
                   (SELECT sum(weight) FROM given)
            FROM heaviest JOIN examples USING (example) ORDER BY weight DESC, example
            """,
            [band, top],
        )
        moved = self._recorded.movement(band, steps, self._spans)
        if not rows:
            return BandTrace(band, steps, 0, 0, 0.0, (), moved)
        *_, examples, uses, whole = rows[0]
        added = self._recorded.by_example(band, steps, self._spans, [row[0] for row in rows])
        shapers = [
            Shaper(name, int(count), weight / SCALE, weight / int(whole), first, last, added.get(example))
            for example, name, count, weight, first, last, *_ in rows
        ]
        return BandTrace(band, steps, examples, int(uses), int(whole) / SCALE, tuple(shapers), moved)

    def example(self, commitment: bytes) -> ExampleTrace:
        """Return what became of an example, by its commitment."""
        found = self._db.all("SELECT example FROM examples WHERE commitment = ?", [commitment])
        if not found:
            return ExampleTrace(commitment.hex(), 0, 0, None, None, {}, {}, {}, (), ())
        own = self._db.all(
            """
            SELECT step, decision, learned, entry, outcome, d.verdict, program, rank
            FROM (SELECT * FROM uses WHERE example = ?) JOIN steps USING (rank, step)
            JOIN decisions d USING (decision) ORDER BY step, decision, rank
            """,
            [found[0][0]],
        )
        weights, rules = self._declared({row[1] for row in own})
        steps = [row[0] for row in own]
        exposed = [row[0] for row in own if row[2]]
        leading = self.effective()
        abandoned = {step for step in steps if not any(first <= step < end for first, end in leading)}
        taken: dict[str, int] = dict.fromkeys(self.index.bands, 0)
        for _, decision, learned, *_ in own:
            for band, weight in weights[decision].items() if learned else ():
                taken[band] = taken.get(band, 0) + weight
        whole = self._totals()
        return ExampleTrace(
            commitment.hex(),
            len(own),
            len(exposed),
            (steps[0], steps[-1]),
            (exposed[0], exposed[-1]) if exposed else None,
            _whole(taken),
            {band: weight / whole[band] if whole.get(band) else 0.0 for band, weight in taken.items()},
            self._recorded.by_band(found[0][0]),
            tuple(_chapters(own, weights, rules)),
            tuple(
                {
                    "step": step,
                    "entry": entry,
                    "outcome": outcome,
                    "verdict": verdict,
                    "learned": learned,
                    "abandoned": step in abandoned,
                    **({"rank": rank} if self.index.ranks else {}),
                }
                for step, _, learned, entry, outcome, verdict, _, rank in own
            ),
        )

    def find(self, prefix: str) -> bytes:
        """Return the one commitment that begins with some hexadecimal digits. Raises TraceError."""
        rows = self._db.all(
            "SELECT commitment FROM examples WHERE starts_with(lower(hex(commitment)), ?) LIMIT 2", [prefix]
        )
        if len(rows) != 1:
            several = "several examples have commitments" if rows else "no example has a commitment"
            raise TraceError(f"{several} that begin with `{prefix}`")
        return bytes(rows[0][0])

    def opened(self) -> dict[str, Any]:
        """Return the body of the ledger's first entry."""
        [[text]] = self._db.all("SELECT body FROM events WHERE kind = 'opened' ORDER BY rank LIMIT 1")
        body: dict[str, Any] = orjson.loads(text)
        return body

    def base(self) -> dict[str, Any] | None:
        """Return the body of the entry that names the base of the run, None where there is none."""
        rows = self._db.all("SELECT body FROM events WHERE kind = 'derived' ORDER BY rank LIMIT 1")
        return orjson.loads(rows[0][0]) if rows else None

    def rule(self, rule: str, steps: Steps = (0, None), top: int = 20) -> RuleTrace:
        """Return what a rule did, and why it is there. Raises TraceError for a rule that nothing names."""
        self._know_rule(rule)
        parts = self._db.all(
            f"""
            SELECT program, part, verdict, sum(uses)::BIGINT, count(DISTINCT example), min(first), max(last)
            FROM ({self._in(steps)}) JOIN (SELECT * FROM rules WHERE rule = ?) USING (decision)
            JOIN decisions USING (decision) GROUP BY ALL ORDER BY ALL
            """,
            [rule],
        )
        stopped = self._db.all(
            f"""
            WITH stopped AS (
                SELECT example, sum(uses)::BIGINT AS uses, min(first) AS first, max(last) AS last
                FROM ({self._in(steps)}) JOIN ({_STOPS}) USING (decision) GROUP BY example
            ), most AS (SELECT * FROM stopped ORDER BY uses DESC, example LIMIT ?)
            SELECT lower(hex(commitment)), uses, first, last, example,
                   (SELECT count(*) FROM stopped), (SELECT sum(uses) FROM stopped)
            FROM most JOIN examples USING (example) ORDER BY uses DESC, example
            """,
            [rule, top],
        )
        named = self._rules_with(rule, steps, [row[4] for row in stopped])
        return RuleTrace(
            rule,
            tuple(self._policies(rule)),
            tuple(Part(*row) for row in parts),
            stopped[0][5] if stopped else 0,
            int(stopped[0][6]) if stopped else 0,
            tuple(
                Stopped(commitment, uses, first, last, named[example])
                for commitment, uses, first, last, example, *_ in stopped
            ),
            tuple(self._expirations(rule)),
        )

    def footprint(self, rule: str, top: int = 20) -> FootprintTrace:
        """Return what the model had learned of the examples that a rule stops. Raises as `rule` does."""
        self._know_rule(rule)
        rows = self._db.all(
            f"""
            WITH stopped AS (
                SELECT example, min(first) AS stop FROM sums JOIN ({_STOPS}) USING (decision) GROUP BY example
            )
            SELECT example, stop, decision, sum(uses)::BIGINT, min(first), max(last)
            FROM sums JOIN stopped USING (example) WHERE learned GROUP BY ALL ORDER BY example, decision
            """,
            [rule],
        )
        [[stopped]] = self._db.all(
            f"SELECT count(DISTINCT example) FROM sums JOIN ({_STOPS}) USING (decision)", [rule]
        )
        weights, _ = self._declared({row[2] for row in rows})
        found: dict[int, list[Any]] = {}
        taken: dict[str, int] = dict.fromkeys(self.index.bands, 0)
        for example, stop, decision, uses, first, last in rows:
            own = found.setdefault(example, [stop, 0, first, last, dict.fromkeys(taken, 0)])
            own[1:4] = own[1] + uses, min(own[2], first), max(own[3], last)
            for band, weight in weights[decision].items():
                own[4][band] = own[4].get(band, 0) + uses * weight
                taken[band] = taken.get(band, 0) + uses * weight
        heaviest = sorted(found, key=lambda example: (-sum(found[example][4].values()), example))[:top]
        names = self._commitments(heaviest)
        later = self._later({example: found[example][0] for example in heaviest})
        first = min((own[2] for own in found.values()), default=None)
        whole = self._totals()
        return FootprintTrace(
            rule,
            stopped,
            len(found),
            sum(own[1] for own in found.values()),
            _whole(taken),
            {band: weight / whole[band] if whole.get(band) else 0.0 for band, weight in taken.items()},
            tuple(self._checkpoints(first)),
            tuple(
                Footprint(names[example], stop, uses, first, last, later[example], _whole(own))
                for example in heaviest
                for stop, uses, first, last, own in [found[example]]
            ),
        )

    def weight_of(self, commitments: Sequence[bytes] | None = None) -> tuple[int, int, dict[str, float]]:
        """Return how many of some examples shaped the model, in how many uses, and their weight by band.

        None: of all examples.
        """
        chosen = "SELECT example FROM examples"
        if commitments is not None:
            self._db.choose(commitments)
            chosen = "SELECT DISTINCT example FROM examples JOIN chosen USING (commitment)"
        [[examples, uses]] = self._db.all(
            f"""
            SELECT count(DISTINCT example), coalesce(sum(uses), 0)::BIGINT
            FROM sums SEMI JOIN ({chosen}) USING (example) WHERE learned
            """
        )
        rows = self._db.all(
            f"""
            SELECT band, sum(n * weight) FROM (
                SELECT decision, sum(uses) AS n FROM sums SEMI JOIN ({chosen}) USING (example)
                WHERE learned GROUP BY decision
            ) JOIN weights USING (decision) GROUP BY band
            """
        )
        weights = dict.fromkeys(self.index.bands, 0) | {band: int(weight) for band, weight in rows}
        return examples, uses, _whole(weights)

    def known(self, commitments: Sequence[bytes]) -> set[bytes]:
        """Return those of some commitments that the model may have learned from."""
        rows = self._db.all(
            """
            SELECT commitment FROM examples
            SEMI JOIN (SELECT example FROM sums WHERE learned) USING (example)
            """
        )
        return {bytes(row[0]) for row in rows} & set(commitments)

    def programs(self) -> list[dict[str, Any]]:
        """Return what governed the run, in order."""
        return self._db.records("SELECT first_step, name, version, digest FROM programs ORDER BY program")

    # --- parts of answers ----------------------------------------------------------------------------------

    def _in(self, steps: Steps) -> str:
        return self._db.uses_in(steps, self._spans)

    def _rules_with(self, rule: str, steps: Steps, examples: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """Return all rules that bore on the decisions by which a rule stopped some examples."""
        found: dict[int, set[str]] = {example: set() for example in examples}
        rows = self._db.all(
            f"""
            SELECT DISTINCT example, rules.rule FROM ({self._in(steps)}) JOIN ({_STOPS}) USING (decision)
            JOIN rules USING (decision) WHERE rules.part = 'rule' AND example IN ({numbers(examples)})
            """,
            [rule],
        )
        for example, one in rows:
            found[example].add(one)
        return {example: tuple(sorted(names)) for example, names in found.items()}

    def _later(self, stops: dict[int, int]) -> dict[int, int]:
        """Return how often each of some examples was learned from after a step of its own."""
        block = tables.BLOCK
        counts = dict.fromkeys(stops, 0)
        named = f"learned AND example IN ({numbers(stops)})"
        for example, first, uses in self._db.all(f"SELECT example, first, uses FROM sums WHERE {named}"):
            if first // block > stops[example] // block:
                counts[example] += uses
        # Of the block in which it was stopped, single uses tell.
        within = {stop // block for stop in stops.values()}
        paths = [path for at in sorted(within) for path in self.index.paths("uses", range(at, at + 1))]
        single = f"SELECT example, step FROM read_parquet({listed(paths)}) WHERE {named}"
        for example, step in self._db.all(single) if paths else ():
            stop = stops[example]
            counts[example] += step > stop and step // block == stop // block
        return counts

    def _known(self, name: str, noun: str, query: str) -> None:
        names = sorted(row[0] for row in self._db.all(query))
        if name not in names:
            near = (
                did_you_mean(name, names) or f"there are {', '.join(f'`{one}`' for one in names) or 'none'}"
            )
            raise TraceError(f"the ledger has no {noun} `{name}`", help=near)

    def _know_rule(self, rule: str) -> None:
        self._known(rule, "rule", "SELECT rule FROM policy_rules UNION SELECT rule FROM rules")

    def _declared(self, decisions: set[int]) -> tuple[dict[int, dict[str, int]], dict[int, tuple[str, ...]]]:
        """Return weights by band, and the rules that bore on it, of each of some decisions."""
        weights: dict[int, dict[str, int]] = {number: {} for number in decisions}
        rules: dict[int, tuple[str, ...]] = dict.fromkeys(decisions, ())
        for number, band, weight in self._db.all("SELECT decision, band, weight FROM weights"):
            if number in weights:
                weights[number][band] = weight
        for number, rule in self._db.all("SELECT decision, rule FROM rules WHERE part = 'rule'"):
            if number in rules:
                rules[number] += (rule,)
        return weights, rules

    def _totals(self) -> dict[str, int]:
        """Return all weight that each band took."""
        rows = self._db.all(
            """
            SELECT band, sum(n * weight) FROM (
                SELECT decision, sum(uses) AS n FROM sums WHERE learned GROUP BY decision
            ) JOIN weights USING (decision) GROUP BY band
            """
        )
        return {band: int(weight) for band, weight in rows}

    def _commitments(self, examples: Sequence[int]) -> dict[int, str]:
        wanted = f"WHERE example IN ({numbers(examples)})"
        return dict(self._db.all(f"SELECT example, lower(hex(commitment)) FROM examples {wanted}"))

    def _policies(self, rule: str) -> list[dict[str, Any]]:
        return self._db.records(
            """
            SELECT program, first_step, name AS policy, version, kind, because
            FROM policy_rules JOIN programs USING (program) WHERE rule = ? ORDER BY program
            """,
            [rule],
        )

    def _expirations(self, rule: str) -> list[dict[str, Any]]:
        return self._db.records(
            """
            SELECT min(entry) AS entry, step, sum(CAST(body->>'$.count' AS BIGINT))::BIGINT AS count
            FROM events WHERE kind = 'expired' AND body->>'$.rule' = ? GROUP BY step ORDER BY step
            """,
            [rule],
        )

    def _checkpoints(self, first: int | None) -> list[dict[str, Any]]:
        """Return the checkpoints that were saved after a step."""
        if first is None:
            return []
        return self._db.records(
            """
            SELECT entry, step, body->>'$.file' AS file, body->>'$.digest' AS digest FROM events
            WHERE kind = 'checkpoint' AND step > ? AND rank = ? ORDER BY entry
            """,
            [first, self._first_rank],
        )


_STOPS = f"""
    SELECT DISTINCT decision FROM rules JOIN decisions USING (decision)
    WHERE rule = ? AND part = 'rule' AND verdict IN ({", ".join(f"'{verdict}'" for verdict in STOPPING)})
    AND (program, rule) NOT IN (SELECT (program, rule) FROM policy_rules WHERE kind = 'depth')
"""
"""The decisions on which a rule bore, other than by granting, and that let nothing through."""


def _whole(weights: dict[str, int]) -> dict[str, float]:
    return {band: weight / SCALE for band, weight in weights.items()}


def _chapters(
    own: Sequence[tuple[Any, ...]], weights: dict[int, dict[str, int]], rules: dict[int, tuple[str, ...]]
) -> list[Chapter]:
    """Join neighbouring steps that have one decision."""
    chapters = []
    for decision, group in groupby(own, itemgetter(1)):
        rows = list(group)
        verdict, program = rows[0][5:7]
        learned = sum(row[2] for row in rows)
        told = _whole(weights[decision]), tuple(sorted(rules[decision]))
        chapters.append(Chapter(program, verdict, *told, rows[0][0], rows[-1][0], len(rows), learned))
    return chapters
