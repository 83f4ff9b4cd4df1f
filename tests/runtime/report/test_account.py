"""What a report adds up is what a slow reading of the ledger gives."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.provenance.making import walk_ranks
from gradwarden.runtime.report import account
from gradwarden.runtime.report.account import UNNAMED, Account, Accountant, Spending
from gradwarden.runtime.report.chart import heaviest, line, stack
from tests.runtime.jobs.simulated import Job, program
from tests.runtime.provenance.small_runs import BANDS, commitment, read_records, read_uses, write_run

GROUPS = {commitment(number): f"group {number % 3}" for number in range(10)}


def add_up(path: Path, groups: dict[bytes, str] | None = None) -> Account:
    accountant = Accountant(groups)
    verify_chain(path, (), lambda: accountant.accept)
    return accountant.finish()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, run_signer: Signer) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run.ledger", run_signer, seed=8, recording=True)


@pytest.mark.parametrize("buckets", [4, 48, 1000])
@pytest.mark.parametrize("band", BANDS)
def test_weights_by_group_and_time(
    ledger: Path, band: str, buckets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "BUCKETS", buckets)
    found = next(one for one in add_up(ledger, GROUPS).shaping if one.band == band)
    expected: Counter[tuple[str, int]] = Counter()
    for use in read_uses(ledger):
        if use.learned and use.weight(band):
            group = GROUPS.get(bytes.fromhex(use.commitment), UNNAMED)
            expected[group, use.step // found.unit] += use.weight(band)
    assert {
        (group, at): round(value * 1e6)
        for group, values in found.weights.items()
        for at, value in enumerate(values)
        if value
    } == expected
    assert all(len(values) <= buckets for values in found.weights.values())


def test_without_groups_the_rules_that_let_in_are_told(ledger: Path) -> None:
    found = add_up(ledger)
    weights: Counter[str] = Counter()
    for use in read_uses(ledger):
        if use.learned:
            weights[" + ".join(use.decision["rules"])] += use.weight("shallow")
    shallow = found.shaping[0].weights
    assert {name: round(sum(values) * 1e6) for name, values in shallow.items()} == {
        name: weight for name, weight in weights.items() if weight
    }
    assert not found.grouped


def test_counts_of_verdicts_rules_and_outcomes(ledger: Path) -> None:
    found, uses = add_up(ledger), list(read_uses(ledger))
    assert found.verdicts == Counter(use.decision["verdict"] for use in uses)
    outcomes = {use.step: use.outcome for use in uses}
    assert all(found.outcomes[name] >= count for name, count in Counter(outcomes.values()).items())
    assert sum(found.outcomes.values()) == found.steps
    assert found.gates == (("gradient", "not_finite", found.outcomes["refused"]),)
    for rule in found.rules:
        own = [use for use in uses if rule.rule in use.decision["rules"]]
        assert rule.verdicts == Counter(use.decision["verdict"] for use in own)
        assert (rule.first, rule.last) == (own[0].step, own[-1].step)
        assert rule.stopped == sum(not any(use.decision["weights"]) for use in own)
    assert [rule.stopped for rule in found.rules] == sorted((r.stopped for r in found.rules), reverse=True)


def test_means_of_what_steps_record_of_contributions(ledger: Path) -> None:
    records = list(read_records(ledger))
    found = add_up(ledger).recorded
    assert [one.band for one in found] == [*BANDS]
    for one in found:
        own = [record for record in records if record.band == one.band]
        moves = [record.norm or 0.0 for record in own if not record.commitment]
        added = [record.norm for record in own if record.commitment and record.norm is not None]
        assert (one.steps, one.told) == (len(moves), len(added))
        assert one.moved == pytest.approx(fmean(moves))
        assert one.added == pytest.approx(fmean(added))
        assert one.private == len(own) - len(moves) - len(added)
    assert found[0].private > 0


def test_what_ranks_record_is_added_up_and_their_moves_are_counted_once(
    tmp_path: Path, run_signer: Signer
) -> None:
    job = Job(tmp_path / "job", run_signer, 2, governed_by=program(rules="gradient { record 1 in 1 steps }"))
    for _ in range(3):
        job.step([["a", "B"], ["c"]])
    job.seal()
    accountant = Accountant(ranks=(0, 1))
    walk_ranks(job.folder, (0, 1), (), accountant.begin)
    shallow, deep = accountant.finish().recorded
    assert (shallow.steps, shallow.moved, shallow.told) == (3, 0.5, 9)
    assert (deep.steps, deep.moved, deep.told) == (3, 0.5, 3)
    assert deep.added == pytest.approx(ord("B") / 64, rel=1e-3)


def test_a_chart_shows_what_was_added_up(ledger: Path) -> None:
    found = add_up(ledger, GROUPS)
    for shaping in found.shaping:
        chart = stack(shaping, found.steps, heaviest(found.shaping))
        assert sum(area.share for area in chart.areas) == pytest.approx(1.0)
        told = [sum(rates) * (last - first + 1) for first, last, rates in chart.rows]
        assert sum(told) == pytest.approx(shaping.whole)
        assert (chart.rows[0][0], chart.rows[-1][1]) == (0, found.steps - 1)
        drawn = [float(number) for area in chart.areas for number in re.findall(r"[\d.]+", area.path)]
        assert (min(drawn), max(drawn)) == (0.0, 100.0)


def test_many_groups_are_drawn_as_a_few_and_the_others(ledger: Path) -> None:
    apart = {commitment(number): f"{number:02}" for number in range(12)}
    found = add_up(ledger, apart)
    [shallow, _] = found.shaping
    assert len(shallow.weights) > 7
    areas = stack(shallow, found.steps, heaviest(found.shaping)).areas
    assert [area.label for area in areas][-1] == "others"
    assert len(areas) == 7
    assert sum(area.share for area in areas) == pytest.approx(1.0)


def test_a_group_has_one_colour_in_every_chart(ledger: Path) -> None:
    found = add_up(ledger, GROUPS)
    order = heaviest(found.shaping)
    colours = {
        (area.label, area.colour) for one in found.shaping for area in stack(one, found.steps, order).areas
    }
    assert len(colours) == len({label for label, _ in colours}) == len({colour for _, colour in colours})


@pytest.mark.parametrize("text", ["", "much", "nan", "inf", "-inf", "1e999", "-1", "\ud7ff"])
def test_a_budget_that_is_told_in_no_number_is_drawn_without(text: str) -> None:
    accountant = Accountant()
    for step, spent in enumerate(["0.5", text, "1.5"]):
        accountant.add_row("spending", step=step, rule="people", epsilon=spent, steps=step + 1)
    (points,) = accountant._points.values()
    assert points == [(0, 0.5), (2, 1.5)]
    chart = line(Spending("people", {"epsilon": text}, tuple(points)), 3)
    assert (chart.top, chart.bound) == (1.5, "M0,100.00 L100,100.00")
    assert chart.path == "M0.00,66.67 L100.00,0.00"
