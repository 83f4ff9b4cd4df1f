"""Decisions per second of one policy of a hundred rules; and three peers on the same policy, in one run.

The policy is written in four languages from one table (`policy_rules`). Every engine is checked before it is
timed: the columns against the reference evaluator on a sample of rows, the peers against the columns on every
row that they are given.

    python -m benchmarks.policy_eval_100 [--rows 1000000] [--peer-rows 5000] [--repeats 5]

Everything runs on one thread. Rates are of wall time (median of the repeats); the processor time beside them
is what one core spends when others do not interrupt it. cedarpy and the Rust CEL are given plain mappings,
the form in which their Python bindings take requests; Rego is compiled to a bundle once and queried for each
example, which its binding takes as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

import cedarpy
import cel
import pyarrow as pa
import regopy

from benchmarks.policy_eval import Result, check_sample, compiled, line, measure
from benchmarks.policy_eval_cases import examples
from benchmarks.policy_rules import cedar_text, cel_text, policy_text, rego_text
from benchmarks.results import write_results
from gradwarden.policy import Context
from gradwarden.policy.evaluation.batch import decide_columns
from gradwarden.policy.evaluation.columns import encode_columns
from gradwarden.policy.program import Program


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--peer-rows", type=int, default=5_000)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    program, table = compiled(policy_text()), examples(options.rows)
    own = columnar(program, table, options.repeats)
    others = peers(program, table.slice(0, options.peer_rows), options.repeats)
    for result in (*own, *others):
        print(line(result))
    times = own[1].rate_of_a_core / max(result.rate_of_a_core for result in others)
    print(f"columns, gathered per row, over the fastest peer: {times:,.0f} times")
    figures = {
        "rules": len(program.grants) + len(program.limits),
        "load_average": os.getloadavg()[0],
        "results": [asdict(result) for result in (*own, *others)],
        "times_the_fastest_peer": round(times),
    }
    packages = ("cedarpy", "regopy", "common-expression-language", "pyarrow")
    write_results("policy_eval_100", figures, packages)


def columnar(program: Program, table: pa.Table, repeats: int) -> list[Result]:
    rows, columns = table.num_rows, encode_columns(program, table)
    check_sample(program, columns, table)

    def decide() -> None:
        decide_columns(program, columns, Context()).kinds  # noqa: B018 - works out every row's kind

    def gather() -> None:
        fresh = decide_columns(program, columns, Context())
        fresh.micro  # noqa: B018 - a property that gathers on first use
        fresh.verdicts  # noqa: B018

    def count() -> None:
        decide_columns(program, columns, Context()).rule_counts()

    return [
        measure("encoded columns, the kind of every row", "examples", rows, repeats, decide),
        measure("the same, with weights and verdicts gathered per row", "examples", rows, repeats, gather),
        measure("how many examples each rule has a part in", "examples", rows, repeats, count),
    ]


def peers(program: Program, table: pa.Table, repeats: int) -> list[Result]:
    rows = table.num_rows
    learned = (decide_columns(program, table, Context()).micro[:, 2] > 0).tolist()
    requests = [row | {"score": round(row["score"] * 1_000_000)} for row in table.to_pylist()]
    engines = {
        "cedarpy, one batch, policies parsed before": cedar(requests),
        "regopy, bundle compiled before": rego(requests),
        "common-expression-language (Rust), compiled before": rust_cel(requests),
    }
    for name, decide in engines.items():
        assert decide() == learned, name
    return [measure(name, "examples", rows, repeats, decide) for name, decide in engines.items()]


def cedar(requests: list[dict[str, Any]]) -> Any:
    policies = cedarpy.PolicySet.from_str(cedar_text())
    entities = cedarpy.Entities.from_json_str("[]")
    batch = [
        {"principal": 'Run::"r"', "action": 'Action::"train"', "resource": 'Example::"e"', "context": request}
        for request in requests
    ]
    return lambda: [answer.allowed for answer in cedarpy.is_authorized_batch(batch, policies, entities)]


def rego(requests: list[dict[str, Any]]) -> Any:
    interpreter = regopy.Interpreter()
    interpreter.add_module("hundred.rego", rego_text())
    bundle = interpreter.build("x = data.hundred.allow")
    inputs = [json.dumps(request) for request in requests]

    def decide() -> list[bool]:
        answers = []
        for text in inputs:
            interpreter.set_input_term(text)
            output = interpreter.query_bundle(bundle)  # its nodes are freed with it
            answers.append(str(output.binding("x")) == "true")
        return answers

    return decide


def rust_cel(requests: list[dict[str, Any]]) -> Any:
    expression = cel.compile(cel_text())
    return lambda: [bool(expression.execute(request)) for request in requests]


if __name__ == "__main__":
    main()
