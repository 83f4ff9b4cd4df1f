"""The governed step as a whole: exact gradients, what may not move, norm caps, starvation, misuse."""

from __future__ import annotations

import copy
from datetime import date

import pytest
import torch
from torch import nn

from gradwarden.runtime import Governor, Ledger
from gradwarden.runtime.average import GovernedAverage
from gradwarden.runtime.errors import LedgerError, MaskError, StarvationHalt
from gradwarden.runtime.model_map import ModelMap

ENGINES = ["fused", "split"]


# --- exact gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("normaliser", [None, 16.0])
@pytest.mark.parametrize("kinds", ["aabbAcd", "bbbb", "aaaa", "dcd", "Ba"])
def test_the_gradient_is_the_weighted_sum_of_the_examples_gradients(
    lab, reference, engine, normaliser, kinds
):
    governor = lab.governor(engine=engine, normaliser=normaliser)
    inputs = lab.inputs(len(kinds))
    bands = [governor.parameters["shallow"], governor.parameters["deep"]]
    by_kind = {"a": (1.0, 1.0), "b": (0.5, 0.0), "d": (0.0, 0.25)}
    weights = [by_kind.get(kind, (0.0, 0.0)) for kind in kinds]
    wanted = reference(
        lab.losses(governor.model, inputs), weights, bands, len(kinds) if normaliser is None else normaliser
    )
    proposal = lab.step(governor, lab.batch(kinds))
    assert proposal.committed
    for parameter, gradient in wanted.items():
        if gradient is None:
            assert parameter.grad is None
        else:
            error = (parameter.grad - gradient).norm() / gradient.norm()
            assert error < 1e-9


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_accumulated_micro_batches_equal_the_whole_batch(lab, engine, size):
    examples = lab.batch("aAbacdb")
    whole = lab.governor(name="whole", engine=engine)
    parts = lab.governor(name="parts", engine=engine)
    wanted = lab.step(whole, examples)
    inputs = lab.inputs(len(examples))
    with parts.step(examples) as proposal:
        for rows in proposal.micro_batches(size):
            proposal.backward(lab.losses(parts.model, inputs[rows]))
    assert proposal.committed
    assert proposal.mean_loss == pytest.approx(wanted.mean_loss)
    for one, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12)
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_micro_batch_that_may_shape_nothing_can_be_left_out(lab):
    governor = lab.governor()
    with governor.step(lab.batch("AAaa")) as proposal:
        for rows in proposal.micro_batches(2):
            if proposal.weights[rows].any():
                proposal.backward(lab.losses(governor.model, lab.inputs(4)[rows]))
    assert proposal.committed


def test_a_micro_batch_that_shapes_something_cannot(lab):
    governor = lab.governor()
    with governor.step(lab.batch("aaaa")) as proposal:
        for rows in proposal.micro_batches(2):
            if rows.start:
                proposal.backward(lab.losses(governor.model, lab.inputs(4)[rows]))
    assert proposal.refusal.reason == "no_backward"


def test_a_frozen_parameter_may_stay_in_the_optimizer_and_never_moves(lab):
    model = lab.model()
    model[2].weight.requires_grad_(False)
    kept = model[2].weight.clone()
    governor = lab.governor(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1))
    lab.step(governor, lab.batch("ab"))
    assert torch.equal(model[2].weight, kept)
    assert model[4].weight.grad is not None


# --- a zero weight means no change --------------------------------------------------------------------------

STEPS = ["aab", "bb", "b", "dd", "cb", "ab", "bbA", "d", "dC", "aaa", "b", "bd"]


def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    parameters = list(model.parameters())
    return {
        "momentum": torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01),
        "adamw": torch.optim.AdamW(parameters, 0.05, weight_decay=0.1),
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_a_band_that_no_example_reaches_keeps_its_bits_and_its_optimizer_state(
    lab, state_of, changes, engine, kind
):
    model = lab.model()
    governor = lab.governor(model=model, optimizer=optimizers(model)[kind], engine=engine)
    average = GovernedAverage(model, governor.program.bands, 0.9)
    names = {name: place for place, (name, _) in enumerate(model.named_parameters())}
    seen: set[tuple[str, ...]] = set()
    for number, kinds in enumerate(STEPS):
        before, mean_before = state_of(governor), average.state_dict()
        proposal = lab.step(governor, lab.batch(kinds, f"{number}."), seed=number)
        average.update(proposal.active)
        seen.add(proposal.active)
        moved = set(changes(before, state_of(governor)))
        for band in governor.program.bands:
            for name in band.parameters:
                touched = name in moved or any(m.startswith(f"optimizer {names[name]} ") for m in moved)
                assert touched == (band.name in proposal.active)
                still = torch.equal(average.state_dict()[name], mean_before[name])
                assert still == (band.name not in proposal.active)
    assert seen == {("shallow", "deep"), ("shallow",), ("deep",)}


def test_a_gradient_that_came_around_the_masks_refuses_the_step(lab, state_of, changes):
    governor = lab.governor()
    before = state_of(governor)
    with governor.step(lab.batch("bb")) as proposal:
        losses = lab.losses(governor.model, lab.inputs(2))
        losses.sum().backward(retain_graph=True)
        governor.model[0].weight.grad = torch.ones(6, 4, dtype=torch.float64)
        proposal.backward(losses)
    assert proposal.refusal.reason == "foreign_gradient"
    assert not changes(before, state_of(governor))


def test_backward_beside_the_masks_refuses_the_step_in_bands_that_are_open_too(lab, state_of, changes):
    governor = lab.governor()
    before = state_of(governor)
    with governor.step(lab.batch("aa")) as proposal:
        losses = lab.losses(governor.model, lab.inputs(2))
        proposal.backward(losses)
        lab.losses(governor.model, lab.inputs(2, seed=1)).sum().backward()
    assert proposal.active == ()
    assert proposal.refusal.reason == "foreign_gradient"
    assert not changes(before, state_of(governor))
    assert lab.step(governor, lab.batch("aa")).committed


def test_closing_a_governor_leaves_plain_training_alone(lab):
    governor = lab.governor()
    lab.step(governor, lab.batch("aa"))
    governor.close()
    lab.losses(governor.model, lab.inputs(2)).sum().backward()
    assert not governor.joined.foreign.seen


# --- detach semantics ---------------------------------------------------------------------------------------


def detached(lab):
    return lab.policy.replace("deep = rest }", "deep = rest  semantics detach }")


def test_a_policy_may_stop_the_flow_through_closed_bands(lab, reference):
    governor = lab.governor(detached(lab))
    bands = [governor.parameters["shallow"], governor.parameters["deep"]]
    inputs = lab.inputs(4)
    # `d` may shape the deep band alone, and without skips its gradient gets there through closed layers only.
    wanted = reference(
        lab.losses(governor.model, inputs), [(1.0, 1.0), (0.5, 0.0), (0.0, 0.0), (1.0, 1.0)], bands, 4
    )
    proposal = lab.step(governor, lab.batch("abda"))
    assert proposal.committed
    assert proposal.weights[2].tolist() == [0.0, 0.25]
    for parameter, gradient in wanted.items():
        assert (parameter.grad - gradient).norm() <= 1e-12 * gradient.norm()
    governor.close()
    assert '"semantics":"detach"' in lab.bodies("program")[0]["text"]
    assert lab.verify().ok


def test_a_model_that_cannot_be_detached_is_refused_before_the_run_begins(lab):
    with pytest.raises(MaskError, match="the engine `split` cannot detach"):
        lab.governor(detached(lab), engine="split")
    model = nn.Sequential(nn.Linear(4, 3), nn.Bilinear(3, 3, 2))
    with pytest.raises(MaskError, match=r"`1\.bias`, `1\.weight` are used outside of supported layers"):
        lab.governor(detached(lab), model, name="other")
    assert lab.entries() == lab.entries("other") == []


def test_a_change_of_policy_may_change_what_a_weight_of_zero_stops(lab):
    governor = lab.governor(lab.policy)
    lab.step(governor, lab.batch("dd"))
    assert all(p.grad.any() for p in governor.parameters["deep"])
    governor.change_policy(lab.program(detached(lab)))
    lab.step(governor, lab.batch("dd"))
    assert all(p.grad is None for p in governor.parameters["deep"])
    governor.close()
    assert lab.verify().ok


# --- norm caps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_each_band_is_scaled_to_its_own_norm_cap(lab, engine):
    free = lab.governor(name="free", engine=engine)
    capped = lab.governor(
        lab.policy + "gradient { deep at most 0.01  shallow at most 1000 }", name="capped", engine=engine
    )
    lab.step(free, lab.batch("aab"))
    proposal = lab.step(capped, lab.batch("aab"))
    deep = torch.cat([p.grad.flatten() for p in capped.parameters["deep"]])
    unscaled = torch.cat([p.grad.flatten() for p in free.parameters["deep"]])
    assert float(deep.norm()) == pytest.approx(0.01, rel=1e-12)
    assert torch.allclose(deep / deep.norm(), unscaled / unscaled.norm(), rtol=1e-9)
    pairs = zip(capped.parameters["shallow"], free.parameters["shallow"], strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs)
    assert proposal.norms["deep"] == pytest.approx(0.01)
    capped.close()
    assert lab.bodies("committed", "capped")[0]["norms"]["deep"] == "0.01"
    assert lab.verify("capped").ok


# --- starvation and expiry ----------------------------------------------------------------------------------


def starving(action: str) -> str:
    return f"starvation deep {{ after 3 steps {action} }}"


def test_starvation_is_reported_once_per_drought(lab):
    governor = lab.governor(lab.policy + starving("report"))
    for number in range(9):
        kinds = "a" if number == 5 else "b"
        if number in (2, 8):
            with pytest.warns(UserWarning, match="`deep` for 3 steps"):
                assert lab.step(governor, lab.batch(kinds)).committed
        else:
            assert lab.step(governor, lab.batch(kinds, "a" if kinds == "a" else "b")).committed
    governor.close()
    starved = [(body["step"], body["band"], body["action"]) for body in lab.bodies("starved")]
    assert starved == [(2, "deep", "report"), (8, "deep", "report")]
    assert lab.verify().ok


@pytest.mark.filterwarnings("ignore:no example has reached:UserWarning")
def test_starvation_opens_no_band_to_those_who_may_not_shape_it(lab):
    governor = lab.governor(lab.policy + "starvation deep { after 1 step report }")
    deep = [p.detach().clone() for p in governor.parameters["deep"]]
    for _ in range(3):
        proposal = lab.step(governor, lab.batch("bbC"))
        assert proposal.weights.tolist() == [[0.5, 0.0], [0.5, 0.0], [0.0, 0.0]]
    assert all(map(torch.equal, governor.parameters["deep"], deep))
    governor.close()
    assert [body["step"] for body in lab.bodies("starved")] == [0]


def test_starvation_can_halt_the_run_after_the_step_was_committed_and_the_run_can_be_resumed(lab):
    run = lab.governor(lab.policy + starving("halt"))

    def train() -> None:
        with run:
            for _ in range(9):
                lab.step(run, lab.batch("b"))

    with pytest.raises(StarvationHalt, match="`deep`"):
        train()
    assert run.committed == 3
    assert [body["step"] for body in lab.bodies("committed")] == [0, 1, 2]
    assert lab.bodies("starved")[0]["action"] == "halt"
    assert lab.verify().status == "INCOMPLETE"
    lab.governor(lab.policy + starving("halt"), model=lab.model()).close()
    assert lab.verify().ok


@pytest.mark.filterwarnings("error")
def test_accepted_starvation_is_recorded_and_passes_in_silence(lab):
    governor = lab.governor(lab.policy + starving("accept"))
    for _ in range(4):
        assert lab.step(governor, lab.batch("b")).committed
    governor.close()
    assert [body["step"] for body in lab.bodies("starved")] == [2]


def test_refused_steps_do_not_count_towards_starvation(lab):
    governor = lab.governor(lab.policy + starving("halt"))
    for number in range(5):
        assert not lab.step(governor, lab.batch("c", "c")).committed
        if number < 2:
            assert lab.step(governor, lab.batch("b", "b")).committed


def test_a_retention_rule_is_noted_when_it_first_stops_examples(lab):
    text = lab.policy + "retain old { when kind == a and has gone  until gone }"
    days = iter([date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 3)])
    governor = lab.governor(text, clock=lambda: next(days))
    examples = [lab.example(name, gone=date(2026, 1, 2)) for name in "xy"] + [lab.example("z", "b")]
    verdicts = [[d.verdict for d in lab.step(governor, examples).decisions] for _ in range(3)]
    assert verdicts == [["admit", "admit", "limit"]] + 2 * [["refuse", "refuse", "limit"]]
    governor.close()
    assert lab.bodies("expired") == [{"step": 1, "rule": "old", "count": 2}]
    assert lab.verify().ok


# --- exposures ----------------------------------------------------------------------------------------------

ONCE = "retain once { when kind == a  at most 1 exposure }"


def test_an_id_twice_in_one_batch_is_let_through_once_under_at_most_one_exposure(lab):
    governor = lab.governor(lab.policy + ONCE)
    pair = [lab.example("x"), lab.example("x"), lab.example("y", "b"), lab.example("x")]
    assert [d.verdict for d in lab.step(governor, pair).decisions] == ["admit", "refuse", "limit", "refuse"]
    assert [d.verdict for d in lab.step(governor, ["x", "y"]).decisions] == ["refuse", "limit"]
    governor.close()
    assert [body["exposures"] for body in lab.bodies("step")] == [[0, 1, 0, 2], [1, 1]]
    assert lab.verify().ok


def test_only_committed_steps_and_only_examples_with_some_weight_count_as_exposures(lab):
    governor = lab.governor(lab.policy + ONCE)
    lab.step(governor, lab.batch("aA"), scale=float("nan"))
    assert [d.verdict for d in lab.step(governor, lab.batch("aA")).decisions] == ["admit", "refuse"]
    assert [d.verdict for d in lab.step(governor, [*lab.batch("aA"), lab.example("n", "b")]).decisions] == [
        "refuse",
        "refuse",
        "limit",
    ]
    governor.close()
    assert [body["exposures"] for body in lab.bodies("step")] == [[0, 0], [0, 0], [1, 0, 0]]
    assert lab.verify().ok


# --- the memorization guard ---------------------------------------------------------------------------------

GUARD = """
signals { loss_ratio : number 0..10 default 1 }
memorization learned { when loss_ratio < 0.5  cap deep at 0 }
"""


def test_an_example_whose_loss_has_halved_is_kept_out_of_the_deep_band(lab):
    governor = lab.governor(lab.policy + GUARD)
    easy, hard = lab.example("easy"), lab.example("hard")

    def step(scales):
        with governor.step([easy, hard]) as proposal:
            losses = lab.losses(governor.model, lab.inputs(2)) * 0.001
            proposal.backward(losses - losses.detach() + torch.tensor(scales, dtype=torch.float64))
        return [d.weights["deep"] for d in proposal.decisions]

    assert step([4.0, 4.0]) == [1.0, 1.0]
    assert step([1.5, 3.0]) == [1.0, 1.0]
    assert step([1.5, 1.0]) == [0.0, 1.0]
    assert step([3.0, 3.0]) == [0.0, 0.0]
    assert step([3.0, 3.0]) == [1.0, 1.0]
    governor.close()
    signals = [body["signals"]["loss_ratio"] for body in lab.bodies("step")]
    assert signals[2] == [375_000, 750_000]
    assert lab.verify().ok


def test_a_signal_given_by_the_caller_takes_the_place_of_the_measured_one(lab):
    governor = lab.governor(lab.policy + GUARD)
    proposal = lab.step(governor, lab.batch("aa"), signals={"loss_ratio": [0.25, 0.75]})
    assert [d.weights["deep"] for d in proposal.decisions] == [0.0, 1.0]


def test_a_signal_that_is_not_finite_makes_its_example_invalid(lab):
    governor = lab.governor(lab.policy + GUARD)
    proposal = lab.step(governor, lab.batch("aa"), signals={"loss_ratio": [float("nan"), 0.75]})
    assert [d.verdict for d in proposal.decisions] == ["invalid", "admit"]
    governor.close()
    assert lab.verify().ok


# --- misuse -------------------------------------------------------------------------------------------------


def test_a_step_after_close_is_refused_and_closing_twice_is_harmless(lab):
    governor = lab.governor()
    lab.step(governor, lab.batch("a"))
    governor.close()
    governor.close()
    with pytest.raises(LedgerError, match="closed"):
        governor.step(lab.batch("a"))
    assert lab.verify().ok


def test_a_proposal_made_before_close_cannot_be_entered_after(lab):
    governor = lab.governor()
    late = governor.step(lab.batch("a"))
    governor.close()
    with pytest.raises(LedgerError, match="closed"), late:
        pytest.fail("the block must not run")
    assert lab.verify().ok


def test_steps_do_not_nest(lab):
    governor = lab.governor()
    other = governor.step(lab.batch("b"))
    with governor.step(lab.batch("a")) as proposal:
        with pytest.raises(MaskError, match="while a step is open"):
            governor.step(lab.batch("b"))
        with pytest.raises(MaskError, match="while a step is open"):
            other.__enter__()
        proposal.backward(lab.losses(governor.model, lab.inputs(1)))
    assert proposal.committed
    governor.close()
    assert len(lab.bodies("step")) == 1
    assert lab.verify().ok


def test_a_proposal_is_used_once(lab):
    governor = lab.governor()
    proposal = lab.step(governor, lab.batch("a"))
    with pytest.raises(MaskError, match="once"):
        proposal.__enter__()
    assert lab.step(governor, lab.batch("a")).committed


@pytest.mark.parametrize("act", ["close", "checkpoint", "change_policy"])
def test_the_run_cannot_be_closed_saved_or_changed_while_a_step_is_open(lab, act):
    governor = lab.governor()
    with governor.step(lab.batch("a")) as proposal:
        arguments = {
            "close": (),
            "checkpoint": (lab.folder / "model.safetensors",),
            "change_policy": (governor.program,),
        }[act]
        with pytest.raises(MaskError, match="while a step is open"):
            getattr(governor, act)(*arguments)
        proposal.backward(lab.losses(governor.model, lab.inputs(1)))
    assert proposal.committed
    governor.close()
    assert lab.verify().ok


def test_an_optimizer_that_moves_foreign_tensors_is_refused(lab):
    model, other = lab.model(), lab.model()
    with pytest.raises(MaskError, match="2 tensors"):
        lab.governor(
            model=model, optimizer=torch.optim.SGD([*model.parameters(), *other[0].parameters()], 0.1)
        )


def test_an_optimizer_that_moves_bands_without_gradients_is_refused(lab):
    model = lab.model()
    with pytest.raises(MaskError, match="LBFGS cannot be governed"):
        lab.governor(model=model, optimizer=torch.optim.LBFGS(model.parameters()))


def test_a_program_for_another_model_is_refused(lab):
    other = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    program = lab.program(model=other)
    with pytest.raises(MaskError, match="another model"):
        lab.governor(program)


def test_batch_normalisation_in_training_is_refused(lab):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    with pytest.raises(MaskError, match="BatchNorm"):
        lab.governor(model=model)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_turns_to_mixing_later_refuses_the_step_and_the_run_goes_on(lab, engine):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().eval()
    governor = lab.governor(model=model, engine=engine)
    assert lab.step(governor, lab.batch("ab")).committed
    model.train()
    with pytest.raises(MaskError, match="BatchNorm"), governor.step(lab.batch("ab")):
        pytest.fail("the block must not run")
    model.eval()
    assert lab.step(governor, lab.batch("ab")).committed
    governor.close()
    assert [body["step"] for body in lab.bodies("refused")] == [1]
    assert lab.verify().ok


@pytest.mark.parametrize("normaliser", [0.0, -1.0, float("inf"), float("nan")])
def test_a_normaliser_that_divides_nothing_is_refused(lab, normaliser):
    with pytest.raises(MaskError, match="normaliser"):
        lab.governor(normaliser=normaliser)


def test_a_governor_that_cannot_be_made_leaves_the_model_as_it_was(lab):
    model = lab.model()
    secret = lab.folder / "other.secret"
    lab.governor(model=lab.model(), name="two", secret=secret).ledger.close()
    secret.write_text("00" * 32)
    ledger = Ledger.open(lab.path("two"), lab.signer)
    with pytest.raises(LedgerError, match="secret"):
        Governor(lab.program(), model, torch.optim.SGD(model.parameters(), 0.1), ledger=ledger, secret=secret)
    ledger.close()
    assert "forward" not in model[0].__dict__
    assert not model._forward_pre_hooks


def test_closing_gives_the_model_its_own_forward_back(lab):
    model = lab.model()
    untouched = copy.deepcopy(model)
    governor = lab.governor(model=model)
    lab.step(governor, lab.batch("ab"))
    governor.close()
    untouched.load_state_dict(model.state_dict())
    assert "forward" not in model[0].__dict__
    assert not model._forward_pre_hooks
    assert torch.equal(model(lab.inputs(3)), untouched(lab.inputs(3)))


# --- changing the policy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "split"])
def test_a_changed_policy_governs_from_the_next_step_on(lab, engine):
    model = lab.model()
    governor = lab.governor(model=model, engine=engine)
    assert lab.step(governor, lab.batch("bb")).active == ("shallow",)
    governor.change_policy(lab.program(lab.policy.replace("reach shallow at 0.5", "reach deep"), model))
    assert lab.step(governor, lab.batch("bb")).active == ("deep",)
    governor.close()
    assert [body["step"] for body in lab.bodies("policy_changed")] == [1]
    report = lab.verify()
    assert report.ok
    assert report.facts["decisions_replayed"] == 4


def test_exposures_outlast_a_change_of_policy(lab):
    model = lab.model()
    governor = lab.governor(model=model)
    lab.step(governor, lab.batch("a"))
    governor.change_policy(lab.program(lab.policy + ONCE, model))
    assert [d.verdict for d in lab.step(governor, lab.batch("ab")).decisions] == ["refuse", "limit"]
    governor.close()
    assert lab.verify().ok


def test_a_policy_that_cannot_be_put_in_force_leaves_the_old_one_in_force(lab):
    model = lab.model()
    governor = lab.governor(model=model)
    before = governor.program
    with pytest.raises(MaskError, match="another model"):
        governor.change_policy(lab.program(model=nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))))
    assert governor.program is before
    assert lab.step(governor, lab.batch("b")).active == ("shallow",)
    governor.close()
    assert lab.verify().ok


def test_a_program_without_a_model_map_is_bound_to_the_model_at_hand(lab):
    model = lab.model()
    governor = lab.governor(lab.program(), model=model)
    assert governor.program.model_map == ModelMap.from_module(model).digest
    assert lab.step(governor, lab.batch("ab")).committed


def test_what_is_foreseen_is_what_the_next_step_decides(lab):
    governor = lab.governor()
    examples = lab.batch("abcdA")
    foreseen = governor.foresee(examples)
    proposal = lab.step(governor, examples)
    decided = [foreseen.decisions[number] for number in foreseen.decision_ids.tolist()]
    assert decided == list(proposal.decisions)
    assert governor.next_step == 1
    assert [body["count"] for body in lab.bodies("step")] == [5]


def test_an_abandoned_run_is_not_sealed_and_can_be_resumed(lab):
    model = lab.model()
    governor = lab.governor(model=model)
    lab.step(governor, lab.batch("ab"))
    for _ in range(2):
        governor.abandon()
    with pytest.raises(LedgerError, match="closed"):
        governor.step(lab.batch("ab"))
    assert lab.verify().status == "INCOMPLETE"
    again = lab.governor(model=model)
    lab.step(again, lab.batch("ab"))
    again.close()
    assert lab.verify().status == "OK"
    assert (again.committed, again.refused, again.effective_steps) == (2, 0, 2)
