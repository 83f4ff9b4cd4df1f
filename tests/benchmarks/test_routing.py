"""The benchmark of governed training runs in small, and measures what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import Tensor, nn

from benchmarks.routing import __main__ as command
from benchmarks.routing import arithmetic, core, grid, peers, report, timing
from benchmarks.routing.bars import judge
from benchmarks.routing.cases import NAMES, Case, cases
from benchmarks.routing.figures import Figure, Reference
from benchmarks.routing.memory import peak_memory
from benchmarks.routing.methods import PEERS, Bench
from benchmarks.routing.models import Stack
from benchmarks.routing.workload import SHAPES, Batch, Workload

TINY = SHAPES["llama"].tiny()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a quick run of the core table has written."""
    folder = tmp_path_factory.mktemp("quick")
    command.main(["--quick", "--threads", "1", "--results", str(folder), "--images", str(folder)])
    return folder


@pytest.fixture(scope="module")
def figures(quick: Path) -> dict[tuple[str, str], Figure]:
    found = report.read(quick / "routing_gpt_quick.json")
    return {(figure.case, figure.method): figure for figure in found}


def test_a_quick_run_writes_a_valid_result_of_every_case_and_method(
    quick: Path, figures: dict[tuple[str, str], Figure]
) -> None:
    written = json.loads((quick / "routing_gpt_quick.json").read_text())["figures"]
    jsonschema.validate(written, json.loads(report.SCHEMA.read_text()))
    assert written["tiny"] is True
    assert {case for case, _ in figures} == set(NAMES)
    for case in cases(SHAPES["gpt"].tiny()):
        methods = {method for name, method in figures if name == case.name}
        if case.weights is None:
            assert methods == {"plain", "governor"}
        else:
            assert methods == {"plain", "governed", "split", *PEERS} - (
                {"zero_after"} if not case.uniform else set()
            )


def test_a_quick_run_draws_its_pictures(quick: Path) -> None:
    drawn = {path.name for path in quick.glob("*.png")}
    assert drawn == {f"routing_gpt_quick_{part}.png" for part in ("limit", "cases", "rows")}
    assert all((quick / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_pictures_can_be_drawn_again_from_the_results(quick: Path, tmp_path: Path) -> None:
    command.main(["--redraw", "--results", str(quick), "--images", str(tmp_path)])
    assert len(list(tmp_path.glob("routing_gpt_quick_*.png"))) == 3


def test_both_engines_give_each_examples_own_gradient_weighted(
    figures: dict[tuple[str, str], Figure],
) -> None:
    for (case, method), figure in figures.items():
        if method in ("governed", "split"):
            assert figure.error is not None
            assert figure.error < 1e-5, (case, method)


def test_no_exact_method_does_less_arithmetic_than_the_limit(
    figures: dict[tuple[str, str], Figure],
) -> None:
    for (case, method), figure in figures.items():
        if method != "plain" and figure.error is not None and figure.error < 1e-5:
            assert figure.operations >= figure.limit - 1e-4, (case, method)
    stopped = figures["bottom_half", "governed"]
    assert stopped.operations == pytest.approx(stopped.limit, abs=1e-3)


def test_a_mask_for_all_saves_memory_and_per_example_gradients_cost_it(
    figures: dict[tuple[str, str], Figure],
) -> None:
    assert figures["bottom_half", "governed"].memory_ratio < 0.7
    assert figures["bottom_half", "zero_after"].memory_ratio > 0.95
    assert figures["all_ones", "per_example"].memory_ratio > 2


def test_the_grid_takes_every_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(
        ["--quick", "--grid", "--threads", "1", "--results", str(tmp_path), "--images", str(tmp_path)]
    )
    found = report.read(tmp_path / "routing_grid_quick.json")
    assert {figure.model for figure in found} == {"gpt", "llama", "resnet"}
    assert (tmp_path / "routing_grid_quick.png").exists()
    assert "half_rows" in capsys.readouterr().out


def test_some_cells_of_the_grid_are_measured_alone(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--quick", "--grid", "--threads", "1", "--only", "fractional", "--cells", "gpt:3x4"])
    printed = [line for line in capsys.readouterr().out.splitlines() if "plain" in line]
    assert len(printed) == 1
    assert printed[0].startswith("gpt")
    for unknown in (["--grid", "--cells", "gpt:5x4"], ["--narrow"]):
        with pytest.raises(SystemExit):
            command.main(["--quick", *unknown])


def test_the_narrow_grid_has_the_same_depths_and_batches_and_shorter_steps() -> None:
    usual, narrow = grid.shapes(), grid.shapes(narrow=True)
    assert [grid.cell(shape) for shape in usual] == [grid.cell(shape) for shape in narrow]
    assert all(one.width > other.width for one, other in zip(usual, narrow, strict=True))


def test_the_large_network_under_autocast_can_be_tried_small(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--model", "gpt-350m", "--amp", "bf16", "--threads", "1", "--explain"]
    command.main([*arguments, "--only", "bottom_half", "--method", "governed"])
    printed = capsys.readouterr().out
    assert "units/s" in printed
    assert "blocks.0: stop" in printed


def test_a_part_of_the_table_is_printed_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    monkeypatch.setattr(command, "IMAGES", tmp_path)
    command.main(["--quick", "--threads", "1", "--only", "all_ones", "--method", "governed"])
    assert list(tmp_path.iterdir()) == []


def test_what_a_result_must_not_say_is_not_written(tmp_path: Path) -> None:
    settings = {"kind": "cases", "device": "cpu", "precision": "float32", "threads": 1, "tiny": True}
    figure = Figure("gpt", 8, 2, 4, 8, "all_ones", "governed", ratio=-1.0)
    with pytest.raises(jsonschema.ValidationError):
        report.write("routing_gpt", settings, [figure], [], tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- what other methods compute -----------------------------------------------------------------------------


def random_weights() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(TINY.batch, TINY.depth + 2, generator=generator, dtype=torch.float64)
    weights[1] = 1.0
    weights[2, 2] = 0.0
    return weights


def prefix_weights() -> Tensor:
    weights = torch.ones(TINY.batch, TINY.depth + 2, dtype=torch.float64)
    weights[:2, 2:] = 0
    return weights


def alike_weights() -> Tensor:
    return random_weights()[:1].expand(TINY.batch, -1)


def error_of(method: str, weights: Tensor) -> float:
    """Return how far a method's gradients are from those of each example alone, weighted."""
    work = Workload(TINY)
    model, batch = work.build(), work.draw()
    exact = Reference.of(work, model, batch, Case("a case", "", weights))
    PEERS[method](work, model, weights)(batch)
    return exact.error([parameter.grad for parameter in model.parameters()])


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("group_masking", random_weights),
        ("group_masking", prefix_weights),
        ("per_example", random_weights),
        ("zero_after", alike_weights),
        ("detach_outputs", prefix_weights),
    ],
)
def test_a_method_is_exact_where_its_description_says_so(method: str, weights: Callable[[], Tensor]) -> None:
    assert error_of(method, weights()) < 1e-5


@pytest.mark.parametrize(
    ("method", "weights"), [("detach_outputs", random_weights), ("detach_hidden", prefix_weights)]
)
def test_detaching_is_no_mask_of_parameters_elsewhere(method: str, weights: Callable[[], Tensor]) -> None:
    assert error_of(method, weights()) > 0.1


def test_detaching_hidden_activations_masks_what_lies_before_them_in_the_block() -> None:
    work = Workload(TINY)
    model, (x, y) = work.build(), work.draw()
    weights = torch.ones(TINY.batch, TINY.depth + 2, dtype=torch.float64)
    weights[:, 1] = 0
    peers.detach_hidden(work, model, weights)((x, y))
    last = model.blocks[-1]
    assert not last.up.weight.grad.any()
    assert last.down.weight.grad.any()
    assert last.query.weight.grad.any()


# --- arithmetic, memory and time ----------------------------------------------------------------------------


class Rows(Workload):
    """One feature vector for each example, and a squared loss."""

    def draw(self) -> Batch:
        return torch.randn(4, 8), torch.randn(4, 8)

    def losses(self, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - y).square().sum(1)


@pytest.mark.parametrize(
    ("reached", "products"),
    [
        ([1, 1, 1, 1, 1], 14),  # forward 5, weights 5, inputs of all but the first layer 4
        ([1, 1, 0, 0, 0], 8),  # forward 5, weights 2, input of the top 1
        (
            [1, 0, 0, 0, 1],
            11,
        ),  # forward 5, weights 2, inputs 4: the gradient passes through the masked layers
        ([0, 0, 1, 0, 0], 8),  # forward 5, weight 1, inputs 2
        ([0, 0, 0, 0, 0], 5),
    ],
)
def test_the_limit_of_equal_layers_is_counted_by_hand(reached: list[int], products: int) -> None:
    layers = [nn.Linear(8, 8, bias=False) for _ in range(5)]
    model = Stack(layers[0], layers[1:4], layers[4])
    weights = torch.tensor([reached, [1] * 5, reached, reached], dtype=torch.float64)
    expected = (3 * products + 14) / (4 * 14)
    assert arithmetic.limit(Rows(TINY), model, weights) == pytest.approx(expected)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_attention_is_counted_on_a_processor() -> None:
    query, key, value = (torch.randn(2, 3, 5, 4) for _ in range(3))
    found = arithmetic.counted(lambda: nn.functional.scaled_dot_product_attention(query, key, value))
    assert found == 2 * (2 * 2 * 3 * 5 * 5 * 4)


def test_a_batch_in_which_plain_autograd_disagrees_with_itself_is_no_reference() -> None:
    work = Workload(SHAPES["resnet"].tiny())
    model, batch = work.build(), work.draw()
    case = cases(work.shape)[0]
    assert Reference.of(work, model, batch, case).smooth(work, model, batch)
    model.stem.register_forward_hook(lambda _, args, out: out if len(out) == 1 else 1.001 * out)
    assert not Reference.of(work, model, batch, case).smooth(work, model, batch)


def test_errors_are_told_only_of_batches_in_which_plain_autograd_agrees_with_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, drawn = Bench(Workload(SHAPES["resnet"].tiny())), []
    monkeypatch.setattr(core, "DRAWS", 3)

    def smooth(*_: object, last: int) -> bool:
        drawn.append(last)
        return len(drawn) == last

    for last, told in ((3, True), (4, False)):
        drawn.clear()
        monkeypatch.setattr(Reference, "smooth", partial(smooth, last=last))
        start = core.Start.of(bench, cases(bench.work.shape)[1])
        assert ((start.exact is not None), len(drawn)) == (told, 3)


def test_the_peak_is_what_is_held_at_once() -> None:
    with peak_memory("cpu") as peak:
        first = torch.empty(250_000)
        del first
        second, third = torch.empty(125_000), torch.empty(200_000)
        del second, third
    assert peak.bytes == 4 * (125_000 + 200_000)


def test_every_step_is_timed_beside_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    seconds = {"plain": 2.0, "a": 1.0, "b": 3.0, "c": 4.0}

    def timed(_work: Workload, step: timing.Step) -> timing.Timed:
        step((torch.empty(0), torch.empty(0)))
        return timing.Timed(seconds[taken[-1]], 1.0)

    monkeypatch.setattr(timing, "timed", timed)
    steps = {name: (lambda _batch, name=name: taken.append(name)) for name in "abc"}
    pairs = timing.alternate(
        Workload(TINY), lambda _batch: taken.append("plain"), steps, {"a": 3, "b": 2, "c": 1}
    )
    assert "".join(name[0] for name in taken) == "apbcp" + "bpa" + "ap"
    assert [len(found.own) for found in pairs.values()] == [3, 2, 1]
    assert pairs["a"].quartiles() == (0.5, 0.5, 0.5)
    assert pairs["b"].ratios == [1.5, 1.5]


# --- bars ---------------------------------------------------------------------------------------------------


def governed(case: str, ratio: float, **more: float) -> Figure:
    found = Figure("gpt", 384, 6, 16, 128, case, "governed", limit=0.75, ratio=ratio, peak_bytes=1)
    return replace(found, **{"error": 1e-7, "memory_ratio": 1.0, **more})


def broken(figures: list[Figure]) -> set[str]:
    return {bar.name for bar in judge(figures, ["half_rows"], exact=True) if not bar.held}


def test_bars_hold_up_to_their_bound_and_not_beyond() -> None:
    good = [governed("fractional", 1.03, memory_ratio=1.05), governed("half_rows", 0.82)]
    assert broken(good) == set()
    assert broken([governed("half_rows", 0.8251)]) == {"time over the arithmetic limit"}
    assert broken([governed("half_rows", 0.8301, limit=0.8)]) == {"time"}
    assert broken([governed("fractional", 1.0, memory_ratio=1.06)]) == {"peak memory"}
    assert broken([governed("random_mask", 1.06)]) == {"time in every configuration"}
    assert broken([governed("fractional", 1.0, error=1e-3)]) == {"error of the gradient"}


def test_a_convolutional_network_may_take_more() -> None:
    slow = governed("random_mask", 1.07)
    assert broken([replace(slow, model="resnet")]) == set()
    assert broken([slow]) == {"time in every configuration"}
