"""The digest of weights: what it is made of, and that no difference escapes it."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwarden.runtime.checkpoints import measure_weights, save_leaves
from gradwarden.runtime.weights import tree as tree_module
from gradwarden.runtime.weights.leaves import (
    LEAVES_SUFFIX,
    chunk_bytes,
    first_difference,
    leaves_beside,
    recorded_leaves,
)
from gradwarden.runtime.weights.stored import StoredWeights
from gradwarden.runtime.weights.tree import WeightTree, hash_weights

MIB = 1 << 20


def definition(entries: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, as it stands there."""
    if not entries:
        return sha256(b"").digest()
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0]).digest()
    split = 1
    while split * 2 < len(entries):
        split *= 2
    return sha256(b"\x01" + definition(entries[:split]) + definition(entries[split:])).digest()


def write(folder: Path, arrays: dict[str, Any], name: str = "w") -> Path:
    path = folder / f"{name}.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path


def hashed(path: Path, threads: int | None = None) -> WeightTree:
    with StoredWeights.open(path) as stored:
        return hash_weights(stored, threads)


def some_arrays() -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "layer.0.weight": random.integers(0, 255, 3 * MIB + 17, "u1"),
        "layer.0.bias": random.standard_normal((3, 5)).astype("f4"),
        "exact": random.integers(0, 255, 2 * MIB, "u1"),
        "none": np.zeros((0, 4), "f8"),
        "é": np.array(7, "i8"),
    }


def test_the_digest_is_what_its_page_says(tmp_path: Path) -> None:
    arrays = some_arrays()
    found = hashed(write(tmp_path, arrays))
    entries = []
    for name in sorted(arrays):
        data = arrays[name].tobytes()
        root = definition([data[at : at + MIB] for at in range(0, len(data), MIB)])
        with StoredWeights.open(tmp_path) as stored:
            dtype = stored.tensors[name].dtype
        fields = f'"dtype":"{dtype}","name":{json.dumps(name, ensure_ascii=False)},"root":"{root.hex()}"'
        shape = ",".join(map(str, arrays[name].shape))
        entries.append(f'{{"chunk":1048576,{fields},"shape":[{shape}]}}'.encode())
    assert found.root == definition(entries)
    assert [tensor.name for tensor in found.tensors] == sorted(arrays)


def test_threads_and_files_do_not_change_it(tmp_path: Path) -> None:
    arrays = some_arrays()
    whole = write(tmp_path, arrays)
    for number, name in enumerate(arrays):
        (tmp_path / "shards").mkdir(exist_ok=True)
        write(tmp_path / "shards", {name: arrays[name]}, f"part-{number}")
    trees = [hashed(whole, threads) for threads in (1, 2, 3, 16)] + [hashed(tmp_path / "shards", 2)]
    assert {one.root for one in trees} == {trees[0].root}
    assert all(one.leaves == trees[0].leaves for one in trees)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_located_to_its_tensor_and_chunk(
    tmp_path_factory: Any, monkeypatch_session: None, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    sizes = data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=4).filter(any))
    arrays = {f"t{n}": np.frombuffer(bytes(range(size)), "u1") for n, size in enumerate(sizes)}
    path = write(folder, arrays)
    before = measure_weights(path)
    save_leaves(before.tree, path)
    with StoredWeights([path]) as stored:
        name = data.draw(st.sampled_from([name for name, array in arrays.items() if array.size]))
        tensor = stored.tensors[name]
    place = data.draw(st.integers(0, tensor.size - 1))
    raw = bytearray(path.read_bytes())
    raw[tensor.begin + place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    after = measure_weights(path)
    assert after.digest != before.digest
    assert after.tree.root != before.tree.root
    (wanted,) = set(before.tree.tensors) - set(after.tree.tensors)
    assert wanted.name == name
    leaves = recorded_leaves(leaves_beside(path), name, wanted.root)
    assert leaves is not None
    chunk = first_difference(leaves, after.tree.leaves[name])
    assert chunk == place // tree_module.CHUNK
    begin, end = chunk_bytes(chunk, tensor.size)
    assert begin <= place < end <= tensor.size


@pytest.fixture(scope="module")
def monkeypatch_session() -> Any:
    """Chunks of 32 bytes, and spans of two: small tensors then have trees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "CHUNK", 32)
        patch.setattr("gradwarden.runtime.weights.leaves.CHUNK", 32)
        patch.setattr(tree_module, "_SPAN", 2)
        yield


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros((2, 3), "f4"), "c": np.zeros(2, "f4")},
        {"a": np.zeros((3, 2), "f4"), "b": np.zeros(2, "f4")},
        {"a": np.zeros((2, 3), "i4"), "b": np.zeros(2, "f4")},
        {"a": np.zeros((2, 3), "f4"), "b": np.zeros(2, "f4"), "c": np.zeros(0, "f4")},
        {"a": np.zeros((2, 3), "f4")},
        {"a": -np.zeros((2, 3), "f4"), "b": np.zeros(2, "f4")},
    ],
    ids=["name", "shape", "type", "one more", "one less", "the sign of zero"],
)
def test_names_types_and_shapes_are_bound_in(tmp_path: Path, other: dict[str, Any]) -> None:
    first = hashed(write(tmp_path, {"a": np.zeros((2, 3), "f4"), "b": np.zeros(2, "f4")}))
    assert hashed(write(tmp_path, other)).root != first.root


def test_leaves_that_do_not_lead_to_the_recorded_root_are_not_believed(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": np.arange(5, dtype="u1")})
    tree = hashed(path)
    (root,) = [tensor.root for tensor in tree.tensors]
    assert recorded_leaves(leaves_beside(path), "a", root) is None
    save_leaves(tree, path)
    beside = path.with_suffix(LEAVES_SUFFIX)
    assert recorded_leaves([beside], "a", root) == tree.leaves["a"]
    assert recorded_leaves([beside], "b", root) is None
    raw = bytearray(beside.read_bytes())
    raw[-1] ^= 1
    beside.write_bytes(raw)
    assert recorded_leaves([beside], "a", root) is None
    beside.write_bytes(b"")
    assert recorded_leaves([beside], "a", root) is None


def test_an_error_in_a_thread_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": np.zeros(MIB, "u1")})
    with StoredWeights([path]) as stored:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(Exception, match="has become shorter"):
            hash_weights(stored, 2)
