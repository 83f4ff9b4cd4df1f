"""Privacy rules on two processes: units clipped whole where they are, summed, noised once, paid for once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

RULES = """
depth all_d { when kind == d  reach shallow at 0.5 }
privacy quiet { when kind == d and has who  within shallow  epsilon 8  delta 1e-13  clip 0.3  unit who }
"""
"""A delta so small that the accountant goes by Rényi divergence alone, which is reckoned at once."""

WRAPS: dict[str, dict[str, Any]] = {
    "bare": {},
    "ddp": {"wrap": "ddp"},
    "fsdp": {"wrap": "fsdp"},
    "copies of pieces": {"wrap": "fsdp", "settings": {"mesh": [2, 1]}},
}

KEPT = ("model", "privacy", "drawn")
"""What also concerns the process that trains alone."""


def batches(*texts: str, **more: Any) -> list[dict[str, Any]]:
    """One step for each text: the examples of the first process, a bar, those of the second.

    An example is spelled by its kind, and a name where it is private: `a d:ann | b`.
    """
    return [
        {
            "parts": [
                [
                    {"id": f"s{step}{rank}{place}", "kind": word[0], "ok": True}
                    | ({"who": word[2:]} if word[1:] else {})
                    for place, word in enumerate(part.split())
                ]
                for rank, part in enumerate(text.split("|"))
            ],
            **more,
        }
        for step, text in enumerate(texts)
    ]


STEPS = batches(
    "a d:ann d:bob d:ann | b d:cid d",
    "d:ann | a",
    "a | d:bob d:bob",
    " | d:ann a",
    " | ",
    "d:ann | d:bob",
    "a b | b",
)
"""Units of several rows, processes without private examples, without any, and steps without either."""


def both(site: Any, text: str, steps: list[dict[str, Any]], **task: Any) -> tuple[Any, Any, Any]:
    first, second = site.train(text, steps, **task)
    alone = site.alone(text, steps, engine="split", **{key: task[key] for key in KEPT if key in task})
    return first, second, alone


def assert_same(first: Any, second: Any, alone: Any) -> None:
    assert (first["error"], second["error"], alone["error"]) == (None, None, None)
    assert first["weights"] == second["weights"]
    for one, whole in zip(first["steps"], alone["steps"], strict=True):
        assert one["committed"]
        assert whole["committed"]
        assert one["active"] == whole["active"]
        for mine, other in zip(one["weights"], whole["weights"], strict=True):
            x, y = (torch.tensor(values, dtype=torch.float64) for values in (mine, other))
            assert torch.allclose(x, y, rtol=1e-9, atol=1e-9)


def paid(site: Any, name: str = "pair") -> list[Any]:
    return [body["privacy"] for body in site.bodies("committed", name)]


@pytest.mark.parametrize(
    ("wrap", "clipping"),
    [
        ("ddp", "layer"),
        ("fsdp", "flat"),
        ("copies of pieces", "band"),
        pytest.param("bare", "flat", marks=pytest.mark.soak),
        pytest.param("fsdp", "layer", marks=pytest.mark.soak),
    ],
)
def test_without_noise_two_processes_train_what_one_trains_on_the_batch_of_both(lab, site, wrap, clipping):
    task = {"model": "few layers", "privacy": {"silent": True, "clipping": clipping}}
    assert_same(*both(site, lab.policy + RULES, STEPS, **WRAPS[wrap], **task))
    assert paid(site) == paid(site, "alone")
    assert [spending["quiet"]["steps"] for spending in paid(site)] == list(range(1, len(STEPS) + 1))
    assert [b["count"] for b in site.bodies("step")] == [b["count"] for b in site.bodies("step", "alone")]
    assert site.verify().ok


@pytest.mark.parametrize(
    ("wrap", "engine"),
    [
        ("fsdp", "fused"),
        pytest.param("ddp", "fused", marks=pytest.mark.soak),
        pytest.param("fsdp", "split", marks=pytest.mark.soak),
    ],
)
def test_units_that_layers_cannot_hand_over_are_differentiated_one_by_one(lab, site, engine, wrap):
    task = {"model": "few blocks", "engine": engine, "privacy": {"silent": True}}
    assert_same(*both(site, lab.policy + RULES, STEPS, wrap=wrap, **task))


@pytest.mark.parametrize("wrap", ["fsdp", pytest.param("ddp", marks=pytest.mark.soak)])
def test_a_step_may_come_in_parts_of_other_sizes_on_each_process(lab, site, wrap):
    steps = batches(
        "a b d:ann d:ann d:bob | b d:cid a b", " | a d:ann d:ann b", "a b | d:bob", " | ", micro=[2, 3]
    )
    task = {"model": "few layers", "privacy": {"silent": True}}
    first, second = site.train(lab.policy + RULES, steps, **WRAPS[wrap], **task)
    alone = site.alone(lab.policy + RULES, [{"parts": step["parts"]} for step in steps], **task)
    assert_same(first, second, alone)
    assert first["error"] is None


def test_a_step_that_one_process_cannot_let_through_is_refused_on_both_and_not_paid_for(lab, site):
    steps = batches("d:ann | a", "d:bob | b")
    steps[0]["spoil"] = [1, "nan"]
    task = {"model": "few layers", "privacy": {"silent": True}, "wrap": "ddp"}
    for answer in site.train(lab.policy + RULES, steps, **task):
        assert answer["error"] is None
        assert [step["committed"] for step in answer["steps"]] == [False, True]
    assert [spending["quiet"]["steps"] for spending in paid(site)] == [1]


# --- noise --------------------------------------------------------------------------------------------------

STEPS_OF_NOISE = 8


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        ("ddp", {"secure_noise": True, "noise_seed": None}),
        ("copies of pieces", {}),
        pytest.param("fsdp", {}, marks=pytest.mark.soak),
    ],
)
def test_every_number_is_noised_once(lab, site, wrap, options):
    """An empty step has nothing but noise: here its spread, and that no two processes draw the same."""
    steps = batches(*[" | "] * STEPS_OF_NOISE, grads=True)
    first, second = site.train(
        lab.policy + RULES, steps, model="few layers", privacy=options, optimizer="adamw", **WRAPS[wrap]
    )
    assert (first["error"], second["error"]) == (None, None)
    noise = torch.stack([flat(step["grads"]) for step in first["steps"]])
    assert torch.equal(noise, torch.stack([flat(step["grads"]) for step in second["steps"]]))
    sigma = 4.0 * 0.3 / 4.0
    size = noise.shape[1]
    halves = noise[:, : size // 2], noise[:, size - size // 2 :]
    for half in halves:
        count = half.numel()
        assert abs(float(half.std()) / sigma - 1.0) < 5 / (2 * count) ** 0.5
        assert abs(float(half.mean())) < 5 * sigma / count**0.5
    assert float(noise.std(dim=0).min()) > 0.01 * sigma
    assert noise.abs().flatten().unique().numel() == noise.numel()


def flat(gradients: list[Any]) -> torch.Tensor:
    return torch.cat([torch.tensor(values, dtype=torch.float64).flatten() for values in gradients])


# --- sampling and budgets -----------------------------------------------------------------------------------

WHO = [None, "ann", "bob", None, "ann", None, "cid", "dan", None, "bob"]


def test_both_draw_from_one_sampler_and_run_whole_units_of_each_draw(lab, site):
    task = {"model": "few layers", "privacy": {"silent": True}}
    task["drawn"] = {"who": WHO, "count": 8, "seeds": [2, 2]}
    first, second, alone = both(site, lab.policy + RULES, [], wrap="fsdp", **task)
    assert_same(first, second, alone)
    assert len(first["steps"]) == 8
    assert site.bodies("opened")[0]["privacy"][0]["on_trust"] == ""
    assert site.verify().ok


def test_a_budget_is_spent_once_by_both_and_kept_when_the_run_is_resumed(lab, site):
    steps = batches("a d:ann | b", "a | d:bob", "a d:ann | d:cid")
    small = lab.policy + RULES.replace("epsilon 8", "epsilon 2")  # three steps
    task = {"model": "few layers", "privacy": {"silent": True, "noise_seed": None}, "wrap": "fsdp"}
    site.train(small, steps[:2], end="leave", **task)
    first, second = site.train(small, steps[1:], **task)
    assert (first["error"], second["error"]) == (None, None)
    assert first["weights"] == second["weights"]
    assert [spending["quiet"]["steps"] for spending in paid(site)] == [1, 2, 3, 3]
    assert first["steps"][0]["local"] + second["steps"][0]["local"] == [[1.0, 1.0], [0.5, 0.0]]
    assert first["steps"][1]["local"] + second["steps"][1]["local"] == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert site.verify().ok


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_unit_that_is_on_two_processes_is_refused_before_anything_is_recorded(lab, site):
    steps = batches("d:ann | d:ann")
    first, second = site.train(lab.policy + RULES, steps, model="few layers", privacy={}, wrap="fsdp")
    assert first["error"][0] == "PrivacyError"
    assert "a privacy unit are on the ranks 0 and 1" in first["error"][1]
    assert second["error"][0] == "RankError"
    assert site.bodies("step") == []


def test_another_plan_on_one_process_is_refused(lab, site):
    for answer in site.train(lab.policy + RULES, STEPS[:1], privacy={"noise": [4.0, 5.0]}):
        assert answer["error"][0] == "MaskError"
        assert "rank 1 could not join the run: it has other privacy terms" in answer["error"][1]
