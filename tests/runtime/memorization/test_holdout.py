"""Tokens that are held out: which ones, that repetition does not fill them in, and that the loop must ask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.memorization.holdout import CONTEXT, holdout_mask

WORD = 1 << 64

RULES = """
memorization goldfish { when kind == a  hold out 1 in 4 tokens }
memorization strict { when kind == a and not ok  hold out 1 in 2 tokens }
advisory memorization watched { when kind == b  hold out 1 in 2 tokens }
"""


def mixed(state: int) -> int:
    """splitmix64, as its authors wrote it, on unsigned words."""
    state = (state + 0x9E3779B97F4A7C15) % WORD
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % WORD
    state = (state ^ state >> 27) * 0x94D049BB133111EB % WORD
    return state ^ state >> 31


def kept(tokens: list[int], place: int, one_in: int, context: int, key: int) -> bool:
    """The definition, for one token."""
    state = (key * 0x9E3779B97F4A7C15 + context) % WORD
    for back in range(context, 0, -1):
        state = mixed(state ^ (tokens[place - back] + 1 if place >= back else 0))
    return place == 0 or (state % (1 << 63)) % one_in != 0


@given(
    st.lists(st.lists(st.integers(0, 60_000), min_size=6, max_size=6), min_size=1, max_size=3),
    st.integers(2, 5),
    st.integers(1, 8),
    st.integers(0, 2**40),
)
def test_the_mask_is_the_hash_of_what_comes_before(rows, one_in, context, key):
    mask = holdout_mask(torch.tensor(rows), one_in, context=context, key=key)
    assert mask.tolist() == [[kept(row, t, one_in, context, key) for t in range(6)] for row in rows]


@settings(max_examples=30)
@given(st.integers(0, 1_000), st.integers(0, 20), st.integers(0, 20))
def test_a_passage_that_comes_again_lacks_the_same_tokens(seed, before, after):
    generator = torch.Generator().manual_seed(seed)
    passage = torch.randint(0, 100, (CONTEXT + 20,), generator=generator)
    length = len(passage)
    rows = [
        torch.cat(
            [torch.randint(0, 100, (start,), generator=generator), passage, passage.new_zeros(20 - start)]
        )
        for start in (before, after)
    ]
    masks = holdout_mask(torch.stack(rows), 4)
    one, other = masks[0, before : before + length], masks[1, after : after + length]
    assert torch.equal(one[CONTEXT:], other[CONTEXT:])


def test_how_long_a_row_is_does_not_matter():
    tokens = words(3)
    assert torch.equal(holdout_mask(tokens, 3)[:, :5], holdout_mask(tokens[:, :5], 3))


@pytest.mark.parametrize("one_in", [2, 4, 16])
def test_about_one_token_in_so_many_is_held_out(one_in):
    tokens = torch.randint(0, 5_000, (64, 256), generator=torch.Generator().manual_seed(0))
    share = float((~holdout_mask(tokens, one_in)[:, 1:]).double().mean())
    assert share == pytest.approx(1 / one_in, rel=0.05)
    other = ~holdout_mask(tokens, one_in, key=1)
    both = float((other & ~holdout_mask(tokens, one_in))[:, 1:].double().mean())
    assert both == pytest.approx(1 / one_in**2, rel=0.25)  # keys are independent


@pytest.mark.parametrize(
    "call",
    [
        lambda: holdout_mask(torch.zeros(3, dtype=torch.long), 4),
        lambda: holdout_mask(torch.zeros(3, 4), 4),
        lambda: holdout_mask(torch.zeros(3, 4, dtype=torch.long), 1),
        lambda: holdout_mask(torch.zeros(3, 4, dtype=torch.long), 4, context=0),
    ],
)
def test_what_is_no_sequence_of_tokens_is_refused(call):
    with pytest.raises(MaskError):
        call()


def words(count: int) -> torch.Tensor:
    return torch.randint(0, 50, (count, 9), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [1, 4])
def test_a_step_holds_out_what_its_decisions_say(lab, size):
    text = lab.policy.replace("suppress no", "waive_me").replace(
        'waive_me { when not ok  because "no consent" }', ""
    )
    governor = lab.governor(text + RULES, holdout_key=7)
    tokens, masks = words(4), []
    with governor.step(lab.batch("abAd")) as proposal:
        for rows in proposal.micro_batches(size):
            masks.append(proposal.token_mask(tokens[rows]))
            proposal.backward(lab.losses(governor.model, lab.inputs(4)[rows]))
    assert proposal.committed
    mask = torch.cat(masks)
    assert not mask[0].all()
    assert not mask[2].all()
    assert torch.equal(mask[:1], holdout_mask(tokens[:1], 4, key=7))
    assert torch.equal(mask[2:3], holdout_mask(tokens[2:3], 2, key=7))  # the strictest rule decides
    assert mask[[1, 3]].all()  # advice holds out nothing
    governor.close()
    report = lab.verify()
    assert report.status == "OK"
    assert report.facts["rules"] == {
        "enforced": {"a": 2, "b": 1, "d": 1, "goldfish": 2, "strict": 1},
        "advisory": {"watched": 1},
        "waived": {},
    }
    recorded = [d for body in lab.bodies("decisions") for d in body["decisions"]]
    assert [["hold_out", "goldfish"]] in [d["obligations"] for d in recorded]
    assert "watched" in {name for d in recorded for name in d["advisory"]}


def test_a_loop_that_does_not_ask_is_refused_and_moves_nothing(lab, state_of, changes):
    governor = lab.governor(lab.policy + RULES)
    before = state_of(governor)
    proposal = lab.step(governor, lab.batch("ab"))
    assert proposal.refusal.reason == "tokens_not_held_out"
    assert not changes(before, state_of(governor))
    assert lab.step(governor, lab.batch("bd", "f")).committed  # nothing of theirs is held out


def test_a_ledger_that_leaves_an_obligation_out_is_found(lab):
    governor = lab.governor(lab.policy + RULES)
    with governor.step(lab.batch("ab")) as proposal:
        proposal.token_mask(words(2))
        proposal.backward(lab.losses(governor.model, lab.inputs(2)))
    governor.close()

    def forget(entries):
        for kind, body in entries:
            for decision in body["decisions"] if kind == "decisions" else ():
                decision["obligations"] = []

    assert {finding.code for finding in lab.forge(forget).findings} == {"wrong_decision"}


def test_a_mask_is_of_the_examples_at_hand(lab):
    governor = lab.governor(lab.policy + RULES)
    wanted = pytest.raises(MaskError, match="one row per example: 2, not 3")
    with wanted, governor.step(lab.batch("aa")) as proposal:
        proposal.token_mask(words(3))
