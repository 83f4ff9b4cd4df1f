"""The signals that a run measures itself: they are what they are said to be, and rise on what is repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._functorch import config as functorch_config

from gradwarden.policy.errors import GradwardenError
from gradwarden.policy.known_signals import KNOWN_SIGNALS
from gradwarden.runtime import Measuring, Privacy
from gradwarden.runtime.errors import ExampleError, MaskError
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules

DECLARED = "signals {\n" + "\n".join(signal.declaration for signal in KNOWN_SIGNALS) + "\n}\n"
READ = "\n".join(
    f"advisory memorization read_{s.name} {{ when {s.name} > 0  refuse }}" for s in KNOWN_SIGNALS
)


def policy(lab, rules: str = "") -> str:
    return lab.policy + DECLARED + READ + "\n" + rules


def signals_of(governor, *names: str) -> dict[str, list[float]]:
    rows = governor.roster.rows(list(names))
    return {name: values.tolist() for name, values in governor.measures.signals(rows).items()}


# --- what rises ---------------------------------------------------------------------------------------------

STEPS, QUIET = 60, 20


def sentences(generator: torch.Generator) -> torch.Tensor:
    """Eight made-up sentences [8, 7] of a language that counts, with a third of the words misprinted."""
    counted = (torch.randint(0, 16, (8, 1), generator=generator) + torch.arange(7)) % 16
    misprinted = torch.rand(8, 7, generator=generator) < 0.3
    return torch.where(misprinted, torch.randint(0, 16, (8, 7), generator=generator), counted)


GUARD = "memorization caught { when token_score > 0.1 and loss_ratio < 0.5  refuse }\n"


def test_every_signal_rises_on_a_sentence_that_is_repeated_and_a_guard_stops_it(lab):
    """A sentence of its own words comes again and again, under two ids, among others that come once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 20)).double()
    text = """policy p version 1 language 1
    examples { kind : one of a }
    model { shallow = top 50%  deep = rest }
    depth all { reach all }
    """
    governor = lab.governor(
        text + DECLARED + READ + "\n" + GUARD,
        model,
        torch.optim.Adam(model.parameters(), 1e-2),
        measuring=Measuring(clusters={"planted": "copy", "planted again": "copy"}, every=1),
    )
    planted = torch.tensor([16, 17, 18, 19, 16, 18, 17])
    generator = torch.Generator().manual_seed(1)
    seen: dict[str, list[float]] = {signal.name: [] for signal in KNOWN_SIGNALS}
    for number in range(STEPS):
        words, names = sentences(generator), [f"{number}.{place}" for place in range(8)]
        if number >= QUIET:
            words[0], names[0] = planted, "planted"
        if number == QUIET:
            words[1], names[1] = planted, "planted again"
        with governor.step([{"id": name, "kind": "a"} for name in names]) as proposal:
            logits = model(words[:, :-1])
            losses = nn.functional.cross_entropy(logits.transpose(1, 2), words[:, 1:], reduction="none").mean(
                1
            )
            proposal.observe_tokens(logits, words[:, 1:])
            proposal.backward(losses)
        measured = signals_of(governor, *names)
        if number == QUIET:
            first = measured
        if number >= QUIET:
            for name, values in measured.items():
                seen[name].append(values[0])
    assert (
        first["gradient_norm"][0] > 1.0 > max(seen["gradient_norm"][-10:])
    )  # it stands out before it is learned
    assert first["copies"][2:] == [1.0] * 6
    learned = int(seen["copies"][-1])
    assert seen["copies"] == [*range(2, learned + 1), *[learned] * (STEPS - QUIET + 1 - learned)]
    assert max(seen["loss_fall"]) > 0.1 > 0.0 == seen["loss_fall"][0]
    assert seen["loss_gap"][-1] > 2.0
    assert seen["loss_ratio"][-1] < 0.5
    assert seen["token_score"][0] < -3.0 < 0.0 < seen["token_score"][-1]
    assert max(seen["depth_share"]) > 2 * seen["depth_share"][0]
    assert [decision.verdict for decision in proposal.decisions] == ["refuse", *["admit"] * 7]
    governor.close()
    report = lab.verify()
    assert report.status == "OK"
    assert report.facts["rules"]["enforced"]["caught"] == STEPS - QUIET + 1 - learned > 5
    *_, last = (body["signals"] for body in lab.bodies("step"))
    assert set(last) == {signal.name for signal in KNOWN_SIGNALS} == set(measured)


# --- what they are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fused", "split"])
@pytest.mark.parametrize("size", [2, 7])
def test_the_depth_share_is_that_of_each_examples_own_gradient(lab, size, engine):
    governor = lab.governor(policy(lab), measuring=Measuring(every=1), engine=engine)
    kinds, inputs = "abAadbc", lab.inputs(7)
    wanted = []
    for loss, kind in zip(lab.losses(governor.model, inputs), kinds, strict=True):
        squares = [
            sum(g.square().sum().item() for g in torch.autograd.grad(loss, members, retain_graph=True))
            for members in governor.parameters.values()
        ]
        reach = {"a": [1, 1], "b": [1, 0], "d": [0, 1]}.get(kind, [0, 0])
        own = [square * may for square, may in zip(squares, reach, strict=True)]
        wanted.append(own[1] / sum(own) if sum(own) else 0.0)
    with governor.step(lab.batch(kinds)) as proposal:
        for rows in proposal.micro_batches(size):
            proposal.backward(lab.losses(governor.model, inputs[rows]))
    assert proposal.committed
    found = signals_of(governor, *(f"e{place}" for place in range(7)))["depth_share"]
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("engine", ["fused", "split"])
def test_measuring_depth_changes_no_gradient(lab, engine):
    plain = lab.governor(name="plain", engine=engine)
    measured = lab.governor(policy(lab), name="measured", engine=engine, measuring=Measuring(every=1))
    for governor in (plain, measured):
        lab.step(governor, lab.batch("aabad"))
    for one, other in zip(plain.model.parameters(), measured.model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-12, atol=1e-14)


def test_the_depth_share_of_examples_with_several_rows_is_measured_by_the_reference_engine(lab):
    governor = lab.governor(policy(lab), measuring=Measuring(every=1), engine="split")
    inputs = lab.inputs(4)
    whole = lab.losses(governor.model, inputs).view(2, 2).sum(0)
    wanted = []
    for loss in whole:
        shallow, deep = (
            sum(g.square().sum().item() for g in torch.autograd.grad(loss, members, retain_graph=True))
            for members in governor.parameters.values()
        )
        wanted.append(deep / (shallow + deep))
    with governor.step(lab.batch("aa")) as proposal:
        proposal.assign(torch.arange(2).repeat(2))
        proposal.backward(lab.losses(governor.model, inputs).view(2, 2).sum(0))
    assert proposal.committed
    assert signals_of(governor, "e0", "e1")["depth_share"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("engine", ["fused", "split"])
@pytest.mark.parametrize("size", [2, 7])
def test_the_gradient_norm_is_that_of_the_outputs_whatever_weights_and_normaliser(
    lab, monkeypatch, engine, size
):
    governor = lab.governor(policy(lab), engine=engine, normaliser=3.0)
    noted = {}
    kept = governor.measures._kept["gradient_norm"]
    monkeypatch.setattr(
        kept, "observe", lambda rows, norms: noted.update(zip(rows.tolist(), norms, strict=True))
    )
    inputs = lab.inputs(7)
    outputs = governor.model(inputs)
    losses = (outputs - inputs[:, :3]).square().sum(1)
    wanted = torch.autograd.grad(losses.sum(), outputs)[0].norm(dim=1)
    with governor.step(lab.batch("abaadbb")) as proposal:
        for rows in proposal.micro_batches(size):
            proposal.backward(lab.losses(governor.model, inputs[rows]))
    assert [noted[row] for row in range(7)] == pytest.approx(wanted.tolist(), rel=1e-9)


COMPILED = {
    "in place": lambda model: (model.compile(backend="aot_eager"), model)[1],
    "around": lambda model: torch.compile(model, backend="aot_eager"),
}


@pytest.mark.parametrize("how", COMPILED)
def test_compiled_models_are_measured_as_they_are_uncompiled(lab, how):
    torch.compiler.reset()
    measured = {}
    for name, wrap in (("plain", lambda model: model), (how, COMPILED[how])):
        model = wrap(lab.model())
        noted = measured[name] = []
        with functorch_config.patch(donated_buffer=False):
            governor = lab.governor(policy(lab), model, name=name, measuring=Measuring(every=1))
            governor.measures._kept["gradient_norm"].observe = lambda rows, norms, to=noted: to.extend(norms)
            for _ in range(2):
                lab.step(governor, lab.batch("abad"))
        noted += signals_of(governor, "e0", "e1", "e3")["depth_share"]
    assert len(measured["plain"]) == 4 + 4 + 3
    assert measured[how] == pytest.approx(measured["plain"], rel=1e-9)
    torch.compiler.reset()


def test_reference_losses_from_elsewhere_go_before_an_examples_first_loss(lab):
    governor = lab.governor(policy(lab), measuring=Measuring({"e0": 100.0}))
    first = lab.losses(governor.model, lab.inputs(2)).tolist()
    lab.step(governor, lab.batch("aa"))
    assert signals_of(governor, "e0", "e1")["loss_gap"] == pytest.approx([100.0 - first[0], 0.0])


def test_an_example_that_was_not_measured_has_the_declared_default(lab):
    governor = lab.governor(policy(lab))
    governor.roster.add([("new", {"kind": "a", "ok": True})])
    defaults = {s.name: [float(s.default)] for s in KNOWN_SIGNALS}
    assert signals_of(governor, "new") == defaults


def test_what_the_loop_gives_goes_before_what_is_measured(lab):
    governor = lab.governor(policy(lab, "memorization capped { when copies > 3  refuse }"))
    lab.step(governor, lab.batch("a"), signals={"copies": 4})
    governor.close()
    assert [body["signals"]["copies"] for body in lab.bodies("step")] == [[4_000_000]]
    assert governor.refused == 1


def test_nothing_is_measured_of_private_examples(lab):
    rules = "privacy p { when kind == b  within shallow  epsilon 3  delta 1e-6  clip 1.0 }"
    text = policy(lab, rules)
    plan = JointPlan.for_noise(privacy_rules(lab.program(text)), 0.01, noise_multiplier=4.0)
    governor = lab.governor(text, privacy=plan, normaliser=4.0, measuring=Measuring(every=1), engine="fused")
    for _ in range(3):
        lab.step(governor, lab.batch("a" * 20 + "b"))
    found = signals_of(governor, "e0", "e20")
    defaults = {s.name: float(s.default) for s in KNOWN_SIGNALS}
    untouched = {name for name, values in found.items() if values[1] == defaults[name]}
    assert untouched == set(defaults) - {"copies"}
    assert {name for name, values in found.items() if values[0] == defaults[name]} <= {"token_score"}


def test_a_text_that_comes_again_within_an_epoch_is_told_from_the_second_time_on(lab):
    guard = "memorization again { when comings > epoch  refuse }"
    governor = lab.governor(policy(lab, guard), measuring=Measuring(clusters={"x1": "x", "x2": "x"}))
    seen = []
    for epoch, names in [(0, ["x1", "y"]), (0, ["x2", "z"]), (1, ["x1", "y"]), (1, ["z", "x2", "z"])]:
        governor.epoch = epoch
        proposal = lab.step(governor, [lab.example(name) for name in names])
        seen.append([decision.verdict for decision in proposal.decisions])
    assert seen == [
        ["admit", "admit"],
        ["refuse", "admit"],
        ["refuse", "admit"],
        ["admit", "refuse", "refuse"],
    ]
    assert signals_of(governor, "x1", "y", "z") == {
        **signals_of(governor, "x1", "y", "z"),
        "comings": [4.0, 2.0, 3.0],
        "copies": [1.0, 2.0, 2.0],
    }
    governor.close()
    assert lab.verify().ok


def test_what_came_under_a_privacy_rule_is_not_counted_when_its_budget_is_spent_either(lab):
    rules = "privacy p { when kind == b  within shallow  epsilon 3  delta 1e-6  clip 1.0 }"
    text = policy(lab, rules)
    plan = JointPlan.for_steps(privacy_rules(lab.program(text)), 0.01, 2)
    governor = lab.governor(
        text,
        privacy=Privacy(plan, on_trust=["exposures", "sampling"]),
        normaliser=4.0,
        measuring=Measuring(clusters={"e0": "x", "e1": "x"}),
    )
    last = [lab.step(governor, lab.batch("ab")).decisions[1].verdict for _ in range(4)][-1]
    assert last == "refuse"
    assert signals_of(governor, "e0")["comings"] == [4.0]


# --- what is kept, and misuse -------------------------------------------------------------------------------


def test_signals_outlive_a_stop(lab):
    first = lab.governor(policy(lab), measuring=Measuring(clusters={"e0": "x", "e1": "x"}, every=1))
    for seed in range(12):
        lab.step(first, lab.batch("aaab"), seed=seed)
    known, state = list(first.roster.known()), first.measures.state_dict()
    wanted = signals_of(first, *known)
    first.engine.close()
    first.ledger.close()
    again = lab.governor(policy(lab), measuring=Measuring(clusters={"e0": "x", "e1": "x"}, every=1))
    again.roster.add(
        (e["id"], {k: v for k, v in e.items() if k != "id"}) for e in reversed(lab.batch("aaab"))
    )
    again.measures.load_state_dict(state)
    assert signals_of(again, *known) == wanted
    assert wanted["copies"] == [24.0, 25.0, 12.0, 12.0]  # `e1` comes after its copy in a batch
    assert wanted["comings"] == wanted["copies"]


def test_a_state_of_unknown_examples_is_refused(lab):
    governor = lab.governor(policy(lab))
    lab.step(governor, lab.batch("aa"))
    state = governor.measures.state_dict()
    other = lab.governor(policy(lab), name="other")
    with pytest.raises(ExampleError, match="`e0` is not known"):
        other.measures.load_state_dict(state)


def test_logits_of_another_shape_are_refused(lab):
    governor = lab.governor(policy(lab))
    wanted = pytest.raises(GradwardenError, match="one row of logits per example: 2, not 3")
    with wanted, governor.step(lab.batch("aa")) as proposal:
        proposal.observe_tokens(torch.zeros(3, 4, 5), torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(MaskError, match="one step in 1 at least"):
        lab.governor(policy(lab), name="other", measuring=Measuring(every=0))


def test_a_closed_run_leaves_no_hook_on_the_model(lab):
    model = lab.model()
    before = len(model._forward_hooks)
    governor = lab.governor(policy(lab), model)
    lab.step(governor, lab.batch("aa"))
    governor.close()
    assert len(model._forward_hooks) == before
    assert np.isfinite(list(signals_of(governor, "e0").values())).all()


def test_the_page_has_the_table():
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text("utf-8")
    for signal in KNOWN_SIGNALS:
        assert f"| `{signal.declaration}` | {signal.meaning} | {signal.needs} |" in page
