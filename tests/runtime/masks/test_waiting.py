"""A governed step does not wait for the device while its plan is carried out.

No accelerator is needed: model and batch are taken for tensors on a device, and so is all that comes of them.
To read one of these is to wait, and so is to send one that is not by an ordinary copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gradwarden.policy.program import Band
from gradwarden.runtime.masks import make_engine, planner
from gradwarden.runtime.steps.gates import band_norms

BATCH, WIDTH = 8, 8
READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select")


class Device:
    """What lies on a pretended device, by its memory, and where somebody had to wait for it."""

    def __init__(self) -> None:
        self._memory: dict[int, Any] = {}
        self.waits: list[str] = []
        self.sent = 0

    def add(self, tensor: Tensor) -> None:
        """Take a tensor for one on the device."""
        storage = tensor.untyped_storage()
        self._memory[storage._cdata] = storage  # kept, so that no other gets its address

    def holds(self, value: Any) -> bool:
        """Return whether a tensor is on the device."""
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._memory

    def forget(self, tensor: Tensor) -> None:
        """Take a tensor for one of the host."""
        self._memory.pop(tensor.untyped_storage()._cdata, None)

    def wait(self, what: object) -> None:
        """Note a wait, with the lines that asked for it."""
        frame, lines = sys._getframe(), []
        while frame.f_back is not None:
            frame = frame.f_back
            if "gradwarden" in frame.f_code.co_filename:
                lines.append(f"{frame.f_code.co_filename.rsplit('/', 1)[1]}:{frame.f_lineno}")
        self.waits.append(f"{what} {' < '.join(lines[:3])}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, operations are looked at."""
        with _Operations(self), _copies(self):
            yield


class _Operations(TorchDispatchMode):
    """What comes of tensors on the device is there too."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, given = self._device, pytree.tree_leaves((args, kwargs))
        there = [device.holds(leaf) for leaf in given]
        if any(there) and str(func).rsplit(".", 1)[0] in READS:
            device.wait(func)
        if func is torch.ops.aten.index.Tensor and device.holds(args[0]) and not all(there):
            device.wait(func)
        result = func(*args, **(kwargs or {}))
        if any(there):
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor):
                    device.add(leaf)
        return result


@contextmanager
def _copies(device: Device) -> Iterator[None]:
    """Inside, tensors are copied from and to the device: to torch, copies of the processor to itself."""
    stock = {name: getattr(Tensor, name) for name in ("to", "cpu", "tolist", "numpy", "item")}

    def read(name: str) -> Callable[..., Any]:
        def run(tensor: Tensor) -> Any:
            if device.holds(tensor):
                device.wait(name)
            return stock[name](tensor)

        return run

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = stock["to"](tensor, *args, **kwargs)
        target = kwargs.get("device", args[0] if args else None)
        # The host is meant where a device is given in words.
        if isinstance(target, str) and device.holds(tensor):
            device.wait("read")
            result = result.clone()
            device.forget(result)
        elif isinstance(target, torch.device) and not device.holds(tensor):
            if sys._getframe(1).f_code.co_name != "send":
                device.wait("copy")
            result = result.clone()
            device.add(result)
            device.sent += 1
        return result

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "numpy", "item"):
            patch.setattr(Tensor, name, read(name))
        patch.setattr(Tensor, "cpu", lambda tensor: to(tensor, "cpu"))
        patch.setattr(Tensor, "to", to)
        yield


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(functional.gelu(self.up(self.norm(x))))
        return x + hidden


class Model(nn.Module):
    """An embedding, blocks and an output; a band for each of them, from the output down."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Embedding(5, WIDTH), nn.ModuleList(Block() for _ in range(depth))
        self.top = nn.Linear(WIDTH, 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.stem(words)
        for block in self.blocks:
            x = block(x)
        return self.top(x).flatten(1).square().sum(1)  # type: ignore[no-any-return]

    def bands(self) -> list[Band]:
        names = ["top", *(f"blocks.{n}" for n in reversed(range(len(self.blocks)))), "stem"]
        return [
            Band(name, (), tuple(n for n, _ in self.named_parameters() if n.startswith(name + ".")))
            for name in names
        ]


def weights(case: str, bands: int) -> Tensor:
    """Return weights [BATCH, bands]."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(BATCH, bands, generator=generator, dtype=torch.float64)
    if case == "random":
        return torch.where(drawn < 0.5, 0.0, drawn)
    if case == "fractional":
        return 0.1 + 0.8 * drawn
    rows = torch.zeros(BATCH, bands, dtype=torch.float64)
    rows[BATCH // 2 if case == "adjacent" else slice(1, None, 2) :] = 1.0
    return rows


@pytest.mark.parametrize("cost", [0.0, 1e30], ids=["in parts", "in one piece"])
@pytest.mark.parametrize("case", ["fractional", "adjacent", "random"])
def test_nothing_waits_for_the_device_in_a_masked_step(
    case: str, cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(planner.CALL_COST, "cpu", cost)
    monkeypatch.setitem(planner.FREEZING_COST, "cpu", cost)
    torch.manual_seed(0)
    model = Model(6)
    engine = make_engine(model, model.bands(), "fused")
    each = weights(case, len(model.bands()))
    for _ in range(5):  # past the first checks of whose rows are whose
        engine.arm(each)
        engine.backward(model(torch.randint(5, (BATCH, 3))), BATCH)
    device, words = Device(), torch.randint(5, (BATCH, 3))
    for tensor in (*model.parameters(), words):
        device.add(tensor)
    with device.watched():
        engine.arm(each)
        losses = model(words)
        assert device.holds(losses)
        engine.backward(losses, BATCH)
    assert device.waits == []
    assert device.sent > 0


@pytest.mark.parametrize("depth", [2, 6])
def test_a_whole_step_waits_for_losses_and_norms_alone_once_it_has_launched_the_backward_pass(
    depth: int, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, device = Model(depth), Device()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    order: list[str] = []
    with lab.governor(lab.policy, model, optimizer, engine="fused") as governor:
        for number in range(6):
            words = torch.randint(5, (BATCH, 3))
            if number < 5:
                with governor.step(lab.batch("aabbaabb", prefix=f"{number}-")) as proposal:
                    proposal.backward(model(words))
                continue
            model.stem.weight.register_hook(lambda _: order.append(f"{len(device.waits)} waits"))
            for tensor in (*model.parameters(), words):
                device.add(tensor)
            with device.watched(), governor.step(lab.batch("aabbaabb")) as proposal:
                proposal.backward(model(words))
        assert proposal.refusal is None
    assert len(device.waits) == 2
    assert order == ["0 waits"]


def test_the_norms_of_all_bands_are_read_at_once() -> None:
    device = Device()
    bands = {str(number): [nn.Parameter(torch.randn(3)) for _ in range(4)] for number in range(5)}
    for parameter in (parameter for members in bands.values() for parameter in members):
        parameter.grad = torch.randn(3)
        device.add(parameter.grad)
    with device.watched():
        found = band_norms(bands)
    assert len(device.waits) == 1
    assert found == band_norms(bands)
