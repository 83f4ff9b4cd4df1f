"""Proofs from ledgers: what they show without the ledger, and that nothing else is shown by them."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import EvidenceError, HeadMismatch, NoteError, ProofError
from gradwarden.runtime.evidence.proof_check import check_consistency, check_inclusion
from gradwarden.runtime.evidence.proof_file import (
    ConsistencyProof,
    InclusionProof,
    parse_proof,
)
from gradwarden.runtime.evidence.prover import (
    SignedHead,
    last_head,
    prove_consistency,
    prove_inclusion,
    read_head,
)
from gradwarden.runtime.evidence.trust import Trust
from gradwarden.runtime.ledger.keys import Signer
from gradwarden.runtime.ledger.merkle import leaf_hash, tree_root
from gradwarden.runtime.ledger.note import Checkpoint, parse_checkpoint, parse_note, sign_note
from tests.runtime.ledger.conftest import Cases

H1, H2 = (sha256(text).digest() for text in (b"hash1", b"hash2"))


def lines_of(ledger: Path) -> list[bytes]:
    return ledger.read_bytes().splitlines()


def head_over(ledger: Path, size: int, signer: Signer) -> SignedHead:
    """The head that the ledger's key could have signed when it had so many entries."""
    root = tree_root([leaf_hash(line) for line in lines_of(ledger)[:size]])
    origin = last_head(ledger).checkpoint.origin
    return read_head(sign_note(Checkpoint(origin, size, root).text(), [signer]).encode())


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, cases: Cases, signer: Signer) -> Path:
    return cases.build(tmp_path_factory.mktemp("proofs") / "run.ledger", signer, steps=9)


@given(st.data())
def test_every_entry_is_proved_under_every_head_that_covers_it(
    ledger: Path, signer: Signer, data: st.DataObject
) -> None:
    lines = lines_of(ledger)
    size = data.draw(st.integers(1, len(lines)))
    index = data.draw(st.integers(0, size - 1))
    proof = prove_inclusion(ledger, index, head_over(ledger, size, signer))
    report = check_inclusion(proof, Trust([signer.public]))
    assert report.ok, report.faults
    assert proof.line == lines[index]
    assert report.entry is not None
    assert report.entry[0] == index
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    for line in lines[:size]:
        oracle.append_entry(line)
    assert oracle.get_root() == report.head.checkpoint.root
    assert list(proof.path) == oracle.prove_inclusion(index + 1).path[1:]  # theirs begins with the leaf


@given(st.data())
def test_a_head_is_proved_to_continue_every_older_one(
    ledger: Path, signer: Signer, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(lines_of(ledger))))
    old = head_over(ledger, data.draw(st.integers(0, size)), signer)
    proof = prove_consistency(ledger, old.checkpoint, head_over(ledger, size, signer))
    assert check_consistency(proof, old.note, Trust([signer.public])).ok
    other = Checkpoint(old.checkpoint.origin, old.checkpoint.size, b"\x01" * 32)
    kept = sign_note(other.text(), [signer]).encode()
    report = check_consistency(proof, kept, Trust([signer.public]))
    assert [fault.code for fault in report.faults] == ["fork" if other.size == size else "inconsistent"]


@given(st.data())
def test_a_changed_proof_is_refused_or_does_not_hold(
    ledger: Path, signer: Signer, data: st.DataObject
) -> None:
    proof = prove_inclusion(ledger, 5, last_head(ledger)).encode()
    at = data.draw(st.integers(0, len(proof) - 1))
    changed = bytearray(proof)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = parse_proof(bytes(changed))
        assert isinstance(found, InclusionProof)
        report = check_inclusion(found, Trust([signer.public]))
    except (EvidenceError, NoteError):
        return
    assert not report.ok


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_arbitrary_bytes_are_no_proof(data: bytes) -> None:
    for start in (b"", b"old 3\n", b"c2sp.org/tlog-proof@v1\nindex 1\n"):
        try:
            assert parse_proof(start + data).encode() == start + data
        except EvidenceError:
            continue


@pytest.mark.parametrize(
    ("proof", "text"),
    [
        (
            InclusionProof(5, (H1, H2), b"test checkpoint\n", None),
            "c2sp.org/tlog-proof@v1\nindex 5\n{h1}\n{h2}\n\ntest checkpoint\n",
        ),
        (
            InclusionProof(10, (H1,), b"checkpoint data\n", b"extra information"),
            "c2sp.org/tlog-proof@v1\nextra {extra}\nindex 10\n{h1}\n\ncheckpoint data\n",
        ),
        (InclusionProof(0, (), b"checkpoint\n", None), "c2sp.org/tlog-proof@v1\nindex 0\n\ncheckpoint\n"),
        (ConsistencyProof(7, (H1, H2), b"checkpoint\n"), "old 7\n{h1}\n{h2}\n\ncheckpoint\n"),
        (ConsistencyProof(0, (), b"checkpoint\n"), "old 0\n\ncheckpoint\n"),
    ],
)
def test_the_files_are_those_of_the_specifications(
    proof: InclusionProof | ConsistencyProof, text: str
) -> None:
    """The first three are the cases of transparency-dev/formats, proof/tlog_proof_test.go (values only)."""
    h1, h2, extra = (b64encode(value).decode() for value in (H1, H2, b"extra information"))
    written = text.format(h1=h1, h2=h2, extra=extra).encode()
    assert proof.encode() == written
    assert parse_proof(written) == proof


@pytest.mark.parametrize(
    "text",
    [
        "wrong-header\nindex 0\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nextra !!notbase64!!\nindex 0\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\n\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex notanumber\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex -5\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 05\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 9223372036854775808\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n!!notbase64!!\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n" + b64encode(bytes(64)).decode() + "\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n" + (b64encode(bytes(32)).decode() + "\n") * 64 + "\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n",
        "c2sp.org/tlog-proof@v1\r\nindex 0\n\ncheckpoint\n",
        "old 01\n\ncheckpoint\n",
        "old 1\n" + b64encode(bytes(32)).decode()[:-2] + "B=\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n" + "a" * (3 << 20),
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(EvidenceError):
        parse_proof(text.encode())


def test_what_no_head_covers_has_no_proof(ledger: Path) -> None:
    head = last_head(ledger)
    with pytest.raises(ProofError, match="not among them"):
        prove_inclusion(ledger, head.checkpoint.size, head)


def test_an_unsigned_ledger_has_no_head(path: Path, cases: Cases, signer: Signer) -> None:
    cases.build(path, signer)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(ProofError, match="signed yet"):
        last_head(path)


def test_no_proof_is_given_of_another_ledger(ledger: Path, path: Path, cases: Cases, signer: Signer) -> None:
    other = cases.build(path, signer, steps=9)
    with pytest.raises(HeadMismatch, match="not those"):
        prove_inclusion(other, 3, last_head(ledger))
    with pytest.raises(HeadMismatch, match=r"`gradwarden/\w+`"):
        prove_consistency(other, last_head(ledger).checkpoint, last_head(other))
    short = cases.build(path.with_name("short.ledger"), signer, steps=1)
    with pytest.raises(HeadMismatch, match="the head covers"):
        prove_inclusion(short, 3, last_head(ledger))


def test_of_a_rewritten_ledger_no_old_head_is_proved(ledger: Path, path: Path, signer: Signer) -> None:
    old = head_over(ledger, 6, signer).checkpoint
    lines = lines_of(ledger)
    path.write_bytes(b"\n".join([lines[0], lines[1].replace(b'"epoch":0', b'"epoch":1'), *lines[2:]]) + b"\n")
    with pytest.raises(HeadMismatch, match="the first 6 entries"):
        prove_consistency(path, old, head_over(path, 9, signer))


def test_a_withheld_entry_is_supplied(ledger: Path, signer: Signer) -> None:
    proof = prove_inclusion(ledger, 4, last_head(ledger), withhold=True)
    line = lines_of(ledger)[4]
    assert b"extra" not in proof.encode()
    with pytest.raises(EvidenceError, match="withholds"):
        check_inclusion(proof, Trust([signer.public]))
    assert check_inclusion(proof, Trust([signer.public]), line=line).ok
    wrong = check_inclusion(proof, Trust([signer.public]), line=lines_of(ledger)[5])
    assert [fault.code for fault in wrong.faults] == ["wrong_path", "wrong_index"]
    whole = prove_inclusion(ledger, 4, last_head(ledger))
    codes = [fault.code for fault in check_inclusion(whole, Trust([signer.public]), line=b"{}").faults]
    assert codes == ["wrong_entry", "not_an_entry"]


def test_keys_and_origins_that_are_not_meant(ledger: Path, signer: Signer, other: Signer) -> None:
    proof = prove_inclusion(ledger, 4, last_head(ledger))
    assert [f.code for f in check_inclusion(proof, Trust([other.public])).faults] == ["unknown_key"]
    assert [f.code for f in check_inclusion(proof, Trust([signer.public], origin="x")).faults] == [
        "wrong_origin"
    ]


def test_a_rollback_is_told_from_a_fork(ledger: Path, signer: Signer) -> None:
    old, new = head_over(ledger, 9, signer), head_over(ledger, 6, signer)
    cut = ConsistencyProof(9, (), new.note)
    assert [f.code for f in check_consistency(cut, old.note, Trust([signer.public])).faults] == ["rollback"]
    with pytest.raises(EvidenceError, match="from 3"):
        check_consistency(ConsistencyProof(3, (), new.note), old.note, Trust([signer.public]))
    origin = parse_checkpoint(parse_note(old.note).text).origin
    other = sign_note(Checkpoint(origin, 9, bytes(32)).text(), [signer]).encode()
    two = ConsistencyProof(9, (), other)
    assert [f.code for f in check_consistency(two, old.note, Trust([signer.public])).faults] == ["fork"]


def test_evidence_needs_no_torch() -> None:
    modules = "proof_file, proof_check, prover"
    program = (
        f"import sys; from gradwarden.runtime.evidence import {modules}; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
