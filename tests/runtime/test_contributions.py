"""What each example adds to each band's gradient, and how far bands move: on record where the policy asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.cli.judging import Asked, judge
from gradwarden.policy.evaluation.chosen_steps import any_chosen, is_chosen
from gradwarden.runtime import Privacy
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.privacy.accounting import JointPlan, privacy_rules
from gradwarden.runtime.provenance.answers import Contribution, Movement
from gradwarden.runtime.provenance.index import build_index
from gradwarden.runtime.provenance.queries import Queries
from tests.runtime.maintained import flat, values

ALWAYS = "gradient { record 1 in 1 steps }\n"
SOME = "gradient { record 1 in 3 steps }\n"
PRIVATE = "privacy people { when kind == b  within shallow  epsilon 2  delta 1e-5  clip 1 }\n"
WEIGHTS = {"a": (1.0, 1.0), "b": (0.5, 0.0), "d": (0.0, 0.25), "C": (0.0, 0.0)}
"""By kind, in the shallow band and the deep one."""


def own_norms(governor, losses, kinds: str, divisor: float) -> dict[str, list[float]]:
    """The definition: each loss differentiated alone, the norm weighted by band."""
    found: dict[str, list[float]] = {}
    for place, (band, members) in enumerate(governor.parameters.items()):
        each = [torch.autograd.grad(loss, list(members), retain_graph=True) for loss in losses]
        gradients = [[g.to_dense() if g.is_sparse else g for g in own] for own in each]
        found[band] = [
            WEIGHTS[kind][place] * flat(gradient).norm().item() / divisor
            for kind, gradient in zip(kinds, gradients, strict=True)
        ]
    return found


@pytest.mark.parametrize("engine", ["fused", "split"])
@pytest.mark.parametrize("normaliser", [None, 7.0])
@pytest.mark.parametrize("size", [2, 6])
def test_what_each_example_adds_to_each_band_is_on_record(lab, engine, normaliser, size):
    kinds = "abdCab"
    governor = lab.governor(lab.policy + ALWAYS, engine=engine, normaliser=normaliser)
    inputs = lab.inputs(len(kinds))
    wanted = own_norms(governor, lab.losses(governor.model, inputs), kinds, normaliser or len(kinds))
    with governor.step(lab.batch(kinds)) as proposal:
        for part in proposal.micro_batches(size):
            proposal.backward(lab.losses(governor.model, inputs[part]))
    governor.close()
    (body,) = lab.bodies("contributed")
    assert (body["step"], body["first"]) == (0, 0)
    assert {band: [float(x) for x in texts] for band, texts in body["norms"].items()} == {
        band: pytest.approx(norms, rel=6e-4) for band, norms in wanted.items()
    }
    assert lab.verify().ok


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_how_far_each_band_moved_is_on_record(lab, optimizer):
    model = lab.model()
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    governor = lab.governor(lab.policy + ALWAYS, model, optimizer(model.parameters(), lr=0.05, **options))
    wanted = []
    for number, kinds in enumerate(("aab", "d", "bb")):
        before = {band: values(governor, band) for band in governor.parameters}
        lab.step(governor, lab.batch(kinds, f"s{number}"), seed=number)
        moved = {band: (values(governor, band) - was).norm().item() for band, was in before.items()}
        wanted.append({band: pytest.approx(norm, rel=1e-5) for band, norm in moved.items()})
    governor.close()
    found = [body["norms"] for body in lab.bodies("moved")]
    assert [{band: float(text) for band, text in norms.items()} for norms in found] == wanted
    assert [norms["shallow"] == "0" for norms in found] == [False, True, False]
    assert [norms["deep"] == "0" for norms in found] == [False, False, True]
    assert lab.verify().ok


def test_only_the_chosen_steps_that_are_committed_record_it(lab):
    governor = lab.governor(lab.policy + SOME)
    for number in range(30):
        lab.step(governor, lab.batch("ab" if number % 4 else "CC", f"s{number}"), seed=number)
    governor.close()
    wanted = [step for step in range(30) if is_chosen(step, 3) and step % 4]
    assert 0 < len(wanted) < 30
    assert [body["step"] for body in lab.bodies("contributed")] == wanted
    assert [body["step"] for body in lab.bodies("moved")] == wanted
    assert lab.verify().ok


def test_a_policy_that_does_not_ask_records_nothing(lab):
    governor = lab.governor()
    lab.step(governor, lab.batch("ab"))
    governor.close()
    assert lab.bodies("committed")
    assert not lab.bodies("contributed")
    assert not lab.bodies("moved")


def test_a_large_batch_is_recorded_in_several_entries(lab):
    governor = lab.governor(lab.policy + ALWAYS)
    lab.step(governor, lab.batch("ab" * 2_100))
    governor.close()
    assert [body["first"] for body in lab.bodies("contributed")] == [0, 2_000, 4_000]
    assert sum(len(body["norms"]["deep"]) for body in lab.bodies("contributed")) == 4_200
    assert lab.verify().facts["contributions"] == 1
    assert lab.verify().ok


@pytest.mark.parametrize("scale", [1e-25, 1e19, 1e25])
def test_what_is_too_small_or_too_large_to_measure_agrees_with_its_step(lab, scale):
    governor = lab.governor(lab.policy + ALWAYS, lab.model().float())
    with governor.step(lab.batch("abd")) as proposal:
        proposal.backward(scale * lab.losses(governor.model, lab.inputs(3).float()))
    assert proposal.committed
    governor.close()
    (body,) = lab.bodies("contributed")
    assert ("inf" in body["norms"]["deep"]) == (scale > 1e20)
    assert lab.verify().ok


def test_gradients_whose_squares_are_lost_in_single_precision_agree_with_their_steps(lab):
    governor = lab.governor(lab.policy + ALWAYS, lab.model().float())
    for number in range(24):
        with governor.step(lab.batch("aaaa", f"s{number}.")) as proposal:
            scale = 10 ** -(20 + number / 6)
            proposal.backward(scale * lab.losses(governor.model, lab.inputs(4, number).float()))
        assert proposal.committed
    governor.close()
    assert lab.verify().ok


@pytest.mark.parametrize("engine", ["fused", "split"])
def test_parts_of_a_gradient_that_float16_rounds_up_add_up_to_it(lab, engine):
    governor = lab.governor(lab.policy + ALWAYS, lab.model().half(), engine=engine, normaliser=1e5)
    for number, kinds in enumerate(("a", "a", "a", "ab", "abd", "a", "a", "a")):
        with governor.step(lab.batch(kinds, f"s{number}.")) as proposal:
            inputs = lab.inputs(len(kinds), number).half()
            proposal.backward(0.02 * lab.losses(governor.model, inputs).float())
    governor.close()
    sums = [sum(map(float, body["norms"]["shallow"])) for body in lab.bodies("contributed")]
    norms = [float(body["norms"]["shallow"]) for body in lab.bodies("committed")]
    assert any(norm == pytest.approx(total, rel=1e-3) for norm, total in zip(norms, sums, strict=True))
    assert lab.verify().ok


def test_a_step_after_which_parameters_are_no_numbers_says_so(lab):
    model = lab.model()
    governor = lab.governor(lab.policy + ALWAYS, model, torch.optim.SGD(model.parameters(), lr=1e200))
    lab.step(governor, lab.batch("abb"), scale=1e150)
    governor.close()
    (body,) = lab.bodies("moved")
    assert body["norms"] == {"deep": "inf", "shallow": "inf"}
    assert lab.verify().ok


class Quantized(torch.nn.Module):
    """A frozen table that has no differences, one with an infinity that is trained, and two layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Parameter(torch.ones(6).to(dtype), requires_grad=False)
        self.bound = torch.nn.Parameter(torch.tensor([torch.inf] * 5 + [0.1], dtype=torch.float64))
        self.first, self.last = torch.nn.Linear(4, 6).double(), torch.nn.Linear(6, 3).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(inputs)) * self.table.to(inputs.dtype)
        return self.last(torch.minimum(hidden, self.bound))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_what_is_frozen_or_infinite_does_not_keep_a_band_from_being_measured(lab, dtype):
    policy = lab.policy.replace("top 40%", 'names "last.*"') + ALWAYS
    governor = lab.governor(policy, Quantized(dtype))
    for number, kinds in enumerate(("bb", "a")):
        lab.step(governor, lab.batch(kinds, f"s{number}"), seed=number)
    governor.close()
    first, second = (body["norms"] for body in lab.bodies("moved"))
    assert first["deep"] == "0"
    assert 0 < float(second["deep"]) < 1
    assert lab.verify().ok


@pytest.mark.parametrize("engine", ["fused", "split"])
def test_what_an_example_adds_to_a_sparse_gradient_is_on_record(lab, engine):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4, sparse=True), torch.nn.Linear(4, 3)).double()
    governor = lab.governor(lab.policy.replace("top 40%", 'names "1.*"') + ALWAYS, model, engine=engine)
    tokens = torch.tensor([[0, 1, 1], [2, 0, 2], [3, 3, 4]])

    def losses() -> torch.Tensor:
        return model(tokens).square().sum((1, 2))

    wanted = own_norms(governor, losses(), "abd", 3.0)
    with governor.step(lab.batch("abd")) as proposal:
        proposal.backward(losses())
    governor.close()
    (body,) = lab.bodies("contributed")
    assert {band: [float(x) for x in texts] for band, texts in body["norms"].items()} == {
        band: pytest.approx(norms, rel=6e-4) for band, norms in wanted.items()
    }
    assert lab.verify().ok


# --- private examples ---------------------------------------------------------------------------------------


def private_run(lab, **options: Any) -> None:
    program = lab.program(lab.policy + PRIVATE + ALWAYS, lab.model())
    plan = JointPlan.for_steps(privacy_rules(program), 0.01, 10)
    privacy = Privacy(plan, on_trust=["sampling"], noise_seed=1, **options)
    governor = lab.governor(program, privacy=privacy, normaliser=4.0)
    lab.step(governor, lab.batch("abb"))
    governor.close()


def test_nothing_is_recorded_of_what_a_private_example_adds(lab):
    private_run(lab)
    (body,) = lab.bodies("contributed")
    assert [texts[1:] for texts in body["norms"].values()] == [[None, None]] * 2
    assert all(float(texts[0]) > 0 for texts in body["norms"].values())
    assert lab.verify().ok


def test_private_examples_that_are_withheld_have_no_place_in_it(lab):
    private_run(lab, withhold=True)
    (body,) = lab.bodies("contributed")
    assert [len(texts) for texts in body["norms"].values()] == [1, 1]
    assert lab.verify().ok


# --- verification -------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(lab):
    """A run in which some steps record contributions, others do not, and one that should is refused."""
    governor = lab.governor(lab.policy + SOME)
    for number in range(12):
        lab.step(governor, lab.batch("bCd" if number != 6 else "CC", f"s{number}"), seed=number)
    assert is_chosen(6, 3)
    assert not is_chosen(1, 3)
    governor.close()
    return lab


def body_of(entries, kind: str, step: int | None = None) -> dict[str, Any]:
    return next(body for k, body in entries if k == kind and step in (None, body["step"]))


def without(*kinds: str):
    def change(entries):
        return [entry for entry in entries if entry[0] not in kinds]

    change.__name__ = f"without_{'_and_'.join(kinds)}"
    return change


def nothing_added(entries):
    for band, texts in body_of(entries, "contributed")["norms"].items():
        body_of(entries, "contributed")["norms"][band] = ["0"] * len(texts)


def half_added(entries):
    norms = body_of(entries, "contributed")["norms"]
    norms["shallow"][0] = f"{float(norms['shallow'][0]) / 2:.4g}"


def added_without_a_weight(entries):
    body_of(entries, "contributed")["norms"]["deep"][0] = "0.1"


def added_no_number(entries):
    body_of(entries, "contributed")["norms"]["shallow"][0] = "nan"


def in_more_entries_than_there_are_examples(entries):
    place = next(i for i, (kind, _) in enumerate(entries) if kind == "moved")
    body = entries[place - 1][1]
    empty = {**body, "first": 3, "norms": {band: [] for band in body["norms"]}}
    entries[place:place] = [("contributed", empty)] * 3


def added_less_than_nothing(entries):
    body_of(entries, "contributed")["norms"]["shallow"][0] = "-0.1"


def told_as_private(entries):
    body_of(entries, "contributed")["norms"]["deep"][0] = None


def one_example_short(entries):
    for texts in body_of(entries, "contributed")["norms"].values():
        texts.pop()


def a_band_short(entries):
    del body_of(entries, "contributed")["norms"]["deep"]


def out_of_turn(entries):
    body_of(entries, "contributed")["first"] = 1


def twice(entries):
    place = next(i for i, (kind, _) in enumerate(entries) if kind == "moved")
    entries.insert(place, entries[place])


def in_another_step(entries):
    first = next(i for i, (kind, _) in enumerate(entries) if kind == "contributed")
    place = next(i for i, (kind, b) in enumerate(entries) if kind == "committed" and b["step"] == 1)
    entries[place:place] = [(kind, {**body, "step": 1}) for kind, body in entries[first : first + 2]]


def in_a_refused_step(entries):
    first = next(i for i, (kind, _) in enumerate(entries) if kind == "contributed")
    place = next(i for i, (kind, _) in enumerate(entries) if kind == "refused")
    entries[place:place] = [(kind, {**body, "step": 6}) for kind, body in entries[first : first + 2]]


def moved_backwards(entries):
    body_of(entries, "moved")["norms"]["shallow"] = "-1"


FORGERIES = [
    *(without("contributed", "moved"), without("contributed"), without("moved"), nothing_added, half_added),
    *(added_without_a_weight, added_less_than_nothing, told_as_private, one_example_short, a_band_short),
    *(out_of_turn, twice, in_another_step, in_a_refused_step, moved_backwards),
    *(added_no_number, in_more_entries_than_there_are_examples),
]


@pytest.mark.parametrize("change", FORGERIES, ids=[change.__name__ for change in FORGERIES])
def test_contributions_that_do_not_agree_with_their_step_are_found(recorded, change):
    report = recorded.forge(change)
    assert [finding.code for finding in report.findings] == ["wrong_contribution"]


def test_a_band_that_was_moved_where_the_step_may_not_reach_it_is_found(lab):
    governor = lab.governor(lab.policy + ALWAYS)
    lab.step(governor, lab.batch("bb"))
    governor.close()

    def change(entries):
        body_of(entries, "moved")["norms"]["deep"] = "0.5"

    assert [finding.code for finding in lab.forge(change).findings] == ["wrong_contribution"]
    assert lab.forge(lambda entries: None, target="same").ok


def test_a_verdict_says_what_was_checked_of_contributions_and_what_was_not(recorded):
    told = judge(recorded.path(), Trust((recorded.signer.public,)), Asked())
    steps = sum(1 for body in recorded.bodies("moved") if body["step"] != 6)
    assert f"what examples added to each band in {steps} steps: " in "\n".join(told.checked())
    assert "what each single example added: it was taken at its word" in "\n".join(told.unchecked())


def test_what_a_private_example_added_may_not_be_told(lab):
    private_run(lab)

    def change(entries):
        body_of(entries, "contributed")["norms"]["shallow"][1] = "0.1"

    (finding,) = lab.forge(change).findings
    assert finding.code == "wrong_contribution"
    assert "private" in finding.message


def test_a_step_whose_outcome_was_lost_may_have_recorded_contributions(lab):
    """As after a crash between the record of what was added and that of the outcome."""
    governor = lab.governor(lab.policy + SOME)
    lab.step(governor, lab.batch("bCd"))
    governor.abandon()
    lines = lab.path().read_bytes().splitlines(keepends=True)
    (end,) = [entry.index + 1 for entry in lab.entries(kind="moved")]
    lab.path().write_bytes(b"".join(lines[:end]))
    Path(f"{lab.path()}.head").unlink(missing_ok=True)
    with lab.governor(lab.policy + SOME) as governor:
        for number in range(6):
            lab.step(governor, lab.batch("bCd", f"t{number}"), seed=number)
    assert lab.verify().ok


# --- trace --------------------------------------------------------------------------------------------------


def test_trace_adds_up_what_a_run_records(lab):
    """Whoever has weight in a band is told with what it added there: at least the gradient, all together."""
    pytest.importorskip("duckdb")
    governor = lab.governor(lab.policy + SOME)
    for number in range(12):
        lab.step(governor, lab.batch("CCC", "c") if number == 5 else lab.batch("abd"), seed=number)
    governor.close()
    queries = Queries(build_index(lab.path()))
    added, moved = lab.bodies("contributed"), lab.bodies("moved")
    gradients = {body["step"]: body["norms"] for body in lab.bodies("committed")}
    for band, places in (("shallow", [0, 1]), ("deep", [0, 2])):
        found = queries.band(band)
        sums = [sum(float(body["norms"][band][place]) for body in added) for place in places]
        told = [(one.added.steps, one.added.norm, one.added.private) for one in found.top]
        assert told == [(len(added), pytest.approx(total, rel=1e-5), 0) for total in sums]
        assert sum(sums) >= 0.98 * sum(float(gradients[body["step"]][band]) for body in added)
        distance = sum(float(body["norms"][band]) for body in moved)
        assert found.moved == Movement(len(moved), 11, pytest.approx(distance, rel=1e-5))
        for one in found.top:
            assert queries.example(bytes.fromhex(one.commitment)).added[band] == one.added
    assert 1 < len(added) < 11


def test_trace_tells_nothing_of_what_a_private_example_added(lab):
    pytest.importorskip("duckdb")
    private_run(lab)
    public, *private = Queries(build_index(lab.path())).band("shallow").top
    assert public.added.norm > 0
    assert [one.added for one in private] == [Contribution(0, None, 1)] * 2


# --- which steps --------------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(1, 200), st.integers(1, 2**31 - 1))
def test_many_steps_are_asked_for_as_each_is(first, count, every):
    steps = np.arange(first, first + count, dtype=np.int64)
    assert any_chosen(steps, every) == any(is_chosen(step, every) for step in steps.tolist())


@given(st.integers(0, 2**40), st.integers(1, 1_000), st.integers(1, 1_000))
def test_a_step_that_a_rarer_record_has_a_more_frequent_one_has_as_well(step, every, more):
    assert is_chosen(step, every) or not is_chosen(step, every + more)
