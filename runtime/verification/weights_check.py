"""Finds which of a ledger's checkpoints some weights are, and where they differ from the one that is closest.

Weights are a file, or a folder of safetensors files (shards). A checkpoint is known by the SHA-256 of its
file, and where the ledger lists its tensors by these, so that the same tensors in another file, or in
several, are found to be the same. Where weights are no checkpoint, the tensors that differ are named; where
the hashes of the checkpoint's chunks lie beside them (`weights.leaves`), so are the first bytes that differ,
to the MiB.

Codes of what is found: `weights_mismatch`; `wrong_tensors` where the ledger lists other tensors than those of
the very file that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.digests import file_digest
from gradwarden.runtime.errors import WeightsError
from gradwarden.runtime.evidence.prover import entries_of
from gradwarden.runtime.ledger.chain import Finding
from gradwarden.runtime.records.branches import STATE_SUFFIX
from gradwarden.runtime.weights.leaves import chunk_bytes, first_difference, leaves_beside, recorded_leaves
from gradwarden.runtime.weights.record import KIND, PartsReader, RecordedTensors
from gradwarden.runtime.weights.stored import StoredTensor, StoredWeights
from gradwarden.runtime.weights.tree import TensorDigest, WeightTree, hash_weights

MOST_NAMED = 5
"""Tensors that a finding names."""


@frozen
class Match:
    """A checkpoint that weights are. same_file: byte for byte, and not tensor by tensor alone."""

    step: int
    entry: int
    file: str
    same_file: bool
    last: bool = False


@frozen
class _Saved:
    """A checkpoint of the ledger. recorded: its tensors, None where they are not listed."""

    index: int
    body: Mapping[str, Any]
    recorded: RecordedTensors | None


class HashedWeights:
    """Weights that somebody has given, hashed: once, for however many ledgers they are held against.

    digest: of the file; None for a folder. compared: whether tensors were hashed. tree: None where they were
    not, or cannot be (`problem` says why). Raises OSError where they cannot be read.
    """

    def __init__(self, path: Path, *, tensors: bool, hashed: Callable[[int], None] = lambda _: None) -> None:
        """tensors: whether some checkpoint lists its tensors, so that those of the weights are hashed.

        hashed: told of bytes of tensors that are, from any thread.
        """
        self.path = path
        self.compared = tensors
        self.tree: WeightTree | None = None
        self.tensors: frozenset[TensorDigest] = frozenset()
        self.stored: Mapping[str, StoredTensor] = {}
        self.problem = "only its files have digests in the ledger, and they are in a folder"
        with ThreadPoolExecutor(1) as beside:
            # The digest of a file is no function of its tensors' digests, so its bytes are hashed twice: at
            # once, and from the same pages of memory.
            digest = None if path.is_dir() else beside.submit(file_digest, path)
            if tensors:
                self._hash(hashed)
            self.digest: str | None = None if digest is None else digest.result()

    def _hash(self, hashed: Callable[[int], None]) -> None:
        try:
            with StoredWeights.open(self.path) as stored:
                self.stored = stored.tensors
                self.tree = hash_weights(stored, advance=hashed)
                self.tensors = frozenset(self.tree.tensors)
        except WeightsError as error:
            self.problem = error.message


class _HeldWeights:
    """Weights, held against the checkpoints of one ledger. match: the last that they are, None where none."""

    def __init__(self, weights: HashedWeights) -> None:
        self.path = weights.path
        self.match: Match | None = None
        self._weights = weights
        self._closest: tuple[int, _Saved] | None = None

    def hold(self, saved: _Saved) -> Iterator[Finding]:
        """Compare with a checkpoint; yield what the ledger says wrongly of it."""
        same_file = self._weights.digest == saved.body["digest"]
        recorded = saved.recorded if self._weights.compared else None
        same_tensors = recorded is not None and self._weights.tensors == frozenset(recorded.tensors)
        if same_file and recorded is not None and not (same_tensors and self._tied_as(recorded)):
            what = f"the ledger lists other tensors for `{saved.body['file']}` than that file holds"
            yield Finding("wrong_tensors", saved.index, what)
        elif same_file or (same_tensors and self._weights.tree is not None):
            self.match = Match(saved.body["step"], saved.index, saved.body["file"], same_file)
        elif recorded is not None and self._weights.tree is not None:
            different = len(self._weights.tensors.symmetric_difference(recorded.tensors))
            if self._closest is None or different <= self._closest[0]:
                self._closest = different, saved

    def _tied_as(self, recorded: RecordedTensors) -> bool:
        return self._weights.tree is not None and dict(self._weights.tree.tied) == dict(recorded.tied)

    def difference(self, *, entries: bool) -> str:
        """Say how weights that are no checkpoint differ from the closest one; entries: and in which entry."""
        tree = self._weights.tree
        if tree is None:
            return (
                f"; {self._weights.problem}" if self._weights.stored or self._weights.digest is None else ""
            )
        if self._closest is None:
            return ""
        _, saved = self._closest
        assert saved.recorded is not None
        wanted = {tensor.name: tensor for tensor in saved.recorded.tensors}
        found = {tensor.name: tensor for tensor in tree.tensors}
        names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        told = [self._of_tensor(name, wanted.get(name), found.get(name)) for name in names[:MOST_NAMED]]
        more = f"; and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        return (
            f"; {len(names):,} of {len(wanted):,} tensors differ from the checkpoint at step "
            f"{saved.body['step']}{_entry(saved.index, entries)}: {'; '.join(told)}{more}"
        )

    def _of_tensor(self, name: str, wanted: TensorDigest | None, found: TensorDigest | None) -> str:
        """Say how a tensor differs from the recorded one."""
        if wanted is None or found is None:
            return f"`{name}` is {'not in the checkpoint' if wanted is None else 'missing'}"
        if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
            return (
                f"`{name}` is {found.dtype} {list(found.shape)} and not {wanted.dtype} {list(wanted.shape)}"
            )
        return f"`{name}`{self._first_bytes(name, wanted.root)}"

    def _first_bytes(self, name: str, root: bytes) -> str:
        assert self._weights.tree is not None, "tensors are named only where there is a tree"
        leaves = recorded_leaves(leaves_beside(self.path), name, root)
        chunk = None if leaves is None else first_difference(leaves, self._weights.tree.leaves[name])
        if chunk is None:
            return ""
        stored = self._weights.stored[name]
        begin, end = chunk_bytes(chunk, stored.size)
        return f" within bytes {begin} to {end - 1} (from byte {stored.begin + begin} of the file)"


def recorded_tensors(ledger: Path, index: int) -> RecordedTensors | None:
    """Return the tensors of the checkpoint that the entry at an index names; None where none are listed."""
    with closing(_checkpoints(ledger, index + 1)) as checkpoints:
        found = {saved.index: saved.recorded for saved in checkpoints if saved.index == index}
    return found.get(index)


def different_tensors(recorded: RecordedTensors, tree: WeightTree) -> str:
    """Say how many tensors are others than the recorded ones, and name some."""
    names = sorted({tensor.name for tensor in set(recorded.tensors).symmetric_difference(tree.tensors)})
    named = ", ".join(f"`{name}`" for name in names[:MOST_NAMED])
    return f"{len(names):,} of {len(recorded.tensors):,} tensors differ, among them {named or 'none'}"


@frozen
class WeightsReport:
    """What was found of weights. matches: by the order in which they were given, None for no checkpoint."""

    findings: tuple[Finding, ...]
    matches: tuple[Match | None, ...]


def check_weights(
    ledger: Path, given: Sequence[HashedWeights], size: int, *, earlier: bool = False, entries: bool = True
) -> WeightsReport:
    """Find the checkpoints of a sound ledger that weights are.

    given: one of them must be the last checkpoint, unless `earlier`. size: entries of the ledger. entries:
    whether messages say which entries checkpoints are, as is of no use where several ledgers name them.
    """
    weights = [_HeldWeights(one) for one in given]
    findings: list[Finding] = []
    last: _Saved | None = None
    with closing(_checkpoints(ledger, size)) as saved:
        for last in saved:
            findings += [finding for one in weights for finding in one.hold(last)]
    matches = tuple(_told(one.match, last) for one in weights)
    at_fault = {finding.index for finding in findings}
    for one, match in zip(weights, matches, strict=True):
        if match is None and not at_fault:
            message = _mismatch(one, last, entries=entries)
            findings.append(Finding("weights_mismatch", max(size - 1, 0), message))
    if (
        not findings
        and last is not None
        and not earlier
        and not any(m is not None and m.last for m in matches)
    ):
        findings += [
            Finding(
                "weights_mismatch",
                size - 1,
                f"`{_name(one.path)}` is the checkpoint at step {match.step}{_entry(match.entry, entries)}, "
                f"not the last that the ledger names, `{last.body['file']}` at step {last.body['step']}",
            )
            for one, match in zip(weights, matches, strict=True)
            if match is not None
        ]
    return WeightsReport(tuple(findings), matches)


def _entry(index: int, told: bool) -> str:
    return f" (entry {index})" if told else ""


def _told(match: Match | None, last: _Saved | None) -> Match | None:
    if match is None or last is None:
        return None
    return Match(match.step, match.entry, match.file, match.same_file, match.entry == last.index)


def _name(path: Path) -> str:
    return path.name or str(path)


def _mismatch(given: _HeldWeights, last: _Saved | None, *, entries: bool) -> str:
    if last is None:
        return "the ledger names no checkpoint"
    named = f"`{_name(given.path)}` is not the last checkpoint that the ledger names, `{last.body['file']}`"
    return f"{named}, nor an earlier one{given.difference(entries=entries)}"


def _checkpoints(ledger: Path, size: int) -> Generator[_Saved, None, None]:
    """Yield the checkpoints of weights among the first entries of a ledger, with the lists that hold.

    That others do not is told where the run is replayed, as far as it is.
    """
    reader = PartsReader()
    with closing(entries_of(ledger, {KIND, "checkpoint", "resumed"})) as entries:
        for index, kind, body in entries:
            if index >= size:
                return
            if kind == "resumed":
                reader.clear()
            elif kind == KIND:
                with suppress(ValueError):
                    reader.add(body)
            elif not body["file"].endswith(STATE_SUFFIX):
                recorded = None
                with suppress(ValueError):
                    recorded = reader.take(body)
                yield _Saved(index, body, recorded)
