"""`gradwarden test`: run the unit tests of policies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from gradwarden.cli.app import verb
from gradwarden.cli.failures import InputError
from gradwarden.cli.inputs import find_files, load_program, parse_once, read_text
from gradwarden.cli.options import FILE
from gradwarden.cli.output import format_option, progress
from gradwarden.cli.test_report import Report, Suite, show, too_low
from gradwarden.policy.errors import Diagnostic, PolicyError

if TYPE_CHECKING:
    from gradwarden.policy.program import Program
    from gradwarden.policy.source import Span
    from gradwarden.policy.testing.test_file import TestFile

MAX_BYTES = 1 << 20

MISFITS = frozenset({"GW428", "GW430"})
"""Names and values that the policy does not have: told also about cases that could not be read in full."""


@verb("test")
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="PATH...")
@click.option("--coverage", is_flag=True, help="Report which conditions were seen true and which false.")
@click.option(
    "--min-coverage", type=click.FloatRange(0, 100), metavar="N", help="Fail below N percent of coverage."
)
@click.option("--mutate", is_flag=True, help="Damage the policy in small ways; fail if no test notices.")
@format_option("text", "json", "junit", "sarif", "github")
def command(
    paths: tuple[Path, ...], coverage: bool, min_coverage: float | None, mutate: bool, output_format: str
) -> int:
    """Run the unit tests of policies.

    PATH is a test file, a directory of `*_test.yaml` files, or a policy whose tests stand beside it
    (`x.policy`, `x_test.yaml`). A failure shows what was expected, what was decided, and why.

    A case is an example with what is expected of it, a row of a table, or an expectation `for all` examples
    of a domain, which fails with the simplest counterexample that was found.

    --coverage counts, for every condition of every rule and every test in it, whether some case made it true
    and some case false, and shows an example for what is missing. --mutate drops a rule, negates a condition,
    swaps `and` and `or`, moves a bound or a date by one step, drops a value from a list or changes a weight,
    one at a time, and reports each change that no test notices, with an example that would. Tests must pass
    first.

    \b
    Examples:
      gradwarden test policies
      gradwarden test clinical.policy --coverage --min-coverage 90
      gradwarden test clinical.policy --mutate
      gradwarden test policies --format junit > results.xml

    \b
    Exit status: 0 all passed; 1 a test failed, coverage is too low, a mutant survived, or there are no tests;
    2 unreadable input.
    """
    suites = _run(_test_files(paths))
    failed = any(suite.failures for suite in suites)
    measured = coverage or min_coverage is not None
    reports = [_measure(suite, coverage=measured, mutate=mutate and not failed) for suite in suites]
    show(reports, output_format, min_coverage)
    cases = sum(len(suite.results) for suite in suites)
    if not cases:
        click.echo("no tests were found", err=True)
    if mutate and failed:
        click.echo("the policy was not damaged: its tests must pass first", err=True)
    survived = any(report.campaign and report.campaign.survivors for report in reports)
    low = any(too_low(report, min_coverage) for report in reports)
    return int(not cases or failed or survived or low)


def _test_files(paths: tuple[Path, ...]) -> list[Path]:
    """Return the test files that are meant; a policy stands for the tests beside it."""
    from gradwarden.policy.testing.test_file import SUFFIX, sibling_tests

    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            try:
                files.update(dict.fromkeys(find_files([path], SUFFIX)))
            except InputError:
                continue  # no tests here: the count at the end decides
        elif path.suffix == ".policy":
            path.stat()  # a policy that is not there is an error, one without tests a failure
            beside = sibling_tests(path)
            if beside.exists():
                files[beside] = None
        else:
            files[path] = None
    return list(files)


def _run(paths: list[Path]) -> list[Suite]:
    """Read every test file, then run them policy by policy. Faults of all files are told at once."""
    from gradwarden.policy.testing.runner import fit_faults
    from gradwarden.policy.testing.test_file import read_tests

    faults: list[Diagnostic] = []
    files: dict[Path, list[TestFile]] = {}
    broken: set[Path] = set()
    for path in paths:
        try:
            tests, found = read_tests(read_text(path, MAX_BYTES), path)
        except PolicyError as error:
            faults += error.diagnostics
            continue
        files.setdefault(tests.policy, []).append(tests)
        if found:
            faults += found
            broken.add(path)
    suites = []
    for policy, group in files.items():
        try:
            program, rules = _load(policy, group[0].path)
        except PolicyError as error:
            faults += error.diagnostics
            continue
        for tests in group:
            unfit = fit_faults(program, tests)
            faults += [d for d in unfit if tests.path not in broken or d.code in MISFITS]
        if not faults:
            suites.append(_run_suite(policy, program, rules, group))
    if faults:
        raise PolicyError(faults)
    return suites


def _run_suite(policy: Path, program: Program, rules: Mapping[str, Span], group: list[TestFile]) -> Suite:
    from gradwarden.policy.testing.runner import run_cases

    results, seconds = [], []
    for case in (case for tests in group for case in tests.cases):
        start = perf_counter()
        results += run_cases(program, [case])
        seconds.append(perf_counter() - start)
    return Suite(policy, program, rules, tuple(group), tuple(results), tuple(seconds))


def _load(policy: Path, tests: Path) -> tuple[Program, Mapping[str, Span]]:
    """Return the program that tests are about, and where its rules are named."""
    if not policy.exists():
        message = f"`{tests}` is about `{policy}`, which does not exist"
        raise PolicyError([Diagnostic(InputError.code, message, help="name the policy under `policy:`")])
    if policy.suffix == ".json":
        return load_program(policy), {}
    from gradwarden.policy import compile_policy, load_policy

    loaded = load_policy(policy, parse_once())
    return compile_policy(loaded), loaded.rules


def _measure(suite: Suite, *, coverage: bool, mutate: bool) -> Report:
    measured = None
    if coverage:
        from gradwarden.policy.testing.coverage import measure

        measured = measure(suite.program, suite.results)
    if not mutate:
        return Report(suite, measured, None)
    from gradwarden.policy.testing.mutation import mutants, run_campaign

    cases = [case for tests in suite.files for case in tests.cases]
    total = sum(1 for _ in mutants(suite.program))
    with progress(f"mutating {suite.program.name}", total, "mutants") as advance:
        campaign = run_campaign(suite.program, cases, advance)
    return Report(suite, measured, campaign)
