"""A band with a pace is moved in one step of so many, and kept bit for bit between its turns."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gradwarden.runtime.rehearsal import RehearsalSampler
from gradwarden.runtime.verification.run_replay import RunReplay

PACED = "gradient { deep at most 1 in 3 steps }\n"
TURNS = [0, 3, 6]


def values(governor: Any, band: str = "deep") -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in governor.parameters[band]])


def moved(kept: list[Tensor]) -> list[int]:
    """The steps in which a band was moved, given its values before the first step and after each."""
    return [step for step, (before, after) in enumerate(pairwise(kept)) if not torch.equal(before, after)]


@pytest.mark.parametrize("engine", ["fused", "split"])
def test_a_language_model_is_moved_in_a_bands_turns_and_keeps_its_bits_between_them(lab, engine):
    torch.manual_seed(0)
    sizes = {"n_embd": 12, "n_head": 2, "n_layer": 3, "vocab_size": 30, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    governor = lab.governor(lab.policy + PACED, model, optimizer, engine=engine)
    deep, shallow = [values(governor)], [values(governor, "shallow")]
    averages = [torch.zeros_like(deep[0])]
    for step in range(8):
        tokens = torch.randint(30, (3, 8), generator=torch.Generator().manual_seed(step))
        with governor.step(lab.batch("aba", f"{step}.")) as proposal:
            logits = model(input_ids=tokens[:, :-1]).logits
            proposal.backward(
                torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").mean(1)
            )
        assert proposal.committed
        deep.append(values(governor))
        shallow.append(values(governor, "shallow"))
        averages.append(
            torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in governor.parameters["deep"]])
        )
    governor.close()
    assert moved(deep) == moved(averages) == TURNS
    assert moved(shallow) == list(range(8))
    assert [body["active"] for body in lab.bodies("committed")] == [
        ["shallow", "deep"] if step in TURNS else ["shallow"] for step in range(8)
    ]
    assert lab.verify().ok


def test_an_example_that_a_pace_alone_stops_waits(lab):
    governor = lab.governor(lab.policy + PACED)
    decisions = [lab.step(governor, lab.batch("adb")).decisions for _ in range(4)]
    assert [[d.verdict for d in step] for step in decisions] == [
        ["admit", "limit", "limit"],
        ["limit", "defer", "limit"],
        ["limit", "defer", "limit"],
        ["admit", "limit", "limit"],
    ]
    assert decisions[1][1].rules == ("d", "pace:deep")
    assert decisions[1][1].stage == "pace"


def test_turns_are_counted_over_refused_steps_and_a_resumed_run(lab):
    governor = lab.governor(lab.policy + PACED)
    for kinds in ("a", "c"):
        lab.step(governor, lab.batch(kinds, kinds))
    governor.ledger.close()
    resumed = lab.governor(lab.policy + PACED)
    assert [lab.step(resumed, lab.batch("a", "a")).active for _ in range(3)] == [
        ("shallow",),
        ("shallow", "deep"),
        ("shallow",),
    ]
    resumed.close()
    assert lab.verify().ok


def test_a_band_between_its_turns_owes_no_rehearsal_and_is_not_pulled(lab):
    rule = "maintain base { within deep  strength 0.5  drift at most 1%  rehearse d at least 20% }\n"
    governor = lab.governor(lab.policy + PACED + rule)
    kept = [values(governor)]
    for kinds in ("ad", "a", "aa"):
        assert lab.step(governor, lab.batch(kinds, kinds)).committed
        kept.append(values(governor))
    assert moved(kept) == [0]
    assert lab.step(governor, lab.batch("a", "a")).refusal.reason == "rehearsal_short"
    governor.close()
    assert lab.verify().ok


def test_samplers_that_are_made_between_turns_are_those_of_the_turns(lab):
    rule = "maintain base { within deep  rehearse d at least 20% }\n"
    governor = lab.governor(lab.policy + PACED + rule)
    examples = lab.batch("aaaabddd")

    def made() -> tuple[list[list[bool]], int]:
        sampler = RehearsalSampler.of(governor, examples, batch_size=4, seed=0)
        return governor.reach(examples).tolist(), sampler.per_batch

    found = [made()]
    for kinds in ("ad", "b"):
        assert lab.step(governor, lab.batch(kinds, kinds)).committed
        found.append(made())
    assert found[0][1] == 2
    assert found[0][0][-1] == [False, True]
    assert found == [found[0]] * 3


def test_steps_between_its_turns_are_no_drought(lab):
    governor = lab.governor(lab.policy + PACED + "starvation deep { after 2 steps accept }")
    for step in range(13):
        assert lab.step(governor, lab.batch("a" if step in (0, 1, 9) else "b", str(step))).committed
    governor.close()
    assert [body["step"] for body in lab.bodies("starved")] == [6]


def test_the_turns_of_many_steps_are_judged_together(lab, monkeypatch):
    governor = lab.governor(lab.policy + PACED)
    for _ in range(12):
        assert lab.step(governor, lab.batch("aab")).committed
    governor.close()
    judged, judge = [], RunReplay._accept_stretch

    def noted(*stretch: Any) -> bool:
        judged.append(judge(*stretch))
        return judged[-1]

    monkeypatch.setattr(RunReplay, "_accept_stretch", noted)
    assert lab.verify().ok
    assert any(judged)
    assert all(judged)


# --- what a ledger may not say ------------------------------------------------------------------------------


@pytest.fixture
def run(lab) -> Any:
    governor = lab.governor(lab.policy + PACED)
    for _ in range(4):
        lab.step(governor, lab.batch("aab"))
    governor.close()
    return lab


def a_move_between_turns(entries):
    [body for kind, body in entries if kind == "committed"][1]["active"] = ["shallow", "deep"]


def a_weight_between_turns(entries):
    next(d for _, body in entries for d in body.get("decisions", ()) if "pace:deep" in d["rules"])[
        "weights"
    ] = [
        1_000_000,
        1_000_000,
    ]


def the_decision_of_another_step(entries):
    steps = [body for kind, body in entries if kind == "step"]
    steps[1]["decision"] = steps[0]["decision"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (a_move_between_turns, "wrong_outcome"),
        (a_weight_between_turns, "wrong_decision"),
        (the_decision_of_another_step, "wrong_decision"),
    ],
)
def test_a_move_between_turns_is_found(run, change, code):
    report = run.forge(change)
    assert code in [finding.code for finding in report.findings]
