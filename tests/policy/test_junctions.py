"""Conditions that are joined, flattened and folded hold where their terms say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gradwarden.policy.checking.logic import conjunction, disjunction
from gradwarden.policy.evaluation.evaluate import Facts, holds
from gradwarden.policy.program import And, Condition, Constant, Flag, Not, Or

FLAGS = ("a", "b", "c")
LEAVES: st.SearchStrategy[Condition] = st.one_of(
    st.booleans().map(Constant), st.sampled_from(FLAGS).map(Flag), st.sampled_from(FLAGS).map(Flag).map(Not)
)
TERMS = st.lists(
    st.one_of(
        LEAVES,
        st.lists(LEAVES, min_size=2, max_size=3).map(lambda terms: conjunction(*terms)),
        st.lists(LEAVES, min_size=2, max_size=3).map(lambda terms: disjunction(*terms)),
    ),
    max_size=4,
)


def facts(true: frozenset[str]) -> Facts:
    return Facts({name: name in true for name in FLAGS}, {}, 0, 0, 0, 0, frozenset())


@given(TERMS, st.frozensets(st.sampled_from(FLAGS)))
def test_joined_conditions_hold_where_their_terms_say(terms: list[Condition], true: frozenset[str]) -> None:
    where = facts(true)
    assert holds(conjunction(*terms), where) == all(holds(term, where) for term in terms)
    assert holds(disjunction(*terms), where) == any(holds(term, where) for term in terms)


@given(TERMS)
def test_joined_conditions_are_flat_without_repeats_or_constants(terms: list[Condition]) -> None:
    for joined, form in ((conjunction(*terms), And), (disjunction(*terms), Or)):
        if isinstance(joined, form):
            assert len(joined.terms) >= 2
            assert len(set(joined.terms)) == len(joined.terms)
            assert not any(isinstance(term, (form, Constant)) for term in joined.terms)
