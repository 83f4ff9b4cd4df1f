"""Two processes of a job: each decides and records its own part, and the model is that of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradwarden.runtime import Governor, Job, Ledger
from gradwarden.runtime.errors import LedgerError
from gradwarden.runtime.jobs.binder import Binder
from gradwarden.runtime.jobs.layout import log_path, rank_path
from gradwarden.runtime.ledger.reader import read_entries
from gradwarden.runtime.verification.job_report import JobReport
from gradwarden.runtime.verification.job_verify import verify_job
from tests.runtime.distributed.test_data_parallel import STEPS, assert_same_weights, parts
from tests.runtime.distributed.test_sharded import KINDS, batch

EVERY = {"every": 2}
LIMITED = "\nretain few { when kind == a  at most 1 exposures }\n"


def folder(site: Any) -> Path:
    return site.folder / "pair" / "job"


def verified(site: Any) -> JobReport:
    return verify_job(folder(site), [site.signer.public])


def bodies(site: Any, rank: int, kind: str) -> list[dict[str, Any]]:
    path = rank_path(folder(site), rank)
    return [entry.body for entry in read_entries(path, allow_partial_tail=True) if entry.kind == kind]


def codes(report: JobReport) -> set[str]:
    return {finding.code for finding in report.findings}


@pytest.mark.parametrize(
    ("wrap", "normaliser"),
    [
        *((None, 8.0), ("ddp", None), ("fsdp", None)),
        *(pytest.param(wrap, 8.0, marks=pytest.mark.soak) for wrap in ("ddp", "fsdp")),
    ],
)
def test_two_ranks_train_what_one_process_trains_on_the_batch_of_both(lab, site, wrap, normaliser):
    options = {"normaliser": normaliser}
    steps = [*STEPS, {"parts": parts("ab", "", "s")}, {"parts": parts("C", "ab", "t")}]
    first, second = site.train(lab.policy, steps, wrap=wrap, job=EVERY, options=options)
    alone = site.alone(lab.policy, steps, options=options)
    assert (first["error"], second["error"], alone["error"]) == (None, None, None)
    assert first["weights"] == second["weights"]
    assert_same_weights(first, alone, 1e-9)
    for one, other, whole in zip(first["steps"], second["steps"], alone["steps"], strict=True):
        assert one["active"] == other["active"] == whole["active"]
        assert one["graded"] == other["graded"] == whole["graded"]
        assert one["norms"] == other["norms"] == pytest.approx(whole["norms"], rel=1e-9)
        assert one["local"] + other["local"] == whole["local"]
    report = verified(site)
    assert (report.status, report.findings) == ("OK", ())
    assert report.facts["decisions_replayed"] == sum(len(part) for step in steps for part in step["parts"])
    assert report.facts["bindings"] >= 1


def test_no_evidence_travels_between_the_ranks(lab, site):
    """A step costs one sum of numbers beside the gradients'; with one ledger for all, several gathers."""
    steps = [{"parts": parts("ab", "bd")}]
    for answer in site.train(lab.policy, steps, job=EVERY):
        assert answer["steps"][0]["calls"] == {"all_reduce": 2}  # of numbers, and of one bucket of gradients
    for answer in site.train(lab.policy, steps):
        assert answer["steps"][0]["calls"] == {"all_reduce": 1, "all_gather_object": 4}


def test_of_a_sharded_model_the_ranks_tell_each_other_weights_before_they_run_it(lab, site):
    """Once for the step, once for its parts. What else it has, it has with one ledger for all as well."""
    steps = [{"parts": parts("ab", "bd")}] * 2  # the model is tried in the first
    for answer in site.train(lab.policy, steps, job=EVERY, wrap="fsdp"):
        apart = answer["steps"][1]["calls"]
    for answer in site.train(lab.policy, steps, wrap="fsdp"):
        together = answer["steps"][1]["calls"]
    assert together.pop("all_gather_object") == 5
    assert apart.pop("all_gather") == 2
    assert apart == {"all_reduce": together["all_reduce"] + 1}


@pytest.mark.parametrize("engine", ["fused", pytest.param("split", marks=pytest.mark.soak)])
def test_a_sharded_model_is_trained_as_with_one_ledger_for_all(lab, site, engine):
    """With as many parts as the rank with most has, ranks without examples, and more weights than room."""
    varied = lab.policy + "".join(
        f'depth d{n} {{ when has who and who == "w{n}"  reach shallow at 0.{n} }}\n' for n in range(1, 8)
    )
    steps = batch(*KINDS, "dddddd|dddb", micro=[2, 3])
    steps[-1].pop("micro")
    for number, example in enumerate(e for part in steps[-1]["parts"] for e in part):
        example["who"] = f"w{number}"
    task = {"model": "blocks", "engine": engine, "wrap": "fsdp", "options": {"normaliser": 8.0}}
    found = [site.train(varied, steps, **task, **more) for more in ({"job": EVERY}, {})]
    (apart, other), (together, _) = found
    assert (apart["error"], together["error"]) == (None, None)
    assert apart["weights"] == other["weights"] == together["weights"]
    assert verified(site).ok


def test_a_band_starves_by_what_the_examples_of_all_ranks_weigh_in_it(lab, site):
    """Their mean, not that of the ranks' means: a rank without examples, or with few, counts for no more."""
    guard = "\nstarvation deep { below 0.5 after 1 step accept }\n"
    steps = [
        {"parts": parts(*kinds, str(place))}
        for place, kinds in enumerate([("a", "b"), ("a", "bb"), ("a", "")])
    ]
    answers = site.train(lab.policy + guard, steps, job=EVERY)
    assert [answer["error"] for answer in answers] == [None, None]
    for rank in (0, 1):
        assert [body["step"] for body in bodies(site, rank, "starved")] == [1]
    assert verified(site).ok


@pytest.mark.parametrize("wrap", [None, "ddp", "fsdp"])
@pytest.mark.parametrize(("how", "reason"), [("nan", "loss_not_finite"), ("raise", "interrupted")])
def test_what_goes_wrong_on_one_rank_refuses_the_step_on_both(lab, site, wrap, how, reason):
    steps = [{"parts": parts("ab", "a"), "spoil": [1, how]}, {"parts": parts("a", "b", "x")}]
    answers = site.train(lab.policy, steps, wrap=wrap, job=EVERY)
    assert [answer["error"] for answer in answers] == [None, None]
    assert [step["committed"] for answer in answers for step in answer["steps"]] == [False, True] * 2
    assert bodies(site, 1, "refused")[0]["reason"] == reason
    (other,) = bodies(site, 0, "refused")
    assert (other["reason"], other["detail"]) == ("other_rank", "rank 1 could not let the step through")
    assert verified(site).ok


def test_a_step_that_nothing_of_any_rank_may_shape_is_refused_on_both(lab, site):
    answers = site.train(lab.policy, [{"parts": parts("C", "A")}], job=EVERY)
    assert [a["steps"][0]["refusal"][1] for a in answers] == ["nothing_admitted"] * 2
    assert verified(site).ok


@pytest.mark.parametrize("wrap", [None, "fsdp"])
def test_where_one_ledger_cannot_be_written_no_rank_moves(lab, site, wrap):
    steps = [{"parts": parts("ab", "a")}, {"parts": parts("a", "b", "x"), "spoil": [1, "disk"]}]
    first, second = site.train(lab.policy, steps, job=EVERY, wrap=wrap)
    assert [first["error"][0], second["error"][0]] == ["RankError", "LedgerError"]
    if wrap is None:  # the pieces of a sharded model are gathered by all ranks or none
        assert first["weights"] == second["weights"] == first["steps"][0]["weights"]
    assert "rank 1 left step 1" in first["error"][1]
    assert verified(site).status == "INCOMPLETE"


@pytest.mark.parametrize("wrap", [None, "fsdp"])
def test_what_is_no_batch_on_one_rank_ends_the_run_on_both(lab, site, wrap):
    steps = [{"parts": [parts("a", "b")[0], [{"kind": "a"}]]}]
    first, second = site.train(lab.policy, steps, job=EVERY, wrap=wrap)
    assert "rank 1 left step 0" in first["error"][1]
    assert [first["error"][0], second["error"][0]] == ["RankError", "ExampleError"]


@pytest.mark.parametrize("options", [{}, {"wrap": "fsdp"}, {"job": EVERY}, {"job": EVERY, "wrap": "fsdp"}])
def test_earlier_weights_are_refused_on_all_ranks_where_a_run_is_resumed(lab, site, options):
    steps = [{"parts": parts("a", "b"), "save": "early.safetensors"}]
    site.train(lab.policy, steps, end="leave", **options)
    early = str(site.folder / "pair" / "early.safetensors")
    found = site.train(lab.policy, [{"parts": parts("b", "a", "x")}], load=early, **options)
    for told in found:
        assert told["error"][0] == "LedgerError"
        assert "saved before step 0 (`early.safetensors`)" in told["error"][1]
    found = site.train(lab.policy, [{"parts": parts("b", "a", "x")}], rewind="early.safetensors", **options)
    assert [told["error"] for told in found] == [None, None]


def test_a_job_that_was_left_is_resumed(lab, site):
    steps = [{"parts": parts("a", "b")}]
    site.train(lab.policy, steps, job=EVERY, end="leave")
    first, second = site.train(lab.policy, [{"parts": parts("b", "a", "x")}], job=EVERY)
    assert (first["error"], first["first"], second["first"]) == (None, 1, 1)
    assert verified(site).ok


@pytest.mark.soak  # a rank that is killed at a step's end is in `test_private_job`
@pytest.mark.parametrize("wrap", [None, "fsdp"])
def test_a_rank_that_is_killed_is_named_and_the_job_can_be_resumed(lab, site, pairs, wrap):
    steps = [
        *({"parts": parts("ab", "ab", f"s{number}")} for number in range(4)),
        {"parts": parts("a", "b", "last"), "spoil": [1, "die"]},
    ]
    first, second = site.train(lab.policy, steps, job=EVERY, wrap=wrap)
    assert second is None
    assert first["error"][0] == "RankError"
    report = verified(site)
    assert report.status == "INCOMPLETE"
    (killed,) = [finding for finding in report.findings if finding.code == "cut_off"]
    assert killed.ranks == (1,)
    assert {finding.ranks for finding in report.findings if finding.code == "unsealed_rank"} == {(0,)}
    site.pair.stop()
    site.pair = type(site.pair)(_fresh(site))
    pairs.append(site.pair)
    again, other = site.train(lab.policy, [{"parts": parts("b", "b", "more")}], job=EVERY, wrap=wrap)
    assert (again["error"], other["error"], again["first"], other["first"]) == (None, None, 5, 5)
    assert verified(site).ok


def _fresh(site: Any) -> Path:
    path: Path = site.folder / "fresh"
    path.mkdir()
    return path


def test_a_checkpoint_is_recorded_by_every_rank_and_bound(lab, site):
    site.train(lab.policy, STEPS[:1], job={"every": 1_000}, checkpoint="model.safetensors")
    saved = [bodies(site, rank, "checkpoint") for rank in (0, 1)]
    assert saved[0] == saved[1]
    assert len(saved[0]) == 1
    *bound, _end = [e.body["heads"] for e in read_entries(log_path(folder(site))) if e.kind == "bound"]
    assert [1, 1] in [[head["step"] for head in heads] for heads in bound]
    assert verified(site).ok


def test_policies_that_count_exposures_give_every_example_a_home(lab, site):
    policy = lab.policy + LIMITED
    homed = {"every": 2, "placement": "by_example"}
    whole = parts("a" * 24, "")[0]  # homes are drawn: one rank has none once in eight million runs
    _, second = site.train(policy, [{"parts": [[], []], "homed": whole}] * 2, job=homed)
    assert second["error"] is None
    report = verified(site)
    assert report.ok
    assert report.facts["exposures"] == len(whole)  # each once, though offered twice
    assert all(bodies(site, rank, "sealed")[0]["examples"] for rank in (0, 1))


def test_an_example_on_another_rank_than_its_home_is_refused(lab, site):
    homed = {"every": 2, "placement": "by_example"}
    whole = parts("aaaaaaaa", "")[0]
    answers = site.train(lab.policy, [{"parts": [whole, whole]}], job=homed)
    assert sorted(answer["error"][0] for answer in answers) in (
        ["ExampleError", "ExampleError"],
        ["ExampleError", "RankError"],
    )


@pytest.mark.parametrize(
    ("other", "words"), [({"every": 3}, "other interval"), ({"folder": "elsewhere"}, "does not see the job")]
)
def test_ranks_that_are_not_in_the_same_job_are_told(lab, site, other, words):
    for answer in site.train(lab.policy, STEPS[:1], job=EVERY, jobs=[{}, other]):
        assert words in answer["error"][1]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"policy": "\nmaintain kept { within deep  strength 0.1 }\n"}, "maintains bands"),
        ({"policy": LIMITED}, "at_home"),
        ({"policy": "\nsignals { loss_ratio : number 0..10 default 1 }\n"}, "`loss_ratio` is measured"),
    ],
)
def test_what_ranks_cannot_decide_apart_is_refused(lab, site, task, words):
    policy = lab.policy + task.pop("policy", "")
    for answer in site.train(policy, STEPS[:1], job=EVERY, **task):
        assert words in answer["error"][1]


def test_a_job_of_one_rank_needs_no_group_and_takes_no_ledger(lab, tmp_path):
    model = lab.model()
    program = lab.program(lab.policy, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        Ledger.open(tmp_path / "run.ledger", lab.signer) as ledger,
        pytest.raises(LedgerError, match="was given a ledger"),
    ):
        Governor(program, model, optimizer, ledger=ledger, job=Job(tmp_path / "job", lab.signer))
    with Governor(program, model, optimizer, ledger=None, job=Job(tmp_path / "job", lab.signer)) as governor:
        assert lab.step(governor, lab.batch("ab", "ab")).committed
    assert verify_job(tmp_path / "job", [lab.signer.public]).ok


def test_another_process_may_bind(lab, tmp_path):
    model = lab.model()
    program = lab.program(lab.policy, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    job = Job(tmp_path / "job", lab.signer, binds=False)
    with Governor(program, model, optimizer, ledger=None, job=job) as governor:
        lab.step(governor, lab.batch("ab", "ab"))
        governor.ledger.sign()
        governor.ledger.flush()
        with Binder.resume(tmp_path / "job", lab.signer) as binder:
            assert binder.bind()
    assert verify_job(tmp_path / "job", [lab.signer.public]).status == "INCOMPLETE"
    with Binder.resume(tmp_path / "job", lab.signer) as binder:
        binder.seal()
    assert verify_job(tmp_path / "job", [lab.signer.public]).ok


@pytest.mark.parametrize("wrap", [None, "fsdp"])
def test_each_rank_records_what_its_own_examples_add_to_the_gradient_of_all(lab, site, wrap):
    policy = lab.policy + "gradient { record 1 in 1 steps }\n"
    steps = [*batch(*KINDS), {"parts": parts("ab", "", "s")}, {"parts": parts("C", "ab", "t")}]
    first, _ = site.train(policy, steps, wrap=wrap, job=EVERY, model="blocks")
    assert first["error"] is None
    site.alone(policy, steps, model="blocks")
    for step, whole in enumerate(site.bodies("contributed", "alone")):
        told = [body for rank in (0, 1) for body in bodies(site, rank, "contributed") if body["step"] == step]
        for band, norms in whole["norms"].items():
            found = [float(norm) for part in told for norm in part["norms"][band]]
            assert found == pytest.approx([float(norm) for norm in norms], rel=1e-3)
    for step, whole in enumerate(site.bodies("moved", "alone")):
        for rank in (0, 1):
            norms = bodies(site, rank, "moved")[step]["norms"]
            assert {band: float(norm) for band, norm in norms.items()} == {
                band: pytest.approx(float(norm), rel=1e-5) for band, norm in whole["norms"].items()
            }
    assert verified(site).status == "OK"
