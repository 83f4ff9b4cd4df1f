"""What a report adds up is what a slow reading of the ledger gives."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.report import account
from gradwarden.runtime.report.account import UNNAMED, Account, Accountant, Spending
from gradwarden.runtime.report.chart import heaviest, line, stack
from tests.runtime.provenance.small_runs import BANDS, commitment, read_uses, write_run

GROUPS = {commitment(number): f"group {number % 3}" for number in range(10)}


def add_up(path: Path, groups: dict[bytes, str] | None = None) -> Account:
    accountant = Accountant(groups)
    verify_chain(path, (), lambda: accountant.accept)
    return accountant.finish()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, run_signer: Signer) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run.ledger", run_signer, seed=8)


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
