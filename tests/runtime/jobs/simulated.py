"""Ranks that train nothing: they decide, record and bind as ranks of a job do, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.context import Context
from gradwarden.policy.decision import VERDICTS, step_verdict
from gradwarden.policy.evaluation.chosen_steps import is_chosen
from gradwarden.policy.model_map import Layer, ModelMap, Parameter
from gradwarden.policy.program import Program
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.jobs.binder import Binder
from gradwarden.runtime.jobs.layout import rank_origin, rank_path
from gradwarden.runtime.jobs.shares import whole_batch
from gradwarden.runtime.ledger.keys import PublicKey, Signer
from gradwarden.runtime.ledger.ledger import Ledger
from gradwarden.runtime.records.recorder import Recorder
from gradwarden.runtime.roster import Roster

POLICY = """
policy notes version {version} language 1
examples {{ kind : one of surface, concept }}
model {{ shallow = top 50%  deep = rest }}
depth surface {{ when kind == surface  reach shallow }}
depth concept {{ when kind == concept  reach all }}
{rules}
"""

LAYERS = (
    Layer("first", None, 1_000_000, (Parameter("first.weight", (4, 4)),)),
    Layer("last", None, 0, (Parameter("last.weight", (4, 4)),)),
)

SECRET = bytes(range(32))
WEIGHTS = "ab" * 32
TODAY = date(2026, 1, 31)

Batch = Sequence[str]
"""Names of examples; those that begin with a capital letter are concepts."""


def program(version: int = 1, rules: str = "") -> Program:
    text = POLICY.format(version=version, rules=rules)
    return compile_policy(parse_policy(text), ModelMap("tiny", LAYERS))


class Rank:
    """One rank's ledger, written as its governor writes it. `facts` replace fields of its opening."""

    def __init__(
        self,
        folder: Path,
        signer: Signer,
        job: str,
        rank: int,
        ranks: int,
        *,
        governed_by: Program,
        placement: str = "anywhere",
        path: Path | None = None,
        weights: str = WEIGHTS,
        **facts: Any,
    ) -> None:
        self.rank, self.program = rank, governed_by
        self.ledger = Ledger.open(
            path or rank_path(folder, rank), signer, "os", facts.pop("origin", rank_origin(job, rank))
        )
        self._committer = Committer(SECRET)
        self.roster = Roster(governed_by, self._committer)
        self.recorder = Recorder(self.ledger)
        self.next_step = self.committed = self.refused = self.exposed = 0
        self.moved = "0.5"
        """How far each band that a step reaches moves, where the policy has that recorded."""
        member = {"id": job, "rank": rank, "ranks": ranks, "placement": placement, "weights": weights}
        self.recorder.open(
            governed_by,
            {
                "run": "5f",
                "origin": self.ledger.origin,
                "dataset": None,
                "keys": list(self.ledger.vkeys),
                "engine": "split",
                "normaliser": None,
                "clip_norm": None,
                "secret_commitment": self._committer.secret_commitment,
                "privacy": [],
                "job": member,
                **facts,
            },
        )

    def propose(self, names: Batch, *, epoch: int = 0, today: date = TODAY) -> set[str]:
        """Record an intent; return the bands that it reaches."""
        rows = self.roster.rows(
            [{"id": name, "kind": "concept" if name[:1].isupper() else "surface"} for name in names]
        )
        context = Context(self.next_step, epoch, today, exposures=self.roster.exposures(rows))
        admitted = self.roster.admit(rows, context)
        self.recorder.classes(self.roster.new_classes())
        verdict = step_verdict({VERDICTS[code] for code in admitted.verdicts.tolist()})
        self.recorder.propose(admitted, self.roster.commitments(rows), context, verdict)
        self.next_step += 1
        self._rows, self._learned = rows, admitted.micro.any(axis=1)
        self._names, self._weights = names, admitted.micro
        return {
            band
            for band, column in zip(self.program.band_names, admitted.micro.T, strict=True)
            if column.any()
        }

    def commit(self, active: set[str], batch: int | None, norm: str = "0.25") -> None:
        """Record an outcome. batch: of all ranks, as the first form of the format had it."""
        self.conclude(active, norm, {} if batch is None else {"batch": batch})

    def conclude(self, active: set[str], norm: str, together: Mapping[str, Any]) -> None:
        if is_chosen(self.next_step - 1, self.program.recorded):
            self.contribute(active)
        names = [band for band in self.program.band_names if band in active]
        norms = {band: norm if band in active else None for band in self.program.band_names}
        body = {"step": self.next_step - 1, "active": names, "norms": norms, "loss": "2.5", "privacy": {}}
        self.recorder.event("committed", {**body, **together})
        self.expose()
        self.committed += 1

    def contribute(self, active: set[str]) -> None:
        """Record what each example added where it has weight, and that the bands in reach moved."""
        bands = self.program.band_names
        norms = [f"{sum(name.encode()) / 64:.4g}" for name in self._names]
        added = {
            band: [norm if weight else "0" for norm, weight in zip(norms, column, strict=True)]
            for band, column in zip(bands, self._weights.T.tolist(), strict=True)
        }
        moved = {band: self.moved if band in active else "0" for band in bands}
        self.recorder.contributions(self.next_step - 1, added, moved)

    def expose(self) -> None:
        """Count what was proposed last as learned from: committed, or left without an outcome by a crash."""
        self.roster.expose(self._rows[self._learned])
        self.exposed += int(self._learned.sum())

    def refuse(self) -> None:
        self.recorder.refuse(self.next_step - 1, "gradient", "other_rank", "rank 0 refused the step")
        self.refused += 1

    def change_policy(self, other: Program) -> None:
        self.program = other
        self.recorder.change_policy(other, self.next_step)
        self.roster.change_program(other)

    def sign(self) -> None:
        """Sign what is there, durably."""
        self.ledger.sign()
        self.ledger.flush()

    def seal(self) -> None:
        totals = {"steps": self.next_step, "committed": self.committed, "refused": self.refused}
        self.ledger.close({**totals, "examples": self.exposed})


class Job:
    """A job of simulated ranks."""

    def __init__(
        self,
        folder: Path,
        signer: Signer,
        ranks: int = 3,
        *,
        every: int = 2,
        lag: int = 4,
        placement: Any = "anywhere",
        governed_by: Program | None = None,
        keys: Sequence[PublicKey] = (),
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.signer, self.size = folder, signer, ranks
        self.placement = placement
        self.program = governed_by or program()
        terms: Any = {"every": every, "lag": lag, "placement": placement}
        self.binder = Binder.open(folder, signer, ranks=ranks, durability="os", keys=keys, **terms)
        self.ranks = [self.rank(number) for number in range(ranks)]

    def rank(self, number: int, **facts: Any) -> Rank:
        facts.setdefault("governed_by", self.program)
        facts.setdefault("placement", self.placement)
        return Rank(self.folder, self.signer, self.binder.job, number, self.size, **facts)

    def without(self, number: int) -> None:
        """Take away what a rank has written."""
        self.ranks[number].ledger.close()
        path = rank_path(self.folder, number)
        path.unlink()
        path.with_name(f"{path.name}.head").unlink()

    def again(self, number: int, **facts: Any) -> None:
        """Let a rank begin once more, with other facts in its opening."""
        self.without(number)
        self.ranks[number] = self.rank(number, **facts)

    def batches(self, step: int) -> list[Batch]:
        """Return each rank's part of a step: three examples, one of them a concept."""
        return [
            [f"{step}-a-{rank}", f"{step}-b-{rank}", f"C{step}-{rank}"] for rank in range(len(self.ranks))
        ]

    def step(self, parts: Sequence[Batch] | None = None, **options: Any) -> None:
        """Take a step together, of which every rank knows how many examples it has."""
        parts = self.batches(self.ranks[0].next_step) if parts is None else parts
        reached = [rank.propose(part, **options) for rank, part in zip(self.ranks, parts, strict=True)]
        active: set[str] = set().union(*reached)
        self.commit(active, list(map(len, parts)))

    def commit(self, active: set[str], told: Sequence[int]) -> None:
        """Have all ranks commit a step. told: the share of each, as it told the others."""
        whole = whole_batch(told)
        for rank in self.ranks:
            rank.conclude(active, "0.25", {"batch": whole.count, "shares": list(whole.sums)})

    def bind(self) -> None:
        for rank in self.ranks:
            rank.sign()
        self.binder.bind()

    def run(self, steps: int = 6) -> None:
        """Take steps, with a binding after every second one."""
        for step in range(steps):
            self.step()
            if step % 2:
                self.bind()

    def seal(self) -> None:
        for rank in self.ranks:
            rank.seal()
        self.binder.seal()

    def leave(self) -> None:
        """Close everything as it is."""
        for rank in self.ranks:
            rank.ledger.close()
        self.binder.close()


def sealed_job(folder: Path, signer: Signer, ranks: int = 3, steps: int = 6, **options: Any) -> Path:
    job = Job(folder, signer, ranks, **options)
    job.run(steps)
    job.seal()
    return folder
