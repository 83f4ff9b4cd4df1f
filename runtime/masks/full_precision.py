"""Products of float32 matrices at the precision of float32, whatever the process has asked for.

`torch.set_float32_matmul_precision`, and the settings of single backends, let kernels round the factors of a
product to TensorFloat-32 or bfloat16. A gradient that is formed twice, once to be measured or compared and
once in a sum with others, then differs from itself by 2^-11 or 2^-8 of the products that add up to it. Where
these cancel, that is more than the gradient, and no bound on the norm holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Lock
from typing import Any

import torch

_EXACT = ("ieee", "none")


class _Setting:
    """Counts who needs full precision: the first to come asks for it, the last to leave undoes that."""

    def __init__(self, parts: Callable[[], Sequence[Any]]) -> None:
        """parts: what a precision can be set for."""
        self._parts, self._lock, self._count = parts, Lock(), 0
        self._lowered: list[tuple[Any, str]] = []

    def enter(self) -> None:
        with self._lock:
            if not self._count:
                known = [(part, part.fp32_precision) for part in self._parts()]
                self._lowered = [(part, before) for part, before in known if before not in _EXACT]
                for part, _ in self._lowered:
                    part.fp32_precision = "ieee"
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                for part, before in self._lowered:
                    part.fp32_precision = "none"  # as it is by itself, or by what holds for all parts
                    if part.fp32_precision != before:
                        part.fp32_precision = before


class _Products:
    """The precision of all products, as torch before 2.9 has it."""

    @property
    def fp32_precision(self) -> str:
        found = torch.get_float32_matmul_precision()
        return "ieee" if found == "highest" else found

    @fp32_precision.setter
    def fp32_precision(self, asked: str) -> None:
        torch.set_float32_matmul_precision("highest" if asked in _EXACT else asked)


class _Convolutions:
    """That of convolutions on accelerators, likewise."""

    @property
    def fp32_precision(self) -> str:
        return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"

    @fp32_precision.setter
    def fp32_precision(self, asked: str) -> None:
        torch.backends.cudnn.allow_tf32 = asked == "tf32"


def _of_processors() -> Sequence[Any]:
    mkldnn: Any = torch.backends.mkldnn
    return mkldnn.matmul, mkldnn.conv


def _of_accelerators() -> Sequence[Any]:
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv


def _settings() -> Mapping[str, _Setting]:
    """Return the setting for each kind of device; before torch 2.9, products have one for all."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return {"cpu": _Setting(_of_processors), "cuda": _Setting(_of_accelerators)}
    return dict.fromkeys(("cpu", "cuda"), _Setting(lambda: (_Products(), _Convolutions())))


_SETTINGS = _settings()


class full_precision:  # noqa: N801  # used as a function
    """Inside, products and convolutions of float32 tensors round nothing but sums.

    kinds: of devices that this is for; what is set for each takes a while to be asked. The settings are those
    of the process: other threads that multiply meanwhile are as precise. They stay until the last thread has
    left.
    """

    def __init__(self, kinds: Collection[str] = ("cpu", "cuda")) -> None:
        self._settings = {_SETTINGS[kind] for kind in kinds if kind in _SETTINGS}

    def __enter__(self) -> None:
        for setting in self._settings:
            setting.enter()

    def __exit__(self, *error: object) -> None:
        for setting in self._settings:
            setting.leave()
