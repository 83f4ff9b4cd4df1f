"""What the benchmark of batches by depth makes of the losses that it takes along the way."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks.depth_batches import Run


@pytest.mark.parametrize(
    ("loss", "seconds"), [(3.5, 1.0), (3.0, 2.0), (2.0, 4.0), (1.0, 6.0), (0.5, 6.0), (4.5, 0.0)]
)
def test_the_time_to_a_loss_is_found_between_marks(loss: float, seconds: float) -> None:
    run = Run("a run", cut=False, grouped=False, model=nn.Identity())
    run.marks = [(0, 4.0), (2, 3.0), (4, 1.0)]
    assert run.time_to(loss, [1.0, 1.0, 2.0, 2.0]) == pytest.approx(seconds)
