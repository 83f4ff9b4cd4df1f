"""A campaign of mutants: each promise of the pages is broken on purpose, and its tests must notice.

    python -m tests.campaign.mutants [TABLE...] [--only TEXT] [--unmutated]

The tables lie in `mutations/`. A mutant survives where one of its tests stays green. `--only` takes those
with this text in their row, description, file or tests. `--unmutated` runs all tests on the tree as it is
first: one that fails anyway shows nothing. `--missing` lists tests that the pages name and no mutant does.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from tests.campaign.mutation_table import ROOT, Mutant, TableError, named_tests, read_table, table_names
from tests.campaign.mutation_trial import Verdict, Workshop, workshop

PAGES = ("privacy.md", "threats.md", "masks.md", "requirements.md")


def chosen(tables: Iterable[str], only: str) -> list[Mutant]:
    """Return the mutants of these tables that have a text."""
    mutants = [mutant for name in tables for mutant in read_table(name)]
    return [m for m in mutants if only in " ".join((m.title, m.file, *m.tests))]


def try_all(mutants: Sequence[Mutant], place: Workshop) -> Iterator[Verdict | TableError]:
    """Yield what became of each mutant, or why it cannot be made any more."""
    for mutant in mutants:
        try:
            yield place.attempt(mutant)
        except TableError as error:
            yield error


def missing_tests() -> list[str]:
    """Return the tests that the pages name as what shows a promise, and that no mutant names."""
    known = set(named_tests([mutant for name in table_names() for mutant in read_table(name)]))
    text = "".join((ROOT / "docs" / page).read_text("utf-8") for page in PAGES)
    shown = dict.fromkeys(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    return [f"{path}::{name}" for path, name in shown if (path, name) not in known]


def _unmutated(mutants: Sequence[Mutant], place: Workshop) -> int:
    """Run every test once on the tree as it is; return how many are not green."""
    bad = 0
    for path in dict.fromkeys(path for path, _ in named_tests(mutants)):
        tests = dict.fromkeys(t for m in mutants for t in m.tests if t.startswith(f"{path}::"))
        for test, fate in place.run(list(tests))[0].items():
            if fate != "green":
                bad += 1
                print(f"{fate} without a mutant: {test}", flush=True)
    return bad


def _tell(verdict: Verdict | TableError, seconds: float, verbose: bool) -> bool:
    """Print what became of a mutant; return whether it was noticed."""
    if isinstance(verdict, TableError):
        print(f"STALE     {verdict}", flush=True)
        return False
    unnoticed = verdict.unnoticed
    print(f"{'SURVIVES' if unnoticed else 'noticed'}  {seconds:6.1f} s  {verdict.mutant.title}", flush=True)
    for test, fate in unnoticed.items():
        print(f"          {fate}: {test}", flush=True)
    if verbose or "error" in unnoticed.values() or "missing" in unnoticed.values():
        print(verdict.log, flush=True)
    return not unnoticed


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 where every mutant was noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="*", default=[], metavar="TABLE")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--unmutated", action="store_true")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show what pytest wrote")
    options = parser.parse_args(arguments)
    if options.missing:
        print("\n".join(missing_tests()))
        return 0
    mutants = chosen(options.tables or table_names(), options.only)
    noticed = 0
    with workshop() as place:
        bad = _unmutated(mutants, place) if options.unmutated else 0
        began = time.monotonic()
        for verdict in try_all(mutants, place):
            noticed += _tell(verdict, time.monotonic() - began, options.verbose)
            began = time.monotonic()
    print(f"{noticed} of {len(mutants)} mutants were noticed by each of their tests")
    return 0 if noticed == len(mutants) and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
