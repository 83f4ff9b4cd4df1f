from __future__ import annotations

import json
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.errors import ProofError
from gradwarden.runtime.ledger.merkle import (
    EMPTY_ROOT,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [leaf_hash(bytes([number])) for number in range(130)]

sizes = st.integers(1, len(LEAVES))


def test_published_roots(vectors: Path) -> None:
    known = json.loads((vectors / "rfc6962" / "roots.json").read_text())
    leaves = [leaf_hash(bytes.fromhex(text)) for text in known["leaf_inputs_hex"]]
    for size, root in enumerate(known["root_by_size_hex"]):
        assert tree_root(leaves[:size]).hex() == root
    assert EMPTY_ROOT.hex() == known["root_by_size_hex"][0]


def test_published_subtree_hashes(vectors: Path) -> None:
    known = json.loads((vectors / "rfc6962" / "roots.json").read_text())["subtree_accumulated"]
    total = sha256()
    for end in range(known["max"] + 1):
        for start in range(end + 1):
            width = end - start
            if start == 0 or width == 0 or start % (1 << (width - 1).bit_length()) == 0:
                total.update(f"[{start}, {end}) {tree_root(LEAVES[start:end]).hex()}\n".encode())
    assert total.hexdigest() == known["hash"]


def _decoded(text: str | None) -> bytes:
    return b64decode(text) if text else b""


@pytest.mark.parametrize("kind", ["inclusion", "consistency"])
def test_published_proofs(vectors: Path, kind: str) -> None:
    files = sorted((vectors / "rfc6962-merkle" / kind).rglob("*.json"))
    assert len(files) > 90
    for file in files:
        case = json.loads(file.read_text())
        proof = [_decoded(node) for node in case["proof"] or []]
        if kind == "inclusion":
            place = case["leafIdx"], case["treeSize"]
            holds = verify_inclusion(*place, _decoded(case["leafHash"]), proof, _decoded(case["root"]))
        else:
            roots = _decoded(case["root1"]), _decoded(case["root2"])
            holds = verify_consistency(case["size1"], case["size2"], *roots, proof)
        assert holds != case["wantErr"], file.name


@given(sizes, st.data())
def test_another_implementation_agrees(size: int, data: st.DataObject) -> None:
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    for number in range(size):
        oracle.append_entry(bytes([number]))
    leaves = LEAVES[:size]
    root = tree_root(leaves)
    assert root == oracle.get_root()
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    path = oracle.prove_inclusion(index + 1).path
    assert inclusion_proof(leaves, index) == path[1:]  # theirs begins with the leaf
    theirs = oracle.prove_consistency(old, size)  # of another form than RFC 6962's: only the roots compare
    pymerkle.verify_consistency(tree_root(leaves[:old]), root, theirs)
    assert verify_consistency(
        old, size, theirs.retrieve_prior_state(), theirs.compute_root(), consistency_proof(leaves, old)
    )


@given(sizes, st.data())
def test_proofs_hold_for_their_own_place_only(size: int, data: st.DataObject) -> None:
    leaves, index = LEAVES[:size], data.draw(st.integers(0, size - 1))
    root, proof = tree_root(leaves), inclusion_proof(leaves, index)
    assert verify_inclusion(index, size, leaves[index], proof, root)
    wrong = data.draw(st.integers(0, size).filter(lambda at: at != index))
    assert not verify_inclusion(wrong, size, leaves[index], proof, root)
    assert not verify_inclusion(index, size, LEAVES[index - 1], proof, root)
    assert not verify_inclusion(index, size, leaves[index], [*proof, root], root)


@given(sizes, st.data())
def test_only_a_prefix_is_consistent(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    leaves = LEAVES[:size]
    proof = consistency_proof(leaves, old)
    root, old_root = tree_root(leaves), tree_root(leaves[:old])
    assert verify_consistency(old, size, old_root, root, proof)
    changed = tree_root([*leaves[: old - 1], leaf_hash(b"changed")])
    assert not verify_consistency(old, size, changed, root, proof)


def test_a_growing_tree_has_the_root_of_its_leaves() -> None:
    tree = Tree()
    for size, leaf in enumerate(LEAVES):
        assert (tree.size, tree.root()) == (size, tree_root(LEAVES[:size]))
        tree.append(leaf)


def test_proofs_outside_the_tree_are_refused() -> None:
    for index in (-1, 3):
        with pytest.raises(ProofError):
            inclusion_proof(LEAVES[:3], index)
    for old in (0, 4):
        with pytest.raises(ProofError):
            consistency_proof(LEAVES[:3], old)


@given(st.lists(st.integers(0, 40), max_size=6))
def test_leaves_may_be_added_together(runs: list[int]) -> None:
    together, size = Tree(), 0
    for run in runs:
        together.extend(b"".join(LEAVES[(size + place) % len(LEAVES)] for place in range(run)))
        size += run
    expected = tree_root(LEAVES[place % len(LEAVES)] for place in range(size))
    assert (together.size, together.root()) == (size, expected)
