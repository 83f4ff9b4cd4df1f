"""Salted commitments: what they hide, what they bind, and the file that keeps the secret."""

from __future__ import annotations

import hashlib
import hmac
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwarden.runtime.commitments import SIZE, Committer, open_commitment
from gradwarden.runtime.errors import KeyFileError

SECRET = bytes(range(32))


def test_a_commitment_is_what_the_format_says():
    salt = hmac.new(SECRET, b"gradwarden/id/1\x00" + "é".encode(), hashlib.sha256).digest()
    assert Committer(SECRET).commit("é") == hashlib.sha256(b"\x00" + salt + "é".encode()).digest()
    assert Committer(SECRET).secret_commitment == hashlib.sha256(SECRET).hexdigest()


@given(st.text(), st.text())
def test_an_id_has_one_commitment_and_shares_it_with_no_other(one, other):
    committer = Committer(SECRET)
    assert committer.commit(one) == Committer(SECRET).commit(one)
    assert (committer.commit(one) == committer.commit(other)) == (one == other)
    assert committer.commit(one) != Committer(bytes(32)).commit(one)


@given(st.text(), st.text())
def test_a_revealed_salt_opens_the_commitment_of_its_id_only(one, other):
    committer = Committer(SECRET)
    salt = committer.salt(one)
    assert open_commitment(salt, one) == committer.commit(one)
    assert (open_commitment(salt, other) == committer.commit(other)) == (one == other)


def test_an_id_that_is_not_unicode_text_is_still_committed_to():
    committer = Committer(SECRET)
    assert len(committer.commit("\ud800")) == SIZE
    assert committer.commit("\ud800") != committer.commit("\ud801")


def test_a_secret_is_made_once_and_kept_private(tmp_path):
    path = tmp_path / "run.secret"
    first = Committer.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Committer.load_or_create(path).commit("x") == first.commit("x")
    assert Committer.load(path).secret_commitment == first.secret_commitment
    assert Committer.load_or_create(tmp_path / "other.secret").commit("x") != first.commit("x")


@pytest.mark.parametrize("content", [b"", b"00", b"zz" * 32, b"00" * 33, b"\xff\xfe", b"00" * 31 + b"0"])
def test_a_file_that_holds_no_secret_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "run.secret"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match="secret"):
        Committer.load_or_create(path)
    assert path.read_bytes() == content


def test_a_secret_that_is_missing_is_not_made_up_where_it_must_exist(tmp_path):
    with pytest.raises(KeyFileError, match="cannot read") as caught:
        Committer.load(tmp_path / "run.secret")
    assert "restore" in caught.value.help
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["missing/run.secret", "."])
def test_a_secret_that_cannot_be_written_is_an_error_not_a_traceback(tmp_path, place):
    with pytest.raises(KeyFileError, match=r"cannot (read|write)"):
        Committer.load_or_create(tmp_path / place)


def test_a_digest_of_metadata_binds_id_and_content():
    committer = Committer(SECRET)
    leaf = committer.metadata_leaf("x", {"kind": "a", "tags": ["p", "q"]})
    assert leaf == committer.metadata_leaf("x", {"tags": ("p", "q"), "kind": "a"})
    assert leaf != committer.metadata_leaf("y", {"kind": "a", "tags": ["p", "q"]})
    assert leaf != committer.metadata_leaf("x", {"kind": "a", "tags": ["q", "p"]})
