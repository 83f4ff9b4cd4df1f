"""Makes the tables of an index: from a ledger in one pass, or from those of a job, one rank after another."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from hashlib import file_digest
from itertools import islice
from pathlib import Path

from gradwarden.runtime.errors import TraceError
from gradwarden.runtime.jobs.layout import log_path, rank_path, ranks_found
from gradwarden.runtime.jobs.progress import Progress, over_ranks
from gradwarden.runtime.ledger.chain import ChainReport, Listener, first_error, verify_chain
from gradwarden.runtime.ledger.entries import JOB_OPENING
from gradwarden.runtime.ledger.keys import PublicKey
from gradwarden.runtime.ledger.lines import Part
from gradwarden.runtime.ledger.reader import check_whole, read_entries
from gradwarden.runtime.provenance.collect import Collector, Numbering
from gradwarden.runtime.provenance.indexed import Index, IndexFile, RankEnd
from gradwarden.runtime.provenance.tables import Made, Tables


def make_index(ledger: Path, folder: Path, keys: Sequence[PublicKey], progress: Progress | None) -> Index:
    """Write the tables of a ledger, or of those of a job, into a folder. Raises as `build_index`."""
    if ledger.is_dir():
        return _make_of_job(ledger, folder, keys, progress)
    tables: Tables | None = None
    collector: Collector | None = None

    def listen() -> Listener:
        nonlocal tables, collector
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tables = Tables(folder)
        collector = Collector(tables)
        return collector.accept

    check_whole(ledger)
    chain = verify_chain(ledger, keys, listen, progress)
    _check_chain(ledger, chain, signed=bool(keys))
    assert collector is not None, "verify_chain has asked for a listener"
    assert tables is not None, "as above"
    collector.finish()
    return Index(
        ledger=ledger,
        folder=folder,
        origin=collector.opened["origin"],
        run=collector.opened["run"],
        size=chain.size,
        root=chain.root,
        end=chain.end,
        tip=chain.tip,
        bands=tuple(collector.opened["bands"]),
        steps=collector.steps,
        uses=collector.uses,
        examples=len(collector.examples.commitments()),
        files=tuple(_digested(folder, tables.close())),
    )


def _check_chain(ledger: Path, chain: ChainReport, *, signed: bool) -> None:
    """Raise where a ledger is no ground to stand on. Without keys UNTRUSTED is what all soundness gives."""
    if chain.status == "TAMPERED":
        bad = first_error(chain.findings)
        assert bad is not None
        raise bad.damage(f"no index is made of `{ledger}`", help="`gradwarden verify` says more")
    if chain.status == "UNTRUSTED" and signed:
        raise TraceError(f"no index is made of `{ledger}`: no given key has signed it")
    if not chain.size:
        raise TraceError(f"`{ledger}` has no entries")


def _digested(folder: Path, files: Iterator[Made]) -> Iterator[IndexFile]:
    for file in files:
        with (folder / file.path).open("rb") as content:
            yield IndexFile(file.path, file.rows, file_digest(content, "sha256").hexdigest())


def _make_of_job(job: Path, folder: Path, keys: Sequence[PublicKey], progress: Progress | None) -> Index:
    folder.mkdir(exist_ok=True)
    log = verify_chain(log_path(job), keys)
    _check_chain(log_path(job), log, signed=bool(keys))
    first = next(read_entries(log_path(job)), None)
    if first is None or first.kind != JOB_OPENING:
        raise TraceError(f"`{job}` is not the folder of a job")
    ranks = ranks_of(job, first.body["ranks"])
    tables, numbering = Tables(folder, next(iter(ranks), 0)), Numbering(shared=True)
    collectors: list[Collector] = []

    def begin(rank: int) -> Listener:
        if collectors:
            collectors[-1].end()
            tables.next_rank(rank)
        collectors.append(Collector(tables, numbering))
        return collectors[-1].accept

    chains = walk_ranks(job, ranks, keys, begin, progress)
    collectors[-1].finish()
    return Index(
        ledger=job,
        folder=folder,
        origin=first.body["origin"],
        run="",
        size=log.size,
        root=log.root,
        end=log.end,
        tip=log.tip,
        bands=tuple(collectors[0].opened["bands"]),
        steps=max(collector.steps for collector in collectors),
        uses=sum(collector.uses for collector in collectors),
        examples=len(numbering.examples),
        files=tuple(_digested(folder, tables.close())),
        ranks=tuple(RankEnd(rank, c.size, c.root, c.end, c.tip) for rank, c in chains.items()),
    )


def ranks_of(job: Path, ranks: int) -> list[int]:
    """Return the ranks of a job that have a ledger in its folder. Raises TraceError where another has one."""
    found = list(ranks_found(job))
    if found and found[-1] >= ranks:
        raise TraceError(
            f"`{rank_path(job, found[-1])}` is of a rank that the job does not have: it has {ranks}",
            help="`gradwarden verify` says more; move the ledger to the folder of its own job",
        )
    return found


def walk_ranks(
    job: Path,
    ranks: Sequence[int],
    keys: Sequence[PublicKey],
    begin: Callable[[int], Listener],
    progress: Progress | None = None,
) -> dict[int, ChainReport]:
    """Tell the entries of the ledgers of a job's ranks, one after the other; return what was found of each.

    ranks: those that have one. begin: gives who is told of a rank's entries, once the ranks before it are
    done. progress: through all of them. Raises as `build_index`, also where no rank has a ledger.
    """
    told = over_ranks(job, progress)
    found = {rank: walk(rank_path(job, rank), keys, begin(rank), told(rank)) for rank in ranks}
    if not found:
        raise TraceError(f"no rank has a ledger in `{job}`")
    return found


def walk(
    ledger: Path, keys: Sequence[PublicKey], accept: Listener, progress: Progress | None = None
) -> ChainReport:
    """Tell a listener the entries of a ledger whose chain holds, each once; return what was found of it.

    The chain is gone through first: what is told of a ledger cannot be taken back, where several are told to
    one listener. Raises as `build_index`.
    """
    times = 0

    def listen() -> Listener:
        nonlocal times
        times += 1
        return _nobody

    chain = verify_chain(ledger, keys, listen, progress)
    _check_chain(ledger, chain, signed=bool(keys))
    if times == 1:
        verify_chain(ledger, (), lambda: accept)
    else:  # many lines cannot be read at once, as where the last one is torn
        for entry in islice(read_entries(ledger, allow_partial_tail=True), chain.size):
            accept(entry)
    return chain


def _nobody(part: Part) -> None:
    """Listen to nothing."""
