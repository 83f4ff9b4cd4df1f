"""What one run is made of, and the files it writes."""

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


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of one run in its folder."""

    folder: Path

    @property
    def ledger(self) -> Path:
        return self.folder / "run.ledger"

    @property
    def secret(self) -> Path:
        """What connects the ledger's commitments with file names. Keep it, or destroy it to forget them."""
        return self.folder / "run.secret"

    @property
    def key(self) -> Path:
        return self.folder / "run.key"

    @property
    def public_key(self) -> Path:
        return self.folder / "run.pub"

    @property
    def program(self) -> Path:
        return self.folder / "program.json"

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    def make_room(self) -> Path | None:
        """Create the folder; an earlier run in it is moved aside first, to the path that is returned."""
        moved = None
        if self.ledger.exists():
            taken = range(1, 1 + len(list(self.folder.parent.glob(f"{self.folder.name}.earlier-*"))))
            moved = self.folder.with_name(f"{self.folder.name}.earlier-{len(taken) + 1}")
            self.folder.rename(moved)
        self.folder.mkdir(parents=True, exist_ok=True)
        return moved
