"""What a person sees while the model trains: progress, loss, verdicts, and which bands moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_STYLES = {"admit": "green", "limit": "yellow", "defer": "blue", "refuse": "red", "invalid": "magenta"}

_MEMORY = 0.95
"""How much of the running averages a step keeps."""


class TrainingDisplay:
    """A live view in a terminal; elsewhere one line every tenth of the way."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._verdicts: Counter[str] = Counter()
        self._norms: dict[str, float] = {}
        self._loss: float | None = None
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("training", total=steps)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(
        self, step: int, loss: float | None, verdicts: Mapping[str, int], norms: Mapping[str, float]
    ) -> None:
        """Show one finished step. loss: nats per byte over what was learned; norms: per band, after caps."""
        self._verdicts.update(verdicts)
        if loss is not None:
            self._loss = loss if self._loss is None else _MEMORY * self._loss + (1 - _MEMORY) * loss
        for band, norm in norms.items():
            self._norms[band] = _MEMORY * self._norms.get(band, norm) + (1 - _MEMORY) * norm
        self._progress.update(self._task, completed=step + 1)
        if not self._console.is_terminal and (step + 1) % max(1, self._steps // 10) == 0:
            self._console.print(f"step {step + 1}/{self._steps}  {self._summary()}", highlight=False)

    def _summary(self) -> str:
        counts = "  ".join(f"{verdict} {count}" for verdict, count in sorted(self._verdicts.items()))
        shares = "  ".join(f"{band} {share:.0%}" for band, share in self._shares().items())
        loss = "–" if self._loss is None else f"{self._loss:.3f}"
        return f"loss {loss}  {counts}  gradient: {shares}"

    def _shares(self) -> dict[str, float]:
        total = sum(self._norms.values()) or 1.0
        return {band: norm / total for band, norm in self._norms.items()}

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_row("loss", "–" if self._loss is None else f"{self._loss:.3f} nats/byte")
        total = self._verdicts.total() or 1
        for verdict, style in _STYLES.items():
            count = self._verdicts[verdict]
            table.add_row(verdict, f"{count:>7}", _bar(count / total, style))
        for band, share in self._shares().items():
            table.add_row(f"gradient in {band}", f"{share:>7.0%}", _bar(share, "cyan"))
        return Group(self._progress, table)


def _bar(share: float, style: str) -> str:
    return f"[{style}]{'█' * round(30 * share)}[/{style}]"
