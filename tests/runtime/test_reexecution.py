"""Segments of a run, executed again, give the weights that the ledger names; forged ones do not."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model
from torch import nn

from gradwarden.runtime.average import GovernedAverage
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.reexecution.reexecute import Rebuilt, reexecute
from gradwarden.runtime.reexecution.segments import Segment, challenged, chance_of_catching, find_segments
from gradwarden.runtime.reexecution.training_state import TrainingState

EVERY = 3
SEGMENTS = 4


def make(lab: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.25), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def batch(lab: Any, step: int) -> list[dict[str, Any]]:
    kinds = ("ab", "aab", "C", "bd", "a")[step % 5]
    found: list[dict[str, Any]] = lab.batch(kinds, kinds)
    return found


def train(lab: Any, governor: Any, steps: range, forged: int = -1) -> None:
    """Every step draws from all three generators; one may be trained on something else than its examples."""
    for step in steps:
        governor.epoch = step // 5
        with governor.step(batch(lab, step)) as proposal:
            inputs = lab.inputs(len(proposal.rows), step if step != forged else 1_000 + step)
            inputs = inputs + 0.01 * (random.random() + float(np.random.random()))
            proposal.backward(lab.losses(governor.model, inputs))


def run(lab: Any, forged: int = -1, *, state: bool = True, policy: str | None = None) -> list[Segment]:
    model, optimizer = make(lab)
    random.seed(1)
    np.random.seed(1)
    rules = lab.policy + "retain few { when kind == a  at most 5 exposures }\n"
    governor = lab.governor(policy or rules, model, optimizer)
    governor.checkpoint(lab.folder / "0.safetensors", state=state)
    for number in range(SEGMENTS):
        train(lab, governor, range(EVERY * number, EVERY * (number + 1)), forged)
        governor.checkpoint(lab.folder / f"{number + 1}.safetensors", state=state)
    governor.close()
    assert lab.verify(weights=lab.folder / f"{SEGMENTS}.safetensors").ok
    return list(find_segments(lab.path()).segments)


def again(lab: Any, segment: Segment, **options: Any) -> Any:
    return reexecute(
        lab.path(), segment, lambda: Rebuilt(*make(lab), lambda gov, steps: train(lab, gov, steps)), **options
    )


def test_every_segment_leads_to_the_same_bits(lab: Any) -> None:
    segments = run(lab)
    assert [segment.steps for segment in segments] == [range(3), range(3, 6), range(6, 9), range(9, 12)]
    for segment in segments:
        report = again(lab, segment)
        assert (report.findings, report.digest) == ((), segment.end["digest"])
    assert find_segments(lab.path()).covered == find_segments(lab.path()).steps == 12


@pytest.mark.parametrize("lied", [False, True])
def test_a_segment_with_a_step_that_was_trained_on_something_else_is_caught(
    lab: Any, monkeypatch: pytest.MonkeyPatch, lied: bool
) -> None:
    """The ledger verifies: what is recorded is what the policy approves. The weights are others."""
    honest = run(lab)
    recorded = {e.body["step"]: e.body for e in lab.entries(kind="committed")}
    folder = lab.folder / "forged"
    folder.mkdir()
    other = type(lab)(folder, lab.signer)
    (folder / "run.ledger.secret").write_bytes((lab.folder / "run.ledger.secret").read_bytes())
    commit = Recorder.commit

    def lie(self: Any, step: int, active: Any, norms: Any, loss: Any, *rest: Any) -> None:
        """Record the norms and the loss of the honest run, as long as they differ."""
        if step in (4, 5):
            norms, loss = recorded[step]["norms"], recorded[step]["loss"]
        commit(self, step, active, norms, loss, *rest)

    if lied:
        monkeypatch.setattr(Recorder, "commit", lie)
    segments = run(other, forged=4)
    monkeypatch.undo()
    reports = [again(other, segment) for segment in segments]
    caught = [report.segment.number for report in reports if not report.ok]
    assert caught == [1]
    (finding,) = reports[1].findings
    wanted = ("other_weights", "checkpoint") if lied else ("other_steps", "step")
    assert (finding.code, other.entries()[finding.index].kind) == wanted
    assert ("6 of 6 tensors differ, among them `0.bias`" in finding.message) == lied
    assert len(honest) == len(segments)
    # Every challenge of two of the four segments catches it in half of the cases.
    meets = sum(1 in chosen for chosen in combinations(range(SEGMENTS), 2)) / 6
    assert chance_of_catching(SEGMENTS, 2) == meets == 0.5


@pytest.mark.parametrize("lied", [False, True])
def test_contributions_that_were_not_made_are_caught(
    lab: Any, monkeypatch: pytest.MonkeyPatch, lied: bool
) -> None:
    """Two examples of one step are said to have added what the other did: their sum is what it was."""
    record = Recorder.contributions

    def lie(self: Any, step: int, added: Any, moved: Any) -> None:
        told = {band: [*norms[1::-1], *norms[2:]] for band, norms in added.items()}
        record(self, step, told if step == 6 else added, moved)

    if lied:
        monkeypatch.setattr(Recorder, "contributions", lie)
    segments = run(lab, policy=lab.policy + "gradient { record 1 in 1 steps }")
    monkeypatch.undo()
    reports = [again(lab, segment) for segment in segments]
    assert [report.segment.number for report in reports if not report.ok] == ([2] if lied else [])
    assert all("`contributions`" in report.findings[0].message for report in reports if not report.ok)


def test_a_tolerance_takes_rounding_and_no_more(lab: Any) -> None:
    segments = run(lab)
    report = again(lab, segments[1], tolerance=1e-9)
    assert (report.findings, report.difference) == ((), 0.0)

    def sloppy(scale: float) -> Rebuilt:
        model, optimizer = make(lab)

        def nudged(governor: Any, steps: range) -> None:
            train(lab, governor, steps)
            with torch.no_grad():
                for parameter in governor.model.parameters():
                    parameter *= 1 + scale

        return Rebuilt(model, optimizer, nudged)

    rounded = reexecute(lab.path(), segments[1], lambda: sloppy(1e-12), tolerance=1e-9)
    assert rounded.ok
    assert 1e-13 < rounded.difference < 1e-11
    (finding,) = reexecute(lab.path(), segments[1], lambda: sloppy(1e-6), tolerance=1e-9).findings
    assert finding.code == "other_weights"
    (finding,) = reexecute(lab.path(), segments[1], lambda: sloppy(1e-12)).findings
    assert finding.code == "other_weights"


def test_what_cannot_be_executed_again_is_told(lab: Any) -> None:
    segments = run(lab)
    (lab.folder / "1.safetensors").unlink()
    (lab.folder / "2.state").write_bytes(b"other")
    found = [[finding.code for finding in again(lab, segment).findings] for segment in segments]
    assert found == [[], ["wrong_file"], ["wrong_file"], []]
    less = reexecute(
        lab.path(),
        segments[0],
        lambda: Rebuilt(*make(lab), lambda governor, steps: train(lab, governor, steps[:-1])),
    )
    assert [finding.code for finding in less.findings] == ["other_steps"]


def test_without_the_state_of_training_or_over_a_break_nothing_is_executed(lab: Any) -> None:
    segments = run(lab, state=False)
    assert [finding.code for finding in again(lab, segments[0]).findings] == ["no_state"]

    def broken(entries: Any) -> None:
        place = [at for at, (kind, _) in enumerate(entries) if kind == "committed"][1]
        body = {"policy": entries[0][1]["policy"], "step": 3}
        entries.insert(place + 1, ("policy_changed", body))

    lab.forge(broken)
    first = find_segments(lab.path("forged")).segments[0]
    assert first.broken == "policy_changed"
    (finding,) = reexecute(lab.path("forged"), first, lambda: Rebuilt(*make(lab), print)).findings
    assert finding.code == "not_replayable"


def test_a_run_that_went_back_is_executed_again_on_the_way_that_led_to_its_weights(lab: Any) -> None:
    model, optimizer = make(lab)
    governor = lab.governor(lab.policy, model, optimizer)
    governor.checkpoint(lab.folder / "0.safetensors", state=True)
    train(lab, governor, range(3))
    governor.checkpoint(lab.folder / "3.safetensors", state=True)
    train(lab, governor, range(3, 6))
    governor.checkpoint(lab.folder / "6.safetensors", state=True)
    train(lab, governor, range(6, 8))
    load_model(model, lab.folder / "3.safetensors")
    TrainingState(lab.folder / "3.state").restore(optimizer)
    governor.rewind(lab.folder / "3.safetensors")
    train(lab, governor, range(8, 11))
    governor.checkpoint(lab.folder / "11.safetensors", state=True)
    governor.close()
    found = find_segments(lab.path())
    assert [one.steps for one in found.segments] == [range(3), range(8, 11)]
    assert (found.steps, found.covered, found.abandoned) == (6, 6, 5)
    assert [again(lab, segment).findings for segment in found.segments] == [(), ()]


@pytest.mark.parametrize("at", [6, 12])
def test_weights_that_were_exchanged_where_no_step_lies_between_are_told(lab: Any, at: int) -> None:
    """The ledger verifies: of weights whose tensors it does not list, it cannot say what moved."""
    segments = run(lab)

    def exchange(entries: Any) -> None:
        entries[:] = [(kind, body) for kind, body in entries if kind != "tensors"]
        saved = [place for place, (kind, _) in enumerate(entries) if kind == "checkpoint"]
        for place in saved:
            entries[place][1]["tensors"] = None
        place = next(p for p in reversed(saved) if entries[p][1]["step"] == at)
        other = {**entries[place][1], "file": "other.safetensors", "digest": "ab" * 32}
        entries.insert(place + 1, ("checkpoint", other))

    assert lab.forge(exchange).ok
    found = find_segments(lab.path("forged"))
    assert [one.steps for one in found.segments] == [one.steps for one in segments]
    (jump,) = found.jumps
    assert (jump.code, lab.entries("forged")[jump.index].body["file"]) == (
        "other_weights",
        "other.safetensors",
    )
    assert find_segments(lab.path()).jumps == ()


def test_averages_that_are_saved_too_begin_and_end_no_segment(lab: Any) -> None:
    model, optimizer = make(lab)
    governor = lab.governor(lab.policy, model, optimizer)
    average = GovernedAverage(model, governor.program.bands, decay=0.5)
    for step in (0, 3):
        governor.checkpoint(lab.folder / f"{step}.safetensors", state=True)
        with average.applied():
            governor.checkpoint(lab.folder / f"average-{step}.safetensors")
        train(lab, governor, range(step, step + 3))
        average.update(["shallow", "deep"])
    governor.checkpoint(lab.folder / "6.safetensors")
    governor.close()
    found = find_segments(lab.path())
    assert [one.steps for one in found.segments] == [range(3), range(3, 6)]
    assert (found.jumps, [again(lab, one).findings for one in found.segments]) == ((), [(), ()])


def test_what_was_measured_before_a_segment_is_put_back_by_the_code_that_trains(lab: Any) -> None:
    rules = "signals { loss_ratio : number 0..10 default 1 }\n"
    rules += "memorization learned { when loss_ratio < 0.9  cap deep at 0 }\n"
    model, optimizer = make(lab)
    governor = lab.governor(lab.policy + rules, model, optimizer)
    measured = {}
    for start in (0, 3, 6, 9):
        governor.checkpoint(lab.folder / f"{start}.safetensors", state=True)
        measured[start] = governor.measures.state_dict()
        train(lab, governor, range(start, start + 3))
    governor.checkpoint(lab.folder / "12.safetensors", state=True)
    governor.close()
    first, *later = find_segments(lab.path()).segments
    assert again(lab, first).findings == ()
    (finding,) = again(lab, later[-1]).findings
    assert (finding.code, "`governor.measures.load_state_dict`" in finding.message) == ("other_steps", True)

    def resumed(governor: Any, steps: range) -> None:
        for step in range(12):
            governor.roster.rows(batch(lab, step))
        governor.measures.load_state_dict(measured[steps.start])
        train(lab, governor, steps)

    for segment in later:
        assert reexecute(lab.path(), segment, lambda: Rebuilt(*make(lab), resumed)).findings == ()


def some_segments(count: int) -> list[Segment]:
    return [
        Segment(number, {"step": number}, {"step": number + 1}, None, (0, 1), None, number)
        for number in range(count)
    ]


@given(st.integers(1, 30), st.data())
def test_a_challenge_is_the_same_for_all_who_know_the_seed(count: int, data: st.DataObject) -> None:
    wanted, seed = data.draw(st.integers(0, count)), data.draw(st.binary(max_size=40))
    segments = some_segments(count)
    chosen = challenged(segments, wanted, seed)
    assert chosen == challenged(segments[::-1], wanted, seed)
    assert len({segment.number for segment in chosen}) == wanted
    assert [segment.number for segment in chosen] == sorted(segment.number for segment in chosen)


def test_a_challenge_meets_each_segment_as_often_as_any_other() -> None:
    segments = some_segments(10)
    met = [0] * 10
    for seed in range(3_000):
        for segment in challenged(segments, 3, str(seed).encode()):
            met[segment.number] += 1
    assert all(abs(times - 900) < 5 * (3_000 * 0.3 * 0.7) ** 0.5 for times in met)


@given(st.integers(1, 8), st.data())
def test_the_chance_is_the_share_of_challenges_that_meet_a_forgery(count: int, data: st.DataObject) -> None:
    wanted, forged = data.draw(st.integers(0, count)), data.draw(st.integers(0, count))
    chosen = list(combinations(range(count), wanted))
    share = sum(min(numbers, default=count) < forged for numbers in chosen) / len(chosen)
    assert chance_of_catching(count, wanted, forged) == pytest.approx(share)
