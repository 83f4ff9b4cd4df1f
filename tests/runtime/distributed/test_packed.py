"""Packed sequences on two processes: what one process learns from the same sequences, each in its own row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradwarden.runtime import Measuring

WAYS = ["bare", "ddp", "fsdp"]

KINDS = ("abdba|ab", "a|dbCa", "bb|d", "|ab", "abdC|")
"""Full, fractional and no weights; other numbers of rows on each process, and none."""

UPPER = ("bb|b", "b|", "dd|dC")
"""Bands that no process reaches, or one."""


def batch(*texts: str, mark: str = "s", **more: Any) -> list[dict[str, Any]]:
    """One step for each text: the kinds of the first process, a bar, those of the second."""
    return [
        {
            "parts": [
                [
                    {"id": f"{mark}{i}{rank}{place}", "kind": kind.lower(), "ok": kind.islower()}
                    for place, kind in enumerate(kinds)
                ]
                for rank, kinds in enumerate(text.split("|"))
            ],
            "rows": "packed",
            **more,
        }
        for i, text in enumerate(texts)
    ]


def padded(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"rows": "padded", "parts": step["parts"]} for step in steps]


def task_of(way: str, **more: Any) -> dict[str, Any]:
    wrap = {} if way == "bare" else {"wrap": way}
    return {"model": "reader", "optimizer": "adamw", **wrap, **more}


def assert_same(first: Any, second: Any, alone: Any) -> None:
    assert (first["error"], second["error"], alone["error"]) == (None, None, None)
    assert first["weights"] == second["weights"]
    for step, whole in zip(first["steps"], alone["steps"], strict=True):
        assert step["committed"], step["refusal"]
        assert step["graded"] == whole["graded"]
        for mine, other in zip(step["weights"], whole["weights"], strict=True):
            x, y = (torch.tensor(values, dtype=torch.float64) for values in (mine, other))
            assert torch.allclose(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["fused", "split"])
def test_it_learns_what_one_process_learns_from_sequences_in_rows_of_their_own(lab, site, way, engine):
    steps = batch(*KINDS, *UPPER)
    first, second = site.train(lab.policy, steps, **task_of(way, engine=engine))
    alone = site.alone(lab.policy, padded(steps), **task_of("bare", engine=engine))
    assert_same(first, second, alone)
    assert site.verify().ok


@pytest.mark.parametrize("way", ["bare", "fsdp"])
@pytest.mark.parametrize("engine", ["fused", "split"])
def test_it_is_measured_as_sequences_in_rows_of_their_own_are(lab, site, way, engine):
    steps = batch("abdba|ab", "|ab")
    policy = lab.policy + "signals { depth_share : number 0..1 default 0 }\n"
    policy += "advisory memorization deep { when depth_share > 0  refuse }\n"
    first, second = site.train(
        policy, steps, **task_of(way, engine=engine, options={"measuring": Measuring(every=1)})
    )
    alone = site.alone(policy, padded(steps), **task_of("bare", options={"measuring": Measuring(every=1)}))
    assert_same(first, second, alone)
    for one, other, whole in zip(first["steps"], second["steps"], alone["steps"], strict=True):
        assert one["measured"] == other["measured"]
        shares = one["measured"]["depth_share"]
        assert shares == pytest.approx(whole["measured"]["depth_share"], rel=1e-9)
        assert [0 < share < 1 for share in shares] == [weight == [1.0, 1.0] for weight in whole["local"]]


@pytest.mark.parametrize("way", WAYS)
def test_parts_are_packed_one_by_one_and_steps_need_not_be(lab, site, way):
    steps = batch("abd|ab", "abda|b", "ab|ab", "|bab", micro=[2, 2])
    steps[2]["rows"] = "padded"
    first, second = site.train(lab.policy, steps, **task_of(way))
    assert_same(first, second, site.alone(lab.policy, padded(steps), **task_of("bare")))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["fused", "split"])
def test_several_rows_of_each_example(lab, site, way, engine):
    steps = batch(*KINDS, *UPPER, rows="twice")
    task = task_of(way, engine=engine, model="blocks")
    first, second = site.train(lab.policy, steps, **task)
    alone = site.alone(lab.policy, steps, **task_of("bare", engine=engine, model="blocks"))
    assert_same(first, second, alone)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["fused", "split"])
def test_attention_across_sequences_is_refused_on_all_processes(lab, site, way, engine):
    steps = batch("abd|abb", spoil=["all", "crossing"])
    for answer in site.train(lab.policy, steps, **task_of(way, engine=engine)):
        assert answer["error"][0] == "MaskError"
        assert "packed together" in answer["error"][1]
    assert [body["reason"] for body in site.bodies("refused")] == ["interrupted"]


@pytest.mark.parametrize("way", WAYS)
def test_attention_across_sequences_of_one_process_later_refuses_the_step_on_all(lab, site, way):
    steps = [*batch("abd|abb"), *batch("abd|abb", mark="t", spoil=[1, "crossing"], bear=True)]
    steps += batch("ab|abd", mark="u")
    first, second = site.train(lab.policy, steps, **task_of(way))
    for answer in (first, second):
        assert [step["committed"] for step in answer["steps"]] == [True, False, True]
        assert answer["steps"][0]["weights"] == answer["steps"][1]["weights"]
    assert "packed together" in second["steps"][1]["raised"]
    if way == "fsdp":
        assert "packed together" in first["steps"][1]["raised"]
    assert first["weights"] == second["weights"]


def test_sequences_packed_on_one_process_only_are_refused_where_all_run_together(lab, site):
    steps = batch("abd|abb", spoil=[1, "unassigned"])
    for answer in site.train(lab.policy, steps, **task_of("fsdp")):
        assert answer["error"][0] == "MaskError"
        assert "those of others are not" in answer["error"][1]
