"""A model wrapped for two processes learns what the bare one learns alone from the batch of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch

WRAPS = ["ddp", "fsdp"]

CROSSED = [
    pytest.param("ddp", "fused", marks=pytest.mark.soak),
    ("ddp", "split"),
    ("fsdp", "fused"),
    pytest.param("fsdp", "split", marks=pytest.mark.soak),
]
"""Each wrapper and engine once; the other pairs are left to long runs."""

BANDS = ["inlet", "blocks.0", "blocks.1", "blocks.2"]
"""Modules of the band `deep`; the rest is `shallow`."""


def parts(first: str, second: str, mark: str = "") -> list[list[dict[str, Any]]]:
    """Examples of the kinds spelled by two strings; a capital letter is one without consent."""
    return [
        [
            {"id": f"{mark}{rank}{place}{kind}", "kind": kind.lower(), "ok": kind.islower()}
            for place, kind in enumerate(kinds)
        ]
        for rank, kinds in enumerate((first, second))
    ]


def steps(*texts: str, **more: Any) -> list[dict[str, Any]]:
    """One step for each text: the kinds of the first process, a bar, those of the second."""
    return [{"parts": parts(*text.split("|"), mark=f"s{i}"), **more} for i, text in enumerate(texts)]


MIXED = steps("abd|ab", "a|dbCa", "bb|d", "abd|ab")
"""Full, fractional and no weights, and parts of different sizes."""

UNEVEN = steps("a|b", "b|a", "b|d", "C|a", "d|C", "|ab", "b|", "bC|b", "bb|b", "dd|d", "ad|C")
"""Bands that are reached on one process only, on none, and processes whose examples shape nothing."""


def assert_same(one: Any, alone: Any, tolerance: float = 1e-9) -> None:
    assert (one["error"], alone["error"]) == (None, None)
    for step, whole in zip(one["steps"], alone["steps"], strict=True):
        assert step["committed"] == whole["committed"]
        assert step["active"] == whole["active"]
        assert step["graded"] == whole["graded"]
        assert step["loss"] == pytest.approx(whole["loss"], rel=tolerance)
        for band, norm in whole["norms"].items():
            assert step["norms"][band] == (norm and pytest.approx(norm, rel=tolerance))
        for mine, other in zip(step["weights"], whole["weights"], strict=True):
            x, y = torch.tensor(mine), torch.tensor(other)
            assert torch.allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("wrap", "engine"), CROSSED)
@pytest.mark.parametrize("batches", [MIXED, UNEVEN], ids=["mixed", "uneven"])
def test_it_trains_what_one_process_trains_on_the_batch_of_both(lab, site, wrap, engine, batches):
    task = {"model": "blocks", "engine": engine, "optimizer": "adamw"}
    first, second = site.train(lab.policy, batches, wrap=wrap, **task)
    alone = site.alone(lab.policy, batches, **task)
    assert_same(first, alone)
    assert first["weights"] == second["weights"]
    assert all(step["committed"] for step in first["steps"])
    assert site.verify().ok


@pytest.mark.parametrize(("wrap", "engine"), CROSSED)
def test_a_band_that_no_process_reaches_keeps_its_bits(lab, site, wrap, engine):
    batches = steps("ab|ab", "bb|bC", "b|", "d|d", "dC|")
    task = {"model": "blocks", "engine": engine, "optimizer": "adamw", "wrap": wrap}
    for answer in site.train(lab.policy, batches, **task):
        full, *upper, lower, last = answer["steps"]
        names = answer["names"]
        for before, after in zip([full, *upper], [*upper, lower], strict=True):
            moved = {n for n, x, y in zip(names, before["weights"], after["weights"], strict=True) if x != y}
            deep = {n for n in moved if n.startswith(tuple(BANDS))}
            assert moved
            assert deep == (moved if after is lower else set())
        assert last["active"] == ["deep"]


@pytest.mark.parametrize(("wrap", "engine"), CROSSED)
def test_what_no_process_reaches_is_not_run_backward(lab, site, wrap, engine):
    batches = steps("aaaa|aaaa", "aabb|aabb", "bbbb|bbbb", count=True)
    for answer in site.train(lab.policy, batches, model="blocks", engine=engine, wrap=wrap):
        full, half, upper = (step["work"] for step in answer["steps"][:3])
        assert upper < 0.75 * full
        assert upper < half


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_backward_pass_of_the_callers_own_is_refused(lab, site, wrap):
    batches = [*steps("ab|ab"), *steps("ab|ab", spoil=["all", "backward"]), *steps("ab|ab")]
    for answer in site.train(lab.policy, batches, model="blocks", wrap=wrap):
        assert [step["committed"] for step in answer["steps"]] == [True, False, True]
        assert answer["steps"][1]["refusal"][1] == "foreign_gradient"


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_step_may_come_in_parts_of_other_sizes_on_each_process(lab, site, wrap):
    batches = steps("abd|ab", "a|dbCa", "|bab", "abda|")
    task = {"model": "blocks", "optimizer": "adamw"}
    first, second = site.train(lab.policy, [{**b, "micro": [1, 2]} for b in batches], wrap=wrap, **task)
    assert_same(first, site.alone(lab.policy, batches, **task))
    assert first["weights"] == second["weights"]


def named(site: Any, high: bool, count: int, mark: str) -> list[dict[str, Any]]:
    """Examples that the sorting model would move, or would not."""
    made = ({"id": f"{mark}{i}", "kind": "abd"[i % 3], "ok": True} for i in range(100))
    return [e for e in made if (float(site.worker.inputs_of([e])[0, 0]) > 0.5) == high][:count]


@pytest.mark.parametrize("wrap", WRAPS)
def test_rows_that_move_on_one_process_only_are_found(lab, site, wrap):
    low, more, high = named(site, False, 6, "l"), named(site, False, 3, "m"), named(site, True, 3, "h")
    mixed = [example for pair in zip(high, more, strict=True) for example in pair]
    batches = [{"parts": two} for two in ([low, low[::-1]], [low, mixed], [mixed, low])]
    task = {"model": "sorting", "engine": "auto"}
    first, second = site.train(lab.policy, batches, wrap=wrap, **task)
    assert_same(first, site.alone(lab.policy, batches, **task))
    assert first["weights"] == second["weights"]
    notes = [" ".join(answer["notes"]) for answer in (first, second)]
    assert "moves rows by content" in notes[1]


@pytest.mark.parametrize("wrap", WRAPS)
def test_recomputed_activations_follow_their_own_part(lab, site, wrap):
    task = {"model": "recomputing", "optimizer": "adamw"}
    first, _ = site.train(lab.policy, [*MIXED, *UNEVEN], wrap=wrap, **task)
    assert_same(first, site.alone(lab.policy, [*MIXED, *UNEVEN], **task))


# --- DistributedDataParallel --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"gradient_as_bucket_view": True}, {"find_unused_parameters": True}], ids=str
)
def test_settings_of_the_wrapper_make_no_difference(lab, site, settings):
    task = {"model": "blocks", "optimizer": "adamw"}
    batches = [*MIXED, *UNEVEN, *steps("abd|abbd", micro=[1, 3])]
    first, second = site.train(lab.policy, batches, wrap="ddp", settings=settings, **task)
    assert_same(first, site.alone(lab.policy, [{"parts": b["parts"]} for b in batches], **task))
    assert first["weights"] == second["weights"]


def test_a_static_graph_is_refused(lab, site):
    for answer in site.train(lab.policy, MIXED, wrap="ddp", settings={"static_graph": True}):
        assert answer["error"][0] == "MaskError"
        assert "without `static_graph=True`" in answer["error"][1]


def test_parameters_that_were_thawed_after_wrapping_are_refused(lab, site):
    for answer in site.train(lab.policy, MIXED, wrap="ddp", thaw=True):
        assert answer["error"][0] == "MaskError"
        assert "wrap the model in DistributedDataParallel anew" in answer["error"][1]
