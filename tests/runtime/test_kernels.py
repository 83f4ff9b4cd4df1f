"""Kernels in C compute what plain arithmetic in double precision does, on each set of instructions."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradwarden.runtime.masks.layers.row_convolution import convolution_gradients
from gradwarden.runtime.masks.unitwise import Owners
from gradwarden.runtime.native import kernels
from gradwarden.runtime.native.kernels import Clipping, Sum, Window
from gradwarden.runtime.privacy.noise import FastNoise, _narrow_gaussians, add_noise

needs_kernels = pytest.mark.skipif(not kernels.usable(), reason="no kernels for this machine")
EPS = 2.0**-23
KEPT = 1.0 - 64 * EPS  # what `clip_factor` leaves of a bound


@pytest.fixture(params=[8, 16], autouse=True)
def lanes(request):
    """Each set of instructions in turn."""
    library = kernels._library()
    if library is None:
        yield 0
        return
    if library.prepare(request.param) != request.param:
        library.prepare(16)
        pytest.skip(f"the processor does not work on {request.param} numbers at once")
    yield request.param
    library.prepare(16)


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_kernels_are_there_where_they_can_be_built():
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not flags.exists() or " avx2" not in flags.read_text():
        pytest.skip("no processor that the kernels are for")
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no compiler to build them with")
    assert kernels.usable()


def test_they_can_be_switched_off():
    program = "from gradwarden.runtime.native import kernels; print(kernels.usable())"
    environment = {**os.environ, "GRADWARDEN_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@needs_kernels
def test_those_of_an_older_build_are_left_alone(monkeypatch):
    class Longer(kernels._Clip):
        _fields_ = (("more", ctypes.c_int64),)

    assert not kernels._alike(ctypes.CDLL(None))  # which has none of the functions
    monkeypatch.setattr(kernels, "_ARGUMENTS", (Longer, *kernels._ARGUMENTS[1:]))
    assert kernels._library.__wrapped__() is None


@needs_kernels
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.zeros(0, 3),
    ],
)
def test_they_take_plain_tensors_of_single_precision_alone(tensor):
    assert kernels.usable(torch.zeros(2))
    assert not kernels.usable(torch.zeros(2), tensor)


def random_owners(rows: int, units: int, seed: int) -> Owners:
    """Rows that belong to some of the units, with weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = 0.5 + torch.rand(rows, dtype=torch.float64, generator=generator)
    return Owners(torch.randint(units, (rows,), generator=generator), weights, units)


def by_unit(each: Tensor, owners: Owners) -> Tensor:
    """Add gradients [rows, ...] up by unit that has rows, in the order in which kernels take them."""
    numbers, _ = owners.listed
    weighed = each * owners.weights.view(-1, *[1] * (each.dim() - 1))
    sums = each.new_zeros((owners.count, *each.shape[1:])).index_add_(0, owners.units, weighed)
    return sums[torch.from_numpy(numbers)]


def expected_factors(squares: Tensor, bounds: np.ndarray) -> Tensor:
    return (torch.from_numpy(bounds) * KEPT / squares.sqrt()).clamp(max=1.0)


def limits(squares: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares of what is clipped jointly, and bounds: some that are kept anyway, some that are not."""
    random = np.random.default_rng(seed)
    others = squares.numpy() * random.uniform(0.0, 1.0, len(squares))
    return others, np.sqrt(squares.numpy()) * random.uniform(0.2, 3.0, len(squares))


def close(found: Tensor, wanted: Tensor, scale: float | None = None) -> None:
    size = float(wanted.abs().max()) if scale is None else scale
    assert float((found.double() - wanted).abs().max()) <= 4e-6 * size


@needs_kernels
@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 90),
    n=st.integers(1, 90),
    places=st.sampled_from([1, 3, 16, 37, 300]),
    rows=st.sampled_from([1, 3, 12, 40]),
    units=st.sampled_from([1, 5, 40]),
    threads=st.integers(1, 4),
    bias=st.booleans(),
    begun=st.booleans(),
    seed=st.integers(0, 9),
)
def test_products_by_unit_are_clipped_and_summed(m, n, places, rows, units, threads, bias, begun, seed):
    owners, generator = random_owners(rows, units, seed), torch.Generator().manual_seed(seed)
    # Rows of a larger tensor, so that they do not lie next to each other.
    left = torch.randn(rows, places + 2, m, generator=generator)[:, 1:-1]
    right = torch.randn(rows, places, n + 3, generator=generator)[..., 3:]
    gradients = by_unit(torch.bmm(left.double().transpose(1, 2), right.double()), owners)
    sums = by_unit(left.double().sum(1), owners)
    alone = gradients.flatten(1).square().sum(1)
    squares = alone + (sums.square().sum(1) if bias else 0.0)
    others, bounds = limits(squares, seed)
    factors = expected_factors(squares + torch.from_numpy(others), bounds)
    total, bias_total = (torch.randn(*shape, generator=generator) for shape in ((m, n), (m,)))
    wanted = (gradients * factors[:, None, None]).sum(0) + (total.double() if begun else 0.0)
    bias_wanted = (sums * factors[:, None]).sum(0) + (bias_total.double() if begun else 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        clipping = Clipping(others, bounds, Sum(total, begun), Sum(bias_total, begun) if bias else None)
        found = kernels.clip_products(left, right, owners.listed[1], clipping)
        measured = kernels.square_products(left, right, owners.listed[1])
    finally:
        torch.set_num_threads(before)
    # Rounding is relative to what is added up, which may cancel.
    sizes = by_unit(torch.bmm(left.double().abs().transpose(1, 2), right.double().abs()), owners)
    largest = sizes.flatten(1).square().sum(1) + by_unit(left.double().abs().sum(1), owners).square().sum(1)
    slack = 4e-6 * (1.0 + largest / squares).numpy()
    assert (np.abs(found / factors.numpy() - 1.0) <= slack).all()
    assert (np.abs(measured - alone.numpy()) <= 4e-6 * largest.numpy()).all()
    scale = float(max(gradients.abs().max(), sums.abs().max(), total.abs().max())) * len(bounds)
    scale *= 1.0 + float((largest / squares).max())
    close(total, wanted, scale)
    if bias:
        close(bias_total, bias_wanted, scale)


@needs_kernels
@pytest.mark.parametrize("shape", [(1152, 384), (384, 1536), (40, 1000)])
def test_large_products_are_clipped_by_all_threads_together(shape, threads):
    owners, (m, n) = random_owners(6, 5, 0), shape
    left, right = torch.randn(6, 20, m), torch.randn(6, 20, n)
    gradients = by_unit(torch.bmm(left.double().transpose(1, 2), right.double()), owners)
    squares = gradients.flatten(1).square().sum(1)
    others, bounds = limits(squares, 0)
    factors = expected_factors(squares + torch.from_numpy(others), bounds)
    total = torch.full((m, n), math.nan)
    kernels.clip_products(left, right, owners.listed[1], Clipping(others, bounds, Sum(total, False)))
    close(total, (gradients * factors[:, None, None]).sum(0))


@needs_kernels
@pytest.mark.parametrize("channels", [(3, 5), (33, 40), (16, 13)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 4)])
@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 1)), ((2, 1), (1, 2)), ((1, 3), (2, 1))])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_convolutions_by_unit_are_clipped_and_summed(channels, kernel, stride, dilation, padding, last):
    (fed, out), rows = channels, 9
    owners = random_owners(rows, 8, 1)
    x, weight = torch.randn(rows, fed, 11, 14), torch.randn(out, fed, *kernel)
    if last:
        x = x.to(memory_format=torch.channels_last)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "transposed": False,
        "output_padding": (0, 0),
        "groups": 1,
    }
    grad = torch.randn_like(torch.conv2d(x, weight, None, stride, padding, dilation))
    wide = (tensor.double() for tensor in (grad, x))
    each = [
        convolution_gradients(g[None], seen[None], weight.double(), options, [False, True, False])[1]
        for g, seen in zip(*wide, strict=True)
    ]
    gradients = by_unit(torch.stack(each), owners)
    squares = gradients.flatten(1).square().sum(1)
    others, bounds = limits(squares, 1)
    factors = expected_factors(squares + torch.from_numpy(others), bounds)
    window, members = Window(kernel, stride, dilation, padding), owners.listed[1]
    total, found = kernels.clip_convolution(grad, x, window, members, others, bounds)
    np.testing.assert_allclose(found, factors.numpy(), rtol=2e-6)
    np.testing.assert_allclose(
        kernels.square_convolution(grad, x, window, members), squares.numpy(), rtol=4e-6
    )
    assert total.shape == weight.shape
    close(total, (gradients * factors.view(-1, 1, 1, 1, 1)).sum(0))


@needs_kernels
@pytest.mark.parametrize("out", [8, 200])
def test_threads_wait_for_each_other_where_they_lay_a_picture_out(out, threads):
    owners, window = random_owners(7, 3, 0), Window((3, 3), (1, 1), (1, 1), (1, 1))
    x, grad = torch.randn(7, 64, 40, 40), torch.randn(7, out, 40, 40)
    found = []
    for count in (threads, 1):
        torch.set_num_threads(count)
        free = np.zeros(len(owners.listed[0])), np.full(len(owners.listed[0]), math.inf)
        found.append(kernels.clip_convolution(grad, x, window, owners.listed[1], *free)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-2)


@needs_kernels
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("size", [20, 700])  # threads with units of their own, and all on one
def test_a_unit_that_is_not_finite_adds_nothing(value, size, threads):
    left, right = torch.randn(40, 4, size), torch.randn(40, 4, size)
    left[3, 1, 7] = value
    left[[0, 39]] = value
    others = [row for row in range(40) if row not in (0, 3, 39)]
    members, bounds = Owners(torch.arange(40), torch.ones(40).double(), 40).listed[1], np.ones(40)
    some = Owners(torch.arange(37), torch.ones(37).double(), 37).listed[1]
    totals = torch.empty(2, size, size), torch.empty(2, size)
    for place, (rows, own) in enumerate([(range(40), members), (others, some)]):
        count = len(own.rows)
        clipping = Clipping(
            np.zeros(count), bounds[:count], Sum(totals[0][place], False), Sum(totals[1][place], False)
        )
        factors = kernels.clip_products(left[list(rows)], right[list(rows)], own, clipping)
        assert np.flatnonzero(factors == 0.0).tolist() == ([0, 3, 39] if place == 0 else [])
    for total in totals:
        torch.testing.assert_close(total[0], total[1], rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("shape", [(5, 1, 3, 4), (3, 13, 40, 17), (7, 50, 700, 65)])
def test_norms_from_pairs_of_places_are_those_of_the_gradients(shape, threads):
    rows, places, m, n = shape
    left, right = torch.randn(rows, places, m), torch.randn(rows, places + 1, n)[:, :-1]
    exact = torch.bmm(left.double().transpose(1, 2), right.double()).flatten(1).square().sum(1)
    # What is added for what rounding may take away: see `few.norms_from_products`.
    bound = 32 * EPS * left.double().square().sum((1, 2)) * right.double().square().sum((1, 2))
    found = kernels.square_by_pairs(left, right)
    np.testing.assert_allclose(found, (exact + bound).numpy(), rtol=1e-6)


@needs_kernels
def test_sums_over_many_places_lose_little():
    rows = torch.full((2, 1 << 20, 3), 0.1)
    found = kernels.add_places(rows).double()
    torch.testing.assert_close(found, rows.double().sum(1), rtol=1e-4, atol=0.0)
    zeros, ones = torch.zeros(2, 1 << 20), torch.ones(2, 1 << 20)
    for part in kernels.norm_gradients(rows, torch.ones_like(rows), zeros, ones):
        torch.testing.assert_close(part.double(), rows.double().sum(1), rtol=1e-4, atol=0.0)


@needs_kernels
@pytest.mark.parametrize("width", [1, 16, 53, 300])
def test_gradients_of_norms_and_sums_over_places(width, threads):
    grad, x = torch.randn(2, 6, 9, width)
    mean, rstd = torch.randn(2, 6, 9)
    gain, bias = kernels.norm_gradients(grad, x, mean, rstd)
    centred = (x.double() - mean.double()[..., None]) * rstd.double()[..., None]
    close(gain, (grad.double() * centred).sum(1))
    close(bias, grad.double().sum(1))
    strided = torch.randn(6, 9, width + 2)[:, 1:, 1:-1]
    close(kernels.add_places(strided), strided.double().sum(1))


def bits_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**31), 2**31, count, dtype=np.int64).astype(np.int32)


@needs_kernels
@pytest.mark.parametrize("pairs", [1, 15, 16, 1000])
def test_noise_is_made_of_the_same_bits_as_by_numpy(pairs, threads):
    bits = bits_of(2 * pairs)
    # The least, the greatest and the middle: a radius of 0, the greatest one, every quarter of a circle.
    special = [-(2**31), 2**31 - 1, 0, -1, 1, 2**30, -(2**30), 2**29, -(2**29)][: len(bits)]
    bits[: len(special)] = bits[len(bits) - len(special) :] = special
    wanted = 3.0 * _narrow_gaussians(memoryview(bits.copy()).cast("B"), len(bits)) + 1.0
    parts = torch.ones(len(bits)).split([1, len(bits) - 1])
    kernels.add_noise(memoryview(bits).cast("B"), parts, 3.0, 1.0)
    np.testing.assert_allclose(torch.cat(parts).numpy(), wanted, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_noised_sums_are_divided_and_held():
    greatest = torch.finfo(torch.float32).max
    sums = torch.tensor([greatest, -greatest, math.inf, 6.0])
    kernels.add_noise(memoryview(bits_of(4)).cast("B"), [sums], 0.0, 0.25)
    assert sums.tolist() == [greatest, -greatest, greatest, 24.0]


@needs_kernels
def test_noise_is_the_same_with_and_without_kernels_but_for_rounding(monkeypatch):
    found = []
    for _ in range(2):
        total = torch.zeros(300_001)
        add_noise({total: total}, 2.0, FastNoise(7), normaliser=4.0)
        found.append(total)
        monkeypatch.setattr(kernels, "_library", lambda: None)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
