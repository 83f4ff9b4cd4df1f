"""The conditions of the privacy claim: what breaks them is refused, or is on record as taken on trust."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from typing import Any

import numpy as np
import pytest

from gradwarden.runtime import Privacy
from gradwarden.runtime.errors import LedgerError, PrivacyError
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules
from gradwarden.runtime.privacy.draws import DrawWatch
from gradwarden.runtime.privacy.sampling import MixedBatch, MixedSampler, PoissonSampler, group_rows

RATE = 0.5
PRIVATE = """
depth all_d { when kind == d  reach shallow at 0.5 }
privacy quiet { when kind == d and has who  within shallow  epsilon 4  delta 1e-5  clip 0.3  unit who }
"""


COPIES = "signals { copies : integer 0..100 default 0 }\n"


@pytest.fixture
def text(lab) -> str:
    return lab.policy + PRIVATE


def open_run(lab, text: str, **options: Any) -> Any:
    """A governor for a text; `options` are its own and those of `Privacy`."""
    plan = JointPlan.for_noise(privacy_rules(lab.program(text)), RATE, 4.0)
    trusted = [] if "sampler" in options else ["sampling"]
    private = {field.name: options.pop(field.name) for field in fields(Privacy) if field.name in options}
    privacy = Privacy(plan, **{"noise_seed": 1, "on_trust": trusted, **private})
    return lab.governor(text, privacy=privacy, normaliser=4.0, **options)


# --- decisions that depend on draws -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "by"),
    [
        ("retain few { when ok  at most 3 exposures }", "exposures"),
        ("retain few { when kind == d  at most 3 exposures }", "exposures"),
        ("depth late { when exposures >= 2 reach all }", "exposures"),
        ("assert seldom { at most 0.5 in shallow when exposures >= 3 }", "exposures"),
        (COPIES + "suppress many { when copies >= 2 and kind == a }", "copies"),
        (COPIES + "modulate less { when kind == a  scale shallow by copies from 1 to 0 }", "copies"),
    ],
)
def test_a_policy_whose_decisions_depend_on_draws_is_refused_unless_it_is_answered_for(lab, text, rule, by):
    with pytest.raises(PrivacyError, match=f"may decide by `?{by}`?, which depends on the steps"):
        open_run(lab, text + rule, name="refused")
    governor = open_run(lab, text + rule, on_trust=["exposures", "sampling"])
    governor.close()
    assert lab.bodies("opened")[0]["privacy"][0]["on_trust"] == "exposures sampling"
    assert lab.verify().ok
    assert lab.verify().facts["on_trust"] == ["exposures", "sampling"]


@pytest.mark.parametrize(
    "rule",
    [
        "retain few { when kind == a  at most 3 exposures }",
        "retain few { when kind == d and not has who  at most 3 exposures }",
        "advisory retain few { when ok  at most 3 exposures }",
        "suppress few { when exposures >= 3  cap deep at 0 }",
        "signals { loss_ratio : number 0..10 default 1 }\nmemorization m { when loss_ratio < 0.5  refuse }",
    ],
)
def test_a_policy_that_counts_public_examples_or_the_clock_is_not_refused(lab, text, rule):
    open_run(lab, text + rule).close()
    assert lab.bodies("opened")[0]["privacy"][0]["on_trust"] == "sampling"


@pytest.mark.parametrize(
    ("rule", "trusted"),
    [
        ("retain few { when ok  at most 3 epochs }", "epochs sampling"),
        ("suppress late { when epoch >= 2 and kind == d }", "epochs sampling"),
        ("retain few { when kind == a  at most 3 epochs }", "sampling"),
    ],
)
def test_that_epochs_do_not_depend_on_draws_is_on_record_where_private_examples_are_decided_by_them(
    lab, text, rule, trusted
):
    open_run(lab, text + rule).close()
    assert lab.bodies("opened")[0]["privacy"][0]["on_trust"] == trusted
    assert lab.verify().facts["on_trust"] == trusted.split()


@pytest.mark.parametrize("withholds", [True, False])
def test_verify_says_whether_the_ledger_itself_tells_of_private_examples(lab, text, withholds):
    open_run(lab, text, withhold=withholds).close()
    report = lab.verify()
    assert report.facts["private_recorded"] is not withholds


def test_a_change_to_a_policy_that_breaks_the_claim_is_refused(lab, text):
    model = lab.model()
    governor = open_run(lab, text, model=model)
    with pytest.raises(PrivacyError, match="exposures"):
        governor.change_policy(lab.program(text + "retain few { when ok  at most 3 exposures }", model))


def test_a_change_to_a_policy_that_decides_by_epochs_is_refused_where_the_opening_does_not_say_so(lab, text):
    model = lab.model()
    governor = open_run(lab, text, model=model)
    with pytest.raises(PrivacyError, match="by the epoch"):
        governor.change_policy(lab.program(text + "retain few { when ok  at most 3 epochs }", model))


@pytest.mark.parametrize(
    "rule",
    [
        "suppress odd_ones { when odd > 0.5 }",
        "let strange = odd > 0.5\ndepth odd_ones { when not strange and kind == c  reach deep }",
        "modulate steady { when kind == a  scale shallow by odd from 1 to 0.5 }",
        "memorization known { when odd > 0.5 and kind == a  refuse }",
    ],
)
def test_signals_that_the_caller_gives_are_refused_unless_answered_for(lab, text, rule):
    guarded = text + "signals { odd : number 0..1 default 0 }\n" + rule
    governor = open_run(lab, guarded, name="refused")
    with pytest.raises(PrivacyError, match="`odd` is given by the caller"):
        governor.step(lab.batch("a"), signals={"odd": 0.1}).__enter__()
    governor = open_run(lab, guarded, on_trust=["signals", "sampling"])
    assert lab.step(governor, lab.batch("a"), signals={"odd": 0.1}).committed
    governor.close()
    assert lab.bodies("opened")[0]["privacy"][0]["on_trust"] == "sampling signals"


def test_nothing_else_can_be_taken_on_trust(lab, text):
    with pytest.raises(PrivacyError, match="`noise` cannot be taken on trust"):
        open_run(lab, text, on_trust=["noise"])


# --- sampling -----------------------------------------------------------------------------------------------

WHO = [None, "ann", None, "bob", "ann", None, "cid"]
DATASET = [
    (f"e{row}", {"kind": "a", "ok": True} if who is None else {"kind": "d", "ok": True, "who": who})
    for row, who in enumerate(WHO)
]
PUBLIC = [row for row, who in enumerate(WHO) if who is None]
COVERED = np.array([row for row, who in enumerate(WHO) if who is not None])


def sampler_of(rate: float = RATE, public: list[int] = PUBLIC) -> MixedSampler:
    units = group_rows([WHO[row] for row in COVERED], COVERED)
    return MixedSampler(public, units, batch_size=2, rate=rate, seed=3)


def batches(sampler: MixedSampler) -> Iterator[MixedBatch]:
    while True:
        yield from sampler


def take(lab, governor, rows: Any) -> Any:
    return lab.step(governor, [DATASET[row][0] for row in rows])


def test_steps_of_the_samplers_draws_are_taken_and_sampling_is_not_on_trust(lab, text):
    sampler = sampler_of()
    governor = open_run(lab, text, sampler=sampler, dataset=DATASET)
    ahead = batches(sampler)
    for _ in range(2):
        drawn = [next(ahead), next(ahead)]  # a loader that draws ahead
        assert all(take(lab, governor, batch.rows).committed for batch in drawn)
    governor.close()
    assert lab.bodies("opened")[0]["privacy"][0]["on_trust"] == ""
    assert lab.verify().ok


def test_a_run_without_a_sampler_is_refused_unless_answered_for(lab, text):
    with pytest.raises(PrivacyError, match="drawn by Poisson sampling"):
        open_run(lab, text, on_trust=[])
    open_run(lab, text, on_trust=["sampling"], name="trusted").close()
    assert lab.bodies("opened", "trusted")[0]["privacy"][0]["on_trust"] == "sampling"


def test_private_examples_that_were_not_drawn_or_left_out_are_refused(lab, text):
    for name, change in (("more", lambda rows: [*rows, 1, 4]), ("fewer", lambda rows: rows[:1])):
        sampler = sampler_of()
        governor = open_run(lab, text, sampler=sampler, dataset=DATASET, name=name)
        drawn = next(batch for batch in batches(sampler) if take_none(governor, batch))
        rows = change([*drawn.public, *drawn.private])
        with pytest.raises(PrivacyError, match="not those that the sampler drew"):
            take(lab, governor, rows)


def test_a_rank_is_held_to_its_own_part_of_each_draw(lab, text):
    """Whole units, dealt in turn; both ranks see that they have drawn the same."""
    plan = JointPlan.for_noise(privacy_rules(lab.program(text)), RATE, 4.0)
    units = {row: WHO[row] for row in COVERED.tolist()}
    samplers = [sampler_of(), sampler_of()]
    watches = [DrawWatch(s, plan, len(WHO), units, (rank, 2)) for rank, s in enumerate(samplers)]
    shared = 0
    for one, other in zip(*(islice(batches(sampler), 12) for sampler in samplers), strict=True):
        mine, theirs = (sampler_of().private.part(one.private, rank, 2) for rank in (0, 1))
        watches[0].check(mine, np.ones(len(mine), bool))
        if len(one.private):  # the other rank may not take all of a draw, nor what is the first one's
            shared += len(mine) > 0 and len(theirs) > 0
            with pytest.raises(PrivacyError, match="not those that the sampler drew"):
                watches[1].check(other.private, np.ones(len(other.private), bool))
        else:
            watches[1].check(theirs, np.ones(0, bool))
        assert watches[0].mark == watches[1].mark
    assert shared


def take_none(governor: Any, batch: MixedBatch) -> bool:
    """Whether a draw is of use here: something was drawn, and not ann. Others are forgotten."""
    useful = len(batch.private) > 0 and 1 not in batch.private
    if not useful:
        governor.joined.draws.forget()
    return useful


def test_a_step_without_a_draw_is_refused(lab, text):
    governor = open_run(lab, text, sampler=sampler_of(), dataset=DATASET)
    with pytest.raises(PrivacyError, match="without a draw"):
        take(lab, governor, [0])


@pytest.mark.parametrize(
    ("sampler", "match"),
    [
        (sampler_of(rate=0.6), "accounted at 0.5"),
        (sampler_of(public=[*PUBLIC, 3]), "takes for public"),
        (PoissonSampler([[row] for row in COVERED], RATE, 1), "in several units"),
        (
            PoissonSampler(group_rows(["ann", "bob"], np.array([1, 3])), RATE, 1),
            "leaves private examples out",
        ),
        (PoissonSampler([[1, 4], [3], [6], [99]], RATE, 1), "rows that the data set lacks"),
    ],
)
def test_a_sampler_that_does_not_fit_the_plan_or_the_units_is_refused(lab, text, sampler, match):
    with pytest.raises(PrivacyError, match=match):
        open_run(lab, text, sampler=sampler, dataset=DATASET)


def test_a_sampler_needs_a_data_set(lab, text):
    with pytest.raises(PrivacyError, match="rows are not known"):
        open_run(lab, text, sampler=sampler_of())


# --- what the ledger says -----------------------------------------------------------------------------------


def written(lab, private: list[list[int]], name: str) -> list[Any]:
    """The entries of a withholding run, but for what every run has of its own and what noise has touched."""
    secret = lab.folder / "one.secret"
    known = [DATASET[row] for row in PUBLIC + [row for rows in private for row in rows]]
    governor = open_run(lab, lab.policy + PRIVATE, withhold=True, name=name, dataset=known, secret=secret)
    for step, rows in enumerate(private):
        assert take(lab, governor, [PUBLIC[step % len(PUBLIC)], *rows]).committed
    governor.close()
    assert lab.verify(name).ok
    own = ("loss", "norms", "at", "run", "origin")
    return [
        (entry.kind, {key: value for key, value in entry.body.items() if key not in own})
        for entry in lab.entries(name)
        if entry.kind != "head"
    ]


def test_a_ledger_that_withholds_private_examples_is_the_same_whoever_was_drawn(lab):
    one = written(lab, [[1, 4], [], [6], [3]], "one")
    other = written(lab, [[], [3], [1, 3, 6], []], "other")
    assert one == other
    (opened, *_) = [body for kind, body in one if kind == "opened"]
    assert opened["privacy"][0]["records"] == "public"
    assert opened["dataset"]["count"] == len(PUBLIC)
    steps = [body for kind, body in one if kind == "step"]
    assert [body["count"] for body in steps] == [1] * 4
    assert one[-1][1]["examples"] == 4


def test_a_ledger_that_withholds_private_examples_tells_nothing_of_their_metadata(lab):
    """Not even that there is an example of some decision class."""
    found = []
    for name, ok in (("one", True), ("other", False)):
        known = [DATASET[0], ("x", {"kind": "d", "ok": ok, "who": "ann"})]
        secret = lab.folder / "one.secret"
        governor = open_run(lab, lab.policy + PRIVATE, withhold=True, name=name, dataset=known, secret=secret)
        assert lab.step(governor, [known[0][0], "x"]).committed
        governor.close()
        kinds = ("classes", "decisions", "step")
        found.append([(entry.kind, entry.body) for entry in lab.entries(name) if entry.kind in kinds])
    assert found[0] == found[1]


def test_a_withholding_run_goes_on_where_it_is_resumed(lab, text):
    options = {"withhold": True, "noise_seed": None}
    governor = open_run(lab, text, **options)
    take_new(lab, governor, [0, 1])
    governor.abandon()
    governor = open_run(lab, text, **options)
    take_new(lab, governor, [3, 0])
    governor.abandon()
    with pytest.raises(LedgerError, match="privacy plan"):
        open_run(lab, text, noise_seed=None)
    open_run(lab, text, **options).close()
    assert [body["count"] for body in lab.bodies("step")] == [1, 1]
    assert lab.verify().ok


def take_new(lab, governor, rows: list[int]) -> None:
    assert lab.step(governor, [DATASET[row] for row in rows]).committed


def test_a_decision_on_a_private_example_in_a_withholding_ledger_is_found(lab, text):
    governor = open_run(lab, text)
    take_new(lab, governor, [0, 1])
    governor.close()
    assert lab.verify().ok

    def change(entries):
        next(body for kind, body in entries if kind == "opened")["privacy"][0]["records"] = "public"

    (finding,) = lab.forge(change).findings
    assert (finding.code, "withholds private" in finding.message) == ("wrong_budget", True)
