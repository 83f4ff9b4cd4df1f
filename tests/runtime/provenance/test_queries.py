"""What an index answers is what a slow reading of the ledger gives."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradwarden.runtime.errors import TraceError
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.provenance import sums, tables
from gradwarden.runtime.provenance.answers import Contribution
from gradwarden.runtime.provenance.database import EVERY_STEP, Database
from gradwarden.runtime.provenance.index import build_index
from gradwarden.runtime.provenance.lineage import compare
from gradwarden.runtime.provenance.queries import Queries
from gradwarden.runtime.records.branches import Branches
from tests.runtime.provenance.small_runs import (
    BANDS,
    Record,
    Use,
    Writer,
    commitment,
    read_records,
    read_uses,
    taken_steps,
    write_run,
)

pytest.importorskip("duckdb")


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Several blocks of steps, and sums that are made of several parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK", 8)
        patch.setattr(sums, "MOST", 10)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, run_signer: Signer) -> tuple[Queries, list[Use]]:
    path = write_run(tmp_path_factory.mktemp("run") / "it's a.ledger", run_signer, seed=5, recording=True)
    return Queries(build_index(path)), list(read_uses(path))


Run = tuple[Queries, list[Use]]


@pytest.mark.parametrize("steps", [(0, None), (10, 30), (8, 15), (9, 14), (16, None), (25, 25), (900, None)])
@pytest.mark.parametrize("band", BANDS)
def test_what_shaped_a_band(run: Run, band: str, steps: tuple[int, int | None]) -> None:
    queries, uses = run
    weights: Counter[str] = Counter()
    seen: defaultdict[str, list[int]] = defaultdict(list)
    for use in uses:
        if use.learned and use.weight(band) and steps[0] <= use.step <= (steps[1] or 1000):
            weights[use.commitment] += use.weight(band)
            seen[use.commitment].append(use.step)
    found = queries.band(band, steps, 1000)
    assert {one.commitment: round(one.weight * 1e6) for one in found.top} == weights
    assert {one.commitment: (one.uses, one.first, one.last) for one in found.top} == {
        name: (len(steps), steps[0], steps[-1]) for name, steps in seen.items()
    }
    assert [one.weight for one in found.top] == sorted((one.weight for one in found.top), reverse=True)
    assert (found.examples, found.uses) == (len(weights), sum(map(len, seen.values())))
    assert found.weight == pytest.approx(weights.total() / 1e6)
    assert sum(one.share for one in found.top) == pytest.approx(1.0 if weights else 0.0)
    assert queries.band(band, steps, 2).top == found.top[:2]
    assert found.top == () or queries.band(band, steps, 2).examples == found.examples


def added_up(records: list[Record]) -> tuple[int, Any, int] | None:
    """What a slow reading makes of one example in one band: steps, the sum of norms, private steps."""
    told = [one for one in records if one.norm is not None]
    private = {one.step for one in records if one.norm is None}
    norm = pytest.approx(sum(one.norm or 0 for one in told), rel=1e-5) if told else None
    return (len({one.step for one in told}), norm, len(private)) if records else None


def told_of(found: Contribution | None) -> tuple[int, float | None, int] | None:
    return None if found is None else (found.steps, found.norm, found.private)


@pytest.mark.parametrize("steps", [(0, None), (10, 30), (8, 15), (25, 25), (900, None)])
@pytest.mark.parametrize("band", BANDS)
def test_what_the_shapers_of_a_band_added_and_how_far_it_moved(
    run: Run, band: str, steps: tuple[int, int | None]
) -> None:
    queries, _ = run
    path, last = queries.index.ledger, 1000 if steps[1] is None else steps[1]
    own = [one for one in read_records(path) if one.band == band and steps[0] <= one.step <= last]
    found = queries.band(band, steps, 1000)
    for shaper in found.top:
        added = [one for one in own if one.commitment == shaper.commitment]
        assert told_of(shaper.added) == added_up(added)
    moves = [one.norm or 0.0 for one in own if not one.commitment]
    taken = [step for step in taken_steps(path) if steps[0] <= step <= last]
    moved = found.moved and (found.moved.steps, found.moved.taken, found.moved.norm)
    assert moved == ((len(moves), len(taken), pytest.approx(sum(moves), rel=1e-5)) if moves else None)


def test_what_an_example_added_to_each_band(run: Run) -> None:
    queries, _ = run
    records = list(read_records(queries.index.ledger))
    for number in range(12):
        own = [one for one in records if one.commitment == commitment(number).hex()]
        found = queries.example(commitment(number)).added
        assert found.keys() == {one.band for one in own}
        for band in found:
            assert told_of(found[band]) == added_up([one for one in own if one.band == band])


def test_norms_that_come_to_more_than_any_number_are_told_as_the_greatest(
    tmp_path: Path, run_signer: Signer
) -> None:
    """No gradient has them, but whoever writes a ledger may say so; an answer is written as JSON."""
    writer = Writer(tmp_path / "run.ledger", run_signer, 3)
    writer.known = 1
    for number in range(4):
        writer.propose(12)
        body = {"step": number, "first": 0, "norms": {"deep": ["1e308"] * 12}}
        writer.ledger.append("contributed", body)
        writer.ledger.append("moved", {"step": number, "norms": {"deep": "1e308"}})
        writer.settle()
    writer.ledger.close()
    found = Queries(build_index(writer.path)).band("deep", (0, None), 1)
    assert found.moved is not None
    assert found.top[0].added is not None
    assert found.moved.norm == found.top[0].added.norm == 1.79769e308


def test_where_nothing_is_recorded_nothing_is_told_or_looked_for(
    tmp_path: Path, run_signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = Queries(build_index(write_run(tmp_path / "run.ledger", run_signer)))
    asked: list[str] = []
    read = Database.all
    monkeypatch.setattr(
        Database, "all", lambda self, query, *v: (asked.append(query), read(self, query, *v))[1]
    )
    found, example = queries.band("deep"), queries.example(commitment(0))
    assert (found.moved, {one.added for one in found.top}, example.added) == (None, {None}, {})
    assert len(found.top) == found.examples > 1
    assert asked
    assert not any("contributions" in query or "moves" in query for query in asked)


def test_contributions_are_read_from_the_blocks_of_the_steps_in_question(run: Run) -> None:
    queries, _ = run
    for table in ("contributions", "moves", "steps"):
        query = Database(queries.index).rows_in(table, (9, 14), EVERY_STEP)
        assert re.findall(r"block=(\d+)", query) == ["1"]


def test_abandoned_steps_are_left_out_where_asked(tmp_path: Path, run_signer: Signer) -> None:
    writer = Writer(tmp_path / "run.ledger", run_signer, 4, recording=True)
    branches = Branches()

    def put(kind: str, body: dict[str, Any]) -> None:
        writer.ledger.append(kind, body)
        branches.apply(kind, body)

    writer.train(11)
    put("checkpoint", {"step": 11, "file": "early.safetensors", "digest": "0" * 64, "tensors": None})
    writer.train(20)
    assert branches.last is not None
    put("rewound", branches.rewind(branches.last, 31))
    writer.train(14)
    writer.ledger.close()
    uses = [use for use in read_uses(writer.path) if use.learned]
    index = build_index(writer.path)
    effective, whole = Queries(index, effective=True), Queries(index)
    assert effective.effective() == ((0, 11), (31, 45))
    for steps in ((0, None), (5, 35), (12, 20), (31, 40)):
        kept = [one for one in uses if not 11 <= one.step < 31 and steps[0] <= one.step <= (steps[1] or 99)]
        found = effective.band("deep", steps, 1000)
        assert found.uses == sum(one.weight("deep") > 0 for one in kept)
        assert found.weight == pytest.approx(sum(one.weight("deep") for one in kept) / 1e6)
        leading = [
            one
            for one in read_records(writer.path)
            if one.band == "deep" and not 11 <= one.step < 31 and steps[0] <= one.step <= (steps[1] or 99)
        ]
        for shaper in found.top:
            added = [one for one in leading if one.commitment == shaper.commitment]
            assert told_of(shaper.added) == added_up(added)
        moves = [one for one in leading if not one.commitment]
        assert (found.moved.steps if found.moved else 0) == len(moves)
    assert whole.band("deep").uses == sum(one.weight("deep") > 0 for one in uses)
    told = whole.example(bytes.fromhex(uses[0].commitment)).steps
    assert any(step["abandoned"] for step in told)
    assert all(step["abandoned"] == (11 <= step["step"] < 31) for step in told)


def test_what_became_of_an_example(run: Run) -> None:
    queries, uses = run
    for number in range(12):
        own = [use for use in uses if use.commitment == commitment(number).hex()]
        learned = [use for use in own if use.learned]
        found = queries.example(commitment(number))
        assert sorted((s["step"], s["entry"], s["outcome"], s["verdict"]) for s in found.steps) == sorted(
            (use.step, use.entry, use.outcome, use.decision["verdict"]) for use in own
        )
        assert (found.uses, found.exposures) == (len(own), len(learned))
        assert found.exposed == (learned[0].step, learned[-1].step)
        for band in BANDS:
            taken = sum(use.weight(band) for use in learned)
            whole = sum(use.weight(band) for use in uses if use.learned)
            assert found.weights[band] == pytest.approx(taken / 1e6)
            assert found.shares[band] == pytest.approx(taken / whole)
        assert sum(one.uses for one in found.chapters) == len(own)
        assert sum(one.learned for one in found.chapters) == len(learned)
        assert queries.find(commitment(number).hex()[:10]) == commitment(number)


def test_an_example_that_no_step_names(run: Run) -> None:
    found = run[0].example(commitment(999))
    assert (found.uses, found.proposed, found.exposed, found.steps) == (0, None, None, ())
    with pytest.raises(TraceError, match="no example has a commitment"):
        run[0].find("00000000")


def test_what_a_rule_refused(run: Run) -> None:
    queries, uses = run
    found = queries.rule("closed", top=1000)
    stopped = [use for use in uses if "closed" in use.decision["rules"] and not any(use.decision["weights"])]
    counts = Counter(use.commitment for use in stopped)
    assert {one.commitment: one.uses for one in found.top} == counts
    assert (found.examples, found.uses) == (len(counts), counts.total())
    verdicts = Counter(use.decision["verdict"] for use in stopped)
    told: Counter[str] = Counter()
    for part in found.parts:
        told[part.verdict] += part.uses
    assert told == verdicts
    assert found.expirations == ({"entry": found.expirations[0]["entry"], "step": 20, "count": 4},)
    late = queries.rule("closed", (30, None), 1000)
    assert late.uses == sum(use.step >= 30 for use in stopped)


@pytest.mark.parametrize(
    ("rule", "part"), [("capped", "waived"), ("asked", "advisory"), ("people", "privacy")]
)
def test_every_part_that_a_rule_had_is_told(run: Run, rule: str, part: str) -> None:
    queries, uses = run
    field = {"privacy": "obligations"}.get(part, part)
    having = sum(any(rule in one for one in use.decision[field]) for use in uses)
    assert sum(one.uses for one in queries.rule(rule).parts if one.part == part) == having > 0


def test_what_is_left_of_examples_that_a_rule_stops(run: Run) -> None:
    """Everything learned of them, before and after; and the checkpoints that hold it."""
    queries, uses = run
    first: dict[str, int] = {}
    for use in uses:
        if "closed" in use.decision["rules"]:
            first.setdefault(use.commitment, use.step)
    left = [use for use in uses if use.learned and use.commitment in first]
    found = queries.footprint("closed", 1000)
    assert found.stopped == len(first)
    assert found.examples == len({use.commitment for use in left}) == len(found.top)
    for band in BANDS:
        assert found.weights[band] == pytest.approx(sum(use.weight(band) for use in left) / 1e6)
    for one in found.top:
        own = [use for use in left if use.commitment == one.commitment]
        assert (one.uses, one.first, one.last) == (len(own), own[0].step, own[-1].step)
        assert one.stopped == first[one.commitment]
        assert one.later == sum(use.step > one.stopped for use in own)
        assert one.weights["deep"] == pytest.approx(sum(use.weight("deep") for use in own) / 1e6)
    assert [saved["file"] for saved in found.checkpoints] == ["early.safetensors", "late.safetensors"]


def test_names_that_the_ledger_does_not_have_are_told(run: Run) -> None:
    with pytest.raises(TraceError, match="no band `depe`") as caught:
        run[0].band("depe")
    assert "`deep`" in str(caught.value.help)
    with pytest.raises(TraceError, match="no rule `x' OR 1=1 --`"):
        run[0].rule("x' OR 1=1 --")


def test_what_a_fine_tuning_added(run: Run, tmp_path: Path, run_signer: Signer) -> None:
    """Here one commitment is one example in both runs; else only the holder of both secrets can tell."""
    base, before = run
    path = write_run(tmp_path / "tuned.ledger", run_signer, seed=6)
    tuned, after = Queries(build_index(path)), list(read_uses(path))
    known = [commitment(number) for number in range(6)] + [commitment(777)]
    found = compare(base, tuned, [(one, one) for one in known])
    then, now = ({use.commitment for use in uses if use.learned} for uses in (before, after))
    names = {one.hex() for one in known}
    assert found.linked is not None
    assert found.linked.new.examples == len(names & now - then)
    assert found.linked.repeated.examples == len(names & now & then)
    assert found.linked.left == len(names & then - now)
    assert found.linked.unlisted == len(now - names)
    repeated = [use for use in after if use.learned and use.commitment in names & then]
    assert found.linked.repeated.weights["shallow"] == pytest.approx(
        sum(u.weight("shallow") for u in repeated) / 1e6
    )
    assert found.run.whole.uses == sum(use.learned for use in after)
    assert [policy["name"] for policy in found.base.policies] == ["sample", "changed"]
    assert compare(base, tuned).linked is None
