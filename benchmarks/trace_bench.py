"""Seconds to index a ledger for `trace`, and to answer each kind of question from the index.

The ledger has a step and its outcome for each of --steps steps of 32 examples, drawn from 200,000 that come
back; half of the examples shape all bands, some shape one, some are refused. It is chained as any ledger, and
not signed: an index is made without looking at signatures. With --record N about one step in N records what
each example added to each band. Peers in the same run: `verify_chain` without
signatures, which the making of an index contains, and SHA-256 of the file; for the question about a band,
pyarrow's own filter, join and grouping over the same files. A question is asked in a process that was just
started, as the command does, and again in the same process.
Run with `python -m benchmarks.trace_bench --steps 1000000`.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson
import pyarrow.compute as pc
import pyarrow.dataset as ds

from benchmarks.bytecode import compiled_modules
from benchmarks.results import write_results
from gradwarden.policy import compile_policy, parse_policy
from gradwarden.policy.array_types import Numbers
from gradwarden.policy.evaluation.chosen_steps import is_chosen
from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.ledger.chain import verify_chain
from gradwarden.runtime.ledger.entries import CANONICAL, ZERO_HASH, compose
from gradwarden.runtime.provenance.index import build_index, open_index
from gradwarden.runtime.provenance.queries import Queries

BATCH = 32
EXAMPLES = 200_000
RUNS = 3

POLICY = """policy benchmark version 1 language 1
examples { ok : bool  surface : bool  gone : date optional }
model { shallow = top 25%  middle = next 50%  deep = rest }
depth all_depths { when ok reach all }
depth top_only { when surface reach shallow at 0.5 }
suppress opted_out { when not ok because "no consent" }
retain term { when has gone until gone because "the term is over" }
"""

DECISIONS = [
    ("admit", [1_000_000, 1_000_000, 1_000_000], ["all_depths"]),
    ("limit", [500_000, 0, 0], ["top_only"]),
    ("refuse", [0, 0, 0], ["all_depths", "opted_out"]),
    ("refuse", [0, 0, 0], ["all_depths", "term"]),
]


def write_run(path: Path, steps: int, record: int = 0) -> None:
    """Write the ledger; from half of the steps on, a tenth of the examples are stopped by `term`.

    record: about one step in so many records contributions; 0: none does.
    """
    program = compile_policy(parse_policy(POLICY))
    chance = np.random.default_rng(0)
    names = chance.bytes(32 * EXAMPLES)
    commitments = [names[at : at + 32] for at in range(0, len(names), 32)]
    treated = np.repeat([0, 1, 2], [EXAMPLES // 2, EXAMPLES // 4, EXAMPLES // 4])
    over = np.where((np.arange(EXAMPLES) % 10 == 0) & (treated == 0), 3, treated)
    prev, index = ZERO_HASH, 0
    with path.open("wb", buffering=1 << 20) as file:

        def append(kind: str, body: dict[str, Any]) -> None:
            nonlocal prev, index
            line = compose(kind, index, prev, orjson.dumps(body, option=CANONICAL))
            file.write(line + b"\n")
            prev, index = sha256(b"\0" + line).hexdigest(), index + 1

        policy = {"name": program.name, "version": program.version, "digest": program.digest}
        text = program.to_json()
        for kind, body in (
            ("opened", opening(policy, list(program.band_names))),
            ("program", {"digest": program.digest, "part": 0, "parts": 1, "text": text}),
            ("decisions", {"decisions": [described(n, *one) for n, one in enumerate(DECISIONS)]}),
        ):
            append(kind, body)
        drawn = chance.integers(0, EXAMPLES, (steps, BATCH), np.int32)
        for step, row in enumerate(drawn):
            decided = treated if step < steps // 2 else over
            append("step", proposed(step, [commitments[n] for n in row.tolist()], decided[row].tolist()))
            if record and is_chosen(step, record):
                norms = added(program.band_names, decided[row], chance)
                append("contributed", {"step": step, "first": 0, "norms": norms})
                append("moved", {"step": step, "norms": dict.fromkeys(norms, "0.0012345")})
            append(
                "committed", {"active": ["shallow"], "loss": "2.5", "norms": {}, "privacy": {}, "step": step}
            )


def opening(policy: dict[str, Any], bands: list[str]) -> dict[str, Any]:
    return {
        "format": "gradwarden/ledger/1",
        "run": "benchmark",
        "origin": "benchmark",
        "at": "2026-01-01T00:00:00+00:00",
        "policy": policy,
        "model_map": "",
        "dataset": None,
        "bands": bands,
        "code": {},
        "keys": [],
        "engine": "fused",
        "normaliser": None,
        "clip_norm": None,
        "secret_commitment": Committer(bytes(32)).secret_commitment,
        "privacy": [],
    }


def added(bands: Sequence[str], decided: Numbers, chance: np.random.Generator) -> dict[str, list[str]]:
    """Return what examples add to each band. decided: the number of the decision on each."""
    weights = np.array([weights for _, weights, _ in DECISIONS])[decided]
    norms = (weights > 0).T * chance.random(len(decided))
    return {band: [f"{norm:.4g}" for norm in column] for band, column in zip(bands, norms, strict=True)}


def described(number: int, verdict: str, weights: list[int], rules: list[str]) -> dict[str, Any]:
    nothing: dict[str, Any] = {"advisory": [], "waived": [], "obligations": []}
    return {"id": number, "verdict": verdict, "weights": weights, "rules": rules, **nothing}


def proposed(step: int, commitments: list[bytes], decisions: list[int]) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": 0,
        "today": 20_000,
        "count": BATCH,
        "classes": decisions,
        "commitments": b64encode(b"".join(commitments)).decode(),
        "exposures": None,
        "signals": {},
        "slots": {},
        "spent": [],
        "decision": decisions,
        "verdict": "limit",
    }


def timed(work: Callable[[], object], runs: int = RUNS) -> dict[str, float]:
    """Time some work: by the clock, and in processor time, that of processes it waited for included."""
    times, processor = [], []
    for _ in range(runs):
        start, used = time.perf_counter(), used_time()
        work()
        times.append(time.perf_counter() - start)
        processor.append(used_time() - used)
    return {"median": statistics.median(times), "best": min(times), "processor": min(processor)}


def used_time() -> float:
    return sum(os.times()[:4])


def by_pyarrow(queries: Queries, band: str, first: int, last: int) -> Any:
    """Answer the question about a band with pyarrow alone."""
    uses = ds.dataset(queries.index.paths("uses"), format="parquet")
    weights = ds.dataset(queries.index.paths("weights"), format="parquet")
    in_steps = pc.field("learned") & (pc.field("step") >= first) & (pc.field("step") <= last)
    used = uses.to_table(columns=["example", "decision"], filter=in_steps)
    heavy = weights.to_table(filter=(pc.field("band") == band) & (pc.field("weight") > 0))
    joined = used.join(heavy.select(["decision", "weight"]), "decision", join_type="inner")
    return (
        joined.group_by("example").aggregate([("weight", "sum")]).sort_by([("weight_sum", "descending")])[:20]
    )


def command(path: Path, *arguments: str) -> None:
    done = [sys.executable, "-m", "gradwarden.cli", "trace", *arguments[:1], str(path), *arguments[1:]]
    subprocess.run(done, check=True, capture_output=True)


def ask(path: Path, steps: int) -> dict[str, Any]:
    """Time every question."""
    queries = Queries(open_index(path))
    span = (steps // 4, 3 * steps // 4)
    heaviest = queries.band("deep", (0, None), 1).top[0].commitment
    asked: dict[str, Callable[[], object]] = {
        "band_all_steps": lambda: queries.band("shallow"),
        "band_half_of_the_steps": lambda: queries.band("shallow", span),
        "example": lambda: queries.example(bytes.fromhex(heaviest)),
        "rule": lambda: queries.rule("opted_out"),
        "footprint": lambda: queries.footprint("term"),
        "all_weight": queries.weight_of,
    }
    figures: dict[str, Any] = {f"{name}_seconds": timed(work) for name, work in asked.items()}
    figures["open_and_check_digests_seconds"] = timed(lambda: open_index(path))
    figures["pyarrow_band_half_of_the_steps_seconds"] = timed(lambda: by_pyarrow(queries, "shallow", *span))
    commands = {
        "band": ("band", "shallow"),
        "example": ("example", "--commitment", heaviest),
        "rule": ("rule", "opted_out"),
        "footprint": ("footprint", "term"),
        "added": ("added", "--base", str(path)),
    }
    for name, arguments in commands.items():
        figures[f"command_{name}_seconds"] = timed(lambda arguments=arguments: command(path, *arguments))
    return figures


@click.command()
@click.option("--steps", type=click.IntRange(1_000), default=100_000, show_default=True)
@click.option(
    "--record", type=click.IntRange(0), default=0, help="One step in N records contributions; 0: none."
)
@click.option("--keep", type=click.Path(path_type=Path), help="Write the ledger here, and leave it.")
def main(steps: int, record: int, keep: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder, compiled_modules():
        path = Path(keep or folder, "run.ledger")
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_run(path, steps, record)
        figures: dict[str, Any] = {"steps": steps, "examples_per_step": BATCH, "record": record}
        figures["bytes"] = path.stat().st_size
        with path.open("rb") as file:
            figures["sha256_of_file_seconds"] = timed(lambda: file_digest(file, "sha256"), 1)
        figures["verify_chain_seconds"] = timed(lambda: verify_chain(path, ()), 1)
        figures["index_seconds"] = timed(lambda: build_index(path), 1)
        figures["index_bytes"] = sum(Path(file).stat().st_size for file in index_files(path))
        figures["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        figures.update(ask(path, steps))
    figures["load_average"] = os.getloadavg()[0]
    for name, value in figures.items():
        print(f"{name:40} {value}")
    write_results("trace", figures, ["duckdb", "pyarrow"])


def index_files(path: Path) -> list[Path]:
    index = open_index(path)
    return [index.folder / file.path for file in index.files]


if __name__ == "__main__":
    main()
