"""What holds of a model under `fully_shard` besides what holds of every wrapped one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

BLOCKS = {"model": "blocks", "wrap": "fsdp"}


def batch(*texts: str, **more: Any) -> list[dict[str, Any]]:
    """One step for each text: the kinds of the first process, a bar, those of the second."""
    return [
        {
            "parts": [
                [
                    {"id": f"s{i}{rank}{place}", "kind": kind.lower(), "ok": kind.islower()}
                    for place, kind in enumerate(kinds)
                ]
                for rank, kinds in enumerate(text.split("|"))
            ],
            **more,
        }
        for i, text in enumerate(texts)
    ]


KINDS = ("abd|ab", "a|dbCa", "b|bC", "|ab", "d|C")


def assert_close(one: Any, alone: Any, tolerance: float = 1e-9) -> None:
    assert (one["error"], alone["error"]) == (None, None)
    for mine, other in zip(one["weights"], alone["weights"], strict=True):
        x, y = torch.tensor(mine, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance)


# --- settings -----------------------------------------------------------------------------------------------

SETTINGS = [
    {"reshard_after_forward": False},
    pytest.param({"mesh": [2, 1]}, marks=pytest.mark.soak),
    {"mesh": [1, 2]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_make_no_difference(lab, site, settings):
    task = {"model": "blocks", "optimizer": "adamw"}
    first, second = site.train(lab.policy, batch(*KINDS), wrap="fsdp", settings=settings, **task)
    alone = site.alone(lab.policy, batch(*KINDS), **task)
    assert_close(first, alone)
    assert first["weights"] == second["weights"]
    for step, whole in zip(first["steps"], alone["steps"], strict=True):
        for band, norm in whole["norms"].items():
            assert step["norms"][band] == (norm and pytest.approx(norm, rel=1e-9))


@pytest.mark.parametrize("engine", ["fused", pytest.param("split", marks=pytest.mark.soak)])
def test_half_precision_differs_by_its_rounding(lab, site, engine):
    steps = batch("abd|ab", grads=True)
    task = {"engine": engine, "model": "float32"}
    first, _ = site.train(lab.policy, steps, wrap="fsdp", settings={"bf16": True}, **task)
    same = site.alone(lab.policy, steps, **{**task, "model": "bfloat16"})
    whole = site.alone(lab.policy, steps, engine=engine, model="blocks", name="whole")
    for got, half, exact in zip(*(a["steps"][0]["grads"] for a in (first, same, whole)), strict=True):
        g, h, e = (torch.tensor(values, dtype=torch.float64) for values in (got, half, exact))
        rounding = 2.0**-8 * float(e.abs().max())
        assert float((g - h).abs().max()) <= 8 * rounding
        assert float((g - e).abs().max()) <= 8 * rounding


def test_gradients_may_be_reduced_with_the_last_part_only(lab, site):
    steps = batch("abda|bbab", "bCab|daaa", micro=[2, 2])
    task = {"model": "blocks", "optimizer": "adamw"}
    first, second = site.train(lab.policy, [{**s, "sync": True} for s in steps], wrap="fsdp", **task)
    assert_close(first, site.alone(lab.policy, steps, **task))
    assert first["weights"] == second["weights"]


def test_a_step_whose_gradients_were_never_reduced_is_refused(lab, site):
    lost = batch("ab|ab", sync=False)
    for answer in site.train(lab.policy, lost, **BLOCKS):
        assert answer["error"][0] == "MaskError"
        assert "accumulated and not reduced" in answer["error"][1]
    assert [body["reason"] for body in site.bodies("refused")] == ["interrupted"]


def test_evaluations_between_steps_and_a_change_of_policy_make_no_difference(lab, site):
    other = lab.policy.replace("reach shallow at 0.5", "reach all at 0.75")
    steps = batch("abd|ab", "ab|dbCa", "bb|b", look=True)
    steps[1]["policy"] = other
    task = {"model": "blocks", "optimizer": "adamw"}
    first, second = site.train(lab.policy, steps, wrap="fsdp", **task)
    assert_close(first, site.alone(lab.policy, steps, **task))
    assert first["weights"] == second["weights"]
    assert site.verify().ok


def test_caps_are_on_the_norms_of_whole_gradients(lab, site):
    capped = lab.policy + "gradient { deep at most 0.5  shallow at most 0.25 }\n"
    task = {"model": "blocks", "options": {"clip_norm": 0.4}}
    first, _ = site.train(capped, batch(*KINDS), wrap="fsdp", **task)
    alone = site.alone(capped, batch(*KINDS), **task)
    assert_close(first, alone)
    assert first["steps"][0]["norms"] == pytest.approx(alone["steps"][0]["norms"])
    clipped = site.alone(lab.policy, batch(*KINDS), **task, name="clipped")["steps"][0]["norms"]
    free = site.alone(lab.policy, batch(*KINDS), **BLOCKS, name="free")["steps"][0]["norms"]
    assert alone["steps"][0]["norms"] != pytest.approx(clipped)
    assert clipped != pytest.approx(free)


# --- what is saved ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fused", pytest.param("split", marks=pytest.mark.soak)])
def test_blocks_that_no_process_reaches_are_neither_gathered_again_nor_reduced(lab, site, engine):
    steps = batch("ab|ab", "bb|b", "dd|C", spy=True)
    for answer in site.train(
        lab.policy, [*batch("ab|ab"), *steps], engine=engine, model="layers", wrap="fsdp"
    ):
        whole, upper, lower = (
            {kind.rpartition(".")[2]: n for kind, n in step["messages"].items()}
            for step in answer["steps"][1:]
        )
        assert whole["_reduce_scatter_base_"] == (6 if engine == "fused" else 6 + 3)
        assert upper["_reduce_scatter_base_"] == 3  # two blocks, and what is outside of blocks
        assert upper["_allgather_base_"] < whole["_allgather_base_"]
        assert lower["_reduce_scatter_base_"] == 4


# --- checkpoints --------------------------------------------------------------------------------------------


def test_a_checkpoint_is_the_file_that_the_bare_model_gives(lab, site):
    (first, second), alone = (
        site.train(lab.policy, [], checkpoint="w.safetensors", **BLOCKS),
        site.alone(lab.policy, [], checkpoint="w.safetensors", model="blocks"),
    )
    assert first["digest"] == second["digest"] == alone["digest"]


def test_a_run_goes_on_with_another_number_of_processes(lab, site):
    rule = "retain twice { when kind == a  at most 2 exposures }\n"
    again = batch("ab|ad")
    task = {"checkpoint": "w.safetensors", "end": "leave", "model": "blocks"}
    file, other = (str(site.folder / name / "w.safetensors") for name in ("pair", "alone"))

    site.train(lab.policy + rule, again, wrap="fsdp", **task)
    merged = [{"parts": [[e for part in again[0]["parts"] for e in part]]}]
    middle = site.worker.train(site._task("pair", lab.policy + rule, merged, {**task, "load": file}))
    first, second = site.train(lab.policy + rule, again, wrap="fsdp", load=file, **task | {"end": "close"})

    site.alone(lab.policy + rule, again, **task)
    for end in ("leave", "close"):
        alone = site.alone(lab.policy + rule, again, load=other, **{**task, "end": end})
    assert (middle["first"], first["first"], second["first"]) == (1, 2, 2)
    assert_close(first, alone)
    assert first["exposures"] == alone["exposures"]
    assert first["exposures"]["s000"] == 2
    report = site.verify()
    assert report.ok
    assert report.facts["committed"] == 3


# --- leaving a step -----------------------------------------------------------------------------------------


def test_a_process_that_does_not_run_the_model_is_told_so_and_the_others_go_free(lab, site):
    steps = batch("ab|ab", spoil=[1, "skip"])
    first, second = site.train(lab.policy, steps, ends=1, **BLOCKS)
    assert second["error"][0] == "RankError"
    assert "rank 1 leaves a step without running the model" in second["error"][1]
    assert first["error"][0] == "RankError"
    assert "rank 0 lost the other ranks" in first["error"][1]
    assert site.verify().status == "INCOMPLETE"


# --- refusals -----------------------------------------------------------------------------------------------

REFUSED = {
    "tp": "`head.weight` lies on the mesh `tp` as `S(0)`: with tensor or sequence parallelism",
    "fsdp+tp": "`head.weight` lies on the mesh `dp` x `tp`",
    "sp": "`blocks.0.norm.weight` lies on the mesh `sequence` as `R`",
    "blocks": "call `fully_shard(model)` on the whole model",
    "divided": "do not call `set_gradient_divide_factor`",
    "fsdp1": "use `torch.distributed.fsdp.fully_shard` (FSDP2)",
}


@pytest.mark.parametrize("split", REFUSED)
def test_other_ways_of_spreading_a_model_are_refused(lab, site, split):
    for answer in site.train(lab.policy, batch("ab|ab"), split=split, model="blocks"):
        assert answer["error"][0] == "MaskError"
        assert REFUSED[split] in answer["error"][1]
    assert not (site.folder / "pair" / "run.ledger").read_bytes()


def test_the_stages_of_a_pipeline_are_refused(lab, site):
    for answer in site.train(lab.policy, batch("ab|ab"), split="stages"):
        assert answer["error"][0] == "MaskError"
        assert "the stages of a pipeline cannot be governed" in answer["error"][1]


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_context_parallelism_is_refused(lab, site, wrap):
    for answer in site.train(lab.policy, batch("ab|ab", spoil=["all", "context"]), wrap=wrap, model="blocks"):
        assert answer["error"][0] == "MaskError"
        assert "context parallelism is in force" in answer["error"][1]


def test_maintained_bands_are_refused(lab, site):
    text = lab.policy + "maintain base { within deep  strength 0.5 }\n"
    for answer in site.train(text, batch("ab|ab"), **BLOCKS):
        assert answer["error"][0] == "MaskError"
        assert "`base` maintains bands, whose parameters are whole on no process" in answer["error"][1]


def test_detached_layers_are_refused(lab, site):
    text = lab.policy.replace("deep = rest", "deep = rest  semantics detach")
    for answer in site.train(text, batch("ab|ab"), **BLOCKS):
        assert answer["error"][0] == "MaskError"
        assert "layers of a sharded model cannot be detached" in answer["error"][1]


# --- one process --------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[Any]:
    """A group of this process by itself."""
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield distributed.group.WORLD
    distributed.destroy_process_group()


def test_a_loop_may_leave_a_step_of_one_process_once_a_loss_has_it_refused(lab, alone):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    governor = lab.governor(model=model, group=alone)

    def step(spoilt: float) -> Any:
        with governor.step(lab.batch("abab")) as proposal:
            for rows in proposal.micro_batches(2):
                proposal.backward(lab.losses(model, lab.inputs(4)[rows]) * spoilt)
                if proposal.refusal is not None:
                    break
        return proposal

    assert step(1.0).committed
    assert step(float("nan")).refusal.reason == "loss_not_finite"
    assert step(1.0).committed
