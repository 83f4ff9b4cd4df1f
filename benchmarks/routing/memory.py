"""The peak memory of a step, above what the network and its optimizer hold.

On a GPU it is what the caching allocator of PyTorch says. On a CPU every allocation and release of PyTorch's
allocator during the step is recorded by its profiler, with its size, and the peak is that of their running
sum. So it is exact to the byte for tensors, the same in every run, and blind to load, to fragmentation and to
memory that the C library keeps for later, all of which the resident size of a process mixes in. It does not
see the scratch memory of oneDNN and MKL, which allocate by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler import profile


@dataclass(slots=True)
class Peak:
    """The most bytes held at once, above those held at the start. Known at the end."""

    bytes: int = 0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measure the peak of what is done inside. Gradients should be None before."""
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with profile(profile_memory=True) as recorded:
        yield peak
    peak.bytes = _peak(recorded)


def _peak(recorded: profile) -> int:
    """Return the peak of the running sum of a profile's allocations."""
    # `events()` folds allocations into the operations that made them; only the raw results have their order.
    assert recorded.kineto_results is not None
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in recorded.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    )
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
