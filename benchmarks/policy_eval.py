"""Decisions per second: columns of examples, batches in a run, replayed steps; and two peers, in one run.

The policy has twelve rules over metadata (`policy_eval_cases`). Every engine is checked before it is timed:
the columns against the reference evaluator on a sample of rows, the peers against the columns on every row.

    python -m benchmarks.policy_eval [--rows 1000000] [--peer-rows 20000] [--repeats 5]

Everything runs on one thread. Rates are of wall time (median of the repeats); the processor time beside them
is what one core spends when others do not interrupt it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cedarpy
import cel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.policy_eval_cases import CEDAR, CEL, RUN_POLICY, STATIC_POLICY, examples
from benchmarks.results import write_results
from gradwarden.policy import Context, Program, compile_policy, parse_policy
from gradwarden.policy.evaluation.admission import Admission, classify
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.columns import encode_columns
from gradwarden.policy.evaluation.replay import Replayer


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement: what is counted per second of wall time and of processor time, and the medians."""

    name: str
    unit: str
    rows: int
    rate: float
    rate_of_a_core: float
    wall_seconds: float
    cpu_seconds: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--peer-rows", type=int, default=20_000)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    table = examples(options.rows)
    results = [
        *columnar(table, options.repeats),
        *parquet(table, options.repeats),
        *in_a_run(table),
        *peers(table.slice(0, options.peer_rows), options.repeats),
    ]
    report(results)


def compiled(text: str) -> Program:
    return compile_policy(parse_policy(text))


def measure(name: str, unit: str, rows: int, repeats: int, call: Callable[[], Any]) -> Result:
    return timed(name, unit, rows, [call] * repeats)


def timed(name: str, unit: str, rows: int, calls: Sequence[Callable[[], Any]]) -> Result:
    """Time each call once; each handles `rows` units."""
    wall, cpu = [], []
    for call in calls:
        start = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    elapsed, spent = statistics.median(wall), statistics.median(cpu)
    return Result(name, unit, rows, rows / elapsed, rows / spent, elapsed, spent)


def line(result: Result) -> str:
    """Return a measurement as a line of text."""
    rates = f"{result.rate:>14,.0f} {result.unit}/s   {result.rate_of_a_core:>14,.0f} of a core"
    times = f"wall {result.wall_seconds * 1e3:9.3f} ms   cpu {result.cpu_seconds * 1e3:9.3f} ms"
    return f"{result.name:56s} {rates}   {times}"


def columnar(table: pa.Table, repeats: int) -> list[Result]:
    program, rows = compiled(STATIC_POLICY), table.num_rows
    columns = encode_columns(program, table)
    check_sample(program, columns, table)

    def decide() -> None:
        decide_columns(program, columns, Context()).kinds  # noqa: B018 - works out every row's kind

    def gather() -> None:
        fresh = decide_columns(program, columns, Context())
        fresh.micro  # noqa: B018 - a property that gathers on first use
        fresh.verdicts  # noqa: B018

    def classify_rows() -> None:
        decide_columns(program, columns, Context()).class_ids  # noqa: B018

    classes = len(np.unique(decide_columns(program, columns, Context()).class_ids))
    return [
        measure("encoded columns, the kind of every row", "examples", rows, repeats, decide),
        measure("the same, with weights and verdicts gathered per row", "examples", rows, repeats, gather),
        measure(f"the class of every row, one of {classes}", "examples", rows, repeats, classify_rows),
        measure(
            "encoding of the Arrow table", "examples", rows, repeats, lambda: encode_columns(program, table)
        ),
    ]


def check_sample(program: Program, columns: Any, table: pa.Table) -> None:
    """Compare the columnar decisions of some rows with the reference evaluator."""
    decisions = decide_columns(program, columns, Context())
    for row in range(0, table.num_rows, max(1, table.num_rows // 2_000)):
        assert decisions.decision(row) == program.decide(columns.metadata(row), Context())


def parquet(table: pa.Table, repeats: int) -> list[Result]:
    program = compiled(STATIC_POLICY)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        pq.write_table(table, path)
        text = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]

        def read_and_decide() -> None:
            read = pq.read_table(path, read_dictionary=text, use_threads=False)
            decide_columns(program, read, Context()).kinds  # noqa: B018

        return [
            measure(
                "from a Parquet file: read, encode, decide",
                "examples",
                table.num_rows,
                repeats,
                read_and_decide,
            )
        ]


def in_a_run(table: pa.Table) -> list[Result]:
    """Time admission of batches of 1,024 and the replay of 50,000 steps of 16."""
    program = compiled(RUN_POLICY)
    admission = Admission(program, classify(program, table.slice(0, 200_000)))
    draw = np.random.default_rng(1)
    batches = [draw.integers(0, len(admission.classification), 1024) for _ in range(200)]
    counts = [draw.integers(0, 5, 1024) for _ in range(200)]
    check_batch(program, admission, table, batches[0], counts[0])
    for step in (0, 1000):
        for batch, exposures in zip(batches, counts, strict=True):
            admission.admit(batch, Context(step=step, exposures=exposures))
    calls = [
        partial(admission.admit, batch, Context(step=step, exposures=exposures))
        for step, (batch, exposures) in enumerate(zip(batches * 5, counts * 5, strict=True))
    ]
    admitted = timed("admission of a batch of 1,024, exposures included", "batches", 1, calls)
    return [admitted, replayed(program, admission, draw)]


def check_batch(program: Program, admission: Admission, table: pa.Table, batch: Any, exposures: Any) -> None:
    columns = encode_columns(program, table)
    admitted = admission.admit(batch, Context(step=700, exposures=exposures))
    for i, row in enumerate(batch.tolist()):
        reference = program.decide(columns.metadata(row), Context(step=700, exposures=int(exposures[i])))
        assert admitted.decision(i) == reference


def replayed(program: Program, admission: Admission, draw: np.random.Generator) -> Result:
    replayer = Replayer(program)
    classes = [replayer.class_of(body) for body in admission.class_bodies()]
    records = []
    for step in range(50_000):
        exposures = draw.integers(0, 5, 16)
        rows = draw.integers(0, len(admission.classification), 16)
        numbers = admission.classification.class_ids[rows]
        records.append(([classes[n] for n in numbers.tolist()], exposures.tolist(), step))

    def replay() -> None:
        for kinds, counts, step in records:
            replayer.replay_step(
                kinds,
                slots={},
                exposures=counts,
                signals={},
                step=step,
                epoch=0,
                today=None,
                spent=frozenset(),
            )

    return measure("replay of 50,000 recorded steps of 16 examples", "steps", len(records), 3, replay)


def peers(table: pa.Table, repeats: int) -> list[Result]:
    """Time the peers on plain mappings, the form in which their Python bindings take requests."""
    program, rows = compiled(STATIC_POLICY), table.num_rows
    deep = decide_columns(program, table, Context()).micro[:, 2] > 0
    requests = [row | {"score": round(row["score"] * 1_000_000)} for row in table.to_pylist()]

    policies = cedarpy.PolicySet.from_str(CEDAR)
    entities = cedarpy.Entities.from_json_str("[]")
    batch = [
        {"principal": 'Run::"r"', "action": 'Action::"train"', "resource": 'Example::"e"', "context": request}
        for request in requests
    ]

    def cedar() -> list[bool]:
        return [answer.allowed for answer in cedarpy.is_authorized_batch(batch, policies, entities)]

    expression = cel.compile(CEL)

    def rust_cel() -> list[bool]:
        return [bool(expression.execute(request)) for request in requests]

    assert cedar() == deep.tolist()
    assert rust_cel() == deep.tolist()
    return [
        measure("cedarpy, one batch, policies parsed before", "examples", rows, repeats, cedar),
        measure("common-expression-language (Rust), compiled before", "examples", rows, repeats, rust_cel),
    ]


def report(results: list[Result]) -> None:
    for result in results:
        print(line(result))
    times = results[1].rate / max(result.rate for result in results[-2:])
    print(f"columns, gathered per row, over the faster peer: {times:,.0f} times")
    figures = {"results": [asdict(result) for result in results], "times_the_faster_peer": round(times)}
    write_results("policy_eval", figures, ("cedarpy", "common-expression-language", "pyarrow"))


if __name__ == "__main__":
    main()
