"""Mixed precision: scaled losses, autocast, and what becomes of overflows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import LedgerError, MaskError, PrivacyError
from gradwarden.runtime.masks import make_engine

engines = pytest.mark.parametrize("engine", ["fused", "split"])
halves = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Half a unit in the last place of each precision: the relative error of one rounding."""


def scaler(init_scale: float = 2.0**10, **options: Any) -> GradScaler:
    return GradScaler("cpu", init_scale=init_scale, **options)


# --- scaling ------------------------------------------------------------------------------------------------


@engines
def test_scaling_by_a_power_of_two_changes_no_bit(lab: Any, engine: str) -> None:
    bits = []
    for name, options in (("plain", {}), ("scaled", {"scaler": scaler()})):
        model = lab.model().float()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        governor = lab.governor(model=model, optimizer=optimizer, name=name, engine=engine, **options)
        norms = []
        for step in range(4):
            with governor.step(lab.batch("aabBcdba")) as proposal:
                proposal.backward(lab.losses(model, lab.inputs(8, seed=step).float()))
            assert proposal.committed
            norms.append(proposal.norms)
        bits.append((norms, [p.detach().clone() for p in model.parameters()]))
        governor.close()
    assert bits[0][0] == bits[1][0]
    assert all(torch.equal(one, other) for one, other in zip(bits[0][1], bits[1][1], strict=True))


@engines
def test_an_overflow_refuses_the_step_on_record_and_halves_the_scale(
    lab: Any, engine: str, state_of: Any, changes: Any
) -> None:
    scaling = scaler(2.0**127)
    model = lab.model().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    governor = lab.governor(model=model, optimizer=optimizer, engine=engine, scaler=scaling)
    refused = 0
    while True:
        before = state_of(governor)
        scale = scaling.get_scale()
        with governor.step(lab.batch("aab")) as proposal:
            proposal.backward(lab.losses(model, lab.inputs(3).float()))
        if proposal.committed:
            break
        refused += 1
        assert changes(before, state_of(governor)) == []
        assert scaling.get_scale() == scale / 2
        assert proposal.refusal is not None
        assert proposal.refusal.reason == "gradient_not_finite"
    assert refused > 0
    assert scaling.get_scale() == 2.0 ** (127 - refused)
    governor.close()
    recorded = lab.bodies("refused")
    assert len(recorded) == refused
    assert f"losses scaled by {2.0**127:g}" in recorded[0]["detail"]
    assert lab.verify().ok


def test_the_scale_grows_with_committed_steps_and_other_refusals_leave_it_alone(lab: Any) -> None:
    scaling = scaler(8.0, growth_interval=2)
    model = lab.model().float()
    governor = lab.governor(model=model, scaler=scaling)

    def step(spoil: str = "") -> Any:
        with governor.step(lab.batch("aab")) as proposal:
            losses = lab.losses(model, lab.inputs(3).float())
            if spoil == "loss":
                losses = losses * torch.tensor([1.0, float("nan"), 1.0])
            proposal.backward(losses)
            if spoil == "foreign":
                next(model.parameters()).grad = None
                lab.losses(model, lab.inputs(3).float()).sum().backward()
            if spoil == "own":
                raise KeyError
        return proposal

    assert step().committed
    assert step("loss").refusal.reason == "loss_not_finite"
    assert step("foreign").refusal.reason == "foreign_gradient"
    with pytest.raises(KeyError):
        step("own")
    assert scaling.get_scale() == 8.0
    assert step().committed
    assert scaling.get_scale() == 16.0  # the second of two committed steps


def test_a_gate_that_refuses_after_the_division_leaves_the_scale_and_the_next_step_goes_through(
    lab: Any,
) -> None:
    scaling = scaler(8.0)
    model = lab.model().float()
    governor = lab.governor(model=model, scaler=scaling)
    with governor.step(lab.batch("bb")) as proposal:  # nobody may shape the deep band
        proposal.backward(lab.losses(model, lab.inputs(2).float()))
        model[0].weight.grad = torch.ones_like(model[0].weight)
    assert proposal.refusal.reason == "foreign_gradient"
    assert scaling.get_scale() == 8.0
    with governor.step(lab.batch("aa", prefix="f")) as proposal:
        proposal.backward(lab.losses(model, lab.inputs(2).float()))
    assert proposal.committed


def test_caps_and_norms_are_those_of_the_gradients_themselves(lab: Any, reference: Any) -> None:
    policy = lab.policy + "\ngradient { shallow at most 0.125 }\n"
    norms = []
    for name, options in (("plain", {}), ("scaled", {"scaler": scaler(2.0**20)})):
        governor = lab.governor(policy, model=lab.model().float(), name=name, **options)
        with governor.step(lab.batch("aab")) as proposal:
            proposal.backward(lab.losses(governor.model, lab.inputs(3).float()))
        norms.append(proposal.norms)
        governor.close()
    assert norms[0] == norms[1]
    assert norms[0]["shallow"] == pytest.approx(0.125)


def test_parameters_that_the_optimizer_does_not_move_are_divided_too(lab: Any) -> None:
    model = lab.model().float()
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)
    scaling = scaler(2.0**8)
    governor = lab.governor(model=model, optimizer=optimizer, scaler=scaling)
    with governor.step(lab.batch("aab")) as proposal:
        proposal.backward(lab.losses(model, lab.inputs(3).float()))
    plain = lab.governor(model=lab.model().float(), name="plain")
    with plain.step(lab.batch("aab")) as expected:
        expected.backward(lab.losses(plain.model, lab.inputs(3).float()))
    assert proposal.norms == expected.norms
    # And where one of them overflows, the scale still comes down.
    scaling.update(2.0**127)
    with governor.step(lab.batch("aab")) as proposal:
        losses = lab.losses(model, lab.inputs(3).float())
        proposal.backward(losses)
        for parameter in model[4].parameters():
            parameter.grad = torch.zeros_like(parameter)
        model[0].weight.grad.fill_(float("inf"))
    assert proposal.refusal.reason == "gradient_not_finite"
    assert scaling.get_scale() == 2.0**126


def test_a_scaler_that_is_not_enabled_does_nothing(lab: Any) -> None:
    governor = lab.governor(scaler=GradScaler("cpu", enabled=False))
    assert lab.step(governor, lab.batch("aab")).committed


def test_a_scaler_is_refused_where_private_gradients_would_decide_about_steps(lab: Any) -> None:
    policy = lab.policy + (
        "privacy patients { when kind == a and has who  within shallow  epsilon 3  delta 1e-6  clip 1.0"
        "  unit who }\n"
    )
    with pytest.raises(PrivacyError, match="raw private gradients"):
        lab.governor(policy, normaliser=4.0, scaler=scaler())


# --- the whole gradient's norm ------------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("scaled", [False, True])
def test_the_whole_gradient_is_clipped_as_torch_does_after_the_caps_of_bands(
    lab: Any, engine: str, scaled: bool
) -> None:
    policy = lab.policy + "\ngradient { shallow at most 0.25 }\n"
    capped = lab.governor(policy, engine=engine, name="capped")
    with capped.step(lab.batch("aabd")) as proposal:
        proposal.backward(lab.losses(capped.model, lab.inputs(4)))
    for parameter in capped.model.parameters():
        assert parameter.grad is not None
    want = copy.deepcopy([p.grad for p in capped.model.parameters()])
    whole = float(torch.cat([g.flatten() for g in want]).norm())
    assert whole > 0.3
    options = {"scaler": scaler()} if scaled else {}
    governor = lab.governor(policy, engine=engine, clip_norm=0.3, **options)
    with governor.step(lab.batch("aabd")) as proposal:
        proposal.backward(lab.losses(governor.model, lab.inputs(4)))
    for parameter, gradient in zip(governor.model.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * (0.3 / whole), rtol=1e-12, atol=0)
    assert sum(norm**2 for norm in proposal.norms.values()) ** 0.5 == pytest.approx(0.3, rel=1e-12)
    governor.close()
    (committed,) = lab.bodies("committed")
    assert float(committed["norms"]["shallow"]) == pytest.approx(proposal.norms["shallow"], rel=1e-5)
    assert lab.bodies("opened")[0]["clip_norm"] == "0.3"
    assert lab.verify().ok


def test_a_gradient_within_the_norm_keeps_its_bits(lab: Any) -> None:
    norms = []
    for name, options in (("plain", {}), ("clipped", {"clip_norm": 1e6})):
        governor = lab.governor(name=name, **options)
        lab.step(governor, lab.batch("aab"))
        norms.append([p.detach().clone() for p in governor.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*norms, strict=True))


def test_a_band_without_a_gradient_stays_without_one_when_the_rest_is_clipped(lab: Any) -> None:
    governor = lab.governor(clip_norm=1e-3)
    proposal = lab.step(governor, lab.batch("bb"))
    assert proposal.norms["deep"] is None
    assert governor.model[0].weight.grad is None


def test_a_ledger_whose_steps_exceed_the_norm_it_was_opened_with_does_not_verify(lab: Any) -> None:
    governor = lab.governor(clip_norm=0.5)
    lab.step(governor, lab.batch("aab"), scale=100.0)
    governor.close()

    def exaggerate(entries: list[tuple[str, dict[str, Any]]]) -> None:
        for kind, body in entries:
            if kind == "committed":
                body["norms"]["deep"] = "0.5"

    report = lab.forge(exaggerate)
    assert not report.ok
    assert "above 0.5" in str(report.findings)


def test_the_norm_cannot_change_within_a_run(lab: Any) -> None:
    governor = lab.governor(clip_norm=0.5)
    lab.step(governor, lab.batch("aab"))
    governor.engine.close()
    governor.ledger.close()
    with pytest.raises(LedgerError, match="clip norm"):
        lab.governor(clip_norm=0.25)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("inf"), float("nan")])
def test_a_norm_that_clips_nothing_or_everything_is_refused(lab: Any, norm: float) -> None:
    with pytest.raises(MaskError, match="clip norm"):
        lab.governor(clip_norm=norm)


# --- autocast -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Embeddings, both norms, attention, a reused layer and a convolution: [B, T] -> [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8)
        self.norm_1, self.norm_2 = nn.LayerNorm(8), nn.RMSNorm(8)
        self.qkv, self.again = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mix, self.groups = nn.Conv1d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 9)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        query, key, value = self.qkv(self.norm_1(h)).chunk(3, dim=2)
        h = h + nn.functional.scaled_dot_product_attention(query, key, value)
        h = h + torch.tanh(self.again(torch.tanh(self.again(self.norm_2(h)))))
        h = h + self.groups(self.mix(h.transpose(1, 2))).transpose(1, 2)
        logits = self.head(h).float()
        return nn.functional.cross_entropy(logits.transpose(1, 2), x, reduction="none").mean(1)


BANDS = (
    Band("top", (), ("head.weight", "head.bias", "mix.weight", "mix.bias", "groups.weight", "groups.bias")),
    Band("low", (), ("words.weight", "norm_1.weight", "norm_1.bias", "norm_2.weight", "qkv.weight")),
    Band("odd", (), ("again.weight", "again.bias", "qkv.bias")),
)
WEIGHTS = torch.tensor(
    [[1.0, 1.0, 1.0], [0.5, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.25, 0.5], [1.5, 1.0, 0.0], [0.0, 0.5, 1.0]]
)


def expected(model: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """The definition, without autocast."""
    home = {name: k for k, band in enumerate(BANDS) for name in band.parameters}
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(len(x)):
        gradients = torch.autograd.grad(model(x[row : row + 1])[0], list(model.parameters()))
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += float(weights[row, home[name]]) * gradient
    return total


def cosine(one: Tensor, other: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


@engines
@halves
@pytest.mark.parametrize("inside", [False, True], ids=["after autocast", "inside autocast"])
def test_gradients_under_autocast_are_as_good_as_those_of_plain_training(
    engine: str, half: torch.dtype, inside: bool
) -> None:
    """Each parameter's error is at most twice that of plain autocast training, or some roundings."""
    model = Net()
    x = torch.randint(0, 9, (6, 5))
    for weights in (torch.ones(6, 3), WEIGHTS):
        exact = expected(model, x, weights)
        model.zero_grad()
        with torch.autocast("cpu", dtype=half):
            factors = weights[:, 0] if weights is not WEIGHTS else torch.ones(6)
            plain = torch.autograd.grad((model(x) * factors).sum(), list(model.parameters()))
        unweighted = expected(model, x, torch.ones(6, 3))
        model.zero_grad()
        masks = make_engine(model, BANDS, engine)
        masks.arm(weights)
        with torch.autocast("cpu", dtype=half):
            losses = model(x)
            if inside:
                masks.backward(losses, 1.0)
        if not inside:
            masks.backward(losses, 1.0)
        masks.close()
        for (name, parameter), stock in zip(model.named_parameters(), plain, strict=True):
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32
            scale = float(unweighted[name].norm())
            allowed = 2 * float((stock - unweighted[name]).norm()) / scale + 4 * ROUNDING[half]
            assert float((parameter.grad - exact[name]).norm()) / scale <= allowed, name


@engines
@halves
def test_one_autocast_context_around_several_micro_batches(engine: str, half: torch.dtype) -> None:
    """Weights that autocast converts in a part that may not shape them are not reused without a graph."""
    model = Net()
    x = torch.randint(0, 9, (4, 5))
    masks = make_engine(model, BANDS, engine)
    parts = [torch.tensor([1.0, 0.0, 0.0]).expand(4, 3), torch.ones(4, 3)]
    with torch.autocast("cpu", dtype=half):
        for weights in parts:
            masks.arm(weights)
            masks.backward(model(x), 1.0)
    want = [expected(model, x, weights) for weights in parts]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert cosine(parameter.grad, want[0][name] + want[1][name]) > 0.999, name


@halves
@pytest.mark.parametrize(
    "layer",
    [nn.RMSNorm(8), nn.LayerNorm(8), nn.GroupNorm(3, 6), nn.Conv1d(6, 4, 3), nn.Linear(8, 4)],
    ids=repr,
)
def test_layers_in_half_precision_are_as_exact_as_plain_autograd(layer: nn.Module, half: torch.dtype) -> None:
    """Rounded once or twice, no gradient is off by much more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), copy.deepcopy(layer))
    names = [name for name, _ in model.named_parameters()]
    bands = [Band(k, (), tuple(name for name in names if name[0] == k)) for k in "01"]
    x, weights = torch.randn(5, 6, 8).to(half), torch.rand(5, 2)
    found = {}
    for kind, engine in ((torch.float64, "split"), (half, "split"), (half, "fused")):
        model.to(half).to(kind).zero_grad()
        masks = make_engine(model, bands, engine)
        masks.arm(weights)
        y = model(x.to(kind)).to(torch.float64)
        masks.backward((y * torch.arange(y.shape[2])).flatten(1).mean(1), 1.0)
        found[kind, engine] = [p.grad.double() for p in model.parameters() if p.grad is not None]
        masks.close()
    exact = found[torch.float64, "split"]
    errors = [
        max(float((g - e).norm() / e.norm()) for g, e in zip(found[half, engine], exact, strict=True))
        for engine in ("split", "fused")
    ]
    assert errors[1] <= 2 * errors[0] + 2 * ROUNDING[half]


WHOLE = """policy whole version 1 language 1
examples { kind : one of a, b, c, d   ok : bool   who : string optional   gone : date optional }
model { whole = rest }
depth a { when kind == a  reach all }
depth b { when kind == b  reach all at 0.5 }
"""


@pytest.mark.parametrize(("engine", "scale"), [("fused", 1.0), ("fused", 2.0**14), ("split", 2.0**14)])
def test_gradients_that_float16_cannot_hold_are_kept_by_scaling(lab: Any, engine: str, scale: float) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    governor = lab.governor(
        WHOLE, model=model, optimizer=optimizer, engine=engine, normaliser=1e6, scaler=scaler(scale)
    )
    x = torch.randint(0, 9, (4, 5))
    with governor.step(lab.batch("abab")) as proposal:
        with torch.autocast("cpu", dtype=torch.float16):
            losses = model(x)
        proposal.backward(losses)
    assert proposal.committed
    governor.close()
    weights = torch.tensor([1.0, 0.5, 1.0, 0.5])[:, None].expand(4, 3)
    agreement = [
        cosine(parameter.grad, gradient)
        for parameter, gradient in zip(model.parameters(), expected(model, x, weights).values(), strict=True)
        if parameter.grad is not None
    ]
    assert (min(agreement) > 0.999) == (scale > 1.0)


@pytest.mark.parametrize("exponent", range(10, 22))
def test_an_overflow_on_the_way_is_not_taken_for_rows_of_other_examples(exponent: int) -> None:
    """Where a check overflows, or the step itself does, rows are not compared."""
    model = Net()
    masks = make_engine(model, BANDS, "fused")
    masks.arm(WEIGHTS)
    with torch.autocast("cpu", dtype=torch.float16):
        losses = model(torch.randint(0, 9, (6, 5))) * 2.0**exponent
    masks.backward(losses, 1.0)  # raises where rows are held to be misplaced
    finite = [bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None]
    assert all(finite) or exponent > 10
    assert not all(finite) or exponent < 21
