"""What a group of examples did to a model, directly and through others (`measure_leak`)."""

from __future__ import annotations

import json
import sys
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

from gradwarden.runtime import Governor, Ledger
from gradwarden.runtime.errors import InfluenceError
from gradwarden.runtime.influence import WITHHELD, measure_leak
from gradwarden.runtime.verification.verify import verify_ledger

KINDS = "abcdab"
STEPS = 5
TWO_BANDS = ("shallow", "deep")


@pytest.fixture
def examples(lab):
    pairs = [(entry["id"], entry) for entry in (row for step in range(STEPS) for row in batch(lab, step))]
    return [(name, {key: value for key, value in entry.items() if key != "id"}) for name, entry in pairs]


def batch(lab, step):
    """Six examples, of two kinds twice; every batch holds all four kinds."""
    return lab.batch(KINDS, f"s{step}-")


def of_kind(kind):
    return lambda name, metadata: metadata["kind"] == kind


@pytest.fixture
def training(lab):
    """Makes training functions for the lab's model."""

    def make(
        *, engine="fused", optimizer=None, model=None, held_out=None, policy=None, order=None, broken=()
    ):
        def train(run):
            net = (model or lab.model)()
            program = lab.program(policy or lab.policy, net)
            step_with = (optimizer or (lambda p: torch.optim.AdamW(p, lr=0.01)))(net.parameters())
            ledger = Ledger.open(run.folder / "run.ledger", lab.signer, durability="os")
            options = {"engine": engine, "clock": lambda: lab.today, "dataset": run.examples}
            with Governor(program, net, step_with, ledger=ledger, **options) as governor:
                run.watch(governor, held_out)
                for step in range(STEPS) if order is None else order:
                    governor.epoch = step
                    with governor.step([row["id"] for row in batch(lab, step)]) as proposal:
                        losses = lab.losses(net, lab.inputs(len(KINDS), seed=step))
                        proposal.backward(losses * (float("nan") if step in broken else 1.0))
                    run.record(proposal)

        return train

    return make


@pytest.mark.parametrize("engine", ["fused", "split"])
def test_a_group_that_is_refused_everywhere_moves_nothing(training, examples, engine):
    held_out = {"any": lambda model: float(model(torch.ones(2, 4).double()).sum())}
    report = measure_leak(training(engine=engine, held_out=held_out), examples, of_kind("c"), steps=range(9))
    for band in report.bands:
        assert not band.direct
        assert [movement.step for movement in band.movements] == [1, 2, 3, 4, 5]
        assert {movement.distance for movement in band.movements} == {0.0}
        assert band.final.travelled > 0
    assert {pair.change for pair in report.held_out[0].pairs} == {0.0}


@pytest.mark.parametrize("engine", ["fused", "split"])
def test_what_reaches_the_top_only_leaves_the_bottom_alone_for_one_step(training, examples, engine, tmp_path):
    report = measure_leak(training(engine=engine), examples, of_kind("b"), folder=tmp_path / "kept")
    shallow, deep = report.band("shallow"), report.band("deep")
    assert (shallow.first_direct, shallow.direct_steps) == (1, STEPS)
    assert (deep.first_direct, deep.direct_steps) == (None, 0)
    assert shallow.after(1).distance > 0
    assert deep.after(1).distance == 0.0
    assert deep.after(2).distance > 0
    assert deep.final.distance > deep.after(2).distance
    assert (report.group, report.examples, report.exposures) == (2 * STEPS, 6 * STEPS, 2 * STEPS)


def test_what_reaches_the_bottom_only_passes_the_top_as_if_it_were_open(lab, training, examples):
    """No activation is detached: the top's own weights carry the gradient down, and do not move by it."""
    report = measure_leak(training(optimizer=lambda p: torch.optim.SGD(p, lr=0.1)), examples, of_kind("d"))
    assert report.band("shallow").after(1).distance == 0.0

    model = lab.model()
    lab.losses(model, lab.inputs(len(KINDS), seed=0))[KINDS.index("d")].backward()
    own = torch.cat([p.grad.flatten() for p in model[0].parameters()]).norm()
    expected = 0.1 * 0.25 * own.item() / len(KINDS)  # learning rate, weight, batch
    assert report.band("deep").after(1).distance == pytest.approx(expected, rel=1e-9)


def test_all_that_a_band_learned_from_the_group_alone_is_the_groups(lab, training, examples):
    only_b = "depth b { when kind == b  reach shallow }\nstarvation deep { after 1 step accept }"
    report = measure_leak(training(policy=lab.head + only_b), examples, of_kind("b"))
    assert {movement.relative for movement in report.band("shallow").movements} == {1.0}
    assert {movement.relative for movement in report.band("deep").movements} == {0.0}


def test_influence_is_indirect_until_the_policy_lets_the_group_in(lab, training, examples):
    later = lab.policy + "suppress later { when kind == b and epoch < 3  cap shallow at 0 }"
    shallow = measure_leak(training(policy=later), examples, of_kind("b"), steps=range(9)).band("shallow")
    assert (shallow.first_direct, shallow.direct_steps) == (4, 2)
    assert [movement.distance > 0 for movement in shallow.movements] == [False, False, False, True, True]


def test_a_refused_step_lets_nobody_in(training, examples):
    shallow = measure_leak(training(broken={0, 3}), examples, of_kind("b"), steps=range(9)).band("shallow")
    assert (shallow.first_direct, shallow.direct_steps) == (2, STEPS - 2)
    assert [movement.distance > 0 for movement in shallow.movements] == [False, True, True, True, True]


class WithQuarantine(nn.Module):
    """A linear model beside a removable one, which only the examples of an open gate see."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.core = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.quarantine = nn.Linear(4, 3)
        self.double()

    def forward(self, inputs, gate):
        return self.core(inputs) + gate[:, None] * self.quarantine(inputs)


QUARANTINED = """policy quarantined version 1 language 1
examples { kind : one of a, b, c, d   ok : bool }
model { quarantine = names "quarantine.*"  core = rest }
depth any { reach all, quarantine }
suppress b { when kind == b  route to quarantine }
"""


@pytest.mark.parametrize("engine", ["fused", "split"])
@pytest.mark.parametrize("seen_by_all", [True, False])
def test_what_no_other_example_sees_moves_nothing_else(lab, examples, engine, seen_by_all):
    def train(run):
        model = WithQuarantine()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        program = lab.program(QUARANTINED, model)
        ledger = Ledger.open(run.folder / "run.ledger", lab.signer, durability="os")
        with Governor(
            program, model, optimizer, ledger=ledger, engine=engine, dataset=run.examples
        ) as governor:
            run.watch(governor)
            for step in range(STEPS):
                inputs = lab.inputs(len(KINDS), seed=step)
                gate = torch.tensor([float(kind == "b" or seen_by_all) for kind in KINDS]).double()
                with governor.step([row["id"] for row in batch(lab, step)]) as proposal:
                    proposal.backward((model(inputs, gate) - inputs[:, :3]).square().sum(1))
                run.record(proposal)

    report = measure_leak(train, examples, of_kind("b"), steps=range(9))
    assert report.band("quarantine").direct
    moved = [movement.distance > 0 for movement in report.band("core").movements]
    assert moved == ([False, True, True, True, True] if seen_by_all else [False] * STEPS)


def test_the_group_may_be_given_by_ids_and_both_runs_leave_a_sound_ledger(lab, training, examples, tmp_path):
    names = ["s0-0", "s1-1", "s4-3"]
    report = measure_leak(training(), examples, names, folder=tmp_path / "kept")
    assert report.group == report.exposures == 3
    for name, invalid in (("with", 0), ("without", 3)):
        path = tmp_path / "kept" / name / "run.ledger"
        assert verify_ledger(path, [lab.signer.public]).ok
        text = path.read_text()
        assert (WITHHELD in text) is bool(invalid)


def test_equal_runs_are_at_a_distance_of_zero(training, examples):
    report = measure_leak(training(), examples, of_kind("a"), repeat=True)
    assert [band.noise for band in report.bands] == [0.0, 0.0]
    assert all(band.final.relative > 0 for band in report.bands)


def test_held_out_losses_are_those_of_either_run_and_disturb_neither(lab, training, examples):
    def noisy_model():
        return nn.Sequential(lab.model(), nn.Dropout(0.5))

    def evaluate(model):
        model.eval()
        torch.rand(3)
        return float(model(torch.ones(1, 4).double()).square().sum())

    plain = measure_leak(training(model=noisy_model), examples, of_kind("a"))
    watched = measure_leak(
        training(model=noisy_model, held_out={"ones": evaluate}), examples, of_kind("a"), steps=[2]
    )
    assert [band.final for band in watched.bands] == [band.final for band in plain.bands]
    (loss,) = watched.held_out
    assert [pair.step for pair in loss.pairs] == [0, 2, STEPS]
    assert loss.pairs[0].change == 0.0
    assert loss.final.change != 0.0


def test_the_report_is_data_tables_and_a_picture(training, examples, tmp_path):
    held_out = {"ones": lambda model: float(model(torch.ones(1, 4).double()).sum())}
    report = measure_leak(training(held_out=held_out), examples, of_kind("b"))
    data = json.loads(json.dumps(report.to_json()))
    final = report.band("deep").final
    assert data["bands"]["deep"]["movements"][-1] == {
        "step": STEPS,
        "distance": final.distance,
        "travelled": final.travelled,
        "relative": final.distance / final.travelled,
    }
    console = Console(file=StringIO(), width=120)
    console.print(*report.tables())
    printed = console.file.getvalue()
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert rows["deep"][:2] == ["indirect", "0"]
    assert rows["shallow"][0] == "direct"
    assert "Held-out losses" in printed
    report.save_plot(tmp_path / "leak.svg")
    drawn = (tmp_path / "leak.svg").read_text()
    assert drawn.startswith("<?xml")


def test_a_plot_says_what_it_needs(training, examples, tmp_path, monkeypatch):
    report = measure_leak(training(), examples, of_kind("b"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InfluenceError, match="matplotlib") as caught:
        report.save_plot(tmp_path / "leak.svg")
    assert "gradwarden[plot]" in str(caught.value.help)


def test_a_group_of_nothing_is_an_error(training, examples):
    with pytest.raises(InfluenceError, match="no examples"):
        measure_leak(training(), examples, of_kind("e"))


def test_runs_that_begin_with_other_weights_are_not_compared(lab, training, examples):
    seeds = iter(range(9))
    with pytest.raises(InfluenceError, match="same weights"):
        measure_leak(training(model=lambda: lab.model(next(seeds))), examples, of_kind("a"))


@pytest.mark.parametrize(("second", "step"), [([0, 1, 3, 2, 4], 3), ([0, 1, 2], 4), ([0, 1, 2, 3, 4, 0], 6)])
def test_runs_in_another_order_are_not_compared(training, examples, second, step):
    orders = iter([range(STEPS), second])

    def train(run):
        training(order=next(orders))(run)

    with pytest.raises(InfluenceError, match=f"different batches from step {step} on"):
        measure_leak(train, examples, of_kind("a"))


def test_runs_under_other_programs_are_not_compared(lab, training, examples):
    policies = iter([lab.policy, lab.policy.replace("version 1", "version 2")])
    with pytest.raises(InfluenceError, match="different programs"):
        measure_leak(lambda run: training(policy=next(policies))(run), examples, of_kind("a"))


def test_metadata_that_bypass_the_measurement_are_noticed(lab, examples):
    def train(run):
        model = lab.model()
        with lab.governor(model=model, name=run.name) as governor:
            run.watch(governor)
            run.record(lab.step(governor, batch(lab, 0)))

    with pytest.raises(InfluenceError, match="not those of this run") as caught:
        measure_leak(train, examples, of_kind("a"))
    assert "run.examples" in str(caught.value.help)


def test_a_run_that_takes_no_part_is_noticed(lab, training, examples):
    def unwatched(run):
        pass

    def unrecorded(run):
        with lab.governor(name=run.name) as governor:
            run.watch(governor)

    def twice(run):
        with lab.governor(name=f"{run.name}-twice") as governor:
            run.watch(governor)
            run.watch(governor)

    for train, words in ((unwatched, "not watched"), (unrecorded, "no step"), (twice, "twice")):
        with pytest.raises(InfluenceError, match=words):
            measure_leak(train, examples, of_kind("a"))
