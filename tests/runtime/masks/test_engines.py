"""What engines promise besides exact gradients: what they refuse, leave alone, keep and give back."""

from __future__ import annotations

import copy
import io
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradwarden.policy.program import Band
from gradwarden.runtime.errors import MaskError
from gradwarden.runtime.masks import Engine, make_engine

ENGINES = ["fused", "split"]
engines = pytest.mark.parametrize("engine", ENGINES)


class Net(nn.Module):
    """Three layers, dropout between them; the middle may be recomputed in the backward pass."""

    def __init__(self, recompute: bool = False, dropout: float = 0.0, reentrant: bool = False) -> None:
        super().__init__()
        self.deep, self.middle, self.top = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.LayerNorm(6)
        self.dropout = nn.Dropout(dropout)
        self.recompute, self.reentrant = recompute, reentrant

    def body(self, h: Tensor) -> Tensor:
        return torch.tanh(self.middle(self.norm(h)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(torch.tanh(self.deep(x)))
        h = checkpoint(self.body, h, use_reentrant=self.reentrant) if self.recompute else self.body(h)
        return self.top(self.dropout(h))


def three_bands(model: nn.Module) -> tuple[Band, ...]:
    """Return one band for each child of `Net`, from the output down."""
    names = [name for name, _ in model.named_parameters()]
    groups = {"top": ("top",), "middle": ("middle", "norm"), "deep": ("deep",)}
    return tuple(Band(b, (), tuple(n for n in names if n.startswith(g))) for b, g in groups.items())


def one_band(model: nn.Module) -> tuple[Band, ...]:
    return (Band("all", (), tuple(name for name, _ in model.named_parameters())),)


def losses_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).pow(2).mean(1)


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def reference(model: nn.Module, bands: tuple[Band, ...], weights: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return the per-example sum in the definition, normaliser 1; the model must be free of dropout."""
    home = {name: k for k, band in enumerate(bands) for name in band.parameters}
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for number in range(len(x)):
        found = torch.autograd.grad(losses_of(model, x[number : number + 1])[0], list(model.parameters()))
        for name, gradient in zip(total, found, strict=True):
            total[name] += weights[number, home[name]].item() * gradient
    return total


def assert_close(model: nn.Module, want: dict[str, Tensor], rtol: float = 1e-9) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, want[name], rtol=rtol, atol=1e-12, msg=name)


WEIGHTS = torch.tensor(
    [[1.0, 1.0, 1.0], [1.0, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.3, 0.7, 1.0]], dtype=torch.float64
)


def setup(seed: int = 0, **options: bool | float) -> tuple[Net, tuple[Band, ...], Tensor]:
    torch.manual_seed(seed)
    model = Net(**options).double()  # type: ignore[arg-type]
    return model, three_bands(model), torch.randn(5, 4, dtype=torch.float64)


@engines
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_band_that_no_example_may_shape_is_bitwise_unchanged(engine: str, kind: str) -> None:
    model, bands, x = setup()
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if kind == "sgd"
        else torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    )
    masks = make_engine(model, bands, engine)
    shallow_only = torch.tensor([[1.0, 0.0, 0.0]] * 5)
    for weights in (torch.ones(5, 3), torch.ones(5, 3), *[shallow_only] * 5):
        before = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        masks.arm(weights)
        masks.backward(losses_of(model, x), 5.0)
        optimizer.step()
        for name, parameter in model.named_parameters():
            kept = torch.equal(parameter, before[name])
            assert kept == (weights[0, 1].item() == 0 and not name.startswith("top")), name


@engines
@pytest.mark.parametrize("rows", [[3], [1, 3], [0, 4]])
def test_what_a_refused_example_holds_cannot_matter(engine: str, rows: list[int]) -> None:
    model, bands, x = setup()
    weights = torch.rand(5, 3, dtype=torch.float64) + 0.1
    weights[rows] = 0
    masks = make_engine(model, bands, engine)
    results = []
    for content in (0.0, 1e6):
        spoilt = x.clone()
        spoilt[rows] = content
        model.zero_grad()
        masks.arm(weights)
        masks.backward(losses_of(model, spoilt), 5.0)
        results.append(gradients(model))
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


@pytest.mark.parametrize("rows", [[3, 4], [1, 3]])
def test_the_fused_engine_drops_the_rows_of_a_refused_example_even_if_they_are_nan(rows: list[int]) -> None:
    model, bands, x = setup()
    weights = torch.ones(5, 3, dtype=torch.float64)
    weights[rows] = 0
    masks = make_engine(model, bands, "fused")
    want = reference(model, bands, weights, x)
    x[rows] = torch.nan
    masks.arm(weights)
    masks.backward(losses_of(model, x), 1.0)
    assert_close(model, want)


def test_recomputed_layers_follow_the_plan_of_their_own_forward_pass() -> None:
    model, bands, x = setup(recompute=True)
    masks = make_engine(model, bands, "fused")
    want = reference(model, bands, WEIGHTS, x)
    masks.arm(WEIGHTS)
    losses = losses_of(model, x)
    masks.arm(torch.ones(5, 3))
    masks.backward(losses, 1.0)
    assert_close(model, want)


@pytest.mark.filterwarnings("ignore:None of the inputs:UserWarning")
def test_reentrant_checkpointing_is_refused_with_its_remedy() -> None:
    model, bands, x = setup(recompute=True, reentrant=True)
    masks = make_engine(model, bands, "auto")
    masks.arm(WEIGHTS)
    with pytest.warns(UserWarning, match="split"):
        losses = losses_of(model, x.requires_grad_())
    with pytest.raises(MaskError, match="reentrant") as caught:
        masks.backward(losses, 1.0)
    assert "use_reentrant=False" in str(caught.value.help)


@engines
def test_attaching_and_probing_leave_random_numbers_and_buffers_alone(engine: str) -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__(dropout=0.5)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * (1 + random.random() * 0 + np.random.rand() * 0)

    outcomes = []
    for attached in (False, True):
        torch.manual_seed(0)
        model, x = Counting().double(), torch.randn(5, 4, dtype=torch.float64)
        masks = make_engine(model, three_bands(model), engine) if attached else None
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        if masks is not None:
            masks.arm(WEIGHTS)
        losses = losses_of(model, x)
        outcomes.append(
            (losses.detach(), model.calls.clone(), torch.rand(1), random.random(), np.random.rand())
        )
        if masks is not None:
            assert masks.name == engine
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*outcomes, strict=True))


@engines
def test_dropout_agrees_with_plain_training(engine: str) -> None:
    model, bands, x = setup(dropout=0.5)
    torch.manual_seed(5)
    losses_of(model, x).sum().backward()
    want = gradients(model)
    model.zero_grad()
    masks = make_engine(model, bands, engine)
    masks.arm(torch.full((5, 3), 0.5))
    torch.manual_seed(5)
    masks.backward(losses_of(model, x), 0.5)
    assert_close(model, want)


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_closing_restores_the_model(engine: str) -> None:
    model, bands, x = setup()
    plain = losses_of(model, x)
    masks = make_engine(model, bands, engine)
    masks.arm(WEIGHTS)
    masks.backward(losses_of(model, x), 1.0)
    masks.close()
    masks.close()
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(losses_of(model, x), plain)


def test_a_disarmed_engine_leaves_training_plain() -> None:
    model, bands, x = setup()
    losses_of(model, x).sum().backward()
    want = gradients(model)
    masks = make_engine(model, bands, "fused")
    masks.arm(WEIGHTS)
    losses_of(model, x)
    masks.disarm()
    model.zero_grad()
    losses_of(model, x).sum().backward()
    assert_close(model, want)


def test_copies_and_pickles_of_a_governed_model_are_plain_and_independent() -> None:
    model, bands, x = setup()
    masks = make_engine(model, bands, "fused")
    masks.arm(WEIGHTS)
    masks.backward(losses_of(model, x), 1.0)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(losses_of(twin, x), losses_of(model, x))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert not torch.equal(losses_of(twin, x), losses_of(model, x))


@engines
def test_only_the_named_rows_count_in_a_backward_pass(engine: str) -> None:
    model, bands, x = setup()
    chosen = torch.tensor([True, False, True, True, False])
    want = reference(model, bands, WEIGHTS * chosen[:, None], x)
    masks = make_engine(model, bands, engine)
    masks.arm(WEIGHTS)
    masks.backward(losses_of(model, x), 1.0, rows=chosen)
    assert_close(model, want)


@engines
def test_unweighted_gradients_of_single_examples_come_from_the_same_graph(engine: str) -> None:
    model, bands, x = setup()
    masks = make_engine(model, bands, engine)
    want = reference(model, bands, WEIGHTS, x)
    alone = torch.autograd.grad(losses_of(model, x[4:])[0], list(model.parameters()))
    masks.arm(WEIGHTS)
    losses = losses_of(model, x)
    with masks.unweighted():
        got = torch.autograd.grad(losses[4], list(model.parameters()), retain_graph=True)
    for gradient, expected in zip(got, alone, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    masks.backward(losses, 1.0)
    assert_close(model, want)


@engines
@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.BatchNorm1d(4, track_running_stats=False)]
)
def test_batch_norm_in_training_mode_is_refused(engine: str, layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))
    with pytest.raises(MaskError, match=r"`1` is a \w*BatchNorm\w* in training mode") as caught:
        make_engine(model, one_band(model), engine)
    assert "GroupNorm" in str(caught.value.help)


@engines
def test_frozen_batch_norm_is_accepted_until_it_is_put_into_training_mode(engine: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    model[1].eval()
    masks = make_engine(model, one_band(model), engine)
    x, weights = torch.randn(3, 4, dtype=torch.float64), torch.tensor([[1.0], [0.2], [0.0]])
    want = reference(model, one_band(model), weights, x)
    masks.arm(weights)
    masks.backward(losses_of(model, x), 1.0)
    assert_close(model, want)
    model.train()
    with pytest.raises(MaskError, match="BatchNorm1d"):
        masks.arm(weights)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.InstanceNorm1d(4, track_running_stats=True), "running statistics"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
        (nn.Embedding(4, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
    ],
)
def test_other_layers_known_to_mix_examples_are_refused(layer: nn.Module, says: str) -> None:
    model = nn.Sequential(layer)
    with pytest.raises(MaskError, match=says):
        make_engine(model, one_band(model))


class Mixing(Net):
    """Lets examples see each other in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def body(self, h: Tensor) -> Tensor:
        match self.how:
            case "centre":
                h = h - h.mean(0)
            case "previous":
                h = h + h.roll(1, 0)
            case "cumulative":
                h = h.cumsum(0)
            case "attention":
                h = functional.scaled_dot_product_attention(h, h, h)
        return super().body(h)


@engines
@pytest.mark.parametrize("how", ["centre", "previous", "cumulative", "attention"])
def test_a_model_that_mixes_examples_is_refused_when_it_is_first_run(engine: str, how: str) -> None:
    torch.manual_seed(0)
    model = Mixing(how).double()
    masks = make_engine(model, three_bands(model), engine)
    masks.arm(torch.ones(5, 3))
    with pytest.raises(MaskError, match="depends on the other examples"):
        model(torch.randn(5, 4, dtype=torch.float64))


@engines
@pytest.mark.parametrize("first", ["one example", "the same example four times"])
def test_mixing_is_found_once_a_batch_holds_different_examples(engine: str, first: str) -> None:
    model = Mixing("centre").double()
    masks = make_engine(model, one_band(model), engine)
    alike = torch.randn(1, 4, dtype=torch.float64).expand(1 if first == "one example" else 4, 4)
    masks.arm(torch.ones(len(alike), 1))
    masks.backward(losses_of(model, alike), 1.0)
    masks.arm(torch.ones(4, 1))
    with pytest.raises(MaskError, match="depends on the other examples"):
        model(torch.randn(4, 4, dtype=torch.float64))


@engines
def test_a_batch_of_one_is_exact_before_anything_can_be_probed(engine: str) -> None:
    model = Net().double()
    bands, weights = three_bands(model), torch.tensor([[0.5, 2.0, 0.25]], dtype=torch.float64)
    x = torch.randn(1, 4, dtype=torch.float64)
    want = reference(model, bands, weights, x)
    masks = make_engine(model, bands, engine)
    masks.arm(weights)
    masks.backward(losses_of(model, x), 1.0)
    assert_close(model, want)


@engines
def test_several_views_in_one_forward_pass_are_exact(engine: str) -> None:
    model = Net().double()
    bands, weights = three_bands(model), torch.rand(4, 3, dtype=torch.float64)
    x = torch.randn(4, 4, dtype=torch.float64)
    masks = make_engine(model, bands, engine)
    masks.arm(weights)
    masks.backward(losses_of(model, x), 1.0)
    model.zero_grad(set_to_none=True)
    masks.arm(weights)
    masks.backward(losses_of(model, torch.cat([x, 3 * x])).view(2, 4).sum(0) + losses_of(model, 2 * x), 1.0)
    got = gradients(model)
    masks.close()
    want = [reference(model, bands, weights, factor * x) for factor in (1, 2, 3)]
    for name, gradient in got.items():
        expected = sum(part[name] for part in want)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12, msg=name)


class FixedBatch(Net):
    """Works with one size of batch only, so that it cannot be probed."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 5:
            raise ValueError("only five at a time")
        return super().forward(x)


def test_a_model_that_cannot_be_probed_falls_back_to_the_reference_with_a_warning() -> None:
    torch.manual_seed(0)
    model, x = FixedBatch().double(), torch.randn(5, 4, dtype=torch.float64)
    bands = three_bands(model)
    masks = make_engine(model, bands, "auto")
    masks.arm(WEIGHTS)
    with pytest.warns(UserWarning, match="only five at a time"):
        losses = losses_of(model, x)
    masks.backward(losses, 1.0)
    got = gradients(model)
    assert masks.name == "split"
    assert any("only five at a time" in note for note in masks.notes)
    masks.close()
    strict = make_engine(model, bands, "fused")
    strict.arm(WEIGHTS)
    with pytest.raises(MaskError, match="only five at a time"):
        losses_of(model, x)
    strict.close()
    exact = make_engine(model, bands, "split")
    model.zero_grad()
    exact.arm(WEIGHTS)
    exact.backward(losses_of(model, x), 1.0)
    assert all(torch.equal(got[name], gradient) for name, gradient in gradients(model).items())


class Tricky(Net):
    """Uses its first and last weights by themselves as well, but only from the second step on."""

    step = 0

    def body(self, h: Tensor) -> Tensor:
        if self.step:
            h = h + torch.tanh(h @ self.top.weight.t() @ self.top.weight)
        return super().body(h)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out + functional.linear(x, self.deep.weight)[:, :3] if self.step else out


@pytest.mark.parametrize("deep", [[1.0, 0.0, 0.0, 0.0, 1.0], [1.0, 0.3, 0.0, 0.0, 1.0]])
def test_a_use_that_appears_only_after_the_probe_is_still_exact(deep: list[float]) -> None:
    torch.manual_seed(0)
    model, x = Tricky().double(), torch.randn(5, 4, dtype=torch.float64)
    masks = make_engine(model, three_bands(model), "fused")
    weights = torch.ones(5, 3, dtype=torch.float64)
    weights[:, 1] = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    weights[:, 2] = torch.tensor(deep)
    for step in (0, 1, 1):
        model.step = step
        model.zero_grad()
        masks.disarm()
        want = reference(model, three_bands(model), weights, x)
        masks.arm(weights)
        masks.backward(losses_of(model, x), 1.0)
        assert_close(model, want)


def test_frozen_parameters_are_left_out() -> None:
    model, bands, x = setup()
    model.middle.requires_grad_(False)
    masks = make_engine(model, bands, "fused")
    masks.arm(WEIGHTS)
    masks.backward(losses_of(model, x), 1.0)
    assert model.middle.weight.grad is None
    assert model.norm.weight.grad is not None


def misuse(
    model: Net, bands: tuple[Band, ...], x: Tensor
) -> dict[str, tuple[Callable[[Engine], object], str]]:
    return {
        "no arm": (lambda e: e.backward(losses_of(model, x), 1.0), "before `arm`"),
        "shape": (lambda e: e.arm(torch.ones(5, 2)), "one column for each of 3 bands"),
        "negative": (lambda e: e.arm(-torch.ones(5, 3)), "at least 0"),
        "nan": (lambda e: e.arm(torch.full((5, 3), torch.nan)), "finite"),
        "mean": (
            lambda e: (e.arm(WEIGHTS), e.backward(losses_of(model, x).mean(), 1.0)),
            "5 examples are armed",
        ),
        "zero": (lambda e: (e.arm(WEIGHTS), e.backward(losses_of(model, x), 0.0)), "normaliser"),
        "rows": (
            lambda e: (e.arm(WEIGHTS), e.backward(losses_of(model, x), 1.0, rows=torch.ones(5))),
            "bool tensor",
        ),
        "detached": (
            lambda e: (e.arm(WEIGHTS), e.backward(losses_of(model, x).detach(), 1.0)),
            "do not depend",
        ),
    }


@engines
@pytest.mark.parametrize("case", sorted(misuse(None, None, None)))  # type: ignore[arg-type]
def test_misuse_is_named(engine: str, case: str) -> None:
    model, bands, x = setup()
    act, says = misuse(model, bands, x)[case]
    masks = make_engine(model, bands, engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MaskError, match=says):
            act(masks)


def test_bands_must_be_those_of_the_model() -> None:
    model, bands, _ = setup()
    with pytest.raises(MaskError, match=r"`top\.wieght`, which the model does not have") as caught:
        make_engine(model, (*bands[1:], Band("top", (), ("top.wieght", "top.bias"))))
    assert "top.weight" in str(caught.value.help)
    with pytest.raises(MaskError, match="is in no band"):
        make_engine(model, bands[1:])
    with pytest.raises(MaskError, match="is in bands `top` and `extra`"):
        make_engine(model, (*bands, Band("extra", (), ("top.bias",))))
    with pytest.raises(MaskError, match="unknown mask engine `fussed`"):
        make_engine(model, bands, "fussed")


def test_only_what_is_needed_is_kept_where_nothing_reaches_below_a_band() -> None:
    model, bands, x = setup()
    masks = make_engine(model, bands, "fused")
    masks.arm(torch.ones(5, 3))
    losses_of(model, x)
    masks.arm(torch.tensor([[1.0, 0.0, 0.0]] * 5))
    seen: list[bool] = []
    handle = model.middle.register_forward_hook(lambda _m, _i, output: seen.append(output.requires_grad))
    losses_of(model, x)
    handle.remove()
    assert seen == [False]
