"""What one run is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from examples.code_licences.corpus import DEFAULT_CAP
from examples.code_licences.model import GPTConfig

POLICY = Path(__file__).parents[2] / "policies" / "code_licences.policy"


@dataclass(frozen=True, slots=True)
class Settings:
    """batch: examples per step. learning_rate: its peak. warmup: steps until there. cap: bytes of corpus."""

    policy: Path = POLICY
    steps: int = 600
    seed: int = 0
    batch: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 30
    cap: int = DEFAULT_CAP
    engine: Literal["auto", "fused", "split"] = "auto"
    model: GPTConfig = field(default_factory=GPTConfig)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "policy": self.policy.name}
