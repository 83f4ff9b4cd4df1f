"""Another policy decides a job as it would decide one run with the batches of all."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.commitments import Committer
from gradwarden.runtime.jobs.layout import rank_path
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.verification.opened_data import OpenedData
from gradwarden.runtime.verification.what_if import what_if, what_if_of_ranks
from tests.runtime.jobs.simulated import SECRET, Job, program

SIGNER = Signer.generate("run")
NAMES = ("a", "b", "c", "D", "E")
RULES = "retain few { when kind == surface  at most 2 exposures }"


def data() -> OpenedData:
    kinds = ["concept" if name.isupper() else "surface" for name in NAMES]
    return OpenedData(Committer(SECRET), [(NAMES, {"kind": kinds})])


def trained(folder: Path, steps: Sequence[Sequence[Sequence[str]]]) -> list[Path]:
    job = Job(folder, SIGNER, len(steps[0]))
    for parts in steps:
        job.step(parts)
    job.leave()
    return [rank_path(folder, rank) for rank in range(len(steps[0]))]


batches = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(batches, batches), min_size=1, max_size=5))
def test_exposures_are_those_of_all_ranks(steps: list[tuple[list[str], list[str]]]) -> None:
    other = program(2, RULES)
    with TemporaryDirectory() as folder:
        ranks = trained(Path(folder) / "job", steps)
        [whole] = trained(Path(folder) / "one", [[[*one, *two]] for one, two in steps])
        found = what_if_of_ranks(dict(enumerate(ranks)), data(), other)
        assert found.whole == what_if(whole, data(), other)
        assert sum(own.uses for own in found.ranks.values()) == found.whole.uses


def test_more_ranks_than_files_may_be_open_are_decided_again(tmp_path: Path) -> None:
    steps = [[[name] for name in NAMES * 8]] * 2
    ranks = dict(enumerate(trained(tmp_path / "job", steps)))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 8, before[1]))
    try:
        found = what_if_of_ranks(ranks, data(), program(2, RULES))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (len(found.ranks), found.whole.steps, found.whole.uses) == (40, 2, 80)
