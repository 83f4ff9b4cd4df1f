"""A share that one rank records wrongly is located from three sums; two are never taken for one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.jobs.shares import PRIME, located, weighted, whole_batch

SHARES = st.lists(st.integers(0, 10_000), min_size=2, max_size=40)


def excess(told: list[int], recorded: list[int]) -> list[int]:
    one, other = whole_batch(told), whole_batch(recorded)
    pairs = zip((other.count, *other.sums), (one.count, *one.sums), strict=True)
    return [here - there for here, there in pairs]


@given(SHARES, st.data())
def test_one_liar_is_located(told: list[int], data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, len(told) - 1))
    recorded = list(told)
    recorded[rank] += data.draw(st.integers(-told[rank], 10_000).filter(bool))
    assert located(excess(told, recorded), len(told)) == rank


@given(SHARES, st.data())
def test_two_liars_are_never_taken_for_one(told: list[int], data: st.DataObject) -> None:
    recorded = list(told)
    for rank in data.draw(st.permutations(range(len(told))))[:2]:
        recorded[rank] += data.draw(st.integers(-told[rank], 10_000).filter(bool))
    assert located(excess(told, recorded), len(told)) is None


@given(SHARES)
def test_what_each_rank_adds_comes_to_the_sums_over_all(shares: list[int]) -> None:
    parts = [weighted(rank, count) for rank, count in enumerate(shares)]
    assert whole_batch(shares).sums == tuple(sum(column) % PRIME for column in zip(*parts, strict=True))
