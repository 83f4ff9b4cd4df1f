"""The strict reader of safetensors files, held against the library that made the format."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradwarden.runtime.errors import WeightsError
from gradwarden.runtime.weights.stored import StoredWeights

DTYPES = [np.dtype(kind) for kind in ("bool", "u1", "i2", "f2", "i4", "f4", "u8", "f8")]


def packed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def told(dtype: str = "U8", shape: Any = (3,), offsets: Any = (0, 3)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def content(stored: StoredWeights, name: str) -> bytes:
    tensor = stored.find(name)
    return b"".join(
        bytes(stored.data(tensor, at, min(at + 5, tensor.size))) for at in range(0, tensor.size, 5)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 255)),
        max_size=5,
    )
)
def test_what_the_library_writes_is_read_byte_by_byte(tmp_path_factory: Any, tensors: Any) -> None:
    arrays = {
        name: np.frombuffer(bytes([fill % 2]) * (dtype.itemsize * int(np.prod(shape))), dtype).reshape(shape)
        for name, (dtype, shape, fill) in tensors.items()
    }
    path = tmp_path_factory.mktemp("library") / "w.safetensors"
    safetensors.numpy.save_file(arrays, path, {"note": "of no matter"})
    with StoredWeights([path]) as stored:
        assert stored.tensors.keys() == arrays.keys()
        for name, array in arrays.items():
            assert stored.tensors[name].shape == array.shape
            assert content(stored, name) == array.tobytes()
        assert stored.size == sum(array.nbytes for array in arrays.values())


MALFORMED = {
    "empty": b"",
    "no header": packed(b""),
    "a header longer than the file": packed(b"{}", length=3),
    "an endless header": packed(b"{}", length=2**64 - 1),
    "a list": packed(b"[]"),
    "no JSON": packed(b"{]"),
    "space before": packed(b" {}"),
    "a name twice": packed(b'{"w":%b,"w":%b}' % ((json.dumps(told()).encode(),) * 2), bytes(3)),
    "half a character": packed(b'{"\\ud800":%b}' % json.dumps(told()).encode(), bytes(3)),
    "no Unicode": packed(b'{"\xff":%b}' % json.dumps(told()).encode(), bytes(3)),
    "a gap at the start": packed(json.dumps({"w": told(offsets=(1, 4))}).encode(), bytes(4)),
    "bytes of no tensor": packed(json.dumps({"w": told()}).encode(), bytes(4)),
    "cut off": packed(json.dumps({"w": told()}).encode(), bytes(2)),
    "an overlap": packed(json.dumps({"v": told(), "w": told(offsets=(2, 5))}).encode(), bytes(5)),
    "another length": packed(json.dumps({"w": told(shape=(4,))}).encode(), bytes(3)),
    "backwards": packed(json.dumps({"w": told(shape=(0,), offsets=(3, 0))}).encode(), bytes(3)),
    "another type": packed(json.dumps({"w": told("Q7")}).encode(), bytes(3)),
    "a negative shape": packed(json.dumps({"w": told(shape=(-1, -3))}).encode(), bytes(3)),
    "a true shape": packed(json.dumps({"w": told(shape=(True, 3))}).encode(), bytes(3)),
    "a fraction": packed(b'{"w":{"dtype":"U8","shape":[3.0],"data_offsets":[0,3]}}', bytes(3)),
    "a field more": packed(json.dumps({"w": {**told(), "x": 1}}).encode(), bytes(3)),
    "a field less": packed(b'{"w":{"dtype":"U8","shape":[3]}}', bytes(3)),
    "metadata of numbers": packed(b'{"__metadata__":{"a":1}}'),
    "deep": packed(b'{"a":' * 50_000),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_in_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(WeightsError, match=r"`w\.safetensors` is no safetensors file: ") as caught:
        StoredWeights([path])
    assert (caught.value.code, len(caught.value.message) < 300) == ("GW618", True)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_read_the_library_reads_as_well(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Nothing is taken for weights that a loader would not take, or would read otherwise."""
    small = st.integers(0, 4)
    entry = st.builds(told, st.sampled_from(["U8", "F16", "F32", "Q"]), st.lists(small, max_size=2),
                      st.tuples(st.integers(0, 8), st.integers(0, 16)))  # fmt: skip
    header = data.draw(st.dictionaries(st.sampled_from("vw"), entry, max_size=2))
    raw = packed(json.dumps(header).encode(), bytes(range(data.draw(st.integers(0, 16)))))
    path = tmp_path_factory.mktemp("any") / "w.safetensors"
    path.write_bytes(raw)
    try:
        with StoredWeights([path]) as stored:
            read = {name: content(stored, name) for name in stored.tensors}
    except WeightsError:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.numpy.load(raw)
    else:
        loaded = safetensors.numpy.load(raw)
        assert {name: array.tobytes() for name, array in loaded.items()} == read


@settings(max_examples=60, deadline=None)
@example(place=0, value=0xFF)
@given(place=st.integers(0, 250), value=st.integers(0, 255))
def test_no_changed_byte_of_a_header_is_a_surprise(tmp_path_factory: Any, place: int, value: int) -> None:
    raw = bytearray(safetensors.numpy.save({"a": np.arange(6.0).reshape(2, 3), "b": np.zeros(3, "u1")}))
    raw[place % len(raw)] = value
    path = tmp_path_factory.mktemp("bent") / "w.safetensors"
    path.write_bytes(raw)
    with suppress(WeightsError), StoredWeights([path]) as stored:
        for name in stored.tensors:
            content(stored, name)


def test_shards_are_one_model_and_two_models_are_none(tmp_path: Path) -> None:
    for name, tensors in (("1", ("a", "b")), ("2", ("c",))):
        arrays = {one: np.full(2, ord(one), "u1") for one in tensors}
        safetensors.numpy.save_file(arrays, tmp_path / f"{name}.safetensors")
    with StoredWeights.open(tmp_path) as stored:
        assert sorted(stored.tensors) == ["a", "b", "c"]
        assert [content(stored, name) for name in "abc"] == [b"aa", b"bb", b"cc"]
    safetensors.numpy.save_file({"a": np.zeros(2, "u1")}, tmp_path / "3.safetensors")
    with pytest.raises(WeightsError, match=r"`a` is in `1\.safetensors` and in `3\.safetensors`"):
        StoredWeights.open(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="holds no"):
        StoredWeights.open(tmp_path / "empty")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(5_000, "u1")}, path)
    with StoredWeights([path]) as stored:
        os.truncate(path, 4_000)
        with pytest.raises(WeightsError, match="has become shorter"):
            content(stored, "a")
