"""Two processes that train one model do what one process does with the batch of both."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch


def parts(first: str, second: str, mark: str = "") -> list[list[dict[str, Any]]]:
    """Examples of the kinds spelled by two strings; a capital letter is one without consent."""
    return [
        [
            {"id": f"{mark}{rank}{place}{kind}", "kind": kind.lower(), "ok": kind.islower()}
            for place, kind in enumerate(kinds)
        ]
        for rank, kinds in enumerate((first, second))
    ]


STEPS = [
    {"parts": parts("abd", "ab", "p")},
    {"parts": parts("a", "dbCa", "q")},
    {"parts": parts("bb", "d", "r")},
    {"parts": parts("abd", "ab", "p")},
]


WRAPS = [None, "ddp", "fsdp"]


def tensors(answer: Any) -> list[torch.Tensor]:
    return [torch.tensor(values, dtype=torch.float64) for values in answer["weights"]]


def assert_same_weights(one: Any, other: Any, tolerance: float) -> None:
    for x, y in zip(tensors(one), tensors(other), strict=True):
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance)


# --- the same as one process --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fused", "split"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_processes_train_what_one_trains_on_the_batch_of_both(lab, site, engine, optimizer):
    first, second = site.train(lab.policy, STEPS, engine=engine, optimizer=optimizer)
    alone = site.alone(lab.policy, STEPS, engine=engine, optimizer=optimizer)
    assert (first["error"], second["error"], alone["error"]) == (None, None, None)
    assert [step["committed"] for step in first["steps"]] == [True] * 4
    assert first["weights"] == second["weights"]
    assert_same_weights(first, alone, 1e-9)
    for one, other, whole in zip(first["steps"], second["steps"], alone["steps"], strict=True):
        assert one["active"] == other["active"] == whole["active"]
        assert one["graded"] == other["graded"] == whole["graded"]
        assert one["verdict"] == other["verdict"] == whole["verdict"]
        assert one["norms"] == other["norms"] == pytest.approx(whole["norms"], rel=1e-9)
        assert one["loss"] == other["loss"] == pytest.approx(whole["loss"], rel=1e-9)
        assert one["local"] + other["local"] == whole["local"]
    assert first["weights"] != [p.tolist() for p in site.worker.model_of(0).parameters()]


def test_a_band_starves_by_what_the_examples_of_both_weigh_in_it(lab, site):
    guard = "\nstarvation deep { below 0.5 after 1 step accept }\n"
    steps = [
        {"parts": parts("a", "b", "p")},
        {"parts": parts("a", "bb", "q")},
        {"parts": parts("b", "aaa", "r")},
    ]
    answers = site.train(lab.policy + guard, steps, wrap="ddp")
    assert [answer["error"] for answer in answers] == [None, None]
    assert [body["step"] for body in site.bodies("starved")] == [1]


@pytest.mark.parametrize("wrap", WRAPS)
def test_one_ledger_accounts_for_the_examples_of_both(lab, site, wrap):
    first, second = site.train(lab.policy, STEPS, wrap=wrap)
    site.alone(lab.policy, STEPS)
    report = site.verify()
    assert report.ok
    assert report.facts["committed"] == 4
    assert report.facts["decisions_replayed"] == 5 + 5 + 3 + 5
    (sealed,) = site.bodies("sealed")
    assert sealed["examples"] == 5 + 4 + 3 + 5
    assert first["exposures"] == second["exposures"]
    assert first["exposures"] == {
        n: 2 if n[0] == "p" else 0 if n == "q12C" else 1 for n in first["exposures"]
    }
    recorded = [{k: v for k, v in body.items() if k != "commitments"} for body in site.bodies("step")]
    alone = [{k: v for k, v in body.items() if k != "commitments"} for body in site.bodies("step", "alone")]
    assert recorded == alone


@pytest.mark.parametrize("wrap", WRAPS)
def test_accumulation_may_differ_between_processes(lab, site, wrap):
    steps = [{**step, "micro": [1, 2]} for step in STEPS]
    first, second = site.train(lab.policy, steps, wrap=wrap)
    assert first["weights"] == second["weights"]
    assert_same_weights(first, site.alone(lab.policy, STEPS), 1e-9)


def test_a_process_without_examples_takes_part(lab, site):
    steps = [{"parts": parts("ab", "")}, {"parts": parts("", "ba")}]
    first, second = site.train(lab.policy, steps)
    assert [step["committed"] for step in second["steps"]] == [True, True]
    assert first["weights"] == second["weights"]
    assert_same_weights(first, site.alone(lab.policy, steps), 1e-9)


# --- bands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fused", "split"])
@pytest.mark.parametrize("kinds", [("a", "b"), ("b", "d"), ("C", "a"), ("d", "C")])
def test_a_band_that_only_one_process_reaches_is_trained_on_both(lab, site, engine, kinds):
    steps = [{"parts": parts(*kinds)}]
    first, second = site.train(lab.policy, steps, engine=engine)
    assert first["steps"][0]["committed"]
    assert first["weights"] == second["weights"]
    assert_same_weights(first, site.alone(lab.policy, steps, engine=engine), 1e-9)


def test_a_band_that_nobody_reaches_keeps_its_bits(lab, site):
    steps = [{"parts": parts("a", "a")}, {"parts": parts("b", "bC", "q")}]
    first, second = site.train(lab.policy, steps, optimizer="adamw")
    for answer in (first, second):
        before, after = (step["weights"] for step in answer["steps"])
        assert answer["steps"][1]["active"] == ["shallow"]
        assert answer["steps"][1]["graded"] == [False, False, True, True, True, True]
        assert before[:2] == after[:2]
        assert all(x != y for x, y in zip(before[2:], after[2:], strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_maintained_bands_are_held_alike_on_both(lab, site, optimizer):
    policy = lab.policy + "maintain base { within deep  strength 0.5  drift at most 2% }\n"
    policy += "maintain late { within shallow  strength 1  from step 2 }\n"
    first, second = site.train(policy, STEPS, optimizer=optimizer)
    assert first["error"] is None
    assert first["weights"] == second["weights"]
    assert_same_weights(first, site.alone(policy, STEPS, optimizer=optimizer), 1e-9)
    assert site.bodies("maintained")[-1]["held"] == ["deep"]
    assert site.bodies("maintained")[-1] == site.bodies("maintained", "alone")[-1]
    assert [body["digest"] for body in site.bodies("anchored")][:1] == [
        body["digest"] for body in site.bodies("anchored", "alone")
    ][:1]
    assert site.verify().ok


def test_the_anchor_of_a_resumed_run_reaches_the_process_that_has_no_ledger(lab, site):
    policy = lab.policy + "maintain base { within deep  strength 2 }\n"
    for train in (site.train, site.alone):
        train(policy, STEPS[:1], end="leave")
    first, second = site.train(policy, STEPS[1:2], seeds=[1, 1])
    alone = site.alone(policy, STEPS[1:2], seeds=[1, 1])
    assert first["error"] is None
    assert first["weights"] == second["weights"]
    assert_same_weights(first, alone, 1e-9)
    assert len(site.bodies("anchored")) == 1
    assert site.verify().ok


def test_an_anchor_that_is_missing_on_one_process_is_an_error_on_both(lab, site):
    policy = lab.policy + "maintain base { within deep  strength 2 }\n"
    site.train(policy, STEPS[:1], end="leave")
    for path in (site.folder / "pair").glob("*.anchor-*"):
        path.unlink()
    for answer in site.train(policy, STEPS[1:2]):
        assert answer["error"][0] == "LedgerError"
        assert "cannot read the anchor" in answer["error"][1]


# --- refusals -----------------------------------------------------------------------------------------------

REFUSALS = {
    "nan": ("loss_not_finite", "rank 1: the loss of row 0 of the batch is not finite"),
    "foreign": ("foreign_gradient", "band `deep` has a gradient that no example may give"),
    "raise": ("interrupted", "rank 1: the step's block raised `QuarrelError`"),
}


def test_what_one_process_brings_is_rehearsed_for_both(lab, site):
    policy = lab.policy + "maintain base { within deep  rehearse d at least 20% }\n"
    steps = [{"parts": parts("a", "d")}, {"parts": parts("aa", "d")}, {"parts": parts("bd", "a")}]
    first, second = site.train(policy, steps, wrap="ddp")
    assert first["error"] is None
    assert first["weights"] == second["weights"]
    assert [body["reason"] for body in site.bodies("refused")] == ["rehearsal_short"]
    assert [body["step"] for body in site.bodies("committed")] == [0, 2]
    assert site.verify().ok


@pytest.mark.parametrize(("wrap", "how"), [*((wrap, "zero") for wrap in WRAPS), ("ddp", "drop")])
def test_gradients_that_one_process_drops_between_parts_refuse_the_step_on_both(lab, site, wrap, how):
    steps = [
        {"parts": parts("aa", "ab"), "micro": [1, 1]},
        {"parts": parts("ba", "aa"), "micro": [1, 1], "spoil": [1, how]},
        {"parts": parts("aa", "ab"), "micro": [1, 1]},
    ]
    for answer in site.train(lab.policy, steps, wrap=wrap):
        assert [step["committed"] for step in answer["steps"]] == [True, False, True]
        assert answer["steps"][1]["refusal"][1] == "no_gradient"
        assert "leave `zero_grad` out" in answer["steps"][1]["refusal"][2]
    assert site.verify().ok


@pytest.mark.parametrize("how", REFUSALS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_what_goes_wrong_on_one_process_refuses_the_step_on_both(lab, site, how, wrap):
    reason, detail = REFUSALS[how]
    steps = [
        {"parts": parts("ab", "a")},
        {"parts": parts("b", "b"), "spoil": [1, how]},
        {"parts": parts("a", "d")},
    ]
    answers = site.train(lab.policy, steps, wrap=wrap)
    for answer in answers:
        assert answer["error"] is None
        good, bad, after = answer["steps"]
        assert (bad["committed"], bad["verdict"], bad["active"]) == (False, "refuse", [])
        assert bad["refusal"] == ["gradient", reason, detail]
        assert bad["weights"] == good["weights"]
        assert not any(bad["graded"])
        assert after["committed"]
    assert answers[0]["weights"] == answers[1]["weights"]
    assert [answer["steps"][1]["raised"] for answer in answers] == [
        None,
        "QuarrelError" if how == "raise" else None,
    ]
    (refused,) = site.bodies("refused")
    assert (refused["step"], refused["reason"], refused["detail"]) == (1, reason, detail)
    assert site.verify().ok


@pytest.mark.parametrize("wrap", WRAPS)
def test_where_the_ledger_cannot_be_written_no_process_moves(lab, site, wrap):
    steps = [{"parts": parts("ab", "a")}, {"parts": parts("a", "b"), "spoil": [0, "disk"]}]
    for answer in site.train(lab.policy, steps, wrap=wrap):
        assert answer["error"][0] == "LedgerError"
        assert "No space left" in answer["error"][1]
        assert answer["weights"] == answer["steps"][0]["weights"]


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_step_that_nothing_of_any_process_may_shape_is_refused_on_both(lab, site, wrap):
    answers = site.train(lab.policy, [{"parts": parts("C", "cC")}], wrap=wrap)
    for answer in answers:
        assert answer["steps"][0]["refusal"][1:] == [
            "nothing_admitted",
            "no example of the batch may shape any band",
        ]
    assert site.verify().ok


def test_what_is_no_batch_on_one_process_is_an_error_on_both(lab, site):
    first, second = site.train(lab.policy, [{"parts": [parts("a", "")[0], ["nobody"]]}])
    assert first["error"][0] == "RankError"
    assert "rank 1 could not begin step 0 of epoch 0: the example `nobody` is not known" in first["error"][1]
    assert second["error"][0] == "ExampleError"
    assert site.bodies("step") == []


def test_an_id_with_different_metadata_on_two_processes_is_an_error_on_both(lab, site):
    one, other = {"id": "x", "kind": "a", "ok": True}, {"id": "x", "kind": "b", "ok": True}
    answers = site.train(lab.policy, [{"parts": [[one], [other]]}])
    for answer in answers:
        assert answer["error"][0] == "ExampleError"
        assert "`x` comes with other metadata" in answer["error"][1]


# --- exposures and signals ----------------------------------------------------------------------------------

ONCE = "retain once { when kind == a  at most 1 exposures }\n"


def test_an_id_on_both_processes_is_let_through_once_under_at_most_one_exposure(lab, site):
    same = [{"id": "x", "kind": "a", "ok": True}]
    first, second = site.train(lab.policy + ONCE, [{"parts": [same, same]}])
    assert (first["steps"][0]["local"], second["steps"][0]["local"]) == ([[1.0, 1.0]], [[0.0, 0.0]])
    assert site.verify().ok


def test_exposures_outlast_a_resumption_whichever_process_saw_them(lab, site):
    steps = [{"parts": parts("a", "a")}]
    site.train(lab.policy + ONCE, steps, end="leave")
    swapped = [{"parts": [*reversed(parts("ab", "ab"))]}]
    first, second = site.train(lab.policy + ONCE, swapped)
    for answer in (first, second):
        assert answer["steps"][0]["local"] == [[0.0, 0.0], [0.5, 0.0]]
    report = site.verify()
    assert report.ok
    assert report.facts["committed"] == 2


SHARDED = {"wrap": "fsdp", "model": "blocks"}


@pytest.mark.parametrize(
    "task", [{}, SHARDED, {**SHARDED, "engine": "split"}], ids=["bare", "fsdp", "fsdp split"]
)
def test_losses_are_remembered_on_every_process(lab, site, task):
    measured = ("loss_gap", "loss_fall", "gradient_norm", "depth_share", "copies")
    guard = "signals { loss_ratio : number 0..10 default 1\n"
    guard += "\n".join(f"{name} : number -10..10 default 0" for name in measured) + "}\n"
    guard += "memorization g { when loss_ratio < 0.9  cap deep at 0 }\n"
    steps = [{"parts": parts("ab", "ab")} for _ in range(4)]
    steps += [{"parts": [*reversed(step["parts"])]} for step in steps]
    first, second = site.train(lab.policy + guard, steps, **task)
    alone = site.alone(lab.policy + guard, steps, **{k: v for k, v in task.items() if k != "wrap"})
    for one, other, whole in zip(first["steps"], second["steps"], alone["steps"], strict=True):
        assert one["ratios"] == other["ratios"] == pytest.approx(whole["ratios"], rel=1e-9)
        assert one["measured"] == other["measured"]
        for name in measured:
            assert one["measured"][name] == pytest.approx(whole["measured"][name], rel=1e-9)
    for name in {*measured} - {"gradient_norm"}:  # the guard may close `deep` in the last step
        assert any(any(step["measured"][name]) for step in first["steps"])
    assert [0.0, 1.0] not in first["steps"][-1]["local"]
    assert first["steps"][-1]["ratios"] != first["steps"][0]["ratios"]
    assert site.verify().ok


def test_signals_of_each_process_belong_to_its_own_examples(lab, site):
    rules = "signals { calm : number 0..1 default 0 }\nmodulate m { scale deep by calm from 1 to 0.5 }\n"
    steps = [{"parts": parts("aa", "a"), "signals": [{"calm": [0.0, 1.0]}, {"calm": 0.5}]}]
    first, second = site.train(lab.policy + rules, steps)
    assert first["steps"][0]["local"] == [[1.0, 1.0], [1.0, 0.5]]
    assert second["steps"][0]["local"] == [[1.0, 0.75]]
    assert site.verify().ok


@pytest.mark.parametrize("signals", [[{"calm": [1.0]}, {"calm": [1.0, 1.0]}], [{"calm": 1.0}, {}]])
def test_signals_that_do_not_fit_are_an_error_on_both(lab, site, signals):
    rules = "signals { calm : number 0..1 default 0 }\nmodulate m { scale deep by calm from 1 to 0.5 }\n"
    steps = [{"parts": parts("aa", "a"), "signals": signals}]
    for answer in site.train(lab.policy + rules, steps):
        assert "the signal `calm`" in answer["error"][1]


# --- joining, leaving, losing each other --------------------------------------------------------------------


def test_different_initial_weights_are_refused_on_both(lab, site):
    for answer in site.train(lab.policy, STEPS, seeds=[0, 1]):
        assert answer["error"][0] == "MaskError"
        assert "rank 1 could not join the run: it has other weights than rank 0" in answer["error"][1]
    assert not (site.folder / "pair" / "run.ledger").read_bytes()


def test_a_process_that_ends_early_is_an_error_on_both_and_nothing_is_sealed(lab, site):
    site.pair.pipes[0].send(site._task("pair", lab.policy, STEPS[:1], {}))
    site.pair.pipes[1].send(site._task("pair", lab.policy, STEPS[:2], {}))
    for answer in site.pair.answers():
        assert answer["error"][0] == "RankError"
        assert "rank 0 would close the run, rank 1 would begin step 1" in answer["error"][1]
    assert site.verify().status == "INCOMPLETE"


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_checkpoint_is_saved_once_and_known_to_all(lab, site, wrap):
    first, second = site.train(lab.policy, STEPS, checkpoint="weights.safetensors", wrap=wrap)
    (saved,) = site.bodies("checkpoint")
    assert saved["digest"] == first["digest"] == second["digest"]
    assert (site.folder / "pair" / "weights.safetensors").exists()


def test_a_process_that_dies_is_an_error_on_the_other_and_the_run_can_be_resumed(lab, site):
    steps = [{"parts": parts("ab", "a")}, {"parts": parts("a", "b"), "spoil": [1, "die"]}]
    survivor, dead = site.train(lab.policy, steps)
    assert dead is None
    assert survivor["error"][0] == "RankError"
    assert "rank 0 lost the other ranks when it would leave step 1" in survivor["error"][1]
    assert survivor["weights"] == survivor["steps"][0]["weights"]
    assert [body["reason"] for body in site.bodies("refused")] == ["ranks_lost"]
    assert site.verify().status == "INCOMPLETE"
    site.pair.stop()
    resumed = site.worker.train(site._task("pair", lab.policy, [{"parts": [parts("ab", "")[0]]}], {}))
    assert resumed["error"] is None
    report = site.verify()
    assert report.ok
    assert (report.facts["committed"], report.facts["refused"]) == (2, 1)
    assert json.dumps(resumed["exposures"]) == json.dumps({"00a": 2, "01b": 2})


# --- what is recorded of contributions ----------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPS)
def test_what_the_examples_of_all_processes_add_is_recorded_as_by_one(lab, site, wrap):
    policy = lab.policy + "gradient { record 1 in 1 steps }\n"
    task = {"optimizer": "adamw", "model": "blocks"}
    first, _ = site.train(policy, STEPS, wrap=wrap, **task)
    assert first["error"] is None
    site.alone(policy, STEPS, **task)
    for kind in ("contributed", "moved"):
        found, wanted = site.bodies(kind), site.bodies(kind, "alone")
        assert len(found) == len(wanted) == len(STEPS)
        for one, other in zip(found, wanted, strict=True):
            assert one["step"] == other["step"]
            for band, norms in other["norms"].items():
                assert floats(one["norms"][band]) == pytest.approx(floats(norms), rel=1e-3)
    assert site.verify().ok


def floats(norms: Any) -> list[float]:
    return [float(norm) for norm in ([norms] if isinstance(norms, str) else norms)]
