"""Gradients by unit on a CPU, clipped and summed by kernels in C (`kernels.c`), where these could be built.

What they compute is what `masks.few`, `masks.unitwise` and `privacy.noise` compute with the operations of
torch and numpy, which need more memory traffic and more time of the interpreter: a gradient is measured while
its parts are in registers, and added to the sum while the next one is formed. They take float32 alone, x86
processors with AVX2 or AVX-512, and the threads of torch's own OpenMP runtime. `usable` says whether all of
that is there; if not, or where `GRADWARDEN_NATIVE=0` is set, nobody needs them.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradwarden.policy.context import FloatArray, IntArray

_LANES = 16
"""The most numbers that are worked on at once: those of AVX-512."""
GIVE_WAY = 64.0
"""Units of rounding by which norms stay below their bounds: see `unitwise.clip_factor`."""
MARGIN = 32.0
"""Units by which a squared norm from pairs of places may be too small: see `few.norms_from_products`."""
_EPS = float(np.finfo(np.float32).eps)
_HELD = 1 << 24
"""How many numbers memory may have that is kept for the next call: 64 MB."""


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class _Clip(ctypes.Structure):
    """`struct clip`."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "left right"),
        *_fields(ctypes.c_int64, "left_row left_place left_feature"),
        *_fields(ctypes.c_int64, "right_row right_line right_place right_feature"),
        *_fields(ctypes.c_int64, "m channels lines places seen_lines seen_places"),
        *_fields(ctypes.c_int64, "kernel_v kernel_h down across high wide pad_v pad_h units"),
        *_fields(ctypes.c_void_p, "starts rows weights others bounds squares factors"),
        ("within", ctypes.c_double),
        *_fields(ctypes.c_void_p, "total bias"),
        *_fields(ctypes.c_int64, "begun bias_begun"),
        *_fields(ctypes.c_void_p, "scratch"),
        *_fields(ctypes.c_int64, "threads"),
    )


class _Pairs(ctypes.Structure):
    """`struct pairs`."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "left right"),
        *_fields(ctypes.c_int64, "left_row left_place right_row right_place rows places m n"),
        ("margin", ctypes.c_double),
        *_fields(ctypes.c_void_p, "squares scratch"),
        *_fields(ctypes.c_int64, "threads"),
    )


class _Affine(ctypes.Structure):
    """`struct affine`."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "grad x mean rstd"),
        *_fields(ctypes.c_int64, "rows places width"),
        *_fields(ctypes.c_void_p, "gain bias"),
        *_fields(ctypes.c_int64, "threads"),
    )


class _Places(ctypes.Structure):
    """`struct places`."""

    _fields_ = (
        ("from", ctypes.c_void_p),
        *_fields(ctypes.c_int64, "row place rows places width"),
        ("sums", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    )


class _Noise(ctypes.Structure):
    """`struct noise`."""

    _fields_ = (
        ("drawn", ctypes.c_void_p),
        ("pairs", ctypes.c_int64),
        *_fields(ctypes.c_void_p, "sums counts"),
        ("parts", ctypes.c_int64),
        *_fields(ctypes.c_float, "sigma normaliser"),
        ("threads", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """The rows of units, int64, those of unit u from starts[u] on. starts: int64 [units + 1].

    weights: float64, of these rows.
    """

    starts: IntArray
    rows: IntArray
    weights: FloatArray


@dataclass(frozen=True, slots=True)
class Window:
    """What a convolution sees from each place of its output, down and across."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]


_POINT = Window((1, 1), (1, 1), (1, 1), (0, 0))


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A contiguous sum. begun: whether it is added to; if not, what it holds is overwritten."""

    tensor: Tensor
    begun: bool


@dataclass(frozen=True, slots=True, eq=False)
class Clipping:
    """What gradients are clipped to and added to.

    others: the squared norms of what is clipped jointly with them, float64 [units]. bounds: float64 [units].
    total: of [m, n]. bias: of [m], for the sums of left over places, clipped jointly.
    """

    others: FloatArray
    bounds: FloatArray
    total: Sum
    bias: Sum | None = None


def usable(*tensors: Tensor) -> bool:
    """Return whether there are kernels for these tensors."""
    return _library() is not None and all(map(_is_plain, tensors))


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in _PLAIN
        and tensor.numel() > 0
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )


_PLAIN = (Tensor, torch.nn.Parameter)


def clip_products(left: Tensor, right: Tensor, members: Members, clipping: Clipping) -> FloatArray:
    """Add gradients left^T right by unit, clipped to their bounds, and return the factors, float64 [units].

    left: [rows, T, m]. right: [rows, T, n]. The total is [m, n].
    """
    return _clip(_of_products(left, right), members, clipping)


def square_products(left: Tensor, right: Tensor, members: Members) -> FloatArray:
    """Return the squared norms of gradients left^T right by unit, float64 [units]."""
    return _square(_of_products(left, right), members)


def clip_convolution(
    grad: Tensor, x: Tensor, window: Window, members: Members, others: FloatArray, bounds: FloatArray
) -> tuple[Tensor, FloatArray]:
    """Return the sum of clipped gradients of a convolution's weight, [out, in, *kernel], and the factors.

    grad: [rows, out, *]. x: [rows, in, *]. The rest: see `Clipping`.
    """
    (down, across), out, channels = window.kernel, grad.shape[1], x.shape[1]
    # Features that lie side by side in what is seen do so in the sum.
    dense = window.dilation[1] == 1
    found = grad.new_empty((down, out, across, channels) if dense else (down, across, out, channels))
    clipping = Clipping(others, bounds, Sum(found, begun=False))
    factors = _clip(_of_convolution(grad, x, window), members, clipping)
    return found.permute(1, 3, 0, 2) if dense else found.permute(2, 3, 0, 1), factors


def square_convolution(grad: Tensor, x: Tensor, window: Window, members: Members) -> FloatArray:
    """Return the squared norms of its gradients by unit, float64 [units]."""
    return _square(_of_convolution(grad, x, window), members)


def square_by_pairs(left: Tensor, right: Tensor) -> FloatArray:
    """Return squared norms of left^T right by row, float64 [rows]: see `few.norms_from_products`."""
    left, right = _side_by_side(left), _side_by_side(right)
    rows = len(left)
    found, threads = np.zeros(rows), _threads(rows)
    where = left.data_ptr(), right.data_ptr(), *left.stride()[:2], *right.stride()[:2]
    call = _Pairs(*where, *left.shape, right.shape[2], MARGIN * _EPS, _address(found), None, threads)
    library = _ready()
    scratch = _scratch.of(library.pair_scratch(ctypes.byref(call)))
    call.scratch = scratch.data_ptr()
    library.pair_squares(ctypes.byref(call))
    return found


def norm_gradients(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of a norm's gain and bias by row, [rows, width].

    grad, x: [rows, T, width]. mean, rstd: [rows, T].
    """
    grad, x, mean, rstd = (tensor.contiguous() for tensor in (grad, x, mean, rstd))
    gain, bias = (grad.new_empty((grad.shape[0], grad.shape[2])) for _ in range(2))
    pointers = (tensor.data_ptr() for tensor in (grad, x, mean, rstd))
    threads = _threads(len(grad))
    call = _Affine(*pointers, *grad.shape, gain.data_ptr(), bias.data_ptr(), threads)
    _ready().affine(ctypes.byref(call))
    return gain, bias


def add_places(tensor: Tensor) -> Tensor:
    """Return the sums of [rows, T, width] over T, [rows, width]."""
    tensor = _side_by_side(tensor)
    rows, places, width = tensor.shape
    found = tensor.new_empty((rows, width))
    row, place, _ = tensor.stride()
    call = _Places(tensor.data_ptr(), row, place, rows, places, width, found.data_ptr(), _threads(rows))
    _ready().add_places(ctypes.byref(call))
    return found


def add_noise(bits: memoryview, sums: Sequence[Tensor], sigma: float, normaliser: float) -> None:
    """Add normal numbers times sigma to sums, in turn, and divide these by a normaliser.

    bits: 4 bytes for each number, an even count of them; they are used up. sums: flat, float32. The numbers
    are those of `noise`. What cannot be held becomes the greatest number that can.
    """
    numbers = np.frombuffer(bits, dtype=np.float32)
    pointers = (ctypes.c_void_p * len(sums))(*(part.data_ptr() for part in sums))
    counts = (ctypes.c_int64 * len(sums))(*map(len, sums))
    drawn = _address(numbers), len(numbers) // 2
    where = ctypes.addressof(pointers), ctypes.addressof(counts), len(sums)
    _ready().noise(ctypes.byref(_Noise(*drawn, *where, sigma, normaliser, torch.get_num_threads())))


def _of_products(left: Tensor, right: Tensor) -> Any:
    left, right = _side_by_side(left), _side_by_side(right)
    _, places, m = left.shape
    call = _Clip()
    call.kept = (left, right)
    call.left, (call.left_row, call.left_place, call.left_feature) = left.data_ptr(), left.stride()
    call.right, (call.right_row, call.right_place, call.right_feature) = right.data_ptr(), right.stride()
    _see(call, _POINT, (1, places), (1, places), m, right.shape[2])
    return call


def _of_convolution(grad: Tensor, x: Tensor, window: Window) -> Any:
    grad = grad.contiguous()
    lines, places = grad.shape[2:]
    call = _Clip()
    call.kept = (grad, x)
    call.left = grad.data_ptr()
    call.left_row, call.left_feature, call.left_place = grad.stride(0), grad.stride(1), 1
    call.right = x.data_ptr()
    call.right_row, call.right_feature, call.right_line, call.right_place = x.stride()
    _see(call, window, (lines, places), tuple(x.shape[2:]), grad.shape[1], x.shape[1])
    return call


def _see(
    call: Any, window: Window, places: tuple[int, int], seen: tuple[int, ...], m: int, channels: int
) -> None:
    call.m, call.channels = m, channels
    (call.lines, call.places), (call.seen_lines, call.seen_places) = places, seen
    (call.kernel_v, call.kernel_h), (call.down, call.across) = window.kernel, window.stride
    (call.high, call.wide), (call.pad_v, call.pad_h) = window.dilation, window.padding


def _clip(call: Any, members: Members, clipping: Clipping) -> FloatArray:
    factors = np.empty(len(clipping.bounds))
    call.bounds, call.factors = _address(clipping.bounds), _address(factors)
    call.within = 1.0 - GIVE_WAY * _EPS
    call.total, call.begun = clipping.total.tensor.data_ptr(), clipping.total.begun
    if clipping.bias is not None:
        call.bias, call.bias_begun = clipping.bias.tensor.data_ptr(), clipping.bias.begun
    _run(call, members, clipping.others)
    return factors


def _square(call: Any, members: Members) -> FloatArray:
    return _run(call, members, np.zeros(len(members.starts) - 1))


def _run(call: Any, members: Members, others: FloatArray) -> FloatArray:
    """Let the kernel run for all members, and return the squared norms, float64 [units]."""
    squares = np.zeros(len(others))
    call.units, call.squares, call.others = len(others), _address(squares), _address(others)
    call.starts, call.rows = _address(members.starts), _address(members.rows)
    call.weights, call.threads = _address(members.weights), torch.get_num_threads()
    library = _ready()
    scratch = _scratch.of(library.clip_scratch(ctypes.byref(call)))
    call.scratch = scratch.data_ptr()
    library.clip(ctypes.byref(call))
    return squares


def _address(array: FloatArray | IntArray) -> int:
    address: int = array.__array_interface__["data"][0]  # `ctypes.data` takes four times as long
    return address


def _side_by_side(tensor: Tensor) -> Tensor:
    """Return a tensor whose last dimension is contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _threads(most: int) -> int:
    return max(1, min(torch.get_num_threads(), most))


class _Scratch(threading.local):
    """Memory of a thread that is used again."""

    def __init__(self) -> None:
        self._numbers = torch.empty(0)

    def of(self, count: int) -> Tensor:
        """Return so many numbers or more."""
        if len(self._numbers) >= count:
            return self._numbers
        found = torch.empty(count, dtype=torch.float32, device="cpu")
        if count <= _HELD:
            self._numbers = found
        return found


_scratch = _Scratch()


def _ready() -> ctypes.CDLL:
    library = _library()
    assert library is not None
    return library


_ARGUMENTS = (_Clip, _Pairs, _Affine, _Places, _Noise)


def _alike(library: ctypes.CDLL) -> bool:
    """Return whether kernels take the arguments that are given here: they may be of an older build."""
    sizes = (ctypes.c_int64 * len(_ARGUMENTS))(*map(ctypes.sizeof, _ARGUMENTS))
    try:
        return bool(library.takes(sizes, ctypes.c_int64(len(sizes))))
    except AttributeError:
        return False


@cache
def _library() -> ctypes.CDLL | None:
    """Return the kernels; None where they were not built, are of another version, or cannot run here."""
    built = sorted(Path(__file__).parent.glob("_kernels.*"))
    if not built or os.environ.get("GRADWARDEN_NATIVE") == "0":
        return None
    try:
        library = ctypes.CDLL(str(built[0]))
    except OSError:
        return None
    if not _alike(library):
        return None
    for counting in (library.clip_scratch, library.pair_scratch, library.prepare):
        counting.restype = ctypes.c_int64
    library.prepare.argtypes = [ctypes.c_int64]
    return library if library.prepare(_LANES) else None
