"""The files of a run, as every example lays them out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def make_room(self) -> Path | None:
        """Create the folder; an earlier run in it is moved aside first, to the path that is returned."""
        moved = None
        if self.ledger.exists():
            taken = range(1, 1 + len(list(self.folder.parent.glob(f"{self.folder.name}.earlier-*"))))
            moved = self.folder.with_name(f"{self.folder.name}.earlier-{len(taken) + 1}")
            self.folder.rename(moved)
        self.folder.mkdir(parents=True, exist_ok=True)
        return moved
