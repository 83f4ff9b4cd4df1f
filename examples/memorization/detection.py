"""How well signals of the loop find the examples that a model has memorized at the end: precision and recall.

Every signal is of the last time that an example came, but for the second look at the most suspect ones; the
truth is what can be extracted after the run.
`combined` is the probability that a logistic regression gives from all signals. It is fitted to other runs
than the one it is judged on, or, where there is one run alone, to other clusters of examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.gradient_routing.results import spread
from examples.memorization.training import SECOND_LOOK, Run, Scored

Values = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]

SIGNALS = (
    "recital",
    "span_gap",
    "loss_gap",
    "loss_ratio",
    "token_score",
    "copies",
    "reconstruction",
    "surprisal",
)

FALLING = frozenset({"loss_ratio"})
"""Signals of which less speaks for memorization."""

COMBINED = "combined"

MEASURED = (*SIGNALS, SECOND_LOOK)

GUARDS = {"recital": 24.0, "span_gap": 28.0, "copies": 3.0, "surprisal": 66.0, SECOND_LOOK: 24.0}
"""Where the guards of the policies refuse. Copies: those that came more often than twice."""

PRECISION = 0.9
"""The precision at which recall is told."""

FOLDS = 5

LATE = 0.9
"""From which share of the run on an example's last signals are about as fresh as the truth."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision and recall at every threshold, the strictest first. average: mean precision over recall.

    base: the share of all examples that are to be found, which is the precision of chance.
    """

    signal: str
    thresholds: list[float]
    precision: list[float]
    recall: list[float]
    average: float
    base: float

    def at(self, threshold: float) -> tuple[float, float]:
        """Return precision and recall where all examples with at least so much of the signal are flagged."""
        place = int(np.count_nonzero(np.array(self.thresholds) >= threshold)) - 1
        return (self.precision[place], self.recall[place]) if place >= 0 else (1.0, 0.0)

    def recall_at(self, precision: float) -> float:
        """Return the greatest recall that is had with at least so much precision, 0.0 where none is."""
        reached = [
            recall for found, recall in zip(self.precision, self.recall, strict=True) if found >= precision
        ]
        return max(reached, default=0.0)


def curve(signal: str, values: Values, true: Truth) -> Curve:
    """Return the curve of a signal [N] over all examples. Examples of one value are flagged together."""
    order = np.argsort(-values, kind="stable")
    ordered, hits = values[order], np.cumsum(true[order])
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    recall = hits[last] / max(1, hits[-1])
    precision = hits[last] / (last + 1)
    average = float(np.sum(np.diff(np.r_[0.0, recall]) * precision))
    return Curve(
        signal, ordered[last].tolist(), precision.tolist(), recall.tolist(), average, float(true.mean())
    )


def combined(columns: Values, true: Truth, runs: Sequence[int], clusters: Sequence[str]) -> Values:
    """Return the probability of each example by a regression that was fitted without it, float64 [N].

    columns: signals [N, S]. runs, clusters: of each example. Where too little is to be found to fit
    anything, all are alike.
    """
    if true.sum() < FOLDS * len(set(runs)):
        return np.zeros(len(true))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    several = len(set(runs)) > 1
    folds = LeaveOneGroupOut() if several else StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    found: Values = cross_val_predict(
        model, columns, true, groups=list(runs if several else clusters), cv=folds, method="predict_proba"
    )[:, 1]
    return found


def detected(runs: Sequence[Sequence[Scored]]) -> tuple[list[Curve], list[dict[str, str]]]:
    """Return the curve of each signal over all runs, and a table of them. runs: the examples of each."""
    scored = [one for run in runs for one in run]
    number = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    true = np.array([one.memorized for one in scored])
    signals = {
        name: (-1.0 if name in FALLING else 1.0) * np.array([one.signals[name] for one in scored])
        for name in MEASURED
    }
    columns = np.stack(
        [np.log1p(signals[name]) if name == "copies" else signals[name] for name in SIGNALS], axis=1
    )
    both = combined(columns, true, number.tolist(), [one.cluster for one in scored])
    parts = {
        "of code alone": np.array([one.id.startswith("code") for one in scored]),
        "of the last tenth": np.array([one.came >= LATE for one in scored]),
    }
    found = {name: curve(name, values, true) for name, values in {COMBINED: both, **signals}.items()}
    rows = []
    for name, values in {COMBINED: both, **signals}.items():
        each = [curve(name, values[number == run], true[number == run]).average for run in range(len(runs))]
        row = {"signal": name, "mean precision": f"{found[name].average:.2f}", "by run": spread(each, 2)}
        row |= {of: f"{curve(name, values[part], true[part]).average:.2f}" for of, part in parts.items()}
        rows.append(row | _guard(found[name]))
    chance = {"signal": "chance", "mean precision": f"{true.mean():.2f}"}
    chance |= {of: f"{true[part].mean():.2f}" for of, part in parts.items()}
    return list(found.values()), [*rows, chance]


def strange(runs: Sequence[Run]) -> str:
    """Return which share of each kind of examples the guard against strange spans stops at first sight."""
    values: dict[str, list[bool]] = {}
    for run in runs:
        kinds = {canary.id: canary.kind for canary in run.canaries}
        for one in run.scored:
            kind = kinds.get(one.id.split(".")[0], "code")
            values.setdefault(kind, []).append(one.signals["surprisal"] >= GUARDS["surprisal"])
    return ", ".join(f"{mean(flags):.1%} of {len(flags):,} ({kind})" for kind, flags in values.items())


def _guard(found: Curve) -> dict[str, str]:
    """Return what a signal finds almost without a false alarm, and where the policies' guard stands."""
    told = {f"recall at {PRECISION:.0%} precision": f"{found.recall_at(PRECISION):.2f}"}
    places = ("guard", "its precision", "its recall")
    if found.signal not in GUARDS:
        return told | dict.fromkeys(places, "")
    precision, recall = found.at(GUARDS[found.signal])
    values = (f"{GUARDS[found.signal]:g}", f"{precision:.2f}", f"{recall:.2f}")
    return told | dict(zip(places, values, strict=True))
