"""The planner: which exact way to run a block is cheapest, and the reason it gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gradwarden.policy.program import Band
from gradwarden.runtime.masks.bands import index_bands
from gradwarden.runtime.masks.blocks import find_blocks, learn, observe
from gradwarden.runtime.masks.plan import Plan
from gradwarden.runtime.masks.planner import (
    CALL_COST,
    CONVOLVED,
    FREEZING_COST,
    BlockCost,
    Choice,
    band_choices,
    choose,
)
from gradwarden.runtime.masks.sites import find_sites

LARGE = BlockCost(size=10**6, positions=128, device="cpu")
SMALL = BlockCost(size=100, positions=1, device="cpu")
OWN, BEFORE = 0b010, 0b100
"""A block in band 1; band 2 comes before it, band 0 after it."""


def plan_of(*rows: tuple[float, ...]) -> Plan:
    weights = torch.tensor(rows, dtype=torch.float64)
    return Plan.of(weights, [1.0] * weights.shape[1])


def chosen(plan: Plan, cost: BlockCost = LARGE, fault: str = "") -> Choice:
    return choose("blocks.0", plan, OWN, OWN | BEFORE, cost, fault)


@pytest.mark.parametrize(
    ("rows", "way", "graph", "reason"),
    [
        ([(1, 1, 1), (1, 0.5, 0)], "weigh", 2, "every example may shape it"),
        ([(1, 0, 0), (0.5, 0, 0)], "stop", 0, "no example may shape it or anything before it"),
        ([(1, 1, 1), (1, 0, 0)], "split", 1, "1 may shape neither it nor anything before it"),
        ([(1, 1, 1), (1, 0, 1)], "slice", 2, "1 may shape it, but all may shape something before it"),
    ],
)
def test_the_way_follows_from_who_may_shape_what(
    rows: list[tuple[float, ...]], way: str, graph: int, reason: str
) -> None:
    choice = chosen(plan_of(*rows))
    assert (choice.way, choice.rows, choice.reason) == (way, graph, reason)


def test_a_block_that_cannot_be_divided_says_why() -> None:
    choice = chosen(plan_of((1, 1, 1), (1, 0, 0)), fault="it changes its own buffers")
    assert choice.way == "slice"
    assert choice.reason == "it is not run in parts: it changes its own buffers"


def test_who_may_not_shape_a_block_passes_through_it_frozen_where_that_pays() -> None:
    rows = [(1, 1, 1), (1, 0, 1), (1, 0, 0)]
    worth = int(FREEZING_COST["cpu"])
    large, small = BlockCost(worth, 1, "cpu"), BlockCost(worth - 1, 1, "cpu")
    choice = choose("blocks.0", plan_of(*rows), OWN, OWN | BEFORE, large, "", True)
    assert (choice.way, choice.rows, choice.work) == ("freeze", 2, 0.5)
    assert choice.reason == (
        "1 may shape something before it, but not itself; 1 may shape neither it nor anything before it"
    )
    assert choose("blocks.0", plan_of(*rows), OWN, OWN | BEFORE, small, "", True).way == "split"
    assert choose("blocks.0", plan_of(*rows[:2]), OWN, OWN | BEFORE, small, "", True).way == "slice"
    assert choose("blocks.0", plan_of(*rows[:2]), OWN, OWN | BEFORE, large, "a fault", True).way == "slice"


def test_that_pays_sooner_where_convolutions_would_have_to_gather_rows() -> None:
    rows = [(1, 1, 1), (1, 0, 1)]
    worth = round(FREEZING_COST["cpu"] * CONVOLVED["cpu"])

    def way(size: int, device: str = "cpu", convolves: bool = True) -> str:
        cost = BlockCost(size, 1, device, convolves)
        return choose("blocks.0", plan_of(*rows), OWN, OWN | BEFORE, cost, "", True).way

    assert [way(worth), way(worth - 1)] == ["freeze", "slice"]
    assert way(worth, convolves=False) == "slice"
    assert way(worth, "cuda") == way(int(FREEZING_COST["cuda"]) - 1, "cuda") == "slice"


def test_blocks_with_convolutions_are_known_by_their_layers() -> None:
    convolving = nn.Sequential(nn.Conv1d(2, 2, 1), nn.GroupNorm(1, 2))
    upwards = nn.Sequential(nn.ConvTranspose1d(2, 2, 1), nn.GroupNorm(1, 2))
    model = nn.Sequential(convolving, upwards, nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    bands = index_bands(model, [Band("all", (), tuple(name for name, _ in model.named_parameters()))])
    blocks = find_blocks(model, list(find_sites(model, bands)), bands)
    assert [block.convolves for block in blocks] == [True, True, False]


@pytest.mark.parametrize("device", sorted(CALL_COST))
def test_a_second_call_must_save_more_than_it_costs(device: str) -> None:
    plan = plan_of((1, 1, 1), (1, 0, 0), (1, 0, 0))
    worth = int(CALL_COST[device] / 2)
    assert chosen(plan, BlockCost(worth, 1, device)).way == "split"
    assert chosen(plan, BlockCost(worth - 1, 1, device)).way == "slice"


def test_a_device_that_nobody_has_measured_counts_as_an_accelerator() -> None:
    plan = plan_of((1, 1, 1), (1, 0, 0))
    assert chosen(plan, BlockCost(int(CALL_COST["cuda"]) - 1, 1, "xpu")).way == "slice"


weight = st.sampled_from([0.0, 0.5, 1.0])
weights = st.lists(st.tuples(weight, weight, weight), min_size=1, max_size=8).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


@given(weights, st.sampled_from([LARGE, SMALL]), st.sampled_from(["", "a fault"]))
def test_less_to_learn_is_never_more_work(rows: Tensor, cost: BlockCost, fault: str) -> None:
    before = chosen(Plan.of(rows, [1.0] * 3), cost, fault)
    assert 0.0 <= before.work <= 1.0
    assert (before.work == 0.0) == (before.way == "stop")
    for place in rows.nonzero():
        fewer = rows.clone()
        fewer[tuple(place)] = 0.0
        assert chosen(Plan.of(fewer, [1.0] * 3), cost, fault).work <= before.work


@given(weights)
def test_rows_without_a_graph_may_shape_nothing_there(rows: Tensor) -> None:
    choice = chosen(Plan.of(rows, [1.0] * 3))
    needed = int((rows[:, 1:] > 0).any(dim=1).sum())
    assert choice.rows >= needed
    if choice.way == "split":
        assert choice.rows == needed


def test_bands_outside_of_blocks_are_told_as_well() -> None:
    plan = plan_of((1, 0.5, 0), (1, 0, 0))
    lines = [str(choice) for choice in band_choices(plan, ["top", "middle", "deep"], [0, 1, 2])]
    assert lines == [
        "band top: weigh (2 of 2 examples, 100% of the plain backward pass): "
        "every example may shape it, with one weight",
        "band middle: slice (1 of 2 examples, 50% of the plain backward pass): 1 examples may shape it",
        "band deep: stop (0 of 2 examples, 0% of the plain backward pass): no example may shape it",
    ]


class Strided(nn.Module):
    """Convolutions that halve both sides of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, 2, padding=1, bias=False)
        self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(8, 16, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x))


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)), (5, 8)),
        (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)), (8, 12, 12)),
        (Strided(), (8, 12, 12)),
    ],
    ids=["linear", "convolution", "strided"],
)
def test_a_block_is_estimated_to_cost_what_its_layers_multiply(
    block: nn.Module, shape: tuple[int, ...]
) -> None:
    """The count is torch's own, of two operations for each multiplication."""
    model = nn.Sequential(block, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    bands = index_bands(model, [Band("all", (), tuple(name for name, _ in model.named_parameters()))])
    found = next(find_blocks(model, list(find_sites(model, bands)), bands))
    calls = [observe(found, (torch.randn(rows, *shape),), {})[1] for rows in (2, 3)]
    learn(found, calls[:1], calls[1:], (2, 3), lambda _tensor, _layout: True)
    x = torch.randn(6, *shape)
    with FlopCounterMode(display=False) as counter:
        block(x)
    cost = found.given((x,), {}, 6).cost(found)
    assert cost.forward(6) == pytest.approx(counter.get_total_flops() / 2, rel=0.15)
