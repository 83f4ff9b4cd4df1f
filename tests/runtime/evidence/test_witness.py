"""A witness never cosigns two heads of one log that contradict each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.errors import KeyFileError, WitnessError
from gradwarden.runtime.evidence.proof_file import ConsistencyProof
from gradwarden.runtime.evidence.trust import Quorum, Trust, check_witnesses
from gradwarden.runtime.evidence.witness import Cosigned, Refusal, open_witness
from gradwarden.runtime.evidence.witnessed import assurance
from gradwarden.runtime.ledger.cosignature import Cosignature, cosignatures, witness_key
from gradwarden.runtime.ledger.keys import Signer, WitnessKey
from gradwarden.runtime.ledger.merkle import (
    consistency_proof,
    leaf_hash,
    tree_root,
    verify_consistency,
)
from gradwarden.runtime.ledger.note import Checkpoint, parse_checkpoint, parse_note, sign_note

ORIGIN = "example.com/log"
TRUNK = [leaf_hash(b"trunk %d" % number) for number in range(24)]

Consider = Callable[..., Cosigned | Refusal]


def history(branch: int, size: int) -> list[bytes]:
    """The first leaves of the trunk, or of a branch that leaves it after 8 of them."""
    leaves = TRUNK if branch == 0 else [*TRUNK[:8], *(leaf_hash(b"branch %d" % n) for n in range(16))]
    return leaves[:size]


def request(signer: Signer, old: int, size: int, branch: int = 0, origin: str = ORIGIN) -> ConsistencyProof:
    leaves = history(branch, size)
    note = sign_note(Checkpoint(origin, size, tree_root(leaves)).text(), [signer])
    path = consistency_proof(leaves, old) if 0 < old <= size else []
    return ConsistencyProof(old, tuple(path), note.encode())


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "seen.json"


@pytest.fixture
def consider(record: Path, signer: Signer, other: Signer) -> Consider:
    """Ask the witness `other` to cosign a request, in a fresh process as it were."""

    def ask(proof: ConsistencyProof, **options: bool) -> Cosigned | Refusal:
        with open_witness(record, other, [signer.public]) as witness:
            return witness.consider(proof, 1_700_000_000, **options)

    return ask


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.none() | st.integers(0, 24), st.integers(0, 24), st.integers(0, 1)), max_size=12)
)
def test_heads_that_were_cosigned_are_one_history(
    tmp_path_factory: pytest.TempPathFactory,
    signer: Signer,
    other: Signer,
    attempts: list[tuple[int | None, int, int]],
) -> None:
    """Whatever is asked, in whatever order: of any two heads cosigned, the later continues the earlier.

    An attempt is a size that the proof is from (None: the right one), a size, and a branch of the history.
    """
    record = tmp_path_factory.mktemp("witness") / "seen.json"
    cosigned: list[tuple[int, int]] = []
    for old, size, branch in attempts:
        with open_witness(record, other, [signer.public]) as witness:
            last = cosigned[-1][0] if cosigned else 0
            outcome = witness.consider(request(signer, last if old is None else old, size, branch), 5)
        if isinstance(outcome, Cosigned):
            assert [one.witness for one in cosignatures(outcome.note, [witness_key(other)])]
            cosigned.append((size, branch))
    for (size, branch), (later, into) in pairwise(cosigned):
        older, newer = history(branch, size), history(into, later)
        assert size <= later
        assert newer[:size] == older
        if size:
            proof = consistency_proof(newer, size)
            assert verify_consistency(size, later, tree_root(older), tree_root(newer), proof)


def test_a_log_that_grows_is_cosigned_again_and_again(consider: Consider, signer: Signer) -> None:
    sizes = [0, 3, 3, 8, 24]
    for old, size in zip([0, *sizes], sizes, strict=False):
        outcome = consider(request(signer, old, size))
        assert isinstance(outcome, Cosigned), outcome
        assert parse_checkpoint(parse_note(outcome.note).text).size == size


@pytest.mark.parametrize(
    ("old", "size", "branch", "at_hand", "code"),
    [
        (12, 9, 0, False, "rollback"),
        (12, 12, 1, False, "fork"),
        (12, 20, 1, False, "inconsistent"),
        (12, 20, 1, True, "fork"),
        (11, 20, 0, False, "wrong_size"),
        (0, 20, 0, False, "wrong_size"),
    ],
)
def test_what_does_not_continue_is_refused_and_changes_nothing(
    consider: Consider,
    record: Path,
    signer: Signer,
    old: int,
    size: int,
    branch: int,
    at_hand: bool,
    code: str,
) -> None:
    first = consider(request(signer, 0, 12))
    assert isinstance(first, Cosigned)
    before = record.read_bytes()
    outcome = consider(request(signer, old, size, branch), at_hand=at_hand)
    assert isinstance(outcome, Refusal)
    assert outcome.code == code
    assert outcome.seen == first.note
    assert record.read_bytes() == before
    assert isinstance(consider(request(signer, 12, 20)), Cosigned)


def test_a_wrong_proof_is_refused(consider: Consider, signer: Signer) -> None:
    consider(request(signer, 0, 12))
    good = request(signer, 12, 20)
    for path in ((), good.path[:-1], (*good.path, b"\x01" * 32)):
        outcome = consider(ConsistencyProof(12, path, good.note))
        assert isinstance(outcome, Refusal)
        assert outcome.code == "inconsistent"


def test_logs_are_told_apart_by_their_origin(consider: Consider, signer: Signer) -> None:
    consider(request(signer, 0, 12))
    assert isinstance(consider(request(signer, 0, 5, 1, "example.com/other")), Cosigned)
    outcome = consider(request(signer, 0, 5))
    assert isinstance(outcome, Refusal)
    assert outcome.code == "rollback"


def test_strangers_and_the_log_itself_get_nothing(record: Path, consider: Consider, signer: Signer) -> None:
    outcome = consider(request(Signer.generate("stranger"), 0, 12))
    assert isinstance(outcome, Refusal)
    assert outcome.code == "unknown_key"
    assert not record.exists()
    with (
        pytest.raises(WitnessError, match="signs the log itself"),
        open_witness(record, signer, [signer.public]),
    ):
        pass


def test_a_record_that_cannot_be_trusted_is_refused(
    record: Path, consider: Consider, signer: Signer, other: Signer
) -> None:
    consider(request(signer, 0, 12))
    good = record.read_bytes()
    document = json.loads(good)
    note = document["logs"][ORIGIN]

    def written(logs: object) -> bytes:
        spoilt = {**document, "logs": logs}
        return json.dumps(spoilt, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    assert written({ORIGIN: note}) == good
    spoilt = [
        b"",
        b"{}\n",
        b"[]\n",
        good[:-1],
        good.replace(b"\\n12\\n", b"\\n11\\n"),
        good.replace(ORIGIN.encode() + b'":', b'example.com/else":'),
        written({ORIGIN: "".join(note.splitlines(keepends=True)[:-1])}),
        written({ORIGIN: 3}),
        written([ORIGIN]),
        b'{"format":"\\ud800"}\n',
        b"[" * 100_000,
    ]
    for data in spoilt:
        record.write_bytes(data)
        with pytest.raises(WitnessError, match="is damaged"):
            consider(request(signer, 12, 20))
    record.write_bytes(good)
    with (
        pytest.raises(WitnessError, match="another witness"),
        open_witness(record, Signer.generate("else"), [signer.public]),
    ):
        pass


def test_a_record_in_use_is_waited_for_by_nobody(record: Path, signer: Signer, other: Signer) -> None:
    with (
        open_witness(record, other, [signer.public]),
        pytest.raises(WitnessError, match="in use"),
        open_witness(record, other, [signer.public]),
    ):
        pass


def test_nothing_is_cosigned_that_cannot_be_remembered(
    tmp_path: Path, signer: Signer, other: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("gradwarden.runtime.evidence.witness.replace_durably", fail)
    with (
        pytest.raises(WitnessError, match="no space"),
        open_witness(tmp_path / "seen.json", other, [signer.public]) as witness,
    ):
        witness.consider(request(signer, 0, 12), 5)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sets(st.integers(0, 4))), max_size=6),
    st.integers(1, 6),
)
def test_a_quorum_vouches_as_far_as_that_many_have_seen(
    heads: list[tuple[int, set[int]]], quorum: int
) -> None:
    keys = [WitnessKey(f"w{number}", bytes([9, number]) + bytes(29) + b"\x01") for number in range(5)]
    found = assurance(
        [(size, [Cosignature(keys[number], 7) for number in by]) for size, by in heads],
        Quorum(quorum, tuple(keys)),
    )
    largest = [max((size for size, by in heads if number in by), default=0) for number in range(5)]
    enough = [size for size in range(51) if sum(seen >= size for seen in largest) >= quorum]
    assert found.size == max(enough, default=0)


def test_one_key_is_one_witness(signer: Signer, other: Signer) -> None:
    check_witnesses([witness_key(other)], [signer.public])
    with pytest.raises(KeyFileError, match="signs the log itself"):
        check_witnesses([witness_key(signer)], [signer.public])
    with pytest.raises(KeyFileError, match="another witness, `other`"):
        check_witnesses([witness_key(other), WitnessKey("else", other.public.raw)], [signer.public])
    trust = Trust([signer.public], Quorum(1, (witness_key(other),)))
    assert trust.after([signer.public.vkey]).keys == [signer.public]
    with pytest.raises(KeyFileError, match="`other` has the key of `other`, which signs the log itself"):
        trust.after([signer.public.vkey, other.public.vkey])
